"""The caption tokenizer against what Stanford's gives (tests/golden/captions/make.py)."""

import json
from pathlib import Path

import pytest

from mmjax.evals import ptb

GOLDEN = json.loads((Path(__file__).parents[1] / "golden/captions/reference.json").read_text())["tokens"]


@pytest.mark.parametrize("text", GOLDEN)
def test_tokens_are_the_references(text):
    assert " ".join(ptb.tokenize(text)) == GOLDEN[text]


def test_what_is_dropped_and_what_survives():
    assert ptb.tokenize("He said, 'no' -- (twice)... really?!") == ["he", "said", "no", "-lrb-", "twice", "-rrb-", "really", "?!"]
    assert ptb.tokenize("") == ptb.tokenize(" \t\n") == ptb.tokenize("...") == []


def test_a_caption_stands_alone():
    """The reference reads on into the next caption; here a line break is a space like another."""
    assert ptb.tokenize("vitamin C.") == ["vitamin", "c."] and ptb.tokenize("no.\n5") == ["no.", "5"]
