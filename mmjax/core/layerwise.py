"""Where a parameter stands among a model's layers, and rules whose value depends on the layer.

A scanned stack keeps one leaf for all layers, with the logical axis "layers" in front (twice where super-blocks hold stacks).
An unrolled stack keeps a leaf a layer, under siblings `blocks_0`, `blocks_1`, ... Both forms get the same numbers.
"""

import dataclasses
import math
import re
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from mmjax.core import tree
from mmjax.core.errors import UserError

PyTree = Any
_LAYER = re.compile(r"blocks_(\d+)")


@dataclasses.dataclass(frozen=True)
class Place:
    """
    Attributes:
      name: the path with `blocks_3` written `blocks`: one name for all layers, as in the scanned model.
      shape: of the leaf.
      depth: its leading layer axes.
      sizes: layer counts, outermost stack first, of axes and of `blocks_i` names. Empty outside any stack.
      index: for each of `sizes` the leaf's own layer, or None where the leaf has an axis for it.
    """

    name: str
    shape: tuple[int, ...]
    depth: int
    sizes: tuple[int, ...]
    index: tuple[int | None, ...]


def places(shapes: Mapping[str, tuple[int, ...]], axes: PyTree) -> dict[str, Place]:
    """The place of each leaf.

    Args:
      shapes: path -> shape.
      axes: nested dict of tuples of logical axis names; may hold more paths than `shapes`.

    Raises:
      UserError: a path without axes, or axes that do not fit the shape.
    """
    names = tree.flatten(axes)
    counts: dict[str, int] = {}  # stack of blocks_i -> its layers
    around: dict[str, int] = {}  # stack of blocks_i -> layer axes that all its leaves have: scans around it
    depths = {path: _depth(path, shape, names.get(path)) for path, shape in shapes.items()}
    for path, depth in depths.items():
        for stack, layer in _named_layers(path):
            counts[stack] = max(counts.get(stack, 0), layer + 1)
            around[stack] = min(around.get(stack, depth), depth)
    out = {}
    for path, shape in shapes.items():
        layers = [(around[stack], counts[stack], i) for stack, i in _named_layers(path)]
        layers += [(axis + 0.5, size, None) for axis, size in enumerate(shape[: depths[path]])]
        layers.sort(key=lambda entry: entry[0])
        out[path] = Place(_canonical(path), shape, depths[path], tuple(n for _, n, _ in layers), tuple(i for _, _, i in layers))
    return out


def _depth(path: str, shape: tuple[int, ...], axes: tuple[str | None, ...] | None) -> int:
    """The number of leading layer axes."""
    if axes is None or len(axes) != len(shape):
        raise UserError(f"parameter '{path}' of shape {shape} has logical axes {axes}, expected one name a dimension")
    depth = next((i for i, a in enumerate(axes) if a != "layers"), len(axes))
    if "layers" in axes[depth:]:
        raise UserError(f"parameter '{path}' has logical axes {axes}; 'layers' must come first")
    return depth


def per_layer(value: Any, place: Place, what: str) -> float | np.ndarray:
    """A rule's value for one leaf: a number as it is; of a sequence with one number a layer the leaf's own, an array over
    its layer axes where it has them. Layers of nested stacks count in order, the innermost fastest.

    Raises:
      UserError: anything but numbers, a sequence for a leaf outside any stack or of another length than its layers.
    """
    number = lambda v: isinstance(v, int | float) and not isinstance(v, bool)
    if number(value):
        return value
    if not isinstance(value, Sequence) or isinstance(value, str) or not all(number(v) for v in value):
        raise UserError(f"{what}: the value is {value!r}, expected a number or one number a layer")
    if len(value) != math.prod(place.sizes) or not place.sizes:
        has = f"has {math.prod(place.sizes)} layers" if place.sizes else "belongs to no stack of layers"
        raise UserError(f"{what}: {len(value)} numbers were given, one a layer, but it {has}")
    return _take(np.asarray(value, np.float64), place)


