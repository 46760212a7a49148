"""Minibatch optimal transport: scipy's assignment is the truth."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.optimize import linear_sum_assignment

from mmjax.core.errors import UserError
from mmjax.diffusion.coupling import assignment, couple


@pytest.mark.parametrize("n", [1, 2, 5, 17, 64])
def test_assignment_equals_scipy(n):
    r = np.random.default_rng(n)
    costs = r.standard_normal((6, n, n)).astype(np.float32) * np.array([1, 1, 1e3, 1e-3, 1, 1], np.float32)[:, None, None]
    costs[4] -= 50  # an offset, which no assignment notices
    found = np.asarray(jax.jit(jax.vmap(assignment))(jnp.asarray(costs)))
    for cost, got in zip(costs, found, strict=True):
        rows, want = linear_sum_assignment(cost)
        np.testing.assert_array_equal(np.sort(got), np.arange(n))
        np.testing.assert_allclose(cost[rows, got].sum(dtype=np.float64), cost[rows, want].sum(dtype=np.float64), rtol=1e-6)
        np.testing.assert_array_equal(got, want)  # the best is one: draws are continuous


def test_ties_and_equal_costs():
    r = np.random.default_rng(0)
    for cost in (np.zeros((7, 7)), r.integers(0, 3, (20, 20)), np.repeat(r.standard_normal((1, 9)), 9, 0)):
        got = np.asarray(assignment(jnp.asarray(cost, jnp.float32)))
        rows, want = linear_sum_assignment(cost)
        np.testing.assert_array_equal(np.sort(got), rows)
        np.testing.assert_allclose(cost[rows, got].sum(), cost[rows, want].sum(), rtol=1e-6, atol=1e-6)


def batches(n=24, width=6):
    r = np.random.default_rng(1)
    return jnp.asarray(r.standard_normal((n, 2, width // 2)), jnp.float32), jnp.asarray(
        r.standard_normal((n, 2, width // 2)) + 1, jnp.float32
    )


def test_pairs_are_the_nearest_of_all_pairings():
    eps, x0 = batches()
    paired = couple(eps, x0, "optimal_transport")
    distances = np.square(np.asarray(x0)[:, None] - np.asarray(eps)[None]).sum((2, 3))
    _, want = linear_sum_assignment(distances)
    np.testing.assert_array_equal(paired, eps[want])
    assert np.square(np.asarray(x0 - paired)).sum() < 0.8 * np.square(np.asarray(x0 - eps)).sum()
    np.testing.assert_array_equal(couple(eps, x0), eps)


def test_a_group_is_its_own():
    """Neither the batch's size nor what else is in it matters."""
    eps, x0 = batches()
    grouped = couple(eps, x0, "optimal_transport", 8)
    for i in (0, 8, 16):
        np.testing.assert_array_equal(grouped[i : i + 8], couple(eps[i : i + 8], x0[i : i + 8], "optimal_transport"))


def test_refused():
    eps, x0 = batches()
    with pytest.raises(UserError, match="coupling is 'optimal'; did you mean 'optimal_transport'"):
        couple(eps, x0, "optimal")
    with pytest.raises(UserError, match="groups of 7 examples and a batch of 24"):
        couple(eps, x0, "optimal_transport", 7)
