"""Names and layouts of published weights against ours: one list of rules, run forwards to import and backwards to export.

A rule names tensors of the file and leaves of our parameters, and holds a pair of functions between their values. "{i}" in the names of
tensors counts layers, which are the leading axis of the leaves: `Rule("h.{i}.w", "blocks/w", transpose)` binds `depth` tensors to one leaf.
"{i+1}" counts from 1, and "{4i+3}" is 3, 7, ...
"""

import dataclasses
import functools
import itertools
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Sharding

from mmjax.convert.tensors import Tensor, Tensors, describe, of_array, some
from mmjax.core.errors import UserError

Array = np.ndarray
_LAYER = re.compile(r"\{(\d*)i(?:\+(\d+))?\}")


@dataclasses.dataclass(frozen=True)
class Op:
    """A pair of functions between the tensors of a rule and its leaves, one layer's; each takes and returns tuples of arrays.

    Where they can, they return views: then a device that holds a part of a leaf reads that part.
    """

    forward: Callable[..., tuple[Array, ...]]
    inverse: Callable[..., tuple[Array, ...]]


@dataclasses.dataclass(frozen=True)
class Rule:
    """`source` tensors hold the same numbers as `target` leaves. A rule without target is for tensors that a model needs no leaf for."""

    source: str | tuple[str, ...]
    target: str | tuple[str, ...]
    op: Op

    @property
    def sources(self) -> tuple[str, ...]:
        return (self.source,) if isinstance(self.source, str) else self.source

    @property
    def targets(self) -> tuple[str, ...]:
        return (self.target,) if isinstance(self.target, str) else self.target

    @property
    def stacked(self) -> bool:
        return _LAYER.search(self.sources[0]) is not None

    def sources_of(self, layer: int) -> tuple[str, ...]:
        number = lambda m: str(int(m[1] or 1) * layer + int(m[2] or 0))
        return tuple(_LAYER.sub(number, name) for name in self.sources)


def _each(forward: Callable[[Array], Array], inverse: Callable[[Array], Array]) -> Op:
    return Op(lambda x: (forward(x),), lambda x: (inverse(x),))


identity = _each(lambda x: x, lambda x: x)
transpose = _each(lambda x: x.T, lambda x: x.T)  # PyTorch's Linear is [out, in], ours [in, out]
conv = _each(lambda x: x.transpose(2, 3, 1, 0), lambda x: x.transpose(3, 2, 0, 1))  # OIHW <-> HWIO


def reshape(theirs: tuple[int, ...], ours: tuple[int, ...]) -> Op:
    """The same numbers in the same order under another shape, such as heads beside their width or in one axis with it.

    The whole of `theirs` must come, so a tensor of another size is misshapen and not silently rearranged.
    """
    return _each(lambda x: x.reshape(ours), lambda x: x.reshape(theirs))


def patches(patch: int, channels: int) -> Op:
    """A convolution [D, C, p, p] whose stride is its size <-> a matrix on flattened patches [p * p * C, D], rows (row, column, channel)."""

    def inverse(x: Array) -> Array:
        return x.reshape(patch, patch, channels, x.shape[-1]).transpose(3, 2, 0, 1)

    return _each(lambda x: x.transpose(2, 3, 1, 0).reshape(-1, x.shape[0]), inverse)


def split(parts: int, op: Op = identity, axis: int = 0) -> Op:
    """One tensor <-> `parts` equal parts of an axis, each through `op`: PyTorch's in_proj is q, k, v on top of each other."""

    def forward(x: Array) -> tuple[Array, ...]:
        return tuple(op.forward(part)[0] for part in np.split(x, parts, axis))

    return Op(forward, lambda *xs: (np.concatenate([op.inverse(x)[0] for x in xs], axis),))


def tied(copies: int, op: Op = identity) -> Op:
    """Several tensors that must be equal <-> one leaf."""

    def forward(*xs: Array) -> tuple[Array, ...]:
        if not all(np.array_equal(xs[0], x) for x in xs[1:]):
            raise ValueError("the tensors are not equal, and the model has one leaf for them")
        return op.forward(xs[0])

    return Op(forward, lambda x: op.inverse(x) * copies)


def constant(value: Array | None) -> Op:
    """A tensor that is no weight: dropped on import, made again on export. None: a counter of training, dropped and not known again."""

    def forward(x: Array) -> tuple[Array, ...]:
        if value is not None and not np.array_equal(x, value):
            raise ValueError("it is not the constant expected there")
        return ()

    return Op(forward, lambda: () if value is None else (value,))


