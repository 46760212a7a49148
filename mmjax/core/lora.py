"""Low-rank adapters (Hu et al. 2021) around any task: W + (alpha / rank) a b, of which only a and b are trained.

The task keeps its networks: loss and predict functions are given merged weights. A frozen W costs no gradient memory of
its own but the merged copy does exist during a step.
"""

import dataclasses
import functools
import re
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from ml_collections import ConfigDict

from mmjax.core import rng, tree
from mmjax.core.errors import UserError
from mmjax.core.types import Array, Aux, Key, Params, Step, Task

A, B = "_lora_a", "_lora_b"


def wrap(task: Task, config: ConfigDict) -> Task:
    """The task with adapters on the kernels that the config group `lora` names; the task itself if it names none.

    Kernel `k` of shape [*layers, in, out] gets siblings `k_lora_a` [*layers, in, rank], normal of variance 1 / in, and
    `k_lora_b` [*layers, rank, out], zero (section 4.1): at first the model computes exactly what the base does, whose
    initial values do not change. The adapters and what `lora.train` matches are trained, all else is frozen. What the task
    itself froze stays frozen. `post_update` sees merged weights (a target network follows the adapted model) and may
    write every leaf but adapted kernels.

    Raises:
      UserError: a pattern that matches nothing, a leaf that is no matrix in a layer or is written by the task, a rank
        below 1, patterns to train without adapters.
    """
    if not config.rules:
        if config.train:
            raise UserError("lora.train is set but lora.rules is empty; name the kernels that get an adapter, or use optim.freeze")
        return task
    if config.rank < 1:
        raise UserError(f"lora.rank is {config.rank}, expected at least 1")
    shapes = {p: x.shape for p, x in tree.flatten(jax.eval_shape(task.init, jax.random.key(0))).items()}
    names = tree.flatten(task.axes)
    adapted = _adapted(task, config, shapes, names)
    own = {p for p in shapes if not tree.matches(p, (*task.state, *task.frozen))}
    tree.check_patterns(own, config.train, "lora.train")
    frozen = [p for p in shapes if not tree.matches(p, task.state) and not (p in own and tree.matches(p, config.train))]
    axes = dict(names)
    for path in adapted:
        *layers, fan_in, fan_out = names[path]
        axes |= {path + A: (*layers, fan_in, None), path + B: (*layers, None, fan_out)}
    see = functools.partial(merge, alpha=config.alpha)
    return dataclasses.replace(
        task,
        init=lambda key: _init(task.init(key), adapted, config.rank, key),
        axes=tree.unflatten(axes),
        loss=lambda params, batch, key, step: task.loss(see(params), batch, key, step),
        predict={name: _on_merged(f, see) for name, f in task.predict.items()},
        # One alternation of exact paths: the task's own patterns could take the adapters too.
        frozen=("|".join(map(re.escape, frozen)),) if frozen else (),
        post_update=lambda params, aux, step: _post_update(task, see, params, aux, step),
    )


def merge(params: Params, alpha: float) -> Params:
    """Weights with every adapter added, W + (alpha / rank) a b (eq. 3), and the adapters' leaves gone: the base task's tree.

    Raises:
      UserError: an adapter whose other half or kernel is missing.
    """
    flat = tree.flatten(params)
    out = {p: x for p, x in flat.items() if not p.endswith((A, B))}
    for path in (p for p in flat if p.endswith((A, B))):
        kernel = path.removesuffix(A).removesuffix(B)
        if missing := {kernel, kernel + A, kernel + B} - set(flat):
            raise UserError(f"parameters hold the adapter leaf '{path}' but not '{min(missing)}'; merge needs kernel, {A} and {B}")
        if path.endswith(A):
            a, b = flat[path], flat[kernel + B]
            delta = jnp.matmul(a, b, precision=jax.lax.Precision.HIGHEST)
            out[kernel] = flat[kernel] + (alpha / a.shape[-1]) * delta
    return tree.unflatten(out)


def _adapted(task: Task, config: ConfigDict, shapes: dict[str, tuple[int, ...]], axes: dict[str, Any]) -> list[str]:
    """Paths of the kernels that get an adapter."""
    tree.check_patterns(shapes, config.rules, "lora.rules")
    paths = [p for p in shapes if tree.matches(p, config.rules)]
    for path in paths:
        if len([a for a in axes[path] if a != "layers"]) != 2:
            raise UserError(
                f"lora.rules match '{path}' of shape {shapes[path]} (axes {axes[path]}); an adapter needs a kernel [in, out] a layer"
            )
        if tree.matches(path, task.state):
            raise UserError(f"lora.rules match '{path}', which only the task writes (task.state); leave it out of the patterns")
        if taken := [p for p in (path + A, path + B) if p in shapes or tree.matches(p, task.state)]:
            raise UserError(f"lora.rules match '{path}', but its adapter's name '{taken[0]}' is taken or matched by task.state")
    return paths


def _init(base: Params, adapted: list[str], rank: int, key: Key) -> Params:
    flat = tree.flatten(base)
    adapters = {}
    for path in adapted:
        *layers, fan_in, fan_out = flat[path].shape
        draw = jax.random.normal(rng.named(key, path + A), (*layers, fan_in, rank), flat[path].dtype)
        adapters |= {path + A: draw / fan_in**0.5, path + B: jnp.zeros((*layers, rank, fan_out), flat[path].dtype)}
    return tree.merge(base, tree.unflatten(adapters))


def _on_merged(f: Callable, see: Callable[[Params], Params]) -> Callable:
    return lambda params, *args, **kwargs: f(see(params), *args, **kwargs)


def _post_update(task: Task, see: Callable[[Params], Params], params: Params, aux: Aux, step: Step | Array) -> Params:
    merged = see(params)
    own, given = tree.flatten(params), tree.flatten(merged)
    new = tree.flatten(task.post_update(merged, aux, step))
    kept = {p for p in own if p.endswith((A, B)) or p + A in own}
    for path in kept & set(new):
        if new[path] is not given[path]:
            raise UserError(f"this task's post_update writes '{path}', so it cannot have an adapter; leave it out of lora.rules")
    return tree.unflatten({**new, **{p: own[p] for p in kept}})
