"""Videos by number: a scene, its motions, and the scene of every frame, as `sample` makes scenes.

Nothing touches, leaves the picture or (outside `unseen`) comes to show what is held out in any frame.
"""

import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence

from mmjax.data.scenes.sample import Draws, allowed, background, fits, generator, objects
from mmjax.data.scenes.splits import held_out
from mmjax.data.scenes.video_language import Motion, tellable
from mmjax.data.scenes.world import MOTIONS, Object, Scene

FRAMES, FPS = 12, 6.0  # of every video; frames a second
PATH = 0.3  # of the picture's side, how far a thing moves
GROWTH = 1.6  # of the radius
TURN = 180.0  # degrees
ORBIT = 0.12  # radius
SHORTEST = 3  # frames from the beginning to the end of what takes time
BLINK = 5  # frames: seen, gone, seen, gone, seen

_DIRECTION = {"moves left": (-1.0, 0.0), "moves right": (1.0, 0.0), "moves up": (0.0, -1.0), "moves down": (0.0, 1.0)}
_AT_ONCE = ("appears", "disappears")


@dataclasses.dataclass(frozen=True)
class Video:
    """`scene`: every object where it first is, or will be when it appears; `frames`: what is seen, one a frame."""

    scene: Scene
    motions: tuple[Motion, ...]
    frames: tuple[Scene, ...]


def video(split: str, index: int) -> Video:
    """Number `index` of a split: 1 to 3 objects, each of which does one thing or nothing."""
    d = Draws(generator("scenes", "video", split, index=index))
    while True:
        placed = objects(d, split, d.weighted({1: 0.25, 2: 0.4, 3: 0.35}))
        if placed is None:
            continue
        scene = Scene(tuple(placed), background(d))
        motions = _motions(d, scene)
        frames = tuple(Scene(tuple(at(scene.objects, motions, k)), scene.background) for k in range(FRAMES))
        if not tellable(scene, motions) or not all(_apart(at(scene.objects, motions, k, seen=False)) for k in range(FRAMES)):
            continue
        if allowed(scene, split) and (split == "unseen" or not any(map(held_out, frames))):
            return Video(scene, motions, frames)


def at(things: Sequence[Object], motions: Sequence[Motion], frame: int, seen: bool = True) -> list[Object]:
    """The objects as they are in a frame; without those not to be seen there, if `seen`."""
    out = []
    for i, o in enumerate(things):
        visible = True
        for m in (m for m in motions if m.index == i):
            done = min(max((frame - m.start) / max(m.end - m.start, 1), 0.0), 1.0)
            o = _CHANGE[m.kind](o, done) if m.kind in _CHANGE else o
            visible &= _visible(m, frame)
        if visible or not seen:
            out.append(o)
    return out


def _visible(m: Motion, frame: int) -> bool:
    match m.kind:
        case "appears":
            return frame >= m.start
        case "disappears":
            return frame < m.start
        case "blinks":
            return not m.start <= frame <= m.end or (frame - m.start) % 2 == 0
    return True


def _exact(value: float) -> float:
    """Libraries of mathematics differ in a sine's last bit."""
    return round(value * 65536) / 65536


def _moved(dx: float, dy: float) -> Callable[[Object, float], Object]:
    return lambda o, done: dataclasses.replace(o, x=_exact(o.x + dx * done * PATH), y=_exact(o.y + dy * done * PATH))


def _scaled(factor: float) -> Callable[[Object, float], Object]:
    return lambda o, done: dataclasses.replace(o, radius=_exact(o.r * (1 + (factor - 1) * done)))


def _orbited(o: Object, done: float) -> Object:
    """Once around a point to the left of where it starts, clockwise."""
    a = 2 * math.pi * done
    return dataclasses.replace(o, x=_exact(o.x + ORBIT * (math.cos(a) - 1)), y=_exact(o.y + ORBIT * math.sin(a)))


_CHANGE: Mapping[str, Callable[[Object, float], Object]] = {
    **{kind: _moved(*direction) for kind, direction in _DIRECTION.items()},
    "grows": _scaled(GROWTH),
    "shrinks": _scaled(1 / GROWTH),
    "turns": lambda o, done: dataclasses.replace(o, angle=_exact(o.angle + TURN * done)),
    "orbits": _orbited,
}


def _motions(d: Draws, scene: Scene) -> tuple[Motion, ...]:
    """Of one object at least, each with a time of its own; a circle that turns would not be seen to."""
    n = len(scene.objects)
    movers = sorted(d.shuffled(range(n))[: d.pick(range(1, n + 1))])
    return tuple(_motion(d, i, d.pick([k for k in MOTIONS if k != "turns" or scene.objects[i].shape != "circle"])) for i in movers)


def _motion(d: Draws, i: int, kind: str) -> Motion:
    if kind in _AT_ONCE:
        start = d.pick(range(2, FRAMES - 2))
        return Motion(i, kind, start, start)
    last = FRAMES - 1
    lasts = BLINK - 1 if kind == "blinks" else 6 if kind == "orbits" else d.pick(range(SHORTEST, last - 1))
    start = d.pick(range(1, last - lasts))
    return Motion(i, kind, start, start + lasts)


def _apart(things: Sequence[Object]) -> bool:
    return all(fits(o, things[:i]) for i, o in enumerate(things))
