"""What is drawn: areas in closed form, places, layers, and the very bytes."""

import dataclasses
import math
import os
import subprocess
import sys
import zlib

import numpy as np
import pytest

from mmjax.data.scenes import draw, glyphs
from mmjax.data.scenes.sample import CONFIGS, sample
from mmjax.data.scenes.world import BACKGROUNDS, COLOURS, SHAPES, Background, Object, Scene, Word

WHITE = Background("plain", 1.0, 1.0)


def lens(distance, r):
    """Area common to the unit circle and one of radius r at that distance."""
    a = (distance**2 + 1 - r**2) / (2 * distance)
    b = distance - a
    half = math.sqrt(1 - a**2)
    return math.acos(a) - a * half + r**2 * math.acos(b / r) - b * half


# Of shapes of radius 1. The star: 10 triangles of area sin(36) * 1 * 0.45 / 2, stretched by 2 / (1 + cos 36). The heart: two half discs
# and what lies under them: the polygon through (1/2 +- 1/2 ...) is left to the numerical check.
AREAS = {
    "circle": math.pi,
    "square": 4.0,
    "triangle": 2.0,
    "star": 10 * math.sin(math.radians(36)) * 0.45 / 2 * 2 / (1 + math.cos(math.radians(36))),
    "cross": 4 - 4 * 0.62**2,
    "crescent": math.pi - lens(0.5, 0.75),
    "arrow": 0.5 * 2 * 1.1 + 0.76 * 0.9,
}


def black(o, size=256):
    """The share of ink of each pixel of an object drawn on white."""
    o = dataclasses.replace(o, colour="black")
    picture = draw.render(Scene((o,), dataclasses.replace(WHITE, tint=0.0)), size).astype(float)
    corner = picture[0, 0]
    ink = np.array(draw.PALETTE["black"], float)
    return ((corner - picture) / (corner - ink)).mean(-1)


@pytest.mark.parametrize("shape", AREAS)
@pytest.mark.parametrize("angle", [0.0, 17.0])
def test_area(shape, angle):
    o = Object(shape, "red", "large", 0.5, 0.48, angle)
    assert black(o).sum() / 256**2 == pytest.approx(AREAS[shape] * 0.2**2, rel=0.004)


def test_heart_fills_its_square_and_is_symmetric():
    ink = black(Object("heart", "red", "large", 0.5, 0.5))
    np.testing.assert_allclose(ink, ink[:, ::-1], atol=0.01)
    rows, columns = np.flatnonzero(ink.max(1) > 0.5), np.flatnonzero(ink.max(0) > 0.5)
    assert (rows[0], rows[-1]) == pytest.approx((256 * 0.3, 256 * 0.7 - 1), abs=3)
    assert (columns[0], columns[-1]) == pytest.approx((256 * 0.3, 256 * 0.7 - 1), abs=1.5)


@pytest.mark.parametrize("shape", SHAPES)
def test_upright_shapes_fill_their_square(shape):
    ink = black(Object(shape, "red", "large", 0.5, 0.5))
    rows, columns = np.flatnonzero(ink.max(1) > 0.1), np.flatnonzero(ink.max(0) > 0.1)
    assert rows[0] / 256 == pytest.approx(0.3, abs=0.012) and (rows[-1] + 1) / 256 == pytest.approx(0.7, abs=0.012)
    assert columns[0] / 256 == pytest.approx(0.3, abs=0.012)
    assert (columns[-1] + 1) / 256 == pytest.approx(0.5 + 0.2 * (0.69 if shape == "crescent" else 1), abs=0.012)


def test_an_outline_is_the_shape_without_the_smaller_one():
    whole, outline = black(Object("square", "red", "large", 0.5, 0.5)), black(Object("square", "red", "large", 0.5, 0.5, outline=True))
    within = black(Object("square", "red", "large", 0.5, 0.5, radius=0.2 - 0.2 * draw.STROKE))
    np.testing.assert_allclose(outline, whole - within, atol=0.05)


def test_angles_are_clockwise():
    up, right = Object("arrow", "red", "large", 0.5, 0.5), Object("arrow", "red", "large", 0.5, 0.5, angle=90.0)
    np.testing.assert_allclose(black(right), np.rot90(black(up), -1), atol=0.02)


def test_the_last_is_on_top():
    one, two = Object("circle", "red", "large", 0.5, 0.5), Object("circle", "blue", "small", 0.5, 0.5)
    assert tuple(draw.render(Scene((one, two), WHITE), 64)[32, 32]) == draw.PALETTE["blue"]
    assert tuple(draw.render(Scene((two, one), WHITE), 64)[32, 32]) == draw.PALETTE["red"]


