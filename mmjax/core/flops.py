"""Arithmetic of a traced program, from its jaxpr: loops by their trip count, dead code left out.

XLA's own cost analysis visits a loop body once, whatever the trip count, so it is some ten times short for a stack
of twelve scanned layers. Here the body is multiplied by the scan's length. The convention is otherwise XLA's, so the
two agree on an unrolled program: a multiply and an add are two operations; a product of [M, K] and [K, N] is 2MNK; a
convolution counts only products with real input, none with padding or with the holes of dilation; elementwise work is one
an output, integer work included; a reduction one an input less one an output; exp, log, tanh, sqrt and their like are
"transcendentals" and counted apart; moving data is free.

Counted is the work of one call over all devices, as written: what rematerialisation computes twice counts twice. For
model-FLOPs utilisation, count the same program without rematerialisation.
"""

import dataclasses
import math
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np
from jax.extend import core as jex

_MOVES = """
    all_gather all_to_all axis_index bitcast_convert_type broadcast broadcast_in_dim concatenate copy copy_p create_token device_put
    dynamic_slice dynamic_update_slice empty empty2 expand_dims gather get imag iota layout_constraint masked_load masked_swap mesh_cast
    name num_programs optimization_barrier pad pbroadcast pcast ppermute program_id pvary random_seed random_unwrap random_wrap real
    reduce_precision reshape stack reshard rev scatter sharding_constraint slice split squeeze stop_gradient swap transpose
"""
_TRANSCENDENTALS = """
    acos acosh asin asinh atan atan2 atanh cbrt cos cosh digamma erf erf_inv erfc exp exp2 expm1 lgamma log log1p logistic pow rsqrt
    sin sinh sqrt tan tanh
"""
MOVES, TRANSCENDENTALS = frozenset(_MOVES.split()), frozenset(_TRANSCENDENTALS.split())
MATMULS = frozenset({"dot_general", "conv_general_dilated"})
RANDOM_BLOCK = 45  # integer operations of threefry-2x32 for each 32-bit word it yields


@dataclasses.dataclass
class Cost:
    """What one call costs.

    Attributes:
      by_primitive: floating-point and integer operations of each jax primitive (transcendental ones not included).
      transcendentals: evaluations of exp, log, tanh, sqrt and their like; XLA too keeps them apart.
      argument_bytes, output_bytes: size of what goes in and out.
      unbounded_loops: how many `while` loops without a known trip count were counted as a single trip.
      uncounted: primitives with a cost unknown here (library calls, factorisations), counted as nothing.
    """

    by_primitive: Counter[str] = dataclasses.field(default_factory=Counter)
    transcendentals: int = 0
    argument_bytes: int = 0
    output_bytes: int = 0
    unbounded_loops: int = 0
    uncounted: frozenset[str] = frozenset()

    @property
    def flops(self) -> int:
        """All operations."""
        return sum(self.by_primitive.values())

    @property
    def matmul_flops(self) -> int:
        """Those of matrix products and convolutions, which a device's matmul peak applies to."""
        return sum(self.by_primitive[name] for name in MATMULS)

    @property
    def caveats(self) -> list[str]:
        """What the count cannot know, a sentence each; empty if nothing."""
        out = []
        if self.unbounded_loops:
            out.append(f"{self.unbounded_loops} while loop(s) of unknown length counted as one trip")
        if self.uncounted:
            out.append(f"not counted: {', '.join(sorted(self.uncounted))}")
        return out

    def add(self, other: "Cost", times: int = 1) -> None:
        """Adds `times` calls of `other`, arguments and outputs apart."""
        for name, n in other.by_primitive.items():
            self.by_primitive[name] += n * times
        self.transcendentals += other.transcendentals * times
        self.unbounded_loops += other.unbounded_loops
        self.uncounted |= other.uncounted


def count(fn: Callable, *args: Any) -> Cost:
    """Counts one call of `fn(*args)` over all devices, without compiling or running it.

    Args:
      fn: a function jax can trace; jitted or not.
      args: trees of arrays or `jax.ShapeDtypeStruct`.
    """
    closed = jax.make_jaxpr(fn)(*args)
    cost, _ = _walk(closed.jaxpr, [True] * len(closed.jaxpr.outvars))
    cost.argument_bytes = sum(_nbytes(v.aval) for v in closed.jaxpr.invars)
    cost.output_bytes = sum(_nbytes(v.aval) for v in closed.jaxpr.outvars)
    return cost


