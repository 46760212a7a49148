"""mmjax.data.shards over its index: the samples of real tars, what is left out, what has changed since, and stores that are no disk."""

import io
import json
import os
import pickle
import tarfile
import threading
import time
from types import SimpleNamespace

import fsspec
import numpy as np
import pytest

from mmjax.core.errors import UserError
from mmjax.data import shard_index
from mmjax.data.bad import BadSample
from mmjax.data.shard_index import build_index, open_index
from mmjax.data.source import Source, open_source


@pytest.fixture(autouse=True)
def home(tmp_path, monkeypatch):
    monkeypatch.setenv("MMJAX_DATA", str(tmp_path / "home"))


def tar_bytes(members):
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as t:
        for name, data in members:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            t.addfile(info, io.BytesIO(data))
    return out.getvalue()


def sample(key, i, kinds=("jpg", "txt", "json")):
    parts = {
        "jpg": b"\xff\xd8" + bytes([i]) * (i + 1),
        "txt": f"text {i}".encode(),
        "json": json.dumps({"caption": f"json {i}", "n": {"i": i}}).encode(),
    }
    return [(f"{key}.{kind}", parts[kind.lower()]) for kind in kinds]


def write(folder, shards):
    folder.mkdir(exist_ok=True)
    for name, members in shards.items():
        (folder / name).write_bytes(tar_bytes(members))
    return folder


@pytest.fixture
def folder(tmp_path):
    """Three shards of 4 samples, as img2dataset names them."""
    return write(
        tmp_path / "laion", {f"{s:05d}.tar": [m for i in range(4) for m in sample(f"{s:05d}{i:04d}", 4 * s + i)] for s in range(3)}
    )


def config(path, **keys):
    return SimpleNamespace(source="shards", dir=None, path=str(path), **keys)


def test_records(folder):
    source = open_source(config(folder / "{00000..00002}.tar"), "train")
    assert isinstance(source, Source) and len(source) == 12 and source.info.groups == (4, 4, 4)
    for i in range(12):
        assert source[i] == {"image": b"\xff\xd8" + bytes([i]) * (i + 1), "captions": (f"text {i}",)}
    copy = pickle.loads(pickle.dumps(source))
    assert copy[7] == source[7] and copy.info == source.info and len(pickle.dumps(source)) < 2000
    assert source.info.name == "laion" and source.info.split == "train"
    assert "'laion' (train), record 5 (shard '" in source.describe(5) and "00001.tar'" in source.describe(5)
    with pytest.raises(IndexError):
        source[12]


def test_features_come_from_the_json(folder):
    features = {"image": "image", "captions": "caption", "number": "n/i"}
    source = open_source(config(folder / "*.tar", features=features), "train")
    assert source[9] == {"image": b"\xff\xd8" + b"\x09" * 10, "captions": ("text 9",), "number": 9}
    source = open_source(config(folder / "*.tar", features={"number": "n/i"}), "train")
    assert source[3] == {"number": 3}
    with pytest.raises(UserError, match=r"data\.features\.number: the json of .*00000\.tar'.* has no 'n/j'; did you mean 'n/i'"):
        open_source(config(folder / "*.tar", features={"number": "n/j"}), "train")
    with pytest.raises(UserError, match="called 'image'"):
        open_source(config(folder / "*.tar", features={"image": "jpg"}), "train")


def test_how_people_write_shards(tmp_path):
    pieces = [
        *sample("./deep/er/a.b", 0, ("jpg",))[:0],
        ("./deep/er/0.JPG", b"A"), ("./deep/er/0.TXT", b"upper"),
        ("k" * 120 + ".png", b"B"), ("k" * 120 + ".json", b'{"caption": "long"}'),
        ("__meta__", b"x"), ("._5.jpg", b"apple"), ("5.seg.png", b"mask"),
        ("5.webp", b"C"), ("5.cls", b"3"), ("5.txt", "späte".encode()), ("5.jpg", b"second picture"), ("5.txt", b"second text"),
        ("no_text.jpg", b"D"), ("no_image.txt", b"x"), ("no_image.json", b"{}"),
        ("deep/er/0.jpg", b"E"), ("apart.jpg", b"F"), ("deep/er/0.txt", b"another folder"), ("apart.txt", b"after others"),
    ]  # fmt: skip
    write(tmp_path / "odd", {"x.tar": pieces})
    source = open_source(config(tmp_path / "odd" / "x.tar"), "train")
    assert [(r["image"], r["captions"]) for r in map(source.__getitem__, range(len(source)))] == [
        (b"A", ("upper",)), (b"B", ("long",)), (b"C", ("späte",)), (b"E", ("another folder",)), (b"F", ("after others",)),
    ]  # fmt: skip
    index = build_index(tmp_path / "odd" / "x.tar", tmp_path / "i.index", progress=False)
    assert index.left_out == {"duplicate": 2, "no_caption": 1, "no_image": 1}
    images = open_source(config(tmp_path / "odd" / "x.tar", features={"image": "image"}), "train")
    assert [images[i]["image"] for i in range(len(images))] == [b"A", b"B", b"C", b"D", b"E", b"F"]


