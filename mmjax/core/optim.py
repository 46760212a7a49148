"""Optimizers by name, and which parameter gets which learning rate, weight decay, clipping and algorithm.

One update is: global-norm clipping, adaptive clipping (AGC), the optimizer's own scaling, decoupled weight decay
(`weight_decay` x the factor of `wd_rules` x parameter), and minus `schedule(step)` x the multiplier of `lr_rules` and
`layer_decay`. The schedule sees the trainer's step, so steps that were skipped do not bend it. With `groups` there are several
such updates side by side, each over its own parameters, with its own clipping: the players of a game.

Layers may be stacked: a leaf whose logical axes begin with "layers" holds one parameter of every layer. Whatever looks at
a leaf's shape or norm is mapped over those axes, so a scanned and an unrolled model take the same step.
"""

import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import optax.contrib
from ml_collections import ConfigDict

from mmjax.core import schedules, tree
from mmjax.core.errors import UserError, suggest
from mmjax.core.layerwise import Place, layer_decay, per_layer, places
from mmjax.core.types import Params, PyTree

Transform = optax.GradientTransformationExtraArgs

REST = "rest"  # what no group of `groups` takes
SHARED = {"groups", "freeze"}  # keys that a group cannot have


@dataclasses.dataclass(frozen=True)
class Plan:
    """What the rules decided, each a dict from parameter path.

    Attributes:
      lr: multiplier of the learning rate, a number, or one a layer shaped to broadcast over the leaf.
      weight_decay: weight decay before the learning rate, likewise.
      agc: whether adaptive clipping applies.
      kind: the algorithm: the optimizer's name, or under Muon "muon" or "adam".
      depth: how many leading axes of the leaf are layer axes.
    """

    lr: dict[str, float | np.ndarray]
    weight_decay: dict[str, float | np.ndarray]
    agc: dict[str, bool]
    kind: dict[str, str]
    depth: dict[str, int]


def make(config: ConfigDict, params: Params, axes: PyTree, total_steps: int) -> tuple[Transform, schedules.Schedule]:
    """The gradient transformation and the learning-rate schedule of the config group `optim`.

    Args:
      config: the group; every key is explained in `core.config.base`.
      params: the trained parameters alone, arrays or `ShapeDtypeStruct`.
      axes: logical axis names of all parameters, trained or not.
      total_steps: updates in the whole run.

    Returns:
      tx: used as `tx.update(grads, opt_state, params, step=step)`, whose updates are to be added. Its state is a dict of
        optax's states over dicts of float32 arrays, parameter paths unchanged inside them. Clipping has none, so switching
        it on does not change a checkpoint's tree. With `groups` it is a dict of such dicts.
      schedule: `step -> float32[]`, the learning rate before multipliers, of what is in no group.

    Raises:
      UserError: an unknown name or argument, a value out of range, a rule list that leaves a parameter out or a rule that
        decides nothing.
    """
    schedule = schedules.make(config, total_steps)
    parts = {name: (own, tree.select(params, paths.__contains__)) for name, (own, paths) in split(config, params, axes).items()}
    if list(parts) == [REST]:
        return _make_one(config, params, axes, schedule), schedule
    made = {name: _make_one(own, taken, axes, schedules.make(own, total_steps)) for name, (own, taken) in parts.items()}
    return _partition(made, {path: name for name, (_, taken) in parts.items() for path in tree.flatten(taken)}), schedule


def _make_one(config: ConfigDict, params: Params, axes: PyTree, schedule: schedules.Schedule) -> Transform:
    """The update of parameters that share one group of settings."""
    plan = make_plan(config, params, axes)
    parts: dict[str, optax.GradientTransformation] = {}
    if config.clip_norm is not None:
        parts["clip_norm"] = optax.clip_by_global_norm(_positive(config.clip_norm, "clip_norm"))
    if config.agc is not None:
        clip = optax.adaptive_grad_clip(_positive(config.agc, "agc"))
        groups = {True: _each_layer(clip, optax.EmptyState(), plan.depth), False: optax.identity()}
        parts["agc"] = _partition(groups, plan.agc)
    parts[config.name] = OPTIMIZERS[config.name](plan, **_arguments(config))
    if config.weight_decay:
        parts["weight_decay"] = optax.stateless(_decay_with(plan.weight_decay))
    parts["lr"] = _scale_by_lr(schedule, plan.lr)
    return _chain(parts)


