import pickle
from collections import Counter

import numpy as np
import pytest
from ml_collections import ConfigDict

from mmjax.core import config as config_lib
from mmjax.core.errors import UserError
from mmjax.data.loader import batches
from mmjax.data.mixture import ByComponent, Concat, MixtureOrder, schedule, shares
from mmjax.data.order import Order
from mmjax.data.source import Info
from mmjax.data.stream import derived, open_stream, open_streams


class Named:
    def __init__(self, name, n):
        self.info, self.n = Info(name, "train", (), (), None, {"i": "int"}), n

    def __len__(self):
        return self.n

    def __getitem__(self, i):
        return {"i": np.int32(i)}


def test_shares_are_exact_ratios_of_the_decimals():
    assert shares([0.7, 0.2, 0.1]) == (7, 2, 1)
    assert shares([3, 1]) == (3, 1) and shares([6.0, 2]) == (3, 1) and shares([5]) == (1,)
    assert shares([1281167, 118287, 29000]) == (58782, 5427, 1327 + 0) or sum(shares([1281167, 118287, 29000])) <= 65536
    rounded = shares([1281167, 118287, 29000])
    exact = np.array([1281167, 118287, 29000]) / (1281167 + 118287 + 29000)
    assert abs(np.array(rounded) / sum(rounded) - exact).max() < 1 / 65536
    for weights, message in (
        ([], "no component"),
        ([1, 0], "weight 0 is no"),
        ([1, -2], "-2"),
        ([1, "2"], "'2'"),
        ([1, float("nan")], "nan"),
    ):
        with pytest.raises(UserError, match=message):
            shares(weights)
    with pytest.raises(UserError, match="1e-07 is less than"):
        shares([1, 1e-7])


@pytest.mark.parametrize(
    "counts", [(1,), (1, 1), (7, 2, 1), (3, 1), (5, 5, 1), (97, 2, 1), (1,) * 7, (13, 11, 7, 5, 3, 2), (499, 333, 168), (1, 50, 50)]
)
def test_every_prefix_is_within_one_of_its_share(counts):
    who, rank = schedule(counts)
    period = sum(counts)
    assert len(who) == period and np.bincount(who, minlength=len(counts)).tolist() == list(counts)
    n = np.arange(1, period + 1)
    for i, count in enumerate(counts):
        so_far = np.cumsum(who == i)
        # In integers, so that "within one" is exact: |c(n) - n * count / period| < 1.
        assert (abs(so_far * period - n * count) < period).all()
        assert rank[who == i].tolist() == list(range(count))


def test_hand_case():
    # Windows of 3:1 over 4 positions: a: 1-2, 2-3, 3-4; b: 1-4.
    assert schedule((3, 1))[0].tolist() == [0, 0, 0, 1]
    # 1:1:1 takes turns; of equals the first component goes first.
    assert schedule((1, 1, 1))[0].tolist() == [0, 1, 2]
    # 2:3 over 5: a: 1-3, 3-5; b: 1-2, 2-4, 4-5.
    assert schedule((2, 3))[0].tolist() == [1, 0, 1, 0, 1]


def mixed(weights=(0.7, 0.2, 0.1), sizes=(10, 4, 3), seed=5):
    orders = tuple(Order(n, derived(seed, i)) for i, n in enumerate(sizes))
    return Concat([Named(f"s{i}", n) for i, n in enumerate(sizes)]), MixtureOrder(shares(weights), orders)


