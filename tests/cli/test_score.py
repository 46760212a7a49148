"""`mmjax score`."""

import json
import subprocess
import sys

import pytest

from mmjax.cli.main import main
from tests.evals.test_annotations import CLEVR, COCO, GQA, VQA
from tests.runs import ROOT


@pytest.fixture
def files(tmp_path):
    def files(predicted, asked):
        (tmp_path / "p.json").write_text(json.dumps(predicted))
        (tmp_path / "a.json").write_text(json.dumps(asked))
        return ["--predictions", str(tmp_path / "p.json"), "--annotations", str(tmp_path / "a.json"), "--out", str(tmp_path / "o.json")]

    return files


def test_captions(files, tmp_path, capsys):
    predicted = [{"image_id": 7, "caption": "A cat."}, {"image_id": 9, "caption": "The dog!"}]
    assert main(["score", "captions", *files(predicted, COCO)]) == 0
    table, made = capsys.readouterr().out, json.loads((tmp_path / "o.json").read_text())
    assert made["count"] == 2 and made["scores"]["bleu_2"] == pytest.approx(1.0) and made["scores"]["rouge_l"] == 1.0
    assert made["scores"]["bleu_3"] == pytest.approx(0.01)  # no caption has three tokens: the reference's 1e-15 / 1e-9, cube root
    # "a" is in both images and weighs nothing. Against "a cat" 1-grams and 2-grams are right; against "a dog" and "the dog" the cosines
    # of 1-grams are 1 / sqrt(2) and 1, of 2-grams 0 and 1.
    assert made["scores"]["cider_d"] == pytest.approx((10 * 2 / 4 + 10 * (2 + 2**-0.5) / 4 / 2) / 2)
    assert "BLEU-4" in table and "ROUGE-L   100.00   100.00 - 100.00" in table and "what COCO tables call CIDEr" in table


@pytest.mark.parametrize(
    "kind, predicted, asked, accuracy, by",
    [
        ("vqa", [{"question_id": 262148000, "answer": "at table"}], VQA, 0.3, ("answer_type", "other")),
        (
            "gqa",
            [{"questionId": "07333408", "prediction": "Cat."}, {"questionId": "201307251", "prediction": "yes"}],
            GQA,
            0.5,
            ("form", "open"),
        ),
        ("clevr", [{"question_index": i, "answer": a} for i, a in enumerate(("yes", "sphere", "2"))], CLEVR, 2 / 3, ("family", "2")),
        ("qa", [{"question_id": 1, "answer": "red"}], [{"question_id": 1, "answer": "red", "type": "t"}], 1.0, ("type", "t")),
    ],
)
def test_answers(files, tmp_path, capsys, kind, predicted, asked, accuracy, by):
    assert main(["score", kind, *files(predicted, asked)]) == 0
    made = json.loads((tmp_path / "o.json").read_text())
    assert made["scores"]["accuracy"]["mean"] == pytest.approx(accuracy) and made["kind"] == kind and made["count"] == len(predicted)
    assert made["by"][by[0]][by[1]] == {"mean": pytest.approx({"vqa": 0.3}.get(kind, 1.0)), "count": 1} | {
        k: pytest.approx({"vqa": 0.3}.get(kind, 1.0)) for k in ("low", "high")
    }
    assert f"{100 * accuracy:.2f}" in capsys.readouterr().out


def test_a_part_that_was_asked(files, tmp_path):
    """Evaluations may ask some questions of a set: only with the flag are these all."""
    asked = [{"question_id": i, "answer": "red", "type": "t"} for i in range(3)]
    words = ["score", "qa", *files([{"question_id": 2, "answer": "red"}, {"question_id": 1, "answer": "blue"}], asked)]
    assert main(words) == 2
    assert main([*words, "--predicted_only"]) == 0
    made = json.loads((tmp_path / "o.json").read_text())
    assert made["count"] == 2 and made["scores"]["accuracy"]["mean"] == 0.5


def test_a_source(files, tmp_path, capsys):
    from mmjax.core import config
    from mmjax.data.source import open_source

    source = open_source(config.override(config.base(), ["data.source=digits_captions"]).data, "validation")
    predicted = [{"image_id": i, "caption": source[i]["captions"][0]} for i in range(len(source))]
    words = [*files(predicted, []), "--split", "validation", "data.source=digits_captions"]
    words[2:4] = []
    assert main(["score", "captions", *words]) == 0
    assert json.loads((tmp_path / "o.json").read_text())["scores"]["rouge_l"] == 1.0
    with_file = [*words, "--annotations", "x.json"]
    assert main(["score", "captions", *with_file]) == 2 and "not both" in capsys.readouterr().err
    assert main(["score", "vqa", *words]) == 2 and "scored by mmjax score qa" in capsys.readouterr().err


@pytest.mark.parametrize(
    "kind, predicted, message",
    [
        ("captions", [{"image_id": 7, "caption": "a"}], "p.json' has no prediction for 1 (9) of the 2 ids of '"),
        ("captions", [{"image_id": 7, "caption": "a"}] * 2, "p.json', entry 1: a second prediction for image_id 7, the other is entry 0"),
        ("vqa", [], "a.json', annotations[0] has no 'answers'"),
    ],
)
def test_one_line_for_bad_input(files, tmp_path, capsys, kind, predicted, message):
    assert main(["score", kind, *files(predicted, COCO)]) == 2
    err = capsys.readouterr().err
    assert message in err and err.count("\n") == 1 and not (tmp_path / "o.json").exists()


def test_help():
    out = subprocess.run(
        [sys.executable, "-m", "mmjax.cli.main", "score", "--help"], capture_output=True, text=True, cwd=ROOT, check=True
    ).stdout
    assert "leave-one-out" in out and "mmjax score vqa" in out
