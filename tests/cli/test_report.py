"""The report is one page, complete in itself, that shows what it was given and says what it was not."""

import base64
import io
import json
import re
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from mmjax.cli import report
from mmjax.core.errors import UserError

VOID = {"meta", "img", "br", "hr", "input", "link"}
NASTY = "<script>alert(1)</script> & \"quoted\" 'too' $x$ {brace}"
CONFIG = {
    "task": "clip",
    "steps": 100,
    "batch_size": 16,
    "dtype": "float32",
    "seed": 0,
    "optim": {"name": "adamw", "lr": 1e-3},
    "path": NASTY,
}
EVALUATION = {
    "step": 100,
    "split": "test",
    "hardware": "2 x cpu",
    "zero_shot/accuracy": 0.967,
    "retrieval/image_to_text_r1": 0.5,
    "retrieval/image_to_text_r10": 1.0,
    "retrieval/text_to_image_r1": 0.25,
}


class Page(HTMLParser):
    """Checks that elements close in order, and collects what is in them."""

    def __init__(self, text):
        super().__init__(convert_charrefs=True)
        self.open, self.tags, self.text = [], [], []
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text.append(data)

    def attributes(self, tag):
        return [attrs for name, attrs in self.tags if name == tag]


def lines():
    train = [{"step": s, "loss": 5.0 / s, "grad_norm": 1.0 / s, "learning_rate": 1e-3, "step_seconds": 0.5} for s in range(10, 101, 10)]
    return [*train, {"step": 100, "zero_shot/accuracy": 0.96}]


def write(workdir, **changes):
    image = np.arange(64, dtype=np.uint8).reshape(8, 8, 1)
    given = {
        "metrics": lines(),
        "config": CONFIG,
        "evaluation": EVALUATION,
        "confusion": np.array([[7, 1], [0, 9]]),
        "classes": ("one", "two"),
        "samples": [(image, NASTY, 0.5, True), (np.repeat(image, 3, -1), "a two", 0.25, False)],
    }
    path = report.write(workdir, **{**given, **changes})
    assert path == workdir / "report.html"
    text = path.read_text()
    return text, Page(text)


def test_it_shows_scores_counts_and_captions(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps({"version": "9.8.7", "commit": "abc123", "config": {}}))
    _, page = write(tmp_path)
    shown = " ".join(page.text)
    for expected in (
        "96.7 %",
        "50.0 %",
        "25.0 %",
        "100.0 %",
        "16 of 17 right",
        "a two",
        "9.8.7 commit abc123",
        "2 x cpu",
        "100 of 100",
        "50.0 s",
    ):
        assert expected in shown, expected
    assert shown.count("R@") == 3  # the explanation, R@1 and R@10


def test_nothing_is_fetched(tmp_path):
    text, page = write(tmp_path)
    assert not re.search(r"https?:|//[a-z]|@import|url\((?!#)", text)
    assert all(a["src"].startswith("data:image/png;base64,") for a in page.attributes("img"))
    assert all(a.get("href", a.get("xlink:href", "#")).startswith("#") for _, a in page.tags)
    assert not page.attributes("link") and not page.attributes("script")


def test_captions_are_data(tmp_path):
    text, page = write(tmp_path, classes=("<b>one</b>", "two"), evaluation={"x/<i>": 0.5, "split": "<u>"})
    assert "<script" not in text and "<b>one" not in text and "<i>" not in text and "<u>" not in text
    assert NASTY in "".join(page.text)
    assert any(NASTY in a["alt"] for a in page.attributes("img"))


def test_pictures_are_whole_and_right_and_wrong_differ_by_more_than_colour(tmp_path):
    _, page = write(tmp_path)
    first, second = page.attributes("img")
    stored = Image.open(io.BytesIO(base64.b64decode(first["src"].split(",")[1])))
    np.testing.assert_array_equal(np.asarray(stored), np.arange(64).reshape(8, 8))
    assert "(right)" in first["alt"] and "(wrong)" in second["alt"]
    assert [a["class"] for a in page.attributes("figure")] == ["right", "wrong"]
    assert "✓" in page.text and "✗" in page.text


def test_large_pictures_are_shrunk(tmp_path):
    _, page = write(tmp_path, samples=[(np.zeros((400, 800, 3), np.uint8), "wide", 0.0, True)])
    stored = Image.open(io.BytesIO(base64.b64decode(page.attributes("img")[0]["src"].split(",")[1])))
    assert stored.size == (160, 80)


def test_curves_say_in_words_what_they_show(tmp_path):
    _, page = write(tmp_path)
    labels = [a["aria-label"] for a in page.attributes("svg")]
    assert "Loss: loss from 0.5 at step 10 to 0.05 at step 100" in labels
    assert "Accuracy: zero_shot/accuracy from 0.96 at step 100 to 0.96 at step 100" in labels
    assert len(labels) == 4
    drawn = {a["d"].count("L") for a in page.attributes("path") if "stroke: #3b82c4" in a.get("style", "") and "d" in a}
    assert 9 in drawn  # ten points, nine strokes


def test_curves_with_holes_and_long_ones(tmp_path):
    broken = [
        {"step": s, "loss": float("nan") if s < 4 else float("inf") if s == 4 else 1.0, "logit_scale": float("nan")} for s in range(1, 9)
    ]
    text, page = write(tmp_path, metrics=broken)
    assert "4 values not finite" in text and "8 values not finite" in text
    assert len(page.attributes("svg")) == 1
    noise = np.random.default_rng(0).standard_normal(30_000)
    long, _ = write(tmp_path, metrics=[{"step": s, "loss": float(v)} for s, v in enumerate(noise)])
    assert len(long) < 60_000 and "a point is the mean of 25 lines" in long


def test_colours_follow_the_reader(tmp_path):
    text, _ = write(tmp_path)
    assert "prefers-color-scheme: dark" in text and "currentColor" in text
    assert "#010203" not in text and "#040506" not in text  # stand-ins for the page's colours, all replaced


@pytest.mark.parametrize("missing", ["metrics", "config", "evaluation", "confusion", "samples", "everything"])
def test_missing_parts_are_said(tmp_path, missing):
    empty = {"metrics": [], "config": {}, "evaluation": {}, "confusion": None, "samples": []}
    text, page = write(tmp_path, **(empty if missing == "everything" else {missing: empty[missing]}))
    assert sum(a.get("class") == "absent" for a in page.attributes("p")) == (5 if missing == "everything" else 1)
    assert text.count("<section>") == 5


def test_many_classes_are_listed_as_commonest_confusions(tmp_path):
    counts = np.diag(np.full(50, 3))
    counts[4, 7], counts[9, 1] = 5, 2
    _, page = write(tmp_path, confusion=counts, classes=[f"class{i}" for i in range(50)])
    shown = [t for t in page.text if t.strip()]
    at = shown.index("taken for")
    assert shown[at + 1 : at + 7] == ["5", "class4", "class7", "2", "class9", "class1"]


def test_it_replaces_the_old_report_in_one_move_or_not_at_all(tmp_path, monkeypatch):
    write(tmp_path)
    before = (tmp_path / "report.html").read_bytes()

    def full(self, *_, **__):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_text", full)
    with pytest.raises(UserError, match=r"report\.html.*No space left"):
        write(tmp_path, evaluation={})
    monkeypatch.undo()
    assert (tmp_path / "report.html").read_bytes() == before
    assert [p.name for p in tmp_path.iterdir()] == ["report.html"]


def test_the_same_run_gives_the_same_bytes(tmp_path):
    assert write(tmp_path)[0] == write(tmp_path)[0]
