"""Scenes by number: `sample(config, split, index)` is the same scene on any machine, in any order.

Nothing overlaps that should not: between two objects, a word and the picture's edge there is always a gap (GAP, EDGE), but for
what stands on another thing or lies inside one.
"""

import dataclasses
import hashlib
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

import numpy as np

from mmjax.core.errors import UserError, suggest
from mmjax.data.scenes import draw, glyphs, splits, world
from mmjax.data.scenes.words import WORDS
from mmjax.data.scenes.world import BACKGROUNDS, RELATIONS, SHAPES, SIZES, Background, Object, Relation, Scene, Word

GAP = 0.05
EDGE = 0.02
MARGIN = 0.04  # a stated relation holds with so much room beyond what `world.holds` asks for
TRIES = 60

# Inside which shapes something may lie: (height of the centre of the largest circle within, its radius), for the unit shape.
CONTAINERS = {"circle": (0.0, 1.0), "square": (0.0, 1.0), "triangle": (0.382, 0.618), "heart": (0.0625, 0.5625)}
CONTAINER_RADIUS = (0.3, 0.42)
# What stands on what: a shape whose foot is under its centre, on one whose top is over its centre. A star's feet want something flat.
STANDS = tuple(s for s in SHAPES if s != "star")
SUPPORTS = tuple(s for s in SHAPES if s != "heart")
FLAT = "square"

COUNTS = {1: 0.22, 2: 0.26, 3: 0.22, 4: 0.14, 5: 0.09, 6: 0.07}  # objects in a picture of `objects`, and their share
FEW = {1: 0.5, 2: 0.5}  # of `few` and `clear`
DISTRACTORS = {0: 0.3, 1: 0.3, 2: 0.25, 3: 0.15}
MOST = 8  # objects in a picture of `counting`, distractors included


def generator(*names: str, index: int) -> np.random.Generator:
    """A generator for (names, index), counter-based: no other index is drawn to reach it."""
    key = int.from_bytes(hashlib.sha256("/".join(names).encode()).digest()[:8], "little")
    return np.random.Generator(np.random.Philox(key=np.array([key, index], np.uint64)))


class Draws:
    """Choices made of a generator's uniforms alone, which are the same in every version of NumPy."""

    def __init__(self, rng: np.random.Generator):
        self._next = rng.random

    def between(self, low: float | int, high: float | int) -> float:
        """In steps of 2^-16, so that it is written in few digits."""
        return round((low + (high - low) * self._next()) * 65536) / 65536

    def chance(self, p: float) -> bool:
        return self._next() < p

    def pick(self, options: Sequence[Any]) -> Any:
        return options[int(self._next() * len(options))]

    def weighted(self, options: Mapping[Any, float]) -> Any:
        at = self._next() * sum(options.values())
        last = next(reversed(options))
        for option, weight in options.items():
            at -= weight
            if at < 0:
                return option
        return last

    def shuffled(self, items: Sequence[Any]) -> list[Any]:
        left = list(items)
        return [left.pop(int(self._next() * len(left))) for _ in items]


def background(d: Draws) -> Background:
    """Plain two times in five; light and nearly grey, its second shade not far from the first."""
    kind = "plain" if d.chance(0.4) else d.pick(BACKGROUNDS[1:])
    shade = d.between(0.84, 0.96)
    return Background(kind, shade, shade - d.between(0.05, 0.11), d.between(0.0, 1.0), int(d.between(0.0, 0.999) * 65536))


def colour(d: Draws, split: str, shape: str, other_than: Collection[str] = ()) -> str:
    """A colour for the shape as the split has it."""
    options = [c for c in splits.colours(shape) if c not in other_than]
    listed = splits.BIAS.get(shape) if split == "biased" else None
    if listed in options:
        if d.chance(splits.BIAS_STRENGTH):
            return listed
        options.remove(listed)
    return d.pick(options)


