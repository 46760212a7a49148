"""`mmjax sample`: pictures from a trained run, with a grid of them and, where asked for, an animation of the way from noise."""

import argparse
import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jaxtyping import Float, Shaped, UInt8
from ml_collections import ConfigDict

from mmjax.cli import picture_files
from mmjax.cli.eval import load_params
from mmjax.cli.picture_files import SHOWN, levels
from mmjax.cli.program import Program, assemble
from mmjax.core import config as config_lib
from mmjax.core import rng
from mmjax.core.errors import UserError
from mmjax.core.progress import Progress
from mmjax.core.types import Params
from mmjax.data.source import open_source, open_tokenizer
from mmjax.evals import encode
from mmjax.tasks import guides
from mmjax.tasks.diffusion_sampling import Sampler

# flag -> key of config.model.sampler
FLAGS = {"solver": "solver", "solver_steps": "steps", "spacing": "spacing", "guidance": "guidance"}
# attribute -> flag of what only a chain of stages does.
CHAINED = {
    "candidates": "--candidates",
    "variations_of": "--variations-of",
    "interpolate": "--interpolate",
    "text_diff": "--text-diff",
    "pca_of": "--pca-of",
    "dims": "--dims",
    "embedding": "--embedding",
    "no_words": "--no_words",
    "eta": "--eta",
    "noise": "--noise",
    "reach": "--reach",
}
# What a picture is drawn for, by the predict function that a task has.
FUNCTIONS = {"text_to_image": "prompts", "class_to_image": "labels", "sample": None}
FRAMES = 40  # of the animation, at most
NUM = 64  # pictures, where --num does not say


def main(args: argparse.Namespace) -> int:
    if args.pipeline is not None:
        from mmjax.cli import sample_pipeline

        return sample_pipeline.main(args)
    if args.workdir is None:
        raise UserError(
            "mmjax sample draws with a run, --workdir DIR, or with a chain of several, --pipeline FILE.json; give one of the two"
        )
    refuse(args, CHAINED, "--pipeline")
    args.num = NUM if args.num is None else args.num
    config = complete(config_lib.open_workdir(args.workdir), args.workdir)
    config = config_lib.override(config, args.overrides)
    configure(config, args)
    out = Path(args.out)
    picture_files.check_new(out)
    program = assemble(config)
    name, asked = conditions(program, args)
    step, weights, params = load_params(program, Path(args.workdir), args.step, args.ema_std)
    drawn, way = draw(program, params, name, asked, args)
    record = {
        "workdir": str(args.workdir),
        "step": step,
        "weights": weights,
        "seed": args.seed,
        "sampler": config_lib.to_dict(config.model.sampler),
        "pictures": [{"file": f"{i:05d}.png", **_told(name, asked, i, args)} for i in range(len(drawn))],
    }
    picture_files.write(out, drawn, way, record)
    print(json.dumps({k: v for k, v in record.items() if k != "pictures"} | {"num": len(drawn), "out": str(out)}, indent=1))
    return 0


def refuse(args: argparse.Namespace, flags: Mapping[str, str], other: str) -> None:
    """Raises UserError where one of the flags (attribute -> flag) is given, which go with `other`."""
    for name, flag in flags.items():
        value = getattr(args, name)
        if value is not None and value is not False:
            raise UserError(f"{flag} goes with {other}; leave it out")


def complete(config: ConfigDict, workdir: str) -> ConfigDict:
    """The config with every key of its sampler's group, so that words can set them.

    Raises:
      UserError: the run's task draws no pictures.
    """
    if "sampler" not in config.model:
        raise UserError(f"the run '{workdir}' is of task '{config.task}', whose config.model has no sampler: it draws no pictures")
    with config.unlocked():
        config.model.sampler = ConfigDict({**dataclasses.asdict(Sampler()), **config_lib.to_dict(config.model.sampler)})
        for group in ("options", "times"):
            config.model.sampler[group].unlock()
    return config


def configure(config: ConfigDict, args: argparse.Namespace) -> None:
    """Puts the flags into the sampler's group of the config."""
    if args.num < 1:
        raise UserError(f"--num is {args.num}, expected at least 1")
    with config.unlocked():
        sampler = config.model.sampler
        if args.solver is not None and args.solver != sampler.solver:
            sampler.options = ConfigDict()  # another solver's
        for flag, key in FLAGS.items():
            if getattr(args, flag) is not None:
                sampler[key] = getattr(args, flag)


