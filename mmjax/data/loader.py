"""The loader: a batch is a pure function of (seed, cursor).

Position p counts examples since the start of the run. It names an epoch, a place in that epoch's permutation, hence a record, and
the generator of that example's random draws. Batch k of an iterator that starts at `start` holds the positions
`start + k * batch_size + row`, so resuming needs nothing but the cursor, and neither the number of workers nor of hosts matters.

Grain reads ahead: element k of its MapDataset is the whole batch k (batching after Grain has split the work among processes would
make batches depend on their number, and one Grain call a batch costs nothing).
"""

import contextlib
import dataclasses
import math
import multiprocessing
import os
import signal
import threading
import traceback
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from mmjax.core import tree
from mmjax.core.errors import UserError, suggest
from mmjax.data.order import permute
from mmjax.data.source import Source
from mmjax.data.transforms import Transform

_ENDLESS = 1 << 60  # batches
_EVAL_SEED = 0


def generator(seed: int, position: int) -> np.random.Generator:
    """The generator of one example's random draws. Philox is keyed by the pair itself, so no two positions share a stream."""
    return np.random.Generator(np.random.Philox(key=[seed, position]))


def batches(
    source: Source,
    transform: Transform,
    *,
    batch_size: int,
    seed: int,
    start: int = 0,
    rows: Sequence[int] | np.ndarray | None = None,
    shuffle: bool = True,
    workers: int = 0,
    threads: int = 2,
    prefetch: int = 4,
) -> "Batches":
    """Training batches without end: dicts of numpy arrays with leading axis `len(rows)`.

    Args:
      batch_size: examples in the global batch.
      seed: of the order and of every random draw.
      start: the cursor: examples seen since the start of the run. Any number, no multiple of the batch size.
      rows: the rows of the global batch that this host feeds; default all.
      shuffle: a new permutation every epoch, or the source's own order.
      workers: processes that read, 0 for threads of this one. The batches are the same for any number.
      threads: reading threads in a process; 0 reads in the caller's.
      prefetch: batches made ahead.

    Raises:
      UserError: an empty source, or numbers out of range; while iterating, a record that cannot be read or transformed.
    """
    make = _Maker(source, transform, batch_size, _rows(rows, batch_size), seed, start, shuffle, endless=True)
    return Batches(make, _ENDLESS, workers, threads, prefetch)


def eval_batches(
    source: Source,
    transform: Transform,
    *,
    batch_size: int,
    rows: Sequence[int] | np.ndarray | None = None,
    workers: int = 0,
    threads: int = 2,
    prefetch: int = 4,
) -> "Batches":
    """One pass over the source, in its order, the same random draws every time.

    The last batch is filled up with copies of the last record; `_mask` float32[B] is 1 for records and 0 for copies. Every host gets
    equally many batches. Arguments and errors as in `batches`.
    """
    make = _Maker(source, transform, batch_size, _rows(rows, batch_size), _EVAL_SEED, 0, shuffle=False, endless=False)
    return Batches(make, math.ceil(len(source) / batch_size), workers, threads, prefetch)


def _rows(rows: Sequence[int] | np.ndarray | None, batch_size: int) -> np.ndarray:
    if batch_size < 1:
        raise UserError(f"loader: batch_size must be at least 1, got {batch_size}")
    out = np.arange(batch_size) if rows is None else np.asarray(rows, np.int64)
    if out.ndim != 1 or not len(out) or out.min() < 0 or out.max() >= batch_size:
        raise UserError(f"loader: rows are numbers in 0..{batch_size - 1} of the global batch, got {rows}")
    return out.astype(np.int64)


def _name(source: Source) -> str:
    return f"source {source.info.name!r} ({source.info.split})"


@dataclasses.dataclass(frozen=True)
class _Maker:
    """k -> batch k. Holds no state, so threads share it and worker processes get a copy."""

    source: Source
    transform: Transform
    batch_size: int
    rows: np.ndarray
    seed: int
    start: int
    shuffle: bool
    endless: bool

    def __post_init__(self):
        if len(self.source) == 0:
            raise UserError(f"{_name(self.source)} is empty")
        for name, value, least in (("seed", self.seed, 0), ("start", self.start, 0)):
            if value < least:
                raise UserError(f"loader: {name} must be at least {least}, got {value}")

    def __call__(self, k: int) -> dict[str, np.ndarray]:
        positions = self.start + int(k) * self.batch_size + self.rows
        records = self._records(positions)
        bits = np.random.Philox(key=[0, 0])
        rng = np.random.Generator(bits)
        examples = []
        for position, record in zip(positions.tolist(), records.tolist(), strict=True):
            bits.state = _state(self.seed, position)  # as generator(seed, position), in a tenth of the time
            examples.append(self._example(record, rng))
        batch = _stack(examples, self.source)
        if not self.endless:
            batch["_mask"] = (positions < len(self.source)).astype(np.float32)
        return batch

    def _records(self, positions: np.ndarray) -> np.ndarray:
        n = len(self.source)
        if not self.endless:
            return np.minimum(positions, n - 1)
        epochs, places = np.divmod(positions, n)
        if not self.shuffle:
            return places
        out = np.empty_like(places)
        for epoch in np.unique(epochs):
            here = epochs == epoch
            out[here] = permute(places[here], n, self.seed, int(epoch))
        return out

    def _example(self, record: int, rng: np.random.Generator) -> Mapping[str, Any]:
        try:
            return self.transform(self.source[record], rng)
        except Exception as e:
            reason = str(e)
            if not isinstance(e, UserError):
                frame = traceback.extract_tb(e.__traceback__)[-1]
                reason = f"{type(e).__name__}: {reason} ({os.path.basename(frame.filename)}:{frame.lineno})"
            raise UserError(f"{_name(self.source)}, record {record}: {reason}") from e


