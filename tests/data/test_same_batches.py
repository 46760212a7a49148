"""A batch is a pure function of (seed, cursor): the same hashes over real sources whatever reads them, wherever they lie."""

import hashlib
import shutil

import fsspec
import numpy as np
import pytest

from mmjax.core import config as config_lib
from mmjax.data import loader
from mmjax.data.stream import open_stream
from tests.sets import write_jsonl, write_shards, write_tfds

BATCH, COUNT, SEED = 24, 6, 5  # of 100 records: the fifth batch crosses into the second epoch
DRAWS = (("decode", {"channels": 1}), ("random_crop", {"size": 6}), ("flip", {}), ("normalize", {}), ("keep", {"keys": ("image",)}))


@pytest.fixture(scope="module")
def sets(tmp_path_factory):
    root = tmp_path_factory.mktemp("sets")
    write_jsonl(root / "lines", 100)
    write_shards(root / "shards", (13, 29, 7, 31, 20))
    write_tfds(root / "tfds", 100)
    return root


@pytest.fixture(autouse=True)
def home(tmp_path, monkeypatch):
    monkeypatch.setenv("MMJAX_DATA", str(tmp_path / "home"))


KEYS = {
    "shards": {"source": "shards", "path": "shards/{00000..00004}.tar", "window": 2},
    "tfds": {"source": "tfds", "path": "pictures"},
    "jsonl": {"source": "jsonl", "path": "lines/set.jsonl"},
    "mixture": {
        "mixture": (
            (3, {"source": "shards", "path": "shards/*.tar", "window": 2}),
            (1, {"source": "jsonl", "path": "lines/set.jsonl"}),
        )
    },
}


def stream(kind, root):
    data = config_lib.base().data
    data.transforms, data.dir = DRAWS, f"{root}/tfds" if kind == "tfds" else str(root)
    for key, value in KEYS[kind].items():
        data[key] = value
    data.lock()
    return open_stream(data, SEED)


def hashes(s, *, hosts=1, start=0, **options):
    """sha256 of each global batch, put together from the rows of each host."""
    common = {"batch_size": BATCH, "seed": s.seed, "order": s.order, "start": start * BATCH, **options}
    parts = []
    for rows in np.arange(BATCH).reshape(hosts, -1):
        with loader.batches(s.source, s.transform, rows=rows, **common) as batches:
            parts.append([next(batches) for _ in range(COUNT - start)])
    wholes = ({key: np.concatenate([part[k][key] for part in parts]) for key in sorted(parts[0][k])} for k in range(COUNT - start))
    return [hashlib.sha256(b"".join(f"{k} {v.dtype} {v.shape}".encode() + v.tobytes() for k, v in w.items())).hexdigest() for w in wholes]


@pytest.mark.parametrize("kind", sorted(KEYS))
def test_hosts_threads_restarts_and_a_change_of_hosts(sets, kind):
    plain = hashes(stream(kind, sets), threads=0)
    assert len(set(plain)) == COUNT
    for hosts in (1, 2, 4):
        assert hashes(stream(kind, sets), hosts=hosts) == plain
    for begun, hosts in ((2, 1), (3, 2), (5, 4)):  # in the middle of the first epoch, and of the second; on other numbers of hosts
        assert hashes(stream(kind, sets), start=begun, hosts=hosts) == plain[begun:]


@pytest.mark.parametrize("kind", ["shards", "jsonl", "mixture"])
def test_a_copy_behind_a_file_system_layer_gives_the_same(sets, kind):
    memory, plain = fsspec.filesystem("memory"), hashes(stream(kind, sets))
    for path in sorted(p for p in sets.rglob("*") if p.is_file() and "tfds" not in p.parts):
        memory.pipe_file(f"/same/{path.relative_to(sets)}", path.read_bytes())
    layer = stream(kind, "memory://same")
    assert hashes(layer) == hashes(layer, hosts=2) == plain and hashes(layer, start=3) == plain[3:]
    assert [s.fingerprint for s in layer.sets] == [s.fingerprint for s in stream(kind, sets).sets]
    memory.rm("/same", recursive=True)


@pytest.mark.parametrize("kind", sorted(KEYS))
def test_a_copy_elsewhere_gives_the_same(sets, kind, tmp_path):
    """Also under another name, and with time stamps of its own."""
    for inner in sets.iterdir():
        shutil.copytree(inner, tmp_path / "other place" / inner.name, copy_function=shutil.copyfile)
    moved = stream(kind, tmp_path / "other place")
    assert hashes(moved) == hashes(stream(kind, sets))
    assert [s.fingerprint for s in moved.sets] == [s.fingerprint for s in stream(kind, sets).sets]


@pytest.mark.slow
@pytest.mark.parametrize("kind", sorted(KEYS))
def test_workers_do_not_change_a_batch(sets, kind):
    """0, 2 and 3 spawned processes, over local paths and, where the source takes URLs, through fsspec; after a restart; as two hosts."""
    local = stream(kind, sets)
    plain = hashes(local, threads=0)
    assert hashes(local, workers=2) == plain
    assert hashes(local, workers=3, threads=1, prefetch=2) == plain
    assert hashes(local, workers=2, start=3) == plain[3:]
    assert hashes(local, workers=2, hosts=2, start=2) == plain[2:]
    if kind != "tfds":
        layer = stream(kind, f"file://{sets}")
        assert hashes(layer, workers=2) == plain and hashes(layer, workers=3, start=4) == plain[4:]
