"""A pipeline file: which runs are the stages of unCLIP, opened and held against each other before anything is computed.

JSON, folders relative to the file's own:

    {
      "clip": "clip",
      "prior": "prior",
      "decoder": {"path": "decoder", "step": 4000, "set": ["model.sampler.guidance=2.0"]},
      "upsamplers": ["up32", "up64"]
    }

`clip` and `decoder` must be there; without `prior` a caption's own embedding can be decoded; `upsamplers` may be left out. A stage is a
workdir, or published weights as mmjax.from_pretrained reads them (a folder or a file), or an object of `path`, `step` (a checkpoint, by
default the newest), `set` (config keys to set), `component` (of a published pipeline's folder) and `image` (of a `clip` that is a text
encoder alone, where its image tower lies).

In place of a file stands a folder of unCLIP as others publish it: diffusers', or Karlo's own files.
"""

import dataclasses
import json
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Array
from ml_collections import ConfigDict

from mmjax.cli.pipeline_stage import NEEDS, UPSAMPLERS, Stage, open_stage
from mmjax.core.errors import UserError, suggest
from mmjax.data import provenance, store
from mmjax.data import tokenizer as tokenizers
from mmjax.data.source import open_source, open_tokenizer
from mmjax.data.tokenizer import Tokenizer
from mmjax.tasks.unclip import Chain, resized

REQUIRED = ("clip", "decoder")
KEYS = ("path", "step", "set", "component", "image")
INDEX = "model_index.json"  # of diffusers' folder
FOLDERS = ("text_encoder", "decoder", "text_proj")  # that it must have
FILES = {"clip": "ViT-L-14.pt", "prior": "prior-ckpt*", "decoder": "decoder-ckpt*", UPSAMPLERS: "*sr-ckpt*"}  # of Karlo's own


@dataclasses.dataclass(frozen=True)
class Pipeline:
    """Stages by role, in the order in which they run."""

    file: Path
    stages: Mapping[str, Stage]
    tokenizer: Tokenizer

    @property
    def mesh(self) -> Mesh:
        return self.stages["clip"].mesh

    @property
    def upsamplers(self) -> tuple[Stage, ...]:
        return tuple(stage for role, stage in self.stages.items() if role.startswith("upsampler"))

    @property
    def size(self) -> int:
        """Pixels a side of what comes out."""
        return (*[self.stages["decoder"]], *self.upsamplers)[-1].size

    @property
    def length(self) -> int:
        """Tokens of a caption."""
        return self.stages["clip"].spec("tokens").shape[1]

    @property
    def chain(self) -> Chain:
        """The stages' functions. CLIP chooses among candidates once they are as large as what it sees."""
        clip, decoder, prior = (self.stages.get(role) for role in ("clip", "decoder", "prior"))
        sizes = [decoder.size, *(stage.size for stage in self.upsamplers)]
        predict = lambda stage: stage.task.predict
        return Chain(
            clip=predict(clip),
            prior=None if prior is None else predict(prior),
            decoder=predict(decoder),
            upsamplers=tuple(map(predict, self.upsamplers)),
            size=decoder.size,
            prepare=prepare(clip.config) if self.sees else lambda pictures: self.need_sight("this"),
            words=decoder.words,
            prior_words="" if prior is None else prior.words,
            told=decoder.told,
            prior_told=() if prior is None else prior.told,
            empty=self._empty,
            end=self.tokenizer.end,
            judged=next((i for i, size in enumerate(sizes) if self.sees and size >= clip.size), len(sizes) - 1),
        )

    @property
    def sees(self) -> bool:
        """Whether CLIP has an image tower; without one captions are drawn, and nothing that begins with a picture or ends in a choice."""
        return "encode_image" in self.stages["clip"].task.predict

    def need_sight(self, what: str) -> None:
        """Raises UserError where `what`, which asks CLIP about pictures, cannot be done."""
        if not self.sees:
            raise UserError(
                f"{what} asks CLIP about pictures, and '{self.stages['clip'].path}' holds its text encoder alone: put its image tower into "
                "the folder as image_encoder, or name a whole CLIP as clip in a pipeline's file"
            )

    @property
    def _empty(self) -> Array | None:
        """Published stages were trained with the empty text's features where there was no caption."""
        if not any(stage.others for stage in self.stages.values()):
            return None
        return jnp.asarray(self.tokenizer.encode([""], self.length))

    def seen_words(self) -> tuple[frozenset[str], str] | None:
        """The words of the set that the prior was trained on (without one, the decoder), and where it lies; None where nobody counted
        them, or the set is not at hand."""
        for role in ("prior", "decoder"):
            if role not in self.stages:
                continue
            data = self.stages[role].config.data
            try:
                found = open_source(data, data.split).info.words
            except UserError:
                continue
            if found is not None:
                return frozenset(found.read_text(encoding="utf-8").split()), str(found.parent)
        return None

    def tokens(self, prompts: Sequence[str]) -> tuple[np.ndarray, list[str]]:
        """int32[P, L] of prompts, and what is to be said of them: what is cut off, and words that training never showed."""
        rows = self.tokenizer.encode(prompts, self.length)
        special = len(self.tokenizer.encode_plain("a", start=None, end=None)) - len(self.tokenizer.encode_plain("a"))
        notices, known = [], self.seen_words()
        for prompt, row in zip(prompts, rows, strict=True):
            count, room = len(self.tokenizer.encode_plain(prompt)), self.length - special
            if count > room:
                notices.append(
                    f"prompt {prompt!r} is {count} tokens and the context holds {room}: the last {count - room} are cut off, it reads "
                    f"{self.tokenizer.decode(row)!r}"
                )
            new = [] if known is None else [w for w in dict.fromkeys(store.words_of(self.tokenizer.decode(row))) if w not in known[0]]
            if new:
                notices.append(
                    f"prompt {prompt!r}: never seen in training: {', '.join(new)} (the words of '{known[1]}'); drawn all the same"
                )
        if known is None:
            notices.append(
                "whether every word was seen in training is not known: the set of the prior is not at hand, or its words were not counted"
            )
        return rows, notices


