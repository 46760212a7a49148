"""PSNR and SSIM against float64 restatements; the evaluation of an autoencoder whose errors are known."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from ml_collections import ConfigDict
from scipy.signal import convolve2d

from mmjax import evals
from mmjax.core import config as config_lib
from mmjax.core import sharding
from mmjax.core.errors import UserError
from mmjax.evals.reconstruction import psnr, ssim
from tests.sets import write_jsonl


def pictures(seed, shape=(3, 20, 17, 2)):
    r = np.random.default_rng(seed)
    x = r.uniform(size=shape)
    return x, np.clip(x + r.normal(size=shape) * np.array([0.02, 0.1, 0.4]).reshape(-1, 1, 1, 1), 0, 1)


def test_psnr_by_hand():
    x, y = pictures(0)
    want = [10 * np.log10(1 / np.mean((a - b) ** 2)) for a, b in zip(x, y, strict=True)]
    np.testing.assert_allclose(psnr(jnp.asarray(x, jnp.float32), jnp.asarray(y, jnp.float32)), want, rtol=1e-5)
    assert float(psnr(jnp.ones((1, 2, 2, 1)), jnp.ones((1, 2, 2, 1)))[0]) == 100


def test_ssim_in_float64():
    x, y = pictures(1)
    at = np.arange(11) - 5.0
    window = np.exp(-(at[:, None] ** 2 + at[None] ** 2) / (2 * 1.5**2))
    window /= window.sum()
    mean = lambda a: convolve2d(a, window, mode="valid")

    def one(a, b):
        ma, mb = mean(a), mean(b)
        va, vb, cov = mean(a * a) - ma**2, mean(b * b) - mb**2, mean(a * b) - ma * mb
        c1, c2 = 0.01**2, 0.03**2
        return ((2 * ma * mb + c1) * (2 * cov + c2) / ((ma**2 + mb**2 + c1) * (va + vb + c2))).mean()

    want = [np.mean([one(a[..., c], b[..., c]) for c in range(2)]) for a, b in zip(x, y, strict=True)]
    got = ssim(jnp.asarray(x, jnp.float32), jnp.asarray(y, jnp.float32))
    np.testing.assert_allclose(got, want, atol=2e-5)
    assert want[0] > want[1] > want[2]
    np.testing.assert_allclose(ssim(jnp.asarray(x), jnp.asarray(x)), 1, rtol=1e-5)


SHOWN = (
    ("decode", {"channels": 1}),
    ("resize", {"size": (16, 16)}),
    ("normalize", {"mean": 0.5, "std": 0.5}),
    ("keep", {"keys": ("image",)}),
)
GROUP = {"type": "reconstruction", "every": 1, "split": "train", "batch_size": 8, "transforms": SHOWN}


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    path = write_jsonl(tmp_path_factory.mktemp("set"), 13, broken=(5,))
    return config_lib.override(config_lib.base(), ["data.source=jsonl", f"data.path={path}"]).data


def darker(by):
    """An autoencoder whose latent is the picture and whose pictures are darker by so many of 255 levels; unit variance 0.04."""
    return {
        "encode": lambda params, x: jnp.concatenate([x, jnp.full_like(x, np.log(0.04))], -1),
        "decode": lambda params, z: z - by * 2 / 255,
    }


def test_the_evaluation_of_known_errors(data):
    mesh = sharding.make_mesh({"data": 2}, jax.devices()[:2])
    evaluate = evals.make("r", darker(0), ConfigDict(GROUP), mesh, data)
    exact = evaluate({})
    assert exact["psnr"] == 100 and exact["ssim"] == pytest.approx(1, abs=1e-5) and exact["l1"] == 0
    assert exact["n"] == 12 and exact["bad_samples"] == 1
    off = evals.make("r", darker(10), ConfigDict(GROUP), mesh, data)({})
    assert 0.9 * 10 / 255 < off["l1"] <= 10 / 255 + 1e-6  # black cannot be darker
    assert off["psnr"] == pytest.approx(20 * np.log10(255 / 10), abs=1) and off["ssim"] < 0.9999
    images = np.concatenate(
        [evaluate.transform(dict(evaluate.source[i]), np.random.default_rng(0))["image"].ravel() for i in range(13) if i != 5]
    )
    assert off["latent_mean"] == pytest.approx(images.mean(), abs=1e-5)
    assert off["latent_std"] == pytest.approx(np.sqrt(images.var() + 0.04), rel=1e-5)
    assert "train" in evaluate.told() and "features" not in evaluate.told()


def test_a_frechet_distance_where_features_are_given(data, monkeypatch):
    """Of features that are a picture's mean and its first pixel: a shift of the mean alone is its square."""
    from mmjax.evals import reconstruction
    from mmjax.evals.features import Features

    both = lambda params, x: jnp.stack([x.mean((1, 2, 3)), x[:, 0, 0, 0]], -1) * params
    made = Features("frechet_toy_features", "toy", "a toy", 2, 0, jnp.float32(1), both)
    monkeypatch.setattr(reconstruction, "open_features", lambda group, where: made)
    group = ConfigDict({**GROUP, "features": {"type": "checkpoint", "path": "x"}})
    mesh = sharding.make_mesh({"data": 1}, jax.devices()[:1])
    evaluate = evals.make("r", darker(0), group, mesh, data)
    assert evaluate({})["frechet_toy_features"] == pytest.approx(0, abs=1e-9)
    assert evals.make("r", darker(64), group, mesh, data)({})["frechet_toy_features"] > 1e-2
    assert evaluate.told().endswith("features of a toy")


def test_refusals(data):
    mesh = sharding.make_mesh({"data": 1}, jax.devices()[:1])
    small = tuple(s if s[0] != "resize" else ("resize", {"size": (8, 8)}) for s in SHOWN)
    with pytest.raises(UserError, match="SSIM has a window of 11 pixels, and the pictures have 8 x 8"):
        evals.make("r", darker(0), ConfigDict({**GROUP, "transforms": small}), mesh, data)({})
    with pytest.raises(UserError, match="needs the predict function 'decode'"):
        evals.make("r", {"encode": len}, ConfigDict(GROUP), mesh, data)
    assert {"fid", "clip_score"} <= set(evals.EVALS)
