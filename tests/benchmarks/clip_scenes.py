"""CLIP, SigLIP and LiT on scenes, several seeds each, and the table that compares them.

    python tests/benchmarks/clip_scenes.py --root runs/ablation [--kinds resnet siglip lit] [--seeds 0 1 2] [--out FILE.json] [key=value]

Trains configs/clip/scenes.py once a kind and seed (what is done already is not done again; LiT locks the image tower of kind resnet of
the same seed), takes the evaluations of the last step, on averaged weights, and writes them to results/clip_scenes.json and the table as
Markdown beside it. Further key=value words go to every run.
"""

import argparse
import json
import os
import platform
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

from tests.benchmarks.finished_runs import last, train  # noqa: E402

# heading -> metric; all are fractions
COLUMNS = {
    "colour": "colour/clean_accuracy",
    "shape": "shape/clean_accuracy",
    "colour, a wrong word beside it": "colour/typographic_accuracy",
    "image to text R@1": "retrieval/image_to_text_r1",
    "text to image R@1": "retrieval/text_to_image_r1",
    "two objects, attributes exchanged": "hard_negatives/swap_att",
    "swaps: text": "swaps/text",
    "swaps: image": "swaps/image",
    "swaps: group": "swaps/group",
}


def trained(kind: str, seed: int, root: Path, words: list[str]) -> Path:
    """The workdir of a finished run."""
    tower = [f"init_from.path={trained('resnet', seed, root, words)}"] if kind == "lit" else []
    return train(f"clip/scenes.py:{kind}", root / f"{kind}-{seed}", f"seed={seed}", *words, *tower)


def table(rows: list[dict]) -> str:
    """Markdown, one line a run."""
    percent = lambda value: "" if value is None else f"{100 * value:.1f} %"
    lines = [["", "seed", *COLUMNS], ["---"] * (2 + len(COLUMNS))]
    lines += [[r["kind"], str(r["seed"]), *(percent(r["metrics"].get(name)) for name in COLUMNS.values())] for r in rows]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--root", type=Path, required=True, help="folder of the workdirs")
    parser.add_argument("--kinds", nargs="+", default=["resnet", "siglip", "lit"])
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--out", type=Path, default=ROOT / "results" / "clip_scenes.json")
    parser.add_argument("words", nargs="*", metavar="key=value")
    args = parser.parse_intermixed_args()
    rows = []
    for seed in args.seeds:  # every kind of one seed first: a run that is stopped leaves a comparison
        for kind in args.kinds:
            found = last(trained(kind, seed, args.root, args.words))
            scores = {name: found[name] for name in sorted(found) if "/" in name and not name.startswith(("train/", "optim/"))}
            rows.append({"kind": kind, "seed": seed, "step": found["step"], "metrics": scores})
            result = {
                "machine": platform.machine(),
                "cores": os.cpu_count(),
                "words": [w for w in args.words if not w.startswith("data.dir=")],
                "runs": rows,
            }
            args.out.parent.mkdir(parents=True, exist_ok=True)
            args.out.write_text(json.dumps(result, indent=1) + "\n")
            args.out.with_suffix(".md").write_text(table(rows))
    print(table(rows))


if __name__ == "__main__":
    main()
