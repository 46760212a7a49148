"""What feeds the loop: batches of one stream, or of several as a tree, on the devices; and how many records of each were bad."""

import contextlib
import dataclasses
import functools
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Mesh

from mmjax.cli.program import Program
from mmjax.core import loop, tree
from mmjax.core.errors import UserError, suggest
from mmjax.core.sharding import batch_sharding, check_batch, local_rows, put_batch
from mmjax.core.step import examples
from mmjax.data import loader
from mmjax.data.bad import KINDS
from mmjax.data.loader import WATCHED, tally, too_many
from mmjax.data.provenance import Remembered
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
    sizes = examples(spec)
    return Feed(program, {name: _Part(stream, parts[name], sizes[name]) for name, stream in streams.items()})


@dataclasses.dataclass(frozen=True)
class _Part:
    """A stream with the part of the batch that it fills, and how many examples that has."""

    stream: Stream
    spec: Mapping[str, Any]
    size: int


class Feed:
    """Call it with a cursor for an iterator of batches; ask `bad` for a step's bad records once its batch has been made.

    The cursor counts the examples of all parts, as the train step does (`core.step.examples`); each stream stands at its own share of
    it, a function of the cursor alone.

    Attributes:
      sets: what it reads.
    """

    def __init__(self, program: Program, parts: Mapping[str, _Part]):
        self.say: Callable[[str], None] | None = None  # where bad records are named; stderr until it is set
        self._program, self._parts = program, parts
        self.sets: tuple[Remembered, ...] = tuple(s for name in sorted(parts) for s in parts[name].stream.sets)
        self._each = sum(part.size for part in parts.values())
        self._bad: dict[int, np.ndarray] = {}  # step -> [kinds] of the rows this process answers for, of the steps that are watched
        first = {}
        for name, part in parts.items():
            check_batch(part.size, program.config.accumulate, program.mesh)
            _check_groups(part)
            first[name] = loader.first_batch(**self._reads(name))
            loader.check(first[name], part.spec, part.stream.source.info.name)
        if program.task.check is not None:
            program.task.check(first.get("", first))
        self._mine = {name: owned(part.size, program.mesh) for name, part in parts.items()}

    def _reads(self, name: str) -> dict[str, Any]:
        part = self._parts[name]
        s, rows = part.stream, local_rows(part.size, self._program.mesh)
        return {"source": s.source, "transform": s.transform, "batch_size": part.size, "seed": s.seed, "rows": rows, "order": s.order}

    def __call__(self, cursor: int) -> Iterator[Any]:
        """Batches on the devices from this cursor on, a few made ahead."""
        d = self._program.config.data
        # Of several processes none may stop alone, or the others would wait for it: `bad` judges what all of them read.
        max_bad = d.max_bad if jax.process_count() == 1 else 1.0
        options = {"workers": d.workers, "threads": d.threads, "prefetch": d.prefetch, "max_bad": max_bad, "say": self.say}
        start = {name: cursor * part.size // self._each for name, part in self._parts.items()}
        made = {name: loader.batches(**self._reads(name), start=start[name], **options) for name in self._parts}
        return loop.prefetch(_Together(made), functools.partial(self._put, iter(range(cursor // self._each + 1, 1 << 62))))

    @contextlib.contextmanager
    def whole(self) -> Iterator[Iterator[Mapping[str, Any]]]:
        """Batches from cursor 0 on as they lie on a host, every row of each: what `Task.fit` is given."""
        d = self._program.config.data
        options = {"workers": 0, "threads": d.threads, "prefetch": d.prefetch, "max_bad": d.max_bad, "say": lambda message: None}
        made = _Together({name: loader.batches(**{**self._reads(name), "rows": None}, start=0, **options) for name in self._parts})
        with contextlib.closing(made):
            yield (batches.get("", batches) for batches in made)

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

        Raises:
          UserError: on every host of several, if of the last 1,000 examples that all of them read (those of whole batches, of this step
            and before) more than `data.max_bad` were bad. One host alone is stopped by its loader, batch by batch.
        """
        watched = -(-WATCHED // self._each)  # batches
        for old in [s for s in self._bad if s <= step - watched]:
            del self._bad[old]
        recent = [failed for s, failed in self._bad.items() if s <= step]
        failed = self._bad.get(step, np.zeros(len(KINDS), np.int64))
        if jax.process_count() > 1:
            both = np.stack([failed, np.sum(recent, axis=0, dtype=np.int64) if recent else failed]).astype(np.int32)
            failed, lately = np.asarray(multihost_utils.process_allgather(both)).reshape(-1, *both.shape).sum(0, dtype=np.int64)
            names = ", ".join(s.name for s in self.sets)
            too_many(lately, len(recent) * self._each, self._program.config.data.max_bad, f"source '{names}', on all hosts")
        return {"bad_samples": int(failed.sum()), **{f"bad_samples_{kind}": n for kind, n in tally(failed[None]).items()}}


def _check_groups(part: _Part) -> None:
    """Raises `UserError` if a batch would hold parts of length groups."""
    group = getattr(part.stream.order, "block", 1)
    if part.size % group and group % part.size:
        raise UserError(
            f"data.length_groups holds groups of {group} records, which do not go into batches of {part.size}; build it again with "
            f"mmjax data pack --form length_groups --size {part.size}, or a divisor of that"
        )


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