def looks(d: Draws, shape: str, colour: str, size: str, turned: bool = True) -> Object:
    """An object that has no place yet; two in five are turned a little, one in seven is an outline."""
    angle = float(round(d.between(-20, 20))) if turned and d.chance(0.4) else 0.0
    return Object(shape, colour, size, 0.5, 0.5, angle if shape != "circle" else 0.0, d.chance(1 / 7))


def apart(a: Object, b: Object) -> bool:
    """Whether there is a gap between the two."""
    (aw, ah), (bw, bh) = draw.half_box(a), draw.half_box(b)
    if abs(a.x - b.x) >= aw + bw + GAP or abs(a.y - b.y) >= ah + bh + GAP:
        return True
    return world.distance(a, b) >= draw.reach(a) + draw.reach(b) + GAP


def fits(o: Object, others: Collection[Object] = (), word: Word | None = None) -> bool:
    """Whether the object lies within the picture, apart from the others and the word."""
    wide, high = draw.half_box(o)
    if max(abs(o.x - 0.5) + wide, abs(o.y - 0.5) + high) > 0.5 - EDGE:
        return False
    if word:
        half_width, half_height = draw.word_half_box(word)
        if abs(o.x - word.x) < wide + half_width + GAP and abs(o.y - word.y) < high + half_height + GAP:
            return False
    return all(apart(o, other) for other in others)


def somewhere(d: Draws, o: Object) -> Object:
    """The object anywhere in the picture."""
    wide, high = (min(h + EDGE, 0.5) for h in draw.half_box(o))
    return dataclasses.replace(o, x=d.between(wide, 1 - wide), y=d.between(high, 1 - high))


def put(d: Draws, o: Object, others: Collection[Object] = (), word: Word | None = None) -> Object | None:
    """The object in a free place, or None if none was found."""
    for _ in range(TRIES):
        placed = somewhere(d, o)
        if fits(placed, others, word):
            return placed
    return None


def arrange(d: Draws, wanted: Sequence[Object], others: Sequence[Object] = (), word: Word | None = None) -> list[Object] | None:
    """All of `wanted` in free places, in their order, or None; the largest are placed first."""
    placed: dict[int, Object] = {}
    for i in sorted(range(len(wanted)), key=lambda i: -wanted[i].r):
        o = put(d, wanted[i], [*others, *placed.values()], word)
        if o is None:
            return None
        placed[i] = o
    return [placed[i] for i in range(len(wanted))]


def objects(d: Draws, split: str, n: int, clear: bool = False) -> list[Object] | None:
    """n objects, no two alike in shape and colour; `biased` repeats no shape, so that its colours are drawn freely. With `clear` none is
    small or an outline."""
    pairs: list[tuple[str, str]] = [d.pick(sorted(splits.HELD_OUT_PAIRS))] if split == "unseen" else []
    free = d.shuffled(SHAPES)
    while len(pairs) < n:
        shape = free.pop() if split == "biased" else d.pick(SHAPES)
        taken = [c for s, c in pairs if s == shape]
        pairs.append((shape, colour(d, split, shape, taken)))
    sizes = SIZES[1:] if clear else SIZES if n <= 4 else SIZES[:2]
    wanted = [looks(d, s, c, d.pick(sizes)) for s, c in pairs]
    return arrange(d, d.shuffled([dataclasses.replace(o, outline=False) for o in wanted] if clear else wanted))


def _objects(d: Draws, split: str, n: int) -> Scene | None:
    placed = objects(d, split, n)
    return placed and Scene(tuple(placed), background(d))


def _clear(d: Draws, split: str, n: int) -> Scene | None:
    placed = objects(d, split, n, clear=True)
    return placed and Scene(tuple(placed), dataclasses.replace(background(d), kind="plain"))


