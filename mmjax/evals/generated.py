"""Scores the pictures that a model draws for the stored prompts: `scored.py` says of what."""

import dataclasses
from collections.abc import Callable, Mapping

from jax.sharding import Mesh

from mmjax.core.config import Group
from mmjax.core.errors import UserError
from mmjax.core.types import Params
from mmjax.data.source import Source, open_source
from mmjax.evals import artist, prompt_set, scored
from mmjax.evals.artist import Artist
from mmjax.evals.prompt_set import Prompt
from mmjax.evals.scored import Scored

NEEDS = ("text_to_image",)
ARGUMENTS = ("split", "batch_size", "length", "prompts", "samples", "seed", "workers", "training")


@dataclasses.dataclass(frozen=True)
class Generated:
    """Draws and scores; `scored` is also what a report shows."""

    pictures: Artist  # of the prompts
    prompts: tuple[Prompt, ...]
    workers: int
    training: Source | None
    validation: Source

    def scored(self, params: Params) -> Scored:
        """Pictures, and all that is measured of them."""
        return scored.score(
            self.pictures(params), self.prompts, self.workers, self.training, None if self.training is None else self.validation
        )

    def __call__(self, params: Params) -> dict[str, float]:
        return self.scored(params).scalars()


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
    prompts = prompt_set.load(config["prompts"])
    texts = [prompt.text for prompt in prompts]
    return Generated(
        pictures=artist.make("generated", predict, texts, config, mesh, data, validation, config["samples"]),
        prompts=prompts,
        workers=config["workers"],
        training=open_source(data, config["training"]) if config["training"] else None,
        validation=validation,
    )
