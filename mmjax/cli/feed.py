"""What feeds the loop: batches of one stream, or of several as a tree, on the devices; and how many records of each were bad."""

import functools
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from mmjax.cli.program import Program
from mmjax.core import loop, tree
from mmjax.core.errors import UserError, suggest
from mmjax.core.sharding import batch_sharding, check_batch, local_rows, put_batch
from mmjax.data import loader
from mmjax.data.bad import KINDS
from mmjax.data.loader import tally
from mmjax.data.stream import Stream, open_streams


def open_data(program: Program) -> "Feed":
    """cursor -> batches on the devices. Sources are opened and their first batches held against the task's batch_spec at once.

    Raises:
      UserError: `data.streams` that are not the parts of the task's batch, or a batch that is not what the task expects.
    """
    c, spec = program.config, program.task.batch_spec
    streams = open_streams(c.data, c.seed)
    parts = {"": spec} if "" in streams else spec
    nested = [name for name, part in spec.items() if isinstance(part, Mapping)]
    if "" not in streams and (set(streams) != set(spec) or len(nested) != len(spec)):
        expected = f"the parts of its batch: {', '.join(sorted(nested))}" if nested else "none: its batch is one stream"
        wrong = sorted(set(streams) ^ set(spec))[0]
        raise UserError(f"data.streams: at {wrong!r}, the task expects as streams {expected}{suggest(wrong, nested)}")
    if "" in streams and nested:
        raise UserError(f"the task's batch has the parts {', '.join(sorted(nested))}: set data.streams, one group a part")
    return Feed(program, {name: _Part(stream, parts[name]) for name, stream in streams.items()})


class _Part:
    """A stream with the part of the batch that it fills."""

    def __init__(self, stream: Stream, spec: Mapping[str, Any]):
        self.stream, self.spec = stream, spec
        self.size = _size(spec)


def _size(spec: Mapping[str, Any]) -> int:
    return jax.tree.leaves(spec)[0].shape[0]


class Feed:
    """Call it with a cursor for an iterator of batches; ask `bad` for a step's bad records once its batch has been made.

    The cursor counts examples of the first leaf of the batch, as the train step does; a part of another size goes on in proportion.
    """

    def __init__(self, program: Program, parts: Mapping[str, _Part]):
        self.say: Callable[[str], None] | None = None  # where bad records are named; stderr until it is set
        self._program, self._parts = program, parts
        self._each = _size(program.task.batch_spec)
        self._bad: dict[int, np.ndarray] = {}  # step -> [kinds] of the rows this process answers for
        for name, part in parts.items():
            check_batch(part.size, program.config.accumulate, program.mesh)
            batch = loader.first_batch(**self._reads(name))
            loader.check(batch, part.spec, part.stream.source.info.name)
        self._mine = {name: owned(part.size, program.mesh) for name, part in parts.items()}

    def _reads(self, name: str) -> dict[str, Any]:
        part = self._parts[name]
        s, rows = part.stream, local_rows(part.size, self._program.mesh)
        return {"source": s.source, "transform": s.transform, "batch_size": part.size, "seed": s.seed, "rows": rows, "order": s.order}

    def __call__(self, cursor: int) -> Iterator[Any]:
        """Batches on the devices from this cursor on, a few made ahead."""
        d = self._program.config.data
        options = {"workers": d.workers, "threads": d.threads, "prefetch": d.prefetch, "max_bad": d.max_bad, "say": self.say}
        start = {name: cursor * part.size // self._each for name, part in self._parts.items()}
        made = {name: loader.batches(**self._reads(name), start=start[name], **options) for name in self._parts}
        return loop.prefetch(_Together(made), functools.partial(self._put, iter(range(cursor // self._each + 1, 1 << 62))))

    def _put(self, steps: Iterator[int], batches: Mapping[str, Mapping[str, Any]]) -> Any:
        out, failed = {}, np.zeros(len(KINDS), np.int64)
        for name in self._parts:
            batch = dict(batches[name])
            failed += batch.pop("_bad")[self._mine[name]].sum(0, dtype=np.int64)
            out[name] = batch
        whole = out.get("", out)
        names = ", ".join(part.stream.source.info.name for part in self._parts.values())
        check_limits(whole, self._program.task.limits, names)
        self._bad[next(steps)] = failed
        put = {name: put_batch(batch, self._parts[name].size, self._program.mesh) for name, batch in out.items()}
        return put.get("", put)

    def bad(self, step: int) -> dict[str, int]:
        """`bad_samples`, and `bad_samples_KIND` where there are any: records replaced in the batch of this step, over all hosts.

        To be called on every host, in the order of the steps, as lines are logged.
        """
        failed = self._bad.get(step, np.zeros(len(KINDS), np.int64))
        for old in [s for s in self._bad if s <= step]:
            del self._bad[old]
        if jax.process_count() > 1:
            from jax.experimental import multihost_utils

            failed = np.asarray(multihost_utils.process_allgather(failed.astype(np.int32))).reshape(-1, len(KINDS)).sum(0)
        return {"bad_samples": int(failed.sum()), **{f"bad_samples_{kind}": n for kind, n in tally(failed[None]).items()}}


class _Together:
    """Several loaders in step, closed together."""

    def __init__(self, made: Mapping[str, loader.Batches]):
        self._made = made

    def __iter__(self) -> "_Together":
        return self

    def __next__(self) -> dict[str, dict[str, np.ndarray]]:
        return {name: next(batches) for name, batches in self._made.items()}

    def close(self) -> None:
        for batches in self._made.values():
            batches.close()


def owned(batch_size: int, mesh: Mesh) -> np.ndarray:
    """bool[b]: which of this process's rows it answers for; a row that several processes hold is the first one's."""
    owner = np.full(batch_size, np.iinfo(np.int64).max)
    for device, (rows,) in batch_sharding(mesh).devices_indices_map((batch_size,)).items():
        owner[rows] = np.minimum(owner[rows], device.process_index)
    return owner[local_rows(batch_size, mesh)] == jax.process_index()


def check_limits(batch: Mapping[str, Any], limits: Mapping[str, int], source: str) -> None:
    """Raises `UserError` if integers of a batch are outside [0, limit): a device would read past its table without a word."""
    flat = tree.flatten(batch)
    for key, limit in limits.items():
        low, high = int(flat[key].min()), int(flat[key].max())
        if low < 0 or high >= limit:
            raise UserError(
                f"source '{source}': '{key}' holds {low if low < 0 else high}, the model takes 0 to {limit - 1}; "
                "make the model's vocabulary (or classes) as large as the source's"
            )
