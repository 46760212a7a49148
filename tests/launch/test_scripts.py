"""The shell scripts of launch/ with stand-ins for Python, gcloud and SLURM on the PATH: what they call, when, and what they say."""

import json
import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest

from mmjax.version import __version__

ROOT = Path(__file__).parents[2]
SCRIPTS = [*sorted((ROOT / "launch").glob("*.sh")), ROOT / "launch" / "slurm.sbatch", ROOT / ".ci" / "run"]


def bash(*args, cwd, path=None, **env):
    env = {**os.environ, "PATH": os.pathsep.join(map(str, filter(None, [path, "/usr/bin", "/bin"]))), **env}
    return subprocess.run(["bash", *map(str, args)], capture_output=True, text=True, cwd=cwd, env=env, timeout=60)


def program(folder: Path, name: str, body: str) -> Path:
    folder.mkdir(exist_ok=True)
    (folder / name).write_text(f"#!/bin/bash\n{body}")
    (folder / name).chmod(0o755)
    return folder


@pytest.fixture
def checkout(tmp_path):
    """The files the scripts need, in a folder whose name has a space."""
    root = tmp_path / "a checkout"
    shutil.copytree(ROOT / "launch", root / "launch")
    for name in ("setup.py", "pyproject.toml"):
        shutil.copy(ROOT / name, root)
    return root


# Plays an interpreter: answers version and ensurepip questions, makes "environments" that hold a copy of itself, logs pip's arguments.
PYTHON = """\
case "$*" in
  *%d.%d*) echo 3.12 ;;
  *version_info*) exit {old} ;;
  *"import ensurepip"*) exit {bare} ;;
  *sys.executable*) echo "$0" ;;
  "-m venv"*) mkdir -p "${{@: -1}}/bin" && cp "$0" "${{@: -1}}/bin/python" ;;
  "-m pip"*) echo "$@" >> "$LOG"; exit ${{PIP_STATUS:-0}} ;;
esac
"""


def installs(log: Path) -> list[str]:
    return log.read_text().splitlines() if log.exists() else []


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda p: p.name)
def test_scripts_parse(script):
    assert bash("-n", script, cwd=ROOT).stderr == ""


def test_environment_is_installed_once_and_again_when_the_requirements_change(tmp_path, checkout):
    bin, log = program(tmp_path / "bin", "python3", PYTHON.format(old=0, bare=0)), tmp_path / "log"

    def make(extras="test"):
        return bash("launch/env.sh", ".venv-x", extras, cwd=checkout, path=bin, LOG=str(log), PYTHON="")

    first = make()
    assert first.returncode == 0, first.stderr
    assert len(installs(log)) == 1 and installs(log)[0].endswith("--editable .[test]")
    assert "up to date" in make().stdout and len(installs(log)) == 1
    with open(checkout / "setup.py", "a") as f:
        f.write("# a new bound\n")
    make()
    assert len(installs(log)) == 2
    make("gpu,test")
    assert len(installs(log)) == 3 and installs(log)[-1].endswith(".[gpu,test]")


def test_a_failed_installation_is_an_error_and_is_tried_again(tmp_path, checkout):
    bin, log = program(tmp_path / "bin", "python3", PYTHON.format(old=0, bare=0)), tmp_path / "log"
    for status in ("1", "0"):
        out = bash("launch/env.sh", ".venv", "test", cwd=checkout, path=bin, LOG=str(log), PIP_STATUS=status, PYTHON="")
        assert out.returncode == int(status)
        assert ("pip could not install" in out.stderr) == (status == "1")
    assert len(installs(log)) == 2


def test_an_old_python_and_one_without_ensurepip_get_one_clear_line(tmp_path, checkout):
    old = program(tmp_path / "old", "python3", PYTHON.format(old=1, bare=0))
    out = bash("launch/env.sh", ".venv", "test", cwd=checkout, PYTHON=str(old / "python3"))
    assert out.returncode == 1 and len(out.stderr.splitlines()) == 1
    assert "older than Python 3.11" in out.stderr and f"PYTHON={old}" in out.stderr
    for name in ("python3", "python3.11", "python3.12", "python3.13", "python3.14"):
        program(old, name, PYTHON.format(old=1, bare=0))
    out = bash("launch/env.sh", ".venv", "test", cwd=checkout, path=old, PYTHON="")
    assert out.returncode == 1 and len(out.stderr.splitlines()) == 1
    assert "no Python 3.11 or newer among: python3 " in out.stderr
    bare = program(tmp_path / "bare", "python3", PYTHON.format(old=0, bare=1))
    out = bash("launch/env.sh", ".venv", "test", cwd=checkout, PYTHON=str(bare / "python3"))
    assert out.returncode == 1 and len(out.stderr.splitlines()) == 1
    assert "apt-get install python3.12-venv" in out.stderr and not (checkout / ".venv").exists()


