"""One table from logical axis names to mesh axes; everything that is placed on devices is placed by it.

Layers name the axes of what they create and compute (`constrain`); the mesh is known here alone. Inside
`use(mesh, table)` a constraint becomes a sharding constraint, outside it is the identity, so a model runs on one device as it is.
"""

import contextlib
import contextvars
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import AbstractMesh, AxisType, Mesh, NamedSharding, PartitionSpec

from mmjax.core import tree
from mmjax.core.errors import UserError, suggest

PyTree = Any
AnyMesh = Mesh | AbstractMesh
MESH_AXES = ("data", "fsdp", "tensor")

# Parameters: "embed" is a model width (the axis FSDP splits), "mlp", "heads" and "vocab" are what tensor parallelism splits.
# Activations: "batch". Everything else is whole on every device.
RULES: dict[str, tuple[str, ...]] = {
    "batch": ("data", "fsdp"),
    "embed": ("fsdp",),
    "mlp": ("tensor",),
    "heads": ("tensor",),
    "vocab": ("tensor",),
    "layers": (),
    "patch": (),
    "position": (),
    "spatial": (),
    "joint": (),
    "width": (),
    "token": (),
    "lora": (),
    "classes": (),
}

_active: contextvars.ContextVar[tuple[AnyMesh, Mapping[str, tuple[str, ...]]] | None] = contextvars.ContextVar("mesh", default=None)


def make_table(overrides: Sequence[tuple[str, Any]] = ()) -> dict[str, tuple[str, ...]]:
    """`RULES` with `((logical axis, mesh axis | mesh axes | None), ...)` replaced or added.

    Raises:
      UserError: an entry names a mesh axis that does not exist.
    """
    table = dict(RULES)
    for name, axes in overrides:
        axes = () if axes is None else (axes,) if isinstance(axes, str) else tuple(axes)
        for axis in axes:
            if axis not in MESH_AXES:
                raise UserError(f"sharding.table: '{name}' -> '{axis}', which is no mesh axis{suggest(axis, MESH_AXES)}")
        table[name] = axes
    return table


def mesh_shape(sizes: Mapping[str, int], devices: int) -> tuple[int, ...]:
    """Sizes of (data, fsdp, tensor) on that many devices; one size may be -1 and takes what is left.

    Raises:
      UserError: an unknown axis, or sizes that do not multiply to the number of devices.
    """
    for axis in sizes:
        if axis not in MESH_AXES:
            raise UserError(f"mesh: unknown axis '{axis}'{suggest(axis, MESH_AXES)}")
    shape = [int(sizes.get(axis, 1)) for axis in MESH_AXES]
    asked = ", ".join(f"{a}={s}" for a, s in zip(MESH_AXES, shape, strict=True))
    if shape.count(-1) > 1 or any(s == 0 or s < -1 for s in shape):
        raise UserError(f"mesh ({asked}): sizes are positive, and at most one is -1")
    if -1 in shape:
        rest = int(np.prod([s for s in shape if s != -1]))
        if devices % rest:
            raise UserError(f"mesh ({asked}): the fixed sizes multiply to {rest}, which does not divide the {devices} devices")
        shape[shape.index(-1)] = devices // rest
    if int(np.prod(shape)) != devices:
        raise UserError(f"mesh ({asked}) needs {int(np.prod(shape))} devices, there are {devices}; set one size to -1 to fill")
    return tuple(shape)


def make_mesh(sizes: Mapping[str, int], devices: Sequence[jax.Device] | None = None) -> Mesh:
    """A mesh (data, fsdp, tensor) over the devices, all of them by default; errors as `mesh_shape`."""
    devices = list(jax.devices() if devices is None else devices)
    return jax.make_mesh(mesh_shape(sizes, len(devices)), MESH_AXES, axis_types=(AxisType.Auto,) * 3, devices=devices)


def abstract_mesh(sizes: Mapping[str, int], devices: int) -> AbstractMesh:
    """The same without devices: to plan for machines one does not have."""
    return AbstractMesh(mesh_shape(sizes, devices), MESH_AXES, axis_types=(AxisType.Auto,) * 3)


@contextlib.contextmanager
def use(mesh: AnyMesh, table: Mapping[str, tuple[str, ...]] = RULES) -> Iterator[None]:
    """Within it, `constrain` places activations on `mesh`. Needed only while tracing."""
    token = _active.set((mesh, table))
    try:
        yield
    finally:
        _active.reset(token)


def spec(axes: Sequence[str | None], shape: Sequence[int], mesh: AnyMesh, table: Mapping[str, tuple[str, ...]] = RULES) -> PartitionSpec:
    """The partition of an array with these logical axes. A dimension its mesh axes do not divide stays whole.

    Raises:
      ValueError: a name the table lacks, or as many names as the array has no dimensions.
    """
    if len(axes) != len(shape):
        raise ValueError(f"logical axes {tuple(axes)} name {len(axes)} dimensions of an array of shape {tuple(shape)}")
    used: set[str] = set()
    out: list[tuple[str, ...] | None] = []
    for name, size in zip(axes, shape, strict=True):
        if name is None:
            out.append(None)
            continue
        if name not in table:
            raise ValueError(f"logical axis '{name}' is not in the sharding table{suggest(name, table)}")
        free = tuple(a for a in table[name] if mesh.shape[a] > 1 and a not in used)
        if free and size % int(np.prod([mesh.shape[a] for a in free])) == 0:
            used.update(free)
            out.append(free)
        else:
            out.append(None)
    return PartitionSpec(*out)