def conditions(program: Program, args: argparse.Namespace) -> tuple[str, Shaped[np.ndarray, "N ..."] | None]:
    """The predict function, and what each picture is drawn for: tokens or labels; None where the model has no condition.

    Prompts and labels are gone through in turn until there are `--num` pictures.

    Raises:
      UserError: the task draws no pictures; prompts for a model of classes, and the like; a class that does not exist.
    """
    predict = program.task.predict
    name = next((n for n in FUNCTIONS if n in predict), None)
    if name is None:
        raise UserError(f"the run '{args.workdir}' has no function that draws pictures ({', '.join(FUNCTIONS)}); it has {sorted(predict)}")
    wanted = FUNCTIONS[name]
    for flag in ("prompts", "labels"):
        if getattr(args, flag) and flag != wanted:
            takes = f"takes --{'prompt' if wanted == 'prompts' else 'labels'}" if wanted else "has no condition"
            raise UserError(f"--{'prompt' if flag == 'prompts' else flag} was given, but the run '{args.workdir}' {takes}")
    if wanted is None:
        return name, None
    if wanted == "labels":
        guide = program.config.model.sampler.get("classifier")
        classes = program.task.limits["label"] if guide is None or "label" in program.task.limits else guides.classes(guide["path"])
        labels = args.labels or list(range(classes))
        wrong = [label for label in labels if not 0 <= label < classes]
        if wrong:
            raise UserError(f"--labels has {wrong[0]}, expected classes from 0 to {classes - 1}")
        return name, np.resize(np.array(labels, np.int32), args.num)
    if not args.prompts:
        raise UserError(f"the run '{args.workdir}' draws what it is told: give --prompt \"...\", once or several times")
    source = open_source(program.config.data, program.config.data.split)
    tokenizer = open_tokenizer(source, program.config.data.tokenizer)
    if tokenizer is None:
        raise UserError(f"source '{source.info.name}' has no tokenizer; name one with data.tokenizer=FILE")
    length = program.task.batch_spec["tokens"].shape[1]
    tokens = tokenizer.encode(args.prompts, length)
    return name, tokens[np.arange(args.num) % len(tokens)]


def _told(name: str, asked: np.ndarray | None, i: int, args: argparse.Namespace) -> dict[str, Any]:
    if asked is None:
        return {}
    return {"label": int(asked[i])} if FUNCTIONS[name] == "labels" else {"prompt": args.prompts[i % len(args.prompts)]}


def draw(
    program: Program, params: Params, name: str, asked: np.ndarray | None, args: argparse.Namespace
) -> tuple[UInt8[np.ndarray, "N H W C"], UInt8[np.ndarray, "F n H W C"] | None]:
    """All pictures, and the way of the first of them from noise where `--animate` asks for it. Picture i follows from seed and i alone."""
    key = rng.named(rng.wrap(rng.root(args.seed)), "sample")
    size = encode.pad_to_mesh(min(args.batch_size, args.num), program.mesh)
    function = program.task.predict[name]

    def call(params: Params, *given: Any, **how: Any) -> Any:
        *conditions, numbers = given
        return function(params, *conditions, rng.per_example(key, numbers), **how)

    arrays = (*(() if asked is None else (asked,)), np.arange(args.num, dtype=np.int32))
    progress = Progress(args.num, batch_size=1, unit="picture")
    progress.say(f"compiling {program.config.model.sampler.solver} for {size} pictures at a time")
    progress.start()
    out = []
    for x in encode.rows(encode.compile_over(program.mesh, call), params, arrays, size, program.mesh):
        out.append(levels(x))
        progress.update(sum(map(len, out)))
    progress.close()
    if not args.animate:
        return np.concatenate(out), None
    first = min(size, SHOWN, args.num)
    states = jax.jit(lambda *a: call(*a, trajectory=True))(params, *(a[:first] for a in arrays))
    return np.concatenate(out), levels(_thinned(np.asarray(states)))


def _thinned(way: Float[np.ndarray, "T n H W C"]) -> Float[np.ndarray, "F n H W C"]:
    """At most FRAMES of the states, the first and the last among them."""
    return way[np.unique(np.linspace(0, len(way) - 1, min(FRAMES, len(way))).round().astype(int))]
