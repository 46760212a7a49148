"""What a run carries from step to step, its abstract shapes and its places on the mesh."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import NamedSharding, PartitionSpec

from mmjax.core import rng, sharding, tree
from mmjax.core.types import Array, Params, PyTree, Task

Leaf = Any  # an array, its ShapeDtypeStruct or its sharding


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class TrainState:
    """
    Attributes:
      step: int32, optimizer steps taken, skipped ones included.
      cursor: uint32[2], examples consumed, of all parts of a batch, as (high, low) words: 2**31 examples are a week's work at scale.
      nonfinite: int32, steps skipped in a row for a non-finite loss or gradient.
      skipped: int32, steps skipped in the whole run.
      key: uint32[2], words of the run's root key; the key of a step is this folded with `step`.
      params: every parameter, trained, frozen and state.
      opt_state: of the trained parameters only.
      ema: name -> averaged trained parameters.
    """

    step: Leaf
    cursor: Leaf
    nonfinite: Leaf
    skipped: Leaf
    key: Leaf
    params: Params
    opt_state: PyTree
    ema: Mapping[str, Params]


def advance(cursor: Array, by: int) -> Array:
    """Adds to a uint32[2] (high, low) counter."""
    low = cursor[1] + jnp.uint32(by)
    return jnp.stack([cursor[0] + (low < cursor[1]).astype(jnp.uint32), low])


def cursor_to_int(cursor: Any) -> int:
    """Host integer of a fetched cursor."""
    high, low = np.asarray(cursor)
    return (int(high) << 32) | int(low)


@dataclasses.dataclass(frozen=True)
class Roles:
    """Who writes a leaf, decided once from the task's patterns. A leaf that is both `state` and `frozen` is state."""

    trained: frozenset[str]
    frozen: frozenset[str]
    state: frozenset[str]

    def split(self, params: Params) -> tuple[Params, Params]:
        """(trained leaves, all others)."""
        return tree.select(params, self.trained.__contains__), tree.select(params, lambda p: p not in self.trained)


def roles(task: Task, params: Params) -> Roles:
    """Sorts parameter paths by `task.frozen` and `task.state`.

    Raises:
      UserError: a pattern that matches no parameter.
    """
    paths = list(tree.flatten(params))
    tree.check_patterns(paths, task.frozen, "frozen parameters (task.frozen, optim.freeze)")
    tree.check_patterns(paths, task.state, "state parameters (task.state)")
    state = frozenset(p for p in paths if tree.matches(p, task.state))
    frozen = frozenset(p for p in paths if p not in state and tree.matches(p, task.frozen))
    return Roles(frozenset(paths) - state - frozen, frozen, state)


def init(task: Task, tx: optax.GradientTransformation, ema: Mapping[str, Any], seed: int) -> TrainState:
    """A fresh state; a pure function of `seed`, to be jitted with `out_shardings`."""
    root = rng.root(seed)
    params = task.init(rng.named(rng.wrap(root), "init"))
    trained, _ = roles(task, params).split(params)
    zero = jnp.zeros((), jnp.int32)
    copy = lambda t: jax.tree.map(jnp.copy, t)
    return TrainState(
        step=zero,
        cursor=jnp.zeros(2, jnp.uint32),
        nonfinite=zero,
        skipped=zero,
        key=root,
        params=params,
        opt_state=tx.init(trained),
        ema={name: copy(trained) for name in ema},
    )


def shardings(
    state: TrainState, task: Task, mesh: sharding.AnyMesh, table: Mapping[str, tuple[str, ...]], rules: Sequence[tuple[str, str]]
) -> TrainState:
    """A `TrainState` of `NamedSharding` for an abstract state: optimizer state and EMA lie where their parameters do."""
    whole = NamedSharding(mesh, PartitionSpec())
    params = sharding.params_shardings(state.params, task.axes, mesh, table, rules)
    trained = roles(task, state.params).trained
    pick = lambda t: tree.select(t, trained.__contains__)
    return TrainState(
        step=whole,
        cursor=whole,
        nonfinite=whole,
        skipped=whole,
        key=whole,
        params=params,
        opt_state=sharding.like_params(state.opt_state, pick(state.params), pick(params), mesh),
        ema={name: pick(params) for name in state.ema},
    )


def abstract(state: TrainState, places: TrainState) -> TrainState:
    """Shapes joined with places: what a checkpoint is restored into."""
    return jax.tree.map(lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s), state, places)


def places(abstract: TrainState) -> TrainState:
    """What `abstract` joined, without the shapes again."""
    return jax.tree.map(lambda x: x.sharding, abstract)


def eval_params(state: TrainState, ema: str | None) -> Params:
    """Parameters for evaluation: averaged where there is an average (`ema` names it), live elsewhere (frozen and state leaves)."""
    return tree.merge(state.params, state.ema[ema]) if ema else state.params
