import numpy as np
import pytest

from mmjax.data.order import Order, permute


@pytest.mark.parametrize("n", [1, 2, 3, 7, 8, 9, 100, 1297, 4096])
def test_is_a_permutation(n):
    for epoch in range(3):
        assert sorted(permute(np.arange(n), n, 5, epoch).tolist()) == list(range(n))


def test_every_place_alone_gives_the_same(n=1297):
    whole = permute(np.arange(n), n, 0, 1)
    assert [int(permute(np.array([i]), n, 0, 1)[0]) for i in range(0, n, 100)] == whole[::100].tolist()


def test_golden():
    # A run's order may never change: checkpoints hold a cursor into it.
    assert permute(np.arange(8), 8, 0, 0).tolist() == [3, 6, 2, 4, 0, 1, 5, 7]
    assert permute(np.arange(6), 1297, 7, 3).tolist() == [890, 1098, 231, 591, 1022, 629]


def test_seeds_and_epochs_are_unrelated(n=1297):
    orders = {(s, e): permute(np.arange(n), n, s, e) for s in range(3) for e in range(3)}
    keys = list(orders)
    for i, a in enumerate(keys):
        assert abs(np.corrcoef(orders[a], np.arange(n))[0, 1]) < 5 / np.sqrt(n)
        for b in keys[i + 1 :]:
            assert (orders[a] == orders[b]).mean() < 0.01  # 1/1297 by chance


def test_is_uniform(n=10, draws=4000):
    # Every record in every place equally often: chi-square of an n x n table with (n - 1)^2 degrees of freedom.
    counts = np.zeros((n, n))
    for epoch in range(draws):
        counts[np.arange(n), permute(np.arange(n), n, 3, epoch)] += 1
    chi2 = ((counts - draws / n) ** 2 / (draws / n)).sum()
    dof = (n - 1) ** 2
    assert abs(chi2 - dof) < 5 * np.sqrt(2 * dof)


def test_large_sources():
    n = (1 << 40) + 7
    places = np.array([0, 1, n - 1, n // 2])
    out = permute(places, n, 0, 0)
    assert len(set(out.tolist())) == 4 and out.min() >= 0 and out.max() < n


def flat(order, count, start=0):
    return order(np.arange(start, start + count))


@pytest.mark.parametrize(
    ("groups", "window"),
    [((5, 1, 7, 3), 2), ((4,) * 9, 4), ((1,) * 11, 3), ((0, 6, 0, 0, 5, 2), 2), ((3, 4), 1), ((100, 1, 1, 1, 1, 50, 3), 3)],
)
def test_two_levels_give_a_permutation_every_epoch(groups, window):
    n = sum(groups)
    order = Order(n, 5, groups, window)
    assert order.two_level
    epochs = [flat(order, n, e * n).tolist() for e in range(4)]
    assert all(sorted(e) == list(range(n)) for e in epochs)
    assert len({tuple(e) for e in epochs}) == 4
    assert [int(order(np.array([p]))[0]) for p in range(2 * n)] == epochs[0] + epochs[1]  # any position alone


def test_two_levels_read_a_window_of_shards_at_a_time():
    groups, window = (10,) * 12, 3
    order = Order(120, 1, groups, window)
    for epoch in range(3):
        shards = flat(order, 120, 120 * epoch) // 10
        parts = [set(shards[i : i + 30].tolist()) for i in range(0, 120, 30)]
        assert [len(p) for p in parts] == [3, 3, 3, 3] and len(set.union(*parts)) == 12
        assert all(len(set(shards[i : i + 8].tolist())) > 1 for i in range(0, 120, 30))  # mixed, not one shard after another
    first = [frozenset((flat(order, 30, 120 * e) // 10).tolist()) for e in range(20)]
    assert len(set(first)) > 10


def test_two_levels_are_uniform_within_what_they_allow(draws=3000):
    # Every record in every place equally often: shards of one size, so no place is special.
    n, order = 8, Order(8, 3, (2, 2, 2, 2), 2)
    counts = np.zeros((n, n))
    for epoch in range(draws):
        counts[np.arange(n), flat(order, n, n * epoch)] += 1
    chi2, dof = ((counts - draws / n) ** 2 / (draws / n)).sum(), (n - 1) ** 2
    assert abs(chi2 - dof) < 5 * np.sqrt(2 * dof)


def test_two_level_golden():
    # Checkpoints hold a cursor into it.
    assert flat(Order(12, 7, (3, 4, 2, 3), 2), 12, 12).tolist() == [2, 5, 3, 0, 6, 1, 4, 7, 8, 10, 9, 11]


def test_one_level_where_shards_do_not_matter():
    plain = flat(Order(12, 7), 24)
    assert plain[:12].tolist() == permute(np.arange(12), 12, 7, 0).tolist()
    for groups, window in (((), 4), ((6, 6), 0), ((6, 6), 2), ((6, 6), 16)):
        order = Order(12, 7, groups, window)
        assert not order.two_level and flat(order, 24).tolist() == plain.tolist()
    assert flat(Order(12, 7, (6, 6), 1, shuffle=False), 14).tolist() == [*range(12), 0, 1]
    with pytest.raises(ValueError, match="groups hold 11 records, the source 12"):
        Order(12, 7, (6, 5), 1)


def test_blocks_stay_together():
    out = flat(Order(12, 0, block=3), 12).reshape(4, 3)
    assert (out % 3 == [0, 1, 2]).all() and sorted(out[:, 0].tolist()) == [0, 3, 6, 9]
    with pytest.raises(ValueError, match="block 5"):
        Order(12, 0, block=5)


def test_memory_is_a_number_a_shard():
    order = Order((1 << 40) * 1000, 0, (1 << 40,) * 1000, 16)
    out = order(np.array([0, 1, 17 << 40, (1000 << 40) - 1, 5000 << 40]))
    assert len(set(out.tolist())) == 5 and out.min() >= 0 and out.max() < 1000 << 40
    assert sum(a.nbytes for layout in order._layouts.values() for a in layout) < 100_000
    for epoch in range(10):
        order(np.array([epoch * (1000 << 40)]))
    assert len(order._layouts) <= 4


def test_replacements_are_functions_of_seed_position_and_attempt():
    order = Order(1000, 3)
    got = [[order.replacement(p, a) for a in (1, 2, 3)] for p in range(2000)]
    assert got == [[Order(1000, 3).replacement(p, a) for a in (1, 2, 3)] for p in range(2000)]
    assert [order.replacement(p, 1) for p in range(5)] != [Order(1000, 4).replacement(p, 1) for p in range(5)]
    for a in range(3):
        counts = np.bincount([g[a] // 100 for g in got], minlength=10)
        assert len(counts) == 10 and abs(counts - 200).max() < 80  # standard deviation 13
    assert np.mean([g[0] == g[1] for g in got]) < 0.01
