"""Diffusion on the scanned digits, several kinds and seeds, and what their pictures are worth.

    python tests/benchmarks/diffusion_digits.py --root runs/digits_diffusion [--kinds ddpm flow_class flow_text edm] [--seeds 0 1 2] \\
        [--sweep ddpm] [--pictures 500]

Trains the classifier that judges (configs/classification/digits.py) and configs/diffusion/digits.py once a kind and seed, what is done
already excepted. Of every run: the share of pictures that the classifier puts into the class asked for; bits a dimension of the first
scans of the test split by the probability-flow ODE, and by the variational bound where the path is discrete; and, of the kinds of --sweep,
the Frechet distance to the training split, in the classifier's features, of every solver at several numbers of network evaluations.
Distances in those features are no FID.
Writes results/diffusion_digits.json, a table as Markdown and a plot beside it, and a grid of pictures a kind.
"""

import argparse
import json
import os
import statistics
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

import jax  # noqa: E402
import numpy as np  # noqa: E402
from ml_collections import ConfigDict  # noqa: E402
from PIL import Image  # noqa: E402

from mmjax import evals  # noqa: E402
from mmjax.cli.eval import load_params  # noqa: E402
from mmjax.cli.program import assemble  # noqa: E402
from mmjax.core import config as config_lib  # noqa: E402
from tests.benchmarks.finished_runs import train  # noqa: E402

KINDS = ("ddpm", "flow_class", "flow_text", "edm")
BUDGETS = (5, 10, 20, 50)  # network evaluations
# solver -> steps for so many evaluations; heun looks twice a step but at the last, which needs an even budget one less
SOLVERS = {
    "ddim": lambda n: n,
    "dpmpp_2m": lambda n: n,
    "dpmpp_2m_sde": lambda n: n,
    "euler": lambda n: n,
    "heun": lambda n: (n + 1) // 2,
    "euler_maruyama": lambda n: n,
}
SHOWN = (("decode", {"channels": 1}), ("keep", {"keys": ("image", "label")}))
SIGNED = (("decode", {"channels": 1}), ("normalize", {"mean": 0.5, "std": 0.5}), ("keep", {"keys": ("image", "label")}))
LIKELY = "test[:120]"  # whose likelihood is asked: the bound looks a thousand times at each
TOLERANCE = 1e-4  # of the ODE; at 1e-3 and 1e-2 the bits differ by less than 0.01
DRAW = {"ddpm": "sample", "flow_text": "text_to_image"}  # else class_to_image


def timed(config: str, workdir: Path, words: list[str]) -> float:
    """Seconds; of a run that is finished already nothing is done."""
    began = time.perf_counter()
    train(config, workdir, *words)
    return time.perf_counter() - began


def opened(workdir: Path, words: list[str]):
    """The run's program under another sampler, and its averaged parameters."""
    program = assemble(config_lib.override(config_lib.open_workdir(workdir), words))
    return program, load_params(program, workdir, None)[2]


def shown(kind: str) -> tuple:
    """Transforms of a split, with the tokens that pictures are drawn of."""
    if kind != "flow_text":
        return SHOWN
    return (
        ("decode", {"channels": 1}),
        ("pick_caption", {}),
        ("tokenize", {"length": 16}),
        ("keep", {"keys": ("image", "label", "tokens")}),
    )


def evaluate(workdir: Path, words: list[str], name: str, group: dict) -> dict[str, float]:
    """The scores of one evaluation of a run."""
    program, params = opened(workdir, words)
    made = evals.make(name, program.task.predict, ConfigDict({"batch_size": 250, "every": 1} | group), program.mesh, program.config.data)
    return dict(made(params))


