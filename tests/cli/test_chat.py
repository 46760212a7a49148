"""`mmjax chat`: what is shown of a text while it is written, what is remembered, and how pictures come between words."""

import io
from pathlib import Path

import jax
import numpy as np
import pytest
from PIL import Image

import mmjax
from mmjax import tasks
from mmjax.cli import chat
from mmjax.cli.main import main, parse
from mmjax.convert.pretrained import Pretrained
from mmjax.core import config as config_lib
from mmjax.core.checkpoint import Checkpoints
from mmjax.core.errors import UserError
from mmjax.data import interleave, tokenizer
from mmjax.decoding import Generated

CONFIGS = Path(__file__).resolve().parents[2] / "configs"
TOKENIZER = Path(mmjax.__file__).parent / "data" / "scenes" / "tokenizer.json"
WORDS = tokenizer.load(TOKENIZER)
LM = {"lm": {"length": 200}}
SEEN = {"size": 8, "resize": "squash", "method": "bilinear", "mean": (0.5,) * 3, "std": (0.25,) * 3}


class Model:
    """Says its lines one after the other, and keeps what it was asked."""

    def __init__(self, *lines, sees=False):
        self.lines, self.asked = list(lines), []
        words = WORDS.extended(interleave.special("flamingo")) if sees else WORDS
        config = {"family": "language_model", "layout": "mmjax", "model": dict(LM)}
        if sees:
            config["model"] |= {"resampler": {}, "image_token": words.find("<image>"), "channels": 3}
            config["preprocess"] = SEEN
        self.pretrained = Pretrained(config, {}, words, {"generate": self.generate})

    def generate(self, params, tokens, key, *, lengths, on_token=None, stop, max_new_tokens, pixels=None, images=None, **how):
        self.asked.append(
            {"ids": tokens[0, : lengths[0]].tolist(), "width": tokens.shape[1], "stop": stop, "pixels": pixels, "images": images}
        )
        ids = self.lines.pop(0)[:max_new_tokens]
        found = [len(s) for s in stop if tuple(ids[-len(s) :]) == s]
        for t in (*range(1, len(ids)), 0) if on_token else ():  # the device promises no order
            on_token(np.int32(t), np.array([ids[t]]), np.array([False]))
        row = np.array(ids + [0] * (max_new_tokens - len(ids)), np.int32)[None]
        length = len(ids) - max(found, default=0)
        return Generated(row, np.array([length]), np.zeros(1), np.array([bool(found)]))


def speaker(model, *words):
    out = io.StringIO()
    args = parse(["chat", "--workdir", "w", *words])
    return chat.Speaker(model.pretrained, "w", args, out), out


ids = WORDS.encode_plain


def test_a_text_is_shown_as_it_comes_and_no_stop_of_it():
    said = []
    stop = (tuple(ids(" ; .")), (WORDS.end,))
    out = io.StringIO()
    out.write = said.append
    stream = chat.Stream(WORDS, stop, out)
    text = "a red circle ; and two caf\u00e9s"
    prompt = [WORDS.start, *ids("Question: what? Answer:")]
    stream.begin(prompt)
    for t, token in enumerate([*ids(text), *ids(" ; .")]):
        stream(np.int32(t), np.array([token]), np.array([False]))
    assert stream.finish(ids(text)).strip() == text
    shown = "".join(said)
    assert shown.strip() == text and "\ufffd" not in shown
    assert shown.startswith(" a")  # spelt as it stands after the prompt
    assert len([s for s in said if s.strip()]) > 5  # in pieces


def test_lines_are_gone_on_from_until_a_text_ends(capsys):
    model = Model([*ids("one"), *ids(";")], ids("two blue"), [*ids("red"), WORDS.end], ids("green"))
    one, out = speaker(model, "--stop", ";", "--max_new_tokens", "3")
    lines = io.StringIO("what is seen\nand then\n<image:x.png>this\nmore\nanew\n/new\n/quit\n")
    assert chat.converse(one, lines) == 0
    asked = [a["ids"] for a in model.asked]
    assert asked[0] == [WORDS.start, *ids("what is seen")]
    assert asked[1] == [WORDS.start, *ids("what is seen one\nand then")]  # the stop is not remembered
    assert asked[2][: len(asked[1])] == asked[1] and asked[2][-1:] == ids("more")  # the refused line left nothing
    assert asked[3] == [WORDS.start, *ids("anew")]  # the end token ended the third text
    assert {a["width"] for a in model.asked} == {32}
    assert out.getvalue().split("\n")[0].strip() == "one"
    assert "sees no pictures; leave out <image:x.png>" in capsys.readouterr().err


def test_pictures_stand_between_words(tmp_path):
    for name, level in (("a", 0), ("b", 255)):
        Image.new("RGB", (20, 10), (level,) * 3).save(tmp_path / f"{name}.png")
    model = Model([], [], sees=True)
    words = model.pretrained.tokenizer
    chunk, image = words.find("<|endofchunk|>"), words.find("<image>")
    model.lines = [[*ids("yes"), chunk], [*ids("no"), chunk]]
    one, _ = speaker(model)
    a, b = (f"<image:{tmp_path / name}.png>" for name in ("a", "b"))
    assert one.answer(f"Hello.{a}Is it black?{b}Is it").strip() == "yes"
    got = model.asked[0]
    hello = [WORDS.start, *ids("Hello."), chunk, image, *ids("Is it black?"), chunk, image, *ids("Is it")]
    assert got["ids"] == hello and got["stop"] == ((WORDS.end,), (chunk,))
    assert got["pixels"].shape == (1, 2, 1, 8, 8, 3) and got["images"].tolist() == [2]
    np.testing.assert_allclose(got["pixels"][0, :, 0].mean((1, 2, 3)), [-2, 2], atol=1e-5)
    one.answer(f"{a}And now?")
    got = model.asked[1]
    assert got["ids"] == [*hello, *ids("yes"), chunk, image, *ids("And now?")]
    assert got["pixels"].shape[1] == 4 and got["images"].tolist() == [3]  # room for a power of two
    with pytest.raises(UserError, match="No such file"):
        one.answer("<image:none.png>")
    (tmp_path / "text.png").write_text("no picture")
    with pytest.raises(UserError, match="is no picture or video that can be read"):
        one.answer(f"<image:{tmp_path / 'text.png'}>")


