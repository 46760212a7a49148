"""Sums over the rows and columns of a B x B matrix of logits that nobody holds.

The matrix is given by its factors, scale * images @ texts.T + bias, whose rows are split over W devices. Every device keeps its b = B / W
images while the texts, with the state of their columns, travel once around the ring; the b x b block that a device sees at a time is
made tile by tile, and every tile serves its rows and its columns at once. The backward pass goes around again and makes the tiles anew, so
that what is ever held of the matrix is a tile a device: memory is O(b E + tile^2), and work a third more than with the matrix stored.
Cheng et al. 2024 (Inf-CL, section 3) have tiles and ring for GPUs, with rows and columns in two passes.

B pairs, b of them a device in n tiles of m, E embedding.
"""

import functools
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.sharding import PartitionSpec
from jaxtyping import Array, Float

from mmjax.core.sharding import AnyMesh, splits

State = Any  # nested dict of arrays with one number a row, or a column
NEGATIVE = -1e30  # the logit of a pair that does not exist. Not infinite: inf - inf is no number, and a row of padding has none that exist


class Factors(NamedTuple):
    """The logits scale * images @ texts.T + bias."""

    images: Float[Array, "B E"]
    texts: Float[Array, "B E"]
    scale: Float[Array, ""]
    bias: Float[Array, ""] | None = None


class Reduction(NamedTuple):
    """What is summed. The logits L of a tile are [m, n]; `fixed`, [m, n] too, are those of a second matrix without gradient, or None.

    Attributes:
      start: `start(zeros) -> (rows, columns)`, the states before the first tile, in the shape of `zeros`.
      update: `update(L, fixed, rows, columns) -> (rows, columns)`.
      finish: `finish(rows, columns) -> (rows, columns)`, the results. `rows["max"]` is expected, and has no gradient.
      slope: `slope(L, fixed, (rows, columns), (their cotangents)) -> [m, n]`, the derivative by L, from the results.
    """

    start: Callable[[Array], tuple[State, State]]
    update: Callable[[Array, Array | None, State, State], tuple[State, State]]
    finish: Callable[[State, State], tuple[State, State]]
    slope: Callable[[Array, Array | None, tuple[State, State], tuple[State, State]], Array]


