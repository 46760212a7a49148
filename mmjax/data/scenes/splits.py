"""What each split may and must contain.

    train, validation   nothing that is held out
    biased              as train, but a listed shape has its listed colour nine times in ten
    unseen              always something held out: a pair of shape and colour, a relation between two shapes, or a word

Two more splits are made of pairs: `swaps` and `hard_negatives` (mmjax/data/scenes/pairs.py).
"""

from collections.abc import Mapping

from mmjax.data.scenes.world import COLOURS, OPPOSITE, SHAPES, Scene, relations

SPLITS = ("train", "validation", "biased", "unseen")

# Every shape and every colour still occurs in train, in other company.
HELD_OUT_PAIRS = frozenset(
    {
        ("circle", "purple"),
        ("square", "cyan"),
        ("triangle", "pink"),
        ("star", "green"),
        ("cross", "yellow"),
        ("heart", "blue"),
        ("crescent", "brown"),
        ("arrow", "red"),
    }
)


def _both_ways(triples: set[tuple[str, str, str]]) -> frozenset[tuple[str, str, str]]:
    """A star left of a cross is a cross right of a star."""
    return frozenset(triples | {(OPPOSITE[r], b, a) for r, a, b in triples if r in OPPOSITE})


# (relation, subject's shape, object's shape)
HELD_OUT_RELATIONS = _both_ways(
    {
        ("left of", "star", "cross"),
        ("left of", "circle", "triangle"),
        ("right of", "heart", "square"),
        ("right of", "arrow", "crescent"),
        ("above", "square", "star"),
        ("above", "triangle", "heart"),
        ("below", "cross", "circle"),
        ("below", "crescent", "triangle"),
        ("on top of", "circle", "square"),
        ("on top of", "heart", "cross"),
        ("on top of", "square", "triangle"),
        ("inside", "star", "circle"),
        ("inside", "cross", "square"),
        ("inside", "circle", "heart"),
    }
)

BIAS: Mapping[str, str] = {"circle": "red", "square": "blue", "triangle": "green", "star": "yellow"}
BIAS_STRENGTH = 0.9  # P(the listed colour | the listed shape) in `biased`; the rest is spread evenly over the other colours


def colours(shape: str) -> tuple[str, ...]:
    """Those the shape has outside `unseen`."""
    return tuple(c for c in COLOURS if (shape, c) not in HELD_OUT_PAIRS)


def pairs(split: str) -> frozenset[tuple[str, str]]:
    """(shape, colour) of which the split's scenes of a single object are."""
    return HELD_OUT_PAIRS if split == "unseen" else frozenset((s, c) for s in SHAPES for c in colours(s))


def is_held_out_word(text: str) -> bool:
    """One word in eight, by its letters alone."""
    return sum((i + 1) * ord(letter) for i, letter in enumerate(text)) % 8 == 0


def held_out(scene: Scene) -> list[tuple[str, ...]]:
    """What in the scene never occurs in train: (shape, colour), (relation, shape, shape), (word,). Any relation that holds counts."""
    objects = scene.objects
    found: list[tuple[str, ...]] = [(o.shape, o.colour) for o in objects if (o.shape, o.colour) in HELD_OUT_PAIRS]
    for i, a in enumerate(objects):
        for j, b in enumerate(objects):
            if i != j:
                found += [(r, a.shape, b.shape) for r in relations(a, b) if (r, a.shape, b.shape) in HELD_OUT_RELATIONS]
    if scene.word and is_held_out_word(scene.word.text):
        found.append((scene.word.text,))
    return found