def test_a_picture_may_be_a_video(tmp_path):
    """A gif of 3.2 seconds, a folder of 4 frames at 2 a second and a list of them, beside a picture."""
    frames = [Image.new("L", (10, 10), level) for level in (0, 80, 160, 240)]
    frames[0].save(tmp_path / "clip.gif", save_all=True, append_images=frames[1:], duration=800)
    (tmp_path / "many").mkdir()
    (tmp_path / "none").mkdir()
    for k, frame in zip((1, 2, 9, 10), frames, strict=True):
        frame.save(tmp_path / "many" / f"{k}.png")
    clip, many, one, none = (tmp_path / name for name in ("clip.gif", "many", "many/2.png", "none"))
    levels = lambda model: np.round((model.asked[-1]["pixels"][0].mean((2, 3, 4)) * 0.25 + 0.5) * 255).tolist()
    model = Model(*[ids("a")] * 4, sees=True)
    said, _ = speaker(model, "--stored_fps", "2")
    said.answer(f"<image:{clip}>Output:")
    assert levels(model) == [[0, 80, 160, 240]]  # on screen at 0, 1, 2 and 3 seconds
    said.forget()
    said.answer(f"<image:{many}>one<image:{one}>another<image:{clip}>Output:")
    got = model.asked[-1]
    assert levels(model) == [[0, 160, 160, 160], [80] * 4, [0, 80, 160, 240], [128] * 4] and got["images"].tolist() == [3]
    said, _ = speaker(model, "--stored_fps", "2", "--fps", "2", "--frames", "3")
    said.answer(f"<image:{many / '10.png'},{one}>Output:")
    assert levels(model) == [[240, 80]]
    said.forget()
    said.answer(f"<image:{many}>Output:")
    assert levels(model) == [[0, 80, 160]]
    (tmp_path / "clip.mp4").write_bytes(b"0")
    for name, message in (
        (none, "none> is no picture or video that can be read: .*no frames"),
        (" , ", "no frames"),
        (tmp_path / "clip.mp4", "clip.mp4': videos of form mp4 are not read; give a gif"),
        (f"{one},{tmp_path / 'gone.png'}", "No such file"),
    ):
        with pytest.raises(UserError, match=message):
            said.answer(f"<image:{name}>Output:")
    with pytest.raises(UserError, match="--fps is 0.0, expected more than 0"):
        speaker(model, "--fps", "0")


def test_a_run_says_what_its_logits_say(tmp_path, capsys):
    """From a workdir by the command line: the averaged weights, the set's tokenizer, and nothing but the answer on standard output."""
    config = config_lib.load(f"{CONFIGS / 'lm' / 'scenes.py'}:smoke", [f"data.tokenizer={TOKENIZER}"])
    task = tasks.make(config)
    params = jax.jit(task.init)(jax.random.key(3))
    averaged = jax.tree.map(lambda x: x + 0.3 * jax.random.normal(jax.random.key(x.size), x.shape), params)
    config_lib.save(config, tmp_path)
    with Checkpoints(tmp_path / "checkpoints") as checkpoints:
        checkpoints.save(7, {"params": params, "ema": {"ema": averaged}}, frozen={}, wait=True)
    assert main(["chat", "--workdir", str(tmp_path), "--prompt", "a red", "--max_new_tokens", "3"]) == 0
    got = capsys.readouterr()
    logits, text = jax.jit(task.predict["logits"]), np.zeros((1, 8), np.int32)
    text[0, :3] = WORDS.start, *ids("a red")
    for n in (3, 4, 5):
        text[0, n] = np.asarray(logits(averaged, text))[0, n - 1].argmax()
    assert got.out.strip() == WORDS.decode(text[0, :6])[len("a red") :].strip()
    assert "3 tokens" in got.err and "cut off at --max_new_tokens" in got.err


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "needs --workdir, a run's, or --model"),
        (["--workdir", "a", "--model", "b"], "one of them"),
        (["--workdir", "no/such/run"], "no/such/run"),
        (["--workdir", "w", "--dtype", "float8"], "--dtype is 'float8'"),
    ],
)
def test_bad_input(words, message, capsys):
    assert main(["chat", *words]) == 2
    err = capsys.readouterr().err
    assert message in err and "Traceback" not in err


def test_models_that_do_not_write():
    model = Model(sees=True).pretrained
    with pytest.raises(UserError, match="'w' writes no text: it has encode_image"):
        speaker(type("M", (), {"pretrained": Pretrained(model.config, {}, WORDS, {"encode_image": print})}))
    with pytest.raises(UserError, match="'w' has no tokenizer beside it"):
        speaker(type("M", (), {"pretrained": Pretrained(model.config, {}, None, model.predict)}))
    model.config["model"]["image_token"] = 7
    with pytest.raises(UserError, match="gives pictures the id 1025, the model looks for them at id 7"):
        speaker(type("M", (), {"pretrained": model}))
