"""Means, intervals and tables."""

import numpy as np
import pytest

from mmjax.evals import qa_exact, summary


def test_bootstrap_is_the_resampling_it_stands_for():
    values = (np.arange(200) % 10 < 3).astype(float)  # mean 0.3, standard error sqrt(0.21 / 200) = 0.0324
    low, high = summary.bootstrap(values)
    assert low == pytest.approx(0.3 - 1.96 * 0.0324, abs=0.006) and high == pytest.approx(0.3 + 1.96 * 0.0324, abs=0.006)
    assert (low, high) == summary.bootstrap(values[::-1])
    rng = np.random.default_rng(1)
    odd = rng.exponential(size=60)
    plain = np.quantile([odd[rng.integers(0, 60, 60)].mean() for _ in range(4000)], [0.025, 0.975])
    np.testing.assert_allclose(summary.bootstrap(odd), plain, atol=0.04)
    assert summary.bootstrap(np.ones(5)) == (1.0, 1.0)


def test_by_type():
    values = np.array([1.0, 0.0, 1.0, 1.0])
    found = summary.by_typologies(values, [{"a": "x", "n": "10"}, {"a": "x", "n": "9"}, {"a": "y"}, {}])
    assert {k: (m.mean, m.count) for k, m in found["a"].items()} == {"x": (0.5, 2), "y": (1.0, 1)}
    assert list(found["n"]) == ["9", "10"]
    table = summary.render({"accuracy": summary.mean(values)}, found).splitlines()
    assert table[1].split()[:2] == ["accuracy", "75.00"] and next(line for line in table if line.split()[0] == "x").split()[1] == "50.00"


def test_exact_match():
    assert qa_exact.exact(" Yes. ", "yes") == 1 and qa_exact.exact("2", "two") == 0 and qa_exact.exact("3.5", "35") == 0
