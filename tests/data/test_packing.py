import dataclasses
import json
import pickle

import numpy as np
import pytest

from mmjax.core.errors import UserError
from mmjax.data import packing
from mmjax.data.loader import batches
from mmjax.data.order import Order
from mmjax.data.packing import Grouped, Packed, group_by_length, pack
from mmjax.data.source import Info


class Sequences:
    """Record i is `lengths[i]` times the number 100 + i."""

    def __init__(self, lengths):
        self.info, self.lengths = Info("sequences", "train", (), (), None, {"ids": "int"}, fingerprint="f1"), lengths

    def __len__(self):
        return len(self.lengths)

    def __getitem__(self, i):
        return {"ids": np.full(self.lengths[i], 100 + i, np.int32)}


def ids(record):
    return record["ids"]


def groups(index):
    return [index[g].tolist() for g in range(len(index))]


def test_pack_by_hand():
    # Longest first into the fullest that takes it: 7 | 6 | 5 | 4 with 6 | 3 with 7 | 2: rooms are 5:5, 6:0, 7:0 -> with 5 | 1 with 5+2.
    index = pack(np.array([4, 7, 1, 5, 6, 3, 2]), 10)
    assert groups(index) == [[0, 4], [1, 5], [2, 3, 6]]
    assert index.about == {"cut": 0, "empty": 0, "filled": round(28 / 30, 6), "window": 8192}
    # Best fit, not first fit: 2 goes to the pack with 2 left (8), not to the one with 3 left (7).
    assert groups(pack(np.array([7, 8, 2]), 10)) == [[0], [1, 2]]
    # Equal rooms: the older pack.
    assert groups(pack(np.array([6, 6, 4]), 10)) == [[0, 2], [1]]


def test_windows_are_independent():
    lengths = np.array([9, 1, 5, 5, 9, 1])
    assert groups(pack(lengths, 10, window=2)) == [[0, 1], [2, 3], [4, 5]]
    assert groups(pack(lengths, 10, window=1)) == [[i] for i in range(6)]


def test_long_and_empty_sequences_are_counted():
    index = pack(np.array([25, 0, 10, 3, 0]), 10)
    assert groups(index) == [[0], [2], [3]] and (index.about["cut"], index.about["empty"]) == (1, 2)
    with pytest.raises(UserError, match="none of the 2 sequences"):
        pack(np.array([0, 0]), 10)
    with pytest.raises(UserError, match="at least 1"):
        pack(np.array([1]), 0)


