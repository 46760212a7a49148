"""`metrics.jsonl`: one JSON object a line, and the same numbers as TensorBoard event files.

A line is one `write` to the operating system, so a killed process leaves at most one torn line, at the end. A run that
continues from step s first drops the lines after s, which it will write again: no line is lost or doubled.
"""

import contextlib
import errno
import json
import os
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np

from mmjax.core import tree
from mmjax.core.errors import UserError

FILE = "metrics.jsonl"

# Names (or last parts of names, after "/") of what depends on the clock or the machine. All else repeats bit for bit.
TIMING = (
    "data_wait_seconds",
    "elapsed_seconds",
    "examples_per_second",
    "flops_per_second",
    "memory_bytes",
    "mfu",
    "seconds",
    "step_seconds",
)
_NONFINITE = {"NaN": float("nan"), "Infinity": float("inf"), "-Infinity": float("-inf")}


def strip_timing(line: Mapping[str, Any]) -> dict[str, Any]:
    """The line without the fields that differ between two equal runs."""
    return {k: v for k, v in line.items() if k.rsplit("/", 1)[-1] not in TIMING}


def format_line(step: int, scalars: Mapping[str, Any]) -> str:
    """One line with its newline: "step", then the names in order (nested ones joined by "/").

    A float32 is written with the fewest digits that give it back, a float64 likewise; what is not finite as the strings
    "NaN", "Infinity", "-Infinity", for JSON has no such numbers.

    Raises:
      ValueError: a value is no scalar.
    """
    flat = tree.flatten(scalars)
    fetched = jax.device_get(list(flat.values()))
    fields = {name: _plain(name, value) for name, value in zip(flat, fetched, strict=True) if name != "step"}
    return json.dumps({"step": int(step), **fields}, allow_nan=False) + "\n"


def read(path: str | os.PathLike) -> list[dict[str, Any]]:
    """The lines of a `metrics.jsonl` (or of the one in a workdir), a torn last line left out.

    Raises:
      UserError: there is no such file, or a line before the last is damaged.
    """
    path = Path(path)
    path = path / FILE if path.is_dir() else path
    try:
        lines = path.read_bytes().split(b"\n")
    except OSError as e:
        raise UserError(f"cannot read '{path}': {e.strerror}; expected the {FILE} of a run") from None
    out = []
    for number, line in enumerate(lines, 1):
        parsed = _parse(line)
        if parsed is not None:
            out.append({k: _NONFINITE.get(v, v) if isinstance(v, str) else v for k, v in parsed.items()})
        elif number < len(lines):
            raise UserError(f"'{path}' line {number} is damaged: {line[:60]!r}; expected a JSON object with \"step\"; delete the line")
    return out


