"""Zero-shot classification by prompt ensembles (Radford et al. 2021, section 3.1.4).

N images, K classes, T prompts, E embedding.
"""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from jax.sharding import Mesh
from jaxtyping import Float, Int, Int64

from mmjax.core.config import Group
from mmjax.core.errors import UserError
from mmjax.core.types import Params
from mmjax.data import transforms
from mmjax.data.source import open_source, open_tokenizer
from mmjax.evals import encode
from mmjax.evals.accuracy import accuracies

NEEDS = ("encode_image", "encode_text")
ARGUMENTS = ("split", "batch_size", "length", "transforms")


def ensemble(prompts: Float[np.ndarray, "K T E"]) -> Float[np.ndarray, "K E"]:
    """One unit vector a class: normalise every prompt's embedding, average over prompts, normalise again."""
    return encode.unit(encode.unit(prompts).mean(1))


@dataclasses.dataclass(frozen=True)
class ZeroShot:
    """What the evaluation needs at hand; `images` and `classifier` are also what a report shows."""

    encode_image: Callable
    encode_text: Callable
    source: Any
    transform: Callable
    prompts: Int[np.ndarray, "P L"]  # class by class, prompt by prompt
    batch_size: int
    mesh: Mesh

    def texts(self, params: Params) -> Float[np.ndarray, "P E"]:
        """Unit-norm embeddings of every prompt."""
        return encode.unit(encode.texts(self.encode_text, params, self.prompts, self.batch_size, self.mesh))

    def classifier(self, params: Params) -> Float[np.ndarray, "K E"]:
        """The class vectors of the ensembled prompts."""
        embedded = self.texts(params)
        return ensemble(embedded.reshape(len(self.source.info.classes), -1, embedded.shape[-1]))

    def images(self, params: Params) -> tuple[Float[np.ndarray, "N E"], Int[np.ndarray, "N"], Int64[np.ndarray, "N"]]:
        """Unit-norm embeddings of every sound image of the split, the labels, and the records' numbers."""
        keys = ("image", "label")
        images, *rest = encode.split(self.encode_image, params, self.source, self.transform, keys, self.batch_size, self.mesh)
        return encode.unit(images), *rest

    def __call__(self, params: Params) -> dict[str, float]:
        images, labels, places = self.images(params)
        return {**accuracies(images @ self.classifier(params).T, labels), **encode.left_out(self.source, places)}


def make(predict: Mapping[str, Callable], config: Group, mesh: Mesh, data: Group) -> ZeroShot:
    """Config: `split`, `batch_size`, `length` (tokens), `transforms`. Prompts and class names come from the source.

    Raises:
      UserError: the source has no class names or prompts.
    """
    source = open_source(data, config["split"])
    if not source.info.classes or not source.info.prompts:
        raise UserError(f"zero_shot: source '{source.info.name}' has no class names or no prompts; it needs both")
    tokenizer = open_tokenizer(source, data.tokenizer)
    if tokenizer is None:
        raise UserError(f"zero_shot: source '{source.info.name}' has no tokenizer; name one with data.tokenizer")
    filled = [prompt.format(name) for name in source.info.classes for prompt in source.info.prompts]
    return ZeroShot(
        encode_image=encode.compile_over(mesh, predict["encode_image"]),
        encode_text=encode.compile_over(mesh, predict["encode_text"]),
        source=source,
        transform=transforms.build(config["transforms"], tokenizer),
        prompts=tokenizer.encode(filled, config["length"]),
        batch_size=encode.pad_to_mesh(config["batch_size"], mesh),
        mesh=mesh,
    )
