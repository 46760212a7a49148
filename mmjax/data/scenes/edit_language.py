"""Edits of a picture: what is to change (`Edit`), the instruction that says so, and the scene after it.

recolour   value: the new colour
move       value: (x, y), the new centre, which is in a place that has a name
add        value: the new Object, which is drawn last; index is not used
remove     no value
outline    the two-panel form of DALL-E's "the exact same cat on the top as a sketch on the bottom" (Ramesh et al. 2021, figure 2c):
           everything in the upper half once more below, as an outline; index is not used
"""

import dataclasses
from typing import Any

import numpy as np

from mmjax.core.errors import UserError, suggest
from mmjax.data.scenes.describe import NOUN_PHRASES, Description, coordinated, place
from mmjax.data.scenes.grammar import Call, Grammar, Leaf, Node, Rule, Sentence, Tree
from mmjax.data.scenes.world import OPPOSITE, Object, Relation, Scene, holds

KINDS = ("recolour", "move", "add", "remove", "outline")


@dataclasses.dataclass(frozen=True)
class Edit:
    """One change; `index` is the object it is made to."""

    kind: str
    index: int = -1
    value: Any = None

    def json(self) -> dict[str, Any]:
        """As plain data."""
        return dataclasses.asdict(self)


def edit(data: dict[str, Any]) -> Edit:
    """The inverse of `Edit.json`."""
    value = data["value"]
    if data["kind"] == "add":
        value = Object(**value)
    return Edit(data["kind"], data["index"], tuple(value) if isinstance(value, list) else value)


def apply(change: Edit, scene: Scene) -> Scene:
    """The scene after the edit. Of the relations stated, those that still hold of the same objects are kept.

    Raises:
      UserError: no such kind of edit, or no such object.
      ValueError: an outline below of something that is not in the upper half.
    """
    _check(change, scene)
    objects = list(scene.objects)
    at = {i: i for i in range(len(objects))}  # where each object is afterwards
    match change.kind:
        case "recolour":
            objects[change.index] = dataclasses.replace(objects[change.index], colour=change.value)
        case "move":
            x, y = change.value
            objects[change.index] = dataclasses.replace(objects[change.index], x=x, y=y)
        case "add":
            objects.append(change.value)
        case "remove":
            del objects[change.index]
            at = {i: i - (i > change.index) for i in at if i != change.index}
        case "outline":
            if any(o.y + o.r > 0.5 for o in objects):
                raise ValueError("only what is in the upper half of the picture can be drawn again below")
            objects += [dataclasses.replace(o, y=o.y + 0.5, outline=True) for o in objects]
    relations = [Relation(at[r.subject], r.name, at[r.object]) for r in scene.relations if r.subject in at and r.object in at]
    kept = tuple(r for r in relations if holds(objects[r.subject], r.name, objects[r.object]))
    return dataclasses.replace(scene, objects=tuple(objects), relations=kept)


def instruction(change: Edit, scene: Scene, rng: np.random.Generator) -> Sentence | None:
    """The edit in words. None where words cannot tell it: the object cannot be told from others, or the place has no name.

    Raises:
      UserError: no such kind of edit, or no such object.
    """
    _check(change, scene)
    after = apply(change, scene)
    said = _Context(scene.objects, after.objects)
    target = (len(scene.objects),) if change.kind == "add" else (change.index,)
    rule = change.kind
    if rule == "add":
        return ADDING.derive("add", _Context(after.objects, after.objects), rng, target)
    if rule == "outline":
        return GRAMMAR.derive("panels", said, rng, tuple(range(len(scene.objects))))
    return GRAMMAR.derive(rule, said, rng, target)


def _check(change: Edit, scene: Scene) -> None:
    if change.kind not in KINDS:
        raise UserError(f"edit {change.kind!r}{suggest(change.kind, KINDS)}")
    if change.kind not in ("add", "outline") and not 0 <= change.index < len(scene.objects):
        raise UserError(f"edit {change.kind!r} of object {change.index}: the scene has {len(scene.objects)} objects")


@dataclasses.dataclass(frozen=True)
class _Context:
    """`objects` are those that references are to; `after` what they become, with the same indices."""

    objects: tuple[Object, ...]
    after: tuple[Object, ...]


def _new_colour(context: _Context, targets: tuple[int, ...], tag: str) -> list[tuple[Tree, ...]]:
    return [(Leaf(tag, context.after[targets[0]].colour, ("new colour", targets)),)]


def _to(context: _Context, targets: tuple[int, ...]) -> list[tuple[Tree, ...]]:
    """Where it is moved: "to the upper left"."""
    where = place([context.after[targets[0]]])
    if where is None or where == place([context.objects[targets[0]]]):
        return []
    return [(Call("to_" + where.replace(" ", "_"), (targets,)),)]


