"""Every path x prediction x solver against a Gaussian mixture whose denoiser is known: one table.

    python tests/benchmarks/solvers.py [--samples 4096] [--paths flow,vp] [--predictions v] [--solvers heun] [--out FILE] [--table FILE]

For each cell: NFE, looks at the network; the ratio of the sliced Wasserstein distance between samples and truth to that between two true
samples of the same size (1 is perfect, 3 the bound the tests hold); and for each path x solver the order of convergence fitted to four
numbers of steps (of moments, for stochastic solvers). Prints the table as Markdown and writes it and the JSON. A quarter of an hour on
two cores.
"""

import argparse
import json
import platform
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

import jax  # noqa: E402

from mmjax.diffusion.prediction import PREDICTIONS  # noqa: E402
from tests.diffusion import solver_grid as grid  # noqa: E402

HEAD = """\
# Every path, prediction and solver on a Gaussian mixture

Written by `python tests/benchmarks/solvers.py`; what the columns are: [reproducing.md](reproducing.md#every-path-prediction-and-solver).

"""


def measure(paths: list[str], predictions: list[str], solvers: list[str], samples: int) -> list[dict]:
    """One row a path x solver, with a ratio for every prediction."""
    rows = []
    for name in paths:
        for solver in solvers:
            refused = {p: reason for p in predictions if (reason := grid.refused(name, p, solver))}
            nfe, ratio = grid.cells(name, solver, [p for p in predictions if p not in refused], samples)
            ratio = {p: round(ratio[p], 3) if p in ratio else None for p in predictions}
            fitted = grid.order(name, solver)
            fitted = None if fitted is None else round(fitted, 3)
            row = {"path": name, "solver": solver, "nfe": nfe, "ratio": ratio, "order": fitted, "expected": grid.RUNS[solver].order}
            if refused:
                row["refused"] = refused
            rows.append(row)
            print(f"{name:24s} {solver:20s} {row['ratio']} {row['order']}", file=sys.stderr, flush=True)
    return rows


def table(rows: list[dict], predictions: list[str]) -> str:
    """Markdown. A dash stands for a prediction that says nothing at a time the solver looks at, and for a solver without an order."""
    cell = lambda v, digits: "-" if v is None else f"{v:.{digits}f}"
    head = ["path", "solver", "NFE", *predictions, "order", "expected"]
    lines = ["| " + " | ".join(head) + " |", "|" + " --- |" * len(head)]
    for r in rows:
        ratios = [cell(r["ratio"][p], 2) for p in predictions]
        lines.append(
            "| " + " | ".join([r["path"], r["solver"], str(r["nfe"]), *ratios, cell(r["order"], 2), cell(r["expected"], 0)]) + " |"
        )
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--samples", type=int, default=grid.SAMPLES)
    for name, known in (("paths", grid.PATHS), ("predictions", PREDICTIONS), ("solvers", grid.RUNS)):
        parser.add_argument(f"--{name}", default=",".join(known), help="comma-separated; all by default")
    parser.add_argument("--out", type=Path, default=ROOT / "results" / "solvers.json")
    parser.add_argument("--table", type=Path, default=ROOT / "docs" / "solvers_table.md")
    args = parser.parse_args()
    chosen = {name: getattr(args, name).split(",") for name in ("paths", "predictions", "solvers")}
    began = time.perf_counter()
    rows = measure(chosen["paths"], chosen["predictions"], chosen["solvers"], args.samples)
    text = table(rows, chosen["predictions"])
    print(text)
    about = {
        "samples": args.samples,
        "jax": jax.__version__,
        "machine": platform.machine(),
        "seconds": round(time.perf_counter() - began),
    }
    args.out.write_text(json.dumps({**about, "rows": rows}, indent=1) + "\n")
    args.table.write_text(HEAD + text)


if __name__ == "__main__":
    main()
