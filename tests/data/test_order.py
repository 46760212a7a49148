import numpy as np
import pytest

from mmjax.data.order import permute


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
