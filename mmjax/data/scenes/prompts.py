"""Prompts for pictures in GenEval's categories, and what they require of one.

`prompt` writes the canonical form of a category for a scene; `parse` reads any prompt of that language into a `Requirement`,
which says of a list of objects (a scene's, or what the oracle read from a picture) whether they meet it:

    [a picture|image|drawing of] PART {(and|,) PART}        PART is  THINGS [RELATION THINGS]  or  the word "..."
    THINGS is  (a|an|the|number) [size] [outlined|filled] [colour] (shape | thing)

GenEval: Ghosh, Hajishirzi, Schmidt 2023 (arXiv 2310.11513).
"""

import dataclasses
import itertools
import re
from collections.abc import Iterator, Sequence

from mmjax.core.errors import UserError, suggest
from mmjax.data.scenes.describe import NOUNS, NUMBERS, SIZE_WORDS, Description, fitting, plural
from mmjax.data.scenes.world import COLOURS, RELATIONS, SHAPES, Object, Relation, Scene, holds

CATEGORIES = ("single object", "two objects", "counting", "colours", "position", "attribute binding", "text rendering")

_SIZES = {word: size for size, words in SIZE_WORDS.items() for word in (size, *words)}
_OUTLINES = {"outlined": True, "hollow": True, "filled": False, "solid": False}
_NOUNS = {form: shape for shape in SHAPES for form in (shape, plural(shape))}
_NOUNS |= {form: None for noun in NOUNS for form in (noun, plural(noun))}
_COUNTS = {"a": 1, "an": 1, "the": 1} | {form: n for n, word in enumerate(NUMBERS) if n for form in (word, str(n))}
_RELATIONS = {tuple(name.split()): name for name in RELATIONS} | {
    ("to", "the", "left", "of"): "left of",
    ("to", "the", "right", "of"): "right of",
    ("under",): "below",
    ("beneath",): "below",
    ("over",): "above",
    ("within",): "inside",
    ("standing", "on"): "on top of",
}
_CARRIER = re.compile(r"(a|an) (picture|image|drawing) of ", re.IGNORECASE)
_FILLER = ("a", "an", "picture", "image", "drawing", "of", "and", ",", "the", "word", "text", ".")


@dataclasses.dataclass(frozen=True)
class Things:
    """Objects of one description: exactly `count` where a number was written, at least one after an article."""

    description: Description
    count: int = 1
    exact: bool = False


@dataclasses.dataclass(frozen=True)
class Requirement:
    """A partial scene. `relations` hold between `things` by index; `word` is the drawn word, compared without regard to case."""

    things: tuple[Things, ...]
    relations: tuple[Relation, ...] = ()
    word: str | None = None

    def met(self, objects: Sequence[Object], word: str | None = None) -> bool:
        """Whether different objects can be found for all things, so that every relation holds and every number is exact."""
        if self.word is not None and (word or "").lower() != self.word.lower():
            return False
        for things in self.things:
            if things.exact and len(fitting(objects, things.description)) != things.count:
                return False
        return any(
            all(holds(objects[i], r.name, objects[j]) for r in self.relations for i in chosen[r.subject] for j in chosen[r.object])
            for chosen in self._choices(objects)
        )

    def _choices(self, objects: Sequence[Object], used: frozenset[int] = frozenset(), k: int = 0) -> Iterator[tuple[tuple[int, ...], ...]]:
        """Every way to give each of the things its own objects."""
        if k == len(self.things):
            yield ()
            return
        free = [i for i in fitting(objects, self.things[k].description) if i not in used]
        for chosen in itertools.combinations(free, self.things[k].count):
            for rest in self._choices(objects, used | set(chosen), k + 1):
                yield (chosen, *rest)


def prompt(scene: Scene, category: str) -> str:
    """The canonical prompt of a category, of the scene's first object or first two (of its first relation, for position).

    Raises:
      UserError: no such category, or the scene lacks what it takes.
    """
    if category not in CATEGORIES:
        raise UserError(f"category {category!r} of prompts{suggest(category, CATEGORIES)}")
    objects = scene.objects
    pair = category in ("two objects", "attribute binding")
    lacking = (
        (category == "text rendering" and not scene.word and "a word")
        or (category == "position" and not scene.relations and "a relation")
        or (category != "text rendering" and len(objects) < 1 + pair and f"{1 + pair} object{'s' * pair}")
    )
    if lacking:
        raise UserError(f"a prompt of category {category!r} needs a scene with {lacking}")
    if category == "text rendering":
        return f'the word "{scene.word.text}"'
    if category == "position":
        first = scene.relations[0]
        return f"{phrase(_seen(objects[first.subject]))} {first.name} {phrase(_seen(objects[first.object]))}"
    if category == "counting":
        description = Description(shape=objects[0].shape)
        return phrase(description, len(fitting(objects, description)), exact=True)
    coloured = category in ("colours", "attribute binding")
    return " and ".join(phrase(_seen(thing, coloured)) for thing in objects[: 1 + pair])


