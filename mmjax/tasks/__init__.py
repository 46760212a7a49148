"""The systems: `TASKS[config.task](config) -> Task`. A new one is a file here and a line in the table."""

from collections.abc import Callable

from ml_collections import ConfigDict

from mmjax.core.errors import UserError, suggest
from mmjax.core.types import Task
from mmjax.tasks import (
    ar_prior,
    autoencoder,
    caption_baselines,
    classification,
    clip,
    diffusion,
    diffusion_prior,
    flamingo,
    language_model,
    noisy_classification,
)

TASKS: dict[str, Callable[[ConfigDict], Task]] = {
    "ar_prior": ar_prior.make,
    "autoencoder": autoencoder.make,
    "caption_baselines": caption_baselines.make,
    "classification": classification.make,
    "clip": clip.make,
    "diffusion": diffusion.make,
    "diffusion_prior": diffusion_prior.make,
    "flamingo": flamingo.make,
    "language_model": language_model.make,
    "noisy_classification": noisy_classification.make,
}


def make(config: ConfigDict) -> Task:
    """The task a config names, at the config's sizes.

    Raises:
      UserError: no such task, or a model group the task does not take.
    """
    if config.task not in TASKS:
        raise UserError(f"config task {config.task!r} is not a task{suggest(config.task, TASKS)}")
    return TASKS[config.task](config)