def split(config: ConfigDict, params: Params, axes: PyTree) -> dict[str, tuple[ConfigDict, frozenset[str]]]:
    """Name -> (settings, the parameters they are for), as `config.groups` says; REST is what no group takes, if anything.

    Raises:
      UserError: a group that is no (name, regex, {key: value}), takes no parameter, has a key that a group cannot have or a value of
        another type.
    """
    paths = tuple(tree.flatten(params))
    if not config.get("groups"):
        return {REST: (config, frozenset(paths))}
    settings, rules = {}, []
    for given in config.groups:
        if not (isinstance(given, tuple) and len(given) == 3 and isinstance(given[0], str) and isinstance(given[2], Mapping)):
            raise UserError(f"optim.groups has {given!r}, expected ('name', 'regex of parameters', {{'key of optim': value}})")
        name, pattern, changes = given
        if name == REST:
            raise UserError(f"optim.groups: {REST!r} names what no group takes; choose another name")
        if name in settings:
            raise UserError(f"optim.groups has two groups named {name!r}")
        settings[name] = _changed(config, changes, f"optim.groups: group {name!r}")
        rules.append((pattern, name))
    in_one = [p for p in tree.flatten(axes) if tree.matches(p, [pattern for pattern, _ in rules])]
    found = tree.first_match(in_one, rules, "optim.groups")
    settings[REST] = config
    taken = {name: frozenset(p for p in paths if found.get(p, REST) == name) for name in settings}
    return {name: (settings[name], taken[name]) for name in settings if taken[name]}


def _changed(config: ConfigDict, changes: Mapping[str, Any], where: str) -> ConfigDict:
    """The settings with some keys changed."""
    out, known = config.copy_and_resolve_references(), set(config) - SHARED
    with out.unlocked():
        for key, value in changes.items():
            if key not in known:
                raise UserError(f"{where} has an unknown key {key!r}{suggest(key, known)}")
            try:
                out[key] = ConfigDict(value) if isinstance(out[key], ConfigDict) else value
            except TypeError as e:
                raise UserError(f"{where}: {key} is {value!r}: {e}") from None
    return out


def learning_rates(config: ConfigDict, params: Params, axes: PyTree, total_steps: int) -> dict[str, schedules.Schedule]:
    """What is reported of a run: `learning_rate`, and `learning_rate_NAME` of every group; arguments as of `make`."""
    label = lambda name: "learning_rate" if name == REST else f"learning_rate_{name}"
    return {label(name): schedules.make(own, total_steps) for name, (own, _) in split(config, params, axes).items()}


def make_plan(config: ConfigDict, params: Params, axes: PyTree) -> Plan:
    """Applies every rule of the group `optim` to the trained parameters; arguments and errors as `make`."""
    shapes = {path: tuple(x.shape) for path, x in tree.flatten(params).items()}
    for path, x in tree.flatten(params).items():
        if not jnp.issubdtype(x.dtype, jnp.floating):
            raise UserError(f"parameter '{path}' is {x.dtype} and cannot be trained; name it in the task's `state` or `frozen`")
    if config.name not in OPTIMIZERS:
        raise UserError(f"optim.name is {config.name!r}{suggest(config.name, OPTIMIZERS)}")
    if not config.weight_decay >= 0:
        raise UserError(f"optim.weight_decay is {config.weight_decay}, expected a number of at least 0")
    where, known = places(shapes, axes), tuple(tree.flatten(axes))

    def factors(rules: Sequence, what: str) -> dict[str, float | np.ndarray]:
        return {p: per_layer(v, where[p], f"{what}, parameter '{p}'") for p, v in tree.first_match(shapes, rules, what, known).items()}

    lr = factors(config.lr_rules, "optim.lr_rules")
    if config.layer_decay is not None:
        decay = layer_decay(where, config.layer_decay, config.embed_pattern)
        lr = {path: lr[path] * decay[path] for path in lr}
    wd = {path: f * config.weight_decay for path, f in factors(config.wd_rules, "optim.wd_rules").items()}
    broadcast = lambda fs: {path: _over_leaf(f, where[path]) for path, f in fs.items()}
    return Plan(
        lr=broadcast(lr),
        weight_decay=broadcast(wd),
        agc=_flags(shapes, config.agc_rules, "optim.agc_rules", known) if config.agc is not None else dict.fromkeys(shapes, False),
        kind=_muon_kinds(config, where, known) if config.name == "muon" else dict.fromkeys(shapes, config.name),
        depth={path: place.depth for path, place in where.items()},
    )


