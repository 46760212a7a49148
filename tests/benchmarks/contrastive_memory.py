"""Memory and time of the contrastive loss's gradient against batch size, for each form, with the exponents fitted.

    python tests/benchmarks/contrastive_memory.py --out results/contrastive_memory [--forms dense,ring] [--sizes 2048,...,131072]

Every point is a process of its own: it notes what memory it holds, makes unit-norm embeddings, takes the gradient by images, texts and
log_scale, and notes the most it held from then on (VmHWM of Linux). What is reported, "above the inputs", is all that came on top but the
embeddings themselves: the result, the compiler and every buffer. Points whose estimated memory exceeds
--limit are left out: a dense gradient holds four B x B matrices. At the --compare size the forms alternate in one process and the median
of the ratios of their times is reported. Writes OUT.json and OUT.png.
"""

import argparse
import json
import platform
import statistics
import subprocess
import sys
import time
from pathlib import Path

import numpy as np

MIB = 2**20


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", default="results/contrastive_memory")
    parser.add_argument("--forms", default="dense,ring")
    parser.add_argument("--sizes", default="2048,4096,8192,16384,32768,65536,131072")
    parser.add_argument("--width", type=int, default=512)
    parser.add_argument("--tile", type=int, default=1024)
    parser.add_argument("--compare", type=int, default=8192, help="batch at which the forms' times are compared; 0 for no comparison")
    parser.add_argument("--rounds", type=int, default=7, help="of the comparison")
    parser.add_argument("--limit", type=int, default=8192, help="MiB; points that need more are left out")
    parser.add_argument("--point", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.point:
        form, size = args.point.split(",")
        print(json.dumps(point(form, int(size), args.width, args.tile)))
        return
    forms, sizes = args.forms.split(","), [int(n) for n in args.sizes.split(",")]
    result = {"width": args.width, "tile": args.tile, "points": [], **machine()}
    for form in forms:
        for size in sizes:
            if form != "ring" and 4 * 4 * size**2 / MIB > args.limit:
                continue
            words = [sys.executable, __file__, "--point", f"{form},{size}", "--width", str(args.width), "--tile", str(args.tile)]
            found = subprocess.run(words, capture_output=True, text=True, check=True).stdout
            result["points"].append(json.loads(found.splitlines()[-1]))
            print(result["points"][-1], file=sys.stderr)
    result["exponents"] = {form: exponents([p for p in result["points"] if p["form"] == form]) for form in forms}
    if args.compare:
        result["comparison"] = compare(forms, args.compare, args.width, args.tile, args.rounds)
    out = Path(args.out)
    out.parent.mkdir(parents=True, exist_ok=True)
    out.with_suffix(".json").write_text(json.dumps(result, indent=1) + "\n")
    draw(result, out.with_suffix(".png"))
    print(json.dumps({k: v for k, v in result.items() if k != "points"}, indent=1))


def machine() -> dict:
    import jax

    return {"device": f"{jax.device_count()} x {jax.devices()[0].device_kind}", "machine": platform.machine(), "jax": jax.__version__}


def gradient(form: str, tile: int):
    """The jitted function (images, texts, log_scale) -> (loss, gradients)."""
    import jax

    from mmjax.objectives.contrastive import info_nce

    return jax.jit(jax.value_and_grad(lambda *a: info_nce(*a, form=form, tile=tile)[0], argnums=(0, 1, 2)))


def inputs(size: int, width: int):
    """Images, texts not too near them, and a scale of 100; made a slice at a time, so that making them leaves no peak behind."""
    import jax.numpy as jnp

    r = np.random.default_rng(0)
    both = [np.empty((size, width), np.float32) for _ in range(2)]
    for start in range(0, size, 1024):
        rows = slice(start, start + 1024)
        both[0][rows] = r.standard_normal(both[0][rows].shape, np.float32)
        both[1][rows] = both[0][rows] + 6 * r.standard_normal(both[0][rows].shape, np.float32)
        for x in both:
            x[rows] /= np.linalg.norm(x[rows], axis=1, keepdims=True)
    return jnp.asarray(both[0]), jnp.asarray(both[1]), jnp.float32(np.log(100))


def held(line: str) -> float:
    """MiB from /proc/self/status: VmRSS, what is held now; VmHWM, the most so far."""
    text = Path("/proc/self/status").read_text()
    return int(next(x for x in text.splitlines() if x.startswith(line)).split()[1]) / 1024


def point(form: str, size: int, width: int, tile: int) -> dict:
    import jax

    jax.block_until_ready(jax.numpy.ones(1) + 1)
    before = held("VmRSS")
    args = jax.block_until_ready(inputs(size, width))
    Path("/proc/self/clear_refs").write_text("5")  # the highest mark starts anew: making the inputs does not count
    run = gradient(form, tile).lower(*args).compile()
    planned = run.memory_analysis()
    began = time.perf_counter()
    value, _ = jax.block_until_ready(run(*args))
    seconds = time.perf_counter() - began
    if seconds < 5:  # long enough to be told from the first run's page faults
        began = time.perf_counter()
        jax.block_until_ready(run(*args))
        seconds = time.perf_counter() - began
    return {
        "form": form,
        "batch": size,
        "mib_above_inputs": held("VmHWM") - before - sum(x.nbytes for x in args) / MIB,
        "mib_planned": (planned.temp_size_in_bytes + planned.output_size_in_bytes) / MIB,
        "seconds": seconds,
        "loss": float(value),
    }


def exponents(points: list[dict]) -> dict[str, float]:
    """Slopes of log memory (as planned by the compiler, without what Python and XLA hold) and log time against log batch."""
    if len(points) < 2:
        return {}
    x = np.log([p["batch"] for p in points])
    fit = lambda key: round(float(np.polyfit(x, np.log([p[key] for p in points]), 1)[0]), 3)
    return {"memory": fit("mib_planned"), "time": fit("seconds")}


def compare(forms: list[str], size: int, width: int, tile: int, rounds: int) -> dict:
    """Seconds of each form, alternating; the ratios are to the first form, round by round."""
    import jax

    args = inputs(size, width)
    run = {form: gradient(form, tile) for form in forms}
    times = {form: [] for form in forms}
    for number in range(rounds + 1):
        for form in forms:
            began = time.perf_counter()
            jax.block_until_ready(run[form](*args))
            if number:  # the first round compiles
                times[form].append(time.perf_counter() - began)
    ratio = lambda form: statistics.median(a / b for a, b in zip(times[form], times[forms[0]], strict=True))
    return {
        "batch": size,
        "seconds_median": {form: statistics.median(t) for form, t in times.items()},
        "seconds_min": {form: min(t) for form, t in times.items()},
        f"ratio_to_{forms[0]}_median": {form: ratio(form) for form in forms},
    }


def draw(result: dict, path: Path) -> None:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots(1, 2, figsize=(10, 4))
    for form, fitted in result["exponents"].items():
        points = [p for p in result["points"] if p["form"] == form]
        batch = [p["batch"] for p in points]
        for axis, key, name in ((axes[0], "mib_above_inputs", "memory"), (axes[1], "seconds", "time")):
            axis.loglog(batch, [p[key] for p in points], "o-", label=f"{form}, {name} ~ B^{fitted.get(name, float('nan')):.2f}")
    for axis, title in zip(axes, ("MiB above the inputs", "seconds a gradient"), strict=True):
        axis.set(xlabel="pairs B", title=title)
        axis.grid(True, which="both", alpha=0.3)
        axis.legend()
    figure.suptitle(f"InfoNCE, width {result['width']}, tile {result['tile']}, {result['device']}")
    figure.tight_layout()
    figure.savefig(path, dpi=120)


if __name__ == "__main__":
    main()
