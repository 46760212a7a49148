"""Prompts: canonical forms, what they require, and messages."""

import re

import pytest

from mmjax.core.errors import UserError
from mmjax.data.scenes.prompts import CATEGORIES, Requirement, parse, prompt
from mmjax.data.scenes.sample import sample
from mmjax.data.scenes.world import Object, Relation, Scene, Word

RED = Object("circle", "red", "medium", 0.2, 0.5)
BLUE = Object("square", "blue", "medium", 0.8, 0.5)
SMALL = Object("circle", "blue", "small", 0.5, 0.1)
SCENE = Scene((RED, BLUE, SMALL), relations=(Relation(0, "left of", 1),), word=Word("ANT", "plain", "red", 0.5, 0.9, 0.1))


def test_canonical_prompts():
    assert {c: prompt(SCENE, c) for c in CATEGORIES} == {
        "single object": "a circle",
        "two objects": "a circle and a square",
        "counting": "two circles",
        "colours": "a red circle",
        "position": "a circle left of a square",
        "attribute binding": "a red circle and a blue square",
        "text rendering": 'the word "ANT"',
    }
    assert prompt(Scene((Object("arrow", "orange", "small", 0.5, 0.5),)), "single object") == "an arrow"


def test_a_scene_meets_its_own_prompts():
    asked = 0
    for config in ("objects", "relations", "counting", "text"):
        for k in range(30):
            scene = sample(config, "train", k)
            for category in CATEGORIES:
                try:
                    text = prompt(scene, category)
                except UserError:
                    continue
                assert parse(text).met(scene.objects, scene.word and scene.word.text), text
                assert parse(f"A picture of {text}.") == parse(text)
                asked += 1
    assert asked > 400


@pytest.mark.parametrize(
    "text, objects, met",
    [
        ("a red circle", (RED,), True),
        ("a red circle", (BLUE, SMALL), False),
        ("a red circle and a blue square", (RED, BLUE), True),
        ("a blue circle and a red square", (RED, BLUE), False),
        ("a circle and a circle", (RED,), False),
        ("a circle and a blue thing", (SMALL, RED), True),  # the first choice of a circle is the only blue thing
        ("two circles", (RED, SMALL), True),
        ("one circle", (RED, SMALL), False),
        ("a circle", (RED, SMALL), True),
        ("a circle left of a square", (RED, BLUE), True),
        ("a square left of a circle", (RED, BLUE), False),
        ("a square right of a circle", (RED, BLUE), True),
        ("two circles left of a blue square", (RED, SMALL, BLUE), False),  # the small one is more above it than left
        ("a small circle above a square", (SMALL, Object("square", "red", "small", 0.5, 0.8)), True),
        ("a large circle", (RED,), False),
    ],
)
def test_requirements(text, objects, met):
    assert parse(text).met(objects) is met


def test_words_to_draw():
    wanted = parse('a red circle and the word "cat"')
    assert wanted.word == "cat"
    assert wanted.met((RED,), "CAT") and not wanted.met((RED,), "CAR") and not wanted.met((RED,)) and not wanted.met((), "CAT")
    assert parse('the word "cat"') == Requirement((), (), "cat")


@pytest.mark.parametrize(
    "text, message",
    [
        ("a red sqare", "prompt 'a red sqare': the word 'sqare' is not in the grammar of scenes; did you mean 'square'?"),
        ("a photo of a circle", "the word 'photo' is not in the grammar of scenes"),
        ("red circle", "expected an article or a number at word 1, got 'red'"),
        ("a circle left", "expected a relation, 'and' or the end at word 3, got 'left'"),
        ("a red", "expected a shape at word 3, got the end"),
        ("a circle and", "expected an article or a number at word 4, got the end"),
        ("the word cat", "the word 'cat' is not in the grammar"),
        ("", "expected an article or a number at word 1, got the end"),
    ],
)
def test_outside_the_grammar(text, message):
    with pytest.raises(UserError, match=re.escape(message)):
        parse(text)


def test_scenes_without_what_it_takes():
    with pytest.raises(UserError, match="category 'position' needs a scene with a relation"):
        prompt(Scene((RED,)), "position")
    with pytest.raises(UserError, match="category 'two objects' needs a scene with 2 objects"):
        prompt(Scene((RED,)), "two objects")
    with pytest.raises(UserError, match="category 'colors' of prompts; did you mean 'colours'"):
        prompt(SCENE, "colors")
