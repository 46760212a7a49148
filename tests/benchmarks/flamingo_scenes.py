"""Flamingo on scenes, several seeds and ablations, and the table that compares them.

    python tests/benchmarks/flamingo_scenes.py --root runs/flamingo [--kinds flamingo ungated] [--seeds 0 1 2] [--out FILE.json] [key=value]

For every seed trains the language model (configs/lm/scenes.py) and the vision tower (configs/flamingo/scenes.py:vision), then every kind
of configs/flamingo/scenes.py on them; what is done already is not done again. Takes the evaluations of the last step, on averaged weights,
asks the language model alone, reads the captions back for what is false in them, and writes results/flamingo_scenes.json and the table as
Markdown beside it. Further key=value words go to every run of a kind.
"""

import argparse
import json
import os
import platform
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

from mmjax import evals  # noqa: E402
from mmjax.cli.eval import load_params  # noqa: E402
from mmjax.cli.program import assemble  # noqa: E402
from mmjax.core import config as config_lib  # noqa: E402
from mmjax.data.source import open_source  # noqa: E402
from mmjax.data.stream import overlaid  # noqa: E402
from tests.benchmarks.finished_runs import last, train  # noqa: E402
from tests.scene_parser import Unreadable, claims, false_claims  # noqa: E402

KINDS = ("flamingo", "ungated", "vanilla", "previous", "mlp", "unfrozen", "frame")
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
    except (Unreadable, ValueError, IndexError, TypeError, StopIteration):
        return False


def table(rows: list[dict]) -> str:
    """Markdown, one line a run."""
    shown = lambda name, value: "" if value is None else f"{value:.2f}" if "cider" in name else f"{100 * value:.1f} %"
    lines = [["", "seed", *COLUMNS], ["---"] * (2 + len(COLUMNS))]
    lines += [[r["kind"], str(r["seed"]), *(shown(name, r["metrics"].get(name)) for name in COLUMNS.values())] for r in rows]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--root", type=Path, required=True, help="folder of the workdirs")
    parser.add_argument("--kinds", nargs="+", default=list(KINDS))
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--out", type=Path, default=ROOT / "results" / "flamingo_scenes.json")
    parser.add_argument("words", nargs="*", metavar="key=value")
    args = parser.parse_intermixed_args()
    rows = []
    for seed in args.seeds:  # every kind of one seed first: a run that is stopped leaves a comparison
        lm = train("lm/scenes.py", args.root / f"lm-{seed}", f"seed={seed}")
        vision = train("flamingo/scenes.py:vision", args.root / f"vision-{seed}", f"seed={seed}")
        for kind in args.kinds:
            towers = [f"model.weights.lm={lm}", f"model.weights.vision={vision}"]
            workdir = train(f"flamingo/scenes.py:{kind}", args.root / f"{kind}-{seed}", f"seed={seed}", *towers, *args.words)
            found = last(workdir)
            group = dict(config_lib.open_workdir(workdir).evals.qa)
            found |= true_captions(workdir) | alone(lm, group)
            scores = {name: found[name] for name in sorted(found) if "/" in name}
            rows.append({"kind": kind, "seed": seed, "step": found["step"], "seconds": found.get("seconds"), "metrics": scores})
            result = {"machine": platform.machine(), "cores": os.cpu_count(), "words": args.words, "runs": rows}
            args.out.parent.mkdir(parents=True, exist_ok=True)
            args.out.write_text(json.dumps(result, indent=1) + "\n")
            args.out.with_suffix(".md").write_text(table(rows))
    print(table(rows))


if __name__ == "__main__":
    main()
