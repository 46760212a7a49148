"""Annotation and prediction files: the published forms, and one clear line where a file is of another."""

import json
import re
from pathlib import Path

import pytest

from mmjax.core.errors import UserError
from mmjax.data.bad import BadSample
from mmjax.data.source import Info
from mmjax.evals import annotations, aro, predictions, sugarcrepe, winoground
from mmjax.evals.annotations import Question
from mmjax.evals.compositional import Case, Picture

COCO = {
    "images": [{"id": 7, "file_name": "7.jpg"}, {"id": 9}],
    "annotations": [
        {"image_id": 9, "id": 1, "caption": "a dog"},
        {"image_id": 7, "id": 2, "caption": "a cat"},
        {"image_id": 9, "id": 3, "caption": "the dog"},
    ],
}
KARPATHY = {
    "dataset": "flickr30k",
    "images": [
        {"imgid": 0, "split": "test", "filename": "a.jpg", "sentences": [{"raw": "A cat.", "tokens": ["a", "cat"]}, {"raw": "Cats."}]},
        {"imgid": 1, "split": "train", "filename": "b.jpg", "sentences": [{"raw": "A dog."}]},
    ],
}
VQA = {
    "data_subtype": "val2014",
    "annotations": [
        {
            "question_id": 262148000,
            "image_id": 262148,
            "question_type": "none of the above",
            "answer_type": "other",
            "multiple_choice_answer": "down",
            "answers": [{"answer": a, "answer_confidence": "yes", "answer_id": i + 1} for i, a in enumerate(["down"] * 9 + ["at table"])],
        }
    ],
}
GQA = {
    "201307251": {
        "imageId": "2375429",
        "question": "Is it cold?",
        "answer": "no",
        "isBalanced": True,
        "types": {"structural": "verify", "semantic": "global", "detailed": "existAttrC"},
    },
    "07333408": {"question": "What is it?", "answer": "cat", "types": {"structural": "query", "semantic": "obj", "detailed": None}},
}
CLEVR = {
    "info": {"split": "val"},
    "questions": [
        {
            "question_index": 0,
            "question_family_index": 2,
            "answer": "yes",
            "program": [{"function": "scene"}, {"function": "greater_than"}],
        },
        {"question_index": 1, "question_family_index": 39, "answer": "cube", "program": [{"type": "query_shape", "inputs": [0]}]},
        {"question_index": 2, "question_family_index": 39, "answer": "2"},
    ],
}


@pytest.fixture
def write(tmp_path):
    def write(value, name="file.json"):
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(value if isinstance(value, str) else json.dumps(value))
        return str(path)

    return write


def test_captions(write):
    assert annotations.read_captions(write(COCO)) == {"9": ("a dog", "the dog"), "7": ("a cat",)}
    assert annotations.read_captions(write(KARPATHY), "test") == {"0": ("A cat.", "Cats.")}
    lines = '{"image_id": "x", "captions": ["a", "b"]}\n\n{"image_id": 3, "captions": ["c"]}\n'
    assert annotations.read_captions(write(lines)) == {"x": ("a", "b"), "3": ("c",)}
    assert annotations.read_captions(write('{"image_id": 3, "captions": ["c"]}\n', "one.jsonl")) == {"3": ("c",)}


def test_questions(write):
    assert annotations.read_vqa(write(VQA)) == {
        "262148000": Question(("down",) * 9 + ("at table",), {"answer_type": "other", "question_type": "none of the above"})
    }
    gqa = annotations.read_gqa(write(GQA))
    verify = {"form": "binary", "structural": "verify", "semantic": "global", "detailed": "existAttrC"}
    assert gqa["201307251"] == Question(("no",), verify)
    assert gqa["07333408"].types == {"form": "open", "structural": "query", "semantic": "obj"}  # an id keeps its zero
    clevr = annotations.read_clevr(write(CLEVR))
    assert clevr["0"] == Question(("yes",), {"type": "compare_integer", "function": "greater_than", "family": "2"})
    assert clevr["1"].types["type"] == "query_attribute" and clevr["2"].types == {"family": "39"}
    own = annotations.read_qa(write('{"question_id": 5, "answer": "red", "type": "query_colour"}\n{"question_id": 6, "answer": "no"}'))
    assert own == {"5": Question(("red",), {"type": "query_colour"}), "6": Question(("no",), {})}


