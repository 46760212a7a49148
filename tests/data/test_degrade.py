"""BSRGAN's degradations: kernels by their moments, sizes, what is drawn by key, and quality that falls with strength."""

import numpy as np
import pytest

from mmjax.core.errors import UserError
from mmjax.data import degrade, transforms
from mmjax.data.bad import BadSample


def generator(seed=0):
    return np.random.default_rng(seed)


def scene(side=64):
    """A smooth picture with edges."""
    y, x = np.mgrid[:side, :side] / side
    disc = (x - 0.4) ** 2 + (y - 0.5) ** 2 < 0.06
    return np.stack([np.where(disc, 0.9, x), np.where(disc, 0.2, y), np.full_like(x, 0.3)], -1).astype(np.float32)


def psnr(a, b):
    return -10 * np.log10(np.mean((a - b) ** 2))


def test_kernels_have_the_moments_asked_for():
    kernel = degrade.gaussian_kernel(31, (2.0, 4.0), 0.7)
    y, x = np.mgrid[-15:16, -15:16]
    assert kernel.sum() == pytest.approx(1)
    moments = np.array([[(kernel * a * b).sum() for a in (x, y)] for b in (x, y)])
    turn = np.array([[np.cos(0.7), -np.sin(0.7)], [np.sin(0.7), np.cos(0.7)]])
    np.testing.assert_allclose(moments, turn @ np.diag([4.0, 16.0]) @ turn.T, rtol=0.01)


def test_filtering_is_a_convolution():
    picture, kernel = scene(9), degrade.gaussian_kernel(3, (1.0, 0.5), 0.3)
    got = degrade.filtered(picture, kernel)
    want = (picture[3:6, 4:7] * kernel[..., None]).sum((0, 1))
    np.testing.assert_allclose(got[4, 5], want, atol=1e-6)
    np.testing.assert_allclose(degrade.filtered(np.full_like(picture, 0.5), kernel), 0.5, atol=1e-6)


def test_a_jpeg_keeps_less_at_a_lower_quality():
    kept = [psnr(degrade.jpeg(scene(), quality), scene()) for quality in (10, 40, 95)]
    assert kept[0] < kept[1] < kept[2] and kept[2] > 28


def test_the_key_decides_and_strength_costs_quality():
    picture = scene()
    clean = degrade.Bsr(16, strength=0.0)(picture, generator())
    np.testing.assert_allclose(clean, np.clip(degrade.scaled(picture, (16, 16), "BICUBIC"), 0, 1))
    kept = []
    for strength in (0.1, 1.0, 3.0):
        bsr = degrade.Bsr(16, strength=strength)
        made = [bsr(picture, generator(seed)) for seed in range(12)]
        assert all(x.shape == (16, 16, 3) and x.dtype == np.float32 and x.min() >= 0 and x.max() <= 1 for x in made)
        np.testing.assert_array_equal(made[3], bsr(picture, generator(3)))
        assert np.abs(made[3] - made[4]).max() > 0.01
        kept.append(np.mean([psnr(x, clean) for x in made]))
    assert kept[0] > kept[1] + 2 and kept[1] > kept[2] + 2, kept


def test_as_a_transform():
    image = np.round(scene() * 255).astype(np.uint8)
    chain = transforms.build((("degrade", {"size": 16, "options": {"strength": 0.5}}), ("normalize", {})))
    out = chain({"image": image}, generator(1))
    assert out["low"].shape == (16, 16, 3) and out["low"].dtype == np.float32 and out["low"].min() < 0
    np.testing.assert_allclose(out["low"], 2 * degrade.Bsr(16, strength=0.5)(image.astype(np.float32) / 255, generator(1)) - 1, atol=1e-6)
    grey = transforms.build((("degrade", {"size": 16}),))({"image": image[..., :1]}, generator(1))
    assert grey["low"].shape == (16, 16, 1)
    with pytest.raises(BadSample, match="square uint8 images of at least 16"):
        chain({"image": image[:8]}, generator())
    for args, message in (
        ({"size": 4, "method": "bsrr"}, "bsr"),
        ({"size": 4, "options": {"strenth": 1}}, "strength"),
        ({"size": 0}, "positive size"),
    ):
        with pytest.raises(UserError, match=message):
            transforms.build((("degrade", args),))
