"""Reading checkpoints: which are there, whether they are intact, what they hold, and their arrays, in whole or in part.

Nothing here writes. `contents` and `read_params` need no `Checkpoints` object and do not disturb a run that is writing.
With many hosts every function is called by all of them; the first one looks and tells the others.
"""

import dataclasses
import errno
import functools
import json
import os
import re
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
from etils import epath
from jax.experimental import multihost_utils
from jax.sharding import Sharding

from mmjax.core import manifest as mf
from mmjax.core import tree as tree_lib
from mmjax.core.errors import UserError, suggest

PyTree = Any
Log = Callable[[str], None]
FROZEN = "frozen"
STATE = "state"
STEP_NAME = re.compile(r"0|[1-9][0-9]*")

to_stderr: Log = functools.partial(print, file=sys.stderr, flush=True)


@dataclasses.dataclass(frozen=True)
class Contents:
    """What a checkpoint holds, known without loading an array: path -> ShapeDtypeStruct."""

    step: int
    arrays: dict[str, jax.ShapeDtypeStruct]
    frozen: dict[str, jax.ShapeDtypeStruct]
    meta: dict[str, Any]


def paths_of(tree: PyTree) -> dict[str, Any]:
    """Any pytree as path -> leaf, paths joined by "/": fields by name, dict entries by key, tuples by index."""
    leaves = jax.tree_util.tree_flatten_with_path(tree)[0]
    flat = {jax.tree_util.keystr(path, simple=True, separator="/"): x for path, x in leaves}
    if len(flat) != len(leaves):
        raise ValueError("two leaves of the tree have the same path; do keys contain '/'?")
    return flat


def on_first(function: Callable[[], Any]) -> Any:
    """Runs `function` on the first process and returns its (JSON) result on all; its UserError is raised on all."""
    if jax.process_count() == 1:
        return function()
    message = b""
    if jax.process_index() == 0:
        try:
            message = json.dumps({"result": function()}).encode()
        except UserError as e:
            message = json.dumps({"error": str(e)}).encode()
    size = int(multihost_utils.broadcast_one_to_all(np.int32(len(message))))
    buffer = np.frombuffer(message.ljust(size)[:size], np.uint8)
    got = json.loads(np.asarray(multihost_utils.broadcast_one_to_all(buffer)).tobytes())
    if "error" in got:
        raise UserError(got["error"])
    return got["result"]


def absolute(directory: epath.PathLike) -> epath.Path:
    """Orbax takes absolute paths only."""
    path = epath.Path(directory)
    return path if "://" in os.fspath(path) else epath.Path(os.path.abspath(os.path.expanduser(path)))


def committed_steps(directory: epath.Path) -> list[int]:
    """Committed steps, oldest first."""
    if not directory.exists():
        return []
    return sorted(int(p.name) for p in directory.iterdir() if STEP_NAME.fullmatch(p.name) and p.is_dir())


def some(items: Sequence[str], n: int = 4) -> str:
    return "; ".join(items[:n]) + (f"; and {len(items) - n} more" if len(items) > n else "")


def _shape(entry: Mapping[str, Any]) -> str:
    return f"{entry['dtype']}[{','.join(map(str, entry['shape']))}]"


def _abstract(arrays: Mapping[str, Mapping]) -> dict[str, jax.ShapeDtypeStruct]:
    return {path: jax.ShapeDtypeStruct(tuple(e["shape"]), jnp.dtype(e["dtype"])) for path, e in arrays.items()}


def check_same(saved: Mapping[str, Mapping], wanted: Mapping[str, Mapping], where: str) -> None:
    """Raises `UserError` with both sides unless the two trees have the same paths, shapes and dtypes."""
    strip = {p: _shape(e) for p, e in saved.items()}
    asked = {p: _shape(e) for p, e in wanted.items()}
    only_saved = [f"{p} {strip[p]}" for p in strip if p not in asked]
    only_asked = [f"{p} {asked[p]}" for p in asked if p not in strip]
    differ = [f"{p} {strip[p]} there, {asked[p]} here" for p in strip if p in asked and strip[p] != asked[p]]
    parts = [
        f"{len(items)} {what}: {some(items)}"
        for what, items in (("of another shape or dtype", differ), ("only there", only_saved), ("only here", only_asked))
        if items
    ]
    if parts:
        raise UserError(
            f"{where} holds another model than this config makes. Arrays {'. Arrays '.join(parts)}. "
            "Continue with the config it was saved with, choose a new workdir, or start from its parameters with init_from"
        )


