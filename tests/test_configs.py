"""Every config in the tree: builds and has shapes at full size; its small form trains, stops, continues and ends in the same bits."""

import re
import shutil
from pathlib import Path

import pytest

from mmjax.cli.main import main
from mmjax.cli.program import assemble
from mmjax.core import config as config_lib
from mmjax.core import sharding, tree
from mmjax.core.errors import UserError
from mmjax.data import transforms
from mmjax.data.source import open_source, open_tokenizer
from tests.runs import arrays, metric_lines

CONFIGS = sorted((Path(__file__).resolve().parents[1] / "configs").rglob("*.py"))
name = lambda p: f"{p.parent.name}/{p.stem}"
SECONDS = ("classification/digits",)  # the others take half a minute and more to compile
CACHED = ("unclip/prior", "unclip/chain")  # that need a trained model's set: tests/tasks/test_priors.py, test_unclip_chain.py
SMOKE = [p for p in CONFIGS if '"smoke"' in p.read_text() and name(p) not in CACHED]
SMOKE = [pytest.param(p, marks=[pytest.mark.slow] * (name(p) not in SECONDS)) for p in SMOKE]

PARAMETERS = {
    "clip/vit_b32": 151_277_313,
    "clip/siglip": 203_155_970,
    "clip/openclip": 986_109_441,
    "flamingo/papers": 3_036_819_604,
    "lm/text": 124_439_808,
}
PUBLISHED = {
    "openclip.py": ("ViT-bigG/14", 2_539_567_105),
    "siglip.py": ("SigLIP-So400m/14-384", 877_960_498),
    "vit_b32.py": ("RN50", 102_007_137),
}


@pytest.mark.parametrize("path", CONFIGS, ids=name)
def test_full_size_has_shapes_and_places(path):
    program = assemble(config_lib.load(str(path)), sharding.abstract_mesh({"data": 2, "fsdp": 4, "tensor": 1}, 8))
    assert tree.count(program.abstract.params) == PARAMETERS.get(name(path), tree.count(program.abstract.params))
    for axes in tree.flatten(program.task.axes).values():
        assert all(a is None or a in sharding.RULES for a in axes)


@pytest.mark.parametrize("file", PUBLISHED)
def test_other_sizes_and_imagenet(file):
    size, count = PUBLISHED[file]
    path = str(CONFIGS[0].parents[1] / "clip" / file)
    config = config_lib.load(f"{path}:{size}+imagenet")
    program = assemble(config, sharding.abstract_mesh({"data": 8}, 8))
    assert sum(x.size for p, x in tree.flatten(program.abstract.params).items() if not p.endswith(("/mean", "/var"))) == count
    assert {group.candidates for n, group in config.evals.items() if n in ("imagenet_a", "imagenet_r")} == {"present"}
    assert len(config.evals) == 5 and all(group.data.path.startswith(n) for n, group in config.evals.items() if n != "imagenet")
    with pytest.raises(UserError, match="config argument"):
        config_lib.load(f"{path}:nothing")
    with pytest.raises(UserError, match="config argument"):
        config_lib.load(f"{path}:{size}+imagenette")


@pytest.mark.parametrize("path", CONFIGS, ids=name)
def test_transforms_exist_and_take_their_arguments(path):
    c = config_lib.load(str(path))
    tokenizer = open_tokenizer(open_source(config_lib.override(config_lib.base(), ["data.source=digits_captions"]).data, "train"))
    for specs in (c.data.transforms, *(group.transforms for group in c.evals.values() if "transforms" in group)):
        transforms.build(specs, tokenizer)


@pytest.mark.parametrize("path", CONFIGS, ids=name)
def test_the_header_says_how_to_run_it(path):
    head = path.read_text().split('"""')[1]
    assert re.search(rf"mmjax \w+ --config configs/{name(path)}\.py", head)


@pytest.mark.parametrize("path", SMOKE, ids=name)
def test_smoke_stops_and_continues_to_the_same_bits(path, tmp_path):
    command = ["train", "--config", f"{path}:smoke", "mesh.data=2", "mesh.fsdp=2", "mesh.tensor=2"]
    assert main([*command, "--workdir", str(tmp_path / "straight")]) == 0
    stopped = tmp_path / "stopped"
    shutil.copytree(tmp_path / "straight", stopped)
    checkpoints = stopped / "checkpoints"
    (checkpoints / "4").rename(stopped / "4.taken_away")  # as if killed after step 2 was saved
    assert main(["train", "--workdir", str(stopped)]) == 0
    assert arrays(stopped) == arrays(tmp_path / "straight")
    assert metric_lines(stopped) == metric_lines(tmp_path / "straight")
