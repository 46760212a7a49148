"""mmjax.evals.linear_probe: the search's steps, the fit against its own optimality condition, what is fitted on what."""

import jax.numpy as jnp
import numpy as np
import pytest
from ml_collections import ConfigDict

from mmjax import evals
from mmjax.core import config as config_lib
from mmjax.core import sharding
from mmjax.core.errors import UserError
from mmjax.evals import linear_probe
from mmjax.evals.linear_probe import fit, penalty, probe, scores, search

SHOWN = (("decode", {"channels": 1}), ("normalize", {"mean": 0.3, "std": 0.35}), ("keep", {"keys": ("image", "label")}))


def test_penalties_are_eight_a_decade_over_twelve():
    assert [penalty(s) for s in (0, 48, 96)] == pytest.approx([1e-6, 1.0, 1e6])
    assert penalty(9) / penalty(8) == pytest.approx(10 ** (1 / 8))


@pytest.mark.parametrize("peak", [0, 1, 37, 48, 95, 96])
def test_the_search_finds_a_single_peak_and_scores_at_most_15(peak):
    seen = []

    def score(step):
        seen.append(step)
        return -abs(step - peak)

    assert search(score) == peak
    assert seen[:7] == [0, 16, 32, 48, 64, 80, 96] and len(seen) == len(set(seen)) <= 15 and all(0 <= s <= 96 for s in seen)


def test_of_equal_scores_the_larger_penalty():
    assert search(lambda step: 0.0) == 96
    assert search(lambda step: float(step <= 40)) == 40


def blobs(rng, count, classes=3, width=5, spread=1.0):
    labels = rng.integers(0, classes, count).astype(np.int32)
    labels[:classes] = np.arange(classes)
    return (2 * np.eye(classes, width)[labels] + spread * rng.standard_normal((count, width))).astype(np.float32), labels


@pytest.mark.parametrize("classes", [2, 3])
def test_the_fit_is_a_minimum_of_the_stated_objective(classes):
    x, y = blobs(np.random.default_rng(0), 200, classes)
    step = 60
    model = fit(x.astype(np.float64), y, step)
    logits = scores(model, x, classes)
    p = np.exp(logits - logits.max(1, keepdims=True))
    residual = p / p.sum(1, keepdims=True) - np.eye(classes)[y]
    residual = residual[:, 1:] if classes == 2 else residual  # of two classes the second alone has weights
    gradient = residual.T @ x + penalty(step) * model.coef_
    assert np.abs(gradient).max() < 0.05 and np.abs(residual.sum(0)).max() < 0.05  # scikit-learn stops at 1e-4 of the mean
    far = (penalty(step) * np.abs(model.coef_)).max()
    assert far > 1  # the penalty's share of that gradient, which a wrong one would leave over


def test_a_class_never_trained_on_is_wrong_and_not_an_error():
    rng = np.random.default_rng(1)
    x, y = blobs(rng, 60)
    test = np.concatenate([x, x[:6]]), np.concatenate([y, np.full(6, 4, np.int32)])
    got = scores(fit(x, y, 40), test[0], 5)
    assert got.shape == (66, 5) and np.isneginf(got[:, 3:]).all()
    assert probe((x, y), (x, y), test)["accuracy"] <= 60 / 66


def test_the_last_fit_has_both_splits_and_is_judged_on_the_third(monkeypatch):
    rng = np.random.default_rng(2)
    train, validation, test = (blobs(rng, n, spread=1.5) for n in (40, 30, 50))
    sizes = []
    inner = linear_probe.fit
    monkeypatch.setattr(linear_probe, "fit", lambda x, y, step: sizes.append((len(x), step)) or inner(x, y, step))
    got = probe(train, validation, test)
    assert {n for n, _ in sizes[:-1]} == {40} and sizes[-1][0] == 70 and penalty(sizes[-1][1]) == got["penalty"]
    by_hand = [(inner(*train, s).predict(validation[0]) == validation[1]).mean() for _, s in sizes[:-1]]
    assert got["validation_accuracy"] == pytest.approx(max(by_hand))
    both = np.concatenate([train[0], validation[0]]), np.concatenate([train[1], validation[1]])
    assert got["accuracy"] == pytest.approx((inner(*both, sizes[-1][1]).predict(test[0]) == test[1]).mean())
    assert probe(train, validation, test) == got


def test_bad_features():
    x, y = blobs(np.random.default_rng(3), 20)
    with pytest.raises(UserError, match="features of `validation` are not finite"):
        probe((x, y), (np.where(x > 0, np.inf, x), y), (x, y))
    with pytest.raises(UserError, match="all training examples are of one class"):
        probe((x, np.zeros(20, np.int32)), (x, y), (x, y))


def test_on_the_digits_pixels():
    data = config_lib.override(config_lib.base(), ["data.source=digits_captions"]).data
    group = {"type": "linear_probe", "every": 1, "train": "train[:400]", "validation": "validation", "split": "test", "batch_size": 64}
    predict = {"image_features": lambda params, images: jnp.reshape(images, (images.shape[0], -1)) * params["gain"]}
    mesh = sharding.make_mesh({"data": 2, "fsdp": 2, "tensor": 2})
    got = evals.make("p", predict, ConfigDict({**group, "transforms": SHOWN}), mesh, data)({"gain": jnp.float32(1.0)})
    assert got["accuracy"] > 0.9 and 1e-6 <= got["penalty"] <= 1e6
    with pytest.raises(UserError, match="needs the predict function 'image_features'"):
        evals.make("p", {"logits": lambda params, images: images}, ConfigDict({**group, "transforms": SHOWN}), mesh, data)
