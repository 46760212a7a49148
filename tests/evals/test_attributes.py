"""Colours, shapes and their binding are counted apart, beside chance."""

import dataclasses
from collections import Counter

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from ml_collections import ConfigDict

from mmjax import evals
from mmjax.core import config as config_lib
from mmjax.core import sharding
from mmjax.core.errors import UserError
from mmjax.data.scenes.prompts import parse
from mmjax.data.source import open_source, open_tokenizer
from mmjax.evals import attributes

COUNT = 6


@pytest.fixture(scope="module")
def asked():
    return attributes.prompts(COUNT)


def test_prompts(asked):
    assert [len(one.scene.objects) for one in asked] == [1] * COUNT + [2] * COUNT and len({one.text for one in asked}) == 2 * COUNT
    assert attributes.prompts(COUNT) == asked
    for one in asked:
        assert [o.colour for o in one.scene.objects] == [t.description.colour for t in parse(one.text).things]
        assert set(one.requirements) == set(attributes.ASKED[len(one.scene.objects)])


@pytest.mark.parametrize(("split", "known"), [("validation", 72), ("unseen", 8)])
def test_more_prompts_than_there_are_things(split, known):
    """There are 80 pairs of a shape and a colour, 8 of them held out: a prompt comes again, and no more often than it must."""
    asked = attributes.prompts(known + 4, split=split)
    texts = Counter(one.text for one in asked if len(one.scene.objects) == 1)
    assert texts.total() == known + 4 and len(texts) <= known and max(texts.values()) == 2
    assert len({one.scene for one in asked}) == len(asked)


def test_the_scenes_own_pictures_have_everything_right(asked):
    score = attributes.score(attributes.pictures(asked, 32), asked)
    assert all(m.mean == 1 and m.count == COUNT for m in score.categories.values())
    assert 0 <= score.chance["two objects: bound"] <= score.chance["two objects: colours"] < 0.5


def test_a_spot_has_a_colour_and_no_shape(asked):
    """Halves of the objects, which are no shapes that the oracle knows, have their colours right and nothing else."""
    one = [dataclasses.replace(a.scene.objects[0], x=0.5, size="large", radius=0.0) for a in asked[:COUNT]]
    left = [dataclasses.replace(a.scene, objects=(), word=None) for a in asked[:COUNT]]
    whole = attributes.pictures(
        [dataclasses.replace(a, scene=dataclasses.replace(s, objects=(o,))) for a, s, o in zip(asked, left, one, strict=False)], 64
    )
    none = attributes.pictures([dataclasses.replace(a, scene=s) for a, s in zip(asked, left, strict=False)], 64)
    half = np.where((np.arange(64) < 32)[:, None], whole, none)
    found = attributes.score(half, asked[:COUNT]).categories
    assert found["one object: colour"].mean >= 5 / 6 and found["one object: shape"].mean <= 1 / 6


def test_what_is_wrong_is_wrong_in_its_own_category(asked):
    """Two objects that have exchanged their colours: every colour and shape is there, and nothing is bound. Shapes must stay where they
    are, for an exchanged one may not find room."""
    swapped = []
    for one in asked:
        colours = [o.colour for o in one.scene.objects][::-1]
        objects = tuple(dataclasses.replace(o, colour=c) for o, c in zip(one.scene.objects, colours, strict=True))
        swapped.append(dataclasses.replace(one, scene=dataclasses.replace(one.scene, objects=objects)))
    found = attributes.score(attributes.pictures(swapped, 32), asked).categories
    assert found["two objects: colours"].mean == 1 and found["two objects: shapes"].mean == 1
    assert found["two objects: bound"].mean == 0 and found["one object: both"].mean == 1


def test_runs_are_pooled_by_prompt(asked):
    right = attributes.score(attributes.pictures(asked, 32), asked)
    none = attributes.score(np.full((len(asked), 32, 32, 3), 230, np.uint8), asked)
    both = attributes.pooled([right, none])["one object: both"]
    assert both["runs"] == [1.0, 0.0] and both["mean"] == both["low"] == both["high"] == 0.5 and both["count"] == COUNT


def test_of_a_model_that_draws():
    """It draws every prompt's own scene but the first's, which it leaves empty."""
    asked = attributes.prompts(2)
    data = config_lib.override(config_lib.base(), ["data.source=digits_captions"]).data
    tokens = jnp.asarray(open_tokenizer(open_source(data, "validation")).encode([one.text for one in asked], 24))
    known = jnp.asarray(attributes.pictures(asked, 32) / np.float32(255)).at[0].set(0.9)
    predict = {"text_to_image": lambda params, ids, keys: params["light"] * known[(ids[:, None] == tokens[None]).all(-1).argmax(1)]}
    group = {"type": "attributes", "every": 1, "split": "train", "batch_size": 3, "length": 24, "count": 2, "seed": 0}
    mesh = sharding.make_mesh({"data": 1}, jax.devices()[:1])
    # The prompts are those of the named split's scenes: what the first two were is not drawn for these.
    assert evals.make("a", predict, ConfigDict(group), mesh, data)({"light": jnp.float32(1)})["two_objects_bound"] < 1
    got = evals.make("a", predict, ConfigDict({**group, "split": "validation"}), mesh, data)({"light": jnp.float32(1)})
    one, two = ("colour", "shape", "both"), ("colours", "shapes", "bound")
    assert got == {**{f"one_object_{name}": 0.5 for name in one}, **{f"two_objects_{name}": 1.0 for name in two}}
    with pytest.raises(UserError, match="count is 0"):
        evals.make("a", predict, ConfigDict({**group, "count": 0}), mesh, data)