def _counting(d: Draws, split: str, n: int) -> Scene | None:
    """`n` objects equal in shape, colour and size come first, then what is not to be counted."""
    shape = d.pick(SHAPES)
    shape, own = d.pick(sorted(splits.HELD_OUT_PAIRS)) if split == "unseen" else (shape, colour(d, split, shape))
    one = looks(d, shape, own, d.pick(SIZES[: 3 if n == 1 else 2 if n <= 4 else 1]))
    pairs = [(shape, own)]
    for _ in range(min(d.weighted(DISTRACTORS), MOST - n)):
        other = shape if split != "biased" and d.chance(0.3) else d.pick([s for s in SHAPES if s not in [p[0] for p in pairs]])
        alike = own in splits.colours(other) and split != "biased" and other != shape and d.chance(0.3)
        pairs.append((other, own if alike else colour(d, split, other, [c for s, c in pairs if s == other])))
    rest = [looks(d, s, c, d.pick(SIZES[:2])) for s, c in pairs[1:]]
    placed = arrange(d, [one] * n + rest)
    return placed and Scene(tuple(placed), background(d))


def possible(name: str, a: str, b: str) -> bool:
    """Whether one shape can be in the relation to the other at all."""
    if name == "inside":
        return b in CONTAINERS
    return name != "on top of" or (b in SUPPORTS and (a in STANDS or b == FLAT))


def related(d: Draws, name: str, a: Object, b: Object) -> tuple[Object, Object] | None:
    """The two in a place each, so that `a` stands in the relation to `b` and in no other, with room to spare; or None."""
    if not possible(name, a.shape, b.shape):
        return None
    if name == "inside":
        return _inside(d, a, b)
    if name == "on top of":
        return _on_top(d, a, b)
    for _ in range(TRIES):
        a, b = somewhere(d, a), somewhere(d, b)
        if world.holds(a, name, b, MARGIN) and apart(a, b) and world.relations(a, b) == [name]:
            return a, b
    return None


def _on_top(d: Draws, a: Object, b: Object) -> tuple[Object, Object] | None:
    a, b = dataclasses.replace(a, angle=0.0), dataclasses.replace(b, angle=0.0)
    if a.shape not in STANDS and a.r > b.r:
        return None
    aside = 0.35 * b.r if b.shape == FLAT else 0.0
    x = d.between(max(a.r, b.r) + aside + EDGE, 1 - max(a.r, b.r) - aside - EDGE)
    y = d.between(2 * a.r + b.r + EDGE, 1 - b.r - EDGE)
    b = dataclasses.replace(b, x=x, y=y)
    return dataclasses.replace(a, x=x + d.between(-aside, aside), y=y - b.r - a.r), b


def _inside(d: Draws, a: Object, b: Object) -> tuple[Object, Object] | None:
    """The container grows to hold the other and is upright."""
    b = somewhere(d, dataclasses.replace(b, size="large", angle=0.0, radius=d.between(*CONTAINER_RADIUS)))
    low, inner = CONTAINERS[b.shape]
    line = min(draw.STROKE * b.r, draw.WIDEST) if b.outline else 0.0
    room = inner * b.r - line - draw.reach(a) - GAP * 0.8
    if room < 0:
        return None
    x, y = d.between(-0.7, 0.7) * room, d.between(-0.7, 0.7) * room
    return dataclasses.replace(a, x=b.x + x, y=b.y + low * b.r + y), b


def relation_shapes(d: Draws, name: str) -> tuple[str, str]:
    """Shapes of subject and object of which the relation can hold."""
    b = d.pick([b for b in SHAPES if possible(name, "circle", b)])
    return d.pick([a for a in SHAPES if possible(name, a, b)]), b


def related_looks(d: Draws, split: str, name: str, shapes: tuple[str, str], first: str | None = None) -> tuple[Object, Object]:
    """Subject and object of a relation, of different colours and without a place; `first` is the subject's colour."""
    one = first or colour(d, split, shapes[0])
    two = colour(d, split, shapes[1], (one,))
    return (
        looks(d, shapes[0], one, "small" if name == "inside" else d.pick(SIZES)),
        looks(d, shapes[1], two, "large" if name == "inside" else d.pick(SIZES)),
    )


