"""One optimizer step as a pure function of (state, batch)."""

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import optax

from mmjax.core import rng, tree
from mmjax.core.ema import Decay
from mmjax.core.state import Roles, TrainState, advance, roles
from mmjax.core.types import Array, Aux, Batch, Metrics, Params, Task


def make_train_step(
    task: Task,
    tx: optax.GradientTransformationExtraArgs,
    *,
    accumulate: int = 1,
    ema: Mapping[str, Decay] | None = None,
    schedules: Mapping[str, Callable[[Array], Array]] | None = None,
) -> Callable[[TrainState, Batch], tuple[TrainState, Metrics]]:
    """Builds `train_step(state, batch) -> (state, metrics)`, to be jitted with the state donated.

    The batch is split into `accumulate` microbatches that a scan goes through; gradients and metrics are averaged with
    the weights the task gives, state leaves are carried from one to the next. A step whose loss or gradient is not
    finite leaves parameters, optimizer state and averages as they were and is counted; so is one whose weight is 0, which
    has nothing to learn from (every label masked).

    Args:
      tx: over the trained leaves only; `update` is given `step` as an extra argument.
      ema: name -> decay, of `ema.decays`.
      schedules: name -> function of the step, reported among the metrics (the learning rate).

    Returns:
      A pure function. Metrics: float32 scalars, `loss`, `grad_norm`, `skipped` and the task's own.

    Raises:
      ValueError: accumulation of a loss that is not a mean over examples.
    """
    ema, schedules = dict(ema or {}), dict(schedules or {})
    if accumulate > 1 and not task.can_accumulate:
        raise ValueError("this task's loss is not a mean over examples: it cannot be accumulated over microbatches")

    def train_step(state: TrainState, batch: Batch) -> tuple[TrainState, Metrics]:
        who = roles(task, state.params)
        size = sum(examples(batch).values())
        batch = _numbered(batch)
        key = jax.random.fold_in(rng.wrap(state.key), state.step)

        loss, grads, aux = _gradients(task, who, state.params, batch, key, state.step, accumulate)
        grad_norm = optax.tree.norm(grads)
        finite = jnp.isfinite(loss) & jnp.isfinite(grad_norm)

        trained, rest = who.split(state.params)
        updates, opt_state = tx.update(grads, state.opt_state, trained, step=state.step)
        trained = optax.apply_updates(trained, updates)
        params = tree.merge(rest, aux["state"], trained)
        params = task.post_update(params, aux, state.step)
        trained, _ = who.split(params)
        averages = {name: _average(state.ema[name], trained, rule, state.step) for name, rule in ema.items()}

        good = finite & (aux["weight"] > 0)
        keep = lambda new, old: jax.tree.map(lambda n, o: jnp.where(good, n, o), new, old)
        bad = (~good).astype(jnp.int32)
        new_state = TrainState(
            step=state.step + 1,
            cursor=advance(state.cursor, size),
            nonfinite=jnp.where(finite, 0, state.nonfinite + 1),
            skipped=state.skipped + bad,
            key=state.key,
            # A frozen leaf passes through untouched, so that it costs no copy.
            params=tree.merge(state.params, keep(_without(params, who.frozen), _without(state.params, who.frozen))),
            opt_state=keep(opt_state, state.opt_state),
            ema=keep(averages, dict(state.ema)),
        )
        metrics = {
            **aux["metrics"],
            **{name: f(state.step) for name, f in schedules.items()},
            "loss": loss,
            "grad_norm": grad_norm,
            "nonfinite": new_state.nonfinite,
            "skipped": new_state.skipped,
        }
        return new_state, {k: jnp.asarray(v, jnp.float32) for k, v in metrics.items()}

    return train_step