def _walk(jaxpr: jex.Jaxpr, live: Sequence[bool]) -> tuple[Cost, list[bool]]:
    """The cost of what the `live` outputs need, and which inputs they need."""
    needed = {v for v, on in zip(jaxpr.outvars, live, strict=True) if on and isinstance(v, jex.Var)}
    cost = Cost()
    for eqn in reversed(jaxpr.eqns):
        out_live = [v in needed for v in eqn.outvars]
        if not any(out_live) and not eqn.effects:
            continue
        in_live = _equation(eqn, out_live, cost)
        needed.update(v for v, on in zip(eqn.invars, in_live, strict=True) if on and isinstance(v, jex.Var))
    return cost, [v in needed for v in jaxpr.invars]


def _equation(eqn: jex.JaxprEqn, live: list[bool], cost: Cost) -> list[bool]:
    """Adds the equation's cost to `cost`; returns which of its inputs the live outputs need."""
    name, params = eqn.primitive.name, eqn.params
    if name == "scan":
        return _scan(eqn, live, cost)
    if name == "cond":
        walked = [_walk(_open(b), live) for b in params["branches"]]
        cost.add(max((c for c, _ in walked), key=lambda c: (c.flops, c.transcendentals)))
        return [True] + [any(on) for on in zip(*(inputs for _, inputs in walked), strict=True)]
    if name == "while":
        for inner in (params["cond_jaxpr"], params["body_jaxpr"]):
            cost.add(_walk_all(inner))
        cost.unbounded_loops += 1
    elif name == "shard_map":
        mesh = params["mesh"]
        axes = params.get("newly_manual_axes", params.get("manual_axes", mesh.shape))
        cost.add(_walk_all(params["jaxpr"]), math.prod(mesh.shape[a] for a in axes))
    elif name == "pallas_call":
        cost.add(_walk_all(params["jaxpr"]), math.prod(int(n) for n in params["grid_mapping"].grid))
    else:
        bodies = list(jex.jaxprs_in_params(params))
        if len(bodies) == 1 and _shapes(bodies[0].invars) == _shapes(eqn.invars) and _shapes(bodies[0].outvars) == _shapes(eqn.outvars):
            inner, inputs = _walk(bodies[0], live)  # jit, checkpoint, custom_jvp, custom_vjp: called once, on the same operands
            cost.add(inner)
            return inputs
        _leaf(eqn, name, cost)  # a reduction's or scatter's combining function is a jaxpr too, of scalars
    return [True] * len(eqn.invars)


def _scan(eqn: jex.JaxprEqn, live: list[bool], cost: Cost) -> list[bool]:
    """A scan: `length` times its body. A carry is needed if the outputs or the next trip need it: a fixed point."""
    body, live = _open(eqn.params["jaxpr"]), list(live)
    # Operands are constants, carries, slices. A slice has one axis less inside; telling them apart so needs no
    # parameter of the primitive, whose names differ between jax releases.
    carries = sum(len(a) == len(b) for a, b in zip(_shapes(body.outvars), _shapes(eqn.outvars), strict=True))
    slices = sum(len(a) != len(b) for a, b in zip(_shapes(body.invars), _shapes(eqn.invars), strict=True))
    consts = len(eqn.invars) - carries - slices
    while True:
        inner, inputs = _walk(body, live)
        carry = [a or b for a, b in zip(live[:carries], inputs[consts : consts + carries], strict=True)]
        if carry == live[:carries]:
            break
        live[:carries] = carry
    cost.add(inner, eqn.params["length"])
    return [*inputs[:consts], *carry, *inputs[consts + carries :]]


def _leaf(eqn: jex.JaxprEqn, name: str, cost: Cost) -> None:
    """Adds a primitive without a body of its own."""
    if name in TRANSCENDENTALS:
        cost.transcendentals += sum(_size(v) for v in eqn.outvars)
        return
    operations = _operations(eqn, name)
    if operations is None:
        cost.uncounted |= {name}
    elif operations:
        cost.by_primitive[name] += operations