def _relations(d: Draws, split: str, name: str) -> Scene | None:
    """objects[0] stands in the stated relation to objects[1], except "inside": the container is drawn first. Sometimes a third."""
    shapes, first = None, None
    if split == "unseen" and d.chance(0.5):
        shapes = d.pick(sorted((a, b) for r, a, b in splits.HELD_OUT_RELATIONS if r == name))
    elif split == "unseen":
        one, first = d.pick(sorted(splits.HELD_OUT_PAIRS))
        shapes = (one, relation_shapes(d, name)[1])
    pair = related(d, name, *related_looks(d, split, name, shapes or relation_shapes(d, name), first))
    if pair is None:
        return None
    scene = stated(name, *pair, background(d))
    if d.chance(0.3):
        shape = d.pick(SHAPES)
        taken = [o.colour for o in scene.objects]
        third = put(d, looks(d, shape, colour(d, split, shape, taken), d.pick(SIZES[:2])), scene.objects)
        scene = dataclasses.replace(scene, objects=(*scene.objects, third)) if third else scene
    return scene


def stated(name: str, a: Object, b: Object, behind: Background) -> Scene:
    """The scene that shows `a` in the relation to `b`; what is inside another thing is drawn after it."""
    if name == "inside":
        return Scene((b, a), behind, (Relation(1, name, 0),))
    return Scene((a, b), behind, (Relation(0, name, 1),))


def _text(d: Draws, split: str, font: str) -> Scene | None:
    """A word, and half the time an object beside it."""
    text = d.pick(HELD_OUT_WORDS if split == "unseen" else KNOWN_WORDS)
    one = Word(text, font, d.pick(tuple(draw.PALETTE)), 0.5, 0.5, 1.0)
    most = min(0.26, 0.46 / draw.word_half_box(one)[0])
    word = dataclasses.replace(one, height=d.between(min(0.13, most), most))
    wide, high = draw.word_half_box(word)
    word = dataclasses.replace(word, x=d.between(wide + EDGE, 1 - wide - EDGE), y=d.between(high + EDGE, 1 - high - EDGE))
    shape, beside = d.pick(SHAPES), d.chance(0.5)
    o = put(d, looks(d, shape, colour(d, split, shape, (word.colour,)), d.pick(SIZES)), word=word) if beside else None
    return Scene((o,) if o else (), background(d), word=word)


KNOWN_WORDS = tuple(w for w in WORDS if not splits.is_held_out_word(w))
HELD_OUT_WORDS = tuple(w for w in WORDS if splits.is_held_out_word(w))
# How a scene of each config is made, and what it is made for with which share: that is drawn once and kept until it succeeds.
CONFIGS: Mapping[str, tuple[Callable[[Draws, str, Any], Scene | None], Mapping[Any, float]]] = {
    "objects": (_objects, COUNTS),
    "few": (_objects, FEW),
    "clear": (_clear, FEW),
    "relations": (_relations, dict.fromkeys(RELATIONS, 1.0)),
    "counting": (_counting, dict.fromkeys(range(1, 7), 1.0)),
    "text": (_text, dict.fromkeys(glyphs.FONTS, 1.0)),
}


def allowed(scene: Scene, split: str) -> bool:
    """Whether the scene may stand in the split: something held out in every scene of `unseen`, and nothing in any other."""
    return bool(splits.held_out(scene)) == (split == "unseen")


def sample(config: str, split: str, index: int) -> Scene:
    """Scene number `index` of a config and a split.

    Raises:
      UserError: no such config or split.
    """
    if config not in CONFIGS:
        raise UserError(f"scenes have no config {config!r}{suggest(config, CONFIGS)}")
    if split not in splits.SPLITS:
        raise UserError(f"scenes have no split {split!r}{suggest(split, splits.SPLITS)}")
    d = Draws(generator("scenes", config, split, index=index))
    make, shares = CONFIGS[config]
    kind = d.weighted(shares)
    while True:  # a scene that found no place for something, or shows what its split may not, is drawn anew
        scene = make(d, split, kind)
        if scene is not None and allowed(scene, split):
            return scene
