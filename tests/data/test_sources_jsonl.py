"""mmjax.data.jsonl and mmjax.data.documents."""

import io
import json
import pickle
import tarfile
from types import SimpleNamespace

import fsspec
import numpy as np
import pytest

from mmjax.core.errors import UserError
from mmjax.data import jsonl
from mmjax.data.bad import BadSample
from mmjax.data.source import Source, open_source


def config(path, source="jsonl", **keys):
    return SimpleNamespace(source=source, dir=None, path=str(path), **keys)


def write(path, lines):
    path.write_bytes(b"\n".join(line if isinstance(line, bytes) else json.dumps(line).encode() for line in lines) + b"\n")
    return path


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "img").mkdir()
    for i in range(4):
        (tmp_path / "img" / f"{i}.png").write_bytes(bytes([i]))
    (tmp_path / "secret").write_bytes(b"secret")
    return tmp_path


def test_records(folder):
    lines = [{"image": f"img/{i}.png", "caption": f"é {i}", "label": i, "x": {"y": [i]}} for i in range(4)]
    source = open_source(config(write(folder / "a.jsonl", lines)), "train")
    assert isinstance(source, Source) and len(source) == 4 and set(source.info.features) == {"image", "captions", "label"}
    assert source[2] == {"image": b"\2", "captions": ("é 2",), "label": 2} and source[2]["label"].dtype == np.int32
    copy = pickle.loads(pickle.dumps(source))
    assert copy[3] == source[3] and copy.info == source.info
    features = {"image": "image", "first": "x/y"}
    assert open_source(config(folder / "a.jsonl", features=features), "train")[1] == {"image": b"\1", "first": [1]}
    with pytest.raises(UserError, match=r"data\.features\.first: '.*a\.jsonl', line 1 has no 'x/z'; did you mean 'x/y'"):
        open_source(config(folder / "a.jsonl", features={"first": "x/z"}), "train")
    with pytest.raises(IndexError):
        source[4]


def test_several_files_blank_lines_and_no_newline_at_the_end(folder, monkeypatch):
    monkeypatch.setattr(jsonl, "_CHUNK", 7)  # lines cross every border
    write(folder / "b-0.jsonl", [{"image": "img/0.png", "captions": ["a", "b"]}, b"", b"\r", {"image": "img/1.png", "captions": []}])
    (folder / "b-1.jsonl").write_bytes(b'\n{"image": "img/2.png", "captions": ["c"]}\r\n{"image": "img/3.png", "captions": ["d"]}')
    source = open_source(config(folder / "b-*.jsonl"), "train")
    assert [source[i]["image"] for i in range(len(source))] == [b"\0", b"\1", b"\2", b"\3"]
    assert [source[i]["captions"] for i in range(len(source))] == [("a", "b"), (), ("c",), ("d",)]
    assert [source._lines.place(i)[3] for i in range(4)] == [1, 4, 2, 3] and "b-1.jsonl', line 2" in source.describe(2)


def test_lines_against_splitlines(folder):
    rng = np.random.default_rng(0)
    lines = [{"label": int(i), "caption": "x" * int(n)} for i, n in enumerate(rng.integers(0, 300, 500))]
    source = open_source(config(write(folder / "c.jsonl", lines)), "train")
    assert [source[i]["label"] for i in range(500)] == list(range(500))
    assert [len(source[i]["captions"][0]) for i in range(500)] == [len(line["caption"]) for line in lines]


@pytest.mark.parametrize(
    ("line", "kind", "message"),
    [
        (b'{"image": ', "other", r"bad\.jsonl', line 3 is no JSON"),
        (b"[1, 2]", "other", r"line 3 is no object"),
        (b"[" * 100_000, "other", "line 3 is no JSON"),
        (b'{"image": "img/0.png", "label": "x"}', "other", "label 'x' is no number of a class"),
        (b'{"image": "img/0.png", "label": true}', "other", "label True"),
        (b'{"label": 1}', "missing", "no 'image'"),
        (b'{"image": "img/9.png", "label": 1}', "missing", r"no file '.*img/9\.png'"),
        (b'{"image": "../up.png", "label": 1}', "other", r"leads out of .*; data\.absolute=true"),
        (b'{"image": "/etc/hostname", "label": 1}', "other", "leads out of"),
        (b'{"image": ["img/0.png"], "label": 1}', "other", "expected a path"),
        (b'{"image": "img", "label": 1}', "other", "cannot be read"),
    ],
)
def test_one_bad_line_is_one_bad_sample(folder, line, kind, message):
    good = {"image": "img/0.png", "label": 1}
    source = open_source(config(write(folder / "bad.jsonl", [good, b"", line, good])), "train")
    assert source[0]["label"] == source[2]["label"] == 1
    with pytest.raises(BadSample, match=message) as e:
        source[1]
    assert e.value.kind == kind


