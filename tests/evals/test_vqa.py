"""The VQA accuracy; the values are those of the official vqaEval.py, run on these answers."""

import pytest

from mmjax.evals import vqa

TEN = [f"other {i}" for i in range(10)]


@pytest.mark.parametrize("matches, expected", list(enumerate([0.0, 0.3, 0.6, 0.9] + [1.0] * 7)))
def test_leave_one_out(matches, expected):
    assert vqa.accuracy("dog", ["dog"] * matches + TEN[matches:]) == pytest.approx(expected)


# fmt: off
NORMAL = [
    ("Yes", "yes"), ("The cat.", "cat"), ("a dog and an apple", "dog and apple"), ("the the", ""),
    # number words; "none" is a number too
    ("two", "2"), ("None", "0"), ("ten dogs", "10 dogs"), ("eleven", "eleven"),
    # A comma between digits makes all punctuation vanish; elsewhere a mark vanishes beside a space, and else is a space.
    ("1,000", "1000"), ("1,000 people, maybe", "1000 people maybe"), ("$1,000!-x", "$1000x"), ("red,white", "red white"),
    ("red, white", "red white"), ("t-shirt", "t shirt"), ("t - shirt", "t shirt"), ("black/white", "black white"), ("x_y", "x y"),
    ("(left)", "left"), ("what ?", "what"), ('"stop"', "stop"), ("A&B", "a&b"), ("3:30", "3:30"), ("$1.5", "$1.5"),
    # A period goes unless a digit follows, and of many only 32.
    ("1.5", "1.5"), ("5.", "5"), ("10.5.", "10.5"), ("U.S.A.", "usa"), ("a.m.", "am"), ("no.1", "no.1"), ("." * 34 + "x", "..x"),
    # contractions that lack one apostrophe; not two, not those the table has in capitals, and one is the wrong way round
    ("dont", "don't"), ("couldn'tve", "couldn't've"), ("couldnt've", "couldn't've"), ("couldntve", "couldntve"), ("Im", "im"),
    ("somebody'd", "somebodyd"), ("let's", "let's"), ("yall'd've", "y'all'd've"), ("ow's'at", "'ow's'at"), ("men's", "men's"),
]
# fmt: on


@pytest.mark.parametrize("answer, expected", NORMAL)
def test_normaliser(answer, expected):
    assert vqa.normalize(answer) == expected


def test_every_contraction_of_the_official_table():
    assert len(vqa._MISSPELT) == 114 and vqa._MISSPELT["hed"] == "he'd" and vqa._MISSPELT["'ow'sat"] == "'ow's'at"
    assert all(right.replace("'", "") == wrong.replace("'", "") for wrong, right in vqa._MISSPELT.items())


def test_nothing_is_normalised_where_all_answers_agree():
    assert vqa.accuracy("Yes", ["yes"] * 10) == 0.0  # the official code compares them as they stand
    assert vqa.accuracy(" yes\n", ["yes"] * 10) == 1.0  # but for spaces at the ends
    assert vqa.accuracy("Yes.", ["yes"] * 9 + ["no"]) == 1.0
    assert vqa.accuracy("2", ["two"] * 2 + TEN[2:]) == pytest.approx(0.6)