def layer_decay(where: Mapping[str, Place], decay: float, embed_pattern: str) -> dict[str, float | np.ndarray]:
    """Learning-rate multipliers that fall towards the input, as in BEiT (Bao et al. 2022, appendix) and MAE (He et al. 2022,
    table 9): decay ** (n - i) for layer i of n, decay ** (n + 1) for what comes before the stack, 1 for all else.

    Each stack counts for itself. What comes before it are the leaves that share the stack's parent (for
    `image/blocks/...`, what lies under `image/`) and whose path below that parent matches `embed_pattern` in full. In a stack of
    super-blocks every layer counts; what stands beside the inner stack goes with its first layer, a shorter one with its first
    layers. Only trained parameters are seen.

    Raises:
      UserError: a decay outside (0, 1], or a model without a stack.
    """
    if not 0 < decay <= 1:
        raise UserError(f"optim.layer_decay is {decay}, expected a number above 0 and at most 1")
    stacks: dict[tuple[str, int], list[str]] = {}
    _find_stacks(dict(where), "", stacks)
    if not stacks:
        raise UserError(
            "optim.layer_decay is set but no trained parameter belongs to a stack of layers ('layers' axis or blocks_0, blocks_1, ...)"
        )
    out: dict[str, float | np.ndarray] = {}
    before: dict[str, int] = {}  # parent -> layers of its (longest) stack
    for (parent, outer), paths in stacks.items():
        inner = max(math.prod(where[p].sizes[1:]) for p in paths)
        before[parent] = max(before.get(parent, 0), outer * inner)
        for path in paths:
            own = math.prod(where[path].sizes[1:])
            layer = (np.arange(outer)[:, None] * inner + np.arange(own)[None, :]).reshape(-1)
            out[path] = _take(decay ** (outer * inner - layer.astype(np.float64)), where[path])
    for path, place in where.items():
        if path not in out:
            parent = max((p for p in before if not p or place.name.startswith(f"{p}/")), key=len, default=None)
            below = place.name.removeprefix(f"{parent}/") if parent else place.name
            embeds = parent is not None and re.fullmatch(embed_pattern, below)
            out[path] = decay ** (before[parent] + 1) if embeds else 1.0
    return out


def _canonical(path: str) -> str:
    return "/".join("blocks" if _LAYER.fullmatch(part) else part for part in path.split("/"))


def _named_layers(path: str) -> list[tuple[str, int]]:
    """`a/blocks_2/b` -> [("a/blocks", 2)]: the stacks on the way to a leaf and its layer in each."""
    parts = path.split("/")
    found = [(i, _LAYER.fullmatch(part)) for i, part in enumerate(parts)]
    return [(_canonical("/".join(parts[: i + 1])), int(m[1])) for i, m in found if m]


def _take(values: np.ndarray, place: Place) -> float | np.ndarray:
    """One value a layer, [prod(sizes)] -> the leaf's own: [*layer axes], or a number where its name says which layer."""
    own = values.reshape(place.sizes)[tuple(slice(None) if i is None else i for i in place.index)]
    return own if own.ndim else float(own)


def _find_stacks(members: Mapping[str, Place], prefix: str, stacks: dict[tuple[str, int], list[str]]) -> None:
    """Collects {(parent, layers): paths}. A stack is the highest node under which every leaf has the same (outer) number of
    layers: nothing in a tree of parameters says which of `image/blocks/attn` is the stack's own name."""
    outer = {place.sizes[:1] for place in members.values()}
    if len(outer) == 1:
        (size,) = outer
        if size:
            stacks.setdefault((prefix.rpartition("/")[0], size[0]), []).extend(members)
        return
    if all(place.name == prefix for place in members.values()):
        raise UserError(f"optim.layer_decay: the layers of '{prefix}' hold stacks of different lengths ({', '.join(members)})")
    children: dict[str, dict[str, Place]] = {}
    for path, place in members.items():
        below = place.name.removeprefix(f"{prefix}/") if prefix else place.name
        head = below.partition("/")[0]
        children.setdefault(f"{prefix}/{head}" if prefix else head, {})[path] = place
    for child, own in children.items():
        _find_stacks(own, child, stacks)