def test_absolute_paths_and_urls_only_where_allowed(folder):
    fsspec.filesystem("memory").pipe_file("/pics/a.png", b"remote")
    lines = [{"image": "memory://pics/a.png"}, {"image": str(folder / "secret")}, {"image": "../x"}]
    (folder / "sub").mkdir()
    path = write(folder / "sub" / "d.jsonl", lines)
    closed, opened = open_source(config(path), "train"), open_source(config(path, absolute=True), "train")
    for i in range(3):
        with pytest.raises(BadSample, match="leads out"):
            closed[i]
    assert opened[0]["image"] == b"remote" and opened[1]["image"] == b"secret"
    with pytest.raises(BadSample, match="leads out"):
        opened[2]
    fsspec.filesystem("memory").rm("/pics", recursive=True)


def test_another_folder_of_images_and_a_store(folder):
    path = write(folder / "e.jsonl", [{"image": "1.png", "caption": "one"}])
    assert open_source(config(path, images=str(folder / "img")), "train")[0]["image"] == b"\1"
    memory = fsspec.filesystem("memory")
    memory.pipe_file("/set/e.jsonl", path.read_bytes())
    memory.pipe_file("/set/1.png", b"far")
    source = open_source(config("memory://set/*.jsonl"), "train")
    assert source[0] == {"image": b"far", "captions": ("one",)} and pickle.loads(pickle.dumps(source))[0] == source[0]
    memory.rm("/set", recursive=True)


def test_what_cannot_be_opened(folder):
    for lines, message in (
        ([b"{"], "line 1 is no JSON"),
        ([{"a": 1}], "has none of image, caption, captions and label but a"),
        ([b""], "has no lines"),
    ):
        with pytest.raises(UserError, match=message):
            open_source(config(write(folder / "f.jsonl", lines)), "train")
    with pytest.raises(UserError, match=r"file '.*none\.jsonl' does not exist"):
        open_source(config(folder / "none.jsonl"), "train")
    with pytest.raises(UserError, match=r"needs data\.path"):
        open_source(SimpleNamespace(source="jsonl", dir=None), "train")


def test_a_file_that_changes(folder):
    lines = [{"image": "img/0.png", "caption": "abc"}, {"image": "img/1.png", "caption": "def"}]
    source = open_source(config(write(folder / "g.jsonl", lines)), "train")
    lines[1]["caption"] = "dex"  # of the same size
    changed = open_source(config(write(folder / "g.jsonl", lines)), "train")
    assert changed.info.fingerprint != source.info.fingerprint
    (folder / "other").mkdir()
    copied = open_source(config(write(folder / "other" / "g.jsonl", lines)), "train")
    assert copied.info.fingerprint == changed.info.fingerprint
    (folder / "g.jsonl").write_bytes(b"{}\n")
    fresh = pickle.loads(pickle.dumps(source))
    with pytest.raises(UserError, match="is shorter than when it was opened"):
        fresh[1]


def test_classes(folder):
    (folder / "names.txt").write_text("cat\ndog\n")
    path = write(folder / "h.jsonl", [{"label": 1}, {"label": 2}])
    source = open_source(config(path, classes=str(folder / "names.txt")), "train")
    assert source.info.classes == ("cat", "dog") and source.info.prompts == ("a photo of a {}.",) and source[0]["label"] == 1
    with pytest.raises(BadSample, match="label 2 is no number of a class, 0 to 1"):
        source[1]


# --- documents ---