def test_compositional_files(write):
    pair = {"id": 0, "image_0": "ex_0_img_0", "image_1": "b.jpg", "caption_0": "a b", "caption_1": "b a", "collapsed_tag": "Object"}
    expected = Case((Picture("ex_0_img_0.png"), Picture("b.jpg")), ("a b", "b a"), "object")
    assert winoground.read(write(json.dumps(pair), "examples.jsonl")) == winoground.read(write([pair])) == [expected]
    case = {"filename": "1.jpg", "caption": "a cat", "negative_caption": "a dog"}
    assert sugarcrepe.read(write({"0": case}, "swap_obj.json")) == [Case((Picture("1.jpg"),), ("a cat", "a dog"), "swap_obj")]
    folder = write({"0": case}, "all/add_att.json").rsplit("/", 1)[0]
    with pytest.raises(UserError, match=r"all' has no add_obj.json; expected SugarCrepe's seven files"):
        sugarcrepe.read(folder)
    for name in sugarcrepe.TYPES:
        write({"0": case, "1": case}, f"all/{name}.json")
    assert len(sugarcrepe.read(folder)) == 14
    box = {"image_path": "2.jpg", "bbox_x": 10, "bbox_y": 20, "bbox_w": 30, "bbox_h": 40.5, "true_caption": "t", "false_caption": "f"}
    boxed = Picture("2.jpg", (10.0, 20.0, 40.0, 60.5))
    assert aro.read(write([{**box, "relation_name": "on"}])) == ([Case((boxed,), ("f", "t"), "on")], aro.relation)
    assert aro.read(write([{**box, "attributes": ["old", "red"]}])) == ([Case((boxed,), ("f", "t"), "old_red")], aro.attribution)
    shuffled = [{"image": "3.jpg", "caption_options": ["a b c", "b a c", "c b a"]}]
    assert aro.read(write(shuffled)) == ([Case((Picture("3.jpg"),), ("a b c", "b a c", "c b a"))], aro.order)


class Records:
    """A source of given records; None is a bad one."""

    def __init__(self, *records):
        features = dict.fromkeys(next(r for r in records if r is not None), "")
        self.records, self.info = records, Info("records", "test", (), (), None, features)

    def __len__(self):
        return len(self.records)

    def __getitem__(self, i):
        if self.records[i] is None:
            raise BadSample("missing", "made so")
        return self.records[i]


def test_a_sources_own():
    assert annotations.captions_of(Records({"captions": ("a", "b")}, None, {"captions": "c"})) == {"0": ("a", "b"), "2": ("c",)}
    assert annotations.questions_of(Records(None, {"answer": "red", "type": "colour"})) == {"1": Question(("red",), {"type": "colour"})}
    several = annotations.questions_of(Records({"answers": ("yes", 2), "types": ("exist", "count")}, {"answers": (), "types": ()}))
    assert several == {"0:0": Question(("yes",), {"type": "exist"}), "0:1": Question(("2",), {"type": "count"})}
    with pytest.raises(UserError, match=r"source 'records' \(test\), record 0 has no 'captions'; did you mean 'caption'\?"):
        annotations.captions_of(Records({"caption": "a"}))


READERS = {
    **{name: getattr(annotations, f"read_{name}") for name in ("captions", "vqa", "gqa", "clevr", "qa")},
    **{"winoground": winoground.read, "sugarcrepe": sugarcrepe.read, "aro": aro.read},
}


