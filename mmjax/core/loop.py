"""The training loop: feed, step, log, evaluate, save, in this order, with the host off the step's path.

Metrics are fetched when the next ones are due, so the device never waits for the host; the host runs at most
`AHEAD` steps ahead, so it never waits long for memory either.
"""

import collections
import contextlib
import dataclasses
import signal
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import jax
import numpy as np

from mmjax.core.errors import UserError
from mmjax.core.state import TrainState, cursor_to_int
from mmjax.core.types import Batch, Metrics, Params

AHEAD = 2


class Stopped(Exception):
    """A signal ended the run after its state was saved; the message says how to continue."""

    def __init__(self, message: str, signum: int):
        super().__init__(message)
        self.signum = signum


@dataclasses.dataclass(frozen=True)
class Hooks:
    """What the loop calls, bound by the command line.

    Attributes:
      log: (step, fetched scalars) to metrics.jsonl and event files.
      flush: makes every line written so far durable; called before a save, so that no checkpoint is newer than its metrics.
      save: (step, state, wait) -> None; asynchronous unless `wait`.
      evaluate: name -> (every, function of the evaluation parameters).
      eval_params: state -> evaluation parameters.
      say: a notice to the person watching.
      progress: (step, loss or None) after every step.
      continue_with: the command that goes on from here.
      snapshot: (every, (step, state) -> None), what is stored beside checkpoints; the last step always.
    """

    log: Callable[[int, Mapping[str, Any]], None]
    flush: Callable[[], None]
    save: Callable[[int, TrainState, bool], None]
    evaluate: Mapping[str, tuple[int, Callable[[Params], Mapping[str, float]]]]
    eval_params: Callable[[TrainState], Params]
    say: Callable[[str], None]
    progress: Callable[[int, float | None], None]
    continue_with: str
    snapshot: tuple[int, Callable[[int, TrainState], None]] | None = None


class _Signals:
    """Remembers SIGTERM and SIGINT so that the loop can end between two steps; a second SIGINT ends at once."""

    def __init__(self):
        self.received: int | None = None

    def __enter__(self):
        self.old = {s: signal.signal(s, self._handle) for s in (signal.SIGTERM, signal.SIGINT)}
        return self

    def __exit__(self, *exc):
        for s, handler in self.old.items():
            signal.signal(s, handler)

    def _handle(self, signum, frame):
        if self.received is not None and signum == signal.SIGINT:
            raise KeyboardInterrupt
        self.received = signum

    def agreed(self, step: int, every: int) -> int | None:
        """The signal to obey after this step; several processes ask each other every so many steps and stop at the same one."""
        if jax.process_count() == 1:
            return self.received
        if step % every:
            return None
        from jax.experimental import multihost_utils

        flags = np.asarray(multihost_utils.process_allgather(np.int32(self.received or 0)))
        return int(flags.max()) or None


