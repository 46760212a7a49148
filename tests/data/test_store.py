import json
import os
import pickle
from types import SimpleNamespace

import ml_dtypes
import numpy as np
import pytest

from mmjax.core.errors import UserError
from mmjax.data import store
from mmjax.data.bad import BadSample
from mmjax.data.source import Source, open_source

META = {
    "predict": "encode_image",
    "model": {"fingerprint": "abc", "workdir": "runs/x", "step": 4},
    "source": {"name": "digits", "split": "train", "classes": ("zero", "one"), "prompts": ("a {}",)},
    "features": {"value": "float32[2]", "index": "int64[]"},
}


def records(n):
    return [{"value": np.float32([i, -i]), "index": np.int64(i), "text": f"n {i}"} for i in range(n)]


def write(folder, n=10, per_shard=4, **meta):
    writer = store.Writer(folder, {"p": 1}, n, per_shard)
    for k in writer.missing:
        writer.write(k, records(n)[k * per_shard : (k + 1) * per_shard])
    return writer.finish({**META, **meta})


# --- one record


def test_every_kind_survives():
    record = {
        "f32": np.float32([[1.5, -2], [np.inf, 3e-40]]),
        "bf16": np.arange(3).astype(ml_dtypes.bfloat16),
        "f16": np.float16([0.1]),
        "big": np.arange(3, dtype=">i4"),
        "scalar": np.int32(7),
        "python": 3,
        "flag": np.array([True, False]),
        "empty": np.zeros((0, 4), np.float32),
        "text": "naïve 日本 😀 \x00",
        "texts": ("", "a", "日本"),
        "none": (),
        "bytes": b"\x89PNG\x00",
        "strided": np.arange(12).reshape(3, 4)[:, ::2],
    }
    got = store.decode(store.encode(record))
    assert list(got) == list(record)
    for key, value in record.items():
        if isinstance(value, str | bytes | tuple):
            assert got[key] == value and type(got[key]) is type(value), key
        else:
            expected = np.asarray(value)
            assert got[key].shape == expected.shape and got[key].dtype == expected.dtype.newbyteorder("="), key
            np.testing.assert_array_equal(np.asarray(got[key]).astype(np.float64), expected.astype(np.float64))
    got["f32"][0, 0] = 9  # may be written to


def test_nothing_is_pickled_and_strange_values_are_refused():
    for value in (np.array([object()]), {"a": 1}, np.array(["x"]), np.array("2020", "datetime64"), None):
        with pytest.raises(UserError, match="cannot hold 'x'"):
            store.encode({"x": value})


@pytest.mark.parametrize("harm", ["cut", "long", "header", "kind", "dtype", "object", "empty"])
def test_bytes_that_are_no_record(harm):
    data = store.encode({"value": np.arange(4.0), "text": "abc"})
    pack = lambda fields: len(b := json.dumps(fields).encode()).to_bytes(4, "little") + b + bytes(64)
    data = {
        "cut": data[:-1],
        "long": data + b"x",
        "header": data[:4] + b"}" + data[5:],
        "kind": pack({"a": ["pickle", 64]}),
        "dtype": pack({"a": ["array", "S8", [8]]}),
        "object": pack({"a": ["array", "object", [8]]}),
        "empty": b"",
    }[harm]
    with pytest.raises(ValueError, match="record"):
        store.decode(data)


# --- a set


def test_round_trip(tmp_path):
    folder = write(tmp_path / "set" / "train")
    names = sorted(p.name for p in folder.iterdir())
    assert names == [*(f"data-{k:05d}-of-00003.array_record" for k in range(3)), "meta.json"]
    assert [p.name for p in folder.parent.iterdir()] == ["train"]
    source = store.Cached(folder)
    assert isinstance(source, Source) and len(source) == 10
    for i, expected in enumerate(records(10)):
        got = source[i]
        assert got["text"] == expected["text"] and got["index"] == i and got["index"].dtype == np.int64
        np.testing.assert_array_equal(got["value"], expected["value"])
    info = source.info
    assert (info.name, info.split, info.classes, info.prompts, info.tokenizer) == ("digits", "train", ("zero", "one"), ("a {}",), None)
    assert info.groups == (4, 4, 2) and info.features["value"] == "float32[2]" and info.fingerprint
    copy = pickle.loads(pickle.dumps(source))
    assert copy[7]["text"] == "n 7" and copy.info == info
    with pytest.raises(IndexError, match="has 10 records, asked for number 10"):
        source[10]


