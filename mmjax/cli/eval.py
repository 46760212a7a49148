"""`mmjax eval`: a run's evaluations on one of its checkpoints, and its report."""

import argparse
import json
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np

from mmjax import evals
from mmjax.cli import hosts, picture_sheets
from mmjax.cli.program import Program, assemble
from mmjax.core import checkpoint_read, ema, tree
from mmjax.core import config as config_lib
from mmjax.core.errors import UserError
from mmjax.core.types import Params
from mmjax.data.transforms import Decode
from mmjax.evals.accuracy import confusion
from mmjax.evals.few_shot import FewShot, Found
from mmjax.evals.generated import Generated
from mmjax.evals.zero_shot import ZeroShot

SHOWN = 60  # pictures in the report


def main(args: argparse.Namespace) -> int:
    if args.pipeline is not None:
        from mmjax.cli import eval_pipeline

        return eval_pipeline.main(args)
    if args.workdir is None:
        raise UserError("mmjax eval takes a run, --workdir DIR, or the stages of unCLIP, --pipeline FILE.json; give one of the two")
    hosts.join(args)
    config = config_lib.override(config_lib.open_workdir(args.workdir), args.overrides)
    if not len(config.evals):
        raise UserError(f"the config of '{args.workdir}' has no evaluations; set config.evals and train, or evaluate another run")
    program = assemble(config)
    evaluators = {}
    for name, group in config.evals.items():
        group = group.copy_and_resolve_references()
        if args.split:
            group.split = args.split
        evaluators[name] = evals.make(name, program.task.predict, group, program.mesh, config.data)
    workdir = Path(args.workdir)
    step, weights, params = load_params(program, workdir, args.step, args.ema_std)
    found = {name: run(name, evaluate, params, workdir, workdir if args.report else None) for name, evaluate in evaluators.items()}
    scalars = {f"{name}/{k}": v for name, scores in found.items() for k, v in scores.items()}
    split = args.split or ",".join(sorted({group.split for group in config.evals.values()}))
    told = {f"{name}/of": evaluate.told() for name, evaluate in evaluators.items() if hasattr(evaluate, "told")}
    if hosts.first():
        print(json.dumps({"step": step, "split": split, "weights": weights, **scalars, **told}, indent=1))
    if args.report:
        zero_shot = next((e for e in evaluators.values() if isinstance(e, ZeroShot)), None)
        shown = {} if zero_shot is None else pictures(zero_shot, params)
        if hosts.first():
            path = write_report(workdir, config, step, split, {**scalars, **told}, shown)
            print(f"report: {path}", file=sys.stderr)
    return 0


def run(
    name: str, evaluate: Callable[[Params], Mapping[str, float]], params: Params, workdir: Path, folder: Path | None
) -> Mapping[str, float]:
    """The scores of one evaluation. Of generated pictures every score and its sheets go to `folder`, with a report; what was answered to
    questions goes to `workdir`, in the form `mmjax score` reads, always."""
    if isinstance(evaluate, FewShot):
        found = evaluate.found(params)
        if hosts.first():
            write_predictions(name, found, workdir)
        return evaluate.scalars(found)
    if folder is None or not isinstance(evaluate, Generated):
        return evaluate(params)
    found = evaluate.scored(params)
    if hosts.first():
        (folder / f"{name}.json").write_text(json.dumps(found.plain(), indent=1) + "\n")
        picture_sheets.write(found, folder / f"{name}_failures.png", folder / f"{name}_nearest.png" if found.likeness else None)
        print(f"{name}: {folder / name}.json, {name}_failures.png", file=sys.stderr)
    return found.scalars()


def write_predictions(name: str, found: Mapping[int, Found], workdir: Path) -> None:
    """`workdir/predictions/NAME_SHOTS_shots.json`."""
    folder = workdir / "predictions"
    folder.mkdir(exist_ok=True)
    for shots, one in found.items():
        path = folder / f"{name}_{shots}_shots.json"
        path.write_text(json.dumps(one.predictions, indent=1) + "\n")
        print(f"{name}, {shots} shots: {path}", file=sys.stderr)


def load_params(program: Program, workdir: Path, step: int | None, ema_std: float | None = None) -> tuple[int, str, Params]:
    """(step, what the weights are, evaluation parameters in their places) of a checkpoint, the newest by default: averaged ones where the
    config has an average; of the width `ema_std`, made of the run's snapshots, if it is given.

    Raises:
      UserError: no checkpoint, a damaged one, or one of another model; no snapshots.
    """
    places = {p: x.sharding for p, x in tree.flatten(program.abstract.params).items()}
    shardings = lambda path, x: places.get(path)
    average = None if ema_std is not None else program.ema_name()
    trees = ("params", f"ema/{average}") if average else ("params",)
    weights = trees[-1]
    found, params = checkpoint_read.read_params(workdir / "checkpoints", trees, step, shardings=shardings)
    if ema_std is not None:
        at, count, averaged = ema.synthesise(workdir, program.config.ema, ema_std, found, shardings)
        params, weights = tree.merge(params, averaged), f"average of std {ema_std} at step {at}, made of {count} snapshots"
    checkpoint_read.check_same(
        tree_shapes(params), tree_shapes(program.abstract.params), f"checkpoint {found} of '{workdir}' (against its config.json)"
    )
    return found, weights, params


def tree_shapes(params: Params) -> dict[str, dict[str, Any]]:
    """path -> shape and dtype, as manifests write them."""
    return {p: {"shape": list(x.shape), "dtype": np.dtype(x.dtype).name} for p, x in tree.flatten(params).items()}


def pictures(zero_shot: ZeroShot, params: Params) -> dict[str, Any]:
    """Confusion matrix, and some images with the prompt each likes best: every mistake first, then others at even distances."""
    images, labels, places = zero_shot.images(params)
    allowed = zero_shot.candidates(labels)
    scores = np.where(allowed, images @ zero_shot.classifier(params).T, -np.inf)
    captions, count = zero_shot.texts_of_classes(), len(zero_shot.templates)
    cosine = np.where(np.repeat(allowed, count), images @ zero_shot.texts(params).T, -np.inf)
    best = cosine.argmax(1)
    right = best // count == labels
    wrong = np.flatnonzero(~right)[:SHOWN]
    others = np.flatnonzero(right)
    others = others[np.linspace(0, len(others) - 1, min(SHOWN - len(wrong), len(others))).astype(int)] if len(others) else others
    decode = Decode()
    rng = np.random.default_rng(0)
    samples = []
    for i in (*wrong, *others):
        image = decode(dict(zero_shot.source[int(places[i])]), rng)["image"]
        samples.append((image, captions[best[i]], float(cosine[i, best[i]]), bool(right[i])))
    return {"confusion": confusion(scores, labels), "classes": zero_shot.source.info.classes, "samples": samples}


def write_report(workdir: Path, config: Any, step: int, split: str, scalars: Mapping[str, float], shown: Mapping[str, Any]) -> Path:
    """`workdir/report.html`."""
    from mmjax.cli import report
    from mmjax.core import metrics

    lines = metrics.read(workdir / "metrics.jsonl") if (workdir / "metrics.jsonl").is_file() else []
    devices = jax.devices()
    return report.write(
        workdir,
        metrics=lines,
        config=config_lib.to_dict(config),
        evaluation={"step": step, "split": split, "hardware": f"{len(devices)} x {devices[0].device_kind}", **scalars},
        **{"confusion": None, "classes": (), "samples": [], **shown},
    )
