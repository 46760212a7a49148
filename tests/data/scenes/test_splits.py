"""What the splits must and may not contain, told without the sampler's own tests."""

from collections import Counter

import pytest

from mmjax.data.scenes import splits
from mmjax.data.scenes.sample import CONFIGS, HELD_OUT_WORDS, KNOWN_WORDS, sample
from mmjax.data.scenes.splits import BIAS, BIAS_STRENGTH, HELD_OUT_PAIRS, HELD_OUT_RELATIONS, SPLITS, held_out
from mmjax.data.scenes.words import WORDS
from mmjax.data.scenes.world import COLOURS, RELATIONS, SHAPES, Object, Scene, holds

MIRROR = {"left of": "right of", "right of": "left of", "above": "below", "below": "above"}


def shown(scene):
    """Everything that could be held out and is in the scene."""
    yield from ((o.shape, o.colour) for o in scene.objects)
    for a in scene.objects:
        yield from ((r, a.shape, b.shape) for b in scene.objects if b is not a for r in RELATIONS if holds(a, r, b))


def check_absent(config, split, n):
    for i in range(n):
        scene = sample(config, split, i)
        for item in shown(scene):
            assert item not in HELD_OUT_PAIRS and item not in HELD_OUT_RELATIONS, (i, item)
        assert scene.word is None or scene.word.text not in HELD_OUT_WORDS


@pytest.mark.parametrize("config", CONFIGS)
@pytest.mark.parametrize("split", ["train", "validation", "biased"])
def test_what_is_held_out_is_absent(config, split):
    check_absent(config, split, 150)


@pytest.mark.slow  # 100,000 scenes
@pytest.mark.parametrize("config", CONFIGS)
def test_what_is_held_out_is_absent_from_100_000_scenes(config):
    check_absent(config, "train", 25_000)


@pytest.mark.parametrize("config", CONFIGS)
def test_unseen_always_shows_something_held_out(config):
    kinds = Counter()
    for i in range(150):
        scene = sample(config, "unseen", i)
        found = {item for item in shown(scene) if item in HELD_OUT_PAIRS or item in HELD_OUT_RELATIONS}
        found |= {(scene.word.text,)} & {(w,) for w in HELD_OUT_WORDS} if scene.word else set()
        assert found and set(held_out(scene)) == found
        kinds.update(len(item) for item in found)
    if config == "relations":
        assert min(kinds[2], kinds[3]) > 30  # of pairs and of relations


def test_every_shape_colour_and_relation_occurs_in_train():
    assert {s for s, _ in HELD_OUT_PAIRS} == set(SHAPES) and len(HELD_OUT_PAIRS) == 8
    assert {r for r, _, _ in HELD_OUT_RELATIONS} == set(RELATIONS)
    scenes = [sample(c, "train", i) for c in ("objects", "relations") for i in range(400)]
    assert {o.shape for s in scenes for o in s.objects} == set(SHAPES)
    assert {o.colour for s in scenes for o in s.objects} == set(COLOURS)
    assert {r.name for s in scenes for r in s.relations} == set(RELATIONS)


def test_relations_are_held_out_both_ways():
    for name, a, b in HELD_OUT_RELATIONS:
        assert name not in MIRROR or (MIRROR[name], b, a) in HELD_OUT_RELATIONS


def test_words_are_split():
    assert set(KNOWN_WORDS) | set(HELD_OUT_WORDS) == set(WORDS) and not set(KNOWN_WORDS) & set(HELD_OUT_WORDS)
    assert 20 <= len(HELD_OUT_WORDS) <= 60


@pytest.mark.parametrize("config", ["objects", pytest.param("counting", marks=pytest.mark.slow)])
def test_biased_has_the_stated_correlation_and_train_has_not(config):
    for split, share, room in (("biased", BIAS_STRENGTH, 0.04), ("train", 1 / 9.0, 0.06)):
        drawn = Counter()
        for i in range(300):
            # Each pair once: in `counting` all of a group have the colour that was drawn once.
            drawn.update({(o.shape, o.colour) for o in sample(config, split, i).objects})
        of = {shape: sum(n for (s, _), n in drawn.items() if s == shape) for shape in BIAS}
        listed = {shape: drawn[shape, colour] for shape, colour in BIAS.items()}
        assert sum(listed.values()) / sum(of.values()) == pytest.approx(share, abs=room)
        assert all(listed[s] / of[s] == pytest.approx(share, abs=3 * room) for s in BIAS)


def test_held_out_names_what_it_finds():
    a, b = Object("star", "green", "small", 0.2, 0.5), Object("cross", "red", "small", 0.8, 0.5)
    assert set(held_out(Scene((a, b)))) == {("star", "green"), ("left of", "star", "cross"), ("right of", "cross", "star")}
    assert held_out(Scene((b,))) == []
    assert SPLITS == ("train", "validation", "biased", "unseen") and "red" in splits.colours("circle")
