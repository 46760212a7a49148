"""The loader: a batch is a pure function of (seed, cursor).

Position p counts examples since the start of the run. It names an epoch, a place in that epoch's permutation, hence a record, and
the generator of that example's random draws. Batch k of an iterator that starts at `start` holds the positions
`start + k * batch_size + row`, so resuming needs nothing but the cursor, and neither the number of workers nor of hosts matters.

A record that cannot be used (`BadSample`) is replaced by another that is a function of (seed, position, attempt) alone, drawn and
transformed with the position's own generator made anew; in an evaluation it is masked out instead. What failed travels with the
batch as `_bad`.

Grain reads ahead: element k of its MapDataset is the whole batch k (batching after Grain has split the work among processes would
make batches depend on their number, and one Grain call a batch costs nothing).
"""

import collections
import contextlib
import dataclasses
import math
import multiprocessing
import os
import signal
import sys
import threading
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, ClassVar

import numpy as np
from jaxtyping import Int64

from mmjax.core import tree
from mmjax.core.errors import UserError, suggest
from mmjax.data.bad import KINDS, BadSample, place
from mmjax.data.order import Order
from mmjax.data.source import Source
from mmjax.data.transforms import Transform

_ENDLESS = 1 << 60  # batches
_EVAL_SEED = 0
_ATTEMPTS = 50  # records tried for one position: with half of them bad, one in 10^15 positions would need more
_NAMED = 20  # bad records of a source that are named; the others are counted
WATCHED = 1000  # examples over which the share of bad ones is taken, at least

OrderLike = Callable[[Int64[np.ndarray, "R"]], Int64[np.ndarray, "R"]]  # with `replacement(position, attempt)`: Order, MixtureOrder


def generator(seed: int, position: int) -> np.random.Generator:
    """The generator of one example's random draws. Philox is keyed by the pair itself, so no two positions share a stream."""
    return np.random.Generator(np.random.Philox(key=np.array([seed, position], np.uint64)))


def batches(
    source: Source,
    transform: Transform,
    *,
    batch_size: int,
    seed: int,
    start: int = 0,
    rows: Sequence[int] | np.ndarray | None = None,
    shuffle: bool = True,
    order: OrderLike | None = None,
    workers: int = 0,
    threads: int = 2,
    prefetch: int = 4,
    max_bad: float = 1.0,
    say: Callable[[str], None] | None = None,
) -> "Batches":
    """Training batches without end: dicts of numpy arrays with leading axis `len(rows)`.

    `_bad` uint8[b, len(KINDS)] counts, by kind, the records that were found bad and replaced for each row.

    Args:
      batch_size: examples in the global batch.
      seed: of the order and of every random draw.
      start: the cursor: examples seen since the start of the run. Any number, no multiple of the batch size.
      rows: the rows of the global batch that this host feeds; default all.
      shuffle: a new permutation every epoch, or the source's own order.
      order: position -> record, in place of the one-level order of (seed, shuffle).
      workers: processes that read, 0 for threads of this one. The batches are the same for any number.
      threads: reading threads in a process; 0 reads in the caller's.
      prefetch: batches made ahead.
      max_bad: the most of the records read in 1,000 examples (and more) that may be bad.
      say: prints which records are bad; default to stderr.

    Raises:
      UserError: an empty source, or numbers out of range; while iterating, a record that cannot be read or transformed for another
        reason than `BadSample`, more bad ones than `max_bad`, or 50 in a row.
    """
    order = Order(len(source), seed, shuffle=shuffle) if order is None else order
    make = _Maker(source, transform, batch_size, _rows(rows, batch_size), seed, start, order, endless=True)
    return Batches(make, _ENDLESS, workers, threads, prefetch, max_bad, say)


def eval_batches(
    source: Source,
    transform: Transform,
    *,
    batch_size: int,
    start: int = 0,
    rows: Sequence[int] | np.ndarray | None = None,
    workers: int = 0,
    threads: int = 2,
    prefetch: int = 4,
    say: Callable[[str], None] | None = None,
) -> "Batches":
    """One pass over the source, in its order, from record `start` on, the same random draws for a record every time.

    `_mask` float32[b] is 1 for records; it is 0 for the copies of the last record that fill up the last batch and for bad records,
    whose rows are blank (zeros until they are normalised; never another record in their place) and which `_bad` counts as in
    `batches`. Every host gets equally many batches. Arguments and errors as in `batches`.
    """
    order = Order(len(source), _EVAL_SEED, shuffle=False)
    make = _Maker(source, transform, batch_size, _rows(rows, batch_size), _EVAL_SEED, start, order, endless=False)
    return Batches(make, math.ceil((len(source) - start) / batch_size), workers, threads, prefetch, 1.0, say)


