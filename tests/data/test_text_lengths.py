"""Packs and length groups by config: measured at preparation, read by the loader, the same batches whatever reads them."""

import json

import numpy as np
import pytest

from mmjax.cli.main import main
from mmjax.core import config as config_lib
from mmjax.core.errors import UserError
from mmjax.data import loader, tokenizer
from mmjax.data.source import open_source
from mmjax.data.stream import open_stream
from mmjax.data.text_lengths import TextIds, measure
from tests.sets import write_jsonl

ROWS = (("keep", {"keys": ("tokens", "segments", "positions")}),)
BLANK = 3  # a line of the set that has a blank caption


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """90 captions of 1 to 7 times the same words, one of them blank; a tokenizer trained on them."""
    root = tmp_path_factory.mktemp("texts")
    path = write_jsonl(root / "set", 90)
    lines = path.read_text().splitlines()
    lines[BLANK] = json.dumps({**json.loads(lines[BLANK]), "caption": " "})
    path.write_text("\n".join(lines) + "\n")
    tokenizer.train([json.loads(line)["caption"] for line in lines], 560).save(root / "tokenizer.json")
    tokenizer.train(["something else altogether"], 530).save(root / "other.json")
    return root


def config(folder, **keys):
    data = config_lib.base().data
    given = {"source": "jsonl", "path": "set/set.jsonl", "dir": str(folder), "tokenizer": f"{folder}/tokenizer.json"}
    for key, value in {**given, "transforms": ROWS, **keys}.items():
        data[key] = value
    return data.lock()


def words(folder):
    return ["data.source=jsonl", f"data.dir={folder}", "data.path=set/set.jsonl", f"data.tokenizer={folder}/tokenizer.json"]


@pytest.fixture(scope="module")
def made(folder):
    """Indexes of both forms, by the command."""
    for form, size in (("packs", 48), ("length_groups", 8)):
        assert main(["data", "pack", "--form", form, "--size", str(size), "--out", str(folder / form), *words(folder)]) == 0
    return folder


def read(stream, count, batch_size, start=0, **options):
    given = {"batch_size": batch_size, "seed": stream.seed, "order": stream.order, "start": start * batch_size, **options}
    with loader.batches(stream.source, stream.transform, **given) as batches:
        return [{k: v.tobytes() for k, v in next(batches).items()} for _ in range(count - start)]


def test_rows_hold_every_text_once(made):
    stream, words = open_stream(config(made, packing="packs"), 3), tokenizer.load(made / "tokenizer.json")
    found = []
    for g in range(len(stream.source)):
        row = stream.source[g]
        for segment in range(1, row["segments"].max() + 1):
            here = row["segments"] == segment
            ids = row["tokens"][here].tolist()
            assert row["positions"][here].tolist() == list(range(len(ids))) and (ids[0], ids[-1]) == (words.start, words.end)
            found.append(words.decode(ids))
    source = open_source(config(made), "train")
    expected = [source[i]["captions"][0] for i in range(90) if i != BLANK]
    assert sorted(found) == sorted(words.decode(words.encode_plain(text)) for text in expected)
    tokens = sum(len(words.encode_plain(text)) + 2 for text in expected)
    about = json.loads((made / "packs" / "index.json").read_text())["about"]
    assert about["empty"] == 1 and about["cut"] == 0 and about["filled"] == pytest.approx(tokens / (48 * len(stream.source)), abs=1e-6)
    assert len(stream.source) < 1.15 * tokens / 48  # nearly full


def test_a_batch_is_a_length_group(made):
    transforms = (("pick_caption", {}), ("tokenize", {"length": 64}), ("keep", {"keys": ("tokens",)}))
    stream = open_stream(config(made, length_groups="length_groups", transforms=transforms, path="set/set.jsonl"), 3)
    assert stream.source.size == stream.order.block == 8 and len(stream.source) == 96
    with loader.batches(stream.source, stream.transform, batch_size=8, seed=3, order=stream.order) as batches:
        spreads = [int(np.ptp((next(batches)["tokens"] > 0).sum(1))) for _ in range(12)]
    plain = open_stream(config(made, transforms=transforms), 3)
    with loader.batches(plain.source, plain.transform, batch_size=8, seed=3, order=plain.order) as batches:
        mixed = [int(np.ptp((next(batches)["tokens"] > 0).sum(1))) for _ in range(12)]
    assert np.mean(spreads) < 6 < 15 < np.mean(mixed)