def describe(config: ConfigDict, params: Params, axes: PyTree) -> dict[str, dict[str, Any]]:
    """`{path: {"lr": ..., "weight_decay": ..., "optimizer": ...}}`, JSON-able; one number a layer as a (nested) list. With `groups`,
    `group` names the one of each parameter that is in one."""
    plain = lambda x: x.squeeze().tolist() if isinstance(x, np.ndarray) else x
    out: dict[str, dict[str, Any]] = {}
    for name, (own, paths) in split(config, params, axes).items():
        plan, group = make_plan(own, tree.select(params, paths.__contains__), axes), {} if name == REST else {"group": name}
        for p in plan.lr:
            out[p] = {"lr": plain(plan.lr[p]), "weight_decay": plain(plan.weight_decay[p]), "optimizer": plan.kind[p], **group}
    return dict(sorted(out.items()))


def _over_leaf(factor: float | np.ndarray, place: Place) -> float | np.ndarray:
    """Appends axes of size one to a factor a layer, so that it broadcasts over the leaf."""
    if np.ndim(factor) == 0:
        return float(factor)
    return factor.reshape(np.shape(factor) + (1,) * (len(place.shape) - place.depth))


def _flags(paths: Mapping[str, Any], rules: Sequence, what: str, known: Sequence[str]) -> dict[str, bool]:
    flags = tree.first_match(paths, rules, what, known)
    for path, flag in flags.items():
        if not isinstance(flag, bool):
            raise UserError(f"{what}: the value for '{path}' is {flag!r}, expected True or False")
    return flags


def _muon_kinds(config: ConfigDict, where: Mapping[str, Place], known: Sequence[str]) -> dict[str, str]:
    """Muon takes matrices: those `muon_rules` name or, without rules, those of the stacks of layers (hidden matrices, not
    embeddings and heads, as its author advises). Whatever is no matrix in one layer is Adam's."""
    if config.muon_rules:
        takes = _flags(where, config.muon_rules, "optim.muon_rules", known)
    else:
        takes = {path: bool(place.sizes) for path, place in where.items()}
    kinds = {path: "muon" if takes[path] and len(place.shape) - place.depth == 2 else "adam" for path, place in where.items()}
    if "muon" not in kinds.values():
        chosen = (
            "optim.muon_rules choose" if config.muon_rules else "the model has no stack of layers, so the empty optim.muon_rules choose"
        )
        raise UserError(f"optim.name is 'muon' but {chosen} no matrix; set optim.muon_rules to (('regex', True), ('.*', False))")
    return kinds


def _positive(value: float, key: str) -> float:
    if not value > 0:
        raise UserError(f"optim.{key} is {value}, expected a number above 0 or none")
    return value


# --- optimizers: functions of (plan, the optimizer's own keywords) ---------------------------------------------------


def _adamw(plan: Plan, *, b1: float = 0.9, b2: float = 0.999, eps: float = 1e-8, eps_root: float = 0.0, nesterov: bool = False) -> Any:
    """Loshchilov and Hutter 2019, algorithm 2."""
    return optax.scale_by_adam(b1, b2, eps, eps_root, nesterov=nesterov)


def _lion(plan: Plan, *, b1: float = 0.9, b2: float = 0.99) -> Any:
    """Chen et al. 2023, algorithm 2."""
    return optax.scale_by_lion(b1, b2)


def _sgd(plan: Plan, *, momentum: float = 0.9, nesterov: bool = True) -> Any:
    """m <- g + momentum m; the update is m, or with Nesterov g + momentum m (Sutskever et al. 2013, in PyTorch's form)."""
    return optax.trace(momentum, nesterov)