def test_bad_samples_are_for_the_loader(tmp_path):
    members = [
        ("0.jpg", b"x"),
        ("0.txt", b"\xff\xfe"),
        ("1.jpg", b"x"),
        ("1.json", b"{"),
        ("2.jpg", b""),
        ("2.json", b'{"caption": null}'),
        ("3.jpg", b"x"),
        ("3.json", b"[1]"),
    ]
    source = open_source(config(write(tmp_path / "bad", {"x.tar": members}) / "x.tar"), "train")
    for i, kind in ((0, "bad_text"), (1, "other"), (3, "other")):
        with pytest.raises(BadSample) as e:
            source[i]
        assert e.value.kind == kind
    assert source[2] == {"image": b"", "captions": ()}


def test_through_a_file_system_layer_the_same(folder):
    memory, local = fsspec.filesystem("memory"), open_source(config(folder / "*.tar"), "train")
    for path in sorted(folder.iterdir()):
        memory.pipe_file(f"/bucket/laion/{path.name}", path.read_bytes())
    remote = open_source(config("memory://bucket/laion/{00000..00002}.tar"), "train")
    assert [remote[i] for i in range(12)] == [local[i] for i in range(12)] and remote.info == local.info
    assert pickle.loads(pickle.dumps(remote))[11] == local[11]
    assert open_source(config("memory://bucket/laion/*.tar"), "train").info == local.info
    memory.rm("/bucket/laion/00002.tar")
    with pytest.raises(UserError, match="shard 'memory://bucket/laion/00002.tar' is missing"):
        open_source(config("memory://bucket/laion/{00000..00002}.tar"), "train")
    memory.pipe_file("/bucket/laion/00002.tar", (folder / "00002.tar").read_bytes())
    with pytest.raises(UserError, match="older than shard 'memory://bucket/laion/00002.tar'"):
        open_source(config("memory://bucket/laion/{00000..00002}.tar"), "train")
    memory.rm("/bucket", recursive=True)


def test_threads_read_alike(folder):
    source, wrong = open_source(config(folder / "*.tar"), "train"), []

    def work(k):
        wrong.extend(i for i in range(400) if source[(i * k) % 12]["captions"] != (f"text {(i * k) % 12}",))

    threads = [threading.Thread(target=work, args=(k,)) for k in (1, 5, 7, 11)]
    [t.start() for t in threads]
    [t.join() for t in threads]
    assert not wrong


def later(path):
    at = path.stat().st_mtime_ns + 1_000_000_000
    os.utime(path, ns=(at, at))


def touched(f):
    later(f / "00001.tar")


def gone(f):
    (f / "00001.tar").unlink()


def shorter(f):
    (f / "00001.tar").write_bytes((f / "00001.tar").read_bytes()[:-600])


def added(f):
    (f / "00003.tar").write_bytes((f / "00001.tar").read_bytes())


