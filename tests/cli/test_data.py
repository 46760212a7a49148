"""`mmjax data`: index, curate, look."""

import io
import json
import shlex
import subprocess
import sys
import tarfile
import time

import numpy as np
import pytest
from PIL import Image

from mmjax.cli import data as verb
from mmjax.cli import sheet
from mmjax.cli.main import main, parse
from mmjax.core import config as config_lib
from mmjax.core import metrics
from mmjax.data import curate, subset
from mmjax.data.source import SOURCES, open_source
from tests.runs import ROOT, SMOKE

CLASSIFY = SMOKE.replace("clip/", "classification/")


@pytest.fixture
def queries(tmp_path):
    path = tmp_path / "queries.txt"
    path.write_text("zero\none\nhandwritten\nzebra\n")
    return str(path)


@pytest.fixture(scope="module")
def tars(tmp_path_factory):
    """Three shards of ten pairs; the last pair's image is no image."""
    folder = tmp_path_factory.mktemp("tars")
    for shard in range(3):
        with tarfile.open(folder / f"{shard:05d}.tar", "w") as tar:
            for i in range(10 * shard, 10 * shard + 10):
                buffer = io.BytesIO()
                pixels = np.random.default_rng(i % 20).integers(0, 255, (12, 16, 3), np.uint8)  # 20 to 29 repeat 0 to 9
                Image.fromarray(pixels).resize((64, 48), Image.Resampling.BICUBIC).save(buffer, "JPEG")
                for kind, content in (("jpg", buffer.getvalue() if i < 29 else b"oh"), ("txt", f"a {'cat' if i % 3 else 'dog'}".encode())):
                    member = tarfile.TarInfo(f"{i:09d}.{kind}")
                    member.size = len(content)
                    tar.addfile(member, io.BytesIO(content))
    return folder


def shards(tars):
    return ["data.source=shards", f"data.path={tars}/{{00000..00002}}.tar", f"data.index={tars}/index"]


