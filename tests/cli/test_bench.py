"""The whole protocol with stand-ins for PyTorch: scripts of a few lines in PyTorch's place, models of a few thousand parameters."""

import ast
import json
import sys
from pathlib import Path

import numpy as np
import pytest

import mmjax
from mmjax.bench import machine, measure
from mmjax.bench.peer import Peer, interpreter
from mmjax.cli import bench, bench_cases
from mmjax.cli.main import main
from mmjax.core.errors import UserError

TOWER = {"width": 32, "depth": 1, "heads": 2, "mlp": 64}
SMALL = [f"model.{tower}.{k}={v}" for tower in ("image", "text") for k, v in TOWER.items()]
SMALL += ["model.size=32", "model.image.patch=16", "model.text.length=8", "model.text.vocab=50", "model.embed=16", "batch_size=4"]

# Reads what a peer is given, by mmjax in PyTorch's place: the exported weights and the batch must give the same embeddings.
HONEST = """
import json, sys, time
from pathlib import Path
import numpy as np
import mmjax
folder = Path(sys.argv[1])
spec, batch = json.loads((folder / "spec.json").read_text()), np.load(folder / "batch.npz")
model = mmjax.from_pretrained(folder / "hf")
unit = lambda x: np.asarray(x) / np.linalg.norm(x, axis=-1, keepdims=True)
image = np.asarray(model.predict["encode_image"](model.params, batch["image"]))
out = {"image": image}
if spec["kind"] == "train":
    out = {"image": unit(image), "text": unit(model.predict["encode_text"](model.params, batch["tokens"]))}
    logits = out["image"] @ out["text"].T / 0.07
    lse = lambda axis: np.log(np.exp(logits).sum(axis))
    out["loss"] = out["second_loss"] = ((lse(0) + lse(1)) / 2 - np.diagonal(logits)).mean()
np.savez(folder / "outputs.npz", **out)
print(json.dumps({"ready": True, "versions": {"stand-in": "1"}, "threads": spec["threads"]}), flush=True)
for line in sys.stdin:
    print(json.dumps({"seconds": 0.01 * json.loads(line)["steps"]}), flush=True)
"""


DENOISES = """
import json, sys
from pathlib import Path
import numpy as np
import mmjax
folder = Path(sys.argv[1])
spec, batch = json.loads((folder / "spec.json").read_text()), np.load(folder / "batch.npz")
model = mmjax.from_pretrained(folder / "hf")
given = {"labels": batch["labels"]} if "labels" in batch else {}
np.savez(folder / "outputs.npz", network=model.predict["network"](model.params, batch["image"], batch["t"], **given) * SCALE)
print(json.dumps({"ready": True, "versions": {"stand-in": "1"}, "threads": spec["threads"]}), flush=True)
for line in sys.stdin:
    print(json.dumps({"seconds": 0.01 * json.loads(line)["steps"]}), flush=True)
"""
SMALL_UNET = [f"model.network.{word}" for word in ("channels=(32,32)", "attention=(0,1)", "blocks=1", "time_width=32")]
SMALL_DIT = [f"model.network.{word}" for word in ("depth=1", "width=48", "heads=2")]
TINY = ["model.size=8", "batch_size=2"]


@pytest.fixture
def small(monkeypatch):
    """Turns and machine measurements of no length."""
    monkeypatch.setattr(measure, "TURN", 0.0)
    monkeypatch.setattr(measure.alternate, "__defaults__", (0.0, lambda _: None))
    monkeypatch.setattr(bench, "SIZES", dict.fromkeys(bench.SIZES, (64, 1024)))
    monkeypatch.setattr(bench, "SIDE", 2)


@pytest.fixture
def peer_script(tmp_path, monkeypatch):
    """Puts a script in the place of the peer's."""

    def place(text, name="clip.py"):
        (tmp_path / name).write_text(text)
        monkeypatch.setattr(bench_cases, "PEERS", tmp_path)
        monkeypatch.setenv("PYTHONPATH", str(Path(mmjax.__file__).parents[1]))

    return place


def run(tmp_path, capsys, *words):
    code = main(["bench", *words, "--rounds", "2", "--out", str(tmp_path / "results" / "b.json")])
    got = capsys.readouterr()
    return code, got.out, got.err


