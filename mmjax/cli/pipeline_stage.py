"""A stage of unCLIP: a run in its role, or published weights in it."""

import dataclasses
import functools
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import Mesh
from ml_collections import ConfigDict

from mmjax.cli import cache, sample
from mmjax.cli.eval import load_params
from mmjax.cli.program import Program, assemble, make_task
from mmjax.convert import models
from mmjax.convert.own import OWN
from mmjax.convert.pretrained import Opened, open_checkpoint, read_leaves
from mmjax.convert.prior import STATISTICS
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
    "clip": ("encode_text",),
    "prior": ("image_embedding",),
    "decoder": ("embedding_to_image",),
    UPSAMPLERS: ("upsample",),
}
TASKS = {"clip": "clip", "prior": "diffusion_prior"}  # of published weights by role; others are of task "diffusion"


class Towers(NamedTuple):
    """Of a task what a pipeline asks: of a CLIP whose text encoder is published by itself, and its image tower elsewhere or not at all."""

    predict: Mapping[str, Callable]
    batch_spec: Mapping[str, jax.ShapeDtypeStruct]


@dataclasses.dataclass(frozen=True)
class Stage:
    """A run in its role ("clip", "prior", "decoder", "upsampler0", ...).

    Attributes:
      step: the checkpoint asked for; None for the newest.
      task: what it takes and gives.
      published: the weights, where they are no run of ours: those of one model, or of a CLIP's two towers.
    """

    role: str
    path: Path
    step: int | None
    config: ConfigDict
    task: Task | Towers
    mesh: Mesh
    published: tuple[Opened, ...] = ()

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
    def others(self) -> bool:
        """Whether others trained it on features of captions: with the empty text's where there was none, and padding masked."""
        return self.words == "features" and any(opened.config["layout"] != OWN.name for opened in self.published)

    @property
    def told(self) -> tuple[str, ...]:
        """What it takes of a caption beside its words, as tasks.unclip.Chain has it."""
        embedding = self.role != "prior" and self.spec("text_embedding") is not None
        mask = self.others or self.spec("mask") is not None
        return (*(("text_embedding",) if embedding else ()), *(("mask",) if mask else ()))

    @functools.cached_property
    def at(self) -> int:
        """The checkpoint's step."""
        if self.published:
            return 0
        return checkpoint_read.contents(self.path / CHECKPOINTS, self.step).step

    @functools.cached_property
    def fingerprint(self) -> str:
        """Of the model, as `mmjax cache` stores it with a set; empty for published weights."""
        if self.published:
            return ""
        return cache.model_fingerprint(self.config, self.path, self.at, next(iter(self.config.ema), None))

    def load(self) -> tuple[int, str, Params]:
        """Step, what the weights are, and parameters."""
        if self.published:
            params = {name: x for opened in self.published for name, x in weights_of(opened, self.mesh).items()}
            return 0, self.published[0].config["layout"], params
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
    published: tuple[Opened, ...] = ()
    if spec.get("image") is not None and (role != "clip" or is_run(path)):
        raise UserError(f"{where}: 'image' is for a published text encoder of CLIP alone; leave it out")
    if is_run(path):
        config = config_lib.open_workdir(path)
    elif "config" in _record(path):
        raise UserError(f"{where} has no checkpoint yet; train it to its end")
    else:
        published = (open_checkpoint(path, component=spec.get("component")),)
        if spec.get("image") is not None:
            published += (open_checkpoint(file.parent / Path(spec["image"]).expanduser()),)
        config = config_of(role, published, where)
    if config.task == "diffusion" and "sampler" in config.model:
        config = sample.complete(config, str(path))
        drop_options(config, words)
    try:
        config = config_lib.override(config, words)
    except UserError as e:
        raise UserError(f"{role}: {e}") from None
    task = make_task(config) if role != "clip" or not published or _whole(published) else towers(published)
    needs = NEEDS[UPSAMPLERS if role.startswith("upsampler") else role]
    lacking = [name for name in needs if name not in task.predict]
    if lacking:
        raise UserError(f"{where} is a run of task '{config.task}', which does not give {lacking[0]}, as this stage must")
    mesh = sharding.make_mesh(dict(config.mesh)) if mesh is None else mesh
    return Stage(role, path, spec.get("step"), config, task, mesh, published)