class MetricsWriter:
    """Appends to `workdir/metrics.jsonl` and, if asked, to event files in `workdir/tensorboard`.

    What is written at a step should be flushed before a checkpoint of that step is committed: lines up to the step a run
    continues from are kept as they are.
    """

    def __init__(
        self,
        workdir: str | os.PathLike,
        *,
        tensorboard: bool,
        resume_step: int | None,
        is_writer: bool = True,
        say: Callable[[str], None] | None = None,
    ):
        """Opens the files, dropping what is torn or lies after the step the run continues from.

        Args:
          workdir: an existing folder.
          tensorboard: also write event files, if tensorboardX is installed.
          resume_step: the step the run continues from; None drops every line.
          is_writer: False on all hosts but one, where every method then does nothing.
          say: prints a notice; by default on stderr.

        Raises:
          UserError: a file cannot be opened or rewritten.
        """
        self.path = Path(workdir) / FILE
        self._descriptor: int | None = None
        self._events: _Events | None = None
        if not is_writer:
            return
        say = say or (lambda message: print(message, file=sys.stderr))
        with self._explain(self.path):
            if resume_step is None:
                self._descriptor = os.open(self.path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_TRUNC, 0o644)
            else:
                damaged = _truncate(self.path, resume_step)
                if damaged:
                    say(f"{self.path}: dropped {damaged} damaged lines")
                self._descriptor = os.open(self.path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
        if tensorboard:
            folder = Path(workdir) / "tensorboard"
            with self._explain(folder):
                try:
                    self._events = _Events(folder, 0 if resume_step is None else resume_step + 1)
                except ImportError:
                    say(f"no TensorBoard files, for tensorboardX is not installed (pip install mmjax[tensorboard]); {FILE} has the numbers")

    def write(self, step: int, scalars: Mapping[str, Any]) -> None:
        """Writes a line of named scalars (numbers or arrays of no axes; a nested dict's names are joined by "/").

        Raises:
          UserError: the disk is full or the file cannot be written; the file then ends with the line before.
          ValueError: a value is no scalar.
        """
        if self._descriptor is None:
            return
        line = format_line(step, scalars)
        with self._explain(self.path):
            _append(self._descriptor, line.encode())
        if self._events is not None:
            with self._explain(self.path.parent / "tensorboard"):
                self._events.write(int(step), json.loads(line))

    def flush(self) -> None:
        """Returns when every line is on the disk.

        Raises:
          UserError: the disk is full or fails.
        """
        if self._descriptor is None:
            return
        with self._explain(self.path):
            _sync(self._descriptor)
            if self._events is not None:
                self._events.flush()

    def close(self) -> None:
        """Flushes and closes; a second call does nothing."""
        if self._descriptor is None:
            return
        try:
            self.flush()
        finally:
            descriptor, events, self._descriptor, self._events = self._descriptor, self._events, None, None
            os.close(descriptor)
            if events is not None:
                with self._explain(self.path.parent / "tensorboard"):
                    events.close()

    @contextlib.contextmanager
    def _explain(self, path: Path):
        try:
            yield
        except OSError as e:
            raise UserError(
                f"cannot write '{path}': {e.strerror or e}; free some space or make it writable, and run the same command again: "
                "it continues from the last checkpoint"
            ) from e


def memory_in_use() -> int:
    """Bytes: the most that a device of this process has held; on a backend that does not say (CPU), what the process holds now."""
    stats = [d.memory_stats() or {} for d in jax.local_devices()]
    peaks = [s.get("peak_bytes_in_use", s.get("bytes_in_use", 0)) for s in stats]
    if any(peaks):
        return max(peaks)
    try:
        return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except OSError:  # no /proc: the largest it has been, in bytes on macOS
        import resource

        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return peak if sys.platform == "darwin" else peak * 1024


def _plain(name: str, value: Any) -> int | float | bool | str:
    """The value as json prints it."""
    array = np.asarray(value)
    if array.shape != ():
        raise ValueError(f"metric '{name}' has shape {array.shape}; expected a scalar")
    if array.dtype.kind in "biu":
        return array.item()
    if array.dtype.kind not in "fV":  # bfloat16 and its like are of kind V
        raise ValueError(f"metric '{name}' is of dtype {array.dtype}; expected a number")
    wide = array if array.dtype == np.float64 else array.astype(np.float32)
    number = float(str(wide[()]))  # through the shortest decimal: 0.1 stays 0.1
    if np.isfinite(number):
        return number
    return "NaN" if np.isnan(number) else "Infinity" if number > 0 else "-Infinity"


def _parse(line: bytes) -> dict[str, Any] | None:
    """The line's object, or None if it is torn or damaged."""
    try:
        value = json.loads(line)
    except ValueError:
        return None
    return value if isinstance(value, dict) and isinstance(value.get("step"), int) else None


def _truncate(path: Path, step: int) -> int:
    """Drops torn lines and lines after `step`, replacing the file in one move; returns how many damaged ones lay before the last."""
    if not path.is_file():
        return 0
    content = path.read_bytes()
    kept, damaged = [], 0
    lines = content.split(b"\n")
    for i, line in enumerate(lines):
        parsed = _parse(line)
        if parsed is None:
            damaged += i < len(lines) - 1
        elif parsed["step"] <= step:
            kept.append(line + b"\n")  # a last line that lacks only its newline is whole: it parses
    if b"".join(kept) != content:
        _replace(path, b"".join(kept))
    return damaged


def _replace(path: Path, content: bytes) -> None:
    """Writes the file anew; whoever looks, at whatever moment, sees the old content or the new."""
    temporary = path.with_name(path.name + ".partial")
    try:
        with open(temporary, "wb") as f:
            f.write(content)
            f.flush()
            os.fsync(f.fileno())
        os.replace(temporary, path)
    except OSError:
        temporary.unlink(missing_ok=True)
        raise
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


def _append(descriptor: int, content: bytes) -> None:
    """Appends all of `content`, or nothing and raises OSError."""
    before = os.fstat(descriptor).st_size
    try:
        while content:
            content = content[os.write(descriptor, content) :]
    except OSError:
        with contextlib.suppress(OSError):
            os.ftruncate(descriptor, before)
        raise


def _sync(descriptor: int) -> None:
    try:
        os.fsync(descriptor)
    except OSError as e:
        if e.errno != errno.EINVAL:  # a pipe or a device has nothing to sync
            raise


class _Events:
    """One new event file, which hides what earlier files hold from `purge_step` on.

    It is written in the caller's thread: tensorboardX's SummaryWriter queues to a thread, and hangs once that has died of a
    full disk.
    """

    def __init__(self, folder: Path, purge_step: int):
        from tensorboardX.event_file_writer import EventsWriter
        from tensorboardX.proto.event_pb2 import Event, SessionLog
        from tensorboardX.proto.summary_pb2 import Summary

        folder.mkdir(parents=True, exist_ok=True)
        self._event, self._summary = Event, Summary
        self._file = EventsWriter(str(folder / "events"), f".{os.getpid()}.{time.time_ns()}")
        start = SessionLog(status=SessionLog.START)
        self._file.write_event(Event(wall_time=time.time(), step=purge_step, session_log=start))

    def write(self, step: int, values: Mapping[str, Any]) -> None:
        values = {k: float(_NONFINITE.get(v, v) if isinstance(v, str) else v) for k, v in values.items() if k != "step"}
        summary = self._summary(value=[self._summary.Value(tag=k, simple_value=v) for k, v in values.items()])
        self._file.write_event(self._event(wall_time=time.time(), step=step, summary=summary))

    def flush(self) -> None:
        self._file.flush()

    def close(self) -> None:
        self._file.close()