@pytest.mark.parametrize("case", ["clip-vit-b32-train", pytest.param("clip-vit-b32-encode", marks=pytest.mark.slow)])
def test_a_case_against_a_peer(case, tmp_path, capsys, small, peer_script):
    peer_script(HONEST)
    code, out, err = run(tmp_path, capsys, case, *SMALL, "--peer_python", sys.executable)
    assert code == 0, err
    result = json.loads(out)
    assert result == json.loads((tmp_path / "results" / "b.json").read_text())
    assert machine.cpu() in result["hardware"] and result["versions"]["jax"] and result["date"]
    got = result["cases"][case]
    assert all(x < 1e-5 for k, x in got["differences"].items() if k != "second_loss"), got["differences"]
    assert got["seconds"]["peer"]["rounds"] == [0.01, 0.01] and got["peer"]["threads"] == machine.cores()
    ours = got["seconds"]["mmjax"]["rounds"]
    assert got["speed_against"]["peer"] == pytest.approx(np.median([0.01 / t for t in ours]))
    assert got["roofline"]["flops"] == got["flops_per_second"] * got["seconds"]["mmjax"]["median"]
    if case.endswith("train"):
        # By hand, of 4 images of 5 tokens and 4 texts of 8: the backward pass is twice the forward one, but pixels have no gradient.
        layer = lambda tokens: 4 * (2 * tokens * (4 * 32 * 32 + 2 * 32 * 64) + 4 * tokens * tokens * 32)
        patches, projections, logits = 4 * 2 * 4 * 768 * 32, 4 * 2 * 2 * 32 * 16, 2 * 4 * 4 * 16
        assert got["roofline"]["flops"] == 3 * (layer(5) + layer(8) + projections + logits) + 2 * patches
    table = (tmp_path / "results" / "b.txt").read_text()
    assert case in table and "x" in table and "roofline" in table and table.strip() in err


@pytest.mark.slow
def test_info_nce_needs_no_peer(tmp_path, capsys, small):
    code, out, err = run(tmp_path, capsys, "info-nce", "pairs=48", "width=16", "tile=16")
    assert code == 0, err
    got = json.loads(out)["cases"]["info-nce"]
    assert set(got["seconds"]) == {"ring", "dense"} and all(x < 1e-4 for x in got["differences"].values())
    assert got["roofline"]["flops"] == 3 * 2 * 48 * 48 * 16


@pytest.mark.slow  # a U-Net is compiled twice
def test_a_sampler_against_its_network(tmp_path, capsys, small):
    words = ["batch_size=2", "model.sampler.steps=3", "model.size=8", "model.network.channels=(32, 32)", "model.network.attention=(0, 0)"]
    code, out, err = run(tmp_path, capsys, "sampler", *words, "model.network.blocks=1")
    assert code == 0, err
    got = json.loads(out)["cases"]["sampler"]
    assert set(got["seconds"]) == {"sampler", "forwards"} and got["steps"] == 3
    assert got["roofline"]["flops"] % 3 == 0


def test_without_a_peer(tmp_path, capsys, small):
    code, out, err = run(tmp_path, capsys, "clip-vit-b32-encode", "--no_peer", "dtype=bfloat16", *SMALL)
    assert code == 0, err
    got = json.loads(out)["cases"]["clip-vit-b32-encode"]
    assert set(got["seconds"]) == {"mmjax"} and got["dtype"] == "bfloat16" and got["speed_against"] == {}


def test_different_outputs_are_refused(tmp_path, capsys, small, peer_script):
    peer_script(HONEST.replace('out = {"image": image}', 'out = {"image": image * 1.01}'))
    code, _, err = run(tmp_path, capsys, "clip-vit-b32-encode", *SMALL, "--peer_python", sys.executable)
    assert code == 2 and "outputs 'image' of mmjax and its peer differ by 0.01" in err.replace("0.0099", "0.01")


PRELUDE = "import json, sys, os\nsay = lambda **x: print(json.dumps(x), flush=True)\n"
LOOP = "say(ready=True)\nfor line in sys.stdin:\n    "


