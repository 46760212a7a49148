"""What a run remembers of its sets, and how a set is known again."""

import dataclasses
import json

import numpy as np
import pytest

from mmjax.core.errors import UserError
from mmjax.data import provenance
from mmjax.data.bad import BadSample
from mmjax.data.provenance import Remembered, check, digest, fingerprint
from mmjax.data.source import Info

SET = Remembered("data", "/sets/laion/{00000..00003}.tar", "laion", "train", 4000, "aa11")
MORE = dataclasses.replace(SET, records=4100, fingerprint="bb22")


def test_a_run_that_goes_on_with_the_same_sets_says_nothing(tmp_path):
    assert check(tmp_path, [SET], 0) == "" and [p.name for p in tmp_path.iterdir()] == ["data.json"]
    before = (tmp_path / "data.json").stat().st_mtime_ns
    assert check(tmp_path, [SET], 100) == "" and (tmp_path / "data.json").stat().st_mtime_ns == before
    moved = dataclasses.replace(SET, place="/other/laion/*.tar", name="laion2")
    assert check(tmp_path, [moved], 200) == ""
    assert json.loads((tmp_path / "data.json").read_text())["sets"][0]["place"] == "/other/laion/*.tar"


def test_a_set_that_changed_is_one_line_with_set_file_and_fix(tmp_path):
    check(tmp_path, [SET], 0)
    held = (tmp_path / "data.json").read_bytes()
    with pytest.raises(UserError) as e:
        check(tmp_path, [MORE], 100)
    text = str(e.value)
    for part in (
        "data: set 'laion' (train) at '/sets/laion/{00000..00003}.tar'",
        f"the run in '{tmp_path}' began",
        "4,000 records and fingerprint aa11",
        "now has 4,100 and bb22",
        f"data.accept_changed={digest([MORE])}",
    ):
        assert part in text
    assert "\n" not in text and (tmp_path / "data.json").read_bytes() == held
    with pytest.raises(UserError, match="lying at '/sets/laion/{00000..00003}.tar',"):
        check(tmp_path, [dataclasses.replace(MORE, place="/elsewhere")], 100)
    assert check(tmp_path, [MORE], 0) == ""  # nothing was saved yet: the run begins now


def test_going_on_deliberately_is_remembered_and_holds_for_that_state_alone(tmp_path):
    check(tmp_path, [SET], 0)
    accept = digest([MORE])
    assert "from step 100 on with changed data" in check(tmp_path, [MORE], 100, accept)
    assert json.loads((tmp_path / "data.json").read_text())["earlier"] == [{"until_step": 100, "sets": [dataclasses.asdict(SET)]}]
    assert check(tmp_path, [MORE], 200, accept) == "" == check(tmp_path, [MORE], 200)
    with pytest.raises(UserError, match="4,100 records and fingerprint bb22"):
        check(tmp_path, [dataclasses.replace(MORE, fingerprint="cc33")], 300, accept)


def test_of_several_sets_the_one_that_changed_is_named(tmp_path):
    text = dataclasses.replace(SET, key="data.mixture[1]", name="text", fingerprint="dd44")
    check(tmp_path, [SET, text], 0)
    with pytest.raises(UserError, match=r"^data\.mixture\[1\]: set 'text'"):
        check(tmp_path, [SET, dataclasses.replace(text, fingerprint="ee55")], 1)
    with pytest.raises(UserError, match="it was not there, and now has"):
        check(tmp_path, [SET, dataclasses.replace(text, key="data.mixture[2]")], 1)


def test_a_run_of_an_older_mmjax_begins_to_remember(tmp_path):
    assert "are remembered from step 7 on" in check(tmp_path, [SET], 7)
    with pytest.raises(UserError):
        check(tmp_path, [MORE], 8)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "is damaged"),
        ('{"format": 1}', "is damaged .'sets'"),
        ('{"format": 1, "sets": [{}], "earlier": []}', "is damaged"),
        ('{"format": 99, "mmjax": "9.9", "sets": [], "earlier": []}', "written by mmjax 9.9, a newer one"),
    ],
)
def test_a_damaged_file(tmp_path, text, message):
    (tmp_path / "data.json").write_text(text)
    with pytest.raises(UserError, match=message) as e:
        check(tmp_path, [SET], 1)
    assert "data.json" in str(e.value)


def test_a_source_without_a_fingerprint_is_known_by_its_records():
    class Plain:
        def __init__(self, n, salt=0):
            self.info, self.n, self.salt = Info("plain", "train", (), (), None, {}), n, salt

        def __len__(self):
            return self.n

        def __getitem__(self, i):
            if i == 0:
                raise BadSample("missing", "first")
            return {"a": np.float32(i + self.salt), "t": f"text {i}", "b": b"\x00"}

    first = fingerprint(Plain(50))
    assert first == fingerprint(Plain(50)) and len(first) == 16
    assert len({first, fingerprint(Plain(51)), fingerprint(Plain(50, salt=1)), fingerprint(Plain(0))}) == 4


def test_an_interrupted_write_leaves_the_old_file(tmp_path, monkeypatch):
    check(tmp_path, [SET], 0)
    held = (tmp_path / "data.json").read_bytes()

    def full(*a):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(provenance.os, "replace", full)
    with pytest.raises(OSError):
        check(tmp_path, [MORE], 0)
    assert (tmp_path / "data.json").read_bytes() == held
