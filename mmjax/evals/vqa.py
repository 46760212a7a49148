"""VQA accuracy as the official evaluation computes it (Antol et al. 2015, section 3; the vqaEval.py of VQA v1 and v2).

A question has ten answers of ten people. An answer's accuracy is min(1, matches / 3) against nine of them, averaged over the ten ways
to leave one out: 0.3, 0.6, 0.9 and 1 for one, two, three and four matches or more. The short cut min(1, matches / 3) over all ten gives
0.333, 0.667 and 1 and is another metric.
"""

import re
from collections.abc import Sequence

_CUT = re.compile(r"\d,\d")
_PUNCTUATION = ';/[]"{}()=+\\_-><@`,?!'
# The published pattern means to spare periods after digits, but "(?!<=\d)" looks ahead for "<=". It spares those before a digit.
_PERIOD = re.compile(r"\.(?!\d)")
_PERIODS = 32  # re.UNICODE was passed where `sub` takes a count: from the 33rd on they stay
_NUMBERS = {
    "none": "0",
    "zero": "0",
    "one": "1",
    "two": "2",
    "three": "3",
    "four": "4",
    "five": "5",
    "six": "6",
    "seven": "7",
    "eight": "8",
}
_NUMBERS |= {"nine": "9", "ten": "10"}
_ARTICLES = {"a", "an", "the"}

# As they should be written. The official table holds, for each, every spelling that lacks one apostrophe.
_CONTRACTIONS = """ain't aren't can't could've couldn't couldn't've didn't doesn't don't hadn't hadn't've hasn't haven't he'd he'd've he's
    how'd how'll how's isn't it'd it'd've it'll ma'am mightn't mightn't've might've mustn't must've needn't not've o'clock oughtn't
    'ow's'at shan't she'd've should've shouldn't shouldn't've somebody'd've somebody'll somebody's someone'd someone'd've someone'll
    someone's something'd something'd've something'll that's there'd there'd've there're there's they'd they'd've they'll they're
    they've 'twas wasn't we'd've we've weren't what'll what're what's what've when's where'd where's where've who'd who'd've who'll
    who's who've why'll why're why's won't would've wouldn't wouldn't've y'all y'all'll y'all'd've you'd you'd've you'll you're you've"""


def _misspelt() -> dict[str, str]:
    out = {}
    for right in _CONTRACTIONS.split():
        out |= {right[:i] + right[i + 1 :]: right for i, c in enumerate(right) if c == "'"}
    return out | {"somebody'd": "somebodyd"}  # the table has this one the wrong way round


_MISSPELT = _misspelt()


def clean(answer: str) -> str:
    """What is always done: line breaks and tabs to spaces, none at the ends."""
    return answer.replace("\n", " ").replace("\t", " ").strip()


def normalize(answer: str) -> str:
    """The official normaliser: punctuation, case, number words, articles, contractions.

    A punctuation mark goes if it stands beside a space somewhere in the answer, or if a comma stands between digits anywhere (then all
    of them go); otherwise it becomes a space.
    """
    cut = _CUT.search(answer)
    out = answer
    for mark in _PUNCTUATION:
        beside = f"{mark} " in answer or f" {mark}" in answer
        out = out.replace(mark, "" if beside or cut else " ")
    words = _PERIOD.sub("", out, count=_PERIODS).lower().split()
    words = [_NUMBERS.get(word, word) for word in words]
    return " ".join(_MISSPELT.get(word, word) for word in words if word not in _ARTICLES)


def accuracy(predicted: str, answers: Sequence[str]) -> float:
    """Of one prediction, 0 to 1, against two answers or more. As officially, nothing is normalised where all the answers are equal."""
    predicted, answers = clean(predicted), [clean(answer) for answer in answers]
    if len(set(answers)) > 1:
        predicted, answers = normalize(predicted), [normalize(answer) for answer in answers]
    same = [answer == predicted for answer in answers]
    matches = sum(same)
    return sum(min(1.0, (matches - own) / 3) for own in same) / len(answers)
