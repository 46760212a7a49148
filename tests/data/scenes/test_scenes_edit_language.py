"""Edits: scenes after them worked by hand, instructions that say what is done."""

import json

import numpy as np
import pytest

from mmjax.core.errors import UserError
from mmjax.data.scenes.edit_language import GRAMMAR, KINDS, Edit, apply, edit, instruction
from mmjax.data.scenes.world import Object, Relation, Scene

RED = Object("circle", "red", "medium", 0.2, 0.2)
BLUE = Object("square", "blue", "medium", 0.8, 0.2)
STAR = Object("star", "pink", "small", 0.2, 0.8)
SCENE = Scene((RED, BLUE, STAR), relations=(Relation(0, "left of", 1), Relation(0, "above", 2)))
NEW = Object("heart", "green", "small", 0.85, 0.85)
EDITS = {
    "recolour": Edit("recolour", 0, "brown"),
    "move": Edit("move", 1, (0.5, 0.5)),
    "add": Edit("add", value=NEW),
    "remove": Edit("remove", 0),
    "outline": Edit("outline"),
}


def rng(seed):
    return np.random.default_rng(seed)


def test_what_edits_do():
    assert apply(EDITS["recolour"], SCENE).objects == (Object("circle", "brown", "medium", 0.2, 0.2), BLUE, STAR)
    assert apply(EDITS["recolour"], SCENE).relations == SCENE.relations
    moved = apply(EDITS["move"], SCENE)
    assert moved.objects[1].x == moved.objects[1].y == 0.5 and moved.objects[::2] == (RED, STAR)
    assert moved.relations == SCENE.relations  # a diagonal still counts as left
    assert apply(Edit("move", 1, (0.2, 0.5)), SCENE).relations == (Relation(0, "above", 2),)
    assert apply(EDITS["add"], SCENE).objects == (RED, BLUE, STAR, NEW)
    assert apply(EDITS["remove"], SCENE) == Scene((BLUE, STAR))
    assert apply(Edit("remove", 1), SCENE) == Scene((RED, STAR), relations=(Relation(0, "above", 1),))
    upper = Scene((RED, BLUE), relations=(Relation(0, "left of", 1),))
    twice = apply(EDITS["outline"], upper)
    assert twice.objects[:2] == (RED, BLUE) and twice.relations == upper.relations
    assert twice.objects[2:] == tuple(Object(o.shape, o.colour, o.size, o.x, o.y + 0.5, outline=True) for o in (RED, BLUE))
    with pytest.raises(ValueError, match="upper half"):
        apply(EDITS["outline"], SCENE)


def test_edits_survive_json():
    for change in EDITS.values():
        assert edit(json.loads(json.dumps(change.json()))) == change


def test_instructions_say_what_is_done():
    """The words that carry the edit are there, and slots point at them."""
    told = {"recolour": "brown", "move": "centre", "add": "green", "remove": "circle", "outline": "outline"}
    used, forms = set(), set()
    for kind, change in EDITS.items():
        scene = Scene(SCENE.objects[:2]) if kind == "outline" else SCENE
        for k in range(150):
            said = instruction(change, scene, rng(k))
            assert told[kind] in said.text, said.text
            used |= set(said.rules)
            forms.add(said.template)
            if kind == "recolour":
                (slot,) = [s for s in said.slots if s.kind == "new colour"]
                assert said.words[slot.start] == "brown" and slot.objects == (0,)
            if kind == "move":
                assert [s.objects for s in said.slots if s.kind == "new_place"] == [(1,)]
    own = {name for name in GRAMMAR.alternatives if name.split("/")[0] in (*KINDS, "panels", "things", "one")}
    assert own <= used, own - used
    assert len(forms) > 80


def test_where_something_is_added_is_true():
    for k in range(60):
        said = instruction(EDITS["add"], SCENE, rng(k)).text
        beside = [" of the star", "below the", "under the", "beneath the"]
        assert any(corner in said for corner in ("lower right", "bottom right")) or any(b in said for b in beside), said


def test_what_words_cannot_tell():
    twins = Scene((RED, Object("circle", "red", "medium", 0.8, 0.8)))
    assert instruction(Edit("remove", 0), twins, rng(0)) is None
    assert instruction(Edit("move", 0, (0.3, 0.3)), Scene((RED,)), rng(0)) is None  # it was in the upper left before
    assert instruction(Edit("move", 0, (0.41, 0.5)), Scene((RED,)), rng(0)) is None  # neither left nor middle


def test_messages():
    with pytest.raises(UserError, match="edit 'recolor'; did you mean 'recolour'"):
        apply(Edit("recolor", 0, "red"), SCENE)
    with pytest.raises(UserError, match="edit 'remove' of object 3: the scene has 3 objects"):
        instruction(Edit("remove", 3), SCENE, rng(0))
