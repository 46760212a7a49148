"""What a model of small scenes gets right of one and of two objects: colours, shapes, and which belongs to which, each counted by itself.

GenEval's categories ask for all at once; here a picture drawn for "a red circle and a blue star" is also asked whether there is a red thing
and a blue thing, which may be blobs of no known shape. Every score stands beside chance: what pictures of the other prompts of the same
kind get. As an evaluation, of a model that draws texts; a chain of stages is scored by `mmjax eval --pipeline`.

P prompts, S pixels a side.
"""

import dataclasses
import itertools
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from jax.sharding import Mesh
from jaxtyping import Bool, Float64, UInt8

from mmjax.core.config import Group
from mmjax.core.errors import UserError
from mmjax.core.types import Params
from mmjax.data.scenes import draw, splits
from mmjax.data.scenes.describe import Description
from mmjax.data.scenes.prompts import Requirement, parse, phrase
from mmjax.data.scenes.sample import sample
from mmjax.data.scenes.world import Object, Scene
from mmjax.data.source import open_source
from mmjax.evals import artist, oracle, summary
from mmjax.evals.artist import Artist
from mmjax.evals.oracle import Reading

NEEDS = ("text_to_image",)
ARGUMENTS = ("split", "batch_size", "length", "count", "seed")
OPTIONAL = {"workers": 0}

# Objects a prompt names -> what is asked of its picture, by the attributes that count.
ASKED: Mapping[int, Mapping[str, tuple[str, ...]]] = {
    1: {"one object: colour": ("colour",), "one object: shape": ("shape",), "one object: both": ("colour", "shape")},
    2: {"two objects: colours": ("colour",), "two objects: shapes": ("shape",), "two objects: bound": ("colour", "shape")},
}


@dataclasses.dataclass(frozen=True)
class Asked:
    """A prompt, the scene that it was made of, and category -> what that asks of a picture."""

    text: str
    scene: Scene
    requirements: Mapping[str, Requirement]


def prompts(count: int, config: str = "clear", split: str = "validation") -> tuple[Asked, ...]:
    """`count` prompts of one object and `count` of two, which differ in colour and in shape; the same every time. None comes twice before
    there are more than the set has pairs of a colour and a shape, and then each as seldom as may be, of another scene."""
    out: list[Asked] = []
    wanted = dict.fromkeys(ASKED, count)
    seen: Counter[str] = Counter()
    most = 1 + count // len(splits.pairs(split))
    for index in itertools.count():
        scene = sample(config, split, index)
        things = scene.objects
        if not wanted.get(len(things)) or any(len({getattr(o, name) for o in things}) < len(things) for name in ("colour", "shape")):
            continue
        text = _said(scene, ("colour", "shape"))
        if seen[text] < most:
            asked = {category: parse(_said(scene, names)) for category, names in ASKED[len(things)].items()}
            out.append(Asked(text, scene, asked))
            seen[text] += 1
            wanted[len(things)] -= 1
        if not any(wanted.values()):
            return tuple(sorted(out, key=lambda one: len(one.scene.objects)))


def _said(scene: Scene, names: Sequence[str]) -> str:
    return " and ".join(phrase(Description(**{name: getattr(o, name) for name in names})) for o in scene.objects)


def pictures(asked: Sequence[Asked], size: int) -> UInt8[np.ndarray, "P S S 3"]:
    """The pictures of the prompts' own scenes: what has everything right."""
    return np.stack([draw.render(one.scene, size) for one in asked])


@dataclasses.dataclass(frozen=True)
class Score:
    """Category -> share of its prompts whose picture meets it, with an interval; and what chance would give.

    Attributes:
      met: category -> which of its prompts were met, in their order.
    """

    categories: Mapping[str, summary.Mean]
    chance: Mapping[str, float]
    met: Mapping[str, Bool[np.ndarray, "n"]]

    def plain(self) -> dict[str, dict[str, float]]:
        """As JSON."""
        return {name: {**dataclasses.asdict(mean), "chance": self.chance[name]} for name, mean in self.categories.items()}


def score(drawn: UInt8[np.ndarray, "P S S 3"], asked: Sequence[Asked], workers: int = 0) -> Score:
    """What the oracle reads in pictures, held against their prompts. `workers`: processes that read; 0 reads here."""
    readings = oracle.read(drawn, workers)
    met, chance = {}, {}
    for category in (name for names in ASKED.values() for name in names):
        which = [i for i, one in enumerate(asked) if category in one.requirements]
        if not which:
            continue
        shapeless = all("shape" not in names.get(category, ()) for names in ASKED.values())
        table = _table([asked[i].requirements[category] for i in which], [_shown(readings[i], shapeless) for i in which])
        met[category] = np.diag(table).copy()
        texts = np.array([asked[i].text for i in which])
        others = table[texts[:, None] != texts]
        chance[category] = float(others.mean()) if others.size else 0.0
    return Score({name: summary.mean(values) for name, values in met.items()}, chance, met)


def _shown(reading: Reading, shapeless: bool) -> list[Object]:
    """The picture's objects; with `shapeless` its blobs too, for what asks for no shape."""
    things = [seen.object() for seen in reading.objects]
    return [*things, *(Object("circle", blob.colour, "medium", 0.5, 0.5) for blob in reading.blobs)] if shapeless else things


def _table(requirements: Sequence[Requirement], shown: Sequence[Sequence[Object]]) -> Bool[np.ndarray, "n n"]:
    """Whether picture j meets what prompt i asks."""
    return np.array([[requirement.met(objects) for objects in shown] for requirement in requirements])


def pooled(scores: Sequence[Score]) -> dict[str, dict[str, Any]]:
    """Of several runs, their seeds: the mean over all prompts of all of them, intervals by resampling prompts, whose runs go together."""
    out = {}
    for name in scores[0].categories:
        values: Float64[np.ndarray, "n"] = np.mean([s.met[name] for s in scores], axis=0)
        each = [float(s.met[name].mean()) for s in scores]
        chance = float(np.mean([s.chance[name] for s in scores]))
        out[name] = {**dataclasses.asdict(summary.mean(values)), "chance": chance, "runs": each}
    return out


@dataclasses.dataclass(frozen=True)
class Attributes:
    """Draws a picture a prompt, and scores it: category, in snake case -> share met."""

    pictures: Artist
    asked: tuple[Asked, ...]
    workers: int

    def __call__(self, params: Params) -> dict[str, float]:
        found = score(self.pictures(params)[:, 0], self.asked, self.workers)
        return {name.replace(":", "").replace(" ", "_"): mean.mean for name, mean in found.categories.items()}


def make(predict: Mapping[str, Callable], config: Group, mesh: Mesh, data: Group) -> Attributes:
    """Config: `count`, prompts of one object and as many of two; `seed`; `batch_size`; `length` (tokens); `split`, whose scenes the
    prompts speak of; `workers`, processes that read pictures, or 0.

    Raises:
      UserError: no prompts, or a source without a tokenizer.
    """
    if config["count"] < 1:
        raise UserError(f"attributes: count is {config['count']}, expected at least one prompt of each kind")
    asked = prompts(config["count"], split=config["split"])
    texts = [one.text for one in asked]
    source = open_source(data, config["split"])
    return Attributes(artist.make("attributes", predict, texts, config, mesh, data, source, 1), asked, config.get("workers", 0))
