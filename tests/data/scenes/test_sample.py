"""Scenes by number: the same in any order and process; nothing overlaps that should not; what is stated is so."""

import itertools
import json
import os
import subprocess
import sys
import zlib

import numpy as np
import pytest
from scipy import ndimage

from mmjax.core.errors import UserError
from mmjax.data.scenes import draw, pairs, splits
from mmjax.data.scenes.sample import CONFIGS, MOST, sample
from mmjax.data.scenes.splits import SPLITS
from mmjax.data.scenes.words import WORDS
from mmjax.data.scenes.world import RADIUS

FINE = 256


def ink(thing):
    whole = slice(0, FINE)
    share = draw.word_share if hasattr(thing, "text") else draw.share
    return share(thing, whole, whole, FINE) > 0.5


def digest():
    scenes = [sample(c, s, i).json() for c in CONFIGS for s in SPLITS for i in (0, 7, 12345678901)]
    scenes += [s.json() for i in range(7) for s in (*pairs.swap(i), *pairs.hard_negative(i)[:2])]
    return zlib.crc32(json.dumps(scenes).encode())


def test_the_same_in_any_order():
    forth = [sample("objects", "train", i) for i in range(30)]
    back = [sample("objects", "train", i) for i in reversed(range(30))]
    assert forth == back[::-1]
    assert len({json.dumps(s.json()) for s in forth}) == 30
    assert sample("objects", "train", 0) != sample("objects", "validation", 0)


@pytest.mark.slow  # a process that starts
def test_the_same_in_another_process():
    code = "from tests.data.scenes.test_sample import digest; print(digest())"
    environment = {**os.environ, "PYTHONHASHSEED": "5"}
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=environment)
    assert int(out.stdout) == digest()


@pytest.mark.parametrize("config", CONFIGS)
@pytest.mark.parametrize("split", SPLITS)
def test_nothing_overlaps_or_leaves_the_picture(config, split):
    """Seen in the ink itself: two things are at least two pixels of 64 apart, unless one stands on the other or lies inside it."""
    for i in range(12):
        scene = sample(config, split, i)
        related = {frozenset((r.subject, r.object)) for r in scene.relations if r.name in ("on top of", "inside")}
        things = [ink(t) for t in (*scene.objects, *([scene.word] if scene.word else []))]
        for one in things:
            assert one.any() and not (one[:2].any() or one[-2:].any() or one[:, :2].any() or one[:, -2:].any())
        for (i, one), (j, two) in itertools.combinations(enumerate(things), 2):
            near = one & ndimage.binary_dilation(two, iterations=8)
            if frozenset((i, j)) not in related:
                assert not near.any()


@pytest.mark.parametrize("split", ["train", "unseen"])
def test_the_stated_relation_is_the_only_one(split):
    """Told from the ink: by the boxes and centres of what is drawn, not by the sampler's own test."""
    seen = set()
    for i in range(120):
        scene = sample("relations", split, i)
        told = scene.relations[0]
        a, b = scene.objects[told.subject], scene.objects[told.object]
        assert (a.shape, a.colour) != (b.shape, b.colour) and a.colour != b.colour
        one, two = np.argwhere(ink(a)), np.argwhere(ink(b))
        dy, dx = b.y - a.y, b.x - a.x
        match told.name:
            case "left of" | "right of":
                ahead = dx if told.name == "left of" else -dx
                assert ahead > 0.15 and ahead > abs(dy)
            case "above" | "below":
                ahead = dy if told.name == "above" else -dy
                assert ahead > 0.15 and ahead > abs(dx)
                assert abs(two[:, 0].min() - one[:, 0].max()) > 2 or told.name == "below"
            case "on top of":
                assert abs(two[:, 0].min() - one[:, 0].max() - 1) <= 1  # contact, within a pixel of 256
                assert np.abs(a.x - b.x) < b.r
                near = ndimage.binary_dilation(ink(a), np.ones((3, 3)), iterations=2) & ink(b)
                assert near.any()
            case "inside":
                filled = ndimage.binary_fill_holes(ink(b))
                assert filled[tuple(one.T)].all() and told.subject > told.object  # drawn after its container
        seen.add(told.name)
    assert len(seen) == 6


def test_objects_of_a_picture():
    counts = {len(sample("objects", "train", i).objects) for i in range(100)}
    assert counts == {1, 2, 3, 4, 5, 6}
    for i in range(60):
        objects = sample("objects", "train", i).objects
        assert len({(o.shape, o.colour) for o in objects}) == len(objects)


