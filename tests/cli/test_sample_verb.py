"""`mmjax sample`: the same pictures however they are drawn, what was asked in which file, and nothing half written; and sets of pairs."""

import contextlib
import json
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from ml_collections import ConfigDict
from PIL import Image

from mmjax.cli import sample
from mmjax.cli.main import main
from mmjax.cli.program import assemble
from mmjax.cli.train import slim
from mmjax.core import config as config_lib
from mmjax.core import rng
from mmjax.core.checkpoint import Checkpoints
from mmjax.data import store
from mmjax.diffusion import walk
from mmjax.tasks import diffusion_sampling
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


def test_pairs_are_made_again_bit_for_bit(run, tmp_path, monkeypatch):
    """Two draws a record, in two files; the second of them lost and made again, from the middle of the set. The walk itself is left out:
    tests/tasks/test_reflow.py holds it against the sampler."""
    given = lambda sampler, system, params, x, keys, told, **how: x + told["labels"].reshape(-1, 1, 1, 1)
    monkeypatch.setattr(diffusion_sampling, "solve", given)
    words = [
        "cache",
        "--workdir",
        run,
        "--predict",
        "pairs",
        "--split",
        "validation",
        "--draws",
        "2",
        "--seed",
        "3",
        "--out",
        str(tmp_path),
    ]
    words += ["--shard_size", "160", "batch_size=160"]
    assert main(words) == 0
    folder = tmp_path / "validation"
    found = store.Cached(folder)
    assert set(found[0]) == {"noise", "sample", "label", "index"} and len(found) == 280
    value = {key: np.stack([found[i][key] for i in range(280)]) for key in found[0]}
    np.testing.assert_array_equal(value["index"], np.tile(np.arange(140), 2))
    np.testing.assert_array_equal(value["label"][:140], value["label"][140:])
    keys = rng.per_example(rng.named(rng.wrap(rng.root(3)), "pairs"), jnp.arange(280, dtype=jnp.int32))
    np.testing.assert_array_equal(value["noise"], walk.draw(keys, (8, 8, 1)))
    np.testing.assert_array_equal(value["sample"], value["noise"] + value["label"].reshape(-1, 1, 1, 1).astype(np.float32))

    before = {p.name: p.read_bytes() for p in folder.iterdir()}
    meta = json.loads(before["meta.json"])
    assert (meta["seed"], meta["draws"], meta["input"]) == (3, 2, ["label"])
    partial = shutil.move(folder, tmp_path / "validation.partial")
    plan = ("predict", "input", "transforms", "seed", "draws", "keep", "batch_size", "model", "source")
    (partial / "plan.json").write_text(json.dumps({**{k: meta[k] for k in plan}, "count": 280, "per_shard": 160}))
    shards = sorted(partial.glob("*.array_record"))
    for path in shards:
        path.with_suffix(".json").write_text("{}")
    shards[1].unlink()
    assert main(words) == 0
    assert {p.name: p.read_bytes() for p in folder.iterdir()} == before


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