def test_sixteen_is_the_average_of_sixty_four():
    scene = sample("objects", "train", 3)
    fine = draw.render(scene, 64).reshape(16, 4, 16, 4, 3).astype(float).mean((1, 3))
    assert np.abs(draw.render(scene, 16) - fine).max() <= 0.5


@pytest.mark.parametrize("config", CONFIGS)
def test_sizes_show_the_same_scene(config):
    for i in range(4):
        scene = sample(config, "train", i)
        fine = draw.render(scene, 256).reshape(64, 4, 64, 4, 3).astype(float).mean((1, 3))
        assert np.abs(draw.render(scene, 64) - fine).mean() < 1.5


@pytest.mark.parametrize("kind", BACKGROUNDS)
def test_backgrounds_are_pale(kind):
    """So that no colour of the palette is hard to see: between the two shades, nearly grey."""
    picture = draw.render(Scene((), Background(kind, 0.9, 0.8, 0.3, 5)), 64).astype(int)
    assert picture.max() <= round(0.9 * 255) and picture.min() >= int(0.8 * 255 * (1 - draw.TINT)) - 1
    assert (picture.max(-1) - picture.min(-1)).max() <= 255 * draw.TINT
    assert (kind == "plain") == (len(np.unique(picture.reshape(-1, 3), axis=0)) == 1)


def test_colours_are_apart():
    palette = np.array([draw.PALETTE[c] for c in COLOURS], float)
    apart = np.linalg.norm(palette[:, None] - palette[None], axis=-1) + 999 * np.eye(10)
    assert apart.min() > 90
    greys = np.linspace(0.7 * 255, 255, 9)[:, None, None] * np.ones(3)
    assert np.linalg.norm(palette[None] - greys, axis=-1).min() > 90


@pytest.mark.parametrize("font", glyphs.FONTS)
def test_glyphs_are_apart_and_stay_in_their_cells(font):
    whole = slice(0, 64)
    f = glyphs.FONTS[font]
    drawn = {c: draw.word_share(Word(c, font, "black", 0.5, 0.5, 0.5), whole, whole, 64) for c in glyphs.ALPHABET}
    assert len(drawn) == 36
    for c, ink in drawn.items():
        rows, columns = np.flatnonzero(ink.max(1) > 0.6), np.flatnonzero(ink.max(0) > 0.6)
        half = (f.width + abs(f.slant)) / 2 * 32
        assert columns[0] >= 32 - half - 0.5 and columns[-1] <= 32 + half - 0.5 and (rows[0], rows[-1]) == (16, 47), c
        for other, there in drawn.items():
            assert other == c or ((ink - there) ** 2).sum() > 0.06 * (ink**2).sum(), (c, other)


def test_a_word_fills_its_box():
    word = Word("HOT", "plain", "black", 0.5, 0.4, 0.2)
    ink = draw.word_share(word, slice(0, 256), slice(0, 256), 256)
    wide, high = draw.word_half_box(word)
    rows, columns = np.flatnonzero(ink.max(1) > 0.5), np.flatnonzero(ink.max(0) > 0.5)
    assert (columns[0] / 256, (columns[-1] + 1) / 256) == pytest.approx((0.5 - wide, 0.5 + wide), abs=0.005)
    assert (rows[0] / 256, (rows[-1] + 1) / 256) == pytest.approx((0.4 - high, 0.4 + high), abs=0.005)


def test_a_size_that_is_none():
    with pytest.raises(ValueError, match="one of"):
        draw.render(Scene(()), 48)


# CRC-32 of the first four pictures of split train, by config and size: the same on any machine. A change of what is drawn changes them.
BYTES = {
    "objects": [2644452914, 2689118070, 2470128754, 971856702, 1825446242],
    "few": [1488387538, 2815821247, 464505194, 1994705477, 2184036732],
    "clear": [3553807753, 2823868508, 2664615206, 552211103, 3525988805],
    "relations": [3762063829, 3404691742, 539860065, 1178344538, 1646665508],
    "counting": [642872802, 4107654080, 720424926, 1765505115, 3928818893],
    "text": [1443659344, 3431944342, 3163942194, 1237605168, 1988331611],
}


def crcs():
    return {
        config: [
            zlib.crc32(np.stack([draw.render(sample(config, "train", i), size) for i in range(4)]).tobytes()) for size in draw.IMAGE_SIZES
        ]
        for config in CONFIGS
    }


def test_the_bytes_are_the_same_as_ever():
    assert crcs() == BYTES


@pytest.mark.slow  # two processes that start
def test_the_bytes_are_the_same_in_any_process():
    code = "from tests.data.scenes.test_draw import crcs; print(crcs())"
    for seed in ("1", "77"):
        environment = {**os.environ, "PYTHONHASHSEED": seed, "OMP_NUM_THREADS": seed}
        out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=environment)
        assert out.stdout.strip() == str(BYTES)