def _state(seed: int, position: int) -> dict[str, Any]:
    """The state of a fresh `Philox(key=[seed, position])`."""
    words = {"counter": np.zeros(4, np.uint64), "key": np.array([seed, position], np.uint64)}
    return {"bit_generator": "Philox", "state": words, "buffer": np.zeros(4, np.uint64), "buffer_pos": 4, "has_uint32": 0, "uinteger": 0}


def _stack(examples: Sequence[Mapping[str, Any]], source: Source) -> dict[str, np.ndarray]:
    out = {}
    for key in examples[0]:
        values = [example[key] for example in examples]
        try:
            out[key] = np.stack(values)
        except ValueError as e:
            shapes = sorted({np.shape(value) for value in values})
            raise UserError(f"{_name(source)}: {key!r} has different shapes in one batch, {shapes[:4]}; resize, crop or pad it") from e
        if out[key].dtype.kind not in "biufV":
            kind = type(values[0]).__name__
            raise UserError(f"{_name(source)}: {key!r} is no array but {kind}; decode or tokenise it, or drop it with 'keep'")
    return out


class Batches:
    """An iterator of batches that reads ahead in threads or processes from the moment it is made; `close` (or `with`) ends them."""

    def __init__(self, make: _Maker, count: int, workers: int, threads: int, prefetch: int):
        import grain

        if workers < 0 or threads < 0 or prefetch < 1:
            raise UserError(f"data: workers and threads are at least 0 and prefetch 1, got {workers}, {threads}, {prefetch}")
        ahead = math.ceil(prefetch / max(workers, 1))
        options = grain.ReadOptions(num_threads=threads, prefetch_buffer_size=max(ahead, threads) if threads else 0)
        data = grain.MapDataset.range(count).map(make).to_iter_dataset(options)
        if workers:
            _mark_flags_parsed()
            data = data.mp_prefetch(grain.MultiprocessingOptions(workers, per_worker_buffer_size=ahead), worker_init_fn=_start_worker)
        self._iterator = iter(data)
        self._closed, self._shared = False, workers > 0
        self._iterator.start_prefetch()

    def __iter__(self) -> Iterator[dict[str, np.ndarray]]:
        return self

    def __next__(self) -> dict[str, np.ndarray]:
        if self._closed:
            raise StopIteration
        try:
            batch = next(self._iterator)
            # From a worker it comes in shared memory, which is scarce (64 MB in a container) and must not outlive the iterator.
            return {key: np.array(value) for key, value in batch.items()} if self._shared else batch
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """Stops threads and processes; no batch comes after it. Safe to call twice."""
        if not self._closed:
            self._closed = True
            self._iterator.close()

    def __enter__(self) -> "Batches":
        return self

    def __exit__(self, *_) -> None:
        self.close()

    def __del__(self):
        if not getattr(self, "_closed", True):
            with contextlib.suppress(Exception):
                self.close()


def _mark_flags_parsed() -> None:
    """Grain sends absl's flags to its workers and fails where nobody has parsed any."""
    from absl import flags

    if not flags.FLAGS.is_parsed():
        flags.FLAGS.mark_as_parsed()


def _start_worker(index: int, count: int) -> None:
    """A worker leaves Ctrl-C to the process that saves the run, and does not outlive it."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    parent = multiprocessing.parent_process()

    def follow():
        parent.join()
        os._exit(1)

    if parent is not None:
        threading.Thread(target=follow, daemon=True).start()


def check(batch: Mapping[str, Any], batch_spec: Mapping[str, Any], source: str) -> None:
    """Whether a batch is what a task expects; its leading axis may be this host's share of the global batch.

    Args:
      batch_spec: `Task.batch_spec`, nested dict of `jax.ShapeDtypeStruct`.
      source: its name, for the message.

    Raises:
      UserError: a key that is missing or not expected (names with a leading underscore are left alone), or a shape or dtype that
        differs; with what was got and what was expected.
    """
    got, expected = tree.flatten(batch), tree.flatten(batch_spec)
    for key, spec in expected.items():
        if key not in got:
            raise UserError(f"source {source!r}: the batch has no {key!r}, which the task expects as {_describe(spec)}{suggest(key, got)}")
        value = got[key]
        fits = np.shape(value)[1:] == tuple(spec.shape[1:]) and np.ndim(value) == len(spec.shape) and spec.shape[0] % len(value) == 0
        if not fits or np.dtype(value.dtype) != np.dtype(spec.dtype):
            hint = "see data.transforms and model"
            raise UserError(f"source {source!r}: {key!r} is {_describe(value)}, the task expects {_describe(spec)}; {hint}")
    for key in got:
        if key not in expected and not key.startswith("_"):
            hint = f"end data.transforms with ('keep', {{'keys': {sorted(expected)}}})"
            raise UserError(f"source {source!r}: the task expects no {key!r}; {hint}")


def _describe(array: Any) -> str:
    return f"{np.dtype(array.dtype).name}[{', '.join(map(str, array.shape))}]"
