"""Edits by number: a scene, what is to change, and the scene after it, as `sample` makes scenes."""

import dataclasses
from collections.abc import Callable, Mapping

from mmjax.data.scenes import edit_language, splits
from mmjax.data.scenes.edit_language import Edit
from mmjax.data.scenes.grammar import Sentence
from mmjax.data.scenes.sample import EDGE, Draws, allowed, background, colour, fits, generator, looks, objects, put
from mmjax.data.scenes.world import SHAPES, SIZES, Scene

MOST = 4  # objects before the edit


@dataclasses.dataclass(frozen=True)
class Edited:
    """`after` is `before` with the change made; `instruction` says it."""

    before: Scene
    change: Edit
    after: Scene
    instruction: Sentence


def edited(split: str, index: int) -> Edited:
    """Number `index` of a split; the kinds of edit take turns.

    In `unseen` what is held out is in the scene after the edit, which has to be made; in every other split in neither.
    """
    rng = generator("scenes", "edit", split, index=index)
    d, kind = Draws(rng), edit_language.KINDS[index % len(edit_language.KINDS)]
    while True:
        before = _before(d, split, kind)
        change = before and _CHANGES[kind](d, split, before)
        if not change:
            continue
        after = edit_language.apply(change, before)
        fitting = all(fits(o, (*after.objects[:i], *after.objects[i + 1 :])) for i, o in enumerate(after.objects))
        if not fitting or not allowed(after, split) or (split != "unseen" and not allowed(before, split)):
            continue
        said = edit_language.instruction(change, before, rng)
        if said is not None:
            return Edited(before, change, after, said)


def _before(d: Draws, split: str, kind: str) -> Scene | None:
    most = 2 if kind == "outline" else MOST
    placed = objects(d, split, d.pick(range(2 if kind == "remove" else 1, most + 1)))
    if placed and kind == "outline":
        placed = [dataclasses.replace(o, y=o.y / 2, outline=False) for o in placed]
        if not all(fits(o, placed[:i]) and o.y + o.r <= 0.5 - EDGE for i, o in enumerate(placed)):
            return None
    return placed and Scene(tuple(placed), background(d))


def _recolour(d: Draws, split: str, scene: Scene) -> Edit:
    i = d.pick(range(len(scene.objects)))
    o = scene.objects[i]
    if split == "unseen" and (held := [c for s, c in sorted(splits.HELD_OUT_PAIRS) if s == o.shape and c != o.colour]):
        return Edit("recolour", i, d.pick(held))
    return Edit("recolour", i, colour(d, split, o.shape, (o.colour,)))


def _move(d: Draws, split: str, scene: Scene) -> Edit | None:
    i = d.pick(range(len(scene.objects)))
    placed = put(d, scene.objects[i], (*scene.objects[:i], *scene.objects[i + 1 :]))
    return placed and Edit("move", i, (placed.x, placed.y))


def _add(d: Draws, split: str, scene: Scene) -> Edit | None:
    shape, own = d.pick(sorted(splits.HELD_OUT_PAIRS)) if split == "unseen" else (d.pick(SHAPES), "")
    new = looks(d, shape, own or colour(d, split, shape), d.pick(SIZES if len(scene.objects) < MOST else SIZES[:2]))
    placed = put(d, new, scene.objects)
    return placed and Edit("add", value=placed)


def _remove(d: Draws, split: str, scene: Scene) -> Edit:
    return Edit("remove", d.pick(range(len(scene.objects))))


def _outline(d: Draws, split: str, scene: Scene) -> Edit:
    return Edit("outline")


_CHANGES: Mapping[str, Callable[[Draws, str, Scene], Edit | None]] = {
    "recolour": _recolour,
    "move": _move,
    "add": _add,
    "remove": _remove,
    "outline": _outline,
}