MMC4 = {
    "text_list": ["zero", "one", "two"],
    "image_info": [
        {"image_name": "2.png", "raw_url": "http://x/2", "matched_text_index": 2},
        {"image_name": "0.png", "raw_url": "http://x/0", "matched_text_index": 0, "matched_sim": 0.3},
        {"image_name": "9.png", "raw_url": "http://x/9", "matched_text_index": 1},
        {"image_name": "1.png", "raw_url": "http://x/1", "matched_text_index": 2},
    ],
    "similarity_matrix": [[0.1]],
}
OBELICS = {
    "texts": [None, "a", None, None, "b", None],
    "images": ["0.png", None, "http://x/1", "../secret", None, "2.png"],
    "metadata": "[]",
}


def check(record, texts, images, positions, missing):
    assert record["texts"] == texts and record["images"] == images and record["positions"].tolist() == positions
    assert record["positions"].dtype == np.int32 and record["missing"] == missing


def test_documents_of_both_forms(folder):
    write(folder / "m.jsonl", [MMC4])
    source = open_source(config(folder / "m.jsonl", "documents", images=str(folder / "img")), "train")
    check(source[0], ("zero", "one", "two"), (b"\0", b"\2", b"\1"), [0, 2, 2], 1)
    write(folder / "img" / "o.jsonl", [OBELICS])
    source = open_source(config(folder / "img" / "o.jsonl", "documents"), "train")
    check(source[0], ("a", "b"), (b"\0", b"\2"), [0, 2], 2)
    assert isinstance(source, Source) and pickle.loads(pickle.dumps(source))[0]["texts"] == ("a", "b")


@pytest.fixture(params=["local", "memory"])
def shards(request, folder):
    root = "memory://docs" if request.param == "memory" else str(folder)
    for shard, keys in (("00000.tar", (0, 1)), ("00001.tar", (2,))):
        out = io.BytesIO()
        with tarfile.open(fileobj=out, mode="w") as t:
            for k in keys:
                members = ((f"{k}.json", json.dumps({"url": f"http://x/{k}", "caption": "c"}).encode()), (f"{k}.png", bytes([k])))
                for name, data in members:
                    info = tarfile.TarInfo(name)
                    info.size = len(data)
                    t.addfile(info, io.BytesIO(data))
        if request.param == "memory":
            fsspec.filesystem("memory").pipe_file(f"/docs/{shard}", out.getvalue())
        else:
            (folder / shard).write_bytes(out.getvalue())
    yield f"{root}/{{00000..00001}}.tar"
    if request.param == "memory":
        fsspec.filesystem("memory").rm("/docs", recursive=True)


def test_documents_over_shards_by_name_and_by_url(folder, shards):
    write(folder / "x.jsonl", [MMC4, OBELICS])
    source = open_source(config(folder / "x.jsonl", "documents", images=shards), "train")
    for s in (source, pickle.loads(pickle.dumps(source))):
        check(s[0], ("zero", "one", "two"), (b"\0", b"\2", b"\1"), [0, 2, 2], 1)
        check(s[1], ("a", "b"), (b"\0", b"\1", b"\2"), [0, 1, 2], 1)


@pytest.mark.parametrize(
    "line",
    [
        {"texts": ["a"], "images": []},
        {"texts": ["a", 3], "images": [None, None]},
        {"texts": ["a"], "images": [3]},
        {"text_list": "a", "image_info": []},
        {"text_list": ["a"], "image_info": [{"image_name": "x", "matched_text_index": 2}]},
        {"text_list": ["a"], "image_info": [{"image_name": "x"}]},
        {"text_list": ["a"], "image_info": [{"matched_text_index": 0}]},
        {"text": "a"},
    ],
)
def test_documents_that_are_none(folder, line):
    source = open_source(config(write(folder / "y.jsonl", [OBELICS, line]), "documents"), "train")
    with pytest.raises(BadSample) as e:
        source[1]
    assert e.value.kind == "other"
    with pytest.raises(UserError, match=r"y\.jsonl', line 1: "):
        open_source(config(write(folder / "y.jsonl", [line]), "documents"), "train")


def test_a_half_written_shard_of_images(folder):
    write(folder / "z.jsonl", [OBELICS])
    (folder / "i.tar").write_bytes(b"x" * 100)
    with pytest.raises(UserError, match=r"i\.tar' is cut off"):
        open_source(config(folder / "z.jsonl", "documents", images=str(folder / "i.tar")), "train")
