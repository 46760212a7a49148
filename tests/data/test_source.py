import dataclasses
import pickle
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from mmjax.core.errors import UserError
from mmjax.data import tfds_sets
from mmjax.data.source import Source, data_dir, open_source, open_tokenizer


def config(directory, name="digits_captions"):
    return SimpleNamespace(source=name, dir=str(directory) if directory else None)


def test_importing_is_light():
    heavy = {"grain", "tensorflow_datasets", "sklearn", "jax", "flax", "tensorflow"}
    code = f"import sys, mmjax.data.source; bad = {heavy} & set(sys.modules); assert not bad, bad"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_records(train_source):
    assert isinstance(train_source, Source)
    record = train_source[0]
    assert set(record) == {"image", "label", "captions"} == set(train_source.info.features)
    assert record["image"].startswith(b"\x89PNG") and record["label"].dtype == np.int32 and isinstance(record["captions"][0], str)
    assert train_source.info.tokenizer.name == "tokenizer.json" and train_source.info.split == "train"
    with pytest.raises(IndexError, match="1297"):
        train_source[1297]


def test_open_tokenizer(train_source):
    assert open_tokenizer(train_source).encode("a one", 5)[0, -1] == 0


def test_a_source_without_tokenizer(train_source, monkeypatch):
    monkeypatch.setattr(train_source, "info", dataclasses.replace(train_source.info, tokenizer=None))
    assert open_tokenizer(train_source) is None


def test_pickles_as_a_path(train_source):
    blob = pickle.dumps(train_source)
    assert len(blob) < 2000
    copy = pickle.loads(blob)
    assert copy.info == train_source.info and copy[5] == train_source[5]


def test_large_sets_are_read_record_by_record(data, train_source, monkeypatch):
    monkeypatch.setattr(tfds_sets, "_IN_MEMORY", 0)
    lazy = open_source(data, "train")
    assert lazy._kept is None
    assert all(lazy[i] == train_source[i] for i in (0, 700, 1296))


def test_unknown_source_and_split(data):
    with pytest.raises(UserError, match="did you mean 'digits_captions'"):
        open_source(config(data.dir, "digit_captions"), "train")
    with pytest.raises(UserError, match="unknown split 'tset'.*did you mean 'test'"):
        open_source(data, "tset")


def test_data_folder(tmp_path, monkeypatch):
    monkeypatch.setenv("MMJAX_DATA", str(tmp_path / "env"))
    assert data_dir(None) == tmp_path / "env" and (tmp_path / "env").is_dir()
    assert data_dir(str(tmp_path / "given")) == tmp_path / "given"
    monkeypatch.delenv("MMJAX_DATA")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    assert data_dir(None) == tmp_path / "home/.cache/mmjax/data"


def test_missing_data_folder(tmp_path, monkeypatch):
    with pytest.raises(UserError, match=r"data\.dir: folder '.*/disk/data' does not exist"):
        open_source(config(tmp_path / "disk" / "data"), "train")
    monkeypatch.setenv("MMJAX_DATA", str(tmp_path / "disk" / "data"))
    with pytest.raises(UserError, match="MMJAX_DATA: folder"):
        open_source(config(None), "train")
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot be used"):
        open_source(config(tmp_path / "file"), "train")
    assert not (tmp_path / "disk").exists()


@pytest.mark.parametrize("harm", ["bit", "cut", "tokenizer", "info", "record_count"])
def test_a_damaged_set_says_what_to_delete(data, tmp_path, harm):
    folder = tmp_path / "digits_captions" / "1.0.0"
    shutil.copytree(Path(data.dir) / "digits_captions" / "1.0.0", folder)
    records = folder / "digits_captions-train.array_record-00000-of-00001"
    if harm == "bit":
        content = bytearray(records.read_bytes())
        content[len(content) // 2] ^= 1
        records.write_bytes(content)
    elif harm == "cut":
        records.write_bytes(records.read_bytes()[:-1000])
    elif harm == "tokenizer":
        (folder / "tokenizer.json").unlink()
    elif harm == "info":
        (folder / "dataset_info.json").write_text("{")
    else:
        shutil.copy(folder / records.name.replace("train", "test"), records)
    with pytest.raises(UserError, match=rf"'digits_captions' \(train\).*damaged.*delete '{folder}' and run again") as e:
        open_source(config(tmp_path), "train")
    assert "\n" not in str(e.value)


def test_two_processes_prepare_at_once(tmp_path):
    code = (
        "import sys; from types import SimpleNamespace as N; from mmjax.data.source import open_source;"
        "sys.stdin.readline(); s = open_source(N(source='digits_captions', dir=sys.argv[1]), 'test'); print(len(s), s[0]['label'])"
    )
    processes = [
        subprocess.Popen([sys.executable, "-c", code, str(tmp_path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        for _ in range(2)
    ]
    for p in processes:
        p.stdin.write("\n")
        p.stdin.flush()
    outputs = [p.communicate(timeout=120)[0] for p in processes]
    assert [p.returncode for p in processes] == [0, 0] and outputs[0] == outputs[1] and outputs[0].startswith("360 ")
    assert [p.name for p in tmp_path.iterdir()] == ["digits_captions"]  # no temporary folder is left


def test_a_failed_preparation_leaves_nothing(tmp_path, monkeypatch):
    from mmjax.data import digits_captions

    def full_disk(directory):
        (Path(directory) / "half").write_text("")
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as m:
        m.setattr(digits_captions, "prepare", full_disk)
        with pytest.raises(UserError, match="cannot prepare.*No space left"):
            open_source(config(tmp_path), "test")
    assert list(tmp_path.iterdir()) == []


def test_losing_the_race_uses_the_winners_set(data, tmp_path, monkeypatch):
    from mmjax.data import digits_captions

    prepared = Path(data.dir) / "digits_captions"

    def beaten(directory):
        shutil.copytree(prepared, Path(directory) / "digits_captions")
        shutil.copytree(prepared, tmp_path / "digits_captions")
        return Path(directory) / "digits_captions" / "1.0.0"

    monkeypatch.setattr(digits_captions, "prepare", beaten)
    assert len(open_source(config(tmp_path), "test")) == 360
    assert [p.name for p in tmp_path.iterdir()] == ["digits_captions"]
