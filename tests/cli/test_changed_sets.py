"""A run that goes on knows its sets again: moved they are the same, changed they end it with one line."""

import json
import shutil

import pytest

from mmjax.cli.main import main
from mmjax.core import config as config_lib
from tests.runs import SMOKE, metric_lines
from tests.sets import picture, write_jsonl, write_shards

CLASSIFY = SMOKE.replace("clip/", "classification/")
QUIET = ["evals.validation.every=100", "checkpoint.best=none", "log.every=1", "optim.warmup=0"]


@pytest.fixture(autouse=True)
def home(tmp_path, monkeypatch):
    monkeypatch.setenv("MMJAX_DATA", str(tmp_path / "home"))


def error(capsys):
    return [line for line in capsys.readouterr().err.splitlines() if line.startswith("mmjax: error: ")]


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["jsonl", "shards"])
def test_a_run_goes_on_with_a_moved_set_and_not_with_a_changed_one(kind, tmp_path, capsys):
    fixed = ["--config", CLASSIFY, "--workdir", str(tmp_path / "run"), *QUIET, f"data.source={kind}"]
    if kind == "jsonl":
        write_jsonl(tmp_path / "set", 40)
    else:
        write_shards(tmp_path / "set", (25, 15))
        fixed += ["data.features.image=image", "data.features.label=label"]
    name = "set.jsonl" if kind == "jsonl" else "*.tar"
    train = lambda folder, *more: main(["train", *fixed, f"data.path={folder}/{name}", *more])
    assert train(tmp_path / "set", "steps=2") == 0
    (held,) = json.loads((tmp_path / "run" / "data.json").read_text())["sets"]
    assert held["records"] == 40 and held["key"] == "data" and str(tmp_path / "set") in held["place"]

    shutil.copytree(tmp_path / "set", tmp_path / "elsewhere", copy_function=shutil.copyfile)
    shutil.rmtree(tmp_path / "set")
    assert train(tmp_path / "elsewhere", "steps=3") == 0
    lines = metric_lines(tmp_path / "run")
    assert [line["step"] for line in lines if "loss" in line] == [1, 2, 3]

    saved = (tmp_path / "run" / "config.json").read_bytes()
    if kind == "jsonl":
        (tmp_path / "elsewhere" / "images" / "more.png").write_bytes(picture(999))
        with open(tmp_path / "elsewhere" / "set.jsonl", "a") as f:
            f.write('{"image": "images/more.png", "label": 1, "caption": "more"}\n')
    else:
        shutil.rmtree(tmp_path / "elsewhere")
        shutil.rmtree(tmp_path / "home")
        write_shards(tmp_path / "elsewhere", (25, 16))
    capsys.readouterr()
    assert train(tmp_path / "elsewhere", "steps=4") == 2
    (line,) = error(capsys)
    assert "is not what it was when the run in" in line and "40 records" in line and "now has 41" in line
    assert str(tmp_path / "elsewhere") in line and (tmp_path / "run" / "config.json").read_bytes() == saved
    assert train(tmp_path / "elsewhere", "steps=4", line[line.index("data.accept_changed=") :]) == 0
    assert json.loads((tmp_path / "run" / "data.json").read_text())["earlier"][0]["until_step"] == 3
    assert main(["train", "--workdir", str(tmp_path / "run"), "steps=5"]) == 0  # and no further word is needed


def test_places_may_change_also_in_mixtures_and_streams_and_nothing_else_may():
    def config(**data):
        c = config_lib.base()
        for key, value in data.items():
            c.data[key] = value
        return c.lock()

    shard = lambda weight, **keys: (weight, {"source": "shards", **keys})
    same = [
        ({"path": "a.tar"}, {"path": "b.tar", "index": "b.index", "dir": "/sets", "workers": 3}),
        ({"mixture": (shard(1, path="a"), shard(2))}, {"mixture": (shard(1, path="b"), shard(2, index="i"))}),
        ({"streams": {"x": {"path": "a", "mixture": ()}}}, {"streams": {"x": {"path": "b", "mixture": ()}}}),
        ({"streams": {"x": {"mixture": (shard(1, path="a"),)}}}, {"streams": {"x": {"mixture": (shard(1, path="b"),)}}}),
    ]
    for a, b in same:
        assert config_lib.differences(config(**a), config(**b)) == []
    other = [
        ({"path": "a", "split": "x"}, {"path": "a", "split": "y"}, "data.split: 'x' -> 'y'"),
        ({"mixture": (shard(1, path="a"),)}, {"mixture": (shard(2, path="a"),)}, "data.mixture"),
        ({"mixture": (shard(1, split="a"),)}, {"mixture": (shard(1, split="b"),)}, "data.mixture"),
        ({"mixture": (1, 2)}, {"mixture": (1, 3)}, "data.mixture"),  # no mixtures, but no reason to fall over
        ({"streams": {"x": {"split": "a"}}}, {"streams": {"x": {"split": "b"}}}, "data.streams.x.split"),
    ]
    for a, b, message in other:
        (difference,) = config_lib.differences(config(**a), config(**b))
        assert message in difference
