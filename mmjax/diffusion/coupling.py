"""Which noise goes with which example in training.

Independent pairs are the default; minibatch optimal transport (Pooladian et al. 2023; Tong et al. 2024) gives the examples of a group the
noises of that group so that the sum of squared distances is least, which straightens a flow's paths. Reflow (Liu et al. 2023) trains on the
pairs that a trained flow makes itself, which straightens them further: `straightness` says how far.
"""

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Float, Int

from mmjax.core.errors import UserError, suggest

COUPLINGS = ("independent", "optimal_transport")
PAIRS = "pairs"  # nothing is coupled here: data come with their noise, a teacher's (reflow)


def couple(
    eps: Float[Array, "B *x"], x0: Float[Array, "B *x"], kind: str = "independent", group: int | None = None
) -> Float[Array, "B *x"]:
    """The noises in the order in which they go with the examples.

    Args:
      kind: of `COUPLINGS`. Optimal transport makes an example's noise depend on its group's other examples, and on nothing else.
      group: consecutive examples that are matched among themselves, so that neither the batch's size nor the mesh changes the pairs;
        the whole batch by default. Time grows as group^3.

    Raises:
      UserError: an unknown coupling, a group that does not divide the batch.
    """
    if kind not in COUPLINGS:
        raise UserError(f"coupling is {kind!r}{suggest(kind, COUPLINGS)}")
    if kind == "independent":
        return eps
    batch = len(x0)
    group = group or batch
    if batch % group:
        raise UserError(f"coupling in groups of {group} examples and a batch of {batch}; expected a group that divides it")
    flat = lambda x: x.reshape(batch // group, group, -1)
    # |x - e|^2 but for what no pairing changes
    cost = -jnp.einsum("gid,gjd->gij", flat(x0), flat(eps), precision=lax.Precision.HIGHEST)
    places = jax.vmap(assignment)(cost) + group * jnp.arange(batch // group)[:, None]
    return eps[places.reshape(batch)]


def straightness(states: Float[Array, "N_plus_1 B *x"], times: Float[np.ndarray, "N_plus_1"]) -> Float[Array, "B"]:
    """S of every example's walk: the time's mean of |displacement - velocity|^2, both per unit of time; 0 where the way is a straight line
    gone through evenly, which one Euler step then follows exactly (Liu et al. 2023, section 2.1, whose S is the mean over examples).

    Args:
      states: x at every time, of a sampler with `trajectory`; between two times it is taken to go straight.
      times: concrete, falling.
    """
    flat = states.reshape(*states.shape[:2], -1)
    gaps = np.diff(np.asarray(times, np.float64))
    column = jnp.asarray(gaps.reshape(-1, 1, 1), flat.dtype)
    off = (flat[1:] - flat[:-1]) / column - (flat[-1:] - flat[:1]) / column.sum()
    return jnp.einsum("nbd,nbd,n->b", off, off, jnp.asarray(gaps / gaps.sum(), flat.dtype), precision=lax.Precision.HIGHEST)


def assignment(cost: Float[Array, "N N"]) -> Int[Array, "N"]:
    """The permutation p of least sum_i cost[i, p_i]: exact but for float32's rounding of sums.

    The Hungarian method by shortest augmenting paths (Jonker & Volgenant 1987; the algorithm behind scipy's linear_sum_assignment): rows
    are taken up one at a time, each by a Dijkstra search over reduced costs whose step is one vector operation. O(N^3), on the device.
    """
    cost = lax.stop_gradient(cost.astype(jnp.promote_types(cost.dtype, jnp.float32)))
    n = len(cost)
    # Column n is the root of a search: no column of the matrix, it holds the row that is being taken up.
    cost = jnp.concatenate([cost, jnp.full((n, 1), jnp.inf, cost.dtype)], axis=1)

    def take_up(row, carry):
        of_row, of_column, holder = carry  # the two potentials [N], [N + 1], and each column's row, -1 for none
        holder, far = holder.at[n].set(row), jnp.full((n + 1,), jnp.inf, cost.dtype)
        start = (jnp.int32(n), far, jnp.full((n + 1,), n), jnp.zeros((n + 1,), bool), of_row, of_column)
        search = lambda state: _grow(cost, holder, state)
        end, _, before, _, of_row, of_column = lax.while_loop(lambda state: holder[state[0]] >= 0, search, start)
        return of_row, of_column, _augment(holder, before, end)

    zeros = jnp.zeros((n,), cost.dtype)
    carry = (zeros, jnp.zeros((n + 1,), cost.dtype), jnp.full((n + 1,), -1, jnp.int32))
    holder = lax.fori_loop(0, n, take_up, carry)[2][:n]
    return jnp.zeros((n,), jnp.int32).at[holder].set(jnp.arange(n, dtype=jnp.int32))


def _grow(cost: Array, holder: Array, state: tuple) -> tuple:
    """One column more into the tree of a search: the nearest, by costs less both potentials."""
    column, distance, before, done, of_row, of_column = state
    n = cost.shape[0]
    row = holder[column]
    done = done.at[column].set(True)
    reduced = cost[row] - of_row[row] - of_column
    nearer = ~done & (reduced < distance)
    distance, before = jnp.where(nearer, reduced, distance), jnp.where(nearer, column, before)
    outside = jnp.where(done, jnp.inf, distance)
    nearest = jnp.argmin(outside).astype(jnp.int32)
    gap = outside[nearest]
    of_row = of_row.at[jnp.where(done, holder, n)].add(gap, mode="drop")  # rows whose column is in the tree
    return nearest, jnp.where(done, distance, distance - gap), before, done, of_row, of_column - jnp.where(done, gap, 0)


def _augment(holder: Array, before: Array, end: Array) -> Array:
    """Hands every row of the path from the root to `end` to the column after its own."""
    root = len(holder) - 1
    move = lambda state: (state[0].at[state[1]].set(state[0][before[state[1]]]), before[state[1]])
    return lax.while_loop(lambda state: state[1] != root, move, (holder, end))[0]