@pytest.mark.parametrize(
    ("harm", "pattern", "message"),
    [
        (touched, "*.tar", r"older than shard '.*/00001\.tar'.*build the index again: mmjax data build-index"),
        (gone, "{00000..00002}.tar", r"shard '.*/00001\.tar' is missing; .*restore it, or build the index again"),
        (gone, "*.tar", r"built over shard '00001\.tar', which data\.path does not name"),
        (shorter, "*.tar", r"shard '.*/00001\.tar' has \d+ bytes, \d+ when indexed \(half-written\?\)"),
        (added, "*.tar", r"shard '.*/00003\.tar' is not in index"),
    ],
)
def test_an_index_that_no_longer_fits(folder, tmp_path, harm, pattern, message):
    index = build_index(folder / "*.tar", tmp_path / "laion.index", progress=False)
    c = config(folder / pattern, index=index.path)
    open_source(c, "train")
    harm(folder)
    with pytest.raises(UserError, match=message) as e:
        open_source(c, "train")
    assert "\n" not in str(e.value)
    if harm in (touched, added):
        build_index(folder / "*.tar", index.path, progress=False)  # what the message says helps
        open_source(c, "train")


def test_a_shard_that_goes_while_a_run_reads_it(folder):
    source = open_source(config(folder / "*.tar"), "train")
    (folder / "00002.tar").write_bytes(b"")
    with pytest.raises(UserError, match=r"shard '.*/00002\.tar' is shorter than index"):
        source[8]
    (folder / "00001.tar").unlink()
    with pytest.raises(UserError, match=r"shard '.*/00001\.tar' is missing since"):
        source[4]


@pytest.mark.parametrize(
    ("harm", "message"),
    [
        (lambda f: (f / "00001.tar").unlink(), r"shard '.*00001\.tar' does not exist"),
        (shorter, None),
        (
            lambda f: (f / "00001.tar").write_bytes((f / "00001.tar").read_bytes()[:3000]),
            r"archive '.*00001\.tar' is cut off after 3000 bytes",
        ),
    ],
)
def test_building_over_a_missing_or_half_written_shard(folder, tmp_path, harm, message):
    harm(folder)
    if message is None:  # only the end's zeros were cut
        assert len(build_index(folder / "{00000..00002}.tar", tmp_path / "i.index", progress=False).records) == 12
        return
    with pytest.raises(UserError, match=message):
        build_index(folder / "{00000..00002}.tar", tmp_path / "i.index", progress=False)
    assert not (tmp_path / "i.index").exists()


def test_a_stopped_build_goes_on_where_it_was(folder, tmp_path, monkeypatch):
    out, whole = tmp_path / "i.index", build_index(folder / "*.tar", tmp_path / "whole.index", progress=False)
    real, seen = shard_index.scan_shard, []

    def counting(reader, path, size, captions):
        seen.append(os.path.basename(path))
        if path.endswith("00002.tar") and len(seen) == 3:
            raise KeyboardInterrupt
        return real(reader, path, size, captions)

    monkeypatch.setattr(shard_index, "scan_shard", counting)
    with pytest.raises(KeyboardInterrupt):
        build_index(folder / "*.tar", out, progress=False)
    with open(f"{out}.partial", "ab") as f:
        f.write(b"half a shard's records")
    assert not out.exists()
    build_index(folder / "*.tar", out, progress=False)
    assert seen == ["00000.tar", "00001.tar", "00002.tar", "00002.tar"]
    assert out.read_bytes() == (tmp_path / "whole.index").read_bytes() and open_index(out).digest == whole.digest
    assert sorted(p.name for p in tmp_path.iterdir()) == ["i.index", "laion", "whole.index"]


def test_a_stopped_build_notices_a_shard_that_changed_meanwhile(folder, tmp_path, monkeypatch):
    out, real, seen = tmp_path / "i.index", shard_index.scan_shard, []

    def stop(reader, path, size, captions):
        seen.append(os.path.basename(path))
        if len(seen) == 3:
            raise KeyboardInterrupt
        return real(reader, path, size, captions)

    monkeypatch.setattr(shard_index, "scan_shard", stop)
    with pytest.raises(KeyboardInterrupt):
        build_index(folder / "*.tar", out, progress=False)
    (folder / "00000.tar").write_bytes(tar_bytes(sample("new", 50)))
    assert build_index(folder / "*.tar", out, progress=False).groups == (1, 4, 4)
    assert seen[3:] == ["00000.tar", "00001.tar", "00002.tar"]


def test_two_builders_and_a_second_call(folder, tmp_path, monkeypatch):
    real, seen = shard_index.scan_shard, []

    def slow(*args):
        seen.append(args[1])
        time.sleep(0.05)
        return real(*args)

    monkeypatch.setattr(shard_index, "scan_shard", slow)
    threads = [
        threading.Thread(target=build_index, args=(folder / "*.tar", tmp_path / "i.index"), kwargs={"progress": False}) for _ in range(3)
    ]
    [t.start() for t in threads]
    [t.join() for t in threads]
    assert len(seen) == 3 and len(build_index(folder / "*.tar", tmp_path / "i.index").records) == 12 and len(seen) == 3


