"""Pictures that a model draws for texts: each has a number, which gives its key, so that batch size and mesh change none of them."""

import dataclasses
from collections.abc import Callable, Mapping, Sequence

import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Int, UInt8

from mmjax.core import rng
from mmjax.core.config import Group
from mmjax.core.errors import UserError
from mmjax.core.types import Params
from mmjax.data.source import Source, open_tokenizer
from mmjax.evals import encode


@dataclasses.dataclass(frozen=True)
class Artist:
    """Draws `samples` pictures of each of P texts, which are rows of L tokens."""

    text_to_image: Callable  # (params, tokens, number of each picture) -> pictures
    tokens: Int[np.ndarray, "P L"]
    samples: int
    batch_size: int
    mesh: Mesh

    def __call__(self, params: Params) -> UInt8[np.ndarray, "P k S S 3"]:
        """Picture j of text p has number p * k + j. What is no number is black, which the oracle reads as nothing."""
        count = len(self.tokens) * self.samples
        arrays = (np.repeat(self.tokens, self.samples, axis=0), np.arange(count, dtype=np.int32))
        out = np.concatenate([_levels(x) for x in encode.rows(self.text_to_image, params, arrays, self.batch_size, self.mesh)])
        return out.reshape(len(self.tokens), self.samples, *out.shape[1:])


def _levels(pictures: np.ndarray) -> UInt8[np.ndarray, "b S S 3"]:
    """0..1 as 0..255."""
    return np.round(np.clip(np.nan_to_num(pictures, nan=0.0), 0, 1) * 255).astype(np.uint8)


def make(
    name: str, predict: Mapping[str, Callable], texts: Sequence[str], config: Group, mesh: Mesh, data: Group, source: Source, samples: int
) -> Artist:
    """An artist of texts. `name`: of the evaluation, whose draws it takes; config: `seed`, `length` (tokens), `batch_size`.

    Raises:
      UserError: the source has no tokenizer.
    """
    tokenizer = open_tokenizer(source, data.tokenizer)
    if tokenizer is None:
        raise UserError(f"{name}: source '{source.info.name}' has no tokenizer; name one with data.tokenizer")
    key = rng.named(rng.wrap(rng.root(config["seed"])), name)
    drawn = lambda params, tokens, numbers: predict["text_to_image"](params, tokens, rng.per_example(key, numbers)).astype(jnp.float32)
    tokens = tokenizer.encode(list(texts), config["length"])
    return Artist(encode.compile_over(mesh, drawn), tokens, samples, encode.pad_to_mesh(config["batch_size"], mesh), mesh)