def _adafactor(
    plan: Plan,
    *,
    min_dim_size_to_factor: int = 128,
    decay_rate: float = 0.8,
    decay_offset: int = 0,
    multiply_by_parameter_scale: bool = True,
    clipping_threshold: float | None = 1.0,
    momentum: float | None = None,
    eps: float = 1e-30,
    factored: bool = True,
) -> Any:
    """Shazeer and Stern 2018, algorithms 4 and 5, as `optax.adafactor`, except that the learning rate enters after momentum."""
    second = optax.scale_by_factored_rms(factored, decay_rate, decay_offset, min_dim_size_to_factor, eps)
    parts = {"second": _each_layer(second, optax.FactoredState(count=None, v_row=0, v_col=0, v=0), plan.depth)}
    if clipping_threshold is not None:
        parts["clip"] = _each_layer(optax.clip_by_block_rms(clipping_threshold), optax.EmptyState(), plan.depth)
    if multiply_by_parameter_scale:
        parts["scale"] = _each_layer(optax.scale_by_param_block_rms(), optax.EmptyState(), plan.depth)
    if momentum is not None:
        parts["momentum"] = optax.ema(momentum, debias=False)
    return _chain(parts)


def _muon(
    plan: Plan,
    *,
    ns_coeffs: tuple = (3.4445, -4.7750, 2.0315),
    ns_steps: int = 5,
    beta: float = 0.95,
    eps: float = 1e-8,
    nesterov: bool = True,
    adaptive: bool = False,
    preconditioning: str = "frobenius",
    consistent_rms: float | None = None,
    adam_b1: float = 0.9,
    adam_b2: float = 0.999,
    adam_eps_root: float = 0.0,
) -> Any:
    """Jordan et al. 2024 on the plan's matrices, Adam on the rest; keywords as `optax.contrib.muon`. An [in, out] matrix's
    update is scaled by sqrt(max(1, out / in)), or with `consistent_rms` by consistent_rms x sqrt(max(in, out)) (Liu et al. 2025, eq. 4)."""
    known = ("frobenius", "spectral", "aol", "schatten")
    if preconditioning not in known:
        raise UserError(f"optim.args of 'muon': preconditioning is {preconditioning!r}{suggest(preconditioning, known)}")
    orthogonal = optax.contrib.scale_by_muon(
        ns_coeffs, ns_steps, beta, eps, nesterov=nesterov, adaptive=adaptive, preconditioning=preconditioning
    )

    def scale(u: jax.Array) -> jax.Array:
        fan_in, fan_out = u.shape[-2:]
        return u * (math.sqrt(max(1.0, fan_out / fan_in)) if consistent_rms is None else consistent_rms * math.sqrt(max(fan_in, fan_out)))

    matrices = {
        "orthogonal": _each_layer(orthogonal, optax.contrib.MuonState(count=None, mu=0, ns_coeffs=None), plan.depth),
        "scale": optax.stateless(lambda updates, _: jax.tree.map(scale, updates)),
    }
    rest = optax.scale_by_adam(adam_b1, adam_b2, eps, adam_eps_root, nesterov=nesterov)
    return _partition({"muon": _chain(matrices), "adam": rest}, plan.kind)


OPTIMIZERS: dict[str, Callable[..., Any]] = {"adamw": _adamw, "adafactor": _adafactor, "lion": _lion, "sgd": _sgd, "muon": _muon}


def _arguments(config: ConfigDict) -> dict[str, Any]:
    return schedules.keywords(OPTIMIZERS[config.name], config.args.to_dict(), f"optim.args of '{config.name}'")


# --- how transformations are put together ----------------------------------------------------------------------------


def _chain(parts: Mapping[str, optax.GradientTransformation]) -> Transform:
    """`optax.named_chain`, but the state holds only the parts that have one."""
    parts = {name: optax.with_extra_args_support(tx) for name, tx in parts.items()}

    def init(params: Params) -> PyTree:
        states = {name: tx.init(params) for name, tx in parts.items()}
        return {name: state for name, state in states.items() if jax.tree.leaves(state)}

    def update(updates: Params, state: PyTree, params: Params | None = None, **extra: Any) -> tuple[Params, PyTree]:
        state = state or {}  # `_partition` hands an empty tuple to what has no state
        new = {}
        for name, tx in parts.items():
            updates, new[name] = tx.update(updates, state.get(name, optax.EmptyState()), params, **extra)
        return updates, {name: new[name] for name in state}

    return Transform(init, update)


