"""Flamingo on scenes, several seeds and ablations, and the table that compares them.

    python tests/benchmarks/flamingo_scenes.py --root runs/flamingo [--kinds flamingo ungated] [--seeds 0 1 2] [--out FILE.json] [key=value]

For every seed trains the language model (configs/lm/scenes.py) and the vision tower (configs/flamingo/scenes.py:vision), then every kind
of configs/flamingo/scenes.py on them. Takes the evaluations of the last step, on averaged weights, asks the language model alone, reads the
captions back for what is false in them, and writes results/flamingo_scenes.json and the table as Markdown beside it.

What is done is not done again, and what was stopped goes on. `--only-train` trains and makes no table; without `--kinds` after it the
towers alone are trained: `--kinds --only-train`. So several processes may share the work, each with its own kinds or seeds; two that need
the same tower wait for each other. The table is then made by the same words without `--only-train`.

Further words reach the runs of kinds; `lm.KEY=VALUE`, `vision.KEY=VALUE` those of a tower, `ungated.KEY=VALUE` those of one kind and
`all.KEY=VALUE` all of them. `--examples` makes every set smaller, `--count` asks fewer questions. All of it in minutes, to see it run:

    python tests/benchmarks/flamingo_scenes.py --root DIR --out DIR/table.json --kinds flamingo vanilla --seeds 0 \\
        --examples 200 32 --count 16 all.steps=4 all.optim.warmup=2 vision.batch_size=32
"""

import argparse
import contextlib
import fcntl
import json
import os
import platform
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

from mmjax import evals  # noqa: E402
from mmjax.cli.eval import load_params  # noqa: E402
from mmjax.cli.program import assemble  # noqa: E402
from mmjax.core import config as config_lib  # noqa: E402
from mmjax.data.source import open_source  # noqa: E402
from mmjax.data.stream import overlaid  # noqa: E402
from tests.benchmarks.finished_runs import CONFIGS, last, train  # noqa: E402
from tests.scene_parser import Unreadable, claims, false_claims  # noqa: E402

KINDS = ("flamingo", "ungated", "vanilla", "previous", "mlp", "unfrozen", "frame")
TOWERS = {"lm": "lm/scenes.py", "vision": "flamingo/scenes.py:vision"}
MEASURED = "measured.json"  # in a workdir: what was measured after training, and at which step
# heading -> metric; fractions, but for CIDEr
COLUMNS = {
    "qa": "qa/accuracy_0",
    "qa, another's picture": "qa_shuffled/accuracy_0",
    "qa, no picture": "qa_none/accuracy_0",
    "qa, the language model alone": "lm/accuracy_0",
    "captions: CIDEr": "captions/cider_d_0",
    "captions: all true": "captions/true",
    "video": "video/accuracy_0",
    "video, no picture": "video_none/accuracy_0",
    **{f"{task}, {shots} shots": f"prompts/accuracy/{task}, {shots} shots" for task in ("question", "count") for shots in (0, 4, 8)},
}


# --- training ----------------------------------------------------------------------------------------------------------------


def trained(name: str, config: str, args: argparse.Namespace, seed: int, *more: str) -> Path:
    """The workdir of a tower or kind of a seed, when it is finished; another process that trains it is waited for."""
    workdir = args.root / f"{name}-{seed}"
    words = [f"seed={seed}", *more, *smaller(config, args), *meant(name, args.words)]
    with alone_in(args.root / f".{name}-{seed}.lock"):
        return train(config, workdir, *words)


@contextlib.contextmanager
def alone_in(path: Path) -> Iterator[None]:
    """Holds a lock, which ends with the process."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def meant(name: str, words: list[str]) -> list[str]:
    """Those of the words that are for the runs of a tower or kind."""
    parts = [(word.partition(".")[0], word) for word in words]
    wanted = ("all", name)
    own = [word.partition(".")[2] for first, word in parts if first in wanted]
    return own if name in TOWERS else own + [word for first, word in parts if first not in ("all", *TOWERS, *KINDS)]


def smaller(config: str, args: argparse.Namespace) -> list[str]:
    """Words that make the sets of a config no larger than `--examples` says, and ask `--count` questions."""
    c = config_lib.load(str(CONFIGS / config)).to_dict()
    words = [] if args.count is None else [f"evals.{name}.count={args.count}" for name, group in c["evals"].items() if "count" in group]
    if args.examples is not None:
        words += list(_smaller(c, "", *args.examples))
    return words


def _smaller(tree: Mapping[str, Any], at: str, train: int, evaluation: int) -> Iterator[str]:
    for name, value in tree.items():
        if name == "scenes":
            yield f"{at}scenes.train={min(train, value['train'])}"
            yield f"{at}scenes.evaluation={min(evaluation, value['evaluation'])}"
        elif isinstance(value, Mapping):
            yield from _smaller(value, f"{at}{name}.", train, evaluation)
        elif name == "mixture" and value:
            yield f"{at}mixture={tuple((weight, _cut(keys, train, evaluation)) for weight, keys in value)!r}"


def _cut(keys: Mapping[str, Any], train: int, evaluation: int) -> dict[str, Any]:
    """A mixture's component with a smaller set."""
    if "scenes" not in keys:
        return dict(keys)
    scenes = keys["scenes"]
    fewer = {"train": min(train, scenes["train"]), "evaluation": min(evaluation, scenes["evaluation"])}
    return {**keys, "scenes": {**scenes, **fewer}}