def _seen(thing: Object, coloured: bool = False) -> Description:
    return Description(shape=thing.shape, colour=thing.colour if coloured else None)


def phrase(description: Description, count: int = 1, exact: bool = False) -> str:
    """A noun phrase in canonical words: "a red circle", "three red circles", "one red circle" if exact."""
    words = [description.size, None if description.outline is None else "outlined" if description.outline else "filled", description.colour]
    noun = description.shape or NOUNS[0]
    rest = " ".join([*(w for w in words if w), noun if count == 1 else plural(noun)])
    if count != 1 or exact:
        return f"{NUMBERS[count]} {rest}"
    return f"an {rest}" if rest[0] in "aeiou" else f"a {rest}"


def parse(text: str) -> Requirement:
    """What a prompt requires.

    Raises:
      UserError: a word that is not in the language, named, with the nearest that is; or known words in an order that is not.
    """
    body = _CARRIER.sub("", text.strip(), count=1) if _CARRIER.match(text.strip()) else text.strip()
    return _Parser(text, re.findall(r'"[^"]*"|[^\s,."]+|[,."]', body.removesuffix("."))).requirement()


class _Parser:
    """Recursive descent over a prompt's tokens."""

    def __init__(self, text: str, tokens: Sequence[str]):
        self.text, self.tokens, self.at = text, tokens, 0
        known = {*_FILLER, *_SIZES, *_OUTLINES, *COLOURS, *_NOUNS, *_COUNTS, *(word for words in _RELATIONS for word in words)}
        for token in tokens:
            if not token.startswith('"') and token.lower() not in known:
                raise UserError(f"prompt {text!r}: the word {token!r} is not in the grammar of scenes{suggest(token.lower(), known)}")

    def requirement(self) -> Requirement:
        things: list[Things] = []
        relations: list[Relation] = []
        word = None
        while True:
            if self._peek(1).startswith(('"', "word", "text")) or self._peek().startswith('"'):
                if word is not None:
                    self._fail("one word to draw")
                word = self._word()
            else:
                things.append(self._things())
                while name := self._relation():
                    things.append(self._things())
                    relations.append(Relation(len(things) - 2, name, len(things) - 1))
            if self.at == len(self.tokens):
                return Requirement(tuple(things), tuple(relations), word)
            if not (self._take(",") | self._take("and")):
                self._fail("a relation, 'and' or the end")

    def _peek(self, ahead: int = 0) -> str:
        return self.tokens[self.at + ahead].lower() if self.at + ahead < len(self.tokens) else ""

    def _take(self, *words: str) -> bool:
        found = tuple(self._peek(k) for k in range(len(words))) == words
        self.at += len(words) * found
        return found

    def _fail(self, expected: str) -> None:
        got = repr(self.tokens[self.at]) if self.at < len(self.tokens) else "the end"
        raise UserError(f"prompt {self.text!r}: expected {expected} at word {self.at + 1}, got {got}")

    def _things(self) -> Things:
        start = self._peek()
        if start not in _COUNTS:
            self._fail("an article or a number")
        self.at += 1
        size = self._of(_SIZES)
        outline = self._of(_OUTLINES)
        colour = self._of({c: c for c in COLOURS})
        if self._peek() not in _NOUNS:
            self._fail("a shape")
        shape = self._of(_NOUNS)
        return Things(Description(size, outline, colour, shape), _COUNTS[start], start not in ("a", "an", "the"))

    def _of(self, table: dict):
        value = table.get(self._peek())
        self.at += self._peek() in table
        return value

    def _relation(self) -> str | None:
        return next((name for words, name in _RELATIONS.items() if self._take(*words)), None)

    def _word(self) -> str:
        self._take("the")
        _ = self._take("word") or self._take("text")
        if not re.fullmatch(r'"[^"]+"', self._peek()):
            self._fail("a word in quotation marks")
        self.at += 1
        return self.tokens[self.at - 1].strip('"')