def measure(kind: str, workdir: Path, judge: Path, pictures: int, sweep: bool, data: list[str]) -> dict:
    """Everything of one run; distances of every solver if `sweep`."""
    features = {"type": "checkpoint", "path": str(judge), "name": "classifier", "function": "image_features"}
    draw, out = DRAW.get(kind, "class_to_image"), {}
    if kind != "ddpm":
        group = {"type": "agreement", "split": "test", "transforms": shown(kind), "draw": draw, "n": pictures, "seed": 0, "judge": features}
        out["agreement"] = evaluate(workdir, data, "agreement", group)
    if kind != "flow_text":
        group = {"type": "likelihood", "split": LIKELY, "batch_size": 120, "transforms": SIGNED, "seed": 0, "labels": kind != "ddpm"}
        accuracy = {"rtol": TOLERANCE, "atol": TOLERANCE}
        out["ode"] = evaluate(workdir, data, "likelihood", {**group, "bound": False, "options": accuracy})
        if kind == "ddpm":
            out["bound"] = evaluate(workdir, data, "likelihood", {**group, "bound": True})
    if not sweep:
        return out
    out["frechet"] = {}
    for solver, steps in SOLVERS.items():
        for budget in BUDGETS:
            words = [f"model.sampler.solver={solver}", f"model.sampler.steps={steps(budget)}", *data]
            group = {"type": "fid", "split": "train", "transforms": shown(kind), "draw": draw, "n": pictures, "seed": 0}
            group |= {"features": features, "reference": "", "metrics": ("frechet",)}
            found = evaluate(workdir, words, "frechet", group)["frechet_classifier_features"]
            out["frechet"].setdefault(solver, {})[budget] = found
            print(f"   {kind} {solver} {budget}: {found:.3f}", file=sys.stderr, flush=True)
    return out


def grid(kind: str, workdir: Path, path: Path, data: list[str]) -> None:
    """Ten pictures of each class, a row a class, or a hundred of none; four times their size, a pixel apart."""
    program, params = opened(workdir, data)
    draw, keys = DRAW.get(kind, "class_to_image"), jax.vmap(jax.random.key)(np.arange(100))
    given = ()
    if draw == "class_to_image":
        given = (np.repeat(np.arange(10, dtype=np.int32), 10),)
    if draw == "text_to_image":
        from mmjax.data.digits_captions import WORDS
        from mmjax.data.source import open_source, open_tokenizer

        words = open_tokenizer(open_source(program.config.data, "train"), program.config.data.tokenizer)
        given = (words.encode([f"the digit {word}" for word in WORDS for _ in range(10)], 16),)
    x = np.asarray(jax.jit(program.task.predict[draw])(params, *given, keys))[..., 0]
    framed = np.pad(x, ((0, 0), (0, 1), (0, 1)), constant_values=0.5)
    rows = framed.reshape(10, 10, 9, 9).transpose(0, 2, 1, 3).reshape(90, 90)
    Image.fromarray(np.round(255 * rows).astype(np.uint8)).resize((360, 360), Image.NEAREST).save(path, optimize=True)


def mean_of(rows: list[dict], *keys: str) -> str:
    """Mean over seeds, and the range."""
    found = []
    for row in rows:
        value = row["scores"]
        for key in keys:
            value = value.get(key, {}) if isinstance(value, dict) else {}
        if isinstance(value, float):
            found.append(value)
    return "" if not found else f"{statistics.mean(found):.3f} ({min(found):.3f} to {max(found):.3f})"


def table(rows: list[dict]) -> str:
    """Markdown: a line a kind, then a line a kind and solver."""
    by_kind = {kind: [r for r in rows if r["kind"] == kind] for kind in dict.fromkeys(r["kind"] for r in rows)}
    lines = ["| kind | seeds | as asked | bits/dim, ODE | bits/dim, bound |", "|---|---|---|---|---|"]
    for kind, own in by_kind.items():
        cells = [mean_of(own, "agreement", "agreement"), mean_of(own, "ode", "bits_per_dimension")]
        cells.append(mean_of(own, "bound", "bits_per_dimension_bound"))
        lines.append(f"| {kind} | {len(own)} | {' | '.join(cells)} |")
    lines += ["", f"| kind | solver | {' | '.join(f'{n} evaluations' for n in BUDGETS)} |", "|---|---|" + "---|" * len(BUDGETS)]
    for kind, own in by_kind.items():
        for solver in own[0]["scores"].get("frechet", {}):
            lines.append(f"| {kind} | {solver} | {' | '.join(mean_of(own, 'frechet', solver, n) for n in map(str, BUDGETS))} |")
    return "\n".join(lines) + "\n"