def read_manifest(directory: epath.Path) -> dict[str, Any]:
    """Like `manifest.read`, and a `UserError` for a format of the future or a folder we may not read."""
    try:
        manifest = mf.read(directory)
    except PermissionError as e:
        raise UserError(f"cannot read checkpoint {directory}: {e.strerror}; check who owns it") from e
    if manifest["format"] > mf.FORMAT:
        raise UserError(
            f"checkpoint {directory} has format {manifest['format']}, written by mmjax {manifest['mmjax']}; "
            f"this mmjax reads formats up to {mf.FORMAT}: upgrade mmjax"
        )
    return manifest


def inspect(directory: epath.Path, *, with_files: bool) -> str:
    """What is damaged about a checkpoint, "" if nothing."""
    try:
        manifest = read_manifest(directory)
        if with_files:
            mf.verify_files(directory, manifest)
    except mf.Damaged as e:
        return str(e)
    except PermissionError as e:
        raise UserError(f"cannot read checkpoint {directory}: {e.filename}: {e.strerror}; check who owns it") from e
    except OSError as e:
        if e.errno not in (errno.ENOENT, errno.EIO):  # a file server that does not answer has damaged nothing
            raise UserError(f"cannot read checkpoint {directory}: {e.filename}: {e.strerror or e}") from e
        return f"file {e.filename}: {e.strerror}"
    return ""


def load_arrays(directory: epath.Path, wanted: Mapping[str, Any], arrays: Mapping[str, Mapping]) -> dict[str, Any]:
    """Reads arrays: path -> jax.Array where `wanted[path].sharding` is set, else host numpy.

    Raises:
      Damaged: an array whose checksum is not the manifest's.
    """
    out, args = {}, {}
    for path, x in wanted.items():
        sharding = getattr(x, "sharding", None)
        if 0 in x.shape:  # Orbax stores no empty arrays
            empty = np.zeros(x.shape, x.dtype)
            out[path] = empty if sharding is None else jax.make_array_from_callback(x.shape, sharding, lambda i, e=empty: e[i])
        elif sharding is None:
            args[path] = ocp.RestoreArgs(restore_type=np.ndarray)
        else:
            args[path] = ocp.ArrayRestoreArgs(sharding=sharding, global_shape=x.shape, dtype=x.dtype)
    if args:
        with ocp.Checkpointer(ocp.PyTreeCheckpointHandler()) as reader:
            request = ocp.args.PyTreeRestore(item=dict.fromkeys(args, 0), restore_args=args, partial_restore=True)
            out.update(reader.restore(directory / STATE, args=request))
    out = {path: out[path] for path in wanted}  # in the order of a save, whose compiled program serves again
    for path, checksum in mf.finish_checksums(mf.start_checksums(out)).items():
        if checksum != arrays[path]["checksum"]:
            raise mf.Damaged(f"array {path} has checksum {checksum}, {arrays[path]['checksum']} was saved")
    return out


def _candidates(directory: epath.Path, step: int | None) -> list[int]:
    """Steps to try, best first; raises `UserError` if there is none."""
    steps = on_first(lambda: committed_steps(directory))
    if not steps:
        raise UserError(f"no checkpoint in {directory}; expected a folder named by its step, such as {directory}/1000")
    if step is not None and step not in steps:
        raise UserError(f"no checkpoint of step {step} in {directory}; there are {', '.join(map(str, steps))}")
    return [step] if step is not None else steps[::-1]


def first_good(directory: epath.Path, step: int | None, log: Log, attempt: Callable[[int], Any]) -> tuple[Any, list[int]]:
    """`attempt(step)` of the newest step where it does not raise `Damaged`, and the steps where it did.

    Raises:
      UserError: none was good, or the one asked for was not.
    """
    steps, bad = _candidates(directory, step), []
    for i, candidate in enumerate(steps):
        try:
            return attempt(candidate), bad
        except mf.Damaged as e:
            what = f"checkpoint {candidate} in {directory} is damaged: {e}"
        bad.append(candidate)
        if step is not None:
            others = [s for s in on_first(lambda: committed_steps(directory)) if s != step]
            raise UserError(f"{what}. Other steps there: {', '.join(map(str, others)) or 'none'}; nothing was changed")
        if i + 1 < len(steps):
            log(f"warning: {what}; trying the one before it, {steps[i + 1]}")
            continue
        listed = ", ".join(map(str, bad))
        raise UserError(
            f"{what}. No undamaged checkpoint is left (damaged: {listed}); nothing was changed. "
            "Restore the folder from a copy, or start anew in another workdir"
        )
    raise AssertionError("unreachable")


