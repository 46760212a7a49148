"""Accuracy against examples seen, of runs of several configs and seeds: who learns faster.

    python launch/sweep.py --root runs/objectives --config configs/clip/digits.py:contrast --config configs/clip/digits.py:words \\
        --config configs/clip/digits.py:language seed=0,1,2 evals.zero_shot.every=25 --run
    python tests/benchmarks/examples_seen.py --root runs/objectives --out results/objectives

Reads what the runs logged; draws mean and range over seeds, and states after how many examples the mean first reaches each of
--levels. Writes OUT.json and OUT.png.
"""

import argparse
import json
import statistics
import sys
from collections import defaultdict
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

from mmjax.core import config, metrics  # noqa: E402

Curve = list[tuple[int, list[float]]]  # examples seen, the seeds' values


def curves(root: Path, metric: str) -> dict[str, Curve]:
    """Config folder of a sweep -> its curve."""
    points: dict[str, dict[int, list[float]]] = defaultdict(lambda: defaultdict(list))
    for path in sorted(root.glob("*/*/metrics.jsonl")):
        batch = config.open_workdir(path.parent).batch_size
        for line in metrics.read(path.parent):
            if metric in line:
                points[path.parent.parent.name][line["step"] * batch].append(line[metric])
    return {name: sorted(found.items()) for name, found in points.items()}


def reached(curve: Curve, level: float) -> int | None:
    """Examples after which the mean is at least `level` for the first time; None if it never is."""
    return next((seen for seen, values in curve if statistics.mean(values) >= level), None)


def draw(found: dict[str, Curve], metric: str, path: Path) -> None:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axis = pyplot.subplots(figsize=(6, 3.6), layout="constrained")
    for name, curve in found.items():
        seen = [x for x, _ in curve]
        (line,) = axis.plot(seen, [statistics.mean(v) for _, v in curve], label=name)
        axis.fill_between(seen, [min(v) for _, v in curve], [max(v) for _, v in curve], color=line.get_color(), alpha=0.2)
    axis.set(xlabel="examples seen", ylabel=metric, xscale="log", ylim=(0, 1.02))
    axis.grid(alpha=0.3)
    axis.legend(fontsize=8)
    figure.savefig(path, dpi=110)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--root", type=Path, required=True, help="root of the sweep")
    parser.add_argument("--metric", default="zero_shot/accuracy")
    parser.add_argument("--levels", type=float, nargs="+", default=[0.5, 0.8, 0.9, 0.95])
    parser.add_argument("--out", type=Path, default=ROOT / "results" / "objectives")
    args = parser.parse_args()
    found = curves(args.root, args.metric)
    if not found:
        sys.exit(f"no run under '{args.root}' has logged {args.metric}")
    levels = {name: {str(level): reached(curve, level) for level in args.levels} for name, curve in found.items()}
    result = {"metric": args.metric, "examples_to_reach": levels, "curves": found}
    args.out.parent.mkdir(parents=True, exist_ok=True)
    args.out.with_suffix(".json").write_text(json.dumps(result, indent=1) + "\n")
    draw(found, args.metric, args.out.with_suffix(".png"))
    print(json.dumps(levels, indent=1))


if __name__ == "__main__":
    main()