def plot(rows: list[dict], path: Path) -> None:
    """Frechet distance against evaluations, a panel a kind."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    rows = [r for r in rows if "frechet" in r["scores"]]
    kinds = list(dict.fromkeys(r["kind"] for r in rows))
    figure, axes = pyplot.subplots(1, len(kinds), figsize=(3.2 * len(kinds), 3.2), layout="constrained", sharey=True, squeeze=False)
    for axis, kind in zip(axes[0], kinds, strict=True):
        for solver in SOLVERS:
            values = [[r["scores"]["frechet"][solver][str(n)] for r in rows if r["kind"] == kind] for n in BUDGETS]
            (line,) = axis.plot(BUDGETS, [statistics.mean(v) for v in values], marker=".", label=solver)
            axis.fill_between(BUDGETS, [min(v) for v in values], [max(v) for v in values], color=line.get_color(), alpha=0.2)
        axis.set(title=kind, xlabel="network evaluations", xscale="log", yscale="log")
        axis.set_xticks(BUDGETS, map(str, BUDGETS))
        axis.minorticks_off()
        axis.grid(alpha=0.3)
    axes[0][0].set_ylabel("Frechet distance, classifier's features")
    axes[0][-1].legend(fontsize=7)
    figure.savefig(path, dpi=100)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--root", type=Path, required=True, help="folder of the workdirs")
    parser.add_argument("--kinds", nargs="+", default=list(KINDS))
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--sweep", nargs="*", default=["ddpm"], help="kinds whose solvers are compared")
    parser.add_argument("--pictures", type=int, default=500)
    parser.add_argument("--out", type=Path, default=ROOT / "results" / "diffusion_digits.json")
    parser.add_argument("words", nargs="*", metavar="key=value", help="for every run")
    args = parser.parse_intermixed_args()
    data = [w for w in args.words if w.startswith("data.")]
    judge = args.root / "judge"
    timed("classification/digits.py", judge, data)
    args.out.parent.mkdir(parents=True, exist_ok=True)
    for seed in args.seeds:
        for kind in args.kinds:
            workdir = args.root / f"{kind}-{seed}"
            done = workdir / "scores.json"
            if not done.is_file():
                seconds = timed(f"diffusion/digits.py:{kind}", workdir, [f"seed={seed}", *args.words])
                scores = {"seconds": seconds, **measure(kind, workdir, judge, args.pictures, kind in args.sweep, data)}
                done.write_text(json.dumps(scores))
            if seed == args.seeds[0]:
                grid(kind, workdir, args.out.with_name(f"{args.out.stem}_{kind}.png"), data)
    rows = [
        {"kind": kind, "seed": seed, "scores": json.loads((args.root / f"{kind}-{seed}" / "scores.json").read_text())}
        for seed in args.seeds
        for kind in args.kinds
    ]
    words = [w for w in args.words if not w.startswith("data.dir=")]
    result = {"cores": os.cpu_count(), "jax": jax.__version__, "pictures": args.pictures, "words": words, "runs": rows}
    args.out.write_text(json.dumps(result, indent=1) + "\n")
    args.out.with_suffix(".md").write_text(table(rows))
    if any("frechet" in row["scores"] for row in rows):
        plot(rows, args.out.with_suffix(".png"))
    print(table(rows))


if __name__ == "__main__":
    main()