@pytest.mark.parametrize(
    "text, message",
    [
        ("say(error='cannot import PyTorch')", "cannot import PyTorch"),
        ("sys.exit('no memory\\nKilled by hand')", "exit status 1: Killed by hand"),
        ("print('hello', flush=True)", "answered 'hello', expected an object with 'ready'"),
        (LOOP + "os.kill(os.getpid(), 9)", "ended by signal 9"),
        (LOOP + "say(error='out of memory')", "out of memory"),
        (LOOP + "import time; time.sleep(60)", "did not answer in 3 s"),
    ],
)
def test_a_peer_that_fails(text, message, tmp_path):
    script = tmp_path / "p.py"
    script.write_text(PRELUDE + text + "\n")
    with pytest.raises(UserError, match="the peer p.py") as e, Peer(sys.executable, script, tmp_path, patience=3.0) as peer:
        peer.wait_ready()
        peer.run(1)
    assert message in str(e.value) and "\n" not in str(e.value)
    assert peer._process.poll() is not None


def test_the_clip_peer_without_torch(tmp_path):
    """The real script, in an interpreter that cannot import torch."""
    (tmp_path / "torch.py").write_text("raise ImportError('No module named torch')")
    script = tmp_path / "clip.py"  # beside the broken module, which is then found first
    script.write_text((bench_cases.PEERS / "clip.py").read_text())
    script.with_name("protocol.py").write_text((bench_cases.PEERS / "protocol.py").read_text())
    with (
        pytest.raises(UserError, match="cannot import torch and transformers .*pip install"),
        Peer(sys.executable, script, tmp_path) as peer,
    ):
        peer.wait_ready()


def test_peers_import_no_mmjax():
    for path in (bench_cases.PEERS).glob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            names = (
                [a.name for a in node.names] if isinstance(node, ast.Import) else [node.module] if isinstance(node, ast.ImportFrom) else []
            )
            assert not any(n.split(".")[0] in ("mmjax", "jax") for n in names), path


