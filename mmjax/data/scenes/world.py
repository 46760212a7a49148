"""What a scene is: its vocabulary, its data, and which relations hold in it.

Positions and lengths are in units of the picture's side, x to the right and y down, so a scene is drawn at any size.
"""

import dataclasses
import math
from collections.abc import Mapping
from typing import Any

SHAPES = ("circle", "square", "triangle", "star", "cross", "heart", "crescent", "arrow")
COLOURS = ("red", "orange", "yellow", "green", "cyan", "blue", "purple", "pink", "brown", "black")
SIZES = ("small", "medium", "large")
RADIUS = {"small": 0.09, "medium": 0.14, "large": 0.2}  # half the side of the square a shape fills
RELATIONS = ("left of", "right of", "above", "below", "on top of", "inside")
OPPOSITE = {"left of": "right of", "right of": "left of", "above": "below", "below": "above"}
BACKGROUNDS = ("plain", "gradient", "stripes", "checks", "dots", "noise")
MOTIONS = ("moves left", "moves right", "moves up", "moves down", "grows", "shrinks", "turns", "appears", "disappears", "blinks", "orbits")
CLEAR = 0.12  # centres nearer than this along an axis have no order there that a caption may state
TOUCH = 0.02  # how far from exact contact two objects may be that stand on one another


@dataclasses.dataclass(frozen=True)
class Object:
    """One thing. `radius` overrides the size's own (a container grows to hold what is inside it; a video changes it)."""

    shape: str
    colour: str
    size: str
    x: float
    y: float
    angle: float = 0.0  # degrees, clockwise
    outline: bool = False
    radius: float = 0.0

    @property
    def r(self) -> float:
        """Half the side of the square it fills."""
        return self.radius or RADIUS[self.size]


@dataclasses.dataclass(frozen=True)
class Word:
    """A word drawn in the picture: `x`, `y` is the centre of its box, `height` that of a capital."""

    text: str
    font: str
    colour: str
    x: float
    y: float
    height: float


@dataclasses.dataclass(frozen=True)
class Background:
    """`kind` of BACKGROUNDS; `shade` and `second` are lightnesses 0..1 of its greys, `tint` 0..1 a hue, `seed` draws what is random."""

    kind: str = "plain"
    shade: float = 0.9
    second: float = 0.8
    tint: float = 0.0
    seed: int = 0


@dataclasses.dataclass(frozen=True)
class Relation:
    """objects[subject] stands in the relation `name` to objects[object]."""

    subject: int
    name: str
    object: int


@dataclasses.dataclass(frozen=True)
class Scene:
    """Objects in drawing order (the last on top); `relations` are those the scene was made to show, others may hold too."""

    objects: tuple[Object, ...]
    background: Background = Background()
    relations: tuple[Relation, ...] = ()
    word: Word | None = None

    def json(self) -> dict[str, Any]:
        """The scene graph as plain data."""
        return dataclasses.asdict(self)


def scene(graph: Mapping[str, Any]) -> Scene:
    """The inverse of `Scene.json`."""
    return Scene(
        objects=tuple(Object(**o) for o in graph["objects"]),
        background=Background(**graph["background"]),
        relations=tuple(Relation(**r) for r in graph["relations"]),
        word=Word(**graph["word"]) if graph["word"] else None,
    )


def holds(a: Object, name: str, b: Object, margin: float = 0.0) -> bool:
    """Whether `a` stands in the relation to `b`, with room to spare: of what is nearly so, neither it nor its opposite holds.

    "On top of" is standing on: contact from above. "Above" and "below" are for things apart, "inside" for what lies within.
    `margin` > 0 asks that it holds with so much room beyond that (contact has its own, TOUCH).
    """
    dx, dy = a.x - b.x, a.y - b.y
    across, along = abs(dx), abs(dy)
    within = max(across, along) + a.r <= b.r - margin
    stands = across < 0.6 * b.r - margin and abs(-dy - (a.r + b.r)) <= TOUCH
    apart = max(across, along) >= a.r + b.r + margin
    clear = CLEAR + margin
    match name:
        case "inside":
            return within
        case "on top of":
            return stands
        case "left of":
            return apart and dx <= -clear and across >= along + margin
        case "right of":
            return apart and dx >= clear and across >= along + margin
        case "above":
            return apart and not holds(a, "on top of", b) and dy <= -clear and along >= across + margin
        case "below":
            return apart and not holds(b, "on top of", a) and dy >= clear and along >= across + margin
    raise ValueError(f"no relation {name!r}")


def relations(a: Object, b: Object) -> list[str]:
    """All relations in which `a` stands to `b`."""
    return [name for name in RELATIONS if holds(a, name, b)]


def distance(a: Object, b: Object) -> float:
    """Between centres."""
    return math.hypot(a.x - b.x, a.y - b.y)
