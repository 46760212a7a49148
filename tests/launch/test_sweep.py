"""launch/sweep.py: the grid, its workdirs, running it, and the table of what came out. A stand-in plays `mmjax`."""

import json
import os
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

SWEEP = Path(__file__).parents[2] / "launch" / "sweep.py"


def sweep(*args, path=None, cwd=None):
    env = {**os.environ, "PATH": f"{path}{os.pathsep}{os.environ['PATH']}"} if path else None
    return subprocess.run([sys.executable, SWEEP, *map(str, args)], capture_output=True, text=True, env=env, cwd=cwd, timeout=60)


def commands(*args):
    out = sweep(*args)
    assert out.returncode == 0, out.stderr
    return [shlex.split(line) for line in out.stdout.splitlines()]


def stand_in(folder: Path, body: str) -> Path:
    folder.mkdir()
    program = folder / "mmjax"
    program.write_text(f"#!{sys.executable}\nimport sys, pathlib\n{body}")
    program.chmod(0o755)
    return folder


def test_grid_is_the_product_in_order():
    got = commands("--config", "configs/clip/digits.py", "--root", "runs/s", "optim.lr=1e-3,3e-4", "seed=0,1")
    pairs = [("1e-3", "0"), ("1e-3", "1"), ("3e-4", "0"), ("3e-4", "1")]
    assert got == [
        f"mmjax train --config configs/clip/digits.py --workdir runs/s/digits/lr={lr},seed={s} optim.lr={lr} seed={s}".split()
        for lr, s in pairs
    ]


def test_several_configs_and_no_overrides():
    got = commands("--root", "runs/s/", "--config", "a/x.py", "--config", "a/x.py:smoke")
    assert [c[c.index("--workdir") + 1] for c in got] == ["runs/s/x/default", "runs/s/x-smoke/default"]


def test_commas_in_brackets_and_quotes_do_not_divide():
    got = commands("--root", "r", "--config", "x.py", "size=(8,8),(16,16)", "words='a,b',c")
    assert [c[-2:] for c in got] == [["size=" + s, "words=" + w] for s in ("(8,8)", "(16,16)") for w in ("'a,b'", "c")]
    names = [c[c.index("--workdir") + 1] for c in got]
    assert len(set(names)) == 4 and all(shlex.quote(n) == n for n in names)


def test_keys_with_the_same_last_part_are_named_in_full():
    (got,) = commands("--root", "r", "--config", "x.py", "model.image.depth=2", "model.text.depth=3", "seed=1")
    assert "r/x/model.image.depth=2,model.text.depth=3,seed=1" in got


def test_sbatch_lines():
    (got,) = commands("--sbatch", "--root", "r", "--config", "x.py", "seed=1")
    assert got == ["sbatch", "launch/slurm.sbatch", "--config", "x.py", "--workdir", "r/x/seed=1", "seed=1"]


@pytest.mark.parametrize(
    "args, message",
    [
        (["--config", "x.py", "seed"], "not of the form key=value"),
        (["--config", "x.py", "seed=1", "seed=2"], "'seed' is given twice"),
        (["--config", "x.py", "size=(1,2"], "unbalanced"),
        (["--config", "x.py", "seed=1,,2"], "empty value"),
        (["--config", "x.py", "seed=1,1"], "share the workdir 'r/x/seed=1'"),
        (["--config", "a/x.py", "--config", "b/x.py"], "share the workdir"),
        (["seed=1"], "at least one --config"),
    ],
)
def test_bad_grids_say_what_is_wrong(args, message):
    out = sweep("--root", "r", *args)
    assert out.returncode == 2 and not out.stdout
    assert message in out.stderr and len(out.stderr.splitlines()) == 1


def test_run_goes_on_after_a_failure_and_reports_it(tmp_path):
    bin = stand_in(tmp_path / "bin", "open('log', 'a').write(sys.argv[-1] + '\\n')\nsys.exit(2 * (sys.argv[-1] == 'seed=1'))")
    out = sweep("--run", "--root", "r", "--config", "x.py", "seed=0,1,2", path=bin, cwd=tmp_path)
    assert (tmp_path / "log").read_text().split() == ["seed=0", "seed=1", "seed=2"]
    assert out.returncode == 1 and "failed: r/x/seed=1" in out.stderr and "seed=2" not in out.stderr


@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_lets_the_run_save_and_ends_the_sweep(tmp_path, signum):
    body = """
import signal, time
def save(n, _):
    time.sleep(0.5)
    pathlib.Path("saved").write_text(sys.argv[-1])
    sys.exit(128 + n)
signal.signal(signal.SIGINT, save), signal.signal(signal.SIGTERM, save)
pathlib.Path("started").touch()
time.sleep(30)
"""
    bin = stand_in(tmp_path / "bin", body)
    command = [sys.executable, SWEEP, "--run", "--root", "r", "--config", "x.py", "seed=0,1"]
    env = {**os.environ, "PATH": f"{bin}{os.pathsep}{os.environ['PATH']}"}
    process = subprocess.Popen(command, env=env, cwd=tmp_path, stderr=subprocess.PIPE, text=True, start_new_session=True)
    deadline = time.monotonic() + 20
    while not (tmp_path / "started").exists() and time.monotonic() < deadline:
        time.sleep(0.02)
    if signum == signal.SIGINT:
        os.killpg(process.pid, signum)  # as a terminal does: to both
    else:
        process.send_signal(signum)
    err = process.communicate(timeout=20)[1]
    assert process.returncode == 128 + signum, err
    assert (tmp_path / "saved").read_text() == "seed=0"
    assert "stopped in run 1 of 2" in err


def test_collect_takes_the_last_value_of_every_metric(tmp_path):
    def write(name, lines):
        (tmp_path / name).mkdir(parents=True)
        (tmp_path / name / "metrics.jsonl").write_text(lines)

    write("x/seed=0", '{"step": 10, "loss": 2.0}\n{"step": 20, "loss": 1.5}\n{"step": 20, "zero_shot/accuracy": 0.9}\n')
    write("x/seed=1", '{"step": 10, "loss": NaN, "skipped": 3}\n{"step": 20, "lo')
    write("x/seed=2", "")
    out = sweep("--collect", "--root", tmp_path)
    assert out.returncode == 0
    rows = json.loads(out.stdout, parse_constant=lambda name: pytest.fail(f"{name} is no JSON"))
    assert [Path(r["workdir"]).name for r in rows] == ["seed=0", "seed=1", "seed=2"]
    assert [(r["step"], r["metrics"]) for r in rows] == [
        (20, {"loss": 1.5, "zero_shot/accuracy": 0.9}),
        (10, {"loss": None, "skipped": 3}),
        (None, {}),
    ]
    assert "seed=1/metrics.jsonl:2: not a line of metrics" in out.stderr