@pytest.mark.parametrize(
    "words, message",
    [
        (["clip-vit-b32-trian"], "no benchmark 'clip-vit-b32-trian'; did you mean 'clip-vit-b32-train'?"),
        (["info-nce", "--rounds", "0"], "--rounds is 0"),
        (["info-nce", "pair=3"], "info-nce: override 'pair=3': no config key 'pair'; did you mean 'pairs'?"),
        (["info-nce", "pairs=0"], "pairs is 0"),
        (["info-nce", "--out", "b.txt"], "--out is 'b.txt'"),
        (["clip-vit-b32-train", "--peer_python", "no/such/python"], "--peer_python 'no/such/python' is no program"),
    ],
)
def test_bad_input(words, message, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main(["bench", *words]) == 2
    err = capsys.readouterr().err
    assert message in err and "Traceback" not in err


def test_an_interpreter_without_the_packages():
    with pytest.raises(UserError, match=r"lacks no_such_package, which the peer runs on: .*pip install torch transformers"):
        interpreter(None, ("json", "no_such_package"))
    assert interpreter(None, ("json",)) == sys.executable


def test_list(capsys):
    assert main(["bench", "--list"]) == 0
    assert [line.split()[0] for line in capsys.readouterr().out.splitlines()] == list(bench_cases.CASES)


def test_turns_alternate():
    order = []

    def side(name, seconds):
        return lambda steps: order.append((name, steps)) or seconds * steps

    times = measure.alternate({"a": side("a", 0.5), "b": side("b", 4.0)}, rounds=2, turn=2.0)
    assert times == {"a": [0.5, 0.5], "b": [4.0, 4.0]}
    assert order == [("a", 1), ("a", 1), ("b", 1), ("b", 1), ("a", 4), ("b", 1), ("b", 1), ("a", 4)]


def test_roofline():
    """100 FLOP/s and 10 bytes/s: 200 FLOPs and 5 bytes are bound by arithmetic, 50 bytes by memory."""
    got = measure.roofline(measure.Work(200, 5.0), 4.0, 100.0, 10.0)
    assert got["bound"] == "arithmetic" and got["floor_seconds"] == 2.0 and got["share_of_floor"] == 0.5
    got = measure.roofline(measure.Work(200, 50.0), 10.0, 100.0, 10.0)
    assert got["bound"] == "memory" and got["floor_seconds"] == 5.0 and got["intensity"] == 4.0
    assert "bound" not in measure.roofline(measure.Work(200, None), 4.0, 100.0, 10.0)


@pytest.mark.slow
@pytest.mark.parametrize(("case", "sizes"), [("ddpm-cifar10-train", SMALL_UNET), ("dit-b4-train", SMALL_DIT)])
def test_diffusion_against_a_peer(case, sizes, tmp_path, capsys, small, peer_script):
    words = (case, *sizes, *TINY, "--peer_python", sys.executable)
    peer_script(DENOISES.replace("SCALE", "1"), "diffusion.py")
    code, out, err = run(tmp_path, capsys, *words)
    assert code == 0, err
    got = json.loads(out)["cases"][case]
    assert got["differences"]["network"] < 1e-5 and got["speed_against"]["peer"] > 0
    assert ("share_of_convolution_rate" in got) == (case == "ddpm-cifar10-train") == ("forward convolutions run at" in err)


def test_a_peer_that_computes_another_network_is_refused(tmp_path, capsys, small, peer_script):
    peer_script(DENOISES.replace("SCALE", "1.02"), "diffusion.py")
    code, _, err = run(tmp_path, capsys, "dit-b4-train", *SMALL_DIT, *TINY, "--peer_python", sys.executable)
    assert code == 2 and "outputs 'network' of mmjax and its peer differ by 0.02" in err


WRITES = """
import json, sys
from pathlib import Path
import jax, numpy as np
import mmjax
folder = Path(sys.argv[1])
spec, tokens = json.loads((folder / "spec.json").read_text()), np.load(folder / "batch.npz")["tokens"]
model = mmjax.from_pretrained(folder / "hf")
logits = model.predict["logits"](model.params, tokens)[:, -1]
written = model.predict["generate"](model.params, tokens, jax.random.key(0), max_new_tokens=spec["new"]).tokens
np.savez(folder / "outputs.npz", logits=logits, tokens=written)
print(json.dumps({"ready": True, "versions": {"stand-in": "1"}, "threads": spec["threads"]}), flush=True)
for line in sys.stdin:
    print(json.dumps({"seconds": 0.01 * json.loads(line)["steps"]}), flush=True)
"""
SMALL_LM = [f"model.lm.{word}" for word in ("width=32", "depth=1", "heads=2", "mlp=64", "vocab=50")]


@pytest.mark.slow
def test_decoding_against_a_peer(tmp_path, capsys, small, peer_script):
    peer_script(WRITES, "language_model.py")
    words = ("gpt2-decode", *SMALL_LM, "batch_size=2", "prompt=5", "new=4", "--peer_python", sys.executable)
    code, out, err = run(tmp_path, capsys, *words)
    assert code == 0, err
    got = json.loads(out)["cases"]["gpt2-decode"]
    assert got["same_tokens"] == 1.0 and got["differences"]["logits"] < 1e-5
    assert got["tokens_per_second"]["peer"] == pytest.approx(8 / 0.01) and "tokens a second: mmjax" in err


def test_decoding_by_hand(tmp_path, capsys, small):
    """Products of a token with the block, its scores and sums over n places, and the logits of those that are written."""
    code, out, err = run(tmp_path, capsys, "gpt2-decode", *SMALL_LM, "batch_size=2", "prompt=5", "new=4", "--no_peer")
    assert code == 0, err
    got = json.loads(out)["cases"]["gpt2-decode"]
    block, seen, head = 2 * (4 * 32 * 32 + 2 * 32 * 64), lambda n: 4 * n * 32, 2 * 32 * 50
    assert got["roofline"]["flops"] == 2 * (5 * (block + seen(5)) + 4 * (block + seen(9) + head))
    assert got["roofline"]["bytes"] == 5 * 4 * got["parameters"] + 4 * (2 * 2 * 9 * 32 * 4)
    assert got["tokens_per_second"]["mmjax"] == pytest.approx(8 / got["seconds"]["mmjax"]["median"])


def test_other_tokens_are_refused():
    ours = np.arange(6).reshape(2, 3)
    assert bench_cases.same_tokens(ours, ours, exact=True) == 1.0
    with pytest.raises(UserError, match="first new token 2 of row 1"):
        bench_cases.same_tokens(ours, np.array([[0, 1, 2], [3, 4, 6]]), exact=True)
    assert bench_cases.same_tokens(ours, ours * 0, exact=False) == pytest.approx(1 / 6)