def test_a_python_that_cannot_make_environments_is_passed_over_for_one_that_can(tmp_path, checkout):
    bin = program(tmp_path / "bin", "python3", PYTHON.format(old=0, bare=1))
    program(bin, "python3.13", PYTHON.format(old=0, bare=0))
    out = bash("launch/env.sh", ".venv", "test", cwd=checkout, path=bin, LOG=str(tmp_path / "log"), PYTHON="")
    assert out.returncode == 0, out.stderr
    assert "with " + str(bin / "python3.13") in out.stdout


def ready(checkout: Path, tmp_path: Path, venv: str, extras: str) -> None:
    """Makes the environment count as installed, its python a stand-in that logs."""
    bin = program(tmp_path / "bin", "python3", PYTHON.format(old=0, bare=0))
    assert bash("launch/env.sh", venv, extras, cwd=checkout, path=bin, LOG=os.devnull, PYTHON="").returncode == 0
    program(checkout / venv / "bin", "python", 'echo "$@" >> "$LOG"; case "$*" in *"$FAIL"*) exit 3 ;; esac')


@pytest.mark.parametrize("fail, status, stages", [("none", 0, 3), ("ruff check", 3, 1), ("--check", 3, 2), ("pytest", 3, 3)])
def test_test_sh_runs_lint_then_format_then_pytest_and_ends_with_the_first_failure(tmp_path, checkout, fail, status, stages):
    ready(checkout, tmp_path, ".venv-test", "test")
    log = tmp_path / "log"
    out = bash("launch/test.sh", "--slow", "-k", "a or b", cwd=checkout, LOG=str(log), FAIL=fail, PYTHON="", TEST_WORKERS="3")
    assert out.returncode == status, out.stderr
    want = ["-m ruff check .", "-m ruff format --check .", "-m pytest -n 3 --slow -k a or b"]
    assert installs(log) == want[:stages]


def test_quickstart_trains_the_stages_one_after_the_other_where_it_was_called(tmp_path, checkout):
    ready(checkout, tmp_path, ".venv", "tensorboard")
    program(
        checkout / ".venv" / "bin",
        "mmjax",
        'echo "$@" >> "$LOG"; [ "$1" != cache ] || { mkdir -p "${@: -1}/train"; touch "${@: -1}/train/meta.json"; }',
    )
    log, folder = tmp_path / "log", tmp_path / "my runs"
    folder.mkdir()
    run = lambda *args: bash(checkout / "launch" / "quickstart.sh", *args, cwd=tmp_path, LOG=str(log), PYTHON="", SET="smoke")
    out = run("my runs", "all.seed=3", "decoder.steps=9")
    assert out.returncode == 0 and "now try:" in out.stdout, out.stderr
    pairs = f"data.path={folder}/pairs"
    first = installs(log)
    assert first[0] == f"train --config configs/unclip/clip.py:smoke --workdir {folder}/clip seed=3"
    assert first[1].startswith(f"cache --workdir {folder}/clip --predict encode_image:embedding,encode_text:text_embedding --captions 3")
    assert first[2:] == [
        f"train --config configs/unclip/chain.py:prior:smoke --workdir {folder}/prior {pairs} seed=3",
        f"train --config configs/unclip/chain.py:decoder:smoke --workdir {folder}/decoder {pairs} seed=3 steps=9",
        f"train --config configs/unclip/chain.py:upsampler:smoke --workdir {folder}/up32 {pairs} seed=3",
        f"eval --pipeline {folder}/pipeline.json --candidates 8 --report",
    ]
    assert json.loads((folder / "pipeline.json").read_text())["upsamplers"] == ["up32"]
    assert run("my runs").returncode == 0 and not any(line.startswith("cache") for line in installs(log)[len(first) :])  # it is there
    assert "expected ROLE.key=value" in run("my runs", "steps=3").stderr
    assert "first argument is the folder" in run("all.seed=3").stderr
    out = bash("launch/quickstart.sh", cwd=checkout, LOG=str(log), PYTHON="")
    assert out.returncode == 0 and installs(log)[-1] == "eval --pipeline runs/unclip/pipeline.json --candidates 8 --report", out.stderr


TPU = ("my-pod", "zone-b", "mmjax", "train", "--distributed", "--config", "it's a.py", "--workdir", "/mnt/x")

# Plays gcloud: `scp` copies into $HOME_OF_WORKER, `ssh` runs the command there.
GCLOUD = """\
printf '%s\\n' "$*" >> "$LOG"
case $4 in
  scp) cp "$5" "$WORKER" ;;
  ssh) for a in "$@"; do case $a in --command=*) cd "$WORKER" && HOME=$WORKER bash -c "${a#--command=}" ;; esac; done ;;
esac
"""


# Plays env.sh on a worker: an environment whose mmjax writes down what it was called with.
WORKER_ENV = """\
mkdir -p "$1/bin"
echo "$2" > extras
echo "PATH=$PWD/$1/bin:\\$PATH" > "$1/bin/activate"
cat > "$1/bin/mmjax" <<'END'
#!/bin/bash
printf '%s|' "$@" > called
END
chmod +x "$1/bin/mmjax"
"""