def test_each_component_has_its_own_epochs():
    source, order = mixed()
    records = order(np.arange(10 * 12))
    found = [source.find(int(r)) for r in records]
    for i, (share, n) in enumerate(((84, 10), (24, 4), (12, 3))):
        mine = [record for component, record in found if component == i]
        assert len(mine) == share
        for e in range(share // n):
            assert sorted(mine[e * n : (e + 1) * n]) == list(range(n))
    assert [int(order(np.array([p]))[0]) for p in range(120)] == records.tolist()
    far = 10**15
    assert sorted(Counter(source.find(int(r))[0] for r in order(np.arange(far, far + 100))).items()) == [(0, 70), (1, 20), (2, 10)]


def test_equal_sources_are_not_in_step():
    source, order = mixed((1, 1), (100, 100))
    records = order(np.arange(200))
    a, b = ([source.find(int(r))[1] for r in records if source.find(int(r))[0] == i] for i in (0, 1))
    assert np.mean(np.array(a) == np.array(b)) < 0.1


def test_a_replacement_stays_in_its_component():
    source, order = mixed()
    for p in range(200):
        component = source.find(int(order(np.array([p]))[0]))[0]
        assert all(source.find(order.replacement(p, a))[0] == component for a in (1, 2))


def test_concat_describes_and_pickles():
    source, order = mixed()
    copy, _ = pickle.loads(pickle.dumps((source, order)))
    assert len(copy) == 17 and copy[12] == {"i": 2, "_component": 1} and copy.describe(12) == "source 's1' (train), record 2"
    assert source.info.name == "s0+s1+s2" and source.info.split == "train"
    with pytest.raises(IndexError):
        source[17]


def test_batches_of_a_mixture_for_any_number_of_workers():
    source, order = mixed()
    tag = ByComponent(tuple(Tag(i) for i in range(3)))

    def run(**options):
        with batches(source, tag, batch_size=20, seed=5, order=order, start=7, **options) as data:
            return [next(data) for _ in range(4)]

    plain = run(threads=0)
    assert [np.bincount(b["tag"]).tolist() for b in plain] == [[14, 4, 2]] * 4
    for workers in (2, 3):
        for a, b in zip(plain, run(workers=workers), strict=True):
            assert all(np.array_equal(a[k], b[k]) for k in a)


class Tag:
    def __init__(self, i):
        self.i = i

    def __call__(self, example, rng):
        assert "_component" not in example
        return {**example, "tag": np.int32(self.i)}


CHAIN = (("decode", {"channels": 1}), ("normalize", {}), ("keep", {"keys": ("image", "label")}))


def data_config(data, **keys):
    group = config_lib.base().data
    group.unlock()
    group.source, group.dir, group.transforms = data.source, data.dir, CHAIN
    for key, value in keys.items():
        group[key] = value
    group.lock()
    return group


def test_a_mixture_from_a_config(data):
    flipped = (*CHAIN[:1], ("flip", {"p": 1.0}), *CHAIN[1:])
    group = data_config(data, mixture=((3, {"split": "train"}), (1, {"split": "test", "transforms": flipped})))
    stream = open_stream(group, 0)
    assert len(stream.source) == 1297 + 360
    with batches(stream.source, stream.transform, batch_size=16, seed=stream.seed, order=stream.order, threads=0) as made:
        batch = next(made)
    component, within = stream.order.place(np.arange(16))
    assert np.bincount(component).tolist() == [12, 4]
    alone = open_stream(data_config(data, split="test", transforms=flipped), derived(0, 1))
    record = alone.order(within[component == 1])[0]
    expected = alone.transform(alone.source[int(record)], np.random.default_rng(0))
    assert np.array_equal(batch["image"][component == 1][0], expected["image"])


def test_streams_from_a_config(data):
    group = data_config(
        data, streams=ConfigDict({"a": {"split": "train"}, "b": {"split": "test", "mixture": ((1, {}), (1, {"split": "train"}))}})
    )
    streams = open_streams(group, 3)
    assert len(streams["a"].source) == 1297 and len(streams["b"].source) == 360 + 1297
    assert len({s.seed for s in streams.values()} | {3}) == 3
    assert set(open_streams(data_config(data), 3)) == {""}


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"mixture": ((1, {"splt": "test"}),)}, r"data\.mixture\[0\] has unknown key 'splt'; did you mean 'split'\?"),
        ({"mixture": ({"split": "test"},)}, r"data\.mixture\[0\]: expected \(weight"),
        ({"mixture": ((1, {"workers": 2}),)}, "unknown key 'workers'"),
        ({"mixture": ((1, {"window": "x"}),)}, r"data\.mixture\[0\]\.window"),
        ({"mixture": ((0, {}),)}, "weight 0"),
        ({"mixture": ((1, {"transforms": (("decod", {}),)}),)}, r"data\.mixture\[0\]\.transforms\[0\]: unknown transform"),
        ({"streams": ConfigDict({"a": {"streams": {}}})}, r"data\.streams\.a has unknown key 'streams'"),
    ],
)
def test_bad_configs(data, keys, message):
    with pytest.raises(UserError, match=message):
        open_streams(data_config(data, **keys), 0)
