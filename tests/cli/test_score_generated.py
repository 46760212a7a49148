"""`mmjax score generated` from a folder, with its sheets, and `mmjax eval --report` of an evaluation of generated pictures."""

import json

import numpy as np
import pytest
from PIL import Image

from mmjax.cli import eval as eval_verb
from mmjax.cli import picture_sheets, score
from mmjax.cli.main import main
from mmjax.evals import scored
from mmjax.evals.generated import Generated
from tests.evals import drawn
from tests.evals.drawn import picture, thing
from tests.evals.test_generated import TRAINING, VALIDATION

PROMPTS = [{"id": "a", "prompt": "a red circle", "category": "colours"}, {"id": "b", "prompt": "a star", "category": "single object"}]


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "p.json").write_text(json.dumps(PROMPTS))
    (tmp_path / "drawn").mkdir()
    for name in ("a", "b"):
        Image.fromarray(picture(thing("circle", "red"))).save(tmp_path / "drawn" / f"{name}.png")
    return tmp_path


def line(folder, *more):
    return ["score", "generated", "--pictures", str(folder / "drawn"), "--prompts", str(folder / "p.json"), *more]


def test_scores_and_sheet(folder, capsys):
    assert main(line(folder, "--out", str(folder / "o.json"), "--sheet", str(folder / "s.png"))) == 0
    made = json.loads((folder / "o.json").read_text())
    assert made["kind"] == "generated" and made["count"] == 2
    assert made["scores"]["overall"]["mean"] == 0.5 and made["scores"]["categories"]["colours"]["mean"] == 1.0
    assert made["scores"]["prompts"][1] == {
        "id": "b",
        "category": "single object",
        "prompt": "a star",
        "met": [False],
        "seen": ["a medium red circle"],
    }
    assert "overall" in capsys.readouterr().out
    with Image.open(folder / "s.png") as sheet:
        assert sheet.width > 160  # one cell


def test_with_a_source(folder, monkeypatch, capsys):
    monkeypatch.setattr(score, "open_source", lambda data, split: {"train": TRAINING, "validation": VALIDATION}[split])
    words = ["--nearest", str(folder / "n.png"), "--out", str(folder / "o.json"), "--split", "train", "data.source=scenes"]
    assert main(line(folder, *words)) == 0
    made = json.loads((folder / "o.json").read_text())["scores"]
    assert set(made["memorisation"]) == {"pixels", "hash"} and "nearest training picture" in capsys.readouterr().out
    with Image.open(folder / "n.png") as sheet:
        assert sheet.height > 160


@pytest.mark.parametrize(
    "words, message",
    [
        (["--predictions", "x"], "needs --pictures DIR, not --predictions"),
        (["--nearest", "n.png"], "--nearest shows training pictures: name their source"),
        (["--sheet", "/nowhere/s.png"], "contact sheet '/nowhere/s.png' cannot be written"),
        (["--sheet", "s.pong"], "contact sheet 's.pong' cannot be written"),
    ],
)
def test_one_line_for_bad_input(folder, capsys, words, message):
    assert main(line(folder, *words)) == 2
    err = capsys.readouterr().err
    assert message in err and err.count("\n") == 1


def test_no_pictures(capsys):
    assert main(["score", "generated"]) == 2 and "needs --pictures DIR" in capsys.readouterr().err
    assert main(["score", "captions"]) == 2 and "needs --predictions FILE" in capsys.readouterr().err


def test_cells():
    prompts = drawn.prompts(("c", "a red circle"), ("c", "a star"))
    pictures = np.stack([picture(*TRAINING.scenes[1]), picture(*TRAINING.scenes[2])])[:, None]
    found = scored.score(pictures, prompts, 0, TRAINING, VALIDATION)
    (failed,) = picture_sheets.failures(found)
    assert failed.text == "a star / seen: a red circle"
    copies = picture_sheets.copies(found)
    assert [c.bad for c in copies] == [True, True] and copies[0].text.startswith("a red circle / rms 0.0000 of #2")
    assert all(np.array_equal(*c.pictures) for c in copies)


def test_eval_report_writes_scores_and_sheets(tmp_path):
    prompts = drawn.prompts(("c", "a star"))
    pictures = picture(thing("circle", "red"))[None, None]

    class Known(Generated):
        def __init__(self):
            pass

        def scored(self, params):
            return scored.score(pictures, prompts)

    assert eval_verb.run("g", Known(), {}, tmp_path, None)["overall"] == 0 and not list(tmp_path.iterdir())
    assert eval_verb.run("g", Known(), {}, tmp_path, tmp_path)["overall"] == 0
    assert sorted(p.name for p in tmp_path.iterdir()) == ["g.json", "g_failures.png"]
    assert json.loads((tmp_path / "g.json").read_text())["prompts"][0]["seen"] == ["a medium red circle"]
