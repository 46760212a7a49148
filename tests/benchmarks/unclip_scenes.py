"""The chain of unCLIP on scenes, its ablations and several seeds: the compositional score of each, in one table.

    python tests/benchmarks/unclip_scenes.py --root runs/unclip_seeds [--set clear] [--seeds 0 1 2] [--prompts 100] [--out FILE.json]

Trains the stages of launch/quickstart.sh and the autoregressive prior once a seed (what is done is not done again), and draws the same
prompts of one and of two objects with every row: the chain; the true picture's embedding in place of the prior's, which is the most that a
prior can reach; the caption's own embedding; the caption's words alone; the embedding alone; no guidance; the autoregressive prior; a sweep
of guidance; four candidates. Intervals are 95 %, over prompts. Written to results/unclip_scenes.json, the table as Markdown beside it.
"""

import argparse
import json
import os
import platform
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

from mmjax.cli import eval_pipeline  # noqa: E402
from mmjax.cli.pipeline import open_pipeline  # noqa: E402
from mmjax.cli.sample_pipeline import load  # noqa: E402
from mmjax.evals import attributes  # noqa: E402

GUIDANCE = (1.0, 1.5, 2.0, 3.0, 5.0)
UNGUIDED = ("prior.model.sampler.guidance=1.0", "decoder.model.sampler.guidance=1.0")
# Row -> (prior, embedding, whether words are told, candidates, overrides).
ROWS: dict[str, tuple[str, str, bool, int, tuple[str, ...]]] = {
    "chain, diffusion prior": ("prior", "prior", True, 1, ()),
    "chain, autoregressive prior": ("ar_prior", "prior", True, 1, ()),
    "true image embedding": ("prior", "image", True, 1, ()),
    "text embedding, no prior": ("prior", "text", True, 1, ()),
    "caption's words alone": ("prior", "nothing", True, 1, ()),
    "embedding alone": ("prior", "prior", False, 1, ()),
    "true image embedding alone": ("prior", "image", False, 1, ()),
    "text embedding alone": ("prior", "text", False, 1, ()),
    "autoregressive prior, embedding alone": ("ar_prior", "prior", False, 1, ()),
    "no guidance": ("prior", "prior", True, 1, UNGUIDED),
    "best of 4 candidates": ("prior", "prior", True, 4, ()),
    **{f"decoder guidance {s:g}": ("prior", "prior", True, 1, (f"decoder.model.sampler.guidance={s}",)) for s in GUIDANCE},
}


def train(root: Path, which: str, seed: int) -> dict[str, Path]:
    """Pipeline files, by prior, of the stages of a seed."""
    folder = root / f"{which}-{seed}"
    environment = {**os.environ, "SET": which}
    subprocess.run(["bash", str(ROOT / "launch/quickstart.sh"), str(folder), f"all.seed={seed}"], check=True, env=environment)
    own = [f"data.path={folder / 'pairs'}", f"seed={seed}"]
    config = f"{ROOT / 'configs/unclip/chain.py'}:ar_prior:{which}"
    command = [sys.executable, "-m", "mmjax.cli.main", "train", "--config", config, "--workdir", str(folder / "ar_prior"), *own]
    subprocess.run(command, check=True)
    body = json.loads((folder / "pipeline.json").read_text())
    (folder / "pipeline_ar.json").write_text(json.dumps({**body, "prior": "ar_prior"}) + "\n")
    return {"prior": folder / "pipeline.json", "ar_prior": folder / "pipeline_ar.json"}


def measure(files: dict[str, Path], row: str, count: int, seed: int) -> attributes.Score:
    """The score of a row."""
    prior, embedding, words, candidates, overrides = ROWS[row]
    pipeline = open_pipeline(files[prior], overrides)
    runner, _ = load(pipeline, 64, seed)
    asked = attributes.prompts(count)
    drawn = eval_pipeline.draw(pipeline, runner, asked, embedding=embedding, words=words, count=candidates)
    return attributes.score(drawn, asked)


def table(rows: dict[str, dict]) -> str:
    """Markdown, a line a row; percent with the interval."""
    categories = list(next(iter(rows.values())))
    cell = lambda s: f"{100 * s['mean']:.1f} ({100 * s['low']:.1f}-{100 * s['high']:.1f})"
    lines = [["", *categories], ["---"] * (1 + len(categories))]
    lines += [[name, *(cell(found[c]) for c in categories)] for name, found in rows.items()]
    chance = next(iter(rows.values()))
    lines.append(["chance", *(f"{100 * chance[c]['chance']:.1f}" for c in categories)])
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--root", type=Path, required=True, help="folder of the seeds' folders")
    parser.add_argument("--set", default="clear", choices=("clear", "objects", "smoke"))
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--prompts", type=int, default=100, help="of one object, and as many of two")
    parser.add_argument("--rows", nargs="+", choices=ROWS, default=list(ROWS))
    parser.add_argument("--out", type=Path, default=ROOT / "results" / "unclip_scenes.json")
    args = parser.parse_args()
    scores: dict[str, list[attributes.Score]] = {row: [] for row in args.rows}
    for done, seed in enumerate(args.seeds, 1):  # every row of one seed first: a run that is stopped leaves a comparison
        files = train(args.root, args.set, seed)
        for row in args.rows:
            scores[row].append(measure(files, row, args.prompts, seed))
            print(row, seed, {k: round(m.mean, 3) for k, m in scores[row][-1].categories.items()}, file=sys.stderr, flush=True)
        rows = {row: attributes.pooled(found) for row, found in scores.items()}
        machine = {"machine": platform.machine(), "cores": os.cpu_count()}
        args.out.parent.mkdir(parents=True, exist_ok=True)
        args.out.write_text(json.dumps({**machine, "set": args.set, "seeds": args.seeds[:done], "rows": rows}, indent=1) + "\n")
        args.out.with_suffix(".md").write_text(table(rows))
    print(table(rows))


if __name__ == "__main__":
    main()
