import json
from pathlib import Path

from mmjax.cli.main import main

CONFIGS = Path(__file__).resolve().parents[2] / "configs"


def facts(capsys, *words):
    assert main(["info", *words, "--json"]) == 0
    return json.loads(capsys.readouterr().out)


def test_published_clip_has_its_published_size(capsys):
    got = facts(capsys, "--config", str(CONFIGS / "clip" / "vit_b32.py"), "--devices", "64", "mesh.fsdp=8")
    assert got["parameters"] == got["parameters_trained"] == 151_277_313
    assert sum(got["by_module"].values()) == 151_277_313
    # Four bytes a parameter, most of them split eight ways; Adam holds two numbers for each.
    assert 151_277_313 * 4 / 8 < got["memory_bytes"]["parameters"] < 151_277_313 * 4 / 7
    assert got["memory_bytes"]["optimizer"] == 2 * got["memory_bytes"]["parameters"] + 4  # and its count
    assert got["sharding"]["text/token/embedding"]["partition"] == [None, "fsdp"]
    assert got["mesh"] == {"data": 8, "fsdp": 8, "tensor": 1}


def test_the_flops_of_clip_are_those_published(capsys):
    """14.78 GFLOPs forward an example (open_clip's model profile): three times that a step without recomputation."""
    words = ["model.image.remat=none", "model.text.remat=none", "dtype=float32", "batch_size=8"]
    got = facts(capsys, "--config", str(CONFIGS / "clip" / "vit_b32.py"), *words)
    assert abs(got["flops_per_step_matmul"] / 8 / (3 * 14.78e9) - 1) < 0.03


def test_text_output_names_everything(capsys):
    assert main(["info", "--config", f"{CONFIGS / 'clip' / 'digits.py'}:smoke", "optim.freeze=('image/.*',)"]) == 0
    said = capsys.readouterr().out
    for part in ("parameters ", "frozen", "FLOPs a step", "optimizer", "image/blocks/attn/q/kernel", "mesh data=1"):
        assert part in said, part


def test_an_adapter_shows_as_trained_and_the_rest_as_frozen(capsys):
    words = ["lora.rules=('.*/attn/q/kernel',)", "lora.rank=4"]
    got = facts(capsys, "--config", f"{CONFIGS / 'clip' / 'digits.py'}:smoke", *words)
    assert got["parameters_trained"] == 4 * (16 + 16) * 3  # two image layers and one text layer
    assert got["memory_bytes"]["gradients"] == 4 * got["parameters_trained"]
