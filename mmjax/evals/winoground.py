"""Winoground (Thrush et al. 2022, equations 1 to 3): two pictures, two captions of the same words; which belongs to which?"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from jax.sharding import Mesh
from jaxtyping import Float

from mmjax.core.config import Group
from mmjax.core.errors import UserError
from mmjax.data.source import Source
from mmjax.evals import annotations, compositional
from mmjax.evals.compositional import ARGUMENTS, NEEDS, Case, Picture

__all__ = ["ARGUMENTS", "NEEDS", "make", "read", "score", "take"]


def score(similarity: Float[np.ndarray, "N 2 2"], types: Sequence[str]) -> dict[str, float]:
    """`text`, `image` and `group` score, as fractions, and the group score by type; similarity[n, i, c] of picture i and caption c.

    Text: each picture prefers its own caption. Image: each caption prefers its own picture. Group: both. A tie is no preference, so
    chance is 1/4, 1/4 and 1/6.
    """
    own = np.stack([similarity[:, 0, 0], similarity[:, 1, 1]], 1)
    other_caption = np.stack([similarity[:, 0, 1], similarity[:, 1, 0]], 1)
    other_picture = other_caption[:, ::-1]
    text, image = (own > other_caption).all(1), (own > other_picture).all(1)
    group = text & image
    by_type = {f"group_{t}": v for t, v in compositional.means(group, types).items()}
    return {"text": float(text.mean()), "image": float(image.mean()), "group": float(group.mean()), **by_type}


def read(path: str) -> list[Case]:
    """The published `examples.jsonl`: picture i and caption i belong together; `collapsed_tag` is the type. Raises UserError."""
    out = []
    for entry in annotations.entries(path, 'Winoground\'s list of {"image_0", "image_1", "caption_0", "caption_1"}'):
        names = [entry.get(f"image_{i}", str) for i in (0, 1)]
        names = [name if "." in name else f"{name}.png" for name in names]
        kind = entry.get("collapsed_tag", str).lower() if "collapsed_tag" in entry.value else ""
        out.append(Case(tuple(Picture(name) for name in names), tuple(entry.get(f"caption_{i}", str) for i in (0, 1)), kind))
    return out


def take(source: Source) -> list[Case]:
    """Records with two `images` and two `captions`, and perhaps a `type`. Raises UserError."""

    def case(record: Mapping[str, Any], i: int) -> Case:
        captions = tuple(record["captions"])
        if len(record["images"]) != 2 or len(captions) != 2:
            found = f"{len(record['images'])} images and {len(captions)} captions"
            raise UserError(f"winoground: source '{source.info.name}' ({source.info.split}), record {i} has {found}, expected two of each")
        return Case((Picture(record=i), Picture(record=i, number=1)), captions, str(record.get("type", "")))

    return compositional.cases_of(source, ("images", "captions"), case)


def make(predict: Mapping[str, Callable], config: Group, mesh: Mesh, data: Group) -> compositional.Compositional:
    """See `compositional.make`; `annotations` is `examples.jsonl`."""
    return compositional.make(predict, config, mesh, data, read=read, take=take, score=score)
