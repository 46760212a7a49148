import json
from pathlib import Path

import pytest

from mmjax.core import config as config_lib
from mmjax.core.errors import UserError

FILE = """
from ml_collections import ConfigDict
from mmjax.core.config import base
def get_config(arg=None):
    c = base()
    c.task = arg or "clip"
    c.model = ConfigDict({"depth": 4, "image": {"width": 8}, "names": ("a", "b"), "remat": "full"})
    c.optim.args = ConfigDict({"b1": 0.9})
    return c
"""


@pytest.fixture
def path(tmp_path):
    file = tmp_path / "c.py"
    file.write_text(FILE)
    return str(file)


def test_arguments_and_overrides_keep_types(path):
    c = config_lib.load(f"{path}:other", ["steps=7", "optim.lr=1", "model.image.width=16", "optim.clip_norm=0.5", "log.tensorboard=false"])
    assert (c.task, c.steps, c.model.image.width, c.log.tensorboard) == ("other", 7, 16, False)
    assert c.optim.lr == 1.0 and isinstance(c.optim.lr, float) and c.optim.clip_norm == 0.5
    assert config_lib.load(path, ["data.split=2024"]).data.split == "2024"
    assert config_lib.load(path, ["optim.clip_norm=none"]).optim.clip_norm is None
    assert config_lib.load(path, ["model.remat=none"]).model.remat == "none"  # a word, where the key is no optional one
    opened = config_lib.load(path, ["optim.args.eps=1e-6", "ema.slow=0.9", "optim.schedule_args={'end_factor': 0.1}"])
    assert opened.optim.args.to_dict() == {"b1": 0.9, "eps": 1e-6} and opened.ema.slow == 0.9 and opened.is_locked
    assert opened.optim.schedule_args.end_factor == 0.1
    assert len(config_lib.load(path, ["optim.args={}"]).optim.args) == 0
    assert config_lib.load(path, ["optim.freeze=('a.*',)"]).optim.freeze == ("a.*",)


@pytest.mark.parametrize(
    "override, message",
    [
        ("stpes=3", r"override 'stpes=3': no config key 'stpes'; did you mean 'steps'\?"),
        ("optim.lrr=3", r"no config key 'optim.lrr'; did you mean 'lr'\?"),
        ("optin.lr=3", r"no config group 'optin'; did you mean 'optim'\?"),
        ("steps=many", r"'steps' takes int, got 'many' \(str\)"),
        ("steps=1.5", r"'steps' takes int, got '1.5' \(float\)"),
        ("log.tensorboard=3", r"takes true or false, got '3'"),
        ("steps", "not of the form key=value"),
        ("optim=3", "'optim' is a group; set one of its keys"),
        ("steps.a=3", "'steps' is a int, not a group|no config group 'steps'"),
        ("steps=none", "'steps' takes int and cannot be unset"),
        ("model.depht=3", r"no config key 'model.depht'; did you mean 'depth'\?"),
    ],
)
def test_bad_overrides_say_what_was_given_and_what_is_there(path, override, message):
    with pytest.raises(UserError, match=message):
        config_lib.load(path, [override])


def test_bad_files(tmp_path, path):
    with pytest.raises(UserError, match=r"does not exist; did you mean 'c.py'\?"):
        config_lib.load(str(tmp_path / "cc.py"))
    other = tmp_path / "d.py"
    other.write_text("x = 1")
    with pytest.raises(UserError, match="has no function get_config"):
        config_lib.load(str(other))
    other.write_text(FILE.replace("c.task =", "c.taks ="))
    with pytest.raises(UserError, match=r"unknown key 'taks'; did you mean 'task'\?"):
        config_lib.load(str(other))
    other.write_text(FILE.replace("    return c", "    c.data.soruce = 'x'\n    return c"))
    with pytest.raises(UserError, match=r"unknown key 'data.soruce'; did you mean 'source'\?"):
        config_lib.load(str(other))


def test_config_json_round_trip(path, tmp_path):
    c = config_lib.load(path, ["optim.wd_rules=(('.*bias', 0.0), ('.*', 1.0))", "mesh.fsdp=2"])
    config_lib.save(c, tmp_path)
    back = config_lib.open_workdir(tmp_path)
    assert config_lib.to_dict(back) == config_lib.to_dict(c) and back.is_locked
    assert not config_lib.differences(c, back)
    record = json.loads((tmp_path / "config.json").read_text())
    assert record["version"] and "commit" in record and record["format"] == config_lib.FORMAT


def test_differences_name_only_what_changes_the_run(path):
    a, b = config_lib.load(path), config_lib.load(path, ["steps=9", "mesh.fsdp=4", "model.depth=5", "data.workers=3", "checkpoint.every=1"])
    assert config_lib.differences(a, b) == ["model.depth: 4 -> 5"]


def test_workdirs_that_cannot_be_opened(path, tmp_path):
    with pytest.raises(UserError, match=r"is no workdir of a run: it has no config\.json"):
        config_lib.open_workdir(tmp_path / "none")
    config_lib.save(config_lib.load(path), tmp_path)
    file = tmp_path / "config.json"
    record = json.loads(file.read_text())
    file.write_text(json.dumps({**record, "format": 99}))
    with pytest.raises(UserError, match=r"format 99\); this is .* upgrade"):
        config_lib.open_workdir(tmp_path)
    file.write_text(file.read_text()[:40])
    with pytest.raises(UserError, match=r"config\.json' is damaged"):
        config_lib.open_workdir(tmp_path)


def test_a_key_younger_than_the_workdir_gets_its_default(path, tmp_path):
    config_lib.save(config_lib.load(path), tmp_path)
    file = tmp_path / "config.json"
    record = json.loads(file.read_text())
    del record["config"]["nonfinite_limit"], record["config"]["optim"]["agc"]
    record["config"]["model"]["retired"] = 1
    file.write_text(json.dumps(record))
    back = config_lib.open_workdir(tmp_path)
    assert back.nonfinite_limit == config_lib.base().nonfinite_limit and back.optim.agc is None and back.model.retired == 1


def test_kwargs_for_names_the_field(path):
    from mmjax.models.vit import ViT

    with pytest.raises(UserError, match=r"config.model.image: ViT has no field 'widht'; did you mean 'width'\?"):
        config_lib.kwargs_for(ViT, {"widht": 3}, "config.model.image")


def test_commit_is_that_of_this_tree():
    commit = config_lib.commit()
    assert commit is None or len(commit.rstrip("+")) == 40
    assert Path(config_lib.__file__).is_file()