@dataclasses.dataclass(frozen=True)
class Bound:
    """A rule against shapes: how many layers, or None where it has none."""

    rule: Rule
    layers: int | None

    def names(self, layer: int | None) -> tuple[str, ...]:
        """The tensors of a layer."""
        return self.rule.sources if layer is None else self.rule.sources_of(layer)

    @property
    def every(self) -> Iterator[int | None]:
        return iter((None,) if self.layers is None else range(self.layers))


def _unrolled(rule: Rule, shapes: Mapping[str, Any]) -> list[Rule]:
    """A rule of stacked layers as one for each where the model has `blocks_0/...`, `blocks_1/...` instead of `blocks/...`."""
    if not rule.stacked or rule.targets[0] in shapes:
        return [rule]
    at = lambda path, layer: re.sub(r"(^|/)blocks/", rf"\g<1>blocks_{layer}/", path)
    depth = next(i for i in itertools.count() if at(rule.targets[0], i) not in shapes)
    return [Rule(rule.sources_of(i), tuple(at(path, i) for path in rule.targets), rule.op) for i in range(depth)] or [rule]


def _bind(rules: Sequence[Rule], shapes: Mapping[str, Any]) -> list[Bound]:
    """Rules with their numbers of layers. A leaf two rules write, or none, is a mistake of a family's rules and a ValueError."""
    rules = [one for rule in rules for one in _unrolled(rule, shapes)]
    written = [path for rule in rules for path in rule.targets]
    wrong = sorted((set(written) ^ set(shapes)) | {path for path in written if written.count(path) > 1})
    if wrong:
        raise ValueError(f"rules do not write every leaf once: {wrong[:8]}")
    return [Bound(rule, shapes[rule.targets[0]].shape[0] if rule.stacked else None) for rule in rules]


def _expected(bound: Bound, shapes: Mapping[str, Any]) -> list[tuple[int, ...] | None]:
    """The shapes of a rule's tensors, from those of its leaves: the inverse of zeros that take no memory."""
    cut = slice(None) if bound.layers is None else slice(1, None)
    zeros = [np.broadcast_to(np.zeros((), np.int8), tuple(shapes[path].shape)[cut]) for path in bound.rule.targets]
    out = [x.shape for x in bound.rule.op.inverse(*zeros)]
    return out or [None] * len(bound.rule.sources)


def _check(bounds: Sequence[Bound], sources: Tensors, shapes: Mapping[str, Any], where: str) -> None:
    missing, misshapen, used = [], [], []
    for bound in bounds:
        expected = _expected(bound, shapes)
        for layer in bound.every:
            for name, want in zip(bound.names(layer), expected, strict=True):
                used.append(name)
                if name not in sources:
                    missing.append(f"{name} [{','.join(map(str, want or ()))}]")
                elif want is not None and sources[name].shape != want:
                    misshapen.append(f"{name} {describe(sources[name])} where [{','.join(map(str, want))}] is expected")
    if len(used) != len(set(used)):
        raise ValueError(f"rules read a tensor twice: {sorted(n for n in set(used) if used.count(n) > 1)[:8]}")
    left = [f"{name} {describe(sources[name])}" for name in sources if name not in set(used)]
    problems = [
        f"{len(items)} {what}: {some(items)}"
        for what, items in (("missing", missing), ("misshapen", misshapen), ("left over", left))
        if items
    ]
    if problems:
        raise UserError(f"{where}: the tensors do not make the model the config describes. {'; '.join(problems)}")


class Leaf:
    """One of our parameters, still in the file: `leaf[index]` reads and converts what the index covers, layer by layer."""

    def __init__(self, bound: Bound, output: int, like: Any, sources: Tensors, where: str):
        self.shape, self.dtype = tuple(like.shape), np.dtype(like.dtype)
        self._bound, self._output, self._sources, self._where = bound, output, sources, where

    def __getitem__(self, index: Any) -> Array:
        """Always a copy of its own: what is mapped may change under a view, and devices may share host memory."""
        index = index if isinstance(index, tuple) else (index,)
        if self._bound.layers is None:
            return self._cast(self._layer(None)[index], None)
        layers = np.arange(self.shape[0])[index[0] if index else slice(None)]
        if np.ndim(layers) == 0:
            return self._cast(self._layer(int(layers))[index[1:]], int(layers))
        shard = np.empty((len(layers), *np.broadcast_to(np.int8(0), self.shape[1:])[index[1:]].shape), self.dtype)
        for row, layer in enumerate(layers):
            shard[row] = self._cast(self._layer(int(layer))[index[1:]], int(layer))
        return shard

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> Array:
        return self[...].astype(self.dtype if dtype is None else dtype)

    def _layer(self, layer: int | None) -> Array:
        names = self._bound.names(layer)
        values = [self._sources[name].read() for name in names]
        try:
            return self._bound.rule.op.forward(*values)[self._output]
        except ValueError as e:
            raise UserError(f"{self._where}: {', '.join(names)}: {e}") from None

    def _cast(self, x: Array | np.generic, layer: int | None) -> Array:
        with np.errstate(over="ignore"):
            narrowed = np.array(x, self.dtype)
        if self.dtype.itemsize < x.dtype.itemsize and np.isinf(narrowed.astype(np.float32)).any() and not np.isinf(x).any():
            raise UserError(
                f"{self._where}: {self._bound.names(layer)[0]} does not fit in {self.dtype.name}; load it in float32 or bfloat16"
            )
        return narrowed