def test_opened_by_config(tmp_path):
    write(tmp_path / "set" / "train")
    config = SimpleNamespace(source="cached", dir=None, path=str(tmp_path / "set"), expect_fingerprint="abc")
    assert len(open_source(config, "train")) == 10
    config.dir, config.path = str(tmp_path), "set"
    assert len(open_source(config, "train")) == 10
    config.expect_fingerprint = "abd"
    with pytest.raises(UserError, match=r"fingerprint abc \(encode_image of 'runs/x', step 4\), data\.expect_fingerprint is abd"):
        open_source(config, "train")
    with pytest.raises(UserError, match=r"no cached set '.*/trian'; did you mean 'train'"):
        open_source(config, "trian")
    config.path = None
    with pytest.raises(UserError, match=r"needs data\.path"):
        open_source(config, "train")


def test_a_killed_writer_goes_on(tmp_path):
    whole = write(tmp_path / "whole")
    folder = tmp_path / "set"

    def killed():
        yield records(10)[4]
        raise KeyboardInterrupt

    writer = store.Writer(folder, {"p": 1}, 10, 4)
    assert writer.missing == [0, 1, 2]
    writer.write(0, records(4))
    with pytest.raises(KeyboardInterrupt):
        writer.write(1, killed())
    assert not folder.exists()
    with pytest.raises(UserError, match="is not finished; repeat the mmjax cache command"):
        store.Cached(folder)
    first = os.stat(tmp_path / "set.partial" / "data-00000-of-00003.array_record")
    again = store.Writer(folder, {"p": 1}, 10, 4)
    assert again.missing == [1, 2]
    for k in again.missing:
        again.write(k, records(10)[k * 4 : k * 4 + 4])
    again.finish(META)
    assert os.stat(folder / "data-00000-of-00003.array_record").st_ino == first.st_ino
    assert {p.name: p.read_bytes() for p in folder.iterdir()} == {p.name: p.read_bytes() for p in whole.iterdir()}


def test_another_plan_or_a_finished_set_is_refused(tmp_path):
    store.Writer(tmp_path / "set", {"predict": "encode_image"}, 10, 4)
    for plan, count in (({"predict": "encode_text"}, 10), ({"predict": "encode_image"}, 11)):
        with pytest.raises(UserError, match="holds the beginning of another set .*->"):
            store.Writer(tmp_path / "set", plan, count, 4)
    folder = write(tmp_path / "other")
    with pytest.raises(UserError, match="exists already"):
        store.Writer(folder, {"p": 1}, 10, 4)
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot be written"):
        store.Writer(tmp_path / "file" / "x", {}, 10, 4)


def test_a_shard_of_the_wrong_length_is_a_bug(tmp_path):
    with pytest.raises(ValueError, match="shard 0 got 3 records"):
        store.Writer(tmp_path / "set", {}, 10, 4).write(0, records(3))


def test_bad_records_stay_bad_and_in_place(tmp_path):
    writer = store.Writer(tmp_path / "set", {}, 3, 2)
    writer.write(0, [records(1)[0], {"bad": "truncated", "index": np.int64(1)}])
    writer.write(1, [{"bad": "from the future", "index": np.int64(2)}])
    source = store.Cached(writer.finish(META))
    assert source[0]["index"] == 0 and source.meta["bad"] == {"from the future": 1, "truncated": 1}
    for i, kind in ((1, "truncated"), (2, "other")):
        with pytest.raises(BadSample) as e:
            source[i]
        assert e.value.kind == kind


@pytest.mark.parametrize("harm", ["cut", "gone", "swapped", "bit", "meta", "keys", "newer"])
def test_damage_says_what_to_do(tmp_path, harm):
    folder = write(tmp_path / "set")
    shard, meta = folder / "data-00001-of-00003.array_record", json.loads((folder / "meta.json").read_text())
    if harm == "cut":
        shard.write_bytes(shard.read_bytes()[:-10])
    elif harm == "gone":
        shard.unlink()
    elif harm == "swapped":
        meta["count"] = 11
    elif harm == "bit":
        content = bytearray(shard.read_bytes())
        content[len(content) // 2] ^= 1
        shard.write_bytes(content)
    elif harm == "meta":
        (folder / "meta.json").write_text("{")
    elif harm == "keys":
        del meta["model"]["step"]
    else:
        meta["format"] = 99
    if harm in ("swapped", "keys", "newer"):
        (folder / "meta.json").write_text(json.dumps(meta))
    expected = "upgrade mmjax" if harm == "newer" else "is damaged.*restore it, or delete the set and cache again"
    with pytest.raises(UserError, match=expected) as e:
        source = store.Cached(folder)
        for i in range(len(source)):
            source[i]
    assert "\n" not in str(e.value)
