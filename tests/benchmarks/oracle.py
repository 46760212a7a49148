"""How well the oracle reads: clean pictures of every config and size, blur and noise, pictures that show nothing, and its speed.

    python tests/benchmarks/oracle.py [--scenes 10000] [--large 1000] [--curve 400] [--adversarial 210] [--workers 2] [--part clean ...]

Writes results/oracle.json, after every measurement, and docs/oracle.png. A clean measurement that is there already, of as many scenes, is
not made again, so that what was stopped goes on; --large are the scenes at 128 and 256 pixels. Parts that are not asked for keep what
oracle.json has of them. An object is right if its shape, colour and size are and its place is within 0.02 of the picture's side; an
interval is Wilson's at 95 %. At 32 pixels scenes are those of at most two objects, none small, at 16 those of one large object. `wrong`
numbers the first scenes of split validation in which anything is.
"""

import argparse
import json
import math
import platform
import sys
import time
from collections.abc import Callable
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

from mmjax.data.scenes.sample import CONFIGS  # noqa: E402
from mmjax.evals import oracle  # noqa: E402
from tests.evals import adversarial  # noqa: E402
from tests.evals.readings import Tally, answered, pictures, scenes  # noqa: E402

AT_ONCE = {16: 5000, 32: 5000, 64: 2500, 128: 1000, 256: 400}  # pictures in memory
BLURS = (0.0, 0.5, 1.0, 1.5, 2.0, 2.5, 3.0)
Save = Callable[[], object]
NOISES = (0.0, 0.05, 0.1, 0.15, 0.2, 0.3)


def wilson(right: int, n: int) -> list[float]:
    """95 % interval of a share."""
    if not n:
        return [0.0, 1.0]
    z, p = 1.96, right / n
    middle, half = p + z * z / (2 * n), z * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n))
    return [round((middle + sign * half) / (1 + z * z / n), 5) for sign in (-1, 1)]


def measure(config: str, size: int, n: int, workers: int, **harm: float) -> dict[str, object]:
    """What the oracle makes of n scenes of split validation."""
    tally, numbered = Tally(), scenes(config, "validation", n, size)
    for start in range(0, n, AT_ONCE[size]):
        part = numbered[start : start + AT_ONCE[size]]
        for (i, scene), reading in zip(part, oracle.read(pictures(part, size, **harm), workers), strict=True):
            tally.add(i, scene, reading)
    out = {"pictures": tally.pictures, "objects": tally.objects, "right": tally.right, "false": tally.false, "wrong": tally.wrong[:20]}
    out |= {"share_right": round(tally.right / max(tally.objects, 1), 5), "interval": wilson(tally.right, tally.objects)}
    if tally.words:
        out |= {"words": tally.words, "words_right": tally.words_right, "share_words": round(tally.words_right / tally.words, 5)}
    print(config, size, harm or "clean", {k: v for k, v in out.items() if k != "wrong"}, file=sys.stderr, flush=True)
    return out


def clean(options: argparse.Namespace, found: dict, save: Save) -> None:
    wanted = [(c, size, options.scenes) for size in (64, 32) for c in CONFIGS] + [("objects", 16, options.scenes)]
    wanted += [(c, size, options.large) for size in (128, 256) for c in CONFIGS]
    for config, size, n in wanted:
        name = f"{config} {size}"
        if found.get("clean", {}).get(name, {}).get("pictures") != n:
            found.setdefault("clean", {})[name] = measure(config, size, n, options.workers)
            save()


def curves(options: argparse.Namespace, found: dict, save: Save) -> None:
    points = [(b, 0.0) for b in BLURS] + [(0.0, s) for s in NOISES[1:]] + [(1.0, s) for s in NOISES[1:]]
    found["curves"] = []
    for c in ("objects", "text"):
        for b, s in points:
            found["curves"].append({"config": c, "blur": b, "noise": s} | measure(c, 64, options.curve, options.workers, blur=b, noise=s))
            save()
    draw_curves(found["curves"], options.figure)


def nothing(options: argparse.Namespace, found: dict, save: Save) -> None:
    wrong, count = [], dict.fromkeys(adversarial.KINDS, 0)
    for i in range(options.adversarial):
        kind, picture = adversarial.picture(i)
        count[kind] += 1
        if oracle.read(picture[None])[0] != oracle.Reading():
            wrong.append([i, kind])
    found["nothing"] = {"pictures": options.adversarial, "kinds": count, "reported_something": wrong}
    save()


def answers(options: argparse.Namespace, found: dict, save: Save) -> None:
    """Questions of config qa, answered from the oracle's reading of the picture."""
    said = answered("validation", options.questions, options.workers)
    wrong = [[i, question, mine, right] for i, question, mine, right in said if mine != right]
    found["answers"] = {"questions": len(said), "wrong": wrong, "share_right": round(1 - len(wrong) / len(said), 5)}
    save()


def speed(options: argparse.Namespace, found: dict, save: Save) -> None:
    """Seconds for 1,000 pictures of 64 pixels, the start of the processes included."""
    taken = found["speed"] = {"workers": options.workers, "machine": platform.machine()}
    for config in ("objects", "text"):
        shown = pictures(scenes(config, "train", 1000), 64)
        began = time.perf_counter()
        oracle.read(shown, options.workers)
        taken[f"seconds_per_1000_{config}"] = round(time.perf_counter() - began, 2)
    save()


def draw_curves(points: list[dict[str, object]], path: Path) -> None:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(1, 2, figsize=(9, 3.4), sharey=True, layout="constrained")
    lines = [("objects", "share_right", "objects", "-"), ("text", "share_words", "words", "--")]
    for config, key, label, style in lines:
        mine = [p for p in points if p["config"] == config]
        blurred = [(p["blur"], p[key]) for p in mine if p["noise"] == 0]
        axes[0].plot(*zip(*blurred, strict=True), style, marker="o", color="C0", label=label)
        for k, blur in enumerate((0.0, 1.0)):
            noisy = sorted((p["noise"], p[key]) for p in mine if p["blur"] == blur)
            axes[1].plot(*zip(*noisy, strict=True), style, marker="o", color=f"C{k}", label=f"{label}, blur {blur:g}")
    axes[0].set(xlabel="blur (sigma, pixels of 64)", ylabel="share read right", ylim=(0, 1.03))
    axes[1].set(xlabel="noise (standard deviation, of full scale)")
    for axis in axes:
        axis.grid(alpha=0.3)
        axis.legend(fontsize=8)
    figure.savefig(path, dpi=110)


PARTS = {"clean": clean, "curves": curves, "nothing": nothing, "answers": answers, "speed": speed}


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--scenes", type=int, default=10000)
    parser.add_argument("--large", type=int, default=1000)
    parser.add_argument("--curve", type=int, default=400)
    parser.add_argument("--questions", type=int, default=2000)
    parser.add_argument("--adversarial", type=int, default=210)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--part", nargs="*", choices=PARTS, default=list(PARTS))
    parser.add_argument("--out", type=Path, default=ROOT / "results")
    parser.add_argument("--figure", type=Path, default=ROOT / "docs" / "oracle.png")
    options = parser.parse_args()
    path = options.out / "oracle.json"
    results = json.loads(path.read_text()) if path.exists() else {}
    for part in options.part:
        PARTS[part](options, results, lambda: path.write_text(json.dumps(results, indent=1) + "\n"))


if __name__ == "__main__":
    main()
