"""Two scenes that differ in one thing: Winoground's form (`swap`) and SugarCrepe's (`hard_negative`), by number as `sample`.

The two objects of a pair's first scene differ in shape and in colour, so either names an object in both scenes. Nothing that is held
out occurs in either: what is measured is composition, not novelty.
"""

import dataclasses
from collections.abc import Callable, Mapping

from mmjax.data.scenes import splits
from mmjax.data.scenes.sample import (
    Draws,
    arrange,
    background,
    colour,
    fits,
    generator,
    looks,
    possible,
    put,
    related,
    related_looks,
    relation_shapes,
    stated,
)
from mmjax.data.scenes.world import COLOURS, RELATIONS, SHAPES, SIZES, Object, Scene

Pair = tuple[Scene, Scene]


def swap(index: int) -> Pair:
    """Two scenes told in the same words in another order, of two objects each.

    Even numbers: the colours of the two shapes are exchanged and nothing else. Odd numbers: subject and object of the stated relation
    are exchanged, and placed anew.
    """
    d = Draws(generator("scenes", "swaps", index=index))
    if index % 2:
        name = RELATIONS[index // 2 % len(RELATIONS)]
        return _first(lambda: _again(d, _two_related(d, name), name, exchanged=True))
    return _first(lambda: _colours_exchanged(_two(d)))


def hard_negative(index: int) -> tuple[Scene, Scene, str]:
    """(what the picture shows, a scene that it does not show, by which of HARD_NEGATIVES they differ); the changes take turns.

    add_att      one object is of another size or an outline: something to say of it that is not so
    add_obj      one more object, the last
    replace_att, replace_obj, replace_rel   another colour, shape or relation in place of the true one
    swap_att, swap_obj   as `swap`'s even and odd numbers
    """
    d = Draws(generator("scenes", "hard_negatives", index=index))
    kind = tuple(HARD_NEGATIVES)[index % len(HARD_NEGATIVES)]
    return *_first(lambda: HARD_NEGATIVES[kind](d)), kind


def _first(make: Callable[[], Pair | None]) -> Pair:
    """The first pair that came about and holds nothing held out."""
    while True:
        pair = make()
        if pair and not any(splits.held_out(scene) for scene in pair):
            return pair


def _two(d: Draws) -> Scene | None:
    one, two = d.shuffled(SHAPES)[:2]
    first = colour(d, "train", one)
    placed = arrange(d, [looks(d, one, first, d.pick(SIZES)), looks(d, two, colour(d, "train", two, (first,)), d.pick(SIZES))])
    return placed and Scene(tuple(placed), background(d))


def _two_related(d: Draws, name: str) -> Scene | None:
    shapes = relation_shapes(d, name)
    pair = shapes[0] != shapes[1] and related(d, name, *related_looks(d, "train", name, shapes))
    return stated(name, *pair, background(d)) if pair else None


def _again(d: Draws, scene: Scene | None, name: str, exchanged: bool = False) -> Pair | None:
    """With the scene in which the same two stand in the relation `name`, their roles exchanged or not."""
    if scene is None:
        return None
    told = scene.relations[0]
    a, b = (dataclasses.replace(scene.objects[i], radius=0.0) for i in (told.subject, told.object))
    a, b = (b, a) if exchanged else (a, b)
    if name == "inside":
        a, b = dataclasses.replace(a, size="small"), dataclasses.replace(b, size="large")
    pair = related(d, name, a, b)
    return pair and (scene, stated(name, *pair, scene.background))


def _with(scene: Scene, *objects: Object) -> Pair:
    return scene, dataclasses.replace(scene, objects=objects)


def _colours_exchanged(scene: Scene | None) -> Pair | None:
    if scene is None:
        return None
    a, b = scene.objects
    return _with(scene, dataclasses.replace(a, colour=b.colour), dataclasses.replace(b, colour=a.colour))


def _add_att(d: Draws) -> Pair | None:
    scene = _two(d)
    if scene is None:
        return None
    a, b = scene.objects
    if d.chance(0.5):
        return _with(scene, dataclasses.replace(a, outline=not a.outline), b)
    changed = dataclasses.replace(a, size=d.pick([s for s in SIZES if s != a.size]))
    return _with(scene, changed, b) if fits(changed, [b]) else None


def _add_obj(d: Draws) -> Pair | None:
    scene = _two(d)
    if scene is None:
        return None
    shape = d.pick([s for s in SHAPES if s not in [o.shape for o in scene.objects]])
    third = put(d, looks(d, shape, colour(d, "train", shape), d.pick(SIZES[:2])), scene.objects)
    return third and _with(scene, *scene.objects, third)


def _replace_att(d: Draws) -> Pair | None:
    scene = _two(d)
    if scene is None:
        return None
    a, b = scene.objects
    return _with(scene, dataclasses.replace(a, colour=d.pick([c for c in COLOURS if c not in (a.colour, b.colour)])), b)


def _replace_obj(d: Draws) -> Pair | None:
    scene = _two(d)
    if scene is None:
        return None
    a, b = scene.objects
    changed = dataclasses.replace(a, shape=d.pick([s for s in SHAPES if s not in (a.shape, b.shape)]))
    return _with(scene, changed, b) if fits(changed, [b]) else None


def _replace_rel(d: Draws) -> Pair | None:
    scene = _two_related(d, d.pick(RELATIONS))
    if scene is None:
        return None
    told = scene.relations[0]
    a, b = scene.objects[told.subject].shape, scene.objects[told.object].shape
    return _again(d, scene, d.pick([r for r in RELATIONS if r != told.name and possible(r, a, b)]))


def _swap_obj(d: Draws) -> Pair | None:
    name = d.pick(RELATIONS)
    return _again(d, _two_related(d, name), name, exchanged=True)


# SugarCrepe's changes (Hsieh et al., 2023, table 1), said of a scene.
HARD_NEGATIVES: Mapping[str, Callable[[Draws], Pair | None]] = {
    "add_att": _add_att,
    "add_obj": _add_obj,
    "replace_att": _replace_att,
    "replace_obj": _replace_obj,
    "replace_rel": _replace_rel,
    "swap_att": lambda d: _colours_exchanged(_two(d)),
    "swap_obj": _swap_obj,
}