def test_tpu_vm_dry_run_prints_and_touches_nothing(tmp_path):
    bin, log = program(tmp_path / "bin", "gcloud", GCLOUD), tmp_path / "log"
    out = bash(ROOT / "launch" / "tpu_vm.sh", "--dry_run", "--only_run", "--project", "p", *TPU, cwd=tmp_path, path=bin, LOG=str(log))
    assert out.returncode == 0, out.stderr
    assert not log.exists()
    assert out.stdout.startswith("+ gcloud compute tpus tpu-vm ssh my-pod --zone=zone-b --worker=all --project=p ")


def test_tpu_vm_copies_installs_and_runs_with_its_words_intact(tmp_path, checkout):
    worker, log = tmp_path / "worker", tmp_path / "log"
    worker.mkdir()
    bin = program(tmp_path / "bin", "gcloud", GCLOUD)
    program(checkout / "launch", "env.sh.worker", WORKER_ENV)
    (checkout / ".gitignore").write_text("ignored.txt\n")
    (checkout / "ignored.txt").touch()
    (checkout / "gone.py").touch()
    subprocess.run(["git", "init", "-q"], cwd=checkout, check=True)

    def launch():
        prepare = "touch prepared && mv launch/env.sh.worker launch/env.sh"
        out = bash("launch/tpu_vm.sh", "--prepare", prepare, *TPU, cwd=checkout, path=bin, LOG=str(log), WORKER=str(worker))
        assert out.returncode == 0, out.stderr + out.stdout

    launch()
    there = worker / "mmjax"
    assert (there / "called").read_text().split("|")[:-1] == ["train", "--distributed", "--config", "it's a.py", "--workdir", "/mnt/x"]
    assert (there / "gone.py").exists() and (there / "prepared").exists() and not (there / "ignored.txt").exists()
    assert (there / "extras").read_text().split() == ["tpu,tensorboard"]
    assert len(re.findall("--worker=all", log.read_text())) == 3
    (checkout / "gone.py").unlink()
    launch()
    assert not (there / "gone.py").exists(), "a file deleted here must not live on there"
    assert (there / "called").exists(), "what a run leaves in the folder stays"


@pytest.mark.parametrize(
    "args, message",
    [
        (["--zoom", *TPU], "unknown option '--zoom'"),
        (["my-pod", "zone-b"], "expected NAME ZONE COMMAND"),
        (["--project"], "--project needs a value"),
        (["my-pod", "zone-b", "mmjax", "train", "--config", "x.py"], "without --distributed"),
    ],
)
def test_tpu_vm_bad_use_gets_one_clear_line(tmp_path, args, message):
    out = bash(ROOT / "launch" / "tpu_vm.sh", "--dry_run", *args, cwd=tmp_path)
    assert out.returncode == 1 and not out.stdout
    assert message in out.stderr and len(out.stderr.splitlines()) == 1


@pytest.mark.parametrize("status, requeued", [(0, False), (2, False), (143, True)])
@pytest.mark.parametrize("tasks, devices", [("1", "0,1,2,3"), ("4", "")])
def test_slurm_requeues_only_what_ran_out_of_time_and_shows_each_process_its_gpus(tmp_path, checkout, status, requeued, tasks, devices):
    log = tmp_path / "log"
    bin = program(tmp_path / "bin", "srun", f'echo "srun $* devices=$JAX_LOCAL_DEVICE_IDS" >> "$LOG"; exit {status}')
    program(bin, "scontrol", 'echo "scontrol $*" >> "$LOG"')
    (checkout / ".venv" / "bin").mkdir(parents=True)
    program(checkout / ".venv" / "bin", "mmjax", "")
    slurm = {"SLURM_SUBMIT_DIR": str(checkout), "SLURM_JOB_ID": "7", "SLURM_NTASKS_PER_NODE": tasks, "SLURM_GPUS_ON_NODE": "4"}
    out = bash(ROOT / "launch" / "slurm.sbatch", "--config", "x.py", "seed=1", cwd=tmp_path, path=bin, LOG=str(log), **slurm)
    assert out.returncode == status, out.stderr
    lines = installs(log)
    assert lines[0].endswith(f"/.venv/bin/mmjax train --distributed --config x.py seed=1 devices={devices}")
    assert lines[1:] == (["scontrol requeue 7"] if requeued else [])


def test_slurm_without_an_environment_says_how_to_make_one(tmp_path, checkout):
    out = bash(ROOT / "launch" / "slurm.sbatch", cwd=tmp_path, SLURM_SUBMIT_DIR=str(checkout), SLURM_JOB_ID="7")
    assert out.returncode == 1 and "bash launch/env.sh .venv" in out.stderr


def test_versions_agree():
    ruff = re.search(r'"ruff==([\d.]+)"', (ROOT / "setup.py").read_text()).group(1)
    assert f"rev: v{ruff}\n" in (ROOT / ".pre-commit-config.yaml").read_text()
    assert f"version: {__version__}\n" in (ROOT / "CITATION.cff").read_text()