def open_pipeline(path: str | Path, overrides: Sequence[str] = (), flags: Sequence[str] = ()) -> Pipeline:
    """The stages of a file, held against each other; no weight is read.

    Args:
      overrides: `ROLE.key=value`; `flags`: the same of the decoder, without the role.

    Raises:
      UserError: a file or stage that is missing or damaged, a run unfit for its role, another CLIP, resolutions that do not chain.
    """
    file = Path(path).expanduser()
    wanted = read(file)
    words: dict[str, list[str]] = {role: list(spec.get("set", ())) for role, spec in wanted.items()}
    words["decoder"] += flags
    for word in overrides:
        role, _, rest = word.partition(".")
        if role not in words:
            raise UserError(f"'{word}': with a pipeline a key begins with a stage's name{suggest(role, words)}")
        words[role].append(rest)
    stages: dict[str, Stage] = {}
    mesh = None
    for role, spec in wanted.items():
        stages[role] = open_stage(role, file, spec, words[role], mesh)
        mesh = stages[role].mesh
    check(stages, file)
    return Pipeline(file, stages, words_of_clip(stages))


def words_of_clip(stages: Mapping[str, Stage]) -> Tokenizer:
    """CLIP's tokenizer: its config's own, else the one beside a set that its embeddings were cached in, else beside its own set.

    Raises:
      UserError: there is none.
    """
    own = stages["clip"].config.data.tokenizer
    if own:
        return tokenizers.load(own)
    for role in ("prior", "decoder", "clip"):
        data = stages[role].config.data if role in stages else None
        if data is None:
            continue
        try:
            found = open_tokenizer(open_source(data, data.split))
        except UserError:
            if role == "clip":
                raise
            continue
        if found is not None:
            return found
    raise UserError(f"'{stages['clip'].path}': its set has no tokenizer; name one with clip.data.tokenizer=FILE")


def of_folder(folder: Path) -> dict[str, Any]:
    """What a pipeline file of a published folder would say.

    Raises:
      UserError: it is none, or lacks a part.
    """
    there = lambda name: (folder / name).is_dir()
    if (folder / INDEX).is_file():
        lacking = [name for name in FOLDERS if not there(name)]
        if there("super_res_first") != there("super_res_last"):
            lacking.append("super_res_last" if there("super_res_first") else "super_res_first")
        if lacking:
            raise UserError(f"--pipeline '{folder}' lacks the folder '{lacking[0]}', of those that diffusers' unCLIP has")
        part = lambda component, **more: {"path": folder.name, "component": component, **more}
        image = {"image": str(Path(folder.name) / "image_encoder")} if there("image_encoder") else {}
        out = {"clip": part("text_encoder", **image), "decoder": part("decoder")}
        out |= {"prior": part("prior")} if there("prior") else {}
        return out | ({UPSAMPLERS: [part("super_res")]} if there("super_res_first") else {})
    found = {role: sorted(folder.glob(pattern)) for role, pattern in FILES.items()}
    wrong = [role for role, files in found.items() if len(files) != 1 and (files or role in REQUIRED)]
    if wrong:
        files = ", ".join(path.name for path in found[wrong[0]]) or "none"
        raise UserError(
            f"--pipeline '{folder}' is a folder, and neither diffusers' (no {INDEX}) nor Karlo's: of {FILES[wrong[0]]}, its {wrong[0]}, it "
            f"has {files}; give a pipeline's file"
        )
    one = {role: str(Path(folder.name) / files[0].name) for role, files in found.items() if files}
    return {role: [path] if role == UPSAMPLERS else path for role, path in one.items()}