# --- what is measured after it -----------------------------------------------------------------------------------------------


def asked(workdir: Path, group: dict):
    """An evaluator of a finished run, and its averaged weights."""
    program = assemble(config_lib.open_workdir(workdir))
    evaluator = evals.make("asked", program.task.predict, group, program.mesh, program.config.data)
    return evaluator, load_params(program, workdir, None)[2]


def alone(lm: Path, group: dict) -> dict[str, float]:
    """What the language model says to the questions, told nothing else."""
    keys = {"pictures": "none", "layout": "idefics", "text_only": 0}
    evaluator, params = asked(lm, {**group, **keys, "every": 1})
    return {f"lm/{name}": value for name, value in evaluator(params).items()}


def true_captions(workdir: Path) -> dict[str, float]:
    """The share of captions that the parser can read and of which everything is true of the picture's scene."""
    config = config_lib.open_workdir(workdir)
    evaluator, params = asked(workdir, dict(config.evals.captions))
    (found,) = evaluator.found(params).values()
    scenes = open_source(overlaid(config.data, config.evals.captions.data, "captions"), "validation")
    right = [is_true(one["caption"], json.loads(scenes[int(one["image_id"])]["scene"])) for one in found.predictions]
    return {"captions/true": sum(right) / len(right)}


def is_true(text: str, graph: dict) -> bool:
    """Whether a caption claims something and nothing false."""
    try:
        return bool(claims(text)) and not false_claims(text, graph)
    except (Unreadable, ValueError, LookupError, TypeError, AttributeError, AssertionError, StopIteration):
        return False


def measured(workdir: Path, step: int, measure: Any) -> dict[str, float]:
    """What `measure()` gives of a run, which is kept beside it for as long as that is not trained further."""
    path = workdir / MEASURED
    known = json.loads(path.read_text()) if path.is_file() else {}
    if known.get("step") != step:
        known = {"step": step, "metrics": measure()}
        path.write_text(json.dumps(known) + "\n")
    return known["metrics"]


def table(rows: list[dict]) -> str:
    """Markdown, one line a run."""
    shown = lambda name, value: "" if value is None else f"{value:.2f}" if "cider" in name else f"{100 * value:.1f} %"
    lines = [["", "seed", *COLUMNS], ["---"] * (2 + len(COLUMNS))]
    lines += [[r["kind"], str(r["seed"]), *(shown(name, r["metrics"].get(name)) for name in COLUMNS.values())] for r in rows]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--root", type=Path, required=True, help="folder of the workdirs")
    parser.add_argument("--kinds", nargs="*", default=list(KINDS), choices=KINDS)
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--out", type=Path, default=ROOT / "results" / "flamingo_scenes.json")
    parser.add_argument("--only-train", action="store_true", help="make no table")
    parser.add_argument("--examples", nargs=2, type=int, metavar=("TRAIN", "EVALUATION"), help="of every set, at most")
    parser.add_argument("--count", type=int, help="questions and captions of an evaluation")
    parser.add_argument("words", nargs="*", metavar="key=value")
    args = parser.parse_intermixed_args()
    rows = []
    for seed in args.seeds:  # every kind of one seed first: a run that is stopped leaves a comparison
        lm, vision = (trained(name, config, args, seed) for name, config in TOWERS.items())
        towers = [f"model.weights.lm={lm}", f"model.weights.vision={vision}"]
        for kind in args.kinds:
            workdir = trained(kind, f"flamingo/scenes.py:{kind}", args, seed, *towers)
            if args.only_train:
                continue
            found, group = last(workdir), dict(config_lib.open_workdir(workdir).evals.qa)
            found |= measured(workdir, found["step"], lambda workdir=workdir: true_captions(workdir))
            found |= measured(lm, last(lm)["step"], lambda lm=lm, group=group: alone(lm, group))
            scores = {name: found[name] for name in sorted(found) if "/" in name}
            rows.append({"kind": kind, "seed": seed, "step": found["step"], "seconds": found.get("seconds"), "metrics": scores})
            result = {"machine": platform.machine(), "cores": os.cpu_count(), "words": args.words, "runs": rows}
            args.out.parent.mkdir(parents=True, exist_ok=True)
            args.out.write_text(json.dumps(result, indent=1) + "\n")
            args.out.with_suffix(".md").write_text(table(rows))
    if rows:
        print(table(rows))


if __name__ == "__main__":
    main()
