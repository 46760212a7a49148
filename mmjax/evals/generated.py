"""Scores the pictures that a model draws for the stored prompts: `scored.py` says of what.

P prompts, k pictures each, L tokens, S pixels a side.
"""

import dataclasses
from collections.abc import Callable, Mapping

import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Int, UInt8

from mmjax.core import rng
from mmjax.core.config import Group
from mmjax.core.errors import UserError
from mmjax.core.types import Params
from mmjax.data.source import Source, open_source, open_tokenizer
from mmjax.evals import encode, prompt_set, scored
from mmjax.evals.prompt_set import Prompt
from mmjax.evals.scored import Scored

NEEDS = ("text_to_image",)
ARGUMENTS = ("split", "batch_size", "length", "prompts", "samples", "seed", "workers", "training")


@dataclasses.dataclass(frozen=True)
class Generated:
    """Draws and scores; `scored` is also what a report shows."""

    text_to_image: Callable  # (params, tokens, number of each picture) -> pictures
    prompts: tuple[Prompt, ...]
    tokens: Int[np.ndarray, "P L"]
    samples: int
    batch_size: int
    mesh: Mesh
    workers: int
    training: Source | None
    validation: Source

    def pictures(self, params: Params) -> UInt8[np.ndarray, "P k S S 3"]:
        """Picture j of prompt p has number p * k + j, which gives its key: batch size and mesh do not change it."""
        count = len(self.prompts) * self.samples
        arrays = (np.repeat(self.tokens, self.samples, axis=0), np.arange(count, dtype=np.int32))
        drawn = [_levels(x) for x in encode.rows(self.text_to_image, params, arrays, self.batch_size, self.mesh)]
        out = np.concatenate(drawn)
        return out.reshape(len(self.prompts), self.samples, *out.shape[1:])

    def scored(self, params: Params) -> Scored:
        """Pictures, and all that is measured of them."""
        return scored.score(
            self.pictures(params), self.prompts, self.workers, self.training, None if self.training is None else self.validation
        )

    def __call__(self, params: Params) -> dict[str, float]:
        return self.scored(params).scalars()


def _levels(pictures: np.ndarray) -> UInt8[np.ndarray, "b S S 3"]:
    """0..1 as 0..255. What is no number is black, which the oracle reads as nothing."""
    return np.round(np.clip(np.nan_to_num(pictures, nan=0.0), 0, 1) * 255).astype(np.uint8)


def make(predict: Mapping[str, Callable], config: Group, mesh: Mesh, data: Group) -> Generated:
    """Config: `batch_size`; `length` (tokens); `prompts`, a file, or "" for the stored ones; `samples`, pictures a prompt; `seed`;
    `workers`, processes that read pictures, or 0; `training`, the split of the data's source that pictures are compared with, or "" for no
    comparison; `split`, held-out pictures that calibrate the comparison.

    Raises:
      UserError: a prompt outside the grammar, no tokenizer, or fewer than one picture a prompt.
    """
    if config["samples"] < 1:
        raise UserError(f"generated: samples is {config['samples']}, expected at least one picture a prompt")
    validation = open_source(data, config["split"])
    tokenizer = open_tokenizer(validation, data.tokenizer)
    if tokenizer is None:
        raise UserError(f"generated: source '{validation.info.name}' has no tokenizer; name one with data.tokenizer")
    prompts = prompt_set.load(config["prompts"])
    key = rng.named(rng.wrap(rng.root(config["seed"])), "generated")
    drawn = lambda params, tokens, numbers: predict["text_to_image"](params, tokens, rng.per_example(key, numbers)).astype(jnp.float32)
    return Generated(
        text_to_image=encode.compile_over(mesh, drawn),
        prompts=prompts,
        tokens=tokenizer.encode([prompt.text for prompt in prompts], config["length"]),
        samples=config["samples"],
        batch_size=encode.pad_to_mesh(config["batch_size"], mesh),
        mesh=mesh,
        workers=config["workers"],
        training=open_source(data, config["training"]) if config["training"] else None,
        validation=validation,
    )