def read(file: Path) -> dict[str, dict[str, Any]]:
    """Role -> `path` and the rest of it, of a pipeline file or a published folder.

    Raises:
      UserError: no such file, no JSON, an unknown key, or a stage that is missing.
    """
    try:
        found = of_folder(file) if file.is_dir() else json.loads(file.read_text(encoding="utf-8"))
    except OSError as e:
        raise UserError(f"--pipeline '{file}' cannot be read: {e.strerror}") from None
    except ValueError as e:
        raise UserError(f"--pipeline '{file}' is no JSON: {e}") from None
    if not isinstance(found, dict):
        raise UserError(f"--pipeline '{file}': expected an object of stages, {', '.join(NEEDS)}")
    for key in found:
        if key not in NEEDS:
            raise UserError(f"--pipeline '{file}': no stage is called {key!r}{suggest(key, NEEDS)}")
    for role in REQUIRED:
        if role not in found:
            raise UserError(
                f"--pipeline '{file}' lacks the stage {role!r}; it needs {' and '.join(REQUIRED)}, and may have {', '.join(NEEDS)}"
            )
    ups = found.get(UPSAMPLERS, [])
    if not isinstance(ups, list):
        raise UserError(f"--pipeline '{file}': {UPSAMPLERS} is to be a list, from the smallest on")
    order = {role: found[role] for role in ("clip", "prior", "decoder") if role in found} | {f"upsampler{i}": s for i, s in enumerate(ups)}
    return {role: _spec(file, role, spec) for role, spec in order.items()}


def _spec(file: Path, role: str, given: Any) -> dict[str, Any]:
    spec = {"path": given} if isinstance(given, str) else given
    if not isinstance(spec, dict) or not isinstance(spec.get("path"), str):
        raise UserError(f"--pipeline '{file}': {role} is {given!r}, expected a workdir, or an object with its 'path'")
    for key in spec:
        if key not in KEYS:
            raise UserError(f"--pipeline '{file}': {role} has an unknown key {key!r}{suggest(key, KEYS)}")
    return spec


def check(stages: Mapping[str, Stage], file: Path) -> None:
    """Raises UserError: another CLIP, widths or lengths that differ, resolutions that do not chain."""
    clip = stages["clip"]
    for role in [role for role, stage in stages.items() if stage.published and role in ("prior", "decoder") and stage.path != clip.path]:
        print(f"mmjax: {role} '{stages[role].path}' does not say whose embeddings it was trained on; that is left to you", file=sys.stderr)
    width, length = clip.config.model.embed, clip.spec("tokens").shape[1]
    for role in ("prior", "decoder"):
        if role not in stages:
            continue
        stage = stages[role]
        where = f"--pipeline '{file}': {role} '{stage.path}'"
        made = {} if stage.published else provenance.models(stage.path)
        if not made and not stage.published:
            raise UserError(
                f"{where} was not trained on embeddings that mmjax cache stored, so nothing says whose they were; train it on such a set"
            )
        for mark, lay in made.items():
            if mark != clip.fingerprint:
                raise UserError(
                    f"{where} was trained on embeddings of another CLIP (fingerprint {mark}, the set at '{lay}'), and '{clip.path}' at "
                    f"step {clip.at} is {clip.fingerprint}: name the run and step that made the set, or cache anew and train on that"
                )
        for key in ("embedding", "text_embedding"):
            spec = stage.spec(key)
            if spec is not None and spec.shape[1] != width:
                raise UserError(f"{where} takes embeddings of {spec.shape[1]} numbers, and those of '{clip.path}' have {width}")
        spec = stage.spec("tokens") or stage.spec("context")
        if spec is not None and spec.shape[1] != length:
            raise UserError(f"{where} takes captions of {spec.shape[1]} tokens, and '{clip.path}' of {length}")
    before = stages["decoder"]
    for role, stage in stages.items():
        if not role.startswith("upsampler"):
            continue
        small = stage.config.model.low_resolution["size"]
        if small != before.size:
            raise UserError(
                f"--pipeline '{file}': {role} '{stage.path}' enlarges pictures of {small} pixels to {stage.size}, and "
                f"{before.role} '{before.path}' draws {before.size}; put in between what is missing, or correct the order"
            )
        before = stage


def prepare(config: ConfigDict) -> Callable[[Array], Array]:
    """Pictures in 0..1, of any size, as the image tower of a CLIP run takes them."""
    size, channels = config.model.size, config.model.channels
    found = next((dict(args) for name, args in config.data.transforms if name == "normalize"), None)
    given = (0.0, 1 / 255) if found is None else (found.get("mean", 0.5), found.get("std", 0.5))
    mean, std = (jnp.broadcast_to(jnp.asarray(v, jnp.float32), (channels,)).reshape(1, 1, 1, -1) for v in given)

    def prepared(pictures: Array) -> Array:
        x = resized(pictures, size)
        if x.shape[-1] != channels:
            x = x.mean(-1, keepdims=True) if channels == 1 else jnp.repeat(x, channels, axis=-1)
        return (x - mean) / std

    return prepared
