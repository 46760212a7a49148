"""A small drawing language. A program is one statement a line (or several between semicolons); `#` begins a comment:

    background stripes shade 0.9 second 0.8 tint 0.1 seed 7
    circle red large at 0.3 0.4
    star blue small at 0.3 0.15 turned 12.0 outlined
    square black large at 0.6 0.6 radius 0.35
    word "CAT" print green at 0.5 0.9 height 0.1
    on_top_of(2, 1)

Objects are drawn in their order and counted from 1. A relation states what has to hold of two objects above it; it moves nothing.
Executing a program gives the scene it draws. What `write` writes is the canonical form: `write(parse(p)) == p` for it, and
`execute(parse(program(scene))) == scene`, every number being written in full.
"""

import dataclasses
import re
from collections.abc import Callable, Collection, Iterator, Mapping
from typing import Any

from mmjax.core.errors import UserError, suggest
from mmjax.data.scenes.glyphs import FONTS
from mmjax.data.scenes.world import BACKGROUNDS, COLOURS, RELATIONS, SHAPES, SIZES, Background, Object, Relation, Scene, Word, holds

Statement = Background | Object | Word | Relation  # a relation's indices count from 0, as everywhere but in the text

_CALLS = {name.replace(" ", "_"): name for name in RELATIONS}
_TOKEN = re.compile(r'"[^"]*"|[(),;]|[^\s(),;"]+|"')


@dataclasses.dataclass(frozen=True)
class Line:
    """A statement and where it was written, for messages."""

    statement: Statement
    number: int


def parse(text: str) -> tuple[Line, ...]:
    """The statements of a program.

    Raises:
      UserError: names the line and the token that is wrong, and what was expected there.
    """
    return tuple(
        Line(_statement(_Tokens(tokens, number)), number)
        for number, line in enumerate(text.splitlines(), 1)
        for tokens in _statements(line)
    )


def write(lines: Collection[Line]) -> str:
    """The canonical text, one statement a line."""
    return "".join(f"{_WRITE[type(line.statement)](line.statement)}\n" for line in lines)


def execute(lines: Collection[Line]) -> Scene:
    """The scene a program draws.

    Raises:
      UserError: a second background or word, a relation of what is not there, or one that does not hold; names the line.
    """
    objects: list[Object] = []
    relations: list[Relation] = []
    single: dict[type, Statement] = {}
    for line in lines:
        statement = line.statement
        if isinstance(statement, Object):
            objects.append(statement)
        elif isinstance(statement, Relation):
            relations.append(_true(statement, objects, line.number))
        elif type(statement) in single:
            raise UserError(f"drawing program, line {line.number}: a second {type(statement).__name__.lower()}; a picture has one at most")
        else:
            single[type(statement)] = statement
    return Scene(tuple(objects), single.get(Background, Background()), tuple(relations), single.get(Word))


def program(scene: Scene) -> str:
    """The canonical program that draws a scene."""
    word = (scene.word,) if scene.word else ()
    return write([Line(s, n) for n, s in enumerate((scene.background, *scene.objects, *word, *scene.relations), 1)])


def _true(relation: Relation, objects: list[Object], number: int) -> Relation:
    for index in (relation.subject, relation.object):
        if not 0 <= index < len(objects):
            raise UserError(f"drawing program, line {number}: there is no object {index + 1} above it, only {len(objects)}")
    if not holds(objects[relation.subject], relation.name, objects[relation.object]):
        raise UserError(
            f"drawing program, line {number}: object {relation.subject + 1} is not {relation.name} object {relation.object + 1}"
        )
    return relation


def _statements(line: str) -> Iterator[list[str]]:
    """A line's statements as tokens, without its comment and without empty ones."""
    current: list[str] = []
    for token in _TOKEN.findall(line):
        if token.startswith("#"):
            break
        if token != ";":
            current.append(token)
        elif current:
            yield current
            current = []
    if current:
        yield current


