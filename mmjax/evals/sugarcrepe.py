"""SugarCrepe (Hsieh et al. 2023): a picture, its caption, and the caption with one thing added, replaced or swapped."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from jax.sharding import Mesh
from jaxtyping import Float

from mmjax.core.config import Group
from mmjax.core.errors import UserError
from mmjax.data import files
from mmjax.data.source import Source
from mmjax.evals import annotations, compositional
from mmjax.evals.compositional import ARGUMENTS, NEEDS, Case, Picture

__all__ = ["ARGUMENTS", "NEEDS", "TYPES", "make", "read", "score", "take"]
TYPES = ("add_att", "add_obj", "replace_att", "replace_obj", "replace_rel", "swap_att", "swap_obj")


def score(similarity: Float[np.ndarray, "N 1 2"], types: Sequence[str]) -> dict[str, float]:
    """Share of cases whose true caption, the first, is strictly nearer than the other (chance 1/2): over all, the mean of the types,
    and a type. Published are the types."""
    right = similarity[:, 0, 0] > similarity[:, 0, 1]
    by_type = compositional.means(right, types)
    macro = {"mean_per_type": float(np.mean(list(by_type.values())))} if by_type else {}
    return {"accuracy": float(right.mean()), **macro, **by_type}


def read(path: str) -> list[Case]:
    """The published files, {"0": {"filename", "caption", "negative_caption"}, ...}: one of them, or the folder with all seven.

    The name of a file is the type of its cases. Raises UserError.
    """
    if files.is_dir(path):
        missing = [name for name in TYPES if (f"{name}.json", False) not in files.listdir(path)]
        if missing:
            raise UserError(f"folder '{path}' has no {missing[0]}.json; expected SugarCrepe's seven files, or name one of them")
        return [case for name in TYPES for case in read(files.join(path, f"{name}.json"))]
    kind = files.basename(path).removesuffix(".json")
    if kind not in TYPES:
        raise UserError(f"'{path}': a SugarCrepe file is named by its type, expected one of {', '.join(f'{t}.json' for t in TYPES)}")
    value = annotations.read(path)
    if not isinstance(value, dict) or not value or not all(isinstance(case, dict) for case in value.values()):
        raise UserError(f'\'{path}\' is not of SugarCrepe\'s form, {{"0": {{"filename", "caption", "negative_caption"}}, ...}}')
    found = [annotations.Entry(case, f"'{path}', case {key!r}") for key, case in value.items()]
    return [Case((Picture(e.get("filename", str)),), (e.get("caption", str), e.get("negative_caption", str)), kind) for e in found]


def take(source: Source) -> list[Case]:
    """Records with `image`, two `captions`, the true one first, and `type`. Raises UserError."""

    def case(record: Mapping[str, Any], i: int) -> Case:
        captions = tuple(record["captions"])
        if len(captions) != 2:
            raise UserError(
                f"sugarcrepe: source '{source.info.name}' ({source.info.split}), record {i} has {len(captions)} captions, expected a "
                "true and a false one"
            )
        return Case((Picture(record=i),), captions, str(record["type"]))

    return compositional.cases_of(source, ("image", "captions", "type"), case)


def make(predict: Mapping[str, Callable], config: Group, mesh: Mesh, data: Group) -> compositional.Compositional:
    """See `compositional.make`; `annotations` is the folder of the seven files, or one of them."""
    return compositional.make(predict, config, mesh, data, read=read, take=take, score=score)
