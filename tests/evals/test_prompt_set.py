"""The stored prompts: what their script makes, each of the grammar, nothing held out but in `unseen`; and files of one's own."""

import json
import subprocess
import sys
from collections import Counter

import pytest

from mmjax.core.errors import UserError
from mmjax.data.scenes.prompts import CATEGORIES
from mmjax.data.scenes.splits import HELD_OUT_PAIRS, HELD_OUT_RELATIONS, is_held_out_word
from mmjax.evals import prompt_set
from tests.runs import ROOT


def test_stored_is_what_the_script_makes():
    """In a process that checks no types, where it takes a tenth of the time."""
    made = [sys.executable, "-c", "import json; from mmjax.evals import prompt_set; print(json.dumps(prompt_set.make()))"]
    out = subprocess.run(made, capture_output=True, text=True, cwd=ROOT, check=True).stdout
    assert [json.loads(line) for line in prompt_set.STORED.read_text().splitlines()] == json.loads(out)


def test_categories():
    prompts = prompt_set.load()
    counts = Counter(p.category for p in prompts)
    assert counts == {**dict.fromkeys((*CATEGORIES, "unseen"), 48), "single object": 32}
    assert len({p.text for p in prompts if p.category != "unseen"}) == len(prompts) - 48 and len({p.id for p in prompts}) == len(prompts)
    assert {p.requirement.things[0].description.shape for p in prompts if p.category == "single object"} == {s for s, _ in HELD_OUT_PAIRS}
    counted = Counter(p.requirement.things[0].count for p in prompts if p.category == "counting")
    assert counted == dict.fromkeys(range(1, 7), 8)  # every shape in every number
    assert set(Counter(p.requirement.relations[0].name for p in prompts if p.category == "position").values()) == {8}
    for p in prompts:
        if p.category == "attribute binding":
            a, b = (t.description for t in p.requirement.things)
            assert a.shape != b.shape and a.colour != b.colour


def test_held_out_in_unseen_alone():
    for p in prompt_set.load():
        looks = [t.description for t in p.requirement.things]
        named = {(d.shape, d.colour) for d in looks} & HELD_OUT_PAIRS
        named |= {(r.name, looks[r.subject].shape, looks[r.object].shape) for r in p.requirement.relations} & HELD_OUT_RELATIONS
        named |= {p.requirement.word} if p.requirement.word and is_held_out_word(p.requirement.word) else set()
        assert bool(named) == (p.category == "unseen"), p.text


def test_own_files(tmp_path):
    path = tmp_path / "evaluation_metadata.jsonl"  # GenEval's
    path.write_text('{"tag": "counting", "include": [], "prompt": "a picture of two circles"}\n{"prompt": "a star"}\n')
    first, second = prompt_set.load(str(path))
    assert (first.id, first.category, first.requirement.things[0].count) == ("00000", "counting", 2)
    assert (second.id, second.category) == ("00001", "all")


@pytest.mark.parametrize(
    "value, message",
    [
        ([{"prompt": "a red circel"}], r"p.json', entry 0: prompt 'a red circel': the word 'circel' is not in .* did you mean 'circle'"),
        ([{"prompt": "a star", "id": 1}, {"prompt": "a cross", "id": "1"}], "p.json', entry 1: a second prompt with id 1; expected one"),
        ([{"text": "a star"}], "p.json', entry 0 has no 'prompt'"),
        ([{"prompt": "a star", "category": 3}], "entry 0: 'category' is 3, expected text"),
    ],
)
def test_one_line_for_bad_files(tmp_path, value, message):
    (tmp_path / "p.json").write_text(json.dumps(value))
    with pytest.raises(UserError, match=message):
        prompt_set.load(str(tmp_path / "p.json"))