def _beside(context: _Context, targets: tuple[int, ...]) -> list[tuple[Tree, ...]]:
    """A relation of the new object to one that was there: "left of the blue square"."""
    new, out = context.objects[targets[0]], []
    for j, other in enumerate(context.objects):
        for name in (*OPPOSITE, "on top of", "inside"):
            if j != targets[0] and holds(new, name, other, 0.03 if name in OPPOSITE else 0.0):
                out.append((Call("relation", (name, "the", (targets[0], j), "shape")),))
    return out


def _as_new(o: Object) -> Description:
    return Description(o.size, True if o.outline else None, o.colour, o.shape)


def _all_things(context: _Context, targets: tuple[int, ...]) -> list[tuple[Tree, ...]]:
    return [(coordinated("NP", [Call("one", ((i,),)) for i in targets]),)] if targets else []


def _toward(*words: str) -> list[str]:
    tagged = " ".join(f"({'JJ' if k < len(words) - 1 else 'NN'} {word})" for k, word in enumerate(words))
    corner = f"(PP@new_place:t (TO to) (NP (DT the) {tagged}))"
    if len(words) == 1:
        return [corner]
    inner = " ".join(f"(JJ {word})" for word in words)
    return [corner, f"(PP@new_place:t (IN into) (NP (DT the) {inner} (NN corner)))"]


RULES: dict[str, Rule] = {
    **NOUN_PHRASES,
    "new_colour t tag": _new_colour,
    "to t": _to,
    **{f"to_{a}_{b} t": _toward(a, b) for a in ("upper", "lower") for b in ("left", "right")},
    **{f"to_{a} t": _toward(a) for a in ("left", "right", "top", "bottom", "centre")},
    "one t": ["<np the t shape>", "<np the t shape+colour>", "<np the t shape>"],
    "recolour t": [
        "(S (VP (VB make) (S <one t> (ADJP <new_colour t JJ>))) (. .))",
        "(S (VP (VB paint) (S <one t> (ADJP <new_colour t JJ>))) (. .))",
        "(S (VP (VB turn) <one t> (ADJP <new_colour t JJ>)) (. .))",
        "(S (VP (VB change) (NP (NP (DT the) (NN colour)) (PP (IN of) <one t>)) (PP (TO to) (NP <new_colour t NN>))) (. .))",
        "(S (VP (VB recolour) <one t> (PP (IN in) (NP <new_colour t NN>))) (. .))",
        "(SQ (MD could) (NP (PRP you)) (VP (VB make) (S <one t> (ADJP <new_colour t JJ>))) (. ?))",
    ],
    "move t": [
        "(S (VP (VB move) <one t> <to t>) (. .))",
        "(S (VP (VB shift) <one t> <to t>) (. .))",
        "(S (VP (VB bring) <one t> <to t>) (. .))",
        "(SQ (MD could) (NP (PRP you)) (VP (VB move) <one t> <to t>) (. ?))",
        "(S (NP <one t>) (VP (MD should) (VP (VB go) <to t>)) (. .))",
    ],
    "remove t": [
        "(S (VP (VB remove) <one t>) (. .))",
        "(S (VP (VB delete) <one t>) (. .))",
        "(S (VP (VB take) <one t> (ADVP (RB away))) (. .))",
        "(S (VP (VB erase) <one t>) (. .))",
        "(S (VP (VB show) (NP (DT the) <medium>) (PP (IN without) <one t>)) (. .))",
    ],
    "things t": _all_things,
    "same": ["(NP (NP (DT the) (JJ same)) (PP (IN as) (ADVP (RB above))))"],
    "an_outline": ["(NP (DT a) (NN outline))"],
    "at_the side": lambda context, side: [(Node("PP", (Leaf("IN", "at"), Node("NP", (Leaf("DT", "the"), Leaf("NN", side))))),)],
    "panels t": [
        "(NP <same> (PP (IN as) <an_outline>) (ADVP (RB below)))",
        "(S (VP (VB draw) <same> (PP (IN as) <an_outline>) (ADVP (RB below))) (. .))",
        "(S (VP (VB repeat) <things t> (ADVP (RB below)) (PP (IN in) (NP (NN outline)))) (. .))",
        "(NP (NP (DT the) (RB exactly) (JJ same) (NNS shapes)) <at_the top> (, ,) (PP (IN as) (NP (NNS outlines))) <at_the bottom>)",
    ],
}

GRAMMAR = Grammar(RULES)
# What is added is described as new: its own attributes, "a" of what may already be there.
ADDING = Grammar(
    {
        **RULES,
        "beside t": _beside,
        "where t": ["<place t>", "<beside t>"],
        "new t": lambda context, t: [(Call("described", ("a", "one", t, _as_new(context.objects[t[0]]))),)],
        "add t": [
            "(S (VP (VB add) <new t> <where t>) (. .))",
            "(S (VP (VB draw) <new t> <where t>) (. .))",
            "(S (VP (VB put) <new t> <where t>) (. .))",
            "(S (VP (VB insert) <new t> <where t>) (. .))",
            "(SQ (MD could) (NP (PRP you)) (VP (VB add) <new t> <where t>) (. ?))",
        ],
    }
)
