"""A peer: a script under another interpreter that holds a model of PyTorch, warm, and runs it when told.

It is started as `PYTHON SCRIPT FOLDER`, and speaks lines of JSON on its standard input and output:

    peer  {"ready": true, "versions": {...}, "device": "...", "threads": 2}     with outputs.npz in FOLDER, to compare ours with
    ours  {"steps": 3}
    peer  {"seconds": 1.25}                                                     of the three, synchronised
    peer  {"error": "one line"}                                                 instead of any answer, and the end

FOLDER holds spec.json (what to run), batch.npz and the weights in the peer's own format. The end of its input ends the peer.
"""

import contextlib
import importlib.util
import json
import select
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from mmjax.core.errors import UserError

PATIENCE = 1800.0  # seconds for one answer: torch.compile of a large model takes minutes
INSTALL = "python -m venv peer && peer/bin/pip install torch transformers, then --peer_python peer/bin/python; or --no_peer"


def interpreter(path: str | None, packages: Sequence[str] = ("torch", "transformers")) -> str:
    """The peer's interpreter: `path`, by default this one where it has the packages.

    Raises:
      UserError: there is none.
    """
    if path is None:
        missing = [p for p in packages if importlib.util.find_spec(p) is None]
        if missing:
            raise UserError(f"this interpreter lacks {' and '.join(missing)}, which the peer runs on: {INSTALL}")
        return sys.executable
    found = shutil.which(path)
    if found is None:
        raise UserError(f"--peer_python '{path}' is no program that can be run")
    return found


class Peer:
    """A running peer; a context manager that ends it.

    Attributes:
      about: its first line: versions, device, threads.
    """

    def __init__(self, python: str, script: Path, folder: Path, patience: float = PATIENCE):
        self._name, self._patience = f"the peer {script.name} under '{python}'", patience
        self._errors = tempfile.TemporaryFile()  # noqa: SIM115 closed in __exit__; a pipe that nobody reads would fill and stop the peer
        self._process = subprocess.Popen(
            [python, str(script), str(folder)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self._errors, text=True
        )
        self.about: dict[str, Any] = {}

    def __enter__(self) -> "Peer":
        return self

    def __exit__(self, *_: object) -> None:
        with contextlib.suppress(OSError):
            self._process.stdin.close()
        try:
            self._process.wait(timeout=5)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._process.stdout.close()
        self._errors.close()

    def wait_ready(self) -> "Peer":
        """Returns when the peer has its model warm."""
        self.about = self._answer("ready")
        return self

    def run(self, steps: int) -> float:
        """Seconds that `steps` steps took."""
        try:
            self._process.stdin.write(json.dumps({"steps": steps}) + "\n")
            self._process.stdin.flush()
        except OSError:
            pass  # it died: `_answer` says of what
        return float(self._answer("seconds")["seconds"])

    def _answer(self, key: str) -> dict[str, Any]:
        # One answer a request, so nothing waits in the buffer of the file while `select` looks at the pipe.
        if not select.select([self._process.stdout], [], [], self._patience)[0]:
            raise UserError(f"{self._name} did not answer in {self._patience:g} s{self._last_words()}")
        line = self._process.stdout.readline()
        if not line:
            code = self._process.wait()
            how = f"was ended by signal {-code}" if code < 0 else f"ended with exit status {code}"
            raise UserError(f"{self._name} {how}{self._last_words()}")
        try:
            answer = json.loads(line)
        except json.JSONDecodeError:
            answer = None
        if isinstance(answer, dict) and "error" in answer:
            raise UserError(f"{self._name}: {answer['error']}")
        if not isinstance(answer, dict) or key not in answer:
            raise UserError(f"{self._name} answered {line.strip()[:200]!r}, expected an object with {key!r}")
        return answer

    def _last_words(self) -> str:
        self._errors.seek(0)
        lines = self._errors.read().decode(errors="replace").strip().splitlines()
        return f": {lines[-1].strip()[:300]}" if lines else ""
