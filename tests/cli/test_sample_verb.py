"""`mmjax sample`: the same pictures however they are drawn, what was asked in which file, and nothing half written."""

import contextlib
import json

import jax
import numpy as np
import pytest
from ml_collections import ConfigDict
from PIL import Image

from mmjax.cli import sample
from mmjax.cli.main import main
from mmjax.cli.program import assemble
from mmjax.cli.train import slim
from mmjax.core import config as config_lib
from mmjax.core.checkpoint import Checkpoints
from tests.runs import ROOT

CONFIG = str(ROOT / "configs" / "diffusion" / "digits.py")
TINY = ("model.network.width=16", "model.network.depth=1", "model.network.heads=2", "model.network.patch=4")
QUICK = ("--steps", "2", "--batch_size", "8")


def made(folder, kind, *words, network=None):
    """The workdir of a run of which only the first, random weights exist, none of them 0."""
    folder.mkdir()
    config = config_lib.load(f"{CONFIG}:{kind}", words)
    if network:
        with config.unlocked():
            config.model.network = ConfigDict(network)
    config_lib.save(config, folder)
    program = assemble(config)
    state = program.init()
    shaken = jax.tree.map(lambda x: x + 0.05 * np.random.default_rng(x.size).normal(size=x.shape).astype(x.dtype), state.ema)
    body, frozen = slim(program, state.__class__(**{**vars(state), "ema": shaken}))
    with contextlib.closing(Checkpoints(folder / "checkpoints", keep_last=2)) as checkpoints:
        checkpoints.save(1, body, frozen=frozen, wait=True)
    return str(folder)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A DiT told the digit."""
    return made(tmp_path_factory.mktemp("runs") / "dit", "dit", *TINY)


def drawn(run, out, *words):
    assert main(["sample", "--workdir", run, "--out", str(out), *QUICK, *words]) == 0
    record = json.loads((out / "samples.json").read_text())
    return np.stack([np.asarray(Image.open(out / p["file"])) for p in record["pictures"]]), record


def test_a_picture_follows_from_seed_and_number(run, tmp_path, capsys):
    many, record = drawn(run, tmp_path / "many", "--num", "10", "--guidance", "1.5")
    printed = json.loads(capsys.readouterr().out)
    assert many.shape == (10, 8, 8) and many.std() > 1
    assert [p["label"] for p in record["pictures"]] == list(range(10))
    assert printed["num"] == 10 and record["sampler"]["guidance"] == 1.5 and record["sampler"]["steps"] == 2
    few, _ = drawn(run, tmp_path / "few", "--num", "3", "--guidance", "1.5", "--batch_size", "16")
    assert np.abs(few.astype(int) - many[:3]).max() <= 1  # batches of other shapes add up in another order
    other, _ = drawn(run, tmp_path / "other", "--num", "3", "--guidance", "1.5", "--seed", "1")
    assert np.abs(other.astype(int) - few).max() > 10


def test_labels_flags_and_the_way_from_noise(run, tmp_path):
    pictures, record = drawn(
        run, tmp_path / "a", "--num", "5", "--labels", "3,7", "--solver", "heun", "--animate", "model.sampler.clip=static"
    )
    assert [p["label"] for p in record["pictures"]] == [3, 7, 3, 7, 3]
    assert record["sampler"]["solver"] == "heun" and record["sampler"]["clip"] == "static"
    with Image.open(tmp_path / "a" / "path.webp") as way, Image.open(tmp_path / "a" / "grid.png") as grid:
        assert way.n_frames >= 3 and way.size == grid.size
        last = np.asarray(grid.convert("L"))
    first = last[2 : 2 + 64, 2 : 2 + 64]  # enlarged eight times
    np.testing.assert_array_equal(first[::8, ::8], pictures[0])


def refused(capsys, *words):
    assert main(["sample", *words]) != 0
    lines = capsys.readouterr().err.strip().splitlines()
    return lines[-1]


def test_what_does_not_fit_is_one_line(run, tmp_path, capsys):
    out = str(tmp_path / "new")
    base = ("--workdir", run, "--out", out)
    assert "the run" in refused(capsys, *base, "--prompt", "a seven") and "takes --labels" in refused(capsys, *base, "--prompt", "a seven")
    assert "--labels has 10, expected classes from 0 to 9" in refused(capsys, *base, "--labels", "1,10")
    assert "euler" in refused(capsys, *base, "--solver", "eulr")
    assert "--num is 0" in refused(capsys, *base, "--num", "0")
    assert not (tmp_path / "new").exists()
    (tmp_path / "new").mkdir()
    (tmp_path / "new" / "mine.txt").write_text("kept")
    assert "is there already" in refused(capsys, *base)
    assert [p.name for p in (tmp_path / "new").iterdir()] == ["mine.txt"]


def test_a_run_that_draws_nothing(tmp_path, capsys):
    config_lib.save(config_lib.load(str(ROOT / "configs" / "clip" / "digits.py") + ":smoke"), tmp_path)
    assert "it draws no pictures" in refused(capsys, "--workdir", str(tmp_path), "--out", str(tmp_path / "o"))


def test_words(tmp_path, capsys):
    network = {"type": "dit", "patch": 4, "width": 16, "depth": 1, "heads": 2, "context": True}
    words = ("model.text.width=16", "model.text.depth=1", "model.text.heads=2", "model.text.mlp=32")
    run = made(tmp_path / "text", "flow_text", *words, network=network)
    assert 'give --prompt "..."' in refused(capsys, "--workdir", run, "--out", str(tmp_path / "none"))
    pictures, record = drawn(run, tmp_path / "out", "--num", "3", "--prompt", "a handwritten seven", "--prompt", "a three")
    assert [p["prompt"] for p in record["pictures"]] == ["a handwritten seven", "a three", "a handwritten seven"]
    assert pictures.shape == (3, 8, 8, 3)


def test_numbers_that_are_none_are_not_drawn():
    with pytest.raises(Exception, match="not finite"):
        sample.levels(np.array([0.5, np.nan], np.float32))
