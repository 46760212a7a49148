"""SIGKILL at any moment, then the same command again: the same bits as a run nobody killed.

Run it alone with -s to see in what phase each kill struck: python -m pytest tests/test_kill.py --slow -s
"""

import random
import re
import threading
import time

import pytest

from tests.runs import SMOKE, arrays, finish, metric_lines, start

OVERRIDES = [
    "steps=60",
    "checkpoint.every=3",
    "log.every=2",
    "evals.zero_shot.every=15",
    "evals.retrieval.every=30",
    "checkpoint.best=none",
]


def command(workdir):
    return ["train", "--config", SMOKE, "--workdir", str(workdir), *OVERRIDES]


def phase(workdir, output: str) -> str:
    """Where a killed run was, from what it had printed and left on disk."""
    if any((workdir / "checkpoints").glob("*.partial")):
        return "asynchronous save"
    said = [line for line in output.splitlines() if re.match("restoring|continuing|compiling|step", line)]
    last = said[-1].split()[0] if said else "start"
    return {"start": "start-up", "restoring": "restore", "continuing": "after restore", "compiling": "compilation or first steps"}.get(
        last, "steps"
    )


def kill_when(process, workdir, moment) -> str:
    """Kills the process as soon as `moment(output so far)` is true; returns its phase, or "finished" if it was faster."""
    out: list[str] = []
    reader = threading.Thread(target=lambda: [out.append(line) for line in process.stdout], daemon=True)
    reader.start()
    while process.poll() is None and not moment("".join(out)):
        time.sleep(0.002)
    process.kill()
    process.wait()
    reader.join(timeout=10)
    return "finished" if process.returncode == 0 else phase(workdir, "".join(out))


@pytest.mark.slow
def test_killed_runs_end_in_the_same_bits(tmp_path):
    straight = tmp_path / "straight"
    code, output = finish(start(*command(straight)))
    assert code == 0, output
    began = time.monotonic()
    assert finish(start(*command(tmp_path / "timed")))[0] == 0
    seconds = time.monotonic() - began
    expected, lines = arrays(straight), metric_lines(straight)
    assert arrays(tmp_path / "timed") == expected  # two runs nobody disturbed agree to begin with

    draw = random.Random(20240607)
    killed, phases = tmp_path / "killed", []

    def strike(moment):
        """Starts the run that was killed last, and kills it again; a run that was faster is checked and followed by a new one."""
        nonlocal killed
        phases.append(kill_when(start(*command(killed)), killed, moment))
        print(f"kill {len(phases)}: in {phases[-1]}", flush=True)
        if phases[-1] == "finished":
            check(killed, expected, lines)
            killed = tmp_path / f"killed{len(phases)}"

    def saving(said):
        return any((killed / "checkpoints").glob("*.partial"))

    def saved(said):
        return any((killed / "checkpoints").glob("[0-9]*[0-9]"))

    for _ in range(10):  # moments uniform over the wall time of a run
        at = time.monotonic() + draw.uniform(0, seconds)
        strike(lambda said, at=at: time.monotonic() >= at)
    # The phases too short to be struck by chance often enough.
    for _ in range(20):
        if phases.count("asynchronous save") < 2:
            strike(saving)
        elif phases.count("restore") < 1:
            strike((lambda said: "restoring" in said) if saved("") else saved)
    assert phases.count("asynchronous save") >= 2 and phases.count("restore") >= 1, phases
    code, output = finish(start(*command(killed)))
    assert code == 0, output
    check(killed, expected, lines)


def check(workdir, expected, lines):
    assert arrays(workdir) == expected
    assert metric_lines(workdir) == lines