def first_batch(
    source: Source, transform: Transform, *, batch_size: int, seed: int, rows: Sequence[int] | np.ndarray | None = None, order: OrderLike
) -> dict[str, np.ndarray]:
    """What `batches` gives first from cursor 0, made here and now, without a word about bad records: to see what a batch looks like."""
    make, finish = _Maker(source, transform, batch_size, _rows(rows, batch_size), seed, 0, order, endless=True).deferred()
    return finish(make(0))


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
    order: OrderLike
    endless: bool

    def __post_init__(self):
        if len(self.source) == 0:
            raise UserError(f"{_name(self.source)} is empty")
        for name, value, least in (("seed", self.seed, 0), ("start", self.start, 0)):
            if value < least:
                raise UserError(f"loader: {name} must be at least {least}, got {value}")

    def deferred(self) -> tuple["_Maker", Any]:
        """(this with as much as possible left for whole batches, what to do with those)."""
        transform, finish = self.transform.deferred() if hasattr(self.transform, "deferred") else (self.transform, None)
        return dataclasses.replace(self, transform=transform), _Finish(finish, _name(self.source))

    def positions(self, k: int) -> np.ndarray:
        return self.start + int(k) * self.batch_size + self.rows

    def __call__(self, k: int) -> dict[str, np.ndarray]:
        positions = self.positions(k)
        records = self.order(positions if self.endless else np.minimum(positions, len(self.source) - 1))
        bits = np.random.Philox(key=[0, 0])
        rng = np.random.Generator(bits)
        bad = np.zeros((len(positions), len(KINDS)), np.uint8)
        examples: list[Mapping[str, Any] | None] = []
        for row, (position, record) in enumerate(zip(positions.tolist(), records.tolist(), strict=True)):
            tries = list(self._tries(position, record, bits, rng))
            for _, failure in tries:
                if failure is not None:
                    bad[row, KINDS.index(failure[1].kind)] += 1
            examples.append(tries[-1][0])
        return self._batch(examples, positions, bad)

    def _tries(self, position: int, record: int, bits: Any, rng: np.random.Generator) -> Iterator[tuple[Any, Any]]:
        """(example or None, None or (record, BadSample)) of one record after another, the last one sound unless in an evaluation."""
        for attempt in range(1, _ATTEMPTS + 1):
            bits.state = _state(self.seed, position)  # as generator(seed, position), in a tenth of the time
            try:
                yield self._example(record, rng), None
                return
            except BadSample as e:
                failure = e
            yield None, (record, failure)
            if not self.endless:
                return
            record = self.order.replacement(position, attempt)
        raise UserError(f"{_name(self.source)}: {_ATTEMPTS} records in a row are bad, the last: {place(self.source, record)}, {failure}")

    def failures(self, position: int) -> list[tuple[int, BadSample]]:
        """What was found bad for a position: (record, why), read again."""
        record = int(self.order(np.array([position], np.int64))[0])
        bits = np.random.Philox(key=[0, 0])
        return [failure for _, failure in self._tries(position, record, bits, np.random.Generator(bits)) if failure is not None]

    def _batch(self, examples: list[Mapping[str, Any] | None], positions: np.ndarray, bad: np.ndarray) -> dict[str, np.ndarray]:
        if self.endless:
            return {**_stack(examples, self.source), "_bad": bad}
        real = positions < len(self.source)
        mask = real & np.array([e is not None for e in examples])
        if not mask.all() and any(e is None for e in examples):
            like = next((e for e in examples if e is not None), None) or self._any_sound()
            blank = {key: np.zeros_like(value) for key, value in like.items()}
            examples = [blank if e is None else e for e in examples]
        bad[~real] = 0
        return {**_stack(examples, self.source), "_mask": mask.astype(np.float32), "_bad": bad}

    def _any_sound(self) -> Mapping[str, Any]:
        """An example to see shapes by, for a batch of which every record is bad."""
        for record in range(len(self.source)):
            with contextlib.suppress(BadSample):
                return self._example(record, generator(self.seed, record))
        raise UserError(f"{_name(self.source)}: every one of its {len(self.source)} records is bad")

    def _example(self, record: int, rng: np.random.Generator) -> Mapping[str, Any]:
        try:
            return self.transform(self.source[record], rng)
        except BadSample:
            raise
        except Exception as e:  # of whatever kind, it is told with the record's place; it is no error of the loader
            reason = str(e)
            if not isinstance(e, UserError):
                frame = traceback.extract_tb(e.__traceback__)[-1]
                reason = f"{type(e).__name__}: {reason} ({os.path.basename(frame.filename)}:{frame.lineno})"
            raise UserError(f"{place(self.source, record)}: {reason}") from e