def drop_options(config: ConfigDict, words: Sequence[str]) -> None:
    """Leaves out the options of the config's solver where words put another in its place."""
    named = [word.partition("=")[2] for word in words if word.startswith("model.sampler.solver=")]
    if named and named[-1] != config.model.sampler.solver:
        with config.unlocked():
            config.model.sampler.options = ConfigDict()


def _record(path: Path) -> dict[str, Any]:
    """config.json of a folder; empty where there is none."""
    try:
        found = json.loads((path / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def config_of(role: str, published: Sequence[Opened], where: str) -> ConfigDict:
    """A config whose task is the published model: its fields are those of the task's config.model.

    Raises:
      UserError: towers that are no CLIP together, a prior whose embeddings cannot be brought back.
    """
    first, fields = published[0], {k: x for opened in published for k, x in opened.config["model"].items()}
    if role == "clip" and not _whole(published):
        check_towers([opened.config["model"] for opened in published], where)
    if role == "prior" and first.config["layout"] == "karlo" and not fields["statistics"]:
        lacks = f"neither is there: put ViT-L-14{STATISTICS} beside it"
        raise UserError(f"{where} gives embeddings less their mean, over their deviation, and {lacks}")
    config = config_lib.base()
    config.task = TASKS.get(role, "diffusion")
    config.batch_size = jax.device_count()  # of no use, but that it splits over any mesh
    config.model = ConfigDict(fields)
    seen = next((opened.config["preprocess"] for opened in published if "preprocess" in opened.config), None)
    if seen is not None:
        config.model.size, config.model.channels = seen["size"], 3
        config.data.transforms = (("normalize", {"mean": seen["mean"], "std": seen["std"]}),)
    words = first.source.words
    if role == "clip" and any((words / name).is_file() for name in tokenizers.FILES):
        config.data.tokenizer = str(words)
    return config.lock()


def _whole(published: Sequence[Opened]) -> bool:
    return len(published) == 1 and {"image", "text"} <= set(published[0].config["model"])


def check_towers(fields: Sequence[Mapping[str, Any]], where: str) -> None:
    """Raises UserError: models that are not a text encoder with its projection, and behind it at most one of images."""
    text, *image = fields
    if image and ("image" in text or "text" in image[0] or "image" not in image[0]):
        raise UserError(f"{where}: 'image' is for a text encoder that is published alone, and names its image tower; this is another case")
    if "text" not in text or "embed" not in text:
        raise UserError(f"{where} has no text tower with a projection, as a pipeline's CLIP must")
    if image and image[0].get("embed") != text["embed"]:
        widths = f"{image[0].get('embed')} numbers, and the text encoder's {text['embed']}"
        raise UserError(f"{where}: the image tower's embeddings have {widths}")


def towers(published: Sequence[Opened]) -> Towers:
    """A text encoder, and behind it an image tower if there is one."""
    text, *image = (models.build(opened.config["model"]).predict for opened in published)
    predict = {"encode_text": text["encode_text"], "token_features": text["encode_tokens"]}
    length = published[0].config["model"]["text"]["length"]
    return Towers({**predict, **(image[0] if image else {})}, {"tokens": jax.ShapeDtypeStruct((1, length), jnp.int32)})


def weights_of(published: Opened, mesh: Mesh) -> Params:
    """Parameters in their places."""
    model = models.build(published.config["model"], jnp.float32, mesh)
    places = tree.flatten(sharding.params_shardings(tree.unflatten(model.shapes), tree.unflatten(model.axes), mesh))
    return tree.unflatten({path: place(leaf, places[path]) for path, leaf in read_leaves(published, model).items()})
