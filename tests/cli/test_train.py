"""`mmjax train` as a person meets it: what it refuses, what it says, what it leaves behind."""

import json
import shutil
import signal
import time
from pathlib import Path

import jax
import numpy as np
import pytest

from mmjax.cli.main import main
from mmjax.core import checkpoint_read, metrics, tree
from mmjax.core import config as config_lib
from tests.runs import SMOKE, arrays, finish, metric_lines, start

NO_EVALS = ["evals.zero_shot.every=1000", "evals.retrieval.every=1000", "checkpoint.best=none"]
CLASSIFY = SMOKE.replace("clip/", "classification/")


def run(*words, capsys=None):
    """(exit status, everything printed)."""
    code = main(list(words))
    printed = capsys.readouterr() if capsys else None
    return code, (printed.out + printed.err) if printed else ""


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A finished classification run on one mesh of eight; tests copy it before they change it."""
    workdir = tmp_path_factory.mktemp("runs") / "trained"
    assert main(["train", "--config", CLASSIFY, "--workdir", str(workdir), "mesh.fsdp=2"]) == 0
    return workdir


@pytest.mark.parametrize(
    "words, message",
    [
        (["--config", "no.py", "--workdir", "W"], "config file 'no.py' does not exist"),
        (["--config", CLASSIFY, "--workdir", "W", "optim.lrr=1"], "no config key 'optim.lrr'; did you mean 'lr'?"),
        (["--config", CLASSIFY, "--workdir", "W", "steps=x"], "'steps' takes int, got 'x'"),
        (["--config", CLASSIFY, "--workdir", "W", "batch_size=20"], "batch_size 20 does not split over 8 devices"),
        (["--config", CLASSIFY, "--workdir", "W", "mesh.data=3"], "needs 3 devices, there are 8"),
        (["--config", CLASSIFY, "--workdir", "W", "task=classify"], "config task 'classify' is not a task; did you mean 'classification'?"),
        (["--config", CLASSIFY, "--workdir", "W", "data.source=digits"], "did you mean 'digits_captions'?"),
        (["--config", CLASSIFY, "--workdir", "W", "data.split=trian"], "did you mean 'train'?"),
        (
            ["--config", CLASSIFY, "--workdir", "W", "model.size=16"],
            "'image' is float32[16, 8, 8, 1], the task expects float32[16, 16, 16, 1]",
        ),
        (["--config", CLASSIFY, "--workdir", "W", "model.vit.classes=7"], "'label' holds"),
        (["--config", CLASSIFY, "--workdir", "W", "optim.name=adam"], "did you mean 'adamw'?"),
        (["--config", CLASSIFY, "--workdir", "W", "optim.schedule=cosin"], "did you mean 'cosine'?"),
        (["--config", CLASSIFY, "--workdir", "W", "dtype=float16"], "compute in 'float32' or 'bfloat16'"),
        (["--config", CLASSIFY, "--workdir", "W", "evals.validation.type=acc"], "config.evals.validation.type is 'acc'"),
        (["--config", CLASSIFY, "--workdir", "W", "checkpoint.every=3"], "checkpoint.every=3 is no multiple of evals.validation.every=2"),
        (["--config", CLASSIFY, "--workdir", "W", "log.every=0"], "log.every is 0"),
        (["--config", CLASSIFY, "--workdir", "W", "optim.freeze=('.*',)"], "optim.freeze leaves no parameter to train"),
        (["--config", CLASSIFY, "--workdir", "W", "optim.freeze=('hed/.*',)"], "'hed/.*' matches no parameter"),
        (["--config", CLASSIFY, "--workdir", "W", "init_from.path=nowhere"], "nowhere"),
        (["--config", SMOKE, "--workdir", "W", "accumulate=2"], "is no mean over examples; set accumulate=1"),
        (["--config", CLASSIFY], "needs --workdir DIR"),
        (["--workdir", "W"], "holds no run yet: name a config"),
        (["--config", CLASSIFY, "--workdir", "/dev/null/x"], "cannot create workdir"),
    ],
    ids=lambda v: v if isinstance(v, str) else None,
)
def test_bad_input_ends_in_one_line(words, message, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    code, said = run("train", *words, capsys=capsys)
    errors = [line for line in said.splitlines() if line.startswith("mmjax: error: ")]
    assert code == 2 and len(errors) == 1 and message in errors[0], said
    assert "Traceback" not in said


def test_unknown_flags_and_verbs_end_in_one_line(capsys):
    for words, message in [
        (["trian"], "invalid choice: 'trian'"),
        (["train", "--wrokdir", "x"], "unknown argument '--wrokdir' for mmjax train"),
    ]:
        with pytest.raises(SystemExit) as e:
            main(words)
        assert e.value.code == 2 and message in capsys.readouterr().err


def test_a_missing_data_folder(tmp_path, capsys):
    code, said = run("train", "--config", CLASSIFY, "--workdir", str(tmp_path / "w"), f"data.dir={tmp_path / 'file'}", capsys=capsys)
    assert code == 0 or "data" in said  # prepared there: the set is embedded
    (tmp_path / "file2").write_text("not a folder")
    code, said = run("train", "--config", CLASSIFY, "--workdir", str(tmp_path / "w2"), f"data.dir={tmp_path / 'file2'}", capsys=capsys)
    assert code == 2 and "file2" in said


def test_another_config_is_refused_and_harms_nothing(trained, tmp_path, capsys):
    workdir = Path(shutil.copytree(trained, tmp_path / "w"))
    before = {p: p.read_bytes() for p in workdir.rglob("*") if p.is_file()}
    code, said = run("train", "--config", CLASSIFY, "--workdir", str(workdir), "model.vit.depth=3", "mesh.fsdp=2", capsys=capsys)
    assert code == 2 and "holds a run with another config (model.vit.depth: 2 -> 3)" in said
    assert {p: p.read_bytes() for p in workdir.rglob("*") if p.is_file()} == before


def test_a_checkpoint_of_another_model_is_refused(trained, tmp_path, capsys):
    workdir = Path(shutil.copytree(trained, tmp_path / "w"))
    record = json.loads((workdir / "config.json").read_text())
    record["config"]["model"]["vit"]["width"] = 32
    (workdir / "config.json").write_text(json.dumps(record))
    code, said = run("train", "--workdir", str(workdir), "steps=6", capsys=capsys)
    assert code == 2 and "holds another model than this config makes" in said and "float32[2,16] there, float32[2,32] here" in said, said
    assert sorted(p.name for p in (workdir / "checkpoints").iterdir()) == ["2", "4"]


def test_a_finished_run_is_left_alone_and_can_be_prolonged(trained, tmp_path, capsys):
    workdir = Path(shutil.copytree(trained, tmp_path / "w"))
    code, said = run("train", "--workdir", str(workdir), capsys=capsys)
    assert code == 0 and "is trained to step 4 already; raise steps" in said
    assert run("train", "--workdir", str(workdir), "steps=6", "mesh.fsdp=1", "mesh.tensor=2", capsys=capsys)[0] == 0  # on another mesh, too
    assert checkpoint_read.contents(workdir / "checkpoints").step == 6
    steps = [line["step"] for line in metrics.read(workdir) if "loss" in line]
    assert steps == [1, 2, 3, 4, 5, 6]


def test_damaged_checkpoints_are_told_of_and_passed_over(trained, tmp_path, capsys):
    workdir = Path(shutil.copytree(trained, tmp_path / "w"))
    file = max((workdir / "checkpoints" / "4" / "state").rglob("*"), key=lambda p: p.stat().st_size if p.is_file() else 0)
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 4
    file.write_bytes(content)
    code, said = run("train", "--workdir", str(workdir), capsys=capsys)
    assert code == 0 and "checkpoint" in said and "4.damaged" in said and "continuing from step 2" in said, said
    assert arrays(workdir) == arrays(trained) and metric_lines(workdir) == metric_lines(trained)


def test_dry_run_writes_nothing(tmp_path, capsys):
    code, said = run("train", "--config", CLASSIFY, "--workdir", str(tmp_path / "w"), "--dry_run", capsys=capsys)
    assert code == 0 and "compiled in" in said and "FLOPs a step" in said and not (tmp_path / "w").exists()


def test_profile_writes_a_trace(tmp_path):
    assert (
        main(
            [
                "train",
                "--config",
                CLASSIFY,
                "--workdir",
                str(tmp_path / "w"),
                "--profile",
                "2:3",
                "evals.validation.every=1000",
                "checkpoint.best=none",
            ]
        )
        == 0
    )
    assert list((tmp_path / "w" / "profile").rglob("*.xplane.pb"))


def test_a_nonfinite_run_stops_with_the_last_good_state_saved(tmp_path, capsys):
    words = [
        "--config",
        CLASSIFY,
        "--workdir",
        str(tmp_path / "w"),
        "steps=60",
        "nonfinite_limit=5",
        "evals.validation.every=1000",
        "checkpoint.best=none",
    ]
    # A learning rate that throws the parameters to infinity in a step or two.
    code, said = run("train", *words, "optim.lr=1e38", "optim.warmup=0", "optim.clip_norm=none", "checkpoint.every=1000", capsys=capsys)
    assert code == 2 and "not finite 5 steps in a row" in said and "last good parameters are saved" in said, said
    held = arrays(tmp_path / "w")
    for path, (dtype, _, data) in held.items():
        if dtype == "float32":
            assert np.isfinite(np.frombuffer(data, np.float32)).all(), path


def test_starting_from_another_run(trained, tmp_path, capsys):
    words = ["--config", CLASSIFY, "steps=2", "optim.warmup=1", f"init_from.path={trained}", "init_from.ema=ema"]
    code, said = run("train", *words, "--workdir", str(tmp_path / "a"), "model.vit.classes=12", capsys=capsys)
    assert code == 2 and "head/kernel" in said and "init_from.skip" in said
    words += ["model.vit.classes=12", "init_from.skip=('head/.*',)", "optim.freeze=('blocks/.*',)"]
    code, said = run("train", *words, "--workdir", str(tmp_path / "b"), capsys=capsys)
    assert code == 0 and "parameters start from step 4" in said, said
    _, source = checkpoint_read.read_params(trained / "checkpoints", ("params", "ema/ema"))
    _, frozen = checkpoint_read.read_params(tmp_path / "b" / "checkpoints")
    source, frozen = tree.flatten(source), tree.flatten(frozen)
    for path in frozen:
        if path.startswith("blocks/"):
            np.testing.assert_array_equal(source[path], frozen[path], err_msg=path)
    assert (tmp_path / "b" / "checkpoints" / "frozen").is_dir()
    assert main(["eval", "--workdir", str(tmp_path / "b")]) == 0  # puts frozen and trained leaves together again


def test_adapters_train_alone(trained, tmp_path):
    rules = ["lora.rules=('blocks/attn/[qv]/kernel',)", "lora.train=('head/.*',)", "lora.rank=2"]
    skip = "init_from.skip=('.*_lora_[ab]',)"
    workdir = tmp_path / "w"
    assert main(["train", "--config", CLASSIFY, "--workdir", str(workdir), f"init_from.path={trained}", skip, *rules]) == 0
    _, before = checkpoint_read.read_params(trained / "checkpoints")
    _, after = checkpoint_read.read_params(workdir / "checkpoints")
    before, after = tree.flatten(before), tree.flatten(after)
    changed = {p for p in before if not np.array_equal(before[p], after[p])}
    assert changed == {"head/bias", "head/kernel"}
    assert np.abs(after["blocks/attn/q/kernel_lora_b"]).max() > 0
    assert main(["eval", "--workdir", str(workdir)]) == 0


@pytest.mark.slow
@pytest.mark.parametrize("name", ["adafactor", "lion", "muon", "sgd"])
def test_every_optimizer_trains_on_a_mesh(name, tmp_path):
    words = ["mesh.fsdp=2", "mesh.tensor=2", f"optim.name={name}", "evals.validation.every=1000", "checkpoint.best=none", "optim.agc=0.1"]
    assert main(["train", "--config", CLASSIFY, "--workdir", str(tmp_path / "w"), *words]) == 0


def test_bfloat16_compute_keeps_float32_parameters(tmp_path):
    words = ["dtype=bfloat16", "evals.validation.every=1000", "checkpoint.best=none", "model.vit.remat=dots"]
    assert main(["train", "--config", CLASSIFY, "--workdir", str(tmp_path / "w"), *words]) == 0
    _, params = checkpoint_read.read_params(tmp_path / "w" / "checkpoints")
    assert {x.dtype for x in jax.tree.leaves(params)} == {np.dtype(np.float32)}


@pytest.mark.parametrize("sig", [signal.SIGTERM, signal.SIGINT], ids=lambda s: s.name)
def test_signals_save_and_say_how_to_go_on(sig, tmp_path):
    words = [
        "train",
        "--config",
        CLASSIFY,
        "--workdir",
        str(tmp_path / "w"),
        "steps=100000",
        "checkpoint.every=100000",
        "evals.validation.every=100000",
    ]
    process = start(*words)
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline and not ((tmp_path / "w" / "metrics.jsonl").is_file() and metrics.read(tmp_path / "w")):
        time.sleep(0.1)
    process.send_signal(sig)
    code, output = finish(process)
    assert code == 128 + sig, output
    step = checkpoint_read.contents(tmp_path / "w" / "checkpoints").step
    assert f"stopped by {sig.name} after step {step}, which is saved; continue with: mmjax train --workdir {tmp_path / 'w'}" in output
    assert "Traceback" not in output


def test_a_workdir_of_an_older_version_opens(capsys):
    workdir = Path(__file__).parents[1] / "fixtures" / "workdir_0.1.0"
    record = json.loads((workdir / "config.json").read_text())
    assert record["version"] == "0.1.0"
    assert main(["info", "--workdir", str(workdir)]) == 0
    capsys.readouterr()
    assert main(["eval", "--workdir", str(workdir), "--split", "test"]) == 0
    got = json.loads(capsys.readouterr().out)
    expected = json.loads((workdir / "expected.json").read_text())
    assert got.keys() == expected.keys()
    for key, value in expected.items():
        assert got[key] == pytest.approx(value, abs=0.02) if isinstance(value, float) else got[key] == value
    assert config_lib.open_workdir(workdir).task == "classification"
