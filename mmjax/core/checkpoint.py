"""Checkpoints: written in the background, committed by one rename, verified on restore.

    checkpoints/
      frozen/           leaves nobody trains, saved once
      400/  600/        a committed checkpoint: manifest.json and state/ (Orbax)
      800.partial/      being written; swept away at the next start
      700.damaged/      failed its verification; kept for the user to look at

Only a directory with its final name counts. Everything is written into `<step>.partial`, the manifest last, and the rename
commits: killed at any moment, a run leaves the old set, or the old set and one complete new checkpoint.
With many hosts every method is called by all of them; the first one decides and tells the others.
"""

import contextlib
import json
import logging
import math
import os
import re
import shutil
import threading
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
from etils import epath
from jax.experimental import multihost_utils

from mmjax.core import manifest as mf
from mmjax.core import tree as tree_lib
from mmjax.core.checkpoint_read import (
    FROZEN,
    STATE,
    Log,
    PyTree,
    absolute,
    check_same,
    committed_steps,
    first_good,
    frozen_error,
    frozen_manifest,
    inspect,
    load_arrays,
    on_first,
    paths_of,
    raise_if,
    read_manifest,
    some,
    to_stderr,
)
from mmjax.core.errors import UserError, suggest

_STALE = re.compile(r"(0|[1-9][0-9]*|frozen)\.(partial|old)")


class Restored(NamedTuple):
    step: int
    tree: PyTree
    frozen: dict[str, Any] | None
    meta: dict[str, Any]


def _check_savable(flat: Mapping[str, Any]) -> None:
    for path, x in flat.items():
        plain = isinstance(x, jax.Array) and not jnp.issubdtype(x.dtype, jax.dtypes.extended)
        if not plain or x.dtype.itemsize not in (1, 2, 4, 8) or jnp.issubdtype(x.dtype, jnp.complexfloating):
            kind = f"{type(x).__name__} of {x.dtype}" if hasattr(x, "dtype") else type(x).__name__
            raise TypeError(
                f"cannot save {path}: expected a jax.Array of real or integer dtype, got {kind} (keys: use jax.random.key_data)"
            )


def _free_bytes(directory: epath.Path) -> int | None:
    """Free space where the directory lies; None where it cannot be known (remote storage)."""
    return None if "://" in os.fspath(directory) else shutil.disk_usage(directory).free