def constrain(x: jax.Array, *axes: str | None) -> jax.Array:
    """Places an activation by the logical names of its dimensions; the identity outside `use`."""
    active = _active.get()
    if active is None:
        return x
    mesh, table = active
    return jax.lax.with_sharding_constraint(x, NamedSharding(mesh, spec(axes, x.shape, mesh, table)))


def splits(name: str, mesh: AnyMesh | None = None) -> tuple[AnyMesh | None, tuple[str, ...]]:
    """(mesh, those of its axes that split logical axis `name`), for code with collectives of its own; by default of the mesh in use.

    Axes of size 1 are left out; outside `use` and without a mesh it is (None, ()).
    """
    mesh, table = (mesh, RULES) if mesh is not None else _active.get() or (None, RULES)
    return mesh, tuple(a for a in table[name] if mesh.shape[a] > 1) if mesh is not None else ()


def gathered(x: jax.Array, *axes: str | None) -> jax.Array:
    """A parameter as products need it: whole along the mesh axes that split the batch (what FSDP means), split as it was over the rest."""
    active = _active.get()
    if active is None:
        return x
    mesh, table = active
    kept = {name: tuple(a for a in to if a not in table["batch"]) for name, to in table.items()}
    return jax.lax.with_sharding_constraint(x, NamedSharding(mesh, spec(axes, x.shape, mesh, kept)))


def params_shardings(
    params: PyTree,
    axes: PyTree,
    mesh: AnyMesh,
    table: Mapping[str, tuple[str, ...]] = RULES,
    rules: Sequence[tuple[str, str]] = ((".*", "logical"),),
) -> PyTree:
    """A `NamedSharding` for every parameter: nested dicts of arrays (or shapes) and of logical axes -> nested dict.

    `rules` are first-match over paths: "logical" follows the table, "replicate" keeps the leaf whole.

    Raises:
      UserError: a rule that decides nothing, a parameter none covers, or another value.
    """
    shapes, names = tree.flatten(params), tree.flatten(axes)
    if set(shapes) != set(names):
        raise ValueError(f"task.axes and parameters differ at {sorted(set(shapes) ^ set(names))[:5]}")
    out = {}
    for path, how in tree.first_match(shapes, rules, "sharding.rules").items():
        if how not in ("logical", "replicate"):
            raise UserError(f"sharding.rules: '{how}' for '{path}' is neither 'logical' nor 'replicate'")
        p = spec(names[path], shapes[path].shape, mesh, table) if how == "logical" else PartitionSpec()
        out[path] = NamedSharding(mesh, p)
    return tree.unflatten(out)


def like_params(state: PyTree, params: PyTree, shardings: PyTree, mesh: AnyMesh) -> PyTree:
    """Shardings for optimizer state: a leaf under a parameter's path with its shape is placed as the parameter, any other is whole."""
    known = [
        (tuple(path.split("/")), p.shape, s)
        for (path, p), s in zip(tree.flatten(params).items(), tree.flatten(shardings).values(), strict=True)
    ]
    by_name = {path: (shape, s) for path, shape, s in known}
    whole = NamedSharding(mesh, PartitionSpec())

    def place(key_path, leaf):
        names = tuple(k.key for k in key_path if isinstance(k, jax.tree_util.DictKey))
        for start in range(len(names)):
            if names[start:] in by_name:
                shape, sharding = by_name[names[start:]]
                return sharding if shape == leaf.shape else whole
        return whole

    return jax.tree_util.tree_map_with_path(place, state)


def batch_sharding(mesh: AnyMesh) -> NamedSharding:
    """Examples split over (data, fsdp), everything else whole."""
    return NamedSharding(mesh, PartitionSpec(("data", "fsdp")))


def check_batch(batch_size: int, accumulate: int, mesh: AnyMesh) -> None:
    """Raises `UserError` unless every microbatch splits evenly over the mesh's data and fsdp axes."""
    ways = mesh.shape["data"] * mesh.shape["fsdp"]
    if batch_size % (ways * accumulate):
        near = max(1, round(batch_size / (ways * accumulate))) * ways * accumulate
        raise UserError(
            f"batch_size {batch_size} does not split over {ways} devices (mesh data={mesh.shape['data']} x fsdp={mesh.shape['fsdp']}) "
            f"in {accumulate} microbatch{'es' if accumulate > 1 else ''}: expected a multiple of {ways * accumulate}, for example {near}"
        )


def local_rows(batch_size: int, mesh: Mesh) -> np.ndarray:
    """int64[b]: the rows of the global batch that this process's devices hold, ascending."""
    slices = batch_sharding(mesh).addressable_devices_indices_map((batch_size,)).values()
    rows = {r for (s,) in slices for r in range(*s.indices(batch_size))}
    return np.array(sorted(rows), dtype=np.int64)


def put_batch(batch: PyTree, batch_size: int, mesh: Mesh) -> PyTree:
    """Host arrays with this process's rows -> global arrays of `batch_size` rows over the mesh."""
    sharding = batch_sharding(mesh)
    put = lambda x: jax.make_array_from_process_local_data(sharding, np.asarray(x), (batch_size, *np.shape(x)[1:]))
    return jax.tree.map(put, batch)