class Plan(NamedTuple):
    """How it is cut: B `total` pairs over the mesh axes that split the batch, in tiles of at most `tile` x `tile`."""

    mesh: AnyMesh | None
    axes: tuple[str, ...]
    total: int
    tile: int

    @property
    def ways(self) -> int:
        return ways(self.mesh, self.axes)

    def grid(self) -> tuple[int, int, int]:
        """(b, n, m): rows a device, and the fewest tiles of the least size that hold them."""
        b = -(-self.total // self.ways)
        n = -(-b // self.tile)
        return b, n, -(-b // n)


def ways(mesh: AnyMesh | None, axes: tuple[str, ...]) -> int:
    """Into how many parts those axes split an array."""
    return math.prod(mesh.shape[axis] for axis in axes)


def matrix_sums(
    reduction: Reduction, factors: Factors, fixed: Factors | None = None, *, tile: int, mesh: AnyMesh | None = None
) -> tuple[State, State, Float[Array, "B"]]:
    """(rows, columns, diagonal): the reduction's results for every row and column, and the logits of the right pairs.

    Differentiable by `factors`, once and in reverse; `fixed` is a constant. B may be any number: what tiles and devices lack is padded
    and masked.
    """
    mesh, axes = splits("batch", mesh)
    total = factors.images.shape[0]
    plan = Plan(mesh, axes, total, min(tile, total))
    pad = lambda f: f and f._replace(images=pad_rows(f.images, plan.ways), texts=pad_rows(f.texts, plan.ways))
    return jax.tree.map(lambda x: x[:total], _sums(reduction, plan, pad(factors), pad(fixed)))


def pad_rows(x: Array, multiple: int) -> Array:
    """`x` with rows of zeros, so that their number is a multiple."""
    missing = -x.shape[0] % multiple
    return jnp.pad(x, ((0, missing), *((0, 0),) * (x.ndim - 1))) if missing else x


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def _sums(reduction: Reduction, plan: Plan, factors: Factors, fixed: Factors | None) -> tuple[State, State, Array]:
    return _over_mesh(plan, functools.partial(_forward, reduction, plan), "split", factors, fixed)


def _sums_forward(reduction: Reduction, plan: Plan, factors: Factors, fixed: Factors | None):
    out = _sums(reduction, plan, factors, fixed)
    return out, (factors, fixed, out[:2])


def _sums_backward(reduction: Reduction, plan: Plan, saved, cotangent):
    out = Factors("split", "split", "whole", None if saved[0].bias is None else "whole")
    return _over_mesh(plan, functools.partial(_backward, reduction, plan), out, *saved, cotangent), None


_sums.defvjp(_sums_forward, _sums_backward)


def _over_mesh(plan: Plan, fn: Callable, out: Any, *args: Any) -> Any:
    """`fn` on every device's rows. Scalars are whole, whatever has rows is split; so is what comes out, by `out`."""
    if plan.ways == 1:
        return fn(*args)
    place = {"split": PartitionSpec(plan.axes), "whole": PartitionSpec()}
    ins = jax.tree.map(lambda x: place["split" if x.ndim else "whole"], args)
    outs = jax.tree.map(place.get, out)
    # Nothing here is differentiated by jax, so its accounting of what varies over the mesh, which that needs, is left out.
    return jax.shard_map(fn, mesh=plan.mesh, in_specs=ins, out_specs=outs, check_vma=False)(*args)


# --- one device's part ---------------------------------------------------------------------------------------------------


def _forward(reduction: Reduction, plan: Plan, factors: Factors, fixed: Factors | None) -> tuple[State, State, Array]:
    b, n, m = plan.grid()
    images, texts = _tiles(plan, (factors.images, fixed and fixed.images)), _tiles(plan, (factors.texts, fixed and fixed.texts))
    zeros = jnp.zeros((n, m), factors.images.dtype)
    rows, columns = reduction.start(zeros)

    def visit(carry, texts, device, i, j):
        (rows, diagonal), columns = carry
        logits, other = _logits(plan, (factors, fixed), _at(images, i), _at(texts, j), device, i, j)
        new_row, new_column = reduction.update(logits, other, _at(rows, i), _at(columns, j))
        own = _at(diagonal, i) + _diagonal(logits, plan, device, i, j)
        return (_put(rows, new_row, i), _put(diagonal, own, i)), _put(columns, new_column, j)

    (rows, diagonal), columns = _around(plan, visit, (rows, zeros), texts, columns)
    rows, columns = reduction.finish(rows, columns)
    return jax.tree.map(lambda x: x.reshape(-1)[:b], (rows, columns, diagonal))


def _backward(reduction: Reduction, plan: Plan, factors: Factors, fixed: Factors | None, results, cotangent) -> Factors:
    b, _, _ = plan.grid()
    d_rows, d_columns, d_diagonal = cotangent
    images, texts = _tiles(plan, (factors.images, fixed and fixed.images)), _tiles(plan, (factors.texts, fixed and fixed.texts))
    rows, columns = _tiles(plan, (results[0], d_rows)), _tiles(plan, (results[1], d_columns))
    # The right pairs' own part, then what the tiles add to it.
    own = _tiles(plan, d_diagonal)[..., None]
    d_images, d_texts, d_bias = own * texts[0], factors.scale * own * images[0], d_diagonal.sum()

    def visit(carry, texts, device, i, j):
        (d_images, d_bias), (columns, d_texts) = carry
        image, text, row, column = _at(images, i), _at(texts, j), _at(rows, i), _at(columns, j)
        logits, other = _logits(plan, (factors, fixed), image, text, device, i, j)
        slope = reduction.slope(logits, other, (row[0], column[0]), (row[1], column[1]))
        d_images = _put(d_images, _at(d_images, i) + _dot(slope, text[0]), i)
        d_texts = _put(d_texts, _at(d_texts, j) + _dot(slope.T, factors.scale * image[0]), j)
        return (d_images, d_bias if factors.bias is None else d_bias + slope.sum()), (columns, d_texts)

    (d_images, d_bias), (_, d_texts) = _around(plan, visit, (d_images, d_bias), texts, (columns, d_texts))
    # L is linear in the images, so the sum of slope * L over a row is the image's product with its gradient.
    d_scale = (d_images * images[0]).sum()
    whole = lambda x: lax.psum(x, plan.axes) if plan.ways > 1 else x
    flat = lambda x: x.reshape(-1, x.shape[-1])[:b]
    return Factors(flat(factors.scale * d_images), flat(d_texts), whole(d_scale), None if factors.bias is None else whole(d_bias))


def _around(plan: Plan, visit: Callable, here: Any, texts: Any, state: Any) -> tuple[Any, Any]:
    """Runs `visit((here, state), texts, device, i, j)` over every tile of every device's texts; `texts` and `state` travel and come home.

    `device` is where the texts at hand come from, relative to this one; i counts tiles of images, j of texts.
    """
    _, n, _ = plan.grid()
    around = [(k, (k + 1) % plan.ways) for k in range(plan.ways)]
    pass_on = lambda tree: jax.tree.map(lambda x: lax.ppermute(x, plan.axes, around), tree)

    def block(carry, k):
        here, texts, state = carry
        device = (_me(plan) - k) % plan.ways
        following = pass_on(texts) if plan.ways > 1 else texts  # sent before the work on them, so that the two overlap
        tile = lambda carry, at: (visit(carry, texts, device, at // n, at % n), None)
        (here, state), _ = lax.scan(tile, (here, state), jnp.arange(n * n))
        return (here, following, pass_on(state) if plan.ways > 1 else state), None

    if plan.ways == 1:
        here, _, state = block((here, texts, state), 0)[0]
    else:
        (here, _, state), _ = lax.scan(block, (here, texts, state), jnp.arange(plan.ways))
    return here, state


def _me(plan: Plan) -> Array | int:
    return lax.axis_index(plan.axes) if plan.ways > 1 else 0


def _dot(a: Array, b: Array) -> Array:
    return jnp.matmul(a, b, precision=lax.Precision.HIGHEST)


def _logits(plan: Plan, pair: tuple[Factors, Factors | None], images: Any, texts: Any, device: Array | int, i: Array, j: Array):
    """The logits of tile (i, j), and those of the fixed matrix; NEGATIVE where image or text is padding."""
    b, n, m = plan.grid()
    exists = None
    if n * m * plan.ways != plan.total:
        there = lambda device, tile: tile * m + jnp.arange(m) < jnp.clip(plan.total - device * b, 0, b)
        exists = there(_me(plan), i)[:, None] & there(device, j)[None, :]
    out = []
    for factors, x, y in zip(pair, images, texts, strict=True):
        if factors is None:
            out.append(None)
            continue
        logits = _dot(factors.scale * x, y.T)
        logits = logits if factors.bias is None else logits + factors.bias
        out.append(logits if exists is None else jnp.where(exists, logits, NEGATIVE))
    return out


def _diagonal(logits: Array, plan: Plan, device: Array | int, i: Array, j: Array) -> Array:
    """[m]: each row's right pair, by its place in the whole batch; 0 where another tile has it."""
    b, _, m = plan.grid()
    column = (_me(plan) - device) * b + i * m + jnp.arange(m)  # its place among that device's texts
    inside = column - j * m
    found = jnp.take_along_axis(logits, jnp.clip(inside, 0, m - 1)[:, None], axis=1)[:, 0]
    return jnp.where((inside >= 0) & (inside < m) & (column < b), found, 0)


def _tiles(plan: Plan, tree: Any) -> Any:
    """[b, ...] -> [n, m, ...], padded with zeros."""
    _, n, m = plan.grid()
    return jax.tree.map(lambda x: pad_rows(x, n * m).reshape(n, m, *x.shape[1:]), tree)


def _at(tree: Any, i: Array) -> Any:
    return jax.tree.map(lambda x: lax.dynamic_index_in_dim(x, i, keepdims=False), tree)


def _put(tree: Any, values: Any, i: Array) -> Any:
    return jax.tree.map(lambda x, v: lax.dynamic_update_index_in_dim(x, v, i, 0), tree, values)