@pytest.mark.parametrize("words", [["--help"], ["data", "--help"], ["data", "curate", "--help"], ["cache", "--help"]])
def test_help_answers_at_once_and_teaches(words):
    began = time.perf_counter()
    out = subprocess.run([sys.executable, "-m", "mmjax.cli.main", *words], capture_output=True, text=True, cwd=ROOT, check=True).stdout
    assert time.perf_counter() - began < 2  # half a second where nothing else runs
    assert "mmjax data" in out or "mmjax cache" in out
    code = (
        f"import sys, mmjax.cli.main as m\ntry: m.parse({words})\nexcept SystemExit: pass\nassert not {{'numpy', 'jax'}} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True, capture_output=True)


def test_build_index_and_curate_shards(tars, tmp_path, capsys):
    assert main(["data", "build-index", f"{tars}/{{00000..00002}}.tar", "--out", str(tars / "index")]) == 0
    facts = json.loads(capsys.readouterr().out)
    assert (facts["samples"], facts["shards"]) == (30, 3)
    (tmp_path / "q").write_text("cat\ndog\n")
    call = ["data", "curate", "--queries", str(tmp_path / "q"), "--per_query", "4", *shards(tars)]
    assert main([*call, "--out", str(tmp_path / "plain")]) == 0
    kept, header = subset.load(tmp_path / "plain")
    assert len(kept) == 8 and sum(i % 3 == 0 for i in kept.tolist()) == 4  # every pair holds one query
    assert main([*call, "--out", str(tmp_path / "once"), "--dedup", "phash"]) == 0
    report = json.loads((tmp_path / "once" / "report.json").read_text())
    assert (report["pairs"], report["duplicates"], report["unreadable"]) == (30, 9, 1)
    assert "00002.tar" in report["unreadable_first"][0]
    assert header["source"] == report["source"]  # read without images, and with them


def test_texts_alone_are_read_where_they_suffice(tars):
    config = config_lib.override(config_lib.base().lock(), shards(tars)[:2])
    source = open_source(config.data, "train")
    reader = verb._reader(config.data, source, curate.Plan(("cat",)))
    assert set(reader[0]) == {"captions"} and [reader[i]["captions"] for i in range(30)] == [source[i]["captions"] for i in range(30)]
    assert verb._reader(config.data, source, curate.Plan(("cat",), dedup="dhash")) is None


def test_curated_and_trained_on(queries, tmp_path, capsys):
    out = tmp_path / "kept"
    assert main(["data", "curate", "--config", CLASSIFY, "--queries", queries, "--out", str(out), "--per_query", "25"]) == 0
    printed = capsys.readouterr()
    assert "kept" in printed.out and f"data.subset={out}" in printed.err
    kept, header = subset.load(out)
    assert header["source"]["name"] == "digits_captions" and header["parameters"]["per_query"] == 25
    assert sorted(p.name for p in tmp_path.iterdir()) == ["kept", "queries.txt"]  # nothing temporary is left
    config = config_lib.load(CLASSIFY, [f"data.subset={out}"])
    assert len(open_source(config.data, "train")) == len(kept) and len(open_source(config.data, "validation")) == 140
    assert main(["train", "--config", CLASSIFY, "--workdir", str(tmp_path / "w"), f"data.subset={out}"]) == 0
    lines = metrics.read(tmp_path / "w")
    assert any("validation/accuracy" in line for line in lines)
    assert main(["train", "--config", CLASSIFY, "--workdir", str(tmp_path / "w2"), f"data.subset={out}", "data.split=test"]) == 2
    assert "was made of source 'digits_captions' (train" in capsys.readouterr().err


def test_curate_refuses(queries, tmp_path, capsys):
    call = lambda *words: (main(["data", "curate", "--queries", queries, "--out", str(tmp_path / "kept"), *words]), capsys.readouterr().err)
    for words, message in [
        ([], "needs a source: --config FILE.py, or data.source="),
        (["--config", CLASSIFY, "--form", "exactly"], "did you mean 'exact'"),
        (["--config", CLASSIFY, "--out", str(tmp_path / "no" / "kept")], "does not exist; create it"),
        (["--config", CLASSIFY, "--out", str(tmp_path)], "exists already"),
        (["--config", CLASSIFY, "--queries", "none.txt"], "queries 'none.txt' cannot be read"),
        (["--config", CLASSIFY, "--text", "caption"], "did you mean 'captions'"),
        (["--config", CLASSIFY, "data.subset=x"], "reads one whole source"),
        (["--config", CLASSIFY, "--split", "trian"], "did you mean 'train'"),
        (["--config", CLASSIFY, "data.sorce=x"], "did you mean 'source'"),
    ]:
        code, said = call(*words)
        errors = [line for line in said.splitlines() if line.startswith("mmjax: error: ")]
        assert code == 2 and len(errors) == 1 and message in errors[0], said
    assert sorted(p.name for p in tmp_path.iterdir()) == ["queries.txt"]


def test_a_contact_sheet(tmp_path, capsys):
    out = tmp_path / "sheet.png"
    assert main(["data", "show", "--config", SMOKE, "--split", "validation", "--count", "6", "--out", str(out)]) == 0
    facts = json.loads(capsys.readouterr().out)
    assert (facts["source"], facts["split"], facts["records"], facts["shown"], facts["bad"]) == ("digits_captions", "validation", 140, 6, 0)
    with Image.open(out) as both:
        assert main(["data", "show", "--config", SMOKE, "--count", "6", "--raw", "--out", str(tmp_path / "raw.png")]) == 0
        with Image.open(tmp_path / "raw.png") as raw:
            assert both.size[0] * both.size[1] > raw.size[0] * raw.size[1] > 6 * sheet.PICTURE**2


def test_a_cell_is_what_training_gets():
    config = config_lib.load(SMOKE, ["data.transforms=(('decode', {'channels': 1}), ('normalize', {'mean': 0.3, 'std': 0.35}))"])
    stream = sheet.open_streams(config.data, config.seed)[""]
    made = sheet.cell(stream, 5, None, True)
    stored, transformed = (np.asarray(p) for p in made.pictures)
    assert np.array_equal(stored, transformed)  # decoding and normalising alone, undone
    number = int(stream.order(np.array([5]))[0])
    assert made.text.startswith(f"#{number} [{stream.source.info.classes[stream.source[number]['label']]}]") and "(+29)" in made.text


def test_bad_records_are_on_the_sheet(tars, tmp_path, capsys):
    out = tmp_path / "sheet.png"
    call = ["data", "show", "--out", str(out), "--count", "30", *shards(tars)[:2]]
    assert main(call) == 0
    facts = json.loads(capsys.readouterr().out)
    assert facts["shown"] == 30 and facts["bad"] == 1
    pixels = np.asarray(Image.open(out).convert("RGB")).reshape(-1, 3)
    assert (pixels == (255, 0, 0)).all(1).sum() > sheet.PICTURE


@pytest.mark.parametrize(
    "words, message",
    [
        (["--count", "0"], "--count is 0"),
        (["--out", "sheet.txt"], "expected a name that ends in .html"),
        (["--out", "no/where.png"], "folder 'no' does not exist"),
        (["data.source=nothing"], "unknown source 'nothing'"),
    ],
)
def test_show_refuses(words, message, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main(["data", "show", "--config", SMOKE, "--out", "sheet.png", *words]) == 2
    assert message in capsys.readouterr().err and not list(tmp_path.iterdir())


def test_build_index_refuses(tmp_path, capsys):
    assert main(["data", "build-index", f"{tmp_path}/{{0..1}}.tar", "--out", str(tmp_path / "i")]) == 2
    assert "does not exist" in capsys.readouterr().err
    assert main(["data", "build-index", f"{tmp_path}/0.tar", "--out", str(tmp_path / "i"), "data.x=1"]) == 2
    assert "takes no config keys" in capsys.readouterr().err


def test_the_lines_of_the_page_parse():
    page = (ROOT / "docs" / "data.md").read_text()
    lines = [line for block in page.split("```sh\n")[1:] for line in block.split("```")[0].splitlines()]
    assert len(lines) >= 7
    for line in lines:
        program, *words = shlex.split(line)
        assert program == "mmjax" and parse(words).verb == words[0]
        assert all(word.partition("=")[0].removeprefix("data.") in config_lib.base().data for word in words if word.startswith("data."))
    assert all(f"| `{name}` |" in page for name in SOURCES)
