"""The oracle against the scenes it reads, and against pictures that show nothing.

The full numbers, over 10,000 scenes a config, are those of tests/benchmarks/oracle.py in results/oracle.json.
"""

import dataclasses

import numpy as np
import pytest

from mmjax.data.scenes import draw, glyphs
from mmjax.data.scenes.sample import CONFIGS
from mmjax.data.scenes.world import COLOURS, SHAPES, SIZES, Background, Object, Scene, Word, relations
from mmjax.evals import oracle
from tests.evals import adversarial
from tests.evals.readings import Tally, pictures, same, scenes


def tally(config, n, size=64, split="validation", **harm):
    numbered = scenes(config, split, n, size)
    out = Tally()
    for (i, scene), reading in zip(numbered, oracle.read(pictures(numbered, size, **harm)), strict=True):
        out.add(i, scene, reading)
    return out


@pytest.mark.parametrize("config", CONFIGS)
def test_clean_pictures_are_read_without_a_fault(config):
    assert tally(config, 12).wrong == []


@pytest.mark.slow
@pytest.mark.parametrize("config", CONFIGS)
@pytest.mark.parametrize("split", ["train", "unseen"])
def test_many_clean_pictures(config, split):
    t = tally(config, 150, split=split)
    assert t.right >= 0.999 * t.objects and t.false <= 0.001 * t.pictures and t.words_right >= 0.99 * t.words


@pytest.mark.parametrize("size", [128, 256])
def test_larger_pictures(size):
    assert tally("relations", 4, size).wrong == [] and tally("text", 3, size).wrong == []


@pytest.mark.parametrize(("config", "size", "n"), [("objects", 32, 15), ("relations", 32, 15), ("objects", 16, 15)])
def test_smaller_pictures(config, size, n):
    t = tally(config, n, size)
    assert t.right == t.objects and t.false == 0


def test_blur_and_noise():
    t = tally("objects", 15, blur=1.0, noise=0.1)
    assert t.right >= 0.95 * t.objects and t.false <= 1


@pytest.mark.parametrize("shape", SHAPES)
def test_every_colour_size_and_angle(shape):
    for k, colour in enumerate(COLOURS):
        o = Object(shape, colour, SIZES[k % 3], 0.4 + 0.02 * k, 0.6, 36.0 * k, outline=k % 2 == 1)
        reading = oracle.read(draw.render(Scene((o,), Background("checks", 0.9, 0.82, 0.1 * k, k)), 64)[None])[0]
        (seen,) = reading.objects
        assert same(o, seen) and seen.outline == o.outline and reading.word is None
        assert seen.radius == pytest.approx(o.r, abs=0.004)
        period = {"circle": 1, "square": 90, "cross": 90}.get(shape, 360)
        assert abs((seen.angle - o.angle + period / 2) % period - period / 2) < 4
        assert 0.5 < seen.confidence <= 1


@pytest.mark.parametrize("font", glyphs.FONTS)
def test_words_are_read_letter_by_letter(font):
    """Strings that are in no list, of all letters and digits."""
    for k, text in enumerate(("QXZJ", "VWKB", "08OD", "5S2Z", "6G98", "1I47", "MNHU", "PRFE")):
        word = Word(text, font, COLOURS[k], 0.5, 0.4, 0.2 if font != "wide" else 0.18)
        reading = oracle.read(draw.render(Scene((), word=word), 64)[None])[0]
        assert reading.word is not None and (reading.word.text, reading.word.font, reading.word.colour) == (text, font, COLOURS[k])
        assert reading.objects == () and reading.word.confidence > 0.5
        assert max(abs(reading.word.x - word.x), abs(reading.word.y - word.y), abs(reading.word.height - word.height)) < 0.01


def test_a_reading_tells_the_relations_of_the_scene():
    for _, scene in scenes("relations", "validation", 15):
        objects = [s.object() for s in oracle.read(draw.render(scene, 64)[None])[0].objects]
        told = scene.relations[0]
        a, b = (next(o for o in objects if same(scene.objects[i], o)) for i in (told.subject, told.object))
        assert relations(a, b) == [told.name]


def nothing_in(i):
    """Asserts that no known thing is seen in an adversarial picture; where things of no known shape are, blobs may be."""
    kind, picture = adversarial.picture(i)
    reading = oracle.read(picture[None])[0]
    assert reading.objects == () and reading.word is None, (i, kind)
    assert kind in ("half", "cut off", "foreign", "grey") or len(reading.blobs) <= (kind == "stripes"), (i, kind)
    return kind, reading


def test_nothing_is_reported_where_nothing_is():
    for i in range(3 * len(adversarial.KINDS)):
        nothing_in(i)


@pytest.mark.slow
def test_nothing_is_reported_in_210_adversarial_pictures():
    found = [nothing_in(i) for i in range(210)]
    assert sum(len(reading.blobs) for kind, reading in found if kind == "stripes") <= 1
    assert sum(len(reading.blobs) > 0 for kind, reading in found if kind in ("half", "cut off")) >= 58


def test_what_has_a_colour_and_no_known_shape_is_a_blob():
    """A ragged spot, a ring too wide for any thing, a speck."""
    rng = np.random.default_rng(0)
    y, x = (np.mgrid[:64, :64] - 31.5) / 64
    radius = 0.16 + 0.06 * np.sin(3 * np.arctan2(y, x)) * (x > 0)
    pictures = np.full((3, 64, 64, 3), 225.0) + rng.normal(0, 1, (3, 64, 64, 3))
    red = draw.PALETTE["red"]
    pictures[0][np.hypot(x, y) < radius] = red
    pictures[1][np.abs(np.hypot(x, y) - 0.4) < 0.02] = red
    pictures[2][30:33, 30:34] = red
    spot, ring, speck = oracle.read(pictures.clip(0, 255).astype(np.uint8))
    assert [blob.colour for blob in spot.blobs] == ["red"] and spot.objects == ()
    assert abs(spot.blobs[0].area - (np.hypot(x, y) < radius).mean()) < 0.005
    assert ring.blobs == speck.blobs == () and ring.objects == speck.objects == ()


def test_floats_are_read_as_bytes_are():
    picture = pictures(scenes("objects", "validation", 1), 64)
    one, two = oracle.read(picture)[0], oracle.read(picture.astype(np.float32) / 255)[0]
    assert [(o.shape, o.colour, o.size) for o in one.objects] == [(o.shape, o.colour, o.size) for o in two.objects]


@pytest.mark.slow  # processes that start
def test_processes_read_the_same():
    shown = pictures(scenes("objects", "validation", 6), 32)
    alone, shared = oracle.read(shown), oracle.read(shown, workers=2)
    rounded = lambda readings: [[dataclasses.replace(o, x=round(o.x, 6), y=round(o.y, 6)).shape for o in r.objects] for r in readings]
    assert rounded(alone) == rounded(shared)


@pytest.mark.parametrize(
    ("shape", "dtype", "says"),
    [((2, 64, 64), np.uint8, "side of at least 16"), ((1, 64, 32, 3), np.uint8, "side"), ((1, 64, 64, 3), np.int32, "uint8 or floats")],
)
def test_pictures_of_another_form(shape, dtype, says):
    with pytest.raises((ValueError, TypeError), match=says if len(shape) == 4 else None):
        oracle.read(np.zeros(shape, dtype))
