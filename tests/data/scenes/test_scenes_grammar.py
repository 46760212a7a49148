"""The grammar engine: derivations, trees, tags, slots; and rules that cannot be."""

import re

import numpy as np
import pytest

from mmjax.data.scenes.grammar import Grammar, Leaf, Node, Slot, join, sentence


def rng(seed=0):
    return np.random.default_rng(seed)


def test_a_derivation_has_text_tree_tags_and_slots():
    grammar = Grammar(
        {
            "start o": ["(S (NP (EX there)) (VP (VBZ is) <np o>) (. .))"],
            "np o": ["(NP@colour:o (DT a) <adjective o> (NN arrow))"],
            "adjective o": lambda context, o: [(Leaf("JJ", context, ("colour", o)),)],
        }
    )
    one = grammar.derive("start", "orange", rng(), (3,))
    assert one.text == "There is an orange arrow."
    assert one.tree == "(S (NP (EX There)) (VP (VBZ is) (NP (DT an) (JJ orange) (NN arrow))) (. .))"
    assert list(zip(one.words, one.tags, strict=True)) == [
        *[("There", "EX"), ("is", "VBZ"), ("an", "DT"), ("orange", "JJ"), ("arrow", "NN"), (".", ".")]
    ]
    assert one.slots == (Slot("colour", (3,), 2, 5),)
    assert one.template == "There is COLOUR ."
    assert one.rules == ("start/0", "np/0")
    both = join([one, one])
    assert both.text == "There is an orange arrow. There is an orange arrow."
    assert both.slots[1] == Slot("colour", (3,), 8, 11) and both.tree.startswith("(TOP (S ") and len(both.words) == 12


def test_alternatives_are_equally_likely_and_the_generator_decides():
    grammar = Grammar({"start": ["(X a)", "(X b)", "(X c)", "(X d)"]})
    texts = [grammar.derive("start", None, rng(k)).text for k in range(2000)]
    assert texts == [grammar.derive("start", None, rng(k)).text for k in range(2000)]
    for letter in "abcd":
        assert abs(texts.count(letter) / 2000 - 0.25) < 0.04  # four standard deviations


def test_a_derivation_that_fails_is_tried_otherwise():
    rules = {"start t": ["(X <if t> (Y yes))", "(X (Y no))"], "if t": lambda context, t: [()] if t else []}
    grammar = Grammar(rules)
    assert {grammar.derive("start", None, rng(k), False).text for k in range(20)} == {"no"}
    assert {grammar.derive("start", None, rng(k), True).text for k in range(20)} == {"yes", "no"}
    assert Grammar({"start": ["(X <dead>)"], "dead": lambda context: []}).derive("start", None, rng()) is None


def test_marks_and_quotes_are_spaced_as_in_print():
    tree = Node(
        "S", tuple(Leaf(t, w) for t, w in [("DT", "a"), (",", ","), ("``", '"'), ("NN", "CAT"), ("''", '"'), (":", ";"), (".", "?")])
    )
    assert sentence(tree).text == 'A, "CAT";?'


@pytest.mark.parametrize(
    "rules, message",
    [
        ({"a": ["(X <b>)"]}, "rule 'a' calls 'b', which is no rule"),
        ({"a": ["(X <b>)"], "b t": ["(X x)"]}, "rule 'a' calls 'b' with 0 arguments"),
        ({"a t": ["(X x)"], "a u": ["(X x)"]}, "rule 'a' is defined twice"),
        ({"a": ["(X@colour:t x)"]}, "rule 'a' marks a slot of 't'"),
        ({"a": ["(X (Y y)"]}, "a bracket is left open"),
        ({"a": ["(X x) (Y y)"]}, "more than one tree"),
    ],
)
def test_rules_that_cannot_be(rules, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        Grammar(rules)
