"""`mmjax data show --out page.html`."""

import base64
import io
import json
import re

import numpy as np
import pytest
from PIL import Image

from mmjax.cli.main import main
from mmjax.data.scenes.examples import example

SET = ["data.source=scenes", "data.scenes.pixels=32", "data.scenes.train=6", "data.scenes.evaluation=4"]


def show(tmp_path, capsys, *words):
    out = tmp_path / "page.html"
    assert main(["data", "show", "--out", str(out), *SET, f"data.dir={tmp_path}", *words]) == 0
    return out.read_text(), json.loads(capsys.readouterr().out)


def pictures(page: str) -> list[np.ndarray]:
    return [np.asarray(Image.open(io.BytesIO(base64.b64decode(b)))) for b in re.findall(r"data:image/png;base64,([^\"]+)", page)]


@pytest.mark.parametrize("config", ["objects", "qa", "video", "interleaved"])
def test_all_that_records_hold(tmp_path, capsys, config):
    page, facts = show(tmp_path, capsys, f"data.scenes.config={config}", "--count", "6", "--raw")
    assert (facts["records"], facts["shown"], facts["bad"], facts["files"]) == (6, 6, 0, 1)
    folder = tmp_path / "scenes" / f"{config}_32_6_4" / "1.0.0"
    assert facts["MiB"] == round(sum(p.stat().st_size for p in folder.glob("*-train.array_record*")) / 2**20, 1)
    made = [example(config, "train", i, 32) for i in range(6)]
    stored = []
    for one in made:
        stored += [one["image"]] if "image" in one else one.get("images", one.get("frames"))
        for key in ("captions", "texts", "question", "questions"):
            for text in np.atleast_1d(one.get(key, [])):
                assert str(text).replace('"', "&quot;").replace("'", "&#x27;") in page
    shown = pictures(page)
    assert len(shown) == len(stored)
    seen = {p.tobytes() for p in shown}
    assert all(np.asarray(Image.open(io.BytesIO(png))).tobytes() in seen for png in stored)
    assert "<script" not in page and "http" not in page


def test_what_the_model_is_given(tmp_path, capsys):
    page, _ = show(tmp_path, capsys, 'data.transforms=(("decode", {}), ("normalize", {"mean": 0.5, "std": 0.5}))', "--count", "2")
    shown = pictures(page)
    assert len(shown) == 4 and page.count("as trained on") == 2
    np.testing.assert_array_equal(shown[0], shown[1])


def test_markup_in_a_set_stays_text(tmp_path, capsys):
    (tmp_path / "set.jsonl").write_text(json.dumps({"image": "a.png", "caption": "<b>bold</b>"}) + "\n")
    Image.new("RGB", (8, 8)).save(tmp_path / "a.png")
    out = tmp_path / "page.html"
    assert main(["data", "show", "--out", str(out), "data.source=jsonl", f"data.path={tmp_path}/set.jsonl", "--count", "1", "--raw"]) == 0
    assert "&lt;b&gt;bold" in out.read_text() and "<b>" not in out.read_text()


def test_a_bad_record_is_shown_as_such(tmp_path, capsys):
    (tmp_path / "set.jsonl").write_text(json.dumps({"image": "gone.png", "caption": "x"}) + "\n")
    out = tmp_path / "page.html"
    assert main(["data", "show", "--out", str(out), "data.source=jsonl", f"data.path={tmp_path}/set.jsonl", "--count", "1", "--raw"]) == 0
    assert json.loads(capsys.readouterr().out)["bad"] == 1 and "class=bad" in out.read_text()