def leaves(rules: Sequence[Rule], sources: Tensors, shapes: Mapping[str, Any], where: str, dtype: Any = np.float32) -> dict[str, Leaf]:
    """Our parameters as they lie in the file, none read: path -> `Leaf`, floats in `dtype`, in the order of `shapes`.

    Args:
      shapes: path -> anything with `shape` and `dtype`, every leaf of the model.
      where: the file, for messages.

    Raises:
      UserError: one list of every tensor left over, missing or misshapen.
    """
    bounds = _bind(rules, shapes)
    _check(bounds, sources, shapes, where)
    for bound in bounds:
        if not bound.rule.targets and bound.rule.op.inverse():  # constants have no leaf through which they would be looked at
            for name in bound.rule.sources:
                try:
                    bound.rule.op.forward(sources[name].read())
                except ValueError as e:
                    raise UserError(f"{where}: {name}: {e}") from None
    found = {}
    for bound in bounds:
        for output, path in enumerate(bound.rule.targets):
            kind = np.dtype(shapes[path].dtype)
            like = jax.ShapeDtypeStruct(shapes[path].shape, dtype if jnp.issubdtype(kind, jnp.floating) else kind)
            found[path] = Leaf(bound, output, like, sources, where)
    return {path: found[path] for path in shapes}


def place(leaf: Leaf | np.ndarray, sharding: Sharding | None) -> jax.Array:
    """A leaf on its devices, each given what it holds; None is the default device."""
    sharding = jax.sharding.SingleDeviceSharding(jax.devices()[0]) if sharding is None else sharding
    # Devices that hold the same part share one reading of it.
    read = functools.lru_cache(maxsize=None)(lambda spans: leaf[tuple(slice(*span) for span in spans)])

    def part(index: tuple[slice, ...]) -> Array:
        return read(tuple(s.indices(n) for s, n in zip(index, leaf.shape, strict=True)))

    return jax.make_array_from_callback(leaf.shape, sharding, part)


def export(rules: Sequence[Rule], params: Mapping[str, Any], dtype: Any = None) -> dict[str, Tensor]:
    """The tensors that import would have made `params` (path -> array or `Leaf`) of. Each reads its leaf when it is read.

    Floats are in `dtype`, or as the parameters are.
    """
    bounds = _bind(rules, params)
    out: dict[str, Tensor] = {}
    for bound in bounds:
        if not bound.rule.targets:
            out |= {name: of_array(x) for name, x in zip(bound.rule.sources, bound.rule.op.inverse(), strict=False)}
            continue
        for layer in bound.every:
            for output, (name, shape) in enumerate(zip(bound.names(layer), _expected(bound, params), strict=True)):
                kind = np.dtype(params[bound.rule.targets[0]].dtype)
                kind = np.dtype(dtype) if dtype is not None and jnp.issubdtype(kind, jnp.floating) else kind
                out[name] = Tensor(shape, kind, functools.partial(_inverse, bound, params, layer, output, kind))
    return out


def _inverse(bound: Bound, params: Mapping[str, Any], layer: int | None, output: int, kind: np.dtype) -> Array:
    values = [np.asarray(params[path] if layer is None else params[path][layer]) for path in bound.rule.targets]
    return np.ascontiguousarray(bound.rule.op.inverse(*values)[output], kind)


def under(prefix: str, rules: Iterable[Rule]) -> list[Rule]:
    """Rules whose tensors' names begin with `prefix`."""
    return [dataclasses.replace(r, source=tuple(prefix + name for name in r.sources)) for r in rules]


def moved(old: str, new: str, rules: Iterable[Rule]) -> list[Rule]:
    """The rules whose leaves' paths all begin with `old`, which becomes `new`."""
    kept = (r for r in rules if r.targets and all(path.startswith(old) for path in r.targets))
    return [dataclasses.replace(r, target=tuple(new + path.removeprefix(old) for path in r.targets)) for r in kept]
