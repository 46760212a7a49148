"""The score of pictures whose scenes are known: true ones, ones with swapped attributes, and mixtures."""

import dataclasses

import numpy as np
import pytest

from mmjax.data.scenes import draw, prompts, sample
from mmjax.evals import judged
from mmjax.evals.oracle import Reading
from tests.evals import drawn
from tests.evals.drawn import picture, thing

A, B = thing("circle", "red", 0.25), thing("square", "blue", 0.75)
SWAPPED = (dataclasses.replace(A, colour="blue"), dataclasses.replace(B, colour="red"))
TURNED = (dataclasses.replace(A, x=0.75), dataclasses.replace(B, x=0.25))
# category, prompt, what meets it, what has the same parts and does not
CASES = [
    ("single object", "a circle", picture(A), picture(B)),
    ("two objects", "a circle and a square", picture(A, B), picture(A, thing("circle", "blue", 0.75))),
    ("counting", "two circles", picture(A, thing("circle", "red", 0.75)), picture(A)),
    ("colours", "a red circle", picture(A), picture(SWAPPED[0])),
    ("position", "a circle left of a square", picture(A, B), picture(*TURNED)),
    ("attribute binding", "a red circle and a blue square", picture(A, B), picture(*SWAPPED)),
    ("text rendering", 'the word "ANT"', picture(word="ANT"), picture(word="TAN")),
]
PROMPTS = drawn.prompts(*[case[:2] for case in CASES])
TRUE, FALSE = (np.stack([case[k] for case in CASES])[:, None] for k in (2, 3))


def test_true_scenes_score_one():
    found = judged.judge(TRUE, PROMPTS)
    assert found.overall().mean == 1.0 and set(m.mean for m in found.categories().values()) == {1.0} and found.nothing_seen() == 0
    assert found.failures(9) == []
    assert judged.seen(found.readings[4][0]) in ("a medium red circle, a medium blue square", "a medium blue square, a medium red circle")


def test_swapped_scenes_score_zero():
    found = judged.judge(FALSE, PROMPTS)
    assert found.overall().mean == 0.0 and len(found.failures(99)) == len(CASES)
    assert judged.seen(found.readings[6][0]) == 'the word "TAN"'
    two = judged.judge(TRUE[2:3], PROMPTS[2:3]).readings[0][0]
    assert judged.seen(two) == "a medium red circle x2" and judged.seen(two, ("shape",)) == "a circle x2"


def test_sampled_scenes_meet_their_own_prompts():
    scenes, asked = [], []
    for config, category in (("objects", "colours"), ("relations", "position"), ("counting", "counting"), ("text", "text rendering")):
        scenes += [sample.sample(config, "validation", i) for i in range(3)]
        asked += [(category, prompts.prompt(scene, category)) for scene in scenes[-3:]]
    pictures = np.stack([draw.render(scene, 128) for scene in scenes])[:, None]
    assert judged.judge(pictures, drawn.prompts(*asked)).overall().mean == 1.0


def test_mixtures_give_exact_fractions():
    """Of each category's pictures as many are true as is said; overall is the mean over categories, not over prompts."""
    one, two = PROMPTS[0], PROMPTS[3]
    rows = [[TRUE[0, 0]] * 3 + [FALSE[0, 0]], [FALSE[0, 0]] * 4, [TRUE[3, 0], *[FALSE[3, 0]] * 3]]
    found = judged.judge(np.array(rows), (one, dataclasses.replace(one, id="x"), two))
    assert {name: m.mean for name, m in found.categories().items()} == {"single object": 3 / 8, "colours": 1 / 4}
    overall = found.overall()
    assert overall.mean == 5 / 16 and overall.count == 3
    # two of the three prompts are a group with 0 or 3/4 each, the third is always 1/4
    assert (overall.low, overall.high) == (pytest.approx(1 / 8), pytest.approx(1 / 2))
    assert found.scalars() == {"overall": 5 / 16, "single_object": 3 / 8, "colours": 1 / 4, "nothing_seen": 0.0}
    assert found.plain()["prompts_with_a_right_picture"] == 2 / 3 and found.plain()["prompts"][0]["met"] == [True, True, True, False]
    assert "overall" in found.table() and "31.25" in found.table()
    assert found.failures(3) == [(0, 3), (1, 0), (2, 1)] and found.failures(2) == [(0, 3), (2, 1)]  # categories in turn, prompts first


def test_nothing_is_not_met():
    blank = np.full((1, 2, 64, 64, 3), 230, np.uint8)
    found = judged.judge(blank, PROMPTS[:1])
    assert found.nothing_seen() == 1.0 and not found.met.any() and found.readings[0][0] == Reading() and judged.seen(Reading()) == "nothing"
