"""A stage of unCLIP: a run in its role, or published weights in it."""

import dataclasses
import functools
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh
from ml_collections import ConfigDict

from mmjax.cli import cache, sample
from mmjax.cli.eval import load_params
from mmjax.cli.program import Program, assemble, make_task
from mmjax.convert import models
from mmjax.convert.pretrained import Opened, open_checkpoint, read_leaves
from mmjax.convert.rules import place
from mmjax.convert.workdir import CHECKPOINTS, is_run
from mmjax.core import checkpoint_read, sharding, tree
from mmjax.core import config as config_lib
from mmjax.core.errors import UserError
from mmjax.core.types import Params, Task
from mmjax.data import tokenizer as tokenizers

UPSAMPLERS = "upsamplers"
# Role -> the predict functions that make a run fit for it.
NEEDS = {
    "clip": ("encode_image", "encode_text"),
    "prior": ("image_embedding",),
    "decoder": ("embedding_to_image",),
    UPSAMPLERS: ("upsample",),
}
TASKS = {"clip": "clip", "prior": "diffusion_prior"}  # of published weights by role; others are of task "diffusion"


@dataclasses.dataclass(frozen=True)
class Stage:
    """A run in its role ("clip", "prior", "decoder", "upsampler0", ...).

    Attributes:
      step: the checkpoint asked for; None for the newest.
      task: what it takes and gives.
      published: the weights, where they are no run of ours.
    """

    role: str
    path: Path
    step: int | None
    config: ConfigDict
    task: Task
    mesh: Mesh
    published: Opened | None = None

    @functools.cached_property
    def program(self) -> Program:
        """With the shapes and places of its parameters."""
        return assemble(self.config, self.mesh)

    @property
    def size(self) -> int:
        """Pixels a side of what it draws, or of what CLIP sees."""
        return self.config.model.size

    def spec(self, key: str) -> Any:
        """Of a batch of its training; None where it has no such key."""
        return self.task.batch_spec.get(key)

    @property
    def words(self) -> str:
        """What it takes of a caption, as tasks.unclip.WORDS has it."""
        return "tokens" if self.spec("tokens") is not None else "features" if self.spec("context") is not None else ""

    @property
    def told(self) -> tuple[str, ...]:
        """What it takes of a caption beside its words, as tasks.unclip.Chain has it."""
        return tuple(
            key for key in ("text_embedding", "mask") if self.spec(key) is not None and (self.role, key) != ("prior", "text_embedding")
        )

    @functools.cached_property
    def at(self) -> int:
        """The checkpoint's step."""
        if self.published is not None:
            return 0
        return checkpoint_read.contents(self.path / CHECKPOINTS, self.step).step

    @functools.cached_property
    def fingerprint(self) -> str:
        """Of the model, as `mmjax cache` stores it with a set; empty for published weights."""
        if self.published is not None:
            return ""
        return cache.model_fingerprint(self.config, self.path, self.at, next(iter(self.config.ema), None))

    def load(self) -> tuple[int, str, Params]:
        """Step, what the weights are, and parameters."""
        if self.published is not None:
            return 0, self.published.config["layout"], weights_of(self.published, self.program)
        return load_params(self.program, self.path, self.at)


def open_stage(role: str, file: Path, spec: Mapping[str, Any], words: Sequence[str], mesh: Mesh | None) -> Stage:
    """A stage bound to a mesh, by default its own config's.

    Raises:
      UserError: no run there, none that was ever saved, or one that is unfit for the role.
    """
    path = file.parent / Path(spec["path"]).expanduser()
    where = f"--pipeline '{file}': {role} '{path}'"
    if not path.exists():
        raise UserError(f"{where} does not exist; train it, or correct the path")
    published = None
    if is_run(path):
        config = config_lib.open_workdir(path)
    elif "config" in _record(path):
        raise UserError(f"{where} has no checkpoint yet; train it to its end")
    else:
        published = open_checkpoint(path, component=spec.get("component"))
        config = config_of(role, published)
    if config.task == "diffusion" and "sampler" in config.model:
        config = sample.complete(config, str(path))
    try:
        config = config_lib.override(config, words)
    except UserError as e:
        raise UserError(f"{role}: {e}") from None
    task = make_task(config)
    needs = NEEDS[UPSAMPLERS if role.startswith("upsampler") else role]
    lacking = [name for name in needs if name not in task.predict]
    if lacking:
        raise UserError(f"{where} is a run of task '{config.task}', which does not give {lacking[0]}, as this stage must")
    mesh = sharding.make_mesh(dict(config.mesh)) if mesh is None else mesh
    return Stage(role, path, spec.get("step"), config, task, mesh, published)


def _record(path: Path) -> dict[str, Any]:
    """config.json of a folder; empty where there is none."""
    try:
        found = json.loads((path / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def config_of(role: str, published: Opened) -> ConfigDict:
    """A config whose task is the published model: its fields are those of the task's config.model."""
    config = config_lib.base()
    config.task = TASKS.get(role, "diffusion")
    config.batch_size = jax.device_count()  # of no use, but that it splits over any mesh
    config.model = ConfigDict(dict(published.config["model"]))
    seen = published.config.get("preprocess")
    if seen is not None:
        config.model.size, config.model.channels = seen["size"], 3
        config.data.transforms = (("normalize", {"mean": seen["mean"], "std": seen["std"]}),)
    words = published.source.words
    if role == "clip" and any((words / name).is_file() for name in tokenizers.FILES):
        config.data.tokenizer = str(words)
    return config.lock()


def weights_of(published: Opened, program: Program) -> Params:
    """Parameters in their places."""
    places = {path: x.sharding for path, x in tree.flatten(program.abstract.params).items()}
    model = models.build(published.config["model"], jnp.float32, program.mesh)
    found = {path: place(leaf, places[path]) for path, leaf in read_leaves(published, model).items()}
    return tree.unflatten(found)
