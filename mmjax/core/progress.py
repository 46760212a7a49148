"""What a person watching a run sees: a bar on a terminal, else a line now and then; notices between them, never torn."""

import sys
import time
from collections.abc import Callable
from typing import Any

from tqdm import tqdm

_BAR = "{percentage:3.0f}%|{bar}| {unit} {n_fmt}/{total_fmt}{postfix}"


class Progress:
    """Step, loss, examples a second and time left.

    The rate is this session's, from its first step on: neither steps done before it started nor compilation count.

    On a terminal a bar; elsewhere (a log file, a batch job) a plain line every `every_seconds`. Where not `enabled`,
    notices only.
    """

    def __init__(
        self,
        total: int,
        *,
        batch_size: int,
        enabled: bool = True,
        every_seconds: float | int = 30,
        stream: Any = None,
        unit: str = "step",
        clock: Callable[[], float] = time.monotonic,
    ):
        """Args: total: steps in the whole run. batch_size: examples a step.

        stream: a text file, default stderr. unit: what a step is called. clock: seconds.
        """
        self._total, self._batch_size, self._enabled = total, batch_size, enabled
        self._every, self._stream, self._clock, self._unit = every_seconds, stream or sys.stderr, clock, unit
        self._bar: tqdm | None = None
        self._step = self._printed = 0
        self._loss: float | None = None
        self._first: tuple[int, float] | None = None  # step and time of the first update
        self._line_at = clock()

    def start(self, initial: int = 0) -> None:
        """Shows a run at step `initial`. Notices may come before."""
        self._step = self._printed = initial
        self._line_at = self._clock()
        if self._enabled and self._stream.isatty():
            options = {"bar_format": _BAR, "unit": self._unit, "dynamic_ncols": True, "mininterval": 0.2}
            self._bar = tqdm(total=self._total, initial=initial, file=self._stream, **options)

    def update(self, step: int, loss: float | int | None = None) -> None:
        """After every step. `loss` may come late, with the number of a step that is past; None keeps the one before."""
        done = max(step - self._step, 0)
        self._step += done
        self._first = self._first or (self._step, self._clock())
        self._loss = self._loss if loss is None else loss
        if self._bar is not None:
            self._bar.set_postfix_str(self._numbers(), refresh=False)
            self._bar.update(done)
        elif self._enabled and self._clock() - self._line_at >= self._every:
            self._line()

    def say(self, message: str) -> None:
        """Prints a notice on lines of its own, above the bar."""
        if self._bar is not None:
            self._bar.write(message, file=self._stream)
        else:
            print(message, file=self._stream, flush=True)

    def close(self) -> None:
        """Leaves the bar, or the last line, as it stands; a second call does nothing."""
        if self._bar is not None:
            self._bar.set_postfix_str(self._numbers(), refresh=True)
            self._bar.close()
            self._bar = None
        elif self._enabled and self._step > self._printed:
            self._line()
        self._enabled = False

    def _numbers(self) -> str:
        parts = [] if self._loss is None else [f"loss {self._loss:.4g}"]
        step, began = self._first or (self._step, 0.0)
        seconds = self._clock() - began
        if self._step > step and seconds > 0:
            rate = (self._step - step) / seconds
            left = tqdm.format_interval(max(self._total - self._step, 0) / rate)
            parts += [f"{rate * self._batch_size:,.0f} examples/s", f"{left} left"]
        return ", ".join(parts)

    def _line(self) -> None:
        numbers = self._numbers()
        self.say(f"{self._unit} {self._step}/{self._total}{', ' if numbers else ''}{numbers}")
        self._line_at, self._printed = self._clock(), self._step
