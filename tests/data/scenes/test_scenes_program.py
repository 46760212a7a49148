"""The drawing language: round trips, and messages that name line and token."""

import re

import numpy as np
import pytest

from mmjax.core.errors import UserError
from mmjax.data.scenes.draw import render
from mmjax.data.scenes.program import execute, parse, program, write
from mmjax.data.scenes.sample import sample
from mmjax.data.scenes.world import Background, Object, Relation, Scene, Word

TEXT = """
background stripes shade 0.9 second 0.8 tint 0.1 seed 7   # a comment
circle red large at 0.3 0.4; star  blue small at 0.7 0.15 turned 12 outlined
square black large at 0.6 0.6 radius .25
word "CAT" plain green at 0.5 0.9 height 0.1
right_of(2, 1)
"""
WRITTEN = """background stripes shade 0.9 second 0.8 tint 0.1 seed 7
circle red large at 0.3 0.4
star blue small at 0.7 0.15 turned 12.0 outlined
square black large at 0.6 0.6 radius 0.25
word "CAT" plain green at 0.5 0.9 height 0.1
right_of(2, 1)
"""


def test_a_program_is_the_scene_it_draws():
    lines = parse(TEXT)
    assert write(lines) == WRITTEN and write(parse(WRITTEN)) == WRITTEN
    assert [line.number for line in lines] == [2, 3, 3, 4, 5, 6]
    assert execute(lines) == Scene(
        (
            Object("circle", "red", "large", 0.3, 0.4),
            Object("star", "blue", "small", 0.7, 0.15, 12.0, True),
            Object("square", "black", "large", 0.6, 0.6, radius=0.25),
        ),
        Background("stripes", 0.9, 0.8, 0.1, 7),
        (Relation(1, "right of", 0),),
        Word("CAT", "plain", "green", 0.5, 0.9, 0.1),
    )
    assert execute(parse("")) == Scene(())


@pytest.mark.parametrize("config", ["objects", "relations", "counting", "text"])
def test_every_scene_has_a_program_that_draws_the_same_picture(config):
    for k in range(25):
        scene = sample(config, "train", k)
        text = program(scene)
        again = execute(parse(text))
        assert again == scene and write(parse(text)) == text
        if k < 3:
            np.testing.assert_array_equal(render(again, 32), render(scene, 32))


@pytest.mark.parametrize(
    "text, message",
    [
        ("circel red", "line 1, token 1: expected a shape, 'background', 'word' or a relation, got 'circel'; did you mean 'circle'?"),
        ("\ncircle rd large at 0 0", "line 2, token 2: expected a colour, got 'rd'; did you mean 'red'?"),
        ("circle red large 0.1 0.2", "line 1, token 4: expected 'at', got '0.1'"),
        ("circle red large at 0.1", "line 1, token 6: expected a number (y), got the end of the line"),
        ("circle red large at 0.1 nan", "line 1, token 6: expected a number (y), got 'nan'"),
        ("circle red large at 0.1 0.2 0.3", "line 1, token 7: expected the end of the statement, got '0.3'"),
        ("word cat plain red at 0 0 height 1", "line 1, token 2: expected the word in quotation marks, got 'cat'"),
        ('word "cat" plian red at 0 0 height 1', "line 1, token 3: expected a font, got 'plian'; did you mean 'plain'?"),
        ("background plain seed 1.5", "line 1, token 4: expected a whole number (seed), got '1.5'"),
        ("background plain\nbackground dots", "line 2: a second background; a picture has one at most"),
        ("left_of(1, 2)", "line 1: there is no object 1 above it, only 0"),
        ("left_of(1 2)", "line 1, token 4: expected ',', got '2'"),
        ("star red small at 0.2 0.5\nstar red small at 0.8 0.5\nleft_of(2, 1)", "line 3: object 2 is not left of object 1"),
    ],
)
def test_messages(text, message):
    with pytest.raises(UserError, match=re.escape(f"drawing program, {message}")):
        execute(parse(text))