def _operations(eqn: jex.JaxprEqn, name: str) -> int | None:
    """Operations of a primitive that is not transcendental; None if unknown."""
    params, size_in, size_out = eqn.params, [_size(v) for v in eqn.invars], sum(_size(v) for v in eqn.outvars)
    if name in MOVES:
        return 0
    if name == "dot_general":
        (contract, _), _ = params["dimension_numbers"]
        return 2 * size_out * math.prod(eqn.invars[0].aval.shape[d] for d in contract)
    if name == "conv_general_dilated":
        return _convolution(eqn)
    if name == "integer_pow":  # by repeated squaring, and a division if the power is negative
        n = abs(params["y"])
        return size_out * max(n.bit_length() - 1 + n.bit_count() - 1 + (params["y"] < 0), 0)
    if name == "random_bits":
        return RANDOM_BLOCK * math.ceil(size_out * params["bit_width"] / 32)
    if name in ("random_fold_in", "random_split"):
        return 2 * RANDOM_BLOCK * size_out
    if name.startswith("reduce_window"):
        return size_out * (math.prod(params["window_dimensions"]) - 1)
    if name.startswith("reduce_") or name == "reduce":
        return sum(size_in[: len(eqn.outvars)]) - size_out
    if name in ("argmax", "argmin", "top_k", "approx_top_k", "cumsum", "cumprod", "cummax", "cummin", "cumlogsumexp"):
        return size_in[0]
    if name == "sort":
        length = eqn.invars[0].aval.shape[params["dimension"]]
        return size_in[0] * math.ceil(math.log2(max(length, 2)))
    if name.startswith("scatter"):  # scatter_add and its like combine; a plain scatter only moves
        return size_in[2]
    if name == "select_and_scatter_add":
        return size_in[0] * math.prod(params["window_dimensions"])
    if name == "fft":
        return round(5 * size_out * math.log2(max(math.prod(params["fft_lengths"]), 2)))
    if name in ("psum", "psum_invariant", "pmax", "pmin"):
        return sum(size_in)
    return size_out if _elementwise(eqn, name) else None


def _convolution(eqn: jex.JaxprEqn) -> int:
    """2 * products of a kernel tap with a real input element: XLA's count, which leaves out padding and dilation holes."""
    params, (lhs, rhs) = eqn.params, (v.aval.shape for v in eqn.invars)
    dims = params["dimension_numbers"]
    pairs = 1
    for i, (a, b) in enumerate(zip(dims.lhs_spec[2:], dims.rhs_spec[2:], strict=True)):
        out = eqn.outvars[0].aval.shape[dims.out_spec[2 + i]]
        pairs *= _real_taps(
            lhs[a], rhs[b], out, params["window_strides"][i], params["padding"][i][0], params["lhs_dilation"][i], params["rhs_dilation"][i]
        )
    batch = lhs[dims.lhs_spec[0]] // params["batch_group_count"]
    return 2 * batch * rhs[dims.rhs_spec[0]] * rhs[dims.rhs_spec[1]] * pairs


def _real_taps(size: int, kernel: int, out: int, stride: int, pad: int, lhs_dilation: int, rhs_dilation: int) -> int:
    """Pairs of (output position, kernel tap) along one axis that fall on an input element."""
    span = (size - 1) * lhs_dilation + 1
    total = 0
    for tap in range(kernel):
        # Position on the dilated input of output o: o * stride + offset; it must lie in [0, span) and on a multiple of lhs_dilation.
        offset = tap * rhs_dilation - pad
        first, last = max(0, math.ceil(-offset / stride)), min(out - 1, (span - 1 - offset) // stride)
        if lhs_dilation == 1:
            total += max(0, last - first + 1)
        else:
            total += sum((o * stride + offset) % lhs_dilation == 0 for o in range(first, last + 1))
    return total


def _elementwise(eqn: jex.JaxprEqn, name: str) -> bool:
    """Whether the one output has the inputs' broadcast shape and nothing says that a library or a function computes it."""
    if len(eqn.outvars) != 1 or any(jex.jaxprs_in_params(eqn.params)) or any(word in name for word in ("call", "attention", "ffi")):
        return False
    shapes, out = _shapes(eqn.invars), _shapes(eqn.outvars)[0]
    try:
        return np.broadcast_shapes(*shapes) == out
    except ValueError:
        return False


def _walk_all(jaxpr: Any) -> Cost:
    opened = _open(jaxpr)
    return _walk(opened, [True] * len(opened.outvars))[0]


def _open(jaxpr: Any) -> jex.Jaxpr:
    return getattr(jaxpr, "jaxpr", jaxpr)  # closed or not


def _shapes(variables: Sequence[Any]) -> list[tuple[int, ...]]:
    return [tuple(getattr(v.aval, "shape", ())) for v in variables]


def _size(v: Any) -> int:
    return math.prod(getattr(v.aval, "shape", (0,)))


def _nbytes(aval: Any) -> int:
    return math.prod(getattr(aval, "shape", (0,))) * getattr(getattr(aval, "dtype", None), "itemsize", 0)