class _Tokens:
    """A statement's tokens, read from the left."""

    def __init__(self, tokens: list[str], number: int):
        self.tokens, self.number, self.at = tokens, number, 0

    def fail(self, expected: str, known: Collection[str] = ()) -> None:
        got = self.tokens[self.at] if self.at < len(self.tokens) else None
        where = f"drawing program, line {self.number}, token {self.at + 1}"
        raise UserError(
            f"{where}: expected {expected}, got {'the end of the line' if got is None else repr(got)}{suggest(got or '', known)}"
        )

    def take(self, *words: str) -> bool:
        """Whether the next token is one of these; then it is read."""
        found = self.at < len(self.tokens) and self.tokens[self.at] in words
        self.at += found
        return found

    def one_of(self, what: str, known: Collection[str]) -> str:
        if not self.take(*known):
            self.fail(what, known)
        return self.tokens[self.at - 1]

    def number_(self, what: str, convert: Callable[[str], Any] = float) -> Any:
        try:
            value = convert(self.tokens[self.at])
            if value != value or abs(value) == float("inf"):
                raise ValueError
        except (IndexError, ValueError):
            self.fail(f"{'a whole number' if convert is int else 'a number'} ({what})")
        self.at += 1
        return value

    def after(self, keyword: str, what: str, convert: Callable[[str], Any] = float) -> dict[str, Any]:
        """{field: value} where the keyword stands next, else {}."""
        return {what: self.number_(what, convert)} if self.take(keyword) else {}

    def end(self) -> None:
        if self.at < len(self.tokens):
            self.fail("the end of the statement")


def _statement(t: _Tokens) -> Statement:
    begins = t.one_of("a shape, 'background', 'word' or a relation", (*SHAPES, "background", "word", *_CALLS))
    if begins in SHAPES:
        statement = _object(t, begins)
    elif begins == "background":
        statement = _background(t)
    else:
        statement = _word(t) if begins == "word" else _relation(t, begins)
    t.end()
    return statement


def _object(t: _Tokens, shape: str) -> Object:
    colour, size = t.one_of("a colour", COLOURS), t.one_of("a size", SIZES)
    x, y = _at(t)
    more = t.after("turned", "angle")
    outline = t.take("outlined")
    return Object(shape, colour, size, x, y, outline=outline, **more, **t.after("radius", "radius"))


def _at(t: _Tokens) -> tuple[float, float]:
    t.one_of("'at'", ("at",))
    return t.number_("x"), t.number_("y")


def _background(t: _Tokens) -> Background:
    kind = t.one_of("a kind of background", BACKGROUNDS)
    fields = t.after("shade", "shade") | t.after("second", "second") | t.after("tint", "tint") | t.after("seed", "seed", int)
    return Background(kind, **fields)


def _word(t: _Tokens) -> Word:
    if t.at >= len(t.tokens) or not re.fullmatch(r'"[^"]+"', t.tokens[t.at]):
        t.fail("the word in quotation marks")
    text = t.tokens[t.at].strip('"')
    t.at += 1
    font, colour = t.one_of("a font", FONTS), t.one_of("a colour", COLOURS)
    x, y = _at(t)
    t.one_of("'height'", ("height",))
    return Word(text, font, colour, x, y, t.number_("height"))


def _relation(t: _Tokens, name: str) -> Relation:
    t.one_of("'('", ("(",))
    subject = t.number_("an object, counted from 1", int)
    t.one_of("','", (",",))
    other = t.number_("an object, counted from 1", int)
    t.one_of("')'", (")",))
    return Relation(subject - 1, _CALLS[name], other - 1)


def _write_object(o: Object) -> str:
    turned = f" turned {o.angle!r}" if o.angle else ""
    return f"{o.shape} {o.colour} {o.size} at {o.x!r} {o.y!r}{turned}{' outlined' * o.outline}{f' radius {o.radius!r}' if o.radius else ''}"


_WRITE: Mapping[type, Callable[[Any], str]] = {
    Background: lambda b: f"background {b.kind} shade {b.shade!r} second {b.second!r} tint {b.tint!r} seed {b.seed}",
    Object: _write_object,
    Word: lambda w: f'word "{w.text}" {w.font} {w.colour} at {w.x!r} {w.y!r} height {w.height!r}',
    Relation: lambda r: f"{r.name.replace(' ', '_')}({r.subject + 1}, {r.object + 1})",
}