@pytest.mark.parametrize("workers", [1, 2, 5])
def test_workers_do_not_change_the_index(folder, tmp_path, workers):
    build_index(folder / "*.tar", tmp_path / "i.index", workers=workers, progress=False)
    build_index(folder / "*.tar", tmp_path / "one.index", workers=1, progress=False)
    assert (tmp_path / "i.index").read_bytes() == (tmp_path / "one.index").read_bytes()


def test_a_set_that_moved_is_the_same_set(folder, tmp_path):
    before = open_source(config(folder / "*.tar"), "train").info.fingerprint
    index = build_index(folder / "*.tar", tmp_path / "i.index", progress=False)
    folder.rename(tmp_path / "elsewhere")
    moved = open_source(config(tmp_path / "elsewhere" / "*.tar", index=index.path), "train")
    assert moved.info.fingerprint == before and moved[11]["captions"] == ("text 11",)
    later(tmp_path / "elsewhere" / "00000.tar")  # as a copy has
    assert open_source(config(tmp_path / "elsewhere" / "*.tar"), "train").info.fingerprint == before
    write(tmp_path / "elsewhere", {"00002.tar": sample("x", 3)})
    assert build_index(tmp_path / "elsewhere" / "*.tar", tmp_path / "j.index", progress=False).digest != index.digest


@pytest.mark.parametrize(
    ("harm", "message"),
    [
        (lambda d: d[:-1], "is damaged"),
        (lambda d: d[:100], "is damaged"),
        (lambda d: b"x" + d[1:], "is no index of shards"),
        (lambda d: d[:8] + b"\2" + d[9:], "has format 2, this mmjax reads 1"),
        (lambda d: d[:16] + d[56:], "is damaged"),
        (lambda d: b"", "is no index"),
    ],
)
def test_damaged_indexes(folder, tmp_path, harm, message):
    out = tmp_path / "i.index"
    build_index(folder / "*.tar", out, progress=False)
    out.write_bytes(harm(out.read_bytes()))
    with pytest.raises(UserError, match=message + r".*mmjax data build-index"):
        open_source(config(folder / "*.tar", index=str(out)), "train")


def test_what_is_missing_from_the_config(folder, tmp_path):
    with pytest.raises(UserError, match=r"needs data\.path"):
        open_source(SimpleNamespace(source="shards", dir=None), "train")
    with pytest.raises(UserError, match=r"data\.index: '.*none\.index' does not exist; build it: mmjax data build-index"):
        open_source(config(folder / "*.tar", index=str(tmp_path / "none.index")), "train")
    with pytest.raises(UserError, match="no sample with an image and a text in 1 shards"):
        open_source(config(write(tmp_path / "e", {"x.tar": [("a.txt", b"")]}) / "x.tar"), "train")
    with pytest.raises(UserError, match="must be a local file"):
        build_index(folder / "*.tar", "gs://bucket/i.index")


def test_bounded_reads(folder, monkeypatch):
    """An image and its text, side by side, cost one read."""
    source = open_source(config(folder / "*.tar"), "train")
    reads, real = [], source._read
    monkeypatch.setattr(source, "_read", lambda *a: reads.append(a) or real(*a))
    source[6]
    assert len(reads) == 1 and np.prod(reads[0][2]) < 2048


def test_members_far_apart_are_read_one_by_one(tmp_path, monkeypatch):
    members = [("a.jpg", b"picture"), ("b.jpg", b"x" * 200_000), ("a.txt", b"text"), ("b.txt", b"big")]
    source = open_source(config(write(tmp_path / "far", {"x.tar": members}) / "x.tar"), "train")
    reads, real = [], source._read
    monkeypatch.setattr(source, "_read", lambda *a: reads.append(a[2]) or real(*a))
    assert source[0] == {"image": b"picture", "captions": ("text",)} and reads == [7, 4]
    assert source[1] == {"image": b"x" * 200_000, "captions": ("big",)} and len(reads) == 3
