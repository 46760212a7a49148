"""Images a second from 256-pixel JPEG pairs to 224-pixel batches: mmjax's loader beside PyTorch's DataLoader with Pillow.

    python tests/benchmarks/data_throughput.py --workers 2 --peer-python ENV/bin/python

Makes the pairs on the spot, then runs the two in turn, each in processes of its own, on the same cores with the same number of
workers, and prints one JSON object: every round, the medians and their ratio. Both decode with Pillow, resize the short side to
224 bicubically, crop at random, flip, normalise and tokenise with one tokenizer.json. ENV needs torch, Pillow, numpy and
tokenizers, and no mmjax; without --peer-python this interpreter serves if it has them, else only mmjax is timed.
"""

import argparse
import io
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
from PIL import Image

MEAN, STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
LENGTH = 32
WORDS = ("a", "photo", "of", "the", "small", "red", "green", "dog", "cat", "house", "under", "near", "two", "people", "tree", "water")


def make_pairs(folder: Path, count: int) -> None:
    """`count` JPEG files of short side 256 with noise on a smooth ground (about 30 kB each), captions.json and tokenizer.json."""
    from mmjax.data import tokenizer

    rng = np.random.default_rng(0)
    captions = []
    for i in range(count):
        width, height = ((256, 341), (341, 256), (256, 256), (384, 256))[i % 4]
        ground = Image.fromarray(rng.integers(0, 256, (9, 12, 3), np.uint8)).resize((width, height), Image.Resampling.BICUBIC)
        noisy = np.asarray(ground) + rng.normal(0, 6, (height, width, 3))
        Image.fromarray(np.clip(noisy, 0, 255).astype(np.uint8)).save(folder / f"{i:05}.jpg", quality=90)
        captions.append(" ".join(rng.choice(WORDS, rng.integers(5, 20))))
    (folder / "captions.json").write_text(json.dumps(captions))
    tokenizer.train(captions, 640).save(folder / "tokenizer.json")


class Pairs:
    """Item i: the bytes of image i and its caption. A source of mmjax, and what the peer's data set reads."""

    def __init__(self, folder: str):
        self.folder = Path(folder)
        self.captions = json.loads((self.folder / "captions.json").read_text())
        self.read = 0

    def __len__(self) -> int:
        return len(self.captions)

    def __getitem__(self, i: int) -> dict:
        self.read += 1
        caption = f"{self.captions[i]} {self.read}"  # never the same twice, as in a large set: no cache of texts helps
        return {"image": (self.folder / f"{i:05}.jpg").read_bytes(), "caption": caption}


def timed(batches, batch_size: int, seconds: float, began: float) -> dict:
    """Images a second once two batches have come, and the seconds to the first."""
    next(batches)
    first = time.perf_counter() - began
    next(batches)
    start, count = time.perf_counter(), 0
    while time.perf_counter() - start < seconds:
        next(batches)
        count += 1
    return {"images_per_second": count * batch_size / (time.perf_counter() - start), "first_batch_seconds": first}


def run_mmjax(folder: str, workers: int, batch_size: int, seconds: float) -> dict:
    from mmjax.data import tokenizer, transforms
    from mmjax.data.loader import batches
    from mmjax.data.source import Info

    began = time.perf_counter()
    source = Pairs(folder)
    source.info = Info("pairs", "train", (), (), None, {"image": "JPEG", "caption": "text"})
    chain = transforms.build(
        (
            ("decode", {}),
            ("resize", {"size": 224, "short_side": True}),
            ("random_crop", {"size": 224}),
            ("flip", {}),
            ("normalize", {"mean": MEAN, "std": STD}),
            ("tokenize", {"length": LENGTH}),
            ("keep", {"keys": ("image", "tokens")}),
        ),
        tokenizer.load(Path(folder) / "tokenizer.json"),
    )
    with batches(source, chain, batch_size=batch_size, seed=0, workers=workers, threads=1, prefetch=2 * max(workers, 1)) as data:
        return timed(data, batch_size, seconds, began)


