"""`mmjax eval --pipeline`: what the stages of unCLIP together get right of small scenes, and a page that shows it."""

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import UInt8

from mmjax.cli import report
from mmjax.cli.picture_files import levels
from mmjax.cli.pipeline import Pipeline, open_pipeline
from mmjax.cli.sample_pipeline import Runner, load
from mmjax.core import metrics
from mmjax.core.errors import UserError, suggest
from mmjax.evals import attributes
from mmjax.evals.attributes import Asked
from mmjax.tasks import unclip
from mmjax.tasks.unclip import Given

EMBEDDINGS = (*unclip.EMBEDDINGS, "image")  # and the true picture's, which no prior can better
COUNT = 64  # prompts of one object, and as many of two
SHOWN = 24  # of them on the page
VARIATIONS, FRAMES = 7, 8
FILE = "report.html"


def main(args: argparse.Namespace) -> int:
    if args.workdir is not None:
        raise UserError("--pipeline and --workdir are both given; a pipeline's file names its workdirs")
    pipeline = open_pipeline(args.pipeline, args.overrides)
    how = ablation(pipeline, args.embedding or "prior", not args.no_words)
    for what in [f for f, asks in (("--candidates", (args.candidates or 1) > 1), ("--report", args.report)) if asks]:
        pipeline.need_sight(what)
    asked = attributes.prompts(args.prompts or COUNT)
    runner, stages = load(pipeline, args.batch_size, args.seed)
    pictures = draw(pipeline, runner, asked, **how, count=args.candidates or 1)
    score = attributes.score(pictures, asked)
    found = {"pipeline": str(args.pipeline), "stages": stages, **how, "seed": args.seed, "prompts": len(asked), "scores": score.plain()}
    found["seconds"] = {name: {k: round(v, 2) for k, v in told.items()} for name, told in runner.seconds.items()}
    print(json.dumps(found, indent=1))
    if args.report:
        path = write_report(pipeline, runner, asked, pictures, found)
        print(f"report: {path}", file=sys.stderr)
    return 0


def ablation(pipeline: Pipeline, embedding: str, words: bool) -> dict[str, Any]:
    """What the decoder is given, checked against the pipeline.

    Raises:
      UserError: an unknown name, no prior, or a decoder that would be told nothing.
    """
    if embedding not in EMBEDDINGS:
        raise UserError(f"--embedding is {embedding!r}{suggest(embedding, EMBEDDINGS)}")
    if embedding == "image":
        pipeline.need_sight("--embedding image")
    if embedding == "prior" and "prior" not in pipeline.stages:
        raise UserError(f"--pipeline '{pipeline.file}' lacks the stage 'prior'; add it, or decode without one: --embedding text")
    if embedding == "nothing" and not (words and pipeline.chain.words):
        raise UserError("--embedding nothing: the decoder would be told nothing at all, neither an embedding nor the caption's words")
    return {"embedding": embedding, "words": words}


def draw(
    pipeline: Pipeline, runner: Runner, asked: Sequence[Asked], *, embedding: str, words: bool, count: int = 1
) -> UInt8[np.ndarray, "P S S C"]:
    """A picture a prompt."""
    tokens, _ = pipeline.tokens([one.text for one in asked])
    if embedding != "image":
        return levels(runner.texts_to_images(tokens, embedding=embedding, words=words, count=count))
    numbers = np.arange(len(asked), dtype=np.int32)
    true = attributes.pictures(asked, pipeline.stages["clip"].size).astype(np.float32) / 255
    given = runner.of_pictures(true, noise=False)
    drawn = runner.decode(given, numbers, tokens=tokens if words else None)
    return levels(runner.enlarge(drawn, numbers))


def write_report(pipeline: Pipeline, runner: Runner, asked: Sequence[Asked], pictures: np.ndarray, found: dict[str, Any]) -> Path:
    """The page beside the pipeline's file."""
    percent = lambda x: f"{100 * x:.1f} %"
    scores = [
        (name, percent(s["mean"]), f"{percent(s['low'])} to {percent(s['high'])}", percent(s["chance"]))
        for name, s in found["scores"].items()
    ]
    chosen = [i for k in (1, 2) for i in [i for i, one in enumerate(asked) if len(one.scene.objects) == k][: SHOWN // 2]]
    zero_shot = [(name, percent(value), percent(1 / classes)) for name, value, classes in clip_accuracy(pipeline)]
    stages = [(role, told["workdir"], f"{told['step']:,}", told["weights"]) for role, told in found["stages"].items()]
    seconds = [
        (name, f"{t['run']:.2f}", f"{1000 * t['run'] / max(t['rows'], 1):.0f}", f"{t['compile']:.1f}")
        for name, t in found["seconds"].items()
    ]
    sections = [
        ("Words in, pictures out", report.figures([(pictures[i], asked[i].text) for i in chosen], "Each drawn once; none is chosen.")),
        ("Of what was asked for, how much is there", report.table(("", "right", "95 % interval", "chance"), scores)),
        ("CLIP, zero-shot on single objects", report.table(("", "right", "chance"), zero_shot)),
        *manipulations(pipeline, runner, asked),
        ("Seconds", report.table(("stage", "all", "milliseconds each", "compiling"), seconds)),
        ("Stages", report.table(("stage", "run", "step", "weights"), stages)),
    ]
    title = f"unCLIP in {pipeline.size} pixels"
    return report.write_page(pipeline.file.parent / FILE, title, f"{len(asked)} prompts · seed {found['seed']}", sections)


def clip_accuracy(pipeline: Pipeline) -> list[tuple[str, float, int]]:
    """(classes, zero-shot accuracy, how many classes) as CLIP's own run last measured them."""
    path = pipeline.stages["clip"].path / "metrics.jsonl"
    last: dict[str, Any] = {}
    for line in metrics.read(path) if path.is_file() else ():
        last |= line
    sizes = {"colour": 10, "shape": 8}
    return [(name, last[f"{name}/clean_accuracy"], n) for name, n in sizes.items() if f"{name}/clean_accuracy" in last]


def manipulations(pipeline: Pipeline, runner: Runner, asked: Sequence[Asked]) -> list[tuple[str, str]]:
    """Variations of a true picture and an interpolation between two."""
    ends = [asked[-1], asked[-2]]
    true = attributes.pictures(ends, pipeline.size)
    given = runner.of_pictures(true.astype(np.float32) / 255)
    numbers = np.arange(VARIATIONS, dtype=np.int32)
    first = Given(*(None if x is None else np.repeat(x[:1], VARIATIONS, axis=0) for x in given))
    varied = levels(runner.enlarge(runner.decode(first, numbers, eta=1.0), numbers))
    between, share = runner.between(given, FRAMES)
    return [
        (
            "Variations",
            report.figures([(true[0], "the picture"), *[(p, f"variation {i + 1}") for i, p in enumerate(varied)]], ends[0].text),
        ),
        (
            "Interpolation",
            report.figures(
                [(p, f"{s:.2f}") for p, s in zip(levels(between), share, strict=True)], f"From {ends[0].text!r} to {ends[1].text!r}."
            ),
        ),
    ]
