"""`mmjax cache`: what a model computes over a source, stored, resumed, and read back."""

import contextlib
import dataclasses
import json
import re
import shutil
from pathlib import Path

import jax
import numpy as np
import pytest
from jax.experimental.compilation_cache import compilation_cache

from mmjax import tasks
from mmjax.cli import cache
from mmjax.cli.main import main
from mmjax.cli.program import assemble
from mmjax.cli.train import slim
from mmjax.core import checkpoint_read
from mmjax.core import config as config_lib
from mmjax.core.checkpoint import Checkpoints
from mmjax.core.errors import UserError
from mmjax.data import loader, store, transforms
from mmjax.data.bad import BadSample
from mmjax.data.source import open_source, open_tokenizer
from tests.runs import SMOKE

N = 140  # records in the validation split
CLOSE = 2e-5  # on embeddings about 8 long: batches of other shapes add up in another order


@pytest.fixture(scope="module", autouse=True)
def fresh_programs():
    """On fake CPU devices a program with several collectives that comes out of the persistent cache can wait for itself for ever."""
    jax.config.update("jax_enable_compilation_cache", False)
    compilation_cache.reset_cache()
    yield
    jax.config.update("jax_enable_compilation_cache", True)
    compilation_cache.reset_cache()


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A CLIP's workdir with checkpoints of steps 2 and 4, made without the minute that compiling a train step takes."""
    workdir = tmp_path_factory.mktemp("runs") / "clip"
    workdir.mkdir()
    config = config_lib.load(SMOKE)
    config_lib.save(config, workdir)
    program = assemble(config)
    state = program.init()
    with contextlib.closing(Checkpoints(workdir / "checkpoints", keep_last=2)) as checkpoints:
        for step in (2, 4):
            moved = jax.tree.map(lambda x, step=step: x * (1 + step / 10), state.ema)
            body, frozen = slim(program, dataclasses.replace(state, ema=moved))
            checkpoints.save(step, body, frozen=frozen, wait=True)
    return workdir


def cached(run, out, *words, predict="encode_image"):
    """(exit status, the set)."""
    code = main(["cache", "--workdir", str(run), "--predict", predict, "--split", "validation", "--out", str(out), *words])
    return code, Path(out) / "validation"


def files(folder):
    return {p.name: p.read_bytes() for p in Path(folder).iterdir() if p.suffix == ".array_record"}


def weights(run, step=None):
    return checkpoint_read.read_params(run / "checkpoints", ("params", "ema/ema"), step)[1]


def direct(run, predict, inputs):
    """The predict function called here, without a mesh."""
    fn = tasks.make(config_lib.open_workdir(run)).predict[predict]
    return np.asarray(jax.jit(fn)(weights(run), np.stack(inputs)))


def inputs(run, specs, key):
    config = config_lib.open_workdir(run)
    source = open_source(config.data, "validation")
    transform = transforms.build(specs, open_tokenizer(source))
    return source, [transform(source[i], np.random.default_rng(0))[key] for i in range(len(source))]


def test_images_round_trip(run, tmp_path, capsys):
    code, folder = cached(run, tmp_path / "set", "--keep", "label,captions", "--shard_size", "48")
    facts = json.loads(capsys.readouterr().out)
    assert code == 0 and facts["records"] == facts["computed"] == N and facts["set"] == str(folder)
    assert len(files(folder)) == 3  # 48 + 48 + 44
    config = config_lib.open_workdir(run)
    source, images = inputs(run, config.evals.zero_shot.transforms, "image")
    expected = direct(run, "encode_image", images)
    config.unlock()
    config.data.source, config.data.path, config.data.expect_fingerprint = "cached", str(tmp_path / "set"), facts["fingerprint"]
    back = open_source(config.data, "validation")
    assert (
        len(back) == N and back.info.classes == source.info.classes and open_tokenizer(back).vocab_size == open_tokenizer(source).vocab_size
    )
    for i in range(N):
        record = back[i]
        assert set(record) == {"value", "label", "captions", "index"} and record["index"] == i
        np.testing.assert_allclose(record["value"], expected[i], atol=CLOSE)
        assert record["label"] == source[i]["label"] and record["captions"] == source[i]["captions"]
    keep = transforms.build((("keep", {"keys": ("value", "label")}),))
    with loader.batches(back, keep, batch_size=8, seed=0) as batches:
        batch = next(iter(batches))
    assert batch["value"].shape == (8, 16) and batch["value"].dtype == np.float32


