"""Noun phrases: descriptions of objects that fit exactly those meant, where things are, and the words for both.

The one convention behind every caption and question: a phrase stands for all the objects it fits. "A red circle" is written
only where there is one, "three circles" only where there are three; so a sentence is true or false of a scene graph, and no
reference is ambiguous.
"""

import dataclasses
import itertools
from collections.abc import Iterator, Sequence
from functools import cached_property
from typing import Any

from mmjax.data.scenes.grammar import Call, Leaf, Node, Rule, Tree
from mmjax.data.scenes.world import Object, Word

NUMBERS = ("no", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten")
SIZE_WORDS = {"small": ("small", "little"), "medium": ("medium-sized", "mid-sized"), "large": ("large", "big")}
NOUNS = ("thing", "object", "shape", "figure")  # for a description without a shape
ATTRIBUTES = ("size", "outline", "colour", "shape")
PLACES = ("upper left", "upper right", "lower left", "lower right", "left", "right", "top", "bottom", "centre")
SIDE, MIDDLE = 0.4, 0.08  # nearer an edge than SIDE is on that side; within MIDDLE of a half is in the middle; between is neither


@dataclasses.dataclass(frozen=True)
class Description:
    """Attributes an object has to have; None leaves one open."""

    size: str | None = None
    outline: bool | None = None
    colour: str | None = None
    shape: str | None = None

    def fits(self, thing: Object) -> bool:
        """Whether the object is so."""
        return all(value is None or getattr(thing, name) == value for name, value in self.stated)

    @cached_property
    def stated(self) -> tuple[tuple[str, Any], ...]:
        """The attributes that are not left open."""
        return tuple((name, getattr(self, name)) for name in ATTRIBUTES if getattr(self, name) is not None)


def fitting(objects: Sequence[Object], description: Description) -> tuple[int, ...]:
    """Indices of the objects a description fits."""
    return tuple(i for i, thing in enumerate(objects) if description.fits(thing))


def describing(
    objects: Sequence[Object], targets: tuple[int, ...], need: Sequence[str], may: Sequence[str] = ATTRIBUTES
) -> list[Description]:
    """The shortest descriptions that state `need`, and of `may` what it takes to fit `targets` and nothing else. [] if none does."""
    first = objects[targets[0]]
    rest = [name for name in may if name not in need]
    for extra in range(len(rest) + 1):
        chosen = [(*need, *more) for more in itertools.combinations(rest, extra)]
        found = [Description(**{name: getattr(first, name) for name in names}) for names in chosen]
        if found := [d for d in found if fitting(objects, d) == targets]:
            return found
    return []


def groups(objects: Sequence[Object], names: Sequence[str]) -> tuple[tuple[int, ...], ...]:
    """Objects alike in the named attributes, together; in the order of their first."""
    out: dict[tuple, list[int]] = {}
    for i, thing in enumerate(objects):
        out.setdefault(tuple(getattr(thing, name) for name in names), []).append(i)
    return tuple(tuple(group) for group in out.values())


def in_place(thing: Object | Word, place: str) -> bool:
    """Whether its centre is there. Between a side and the middle is a gap in which neither may be said."""
    low = {"left": thing.x, "top": thing.y, "upper": thing.y}
    high = {"right": thing.x, "bottom": thing.y, "lower": thing.y}
    if place == "centre":
        return max(abs(thing.x - 0.5), abs(thing.y - 0.5)) <= MIDDLE
    return all(low[side] < SIDE if side in low else high[side] > 1 - SIDE for side in place.split())


def place(things: Sequence[Object | Word]) -> str | None:
    """The most telling place that all the things are in; None if there is none to state."""
    return next((name for name in PLACES if all(in_place(thing, name) for thing in things)), None)


def plural(noun: str) -> str:
    """Of a shape or another noun of this world."""
    return noun + ("es" if noun.endswith("ss") else "s")


def number(n: int) -> list[str]:
    """A count as a word and in digits."""
    return [NUMBERS[n], str(n)]


# Rules. A noun phrase is `<np article targets need>`: `need` names attributes as "colour+shape" (or "-" for none), article is a, the, any,
# count ("one" even of one) or none; `<described article many targets description>` is the same of a given description ("one" or "many").


def _np(context: Any, article: str, targets: tuple[int, ...], need: str | Description) -> Iterator[tuple[Tree, ...]]:
    if isinstance(need, Description):
        yield (Call("described", (article, "one" if len(targets) == 1 else "many", targets, need)),)
        return
    names = () if need == "-" else tuple(need.split("+"))
    many = "one" if len(targets) == 1 else "many"
    for description in describing(context.objects, targets, names):
        yield (Call("described", (article, many, targets, description)),)


def _article(context: Any, article: str, many: str, targets: tuple[int, ...]) -> list[tuple[Tree, ...]]:
    if article == "none":
        return [()]
    if article == "any":
        return [(Leaf("DT", "any"),)]
    if many == "one" and article != "count":
        return [(Leaf("DT", article),)]
    the = (Leaf("DT", "the"),) if article == "the" else ()
    return [(*the, Leaf("CD", word, ("count", targets))) for word in number(len(targets))]


def _size(context: Any, targets: tuple[int, ...], description: Description) -> list[tuple[Tree, ...]]:
    if description.size is None:
        return [()]
    return [(Leaf("JJ", word, ("size", targets)),) for word in SIZE_WORDS[description.size]]


def _outline(context: Any, targets: tuple[int, ...], description: Description) -> list[tuple[Tree, ...]]:
    if description.outline is None:
        return [()]
    words = ("outlined", "hollow") if description.outline else ("filled", "solid")
    return [(Leaf("JJ", word, ("outline", targets)),) for word in words]


def _colour(context: Any, tag: str, targets: tuple[int, ...], description: Description) -> list[tuple[Tree, ...]]:
    return [(Leaf(tag, description.colour, ("colour", targets)),)] if description.colour else [()]


def _noun(context: Any, many: str, targets: tuple[int, ...], description: Description) -> list[tuple[Tree, ...]]:
    slot = ("shape", targets) if description.shape else None
    nouns = (description.shape,) if description.shape else NOUNS
    return [(Leaf("NN", noun, slot) if many == "one" else Leaf("NNS", plural(noun), slot),) for noun in nouns]


def _states(context: Any, name: str, description: Description) -> list[tuple[Tree, ...]]:
    return [()] if getattr(description, name) is not None else []


def _only(context: Any, name: str, description: Description) -> list[tuple[Tree, ...]]:
    """A condition: of what an adjective says, the description states this alone."""
    stated = {key for key, _ in description.stated} - {"shape"}
    return [()] if stated == {name} else []


def _predicate(context: Any, targets: tuple[int, ...], description: Description) -> Iterator[tuple[Tree, ...]]:
    """The adjectives as a predicate: "small", "small and red", "small, filled and red"."""
    size, outline = _size(context, targets, description), _outline(context, targets, description)
    for parts in itertools.product(size, outline, _colour(context, "JJ", targets, description)):
        yield (coordinated("ADJP", [tree for trees in parts for tree in trees]),)


def coordinated(label: str, parts: Sequence[Tree]) -> Tree:
    """One phrase of several: "a, b and c"."""
    out: list[Tree] = []
    for k, part in enumerate(parts):
        if k:
            out.append(Leaf("CC", "and") if k == len(parts) - 1 else Leaf(",", ","))
        out.append(part)
    return Node(label, tuple(out))


def _be(context: Any, many: str) -> list[tuple[Tree, ...]]:
    return [(Leaf("VBZ", "is") if many == "one" else Leaf("VBP", "are"),)]


def _place(context: Any, targets: tuple[int, ...]) -> list[tuple[Tree, ...]]:
    where = place([context.objects[i] for i in targets])
    return [(Call(where.replace(" ", "_"), (targets,)),)] if where else []


def _relation(context: Any, name: str, article: str, pair: tuple[int, ...], need: str | Description) -> list[tuple[Tree, ...]]:
    """Standing in the relation to the pair's last: "left of a blue square"; "enclosed by" it."""
    rules = [name, *(["touching"] if name == "on top of" else ["enclosed"] if name == "inside" else [])]
    return [(Call(rule.replace(" ", "_"), (article, pair, pair[-1:], need)),) for rule in rules]


def _position(context: Any, name: str, article: str, pair: tuple[int, ...], need: str | Description) -> list[tuple[Tree, ...]]:
    """The same as a phrase that can follow "placed" and open a sentence."""
    return [(Call(name.replace(" ", "_"), (article, pair, pair[-1:], need)),)]


def _side(preposition: str, side: str) -> str:
    return f"(PP@relation:r (IN {preposition}) (NP (NP (DT the) (NN {side})) (PP (IN of) <np article o need>)))"


def _at(preposition: str, *words: str) -> str:
    tagged = " ".join(f"({'JJ' if k < len(words) - 1 else 'NN'} {word})" for k, word in enumerate(words))
    return f"(PP@place:t (IN {preposition}) (NP (DT the) {tagged}))"


def _corner(one: str, other: str, side: str) -> list[str]:
    return [_at("in", one, side), _at("in", one, side, "corner"), _at("at", other, side), _at("in", other, side, "corner")]


NOUN_PHRASES: dict[str, Rule] = {
    "np article t need": _np,
    "described article many t d": [
        *["(NP <article article many t> <size t d> <outline t d> <colour JJ t d> <noun many t d>)"] * 3,
        "(NP <states colour d> (NP <article article many t> <size t d> <outline t d> <noun many t d>) (PP (IN in) (NP <colour NN t d>)))",
        "(NP <states colour d> (NP <article article many t> <noun many t d>) (SBAR (WHNP (WDT that)) (S (VP <be many> <predicate t d>))))",
        "(NP <only size d> (NP <article article many t> <noun many t d>) (SBAR (WHNP (WDT which)) (S (VP <be many> <predicate t d>))))",
    ],
    "article article many t": _article,
    "size t d": _size,
    "outline t d": _outline,
    "colour tag t d": _colour,
    "noun many t d": _noun,
    "states name d": _states,
    "only name d": _only,
    "predicate t d": _predicate,
    "medium": ["(NN picture)", "(NN image)", "(NN drawing)"],
    "be many": _be,
    "place t": _place,
    "upper_left t": _corner("upper", "top", "left"),
    "upper_right t": _corner("upper", "top", "right"),
    "lower_left t": _corner("lower", "bottom", "left"),
    "lower_right t": _corner("lower", "bottom", "right"),
    "left t": [_at("on", "left"), _at("on", "left", "side"), _at("at", "left")],
    "right t": [_at("on", "right"), _at("on", "right", "side"), _at("at", "right")],
    "top t": [_at("at", "top"), _at("near", "top"), _at("in", "upper", "part")],
    "bottom t": [_at("at", "bottom"), _at("near", "bottom"), _at("in", "lower", "part")],
    "centre t": [_at("in", "centre"), _at("in", "middle"), _at("at", "centre")],
    "relation name article r need": _relation,
    "position name article r need": _position,
    "left_of article r o need": [
        "(ADVP@relation:r (RB left) (PP (IN of) <np article o need>))",
        _side("to", "left"),
        _side("on", "left"),
    ],
    "right_of article r o need": [
        "(ADVP@relation:r (RB right) (PP (IN of) <np article o need>))",
        _side("to", "right"),
        _side("on", "right"),
    ],
    "above article r o need": [
        "(PP@relation:r (IN above) <np article o need>)",
        "(PP@relation:r (IN over) <np article o need>)",
    ],
    "below article r o need": [
        "(PP@relation:r (IN below) <np article o need>)",
        "(PP@relation:r (IN under) <np article o need>)",
        "(PP@relation:r (IN beneath) <np article o need>)",
    ],
    "on_top_of article r o need": [
        "(PP@relation:r (IN on) (NP (NP (NN top)) (PP (IN of) <np article o need>)))",
    ],
    "touching article r o need": [
        "(VP@relation:r (VBG standing) (PP (IN on) <np article o need>))",
        "(VP@relation:r (VBG resting) (PP (IN on) <np article o need>))",
        "(VP@relation:r (VBG sitting) (PP (IN on) <np article o need>))",
    ],
    "inside article r o need": [
        "(PP@relation:r (IN inside) <np article o need>)",
        "(PP@relation:r (IN within) <np article o need>)",
    ],
    "enclosed article r o need": [
        "(VP@relation:r (VBN enclosed) (PP (IN by) <np article o need>))",
        "(VP@relation:r (VBN surrounded) (PP (IN by) <np article o need>))",
        "(VP@relation:r (VBN contained) (PP (IN in) <np article o need>))",
    ],
}