def _size(nbytes: int) -> str:
    power = min(4, int(math.log10(max(nbytes, 1))) // 3)
    return f"{nbytes / 1000**power:.3g} {('B', 'kB', 'MB', 'GB', 'TB')[power]}"


def _not_ours_to_tell(record: logging.LogRecord) -> bool:
    """Drops the tracebacks Orbax logs for a failed background write: it also raises them, and we say it in one line."""
    return not (record.levelno >= logging.ERROR and "orbax" in Path(record.pathname).parts)


class _Write(NamedTuple):
    """A directory on its way: Orbax is writing its arrays, and their checksums are being computed."""

    name: str
    partial: epath.Path
    flat: dict[str, dict]
    sums: list
    writer: ocp.AsyncCheckpointer


class Checkpoints:
    """The checkpoints of one run. One object a run: on creation it sweeps away what a killed run left half written.

    Args:
      directory: created if absent.
      keep_last: this many newest checkpoints are kept (at least 1).
      keep_every: also those whose step is a multiple of it.
      best: also the best by `meta["metrics"][best]`; the earliest of equals. Checkpoints without the metric do not compete.
      best_mode: "max" or "min".
      label: tells the object from others of the same run where hosts wait for each other.
      log: takes one line for the user.
    """

    def __init__(
        self,
        directory: epath.PathLike,
        *,
        keep_last: int = 2,
        keep_every: int | None = None,
        best: str | None = None,
        best_mode: str = "max",
        label: str = "",
        log: Log = to_stderr,
    ):
        if keep_last < 1 or (keep_every is not None and keep_every < 1):
            raise UserError(f"checkpoint.keep_last and keep_every must be at least 1, not {keep_last} and {keep_every}")
        if best_mode not in ("max", "min"):
            raise UserError(f"checkpoint.best_mode is {best_mode!r}{suggest(best_mode, ('max', 'min'))}")
        self.directory = absolute(directory)
        self._keep_last, self._keep_every, self._best, self._best_mode, self._log = keep_last, keep_every, best, best_mode, log
        self._thread: threading.Thread | None = None
        self._failure: tuple[int, int, BaseException] | None = None  # step, bytes, why
        self._current: int | None = None  # the step last saved or restored: saving it again would change nothing
        self._frozen: str | None = None  # checksum of the frozen leaves' manifest, once known to be this run's
        self._metas: dict[int, dict | None] = {}
        # Directories are made before save() returns: then two writers (frozen leaves, the first step) cannot mix up their signals.
        options = {"async_options": ocp.options.AsyncOptions(create_directories_asynchronously=False)}
        self._writers = {
            name: ocp.AsyncCheckpointer(
                ocp.PyTreeCheckpointHandler(use_ocdbt=True),
                multiprocessing_options=ocp.options.MultiprocessingOptions(barrier_sync_key_prefix=f"{label}{name}"),
                **options,
            )
            for name in (STATE, FROZEN)
        }
        logging.getLogger("absl").addFilter(_not_ours_to_tell)
        on_first(self._sweep)

    def _sweep(self) -> None:
        try:
            self.directory.mkdir(parents=True, exist_ok=True)
            for path in self.directory.iterdir():
                if _STALE.fullmatch(path.name) and path.is_dir():
                    path.rmtree()
        except OSError as e:
            raise UserError(f"cannot write checkpoints to {self.directory}: {e.strerror}; choose another workdir") from e

    def steps(self) -> list[int]:
        """Committed steps, oldest first. One still being written is not among them."""
        return on_first(lambda: committed_steps(self.directory))

    def latest(self) -> int | None:
        """The newest committed step."""
        return (self.steps() or [None])[-1]

    # --- saving

    def save(self, step: int, tree: PyTree, *, frozen: Mapping[str, Any] | None = None, meta: Mapping[str, Any] | None = None, wait=False):
        """Starts writing `tree` as checkpoint `step`; returns once its arrays are copied, so that they may be donated.

        A save still running is waited for first. Saving again the step last saved or restored does nothing.

        Args:
          tree: any pytree of jax.Arrays (bool, integer or real; not typed keys).
          frozen: nested dict of leaves that never change; written with the first checkpoint only.
          meta: JSON values kept in the manifest; `meta["metrics"]` is where `best` looks.
          wait: return only when it is committed.

        Raises:
          UserError: this save cannot start or the one before failed: disk full, no permission, the step exists already.
        """
        self.wait()
        flat, frozen_flat, meta = paths_of(tree), paths_of(frozen or {}), json.loads(json.dumps(dict(meta or {})))
        _check_savable({**flat, **{f"{FROZEN}/{p}": x for p, x in frozen_flat.items()}})
        if step == self._current and step in self.steps():
            return
        todo: list[tuple[str, dict]] = [(str(step), flat)]
        if frozen_flat and self._frozen is None:
            self._frozen = self._settle_frozen(frozen_flat)
        if frozen_flat and self._frozen is None:
            todo.insert(0, (FROZEN, frozen_flat))
        needed = sum(tree_lib.nbytes(list(arrays.values())) for _, arrays in todo)
        on_first(lambda: self._prepare(step, [name for name, _ in todo], needed))
        writes: list[_Write] = []
        try:
            for name, arrays in todo:
                writes.append(self._start(name, arrays))
        except Exception as e:
            self._abandon([name for name, _ in todo])
            raise self._write_error(step, needed, e) from e
        self._thread = threading.Thread(
            target=self._finish, args=(step, writes, self._frozen if frozen_flat else None, meta, needed), name="checkpoint"
        )
        self._thread.start()
        if wait:
            self.wait()

    def _settle_frozen(self, flat: dict[str, jax.Array]) -> str | None:
        """Checksum of the manifest in `frozen/` if it holds these very leaves, None if they have yet to be written."""
        mine = _with_checksums(mf.describe(flat), mf.finish_checksums(mf.start_checksums(flat)))

        def compare() -> str | None:
            folder, steps = self.directory / FROZEN, committed_steps(self.directory)
            if not folder.exists():
                return None
            try:
                there = read_manifest(folder)
                mf.verify_files(folder, there)
            except mf.Damaged as e:
                if steps:
                    raise frozen_error(self.directory, e) from e
                return None
            if there["arrays"] == mine:
                return there["checksum"]
            if not steps:  # left by a run that was killed before its first checkpoint
                return None
            check_same(there["arrays"], mine, str(folder))
            changed = [p for p in mine if mine[p] != there["arrays"][p]]
            raise UserError(
                f"the frozen parameters differ from those saved in {folder}, on which checkpoints {steps} rest "
                f"(other values: {some(changed)}); choose a new workdir"
            )

        return on_first(compare)

    def _prepare(self, step: int, names: Iterable[str], needed: int) -> None:
        if (self.directory / str(step)).exists():
            raise UserError(f"checkpoint {step} exists already in {self.directory}; move it away or choose a new workdir")
        try:
            free = _free_bytes(self.directory)
            if free is not None and free < needed + 2**20:
                raise self._write_error(step, needed, None)
            for name in names:
                partial = self.directory / f"{name}.partial"
                partial.rmtree(missing_ok=True)
                partial.mkdir()
        except OSError as e:
            raise self._write_error(step, needed, e) from e

    def _start(self, name: str, flat: dict[str, jax.Array]) -> _Write:
        partial, writer = self.directory / f"{name}.partial", self._writers[FROZEN if name == FROZEN else STATE]
        sums = mf.start_checksums(flat)
        full = {path: x for path, x in flat.items() if x.size}  # Orbax stores no empty arrays
        if full:
            writer.save(partial / STATE, args=ocp.args.PyTreeSave(full))
        return _Write(name, partial, mf.describe(flat), sums, writer)

    def _finish(self, step: int, writes: list[_Write], frozen: str | None, meta: dict, needed: int) -> None:
        """In the background: waits for Orbax, then commits on the first process."""
        try:
            for write in writes:
                write.writer.wait_until_finished()
            if jax.process_index() == 0:
                for write in writes:
                    is_frozen = write.name == FROZEN
                    manifest = self._commit(write, None if is_frozen else frozen, {} if is_frozen else meta)
                    if is_frozen:
                        frozen = manifest["checksum"]
                self._metas[step] = meta
            self._current, self._frozen = step, frozen or self._frozen
        except BaseException as e:
            self._failure = (step, needed, e)
            self._abandon([write.name for write in writes])
            return
        if jax.process_index() == 0:
            self._retain()

    def _abandon(self, names: list[str]) -> None:
        """Lets every writer end, then removes what they left."""
        for writer in self._writers.values():
            with contextlib.suppress(Exception):
                writer.wait_until_finished()
        if jax.process_index() == 0:
            for name in names:
                shutil.rmtree(self.directory / f"{name}.partial", ignore_errors=True)

    def _commit(self, write: _Write, frozen: str | None, meta: dict) -> dict:
        arrays = _with_checksums(write.flat, mf.finish_checksums(write.sums))
        manifest = mf.write(write.partial, arrays, frozen=frozen, meta=meta)
        mf.sync(write.partial)
        final = self.directory / write.name
        if write.name == FROZEN and final.exists():  # no checkpoint rests on it: `_settle_frozen`
            self._delete(final)
        write.partial.rename(final)
        mf.sync(self.directory, below=False)  # the rename itself
        return manifest

    def wait(self) -> None:
        """Waits until the running save is committed.

        Raises:
          UserError: it failed. What was saved before is intact.
        """
        if self._thread is None:
            return
        self._thread.join()
        self._thread = None
        failure, self._failure = self._failure, None
        error = self._write_error(*failure) if failure else None
        if jax.process_count() > 1:
            if np.any(multihost_utils.process_allgather(np.int32(error is not None))):
                self._current = None
                error = error or UserError("another process could not write its part of the checkpoint; see its message")
            self._frozen = on_first(lambda: self._frozen)  # the first process wrote it
        if error is not None:
            raise error from (failure[2] if failure else None)

    def close(self) -> None:
        """Waits for the running save and lets Orbax go. Raises like `wait`."""
        try:
            self.wait()
        finally:
            for writer in self._writers.values():
                writer.close()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.close()

    def _write_error(self, step: int, needed: int, why: BaseException | None) -> UserError:
        free = _free_bytes(self.directory)
        reason = "not enough free space" if why is None else " ".join(str(why).split()) or type(why).__name__
        if len(reason) > 300:  # the cause tends to stand last
            reason = f"{reason[:80]} ... {reason[-200:]}"
        steps = committed_steps(self.directory)
        before = f"earlier checkpoints are intact, the newest is {steps[-1]}" if steps else "there is no earlier checkpoint"
        then = f"the same command then continues from step {steps[-1]}" if steps else "then run the same command again"
        return UserError(
            f"cannot write checkpoint {step} to {self.directory}: {reason} (needs about {_size(needed)}"
            f"{'' if free is None else f', {_size(free)} free'}); {before}. Make room or mend the cause; {then}"
        )

    # --- retention

    def _meta(self, step: int) -> dict | None:
        """A checkpoint's meta; None if its manifest cannot be read."""
        if step not in self._metas:
            try:
                self._metas[step] = mf.read(self.directory / str(step))["meta"]
            except (mf.Damaged, OSError):
                self._metas[step] = None
        return self._metas[step]

    def _score(self, step: int) -> float | None:
        metrics = (self._meta(step) or {}).get("metrics") or {}
        value = metrics.get(self._best) if self._best else None
        if not isinstance(value, int | float) or not math.isfinite(value):
            return None
        return value if self._best_mode == "max" else -value

    def best_step(self) -> int | None:
        """The committed step whose `best` metric is best."""
        return on_first(lambda: self._best_of(committed_steps(self.directory)))

    def _best_of(self, steps: Iterable[int]) -> int | None:
        scored = [(score, -s) for s in steps if (score := self._score(s)) is not None]
        return -max(scored)[1] if scored else None

    def _retain(self) -> None:
        """Deletes what no rule keeps. One whose manifest is unreadable neither counts nor goes."""
        good = [s for s in committed_steps(self.directory) if self._meta(s) is not None]
        keep = {*good[-self._keep_last :], self._best_of(good)}
        keep |= {s for s in good if self._keep_every and s % self._keep_every == 0}
        for step in good:
            if step not in keep:
                try:
                    self._delete(self.directory / str(step))
                    del self._metas[step]
                except OSError as e:
                    self._log(f"warning: cannot delete old checkpoint {self.directory / str(step)}: {e.strerror or e}")

    def _delete(self, path: epath.Path) -> None:
        """Renames first: killed half-way, it leaves nothing that has a checkpoint's name and is none."""
        old = self.directory / f"{path.name}.old"
        old.rmtree(missing_ok=True)
        path.rename(old)
        old.rmtree()

    # --- restoring

    def restore(self, tree: PyTree, step: int | None = None, frozen: Mapping[str, Any] | None = None) -> Restored:
        """Restores into the given shardings, whatever mesh it was saved on.

        Args:
          tree: pytree of ShapeDtypeStruct with `sharding=`.
          step: default: the newest undamaged one; damaged ones are reported and renamed to `<step>.damaged`.
          frozen: nested dict of ShapeDtypeStruct with `sharding=`, if the frozen leaves are wanted.

        Raises:
          UserError: no checkpoint, none undamaged (nothing is renamed then), or it holds other arrays than asked for.
        """
        self.wait()
        wanted, wanted_frozen = paths_of(tree), paths_of(frozen or {})
        for path, x in {**wanted, **wanted_frozen}.items():
            if getattr(x, "sharding", None) is None:
                raise TypeError(f"restore: {path} needs a ShapeDtypeStruct with sharding=, not {x}")

        def attempt(candidate: int) -> tuple[int, dict, dict]:
            manifest = self._check(self.directory / str(candidate), wanted)
            return candidate, manifest, load_arrays(self.directory / str(candidate), wanted, manifest["arrays"])

        (found, manifest, flat), bad = first_good(self.directory, step, self._log, attempt)
        frozen_tree = None
        if wanted_frozen:
            frozen_tree = tree_lib.unflatten(self._restore_frozen(wanted_frozen, manifest))
        if bad:
            kept = on_first(lambda: [self._set_aside(s) for s in bad])
            self._log(f"continuing from checkpoint {found}; kept for inspection: {', '.join(kept)}")
        self._current, self._frozen = found, manifest["frozen"] or self._frozen
        restored = jax.tree.unflatten(jax.tree.structure(tree), [flat[p] for p in wanted])
        return Restored(found, restored, frozen_tree, manifest["meta"])

    def _check(self, folder: epath.Path, wanted: Mapping[str, Any]) -> dict[str, Any]:
        """The manifest, once it is known to be for these arrays and the files to be as written."""
        raise_if(on_first(lambda: inspect(folder, with_files=False)))
        manifest = read_manifest(folder)
        check_same(manifest["arrays"], mf.describe(wanted), f"checkpoint {folder}")
        raise_if(on_first(lambda: inspect(folder, with_files=True)))
        return manifest

    def _restore_frozen(self, wanted: Mapping[str, Any], manifest: Mapping[str, Any]) -> dict[str, Any]:
        if not manifest["frozen"]:
            check_same({}, mf.describe(wanted), f"checkpoint (frozen leaves) in {self.directory}")
        frozen_manifest(self.directory, manifest)
        try:
            kept = self._check(self.directory / FROZEN, wanted)
            return load_arrays(self.directory / FROZEN, wanted, kept["arrays"])
        except mf.Damaged as e:
            raise frozen_error(self.directory, e) from e

    def _set_aside(self, step: int) -> str:
        names = [f"{step}.damaged", *(f"{step}.damaged.{i}" for i in range(2, 1000))]
        name = next(n for n in names if not (self.directory / n).exists())
        (self.directory / str(step)).rename(self.directory / name)
        self._metas.pop(step, None)
        return name


def _with_checksums(arrays: Mapping[str, dict], sums: Mapping[str, str]) -> dict[str, dict]:
    return {path: {**entry, "checksum": sums[path]} for path, entry in arrays.items()}