def examples(batch: Mapping[str, Any]) -> dict[str, int]:
    """How many examples each part of a nested batch (or its spec) has, by names in order; {"": n} of a batch of arrays.

    Their sum is what the cursor advances by in a step, whatever the parts are called.

    Raises:
      ValueError: arrays beside parts, or arrays of one part whose leading axes differ.
    """
    nested = [name for name in sorted(batch) if isinstance(batch[name], Mapping)]
    if nested and len(nested) != len(batch):
        raise ValueError(f"a batch is arrays or parts, got both: {sorted(batch)}, of which {nested} are parts")
    sizes = {}
    for name in nested or [""]:
        found = {x.shape[0] for x in jax.tree.leaves(batch[name] if name else batch)}
        if len(found) != 1:
            raise ValueError(f"the arrays of {f'part {name!r}' if name else 'a batch'} have one leading axis, got {sorted(found)}")
        sizes[name] = found.pop()
    return sizes


def _numbered(batch: Batch) -> Batch:
    """With `_index`, in every part where there are parts: the examples of a step numbered through, so that no two draw the same noise."""
    out, first = {}, 0
    for name, size in examples(batch).items():
        index = jnp.arange(first, first + size, dtype=jnp.int32)
        out |= {name: {**batch[name], "_index": index}} if name else {**batch, "_index": index}
        first += size
    return out


def _without(params: Params, paths: frozenset[str]) -> Params:
    return tree.select(params, lambda p: p not in paths)


def _average(old: Params, new: Params, rule: Decay, step: Array) -> Params:
    decay = rule(step) if callable(rule) else jnp.float32(rule)
    return jax.tree.map(lambda o, n: o + (1 - decay) * (n - o), old, new)


def _gradients(task: Task, who: Roles, params: Params, batch: Batch, key: Array, step: Array, accumulate: int) -> tuple[Array, Params, Aux]:
    """Mean loss, its gradient for the trained leaves, and the aux with every state leaf's last value."""
    trained, rest = who.split(params)
    state = tree.select(rest, who.state.__contains__)
    frozen = tree.select(rest, who.frozen.__contains__)

    def value(trained: Params, state: Params, batch: Batch) -> tuple[Array, Aux]:
        loss, aux = task.loss(tree.merge(frozen, state, trained), batch, key, step)
        unknown = set(tree.flatten(aux.get("state", {}))) - who.state
        if unknown:
            raise ValueError(f"the loss returned new values for {sorted(unknown)}, which no pattern of task.state covers")
        aux = {**aux, "metrics": aux.get("metrics", {}), "state": tree.merge(state, aux.get("state", {}))}
        return loss.astype(jnp.float32), {**aux, "weight": jnp.asarray(aux.get("weight", 1.0), jnp.float32)}

    grad = jax.value_and_grad(value, has_aux=True)
    if accumulate == 1:
        (loss, aux), grads = grad(trained, state, batch)
        return loss, grads, aux

    # Microbatch i takes rows i, i + accumulate, ...: with rows split over devices in blocks, each device then
    # holds its share of every microbatch and no example moves.
    micro = jax.tree.map(lambda x: x.reshape(x.shape[0] // accumulate, accumulate, *x.shape[1:]).swapaxes(0, 1), batch)

    def body(carry: tuple[Params, Params, Any], batch: Batch):
        total, state, weights = carry
        (loss, aux), grads = grad(trained, state, batch)
        w = aux["weight"]
        total = jax.tree.map(lambda t, g: t + w * g, total, grads)
        return (total, aux["state"], weights + w), (w * loss, jax.tree.map(lambda m: w * m, aux["metrics"]))

    zeros = jax.tree.map(jnp.zeros_like, trained)
    (total, state, weight), (losses, metrics) = jax.lax.scan(body, (zeros, state, jnp.float32(0)), micro)
    divisor = jnp.where(weight > 0, weight, 1.0)
    mean = lambda x: x.sum(0) / divisor
    return (
        mean(losses),
        jax.tree.map(lambda t: t / divisor, total),
        {"metrics": jax.tree.map(mean, metrics), "state": state, "weight": weight},
    )