def test_texts_round_trip(run, tmp_path):
    code, folder = cached(run, tmp_path, predict="encode_text")
    _, tokens = inputs(run, (("pick_caption", {"index": 0}), ("tokenize", {"length": 16})), "tokens")
    expected, back = direct(run, "encode_text", tokens), store.Cached(folder)
    assert code == 0 and len(back) == N
    np.testing.assert_allclose(np.stack([back[i]["value"] for i in range(N)]), expected, atol=CLOSE)


def test_killed_and_resumed_it_is_the_same(run, tmp_path, monkeypatch, capsys):
    _, whole = cached(run, tmp_path / "whole", "--shard_size", "32", "--keep", "label")
    written, encode = [], store.encode

    def dies(record):
        written.append(record)
        if len(written) == 75:  # in the middle of the third shard
            raise KeyboardInterrupt
        return encode(record)

    with monkeypatch.context() as m:
        m.setattr(store, "encode", dies)
        assert cached(run, tmp_path / "part", "--shard_size", "32", "--keep", "label")[0] == 130
    assert not (tmp_path / "part" / "validation").exists()
    assert {p.suffix for p in (tmp_path / "part" / "validation.partial").iterdir()} == {".array_record", ".json", ".writing"}
    capsys.readouterr()
    code, folder = cached(run, tmp_path / "part", "--shard_size", "32", "--keep", "label")
    printed = capsys.readouterr()
    assert code == 0 and json.loads(printed.out)["computed"] == N - 64 and "4 of 9 batches are there already" in printed.err
    assert files(folder) == files(whole) and [p.name for p in folder.parent.iterdir()] == ["validation"]
    read = lambda p: json.loads((p / "meta.json").read_text())
    assert read(folder) == read(whole)


def test_a_lost_shard_in_the_middle_is_made_again(run, tmp_path):
    _, folder = cached(run, tmp_path / "set", "--shard_size", "32", "--transforms", "train")
    before = files(folder)
    partial = folder.with_name("validation.partial")
    shutil.copytree(folder, partial)  # and below, what a killed run leaves
    meta = json.loads((partial / "meta.json").read_text())
    plan = {k: meta[k] for k in ("predict", "input", "transforms", "keep", "batch_size", "model", "source")}
    (partial / "plan.json").write_text(json.dumps({**plan, "count": N, "per_shard": 32}))
    for name in before:
        (partial / name).with_suffix(".json").write_text("{}")
    for name in sorted(before)[1:4:2]:
        (partial / name).unlink()
    shutil.rmtree(folder)
    assert cached(run, tmp_path / "set", "--shard_size", "32", "--transforms", "train")[0] == 0
    assert files(folder) == before  # random draws belong to the record's place, wherever the reading began


def test_any_mesh(run, tmp_path):
    _, one = cached(run, tmp_path / "one", "mesh.data=8")
    _, eight = cached(run, tmp_path / "eight", "mesh.data=2", "mesh.fsdp=2", "mesh.tensor=2")
    read = lambda folder: np.stack([store.Cached(folder)[i]["value"] for i in range(N)])
    np.testing.assert_allclose(read(one), read(eight), atol=CLOSE)


def test_the_fingerprint_is_the_models(run, tmp_path):
    config = config_lib.open_workdir(run)
    mark = lambda workdir, step=4, average="ema", c=config: cache.model_fingerprint(c, workdir, step, average)
    first = mark(run)
    assert re.fullmatch("[0-9a-f]{16}", first) and mark(Path(shutil.copytree(run, tmp_path / "moved"))) == first
    assert len({first, mark(run, step=2), mark(run, average=None)}) == 3
    other = config.copy_and_resolve_references()
    with other.unlocked():
        other.dtype = "bfloat16"
    assert mark(run, c=other) != first
    with other.unlocked():
        other.dtype, other.optim.lr, other.data.split = "float32", 7.0, "test"
    assert mark(run, c=other) == first