def run(
    state: TrainState,
    train_step: Callable[[TrainState, Batch], tuple[TrainState, Metrics]],
    batches: Callable[[int], Iterator[Batch]],
    hooks: Hooks,
    *,
    steps: int,
    batch_size: int,
    log_every: int,
    save_every: int,
    nonfinite_limit: int,
    rates: Callable[[int, float, float], Mapping[str, float]],
    profile: tuple[int, int, str] | None = None,
) -> TrainState:
    """Trains from `state` to step `steps` and returns the last state, saved.

    Args:
      train_step: compiled, donates its state.
      batches: cursor -> infinite iterator of batches already on the devices.
      rates: (steps, seconds, of which waiting for data) since the last log line -> throughput metrics.
      profile: (first step, last step, directory) of a trace.

    Raises:
      Stopped: SIGTERM or SIGINT came; the state is saved.
      UserError: `nonfinite_limit` steps in a row were not finite; the last good parameters are saved.
    """
    step = int(state.step)
    if step >= steps:
        return state
    feed = batches(cursor_to_int(state.cursor))
    recent: collections.deque[tuple[int, Metrics]] = collections.deque()
    pending: tuple[int, Metrics, Mapping[str, float]] | None = None
    saved_at, skipped = step, int(state.skipped)
    since, waited, mark_step = time.perf_counter(), 0.0, step

    def emit() -> None:
        """Fetches and writes the log line that is waiting."""
        nonlocal pending, skipped
        if pending is None:
            return
        at, metrics, timing = pending
        pending = None
        scalars = dict(jax.device_get(metrics))  # float32 as they are: a line then has the fewest digits that give them back
        if int(scalars["skipped"]) > skipped:
            hooks.say(
                f"step {at}: {int(scalars['skipped']) - skipped} steps skipped since the last line, their loss or gradient was not finite, "
                "or all their labels were masked"
            )
            skipped = int(scalars["skipped"])
        scalars.pop("nonfinite")
        hooks.log(at, {**scalars, **timing})
        hooks.progress(at, float(scalars["loss"]))

    def save(wait: bool) -> None:
        nonlocal saved_at
        emit()
        hooks.flush()
        hooks.save(step, state, wait)
        saved_at = step

    def stopped(signum: int) -> Stopped:
        name = signal.Signals(signum).name
        return Stopped(f"stopped by {name} after step {step}, which is saved; continue with: {hooks.continue_with}", signum)

    with _Signals() as signals, contextlib.closing(feed), _Profiler(profile) as profiler:
        while step < steps:
            profiler.before(step)
            began = time.perf_counter()
            try:
                batch = next(feed)
            except Exception:
                # Ctrl-C reaches the loader's processes too: what they die of is no error of the run.
                if signals.received is None:
                    raise
                save(wait=True)
                raise stopped(signals.received) from None
            waited += time.perf_counter() - began
            state, metrics = train_step(state, batch)
            step += 1
            profiler.after(step, metrics)
            recent.append((step, metrics))
            if len(recent) > AHEAD:
                at, old = recent.popleft()
                if int(old["nonfinite"]) >= nonfinite_limit:
                    save(wait=True)
                    raise UserError(
                        f"the loss or gradient was not finite {nonfinite_limit} steps in a row, up to step {at} "
                        f"(nonfinite_limit={nonfinite_limit}); the last good parameters are saved as step {step}. "
                        "Lower optim.lr, set optim.clip_norm or look at the data"
                    )
            hooks.progress(step, None)
            if step % log_every == 0 or step == steps:
                emit()
                now = time.perf_counter()
                pending = (step, metrics, rates(step - mark_step, now - since, waited))
                since, waited, mark_step = now, 0.0, step
            due = {n: f for n, (every, f) in hooks.evaluate.items() if step % every == 0 or step == steps}
            if due:
                emit()
                params = hooks.eval_params(state)
                for name, evaluate in due.items():
                    hooks.log(step, {f"{name}/{k}": v for k, v in evaluate(params).items()})
                since, waited, mark_step = time.perf_counter(), 0.0, step
            if hooks.snapshot and (step % hooks.snapshot[0] == 0 or step == steps):
                hooks.snapshot[1](step, state)
            stop = signals.agreed(step, log_every)
            if stop is not None:
                save(wait=True)
                raise stopped(stop)
            if step % save_every == 0 and step < steps:
                save(wait=False)
        if saved_at != step:
            save(wait=True)
    return state


class _Profiler:
    """Traces steps first..last into a directory that TensorBoard and Perfetto open."""

    def __init__(self, profile: tuple[int, int, str] | None):
        self.first, self.last, self.directory = profile or (-1, -1, "")
        self.on = False

    def __enter__(self):
        return self

    def before(self, step: int) -> None:
        if step + 1 == self.first:
            jax.profiler.start_trace(self.directory)
            self.on = True

    def after(self, step: int, metrics: Metrics) -> None:
        if self.on and step == self.last:
            jax.block_until_ready(metrics)
            self._stop()

    def _stop(self) -> None:
        jax.profiler.stop_trace()
        self.on = False

    def __exit__(self, *exc):
        if self.on:
            self._stop()


def prefetch(batches: Iterator[Batch], put: Callable[[Batch], Batch], depth: int = AHEAD) -> Iterator[Batch]:
    """Keeps `depth` batches on the devices ahead of the consumer."""
    queue: collections.deque[Batch] = collections.deque()
    try:
        while True:
            while len(queue) <= depth:
                queue.append(put(next(batches)))
            yield queue.popleft()
    finally:
        close = getattr(batches, "close", None)
        if close:
            close()