def contents(directory: epath.PathLike, step: int | None = None, *, log: Log = to_stderr) -> Contents:
    """What the checkpoint of `step` (default: the newest with a good manifest) in a run's `checkpoints` folder holds.

    Reads the manifests only. Raises `UserError` where there is none.
    """
    directory = absolute(directory)

    def attempt(candidate: int) -> Contents:
        raise_if(on_first(lambda: inspect(directory / str(candidate), with_files=False)))
        manifest = read_manifest(directory / str(candidate))
        frozen = frozen_manifest(directory, manifest)["arrays"] if manifest["frozen"] else {}
        return Contents(candidate, _abstract(manifest["arrays"]), _abstract(frozen), manifest["meta"])

    return first_good(directory, step, log, attempt)[0]


def raise_if(damage: str) -> None:
    if damage:
        raise mf.Damaged(damage)


def frozen_manifest(directory: epath.Path, manifest: Mapping[str, Any]) -> dict[str, Any]:
    """The manifest of the frozen leaves a checkpoint rests on; `UserError` if it is not there as it was."""
    try:
        frozen = read_manifest(directory / FROZEN)
        if frozen["checksum"] != manifest["frozen"]:
            raise mf.Damaged("it belongs to other checkpoints")
    except mf.Damaged as e:
        raise frozen_error(directory, e) from e
    return frozen


def frozen_error(directory: epath.Path, why: Exception) -> UserError:
    return UserError(
        f"the frozen parameters in {directory / FROZEN}, on which every checkpoint there rests, are damaged: {why}; "
        "nothing was changed. Restore that folder from a copy, or start anew"
    )


def _below(arrays: Mapping[str, Any], tree: str, where: str) -> dict[str, str]:
    """Stripped path -> path of the arrays below `tree`."""
    out = {path.removeprefix(f"{tree}/"): path for path in arrays if path.startswith(f"{tree}/")}
    if not out:
        names = {"/".join(path.split("/")[:n]) for path in arrays for n in (1, 2)} - set(arrays)
        raise UserError(f"{where} has no tree {tree!r}{suggest(tree, names)}")
    return out


def read_params(
    directory: epath.PathLike,
    trees: Sequence[str] = ("params",),
    step: int | None = None,
    *,
    frozen: bool = True,
    shardings: Callable[[str, jax.ShapeDtypeStruct], Sharding | None] = lambda path, x: None,
    log: Log = to_stderr,
) -> tuple[int, dict[str, Any]]:
    """Reads parameters out of a run's `checkpoints` folder, without knowing its optimizer or disturbing the run.

    Args:
      trees: subtrees by path, merged in this order: ("params", "ema/slow") gives the averages of the leaves that have one
        and the raw value of the others.
      step: default: the newest undamaged one.
      frozen: put the run's frozen leaves underneath, if it has any.
      shardings: where an array goes, given its path within the subtree; None for host numpy.

    Returns:
      The step, and a nested dict. Every array read is verified by its checksum.

    Raises:
      UserError: no such checkpoint or subtree, or it is damaged.
    """
    directory = absolute(directory)

    def load(folder: epath.Path, arrays: Mapping[str, Mapping], names: Mapping[str, str]) -> dict[str, Any]:
        kinds = _abstract(arrays)
        wanted = {path: _placed(kinds[path], shardings(name, kinds[path])) for name, path in names.items()}
        try:
            loaded = load_arrays(folder, wanted, arrays)
        except Exception:
            raise_if(on_first(lambda: inspect(folder, with_files=True)))  # names the file, if that is why
            raise
        return {name: loaded[path] for name, path in names.items()}

    def attempt(candidate: int) -> tuple[int, dict]:
        folder = directory / str(candidate)
        raise_if(on_first(lambda: inspect(folder, with_files=False)))
        manifest = read_manifest(folder)
        flat: dict[str, Any] = {}
        names = {name: path for t in trees for name, path in _below(manifest["arrays"], t, str(folder)).items()}
        if frozen and manifest["frozen"]:
            kept = frozen_manifest(directory, manifest)["arrays"]
            try:
                flat.update(load(directory / FROZEN, kept, {p: p for p in kept if p not in names}))
            except mf.Damaged as e:
                raise frozen_error(directory, e) from e
        flat.update(load(folder, manifest["arrays"], names))
        return candidate, tree_lib.unflatten(dict(sorted(flat.items())))

    return first_good(directory, step, log, attempt)[0]


def _placed(x: jax.ShapeDtypeStruct, sharding: Sharding | None) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding)
