"""The index of a million samples in tar shards: how long and in how much memory it is built and opened, and how soon a batch comes.

    python tests/benchmarks/shard_index.py

Writes one shard of 10,000 tiny samples and 100 names for it, builds the index in a process of its own, and in another opens the
source and takes a first batch of 256; prints one JSON object. `peak_mib` is the whole process's, Python and libraries included;
`bare_mib` that of a process that only imports them.
"""

import io
import json
import os
import resource
import subprocess
import sys
import tarfile
import tempfile
import time
from pathlib import Path

from PIL import Image

SHARDS, SAMPLES, BATCH = 100, 10_000, 256


def make(folder: Path) -> None:
    """SHARDS names of one shard: what is read of each is the same, as is the work."""
    picture = io.BytesIO()
    Image.new("RGB", (16, 16), (9, 99, 199)).save(picture, "JPEG")
    with tarfile.open(folder / "shard", "w") as t:
        for i in range(SAMPLES):
            for kind, data in (("jpg", picture.getvalue()), ("txt", b"a photo"), ("json", b'{"caption": "a photo"}')):
                info = tarfile.TarInfo(f"{i:09d}.{kind}")
                info.size = len(data)
                t.addfile(info, io.BytesIO(data))
    for k in range(SHARDS):
        os.link(folder / "shard", folder / f"{k:05d}.tar")


def build(folder: Path) -> dict:
    from mmjax.data import shard_index

    index = shard_index.build_index(f"{folder}/{{00000..{SHARDS - 1:05d}}}.tar", folder / "index", progress=False)
    return {"samples": len(index.records), "index_mib": round((folder / "index").stat().st_size / 2**20, 1)}


def first(folder: Path) -> dict:
    from mmjax.core import config
    from mmjax.data import loader, stream

    data = config.base().data
    data.source, data.path, data.index = "shards", f"{folder}/{{00000..{SHARDS - 1:05d}}}.tar", str(folder / "index")
    data.transforms = (("decode", {}), ("normalize", {}), ("keep", {"keys": ("image",)}))
    began = time.perf_counter()
    s = stream.open_stream(data, 0)
    opened = time.perf_counter() - began
    with loader.batches(s.source, s.transform, batch_size=BATCH, seed=0, order=s.order) as batches:
        next(batches)
        return {"opened_seconds": round(opened, 3), "first_batch_seconds": round(time.perf_counter() - began, 3)}


def bare(folder: Path) -> dict:
    from mmjax.data import shard_index

    return {"module": shard_index.__name__}


def main() -> None:
    if len(sys.argv) == 3:
        role, began = sys.argv[1], time.perf_counter()
        facts = {"build": build, "first": first, "bare": bare}[role](Path(sys.argv[2]))
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10
        print(json.dumps({**facts, "seconds": round(time.perf_counter() - began, 2), "peak_mib": round(peak, 1)}))
        return
    with tempfile.TemporaryDirectory() as folder:
        make(Path(folder))
        run = lambda role: json.loads(subprocess.run([sys.executable, __file__, role, folder], check=True, capture_output=True).stdout)
        bare_mib = run("bare")["peak_mib"]
        print(json.dumps({"build": run("build"), "first": run("first"), "bare_mib": bare_mib, "cores": os.cpu_count()}, indent=1))


if __name__ == "__main__":
    main()