def test_packs_of_random_lengths_hold_everything_once_and_are_full():
    lengths = np.minimum(np.random.default_rng(0).geometric(1 / 40, 5000), 256)
    index = pack(lengths, 256, window=1000)
    assert sorted(index.members.tolist()) == list(range(5000))
    sums = [lengths[index[g]].sum() for g in range(len(index))]
    assert max(sums) <= 256 and index.about["filled"] > 0.98
    assert len(index) <= -(-lengths.sum() // 256) * 11 / 9 + 6 * 5
    again = pack(lengths, 256, window=1000)
    assert np.array_equal(index.members, again.members) and np.array_equal(index.offsets, again.offsets)


def test_packed_source_by_hand():
    packed = Packed(Sequences([4, 7, 1, 5, 6, 3, 12]), pack(np.array([4, 7, 1, 5, 6, 3, 12]), 10), ids, pad=9)
    assert len(packed) == 4
    assert {k: v.tolist() for k, v in packed[0].items()} == {
        "tokens": [100] * 4 + [104] * 6,
        "segments": [1] * 4 + [2] * 6,
        "positions": [*range(4), *range(6)],
    }
    third = packed[2]  # records 2 and 3
    assert third["tokens"].tolist() == [102] + [103] * 5 + [9] * 4 and third["segments"].tolist() == [1] + [2] * 5 + [0] * 4
    assert third["positions"].tolist() == [0, *range(5), 0, 0, 0, 0] and third["tokens"].dtype == np.int32
    assert packed[3]["tokens"].tolist() == [106] * 10  # cut
    grown = Packed(Sequences([4, 7, 1, 5, 8, 3, 12]), pack(np.array([4, 7, 1, 5, 6, 3, 12]), 10), ids)
    with pytest.raises(UserError, match=r"pack 0 of records 0, 4: sequences are longer than when"):
        grown[0]


def test_packs_feed_the_loader(tmp_path):
    source = Sequences([3, 9, 4, 6, 2, 8, 1, 5] * 3)
    packing.save(pack(np.array(source.lengths), 10), tmp_path / "packs", source)
    packed = Packed(source, packing.load(tmp_path / "packs", source, "packs"), ids)

    def run(**options):
        with batches(packed, lambda e, rng: e, batch_size=4, seed=1, **options) as data:
            return [next(data) for _ in range(4)]

    plain = run(threads=0)
    for batch in plain:
        assert batch["tokens"].shape == (4, 10) and batch["segments"].max() >= 1
    with batches(packed, Same(), batch_size=4, seed=1, workers=2) as data:
        for a in plain:
            b = next(data)
            assert all(np.array_equal(a[k], b[k]) for k in a)


class Same:
    def __call__(self, example, rng):
        return example


def test_length_groups_by_hand():
    index = group_by_length(np.array([5, 1, 9, 1, 5, 2, 7]), 2)
    assert groups(index) == [[1, 3], [5, 0], [4, 6], [2, 2]] and index.about["repeated"] == 1
    assert groups(group_by_length(np.array([5, 1, 9, 1, 5, 2]), 2, window=3)) == [[1, 0], [3, 2], [5, 4]]  # windows of 2
    assert groups(group_by_length(np.array([3]), 4)) == [[0, 0, 0, 0]]
    with pytest.raises(UserError, match="size of at least 1"):
        group_by_length(np.array([3]), 0)


def test_the_fingerprint_follows_the_members():
    source = Sequences([5, 5, 1, 1])
    marks = [Grouped(source, group_by_length(np.array(lengths), 2)).info.fingerprint for lengths in ([5, 5, 1, 1], [5, 1, 5, 1])]
    again = Grouped(Sequences([5, 5, 1, 1]), group_by_length(np.array([6, 6, 2, 2]), 2)).info.fingerprint
    assert marks[0] != marks[1] and marks[0] == again != source.info.fingerprint


def test_a_batch_is_a_length_group():
    lengths = np.random.default_rng(0).integers(1, 100, 203)
    source = Sequences(lengths.tolist())
    grouped = Grouped(source, group_by_length(lengths, 8))
    order = Order(len(grouped), 3, block=8)
    seen = []
    with batches(grouped, lambda e, rng: {"n": np.int32(len(e["ids"])), "i": e["ids"][0]}, batch_size=8, seed=3, order=order) as data:
        for _ in range(len(grouped) // 8):
            batch = next(data)
            assert batch["n"].max() - batch["n"].min() < 15
            seen += (batch["i"] - 100).tolist()
    assert set(seen) == set(range(203)) and len(seen) == 208
    assert grouped.describe(0) == f"source 'sequences' (train), record {int(np.argmin(lengths))}"


def test_an_index_on_disk_is_a_memory_map(tmp_path):
    source = Sequences([4, 7, 1, 5, 6, 3, 2])
    made = pack(np.array(source.lengths), 10)
    packing.save(made, tmp_path / "a" / "index", source)
    assert sorted(p.name for p in (tmp_path / "a").iterdir()) == ["index"]
    index = packing.load(tmp_path / "a" / "index", source, "packs")
    assert isinstance(index.members, np.memmap) and groups(index) == groups(made) and index.about == made.about
    assert (tmp_path / "a" / "index" / "members.npy").read_bytes() == _again(made, source, tmp_path / "b")
    blob = pickle.dumps(index)
    assert len(blob) < 1500 and isinstance(pickle.loads(blob).members, np.memmap)
    assert groups(pickle.loads(pickle.dumps(made))) == groups(made)
    packing.save(pack(np.array(source.lengths), 8), tmp_path / "a" / "index", source)  # in its place
    assert packing.load(tmp_path / "a" / "index", source, "packs").size == 8


def _again(index, source, folder):
    packing.save(index, folder, source)
    return (folder / "members.npy").read_bytes()


@pytest.mark.parametrize("harm", ["missing", "header", "cut", "json", "kind", "count", "fingerprint", "newer"])
def test_bad_indices(tmp_path, harm):
    source, folder, kind = Sequences([4, 7, 1, 5, 6, 3, 2]), tmp_path / "index", "packs"
    packing.save(pack(np.array(source.lengths), 10), folder, source)
    header = json.loads((folder / "index.json").read_text())
    if harm == "missing":
        folder, message = tmp_path / "nowhere", "there is no index"
    elif harm == "header":
        (folder / "index.json").write_text(json.dumps({**header, "groups": 9}))
        message = "is damaged .its arrays do not fit"
    elif harm == "cut":
        (folder / "members.npy").write_bytes((folder / "members.npy").read_bytes()[:-8])
        message = "is damaged"
    elif harm == "json":
        (folder / "index.json").write_text("{")
        message = "is damaged"
    elif harm == "kind":
        kind, message = "length_groups", "holds packs, expected length_groups: mmjax data pack"
    elif harm == "count":
        source, message = Sequences([4, 7]), "'records': 7.*'records': 2"
    elif harm == "fingerprint":
        source.info = dataclasses.replace(source.info, fingerprint="f2")
        message = "built for another set, .*this is .*; build it again: mmjax data pack"
    else:
        (folder / "index.json").write_text(json.dumps({**header, "format": 99}))
        message = "format 99"
    with pytest.raises(UserError, match=message) as e:
        packing.load(folder, source, kind)
    assert "\n" not in str(e.value)