@dataclasses.dataclass(frozen=True)
class _Finish:
    """What is left to do with a whole batch."""

    normalize: Any
    source: str

    def __call__(self, batch: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        if self.normalize is None:
            return dict(batch)
        try:
            return {**batch, "image": self.normalize.batch(batch["image"])}
        except UserError as e:
            raise UserError(f"{self.source}: {e}") from e


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

    def __init__(
        self,
        make: _Maker,
        count: int,
        workers: int,
        threads: int,
        prefetch: int,
        max_bad: float,
        say: Callable[[str], None] | None,
    ):
        import grain

        if workers < 0 or threads < 0 or prefetch < 1:
            raise UserError(f"data: workers and threads are at least 0 and prefetch 1, got {workers}, {threads}, {prefetch}")
        ahead = math.ceil(prefetch / max(workers, 1))
        options = grain.ReadOptions(num_threads=threads, prefetch_buffer_size=max(ahead, threads) if threads else 0)
        make, self._finish = make.deferred()
        data = grain.MapDataset.range(count).map(make)
        data = (data if workers else data.map(self._finish)).to_iter_dataset(options)
        if workers:
            _mark_flags_parsed()
            data = data.mp_prefetch(grain.MultiprocessingOptions(workers, per_worker_buffer_size=ahead), worker_init_fn=_start_worker)
        self._iterator = iter(data)
        self._closed, self._shared = False, workers > 0
        self._watch = _Watch(make, max_bad, say)
        self._iterator.start_prefetch()

    def __iter__(self) -> Iterator[dict[str, np.ndarray]]:
        return self

    def __next__(self) -> dict[str, np.ndarray]:
        if self._closed:
            raise StopIteration
        try:
            batch = next(self._iterator)
            if self._shared:
                # From a worker it comes in shared memory, which is scarce (64 MB in a container) and must not outlive the iterator.
                finished = self._finish(batch)
                batch = {key: np.array(value) if value is batch[key] else value for key, value in finished.items()}
            self._watch(batch["_bad"])
            return batch
        except BaseException:  # Ctrl-C too leaves no thread and no process behind
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


class _Watch:
    """Looks at the batches in the consumer's process, in their order: names bad records and stops a run that has too many."""

    named: ClassVar[dict[tuple[str, str], set[str]]] = {}  # by source and split, for as long as the process lives

    def __init__(self, make: _Maker, max_bad: float, say: Callable[[str], None] | None):
        if not 0 <= max_bad <= 1:
            raise UserError(f"data.max_bad is the share of records that may be bad, 0 to 1; got {max_bad}")
        self._make, self._max_bad = make, max_bad
        self._say = say or (lambda message: print(f"mmjax: {message}", file=sys.stderr))
        self._batch, self._seen, self._failed = 0, 0, np.zeros(len(KINDS), np.int64)
        self._recent: collections.deque[tuple[int, np.ndarray]] = collections.deque()

    def __call__(self, bad: np.ndarray) -> None:
        for row in np.flatnonzero(bad.any(1)):
            self._name(int(self._make.positions(self._batch)[row]))
        self._batch += 1
        failed = bad.sum(0, dtype=np.int64)
        self._recent.append((len(bad), failed))
        self._seen, self._failed = self._seen + len(bad), self._failed + failed
        while self._seen - self._recent[0][0] >= WATCHED:
            rows, old = self._recent.popleft()
            self._seen, self._failed = self._seen - rows, self._failed - old
        too_many(self._failed, self._seen, self._max_bad, _name(self._make.source))

    def _name(self, position: int) -> None:
        info = self._make.source.info
        named = self.named.setdefault((info.name, info.split), set())
        if len(named) > _NAMED:
            return
        for record, why in self._make.failures(position):
            where = place(self._make.source, record)
            if where in named or len(named) > _NAMED:
                continue
            named.add(where)
            if len(named) <= _NAMED:
                self._say(f"{where} is bad ({why}); {'replaced' if self._make.endless else 'left out'}")
            else:
                self._say(f"{_name(self._make.source)}: more bad records are counted, not named")


def too_many(failed: np.ndarray, seen: int, max_bad: float | int, source: str) -> None:
    """Raises `UserError` if, of at least 1,000 examples seen with `failed` [kinds] bad records among what was read, those are too many."""
    total = int(failed.sum())
    if seen >= WATCHED and total > max_bad * (seen + total):
        kinds = ", ".join(f"{n} {kind}" for kind, n in zip(KINDS, failed.tolist(), strict=True) if n)
        raise UserError(
            f"{source}: {total} of the last {seen + total} records read are bad ({kinds}), more than data.max_bad={max_bad:g}; look at "
            "those named above, repair the set, or raise data.max_bad"
        )


def tally(bad: np.ndarray) -> dict[str, int]:
    """`_bad` of a batch, or of several concatenated -> how many records of each kind, those that occur."""
    return {kind: n for kind, n in zip(KINDS, bad.sum(0, dtype=np.int64).tolist(), strict=True) if n}


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