@pytest.mark.parametrize(
    "kind, value, message",
    [
        ("captions", "", "'PATH' is empty; expected JSON"),
        ("captions", "{oh", "'PATH' is no JSON: .*line 1 column 2"),
        ("captions", '{"image_id": 1, "captions": ["a"]}\noh\n', "'PATH', line 2 is no JSON: .*line 1 column 1"),
        ("captions", VQA["annotations"][0], "'PATH' holds an object with the keys 'question_id'.*, expected COCO's"),
        ("captions", [], "'PATH' holds a list of 0, expected COCO's"),
        ("captions", {"annotations": {}}, "'PATH': 'annotations' is {}, expected a list"),
        ("captions", {"annotations": [3]}, r"'PATH', annotations\[0\] is 3, expected an object"),
        (
            "captions",
            {"annotations": [{"image": 3, "caption": "a"}]},
            r"'PATH', annotations\[0\] has no 'image_id'; did you mean 'image'\?",
        ),
        ("captions", {"annotations": [{"image_id": 1.5, "caption": "a"}]}, "'image_id' is 1.5, expected a whole number or text"),
        ("captions", {"annotations": [{"image_id": 1, "caption": None}]}, r"annotations\[0\]: 'caption' is null, expected text"),
        ("captions", {**COCO, "images": [{"id": 8}]}, r"'PATH', images\[0\]: image 8 has no caption among the annotations"),
        ("captions", KARPATHY, "'PATH' holds the splits test, train; choose one with --split"),
        ("captions", [{"image_id": 1, "captions": []}], r"'PATH', entry 0: 'captions' is \[\], expected a list of texts, at least one"),
        ("vqa", COCO, r"'PATH', annotations\[0\] has no 'answers'"),
        ("vqa", GQA, "'PATH' holds an object with the keys '201307251', '07333408', expected VQA's"),
        ("vqa", {"annotations": [{"question_id": 1, "answers": [{"answer": "a"}]}]}, r"annotations\[0\]: 1 answers, expected ten"),
        ("vqa", {"annotations": VQA["annotations"] * 2}, r"annotations\[1\]: question 262148000 is there already"),
        ("gqa", [], "'PATH' holds a list of 0, expected GQA's"),
        ("gqa", {"1": {"answer": "no"}}, "'PATH', question '1' has no 'types'"),
        ("gqa", {"1": {"answer": "no", "types": {"semantic": 3}}}, "question '1': type 'semantic' is 3, expected text"),
        ("clevr", {"questions": [{"program": [{"function": "exist"}]}]}, r"'PATH', questions\[0\] has no 'answer'"),
        (
            "clevr",
            {"questions": [{"answer": "1", "program": [{"function": "counts"}]}]},
            r"program\[0\]: .*'counts'; did you mean 'count'\?",
        ),
        ("clevr", {"questions": [{"answer": "1"}]}, "neither 'program' nor 'question_family_index'"),
        ("qa", {"a": 1}, "'PATH' holds an object with the keys 'a', expected a list of"),
        ("winoground", [{"image_0": "a"}], r"'PATH', entry 0 has no 'image_1'; did you mean 'image_0'\?"),
        ("sugarcrepe", {}, r"file.json': a SugarCrepe file is named by its type, expected one of add_att.json"),
        ("aro", [{"image_path": "a"}], "'PATH', entry 0 has none of 'relation_name', 'attributes', 'caption_options'"),
        (
            "aro",
            [{"image": "a", "caption_options": ["a", "b"]}, {"image": "a", "caption_options": ["a"]}],
            "entry 1 has 1 captions, the first",
        ),
        ("aro", [{"relation_name": "on", "bbox_x": "3"}], "'bbox_x' is \"3\", expected a number"),
    ],
)
def test_files_of_another_form(write, kind, value, message):
    path = write(value)
    with pytest.raises(UserError, match=message.replace("PATH", re.escape(path))) as e:
        READERS[kind](path)
    assert "\n" not in str(e.value)


def test_a_file_that_is_not_there(write):
    path = write(COCO, "captions_val2014.json")
    with pytest.raises(UserError, match=r"does not exist; did you mean 'captions_val2014.json'\?"):
        annotations.read_captions(path.replace("2014", "2041"))
    Path(path).write_bytes(b"\xff\xfe\x00")
    with pytest.raises(UserError, match="is not UTF-8 at byte 0; expected a JSON file"):
        annotations.read_captions(path)


def test_predictions(write):
    path = write([{"image_id": 9, "caption": "a"}, {"image_id": "7", "caption": "b"}])
    assert predictions.read(path, predictions.CAPTION) == {"9": "a", "7": "b"}
    lines = write('{"questionId": "1", "prediction": "x"}\n{"question_index": 2, "answer": "y"}\n')
    assert predictions.read(lines, predictions.ANSWER) == {"1": "x", "2": "y"}
    assert predictions.matched({"9": "a", "7": "b"}, ["7", "9"], path, "'A'") == ["b", "a"]


@pytest.mark.parametrize(
    "value, message",
    [
        ([{"image_id": 1, "caption": "a"}, {"image_id": "1", "caption": "b"}], "entry 1: a second prediction for image_id 1, .* entry 0"),
        ({"1": "a"}, "holds an object with the keys '1', expected a list of"),
        ([{"image_id": 1, "captions": "a"}], r"entry 0 has no 'caption'; did you mean 'captions'\?"),
        ([{"image_id": 1, "caption": 3}], "entry 0: 'caption' is 3, expected text"),
        ([], "is an empty list"),
    ],
)
def test_bad_predictions(write, value, message):
    with pytest.raises(UserError, match=message):
        predictions.read(write(value), predictions.CAPTION)


def test_ids_that_do_not_match():
    with pytest.raises(UserError, match=r"'P' has no prediction for 4 \(1, 2, 3, ...\) of the 5 ids of 'A'; expected one for each"):
        predictions.matched({"0": ""}, list("01234"), "P", "'A'")
    with pytest.raises(UserError, match=r"'P' has predictions for 1 \(5\) that 'A' does not have; is it of the same split\?"):
        predictions.matched({"0": "", "5": ""}, ["0"], "P", "'A'")