@pytest.mark.parametrize("key", ["packing", "length_groups"])
def test_batches_follow_from_seed_and_cursor_alone(made, key):
    keys = {"packing": ("packs", ROWS), "length_groups": ("length_groups", (("pick_caption", {}), ("tokenize", {"length": 40})))}
    name, transforms = keys[key]
    transforms = transforms if key == "packing" else (*transforms, ("keep", {"keys": ("tokens",)}))
    # Blank captions are replaced while reading length groups; packs leave them out.
    stream = open_stream(config(made, **{key: name}, transforms=transforms), 3)
    plain = read(stream, 6, 8, threads=0)
    assert len({str(sorted(b.items())) for b in plain}) == 6
    assert read(stream, 6, 8, workers=2) == plain
    assert read(open_stream(config(made, **{key: name}, transforms=transforms), 3), 6, 8, start=4) == plain[4:]
    halves = [read(stream, 6, 8, rows=rows) for rows in (range(4), range(4, 8))]
    assert [{k: a[k] + b[k] for k in a} for a, b in zip(*halves, strict=True)] == plain


def test_measuring_does_not_depend_on_threads(folder):
    source, tokens = open_source(config(folder), "train"), TextIds(tokenizer.load(folder / "tokenizer.json"), "captions")
    done = []
    lengths = measure(source, tokens, threads=1, progress=done.append)
    assert lengths.tolist() == measure(source, tokens, threads=4).tolist() and done == [90] and lengths[BLANK] == 0
    bare = TextIds(tokens.tokenizer, "captions", start=False, end=False)
    assert (lengths - measure(source, bare))[4:].tolist() == [2] * 86
    assert TextIds(tokens.tokenizer, "x", False, False)({"x": ("a", "b")}) == tokens.tokenizer.encode_plain("a\nb")


def test_an_index_belongs_to_its_set_and_its_tokenizer(made, tmp_path):
    with pytest.raises(UserError, match="'packs' was measured with another tokenizer than the run's"):
        open_stream(config(made, packing="packs", tokenizer=f"{made}/other.json"), 3)
    with pytest.raises(UserError, match="holds length_groups, expected packs"):
        open_stream(config(made, packing="length_groups"), 3)
    with pytest.raises(UserError, match="there is no index .*nowhere'; build it first: mmjax data pack"):
        open_stream(config(made, packing="nowhere"), 3)
    with pytest.raises(UserError, match="two ways to the same end"):
        open_stream(config(made, packing="packs", length_groups="length_groups"), 3)
    with pytest.raises(UserError, match=r"data\.mixture\[0\]: data\.length_groups is for one source"):
        open_stream(config(made, mixture=((1, {"length_groups": "length_groups"}),)), 3)
    other = write_jsonl(tmp_path / "set", 12)
    with pytest.raises(UserError, match="was built for another set, .*'records': 90.*'records': 12"):
        open_stream(config(made, packing=f"{made}/packs", path=str(other)), 3)


def test_packs_of_another_size_or_of_other_members_are_another_set(made):
    (before,) = open_stream(config(made, packing="packs"), 3).sets
    assert before.fingerprint != open_stream(config(made, transforms=()), 3).sets[0].fingerprint and before.records < 90
    for name, options in (("wider", ["--size", "64"]), ("windowed", ["--size", "48", "--window", "40"]), ("again", ["--size", "48"])):
        assert main(["data", "pack", *options, "--out", str(made / name), *words(made)]) == 0
        assert (open_stream(config(made, packing=name), 3).sets[0].fingerprint == before.fingerprint) == (name == "again")


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (["--form", "pack"], "--form 'pack'; did you mean 'packs'?"),
        (["--size", "0"], "packing: capacity and window are at least 1"),
        (["--text", "captoins"], "have no 'captoins'; did you mean 'captions'?"),
        (["data.tokenizer=none"], "has no tokenizer; set data.tokenizer"),
        (["data.mixture=((1, {}),)"], "reads one source"),
        (["--out", "SET"], "is no index and is not overwritten"),
    ],
)
def test_bad_input_is_one_line(folder, tmp_path, capsys, given, message):
    given = [str(folder / "set") if word == "SET" else word for word in given]
    assert main(["data", "pack", "--size", "16", "--out", str(tmp_path / "x"), *words(folder), *given]) == 2
    err = [line for line in capsys.readouterr().err.splitlines() if "error" in line]
    assert len(err) == 1 and message in err[0], err
