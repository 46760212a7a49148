"""The relations between two objects, and the scene graph as plain data."""

import json

import pytest

from mmjax.data.scenes import world
from mmjax.data.scenes.sample import CONFIGS, sample
from mmjax.data.scenes.world import Object, holds


def thing(x, y, radius=0.1):
    return Object("circle", "red", "small", x, y, radius=radius)


@pytest.mark.parametrize(
    ("a", "b", "names"),
    [
        (thing(0.2, 0.5), thing(0.8, 0.5), ["left of"]),
        (thing(0.8, 0.52), thing(0.2, 0.5), ["right of"]),
        (thing(0.5, 0.2), thing(0.5, 0.8), ["above"]),
        (thing(0.52, 0.8), thing(0.5, 0.2), ["below"]),
        (thing(0.5, 0.4), thing(0.5, 0.6), ["on top of"]),
        (thing(0.5, 0.41), thing(0.5, 0.6), ["on top of"]),  # nearly in contact: so drawn, it is contact
        (thing(0.5, 0.61), thing(0.5, 0.4), []),  # what carries another thing is not said to be below it
        (thing(0.5, 0.5), thing(0.55, 0.5, 0.3), ["inside"]),
        (thing(0.5, 0.5, 0.3), thing(0.55, 0.5), []),
        (thing(0.5, 0.5), thing(0.65, 0.5), []),  # they overlap: no order between them
        (thing(0.3, 0.3), thing(0.6, 0.7), ["above"]),  # farther up than aside
        (thing(0.45, 0.5, 0.04), thing(0.55, 0.5, 0.04), []),  # apart, but too near to speak of an order
    ],
)
def test_relations(a, b, names):
    assert world.relations(a, b) == names


def test_a_margin_asks_for_room():
    a, b = thing(0.3, 0.5), thing(0.52, 0.5)
    assert holds(a, "left of", b) and holds(a, "left of", b, 0.01) and not holds(a, "left of", b, 0.05)


def test_an_unknown_relation():
    with pytest.raises(ValueError, match="no relation 'behind'"):
        holds(thing(0.2, 0.2), "behind", thing(0.8, 0.8))


@pytest.mark.parametrize("config", CONFIGS)
def test_a_scene_graph_survives_as_text(config):
    for i in range(20):
        scene = sample(config, "train", i)
        assert world.scene(json.loads(json.dumps(scene.json()))) == scene