class PeerData:
    """The same work as a PyTorch data set: Pillow until the crop, then torch, step by step as torchvision's transforms do it."""

    def __init__(self, folder: str):
        import torch
        from tokenizers import Tokenizer

        self.pairs, self.tokenizer = Pairs(folder), Tokenizer.from_file(str(Path(folder) / "tokenizer.json"))
        self.start, self.end = (self.tokenizer.token_to_id(x) for x in ("<|startoftext|>", "<|endoftext|>"))
        self.mean, self.std = (torch.tensor(x)[:, None, None] for x in (MEAN, STD))

    def __len__(self) -> int:
        return len(self.pairs)

    def __getitem__(self, i: int) -> dict:
        import torch

        item = self.pairs[i]
        image = Image.open(io.BytesIO(item["image"])).convert("RGB")
        short = min(image.size)
        image = image.resize(tuple(int(224 * side / short) for side in image.size), Image.Resampling.BICUBIC)
        left, top = (int(torch.randint(0, side - 224 + 1, (1,))) for side in image.size)
        image = image.crop((left, top, left + 224, top + 224))
        if torch.rand(1) < 0.5:
            image = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
        pixels = torch.from_numpy(np.array(image, copy=True)).permute(2, 0, 1).contiguous().to(torch.float32).div(255)
        pixels = pixels.sub_(self.mean).div_(self.std)
        ids = self.tokenizer.encode(item["caption"], add_special_tokens=False).ids[: LENGTH - 2]
        tokens = torch.zeros(LENGTH, dtype=torch.int32)
        tokens[: len(ids) + 2] = torch.tensor([self.start, *ids, self.end], dtype=torch.int32)
        return {"image": pixels, "tokens": tokens}


def run_torch(folder: str, workers: int, batch_size: int, seconds: float) -> dict:
    from torch.utils.data import DataLoader

    began = time.perf_counter()
    options = {"persistent_workers": True, "prefetch_factor": 2} if workers else {}
    loader = DataLoader(PeerData(folder), batch_size, shuffle=True, drop_last=True, num_workers=workers, **options)

    def endless():
        while True:
            yield from loader

    return timed(endless(), batch_size, seconds, began)


def child(python: str, role: str, folder: str, args: argparse.Namespace) -> dict:
    """One timing in a process of its own."""
    command = [python, __file__, "--role", role, "--folder", folder, "--workers", str(args.workers), "--batch", str(args.batch)]
    root = str(Path(__file__).resolve().parents[2])
    env = {**os.environ, "OMP_NUM_THREADS": "1", **({"PYTHONPATH": root} if role == "mmjax" else {})}
    done = subprocess.run([*command, "--seconds", str(args.seconds)], capture_output=True, text=True, env=env, timeout=600)
    if done.returncode:
        raise SystemExit(f"{role} failed:\n{done.stderr[-3000:]}")
    return json.loads(done.stdout.splitlines()[-1])


def has_torch(python: str) -> bool:
    return not subprocess.run([python, "-c", "import torch, tokenizers, PIL"], capture_output=True).returncode


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", type=int, default=400)
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--workers", type=int, default=2, help="worker processes of both")
    parser.add_argument("--seconds", type=float, default=5.0, help="of each timing")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--peer-python", default=sys.executable, help="an interpreter with torch, Pillow and tokenizers")
    parser.add_argument("--role", choices=("mmjax", "torch"), help=argparse.SUPPRESS)
    parser.add_argument("--folder", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.role:
        run = run_mmjax if args.role == "mmjax" else run_torch
        print(json.dumps(run(args.folder, args.workers, args.batch, args.seconds)))
        return
    with tempfile.TemporaryDirectory() as folder:
        make_pairs(Path(folder), args.pairs)
        pythons = {"mmjax": sys.executable, **({"torch": args.peer_python} if has_torch(args.peer_python) else {})}
        rounds: dict[str, list] = {role: [] for role in pythons}
        for i in range(args.rounds):
            for role in sorted(pythons, reverse=bool(i % 2)):  # in turn, each first as often
                rounds[role].append(child(pythons[role], role, folder, args))
    median = {role: {key: statistics.median(r[key] for r in rs) for key in rs[0]} for role, rs in rounds.items()}
    out = {"workers": args.workers, "batch": args.batch, "cores": len(os.sched_getaffinity(0)), "median": median, "rounds": rounds}
    if "torch" in median:
        out["ratio"] = median["mmjax"]["images_per_second"] / median["torch"]["images_per_second"]
    print(json.dumps(out, indent=1))


if __name__ == "__main__":
    main()