def _partition(groups: Mapping[Any, optax.GradientTransformation], label: Mapping[str, Any]) -> Transform:
    """Each group's transformation on the leaves whose path has its label. Unlike `optax.partition` the state of a group is
    over a subtree, without placeholders for the other leaves."""
    groups = {name: optax.with_extra_args_support(tx) for name, tx in groups.items() if name in label.values()}
    pick = lambda t, name: tree.select(t, lambda path: label[path] == name)

    def init(params: Params) -> PyTree:
        states = {name: tx.init(pick(params, name)) for name, tx in groups.items()}
        return {name: state for name, state in states.items() if jax.tree.leaves(state)}

    def update(updates: Params, state: PyTree, params: Params | None = None, **extra: Any) -> tuple[Params, PyTree]:
        state = state or {}  # `_chain` hands an empty tuple to what has no state
        out, new = [], {}
        for name, tx in groups.items():
            own = state.get(name, optax.EmptyState())
            part, new[name] = tx.update(pick(updates, name), own, None if params is None else pick(params, name), **extra)
            out.append(part)
        return tree.merge(*out), {name: new[name] for name in state}

    return Transform(init, update)


def _each_layer(tx: optax.GradientTransformation, shared: PyTree, depth: Mapping[str, int]) -> optax.GradientTransformation:
    """`tx` on every leaf by itself, mapped over the leaf's `depth` leading layer axes.

    Args:
      tx: treats leaves independently; its state is a NamedTuple.
      shared: that NamedTuple with 0 for a field that is a tree over parameters and None for one they all share (a count).

    Returns:
      A transformation with the state `tx` has, per-parameter fields carrying the layer axes in front.
    """

    def mapped(f: Callable, path: str, in_axes: tuple, out_axes: Any) -> Callable:
        for _ in range(depth[path]):
            f = jax.vmap(f, in_axes=in_axes, out_axes=out_axes)
        return f

    def gather(states: Mapping[str, Any]) -> PyTree:
        first = next(iter(states.values()))
        fields = [
            getattr(first, name) if axis is None else tree.unflatten({path: getattr(s, name) for path, s in states.items()})
            for name, axis in zip(shared._fields, shared, strict=True)
        ]
        return type(shared)(*fields)

    def init(params: Params) -> PyTree:
        return gather({path: mapped(tx.init, path, (0,), shared)(x) for path, x in tree.flatten(params).items()})

    def update(updates: Params, state: PyTree, params: Params | None = None) -> tuple[Params, PyTree]:
        flat, weights = tree.flatten(updates), tree.flatten(params)
        fields = [field if axis is None else tree.flatten(field) for field, axis in zip(state, shared, strict=True)]
        out, new = {}, {}
        for path, u in flat.items():
            own = type(shared)(*(field if axis is None else field[path] for field, axis in zip(fields, shared, strict=True)))
            out[path], new[path] = mapped(tx.update, path, (0, shared, 0), (0, shared))(u, own, weights[path])
        return tree.unflatten(out), gather(new)

    return optax.GradientTransformation(init, update)


def _decay_with(factors: Mapping[str, float | np.ndarray]) -> Callable[[Params, Params], Params]:
    def decay(updates: Params, params: Params) -> Params:
        weights = tree.flatten(params)
        add = lambda path, u: u if _is_zero(factors[path]) else u + _like(factors[path], u) * weights[path]
        return tree.unflatten({path: add(path, u) for path, u in tree.flatten(updates).items()})

    return decay


def _scale_by_lr(schedule: schedules.Schedule, multipliers: Mapping[str, float | np.ndarray]) -> Transform:
    def update(updates: Params, state: PyTree, params: Params | None = None, *, step: jax.Array, **extra: Any) -> tuple[Params, PyTree]:
        lr = schedule(step)
        scaled = {path: -(_like(lr, u) * _like(multipliers[path], u)) * u for path, u in tree.flatten(updates).items()}
        return tree.unflatten(scaled), state

    return Transform(lambda params: optax.EmptyState(), update)


def _is_zero(factor: float | np.ndarray) -> bool:
    return not np.any(factor)


def _like(factor: Any, leaf: jax.Array) -> jax.Array:
    return jnp.asarray(factor, leaf.dtype)
