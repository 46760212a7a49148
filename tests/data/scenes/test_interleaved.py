"""Interleaved documents and few-shot prompts."""

import pytest

from mmjax.core.errors import UserError
from mmjax.data.scenes import interleaved
from mmjax.data.scenes.splits import held_out

NUMBERS = {"one": 1, "two": 2, "three": 3, "four": 4}


@pytest.mark.parametrize("index", range(16))
def test_documents(index):
    one = interleaved.document("train", index)
    assert one.form == ("captions", "questions", "story", "edits")[index % 4]
    assert len(one.positions) == len(one.scenes) >= 1
    assert list(one.positions) == sorted(one.positions) and one.positions[-1] <= len(one.texts)
    assert one == interleaved.document("train", index)
    assert not any(map(held_out, one.scenes))


def test_what_a_story_counts_is_so():
    told = 0
    for index in range(2, 160, 4):
        one = interleaved.document("train", index)
        words = one.texts[-1].rstrip(".").lower().split()
        shape = next(s for s in interleaved.SHAPES if s in words or interleaved.plural(s) in words)
        n = sum(any(o.shape == shape for o in scene.objects) for scene in one.scenes)
        said = {"none": 0, "all": len(one.scenes)}.get(words[0]) if words[0] in ("none", "all") else NUMBERS[words[0]]
        assert said == n, one.texts[-1]
        told += words[0] not in ("none", "all")
    assert told > 10


@pytest.mark.parametrize("task", ["caption", "question", "count"])
@pytest.mark.parametrize("shots", [0, 3])
def test_few_shot(task, shots):
    one = interleaved.few_shot(task, shots, "validation", 5)
    assert len(one.texts) == len(one.scenes) == shots + 1
    assert one.positions == tuple(range(shots + 1))
    assert one.answer and not one.texts[-1].endswith(one.answer)
    assert all(len(text) > len(one.texts[-1]) - 60 for text in one.texts)
    others = [interleaved.few_shot(task, shots, "validation", i) for i in range(30)]
    assert len({o.answer for o in others}) > 3


def test_shots_come_from_train_and_are_not_the_question():
    for index in range(20):
        one = interleaved.few_shot("question", 4, "unseen", index)
        assert not any(map(held_out, one.scenes[:-1])) and held_out(one.scenes[-1])


def test_wrong_requests():
    with pytest.raises(UserError, match="'captions'; did you mean 'caption'"):
        interleaved.few_shot("captions", 1, "validation", 0)
    with pytest.raises(UserError, match="-1 shots"):
        interleaved.few_shot("caption", -1, "validation", 0)