def test_bad_records_stay_in_place(run, tmp_path, monkeypatch):
    class Broken:
        def __init__(self, source):
            self.source, self.info = source, source.info

        def __len__(self):
            return 40

        def __getitem__(self, i):
            if i in (3, 39):
                raise BadSample("truncated", "ends early")
            return self.source[i]

    monkeypatch.setattr(cache, "open_source", lambda data, split: Broken(open_source(data, split)))
    code, folder = cached(run, tmp_path, "--keep", "label")
    back = store.Cached(folder)
    assert code == 0 and len(back) == 40 and back.meta["bad"] == {"truncated": 2} and back[38]["index"] == 38
    for i in (3, 39):
        with pytest.raises(BadSample, match="truncated"):
            back[i]


def test_a_component_of_a_mixture_by_its_number(run, tmp_path, capsys):
    mixture = "data.mixture=((1.0, {'split': 'test'}), (3, {'split': 'validation'}))"
    words = ["cache", "--workdir", str(run), "--predict", "encode_image", "--out", str(tmp_path), mixture]
    assert main([*words, "--component", "1"]) == 0
    _, alone = cached(run, tmp_path / "alone")
    assert files(tmp_path / "validation") == files(alone)
    assert main([*words, "--component", "2"]) == 2 and "--component '2'; known: 0, 1" in capsys.readouterr().err


def test_a_stream_by_its_name():
    data = config_lib.base().data
    data.streams = {"pairs": {"split": "test"}, "text": {"path": "x.jsonl", "source": "jsonl"}}
    assert cache.component(data.lock(), "text").path == "x.jsonl" and not len(cache.component(data, "text").streams)
    with pytest.raises(UserError, match="--component 'txt'; did you mean 'text'"):
        cache.component(data, "txt")


@pytest.mark.parametrize(
    "words, message",
    [
        (["--predict", "encode_imag"], "--predict 'encode_imag': task 'clip' has no such function; did you mean 'encode_image'?"),
        (["--predict", "logit_scale"], "takes no examples"),
        (["--split", "../x"], "cannot name a folder"),
        (["--split", "validaton"], "did you mean 'validation'?"),
        (["--source", "digits"], "did you mean 'digits_captions'?"),
        (["--keep", "lable"], "--keep 'lable': records of source 'digits_captions' have no such key; did you mean 'label'?"),
        (["--keep", "value"], None),
        (["--input", "pixels"], "no 'pixels'"),
        (["--transforms", "zeroshot"], "did you mean 'zero_shot'?"),
        (["--step", "3"], "no checkpoint of step 3"),
        (["--out", "gs://x/y"], "written to a local disk"),
        (["--out", "/dev/null/x"], "cannot be written"),
        (
            ["data.transforms=(('decode', {'channels': 3}), ('normalize', {}))"],
            "'image' is float32[16, 8, 8, 3], the task expects float32[16, 8, 8, 1]",
        ),
        (["data.mixture=((1.0, {}), (2.0, {}))"], "may be mixed again: name one with --component 0|1"),
        (["--component", "0"], "--component '0'; the run's data is one source"),
    ],
)
def test_bad_input_ends_in_one_line(run, tmp_path, capsys, words, message):
    given = {"--predict": "encode_image", "--split": "validation", "--out": str(tmp_path / "set")}
    given |= dict(zip(words[::2], words[1::2], strict=False)) if words[0].startswith("--") else {}
    rest = [] if words[0].startswith("--") else words
    code = main(["cache", "--workdir", str(run), *(w for pair in given.items() for w in pair), *rest])
    said = capsys.readouterr().err
    errors = [line for line in said.splitlines() if line.startswith("mmjax: error: ")]
    assert code == 2 and len(errors) == 1 and (message or "a 'value' of its own") in errors[0] and "Traceback" not in said, said


def test_a_finished_set_or_another_beginning_is_not_touched(run, tmp_path, capsys):
    _, folder = cached(run, tmp_path)
    before = files(folder)
    assert cached(run, tmp_path)[0] == 2 and "exists already; delete it" in capsys.readouterr().err and files(folder) == before
    folder.rename(tmp_path / "kept")
    store.Writer(folder, {"predict": "logits"}, N, 16)
    assert cached(run, tmp_path)[0] == 2 and "holds the beginning of another set" in capsys.readouterr().err