def test_what_is_clear():
    scenes = [sample("clear", split, i) for split in SPLITS for i in range(100)]
    things = [o for scene in scenes for o in scene.objects]
    assert {len(scene.objects) for scene in scenes} == {1, 2} and {scene.background.kind for scene in scenes} == {"plain"}
    assert {o.size for o in things} == {"medium", "large"} and not any(o.outline for o in things)
    assert any(o.angle for o in things)


def test_counting():
    for i in range(80):
        objects = sample("counting", "train", i).objects
        first = objects[0]
        n = sum((o.shape, o.colour) == (first.shape, first.colour) for o in objects)
        assert 1 <= n <= 6 and len(objects) <= MOST
        assert {(o.shape, o.colour, o.size, o.outline) for o in objects[:n]} == {(first.shape, first.colour, first.size, first.outline)}


def test_words():
    words = [sample("text", "train", i).word for i in range(200)]
    assert {w.text for w in words} <= set(WORDS) and len({w.text for w in words}) > 80
    assert len({w.font for w in words}) == 5 and len({w.colour for w in words}) == 10
    assert all(w.isalpha() and w.isupper() and 3 <= len(w) <= 6 for w in WORDS) and len(set(WORDS)) == len(WORDS)


def test_unknown_names():
    with pytest.raises(UserError, match="no config 'object'; did you mean 'objects'"):
        sample("object", "train", 0)
    with pytest.raises(UserError, match="no split 'test'"):
        sample("objects", "test", 0)


def bag(scene):
    """What a scene's words are made of, in no order."""
    words = [w for o in scene.objects for w in (o.shape, o.colour)] + [r.name for r in scene.relations]
    return sorted(words)


def test_swaps_use_the_same_words_and_show_something_else():
    names = set()
    for i in range(60):
        one, two = pairs.swap(i)
        assert bag(one) == bag(two) and len(one.objects) == 2
        assert not splits.held_out(one) and not splits.held_out(two)
        if i % 2:
            (a, b), (c, d) = (
                [(s.objects[k].shape, s.objects[k].colour) for k in (s.relations[0].subject, s.relations[0].object)] for s in (one, two)
            )
            assert (a, b) == (d, c)
            names.add(one.relations[0].name)
        else:
            assert [o.colour for o in one.objects] == [o.colour for o in two.objects][::-1]
            assert [(o.shape, o.x, o.y) for o in one.objects] == [(o.shape, o.x, o.y) for o in two.objects]
        assert (draw.render(one, 64) != draw.render(two, 64)).any()
    assert len(names) == 6


def difference(one, two):
    return {
        name
        for a, b in zip(one.objects, two.objects, strict=False)
        for name in ("shape", "colour", "size", "outline")
        if getattr(a, name) != getattr(b, name)
    }


def test_hard_negatives_differ_by_what_they_say():
    seen = []
    for i in range(70):
        one, two, kind = pairs.hard_negative(i)
        seen.append(kind)
        match kind:
            case "add_att":
                assert difference(one, two) in ({"size"}, {"outline"})
            case "add_obj":
                assert two.objects[:-1] == one.objects and two.objects[-1].shape not in [o.shape for o in one.objects]
            case "replace_att":
                assert difference(one, two) == {"colour"} and two.objects[0].colour not in [o.colour for o in one.objects]
            case "replace_obj":
                assert difference(one, two) == {"shape"} and two.objects[0].shape not in [o.shape for o in one.objects]
            case "replace_rel":
                assert one.relations[0].name != two.relations[0].name
                assert sorted((o.shape, o.colour) for o in one.objects) == sorted((o.shape, o.colour) for o in two.objects)
            case "swap_att" | "swap_obj":
                assert bag(one) == bag(two) and bool(one.relations) == (kind == "swap_obj")
        assert not splits.held_out(one) and not splits.held_out(two)
        assert (draw.render(one, 64) != draw.render(two, 64)).any()
    assert seen == list(pairs.HARD_NEGATIVES) * 10


def test_containers_grow_and_nothing_else_does():
    for i in range(60):
        scene = sample("relations", "train", i)
        container = scene.relations[0].object if scene.relations[0].name == "inside" else None
        for k, o in enumerate(scene.objects):
            assert (o.r > max(RADIUS.values())) if k == container else (o.r == RADIUS[o.size])
