"""Everything that is measured of generated pictures: the compositional score, and what a set of training pictures says of them.

P prompts, k pictures each, S pixels a side.
"""

import dataclasses
import json
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from jaxtyping import UInt8

from mmjax.core.errors import UserError
from mmjax.data.bad import BadSample, place
from mmjax.data.image import Decode
from mmjax.data.scenes.world import Object, scene
from mmjax.data.source import Source
from mmjax.evals import amplification, diversity, judged, memorisation
from mmjax.evals.amplification import Amplification
from mmjax.evals.diversity import Diversity
from mmjax.evals.judged import Judged
from mmjax.evals.memorisation import Memorised, Nearest
from mmjax.evals.prompt_set import Prompt

VALIDATION = 1000  # pictures that say how near is nearer than chance


@dataclasses.dataclass(frozen=True)
class Likeness:
    """What training pictures say of the generated ones. `amplification` is None where their records hold no scene graph.

    `nearest` is of the P * k generated pictures, by kind of distance; its numbers are records of `training`.
    """

    memorised: dict[str, Memorised]
    nearest: dict[str, Nearest]
    amplification: Amplification | None
    training: Source


@dataclasses.dataclass(frozen=True)
class Scored:
    """Pictures and all that was found; `likeness` is None without training pictures, `diversity` empty with one picture a prompt."""

    pictures: UInt8[np.ndarray, "P k S S 3"]
    judged: Judged
    diversity: dict[str, Diversity]
    likeness: Likeness | None

    def scalars(self) -> dict[str, float]:
        """One flat dict, for a training log. Diversity as a share of the training pictures' where these are known, else in bits."""
        out = self.judged.scalars()
        for name, d in self.diversity.items():
            if d.training is None:
                out[f"bits_{name}"] = d.bits
            elif d.training > 0:
                out[f"diversity_{name}"] = d.bits / d.training
        if self.likeness:
            out |= {f"memorised_{kind}": m.share for kind, m in self.likeness.memorised.items()}
            if self.likeness.amplification and self.likeness.amplification.mean:
                out["amplification"] = self.likeness.amplification.mean.mean
        return out

    def plain(self) -> dict[str, Any]:
        """All of it as JSON."""
        out = {**self.judged.plain(), "diversity": {name: dataclasses.asdict(d) for name, d in self.diversity.items()}}
        if self.likeness:
            found = self.likeness.amplification
            out["memorisation"] = memorisation.plain(self.likeness.memorised)
            out["amplification"] = found and amplification.plain(found)
        return out

    def table(self) -> str:
        """Tables, one below the other."""
        parts = [self.judged.table()]
        parts += [diversity.table(self.diversity)] if self.diversity else []
        if self.likeness:
            parts.append(memorisation.table(self.likeness.memorised))
            parts += [amplification.table(self.likeness.amplification)] if self.likeness.amplification else []
        return "\n\n".join(parts)


def score(
    pictures: UInt8[np.ndarray, "P k S S 3"],
    prompts: Sequence[Prompt],
    workers: int = 0,
    training: Source | None = None,
    validation: Source | None = None,
) -> Scored:
    """The score of pictures, those of prompts[p] in row p; compared with `training` where it is given, calibrated by `validation`.

    Args:
      workers: processes that read pictures; 0 reads here.
      training: records with `image`, and `scene`, a scene graph, for comparisons of what the pictures show.

    Raises:
      UserError: pictures of another size than the generated ones.
    """
    found = judged.judge(pictures, prompts, workers)
    if training is None or validation is None:
        return Scored(pictures, found, diversity.measure(found), None)
    known = _Records(training, pictures.shape[2])
    asked = [picture for chunk in _Records(validation, pictures.shape[2], VALIDATION).chunks() for picture in chunk]
    flat = pictures.reshape(-1, *pictures.shape[2:])
    search = memorisation.search(np.concatenate([flat, np.stack(asked)]), known.chunks())
    nearest, memorised = {}, {}
    for kind, one in search.items():
        numbers = np.array(known.numbers)[one.numbers]
        nearest[kind] = Nearest(one.distances[: len(flat)], numbers[: len(flat)])
        memorised[kind] = memorisation.measure(nearest[kind], Nearest(one.distances[len(flat) :], numbers[len(flat) :]))
    scenes = known.scenes or None
    amplified = amplification.measure(scenes, amplification.of_open_prompts(found)) if scenes else None
    return Scored(pictures, found, diversity.measure(found, scenes), Likeness(memorised, nearest, amplified, training))


class _Records:
    """The pictures of a source, decoded a chunk at a time; on the way it keeps the sound records' numbers and their scenes' objects."""

    def __init__(self, source: Source, size: int, most: int | None = None):
        self._source, self._size, self._most = source, size, most
        self.numbers: list[int] = []
        self.scenes: list[Sequence[Object]] = []

    def chunks(self) -> Iterator[UInt8[np.ndarray, "n S S 3"]]:
        """Raises UserError: no sound record, or a picture of another size."""
        together = max(1, memorisation.BLOCK_BYTES // (8 * 3 * self._size**2))
        chunk: list[UInt8[np.ndarray, "S S 3"]] = []
        for i in range(min(len(self._source), self._most or len(self._source))):
            try:
                chunk.append(self._picture(i))
            except BadSample:
                continue
            if len(chunk) == together:
                yield np.stack(chunk)
                chunk = []
        if chunk:
            yield np.stack(chunk)
        if not self.numbers:
            raise UserError(f"source '{self._source.info.name}' ({self._source.info.split}) has no picture to compare with")

    def _picture(self, i: int) -> UInt8[np.ndarray, "S S 3"]:
        record = self._source[i]
        if "image" not in record:
            raise UserError(f"{place(self._source, i)} has no 'image'; pictures are compared with those of such records")
        picture = decoded(record["image"])
        if picture.shape[:2] != (self._size, self._size):
            raise UserError(
                f"{place(self._source, i)} is {picture.shape[1]} x {picture.shape[0]} pixels, generated pictures are "
                f"{self._size} x {self._size}; expected the set they were trained on"
            )
        self.numbers.append(i)
        if "scene" in record:
            self.scenes.append(scene(json.loads(record["scene"])).objects)
        return picture


def decoded(encoded: bytes) -> UInt8[np.ndarray, "H W 3"]:
    """A picture in RGB. Raises BadSample."""
    return Decode(channels=3)({"image": encoded}, np.random.default_rng(0))["image"]
