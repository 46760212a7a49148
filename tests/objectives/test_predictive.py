"""The caption-predicting objectives against sums written out word by word."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mmjax.objectives import predictive

START, END = 8, 9
TOKENS = np.array([[START, 3, 5, 3, END, 0], [START, 1, END, 0, 0, 0], [START, END, 0, 0, 0, 0], [START, 7, 6, 5, 4, END]], np.int32)
WORDS = [{3, 5}, {1}, set(), {7, 6, 5, 4}]


def log_softmax(x):
    x = np.asarray(x, np.float64)
    return x - np.log(np.exp(x).sum(-1, keepdims=True))


def test_a_bag_holds_each_word_once_and_neither_marks_nor_padding():
    bag = np.asarray(predictive.bag(jnp.asarray(TOKENS), 10))
    assert [set(np.flatnonzero(row)) for row in bag] == WORDS
    assert set(np.unique(bag)) == {0.0, 1.0}


def test_bag_of_words_is_the_mean_over_words_then_images():
    logits = np.random.default_rng(0).standard_normal((4, 10)).astype(np.float32)
    log_p = log_softmax(logits)
    want = [np.mean([log_p[i, w] for w in words]) if words else 0.0 for i, words in enumerate(WORDS)]
    value, metrics = predictive.bag_of_words(jnp.asarray(logits), jnp.asarray(TOKENS))
    np.testing.assert_allclose(predictive.bag_scores(jnp.asarray(logits), jnp.asarray(TOKENS)), want, rtol=1e-6)
    assert float(value) == pytest.approx(-np.mean(want), rel=1e-6)
    assert float(metrics["perplexity"]) == pytest.approx(np.exp(-np.mean(want)), rel=1e-6)


def test_captions_count_words_and_the_end():
    logits = np.random.default_rng(1).standard_normal((4, 6, 10)).astype(np.float32)
    log_p = log_softmax(logits)
    ends = [4, 2, 1, 5]
    want = [sum(log_p[i, t, TOKENS[i, t]] for t in range(1, end + 1)) for i, end in enumerate(ends)]
    np.testing.assert_allclose(predictive.caption_scores(jnp.asarray(logits), jnp.asarray(TOKENS)), want, rtol=1e-6)
    value, metrics = predictive.caption(jnp.asarray(logits), jnp.asarray(TOKENS))
    assert float(value) == pytest.approx(-np.mean(np.array(want) / ends), rel=1e-6)
    assert float(metrics["tokens"]) == np.mean(ends)


def test_what_is_not_counted_has_no_gradient():
    logits = jnp.asarray(np.random.default_rng(2).standard_normal((4, 6, 10)), jnp.float32)
    slope = np.asarray(jax.grad(lambda x: predictive.caption(x, jnp.asarray(TOKENS))[0])(logits))
    for i, end in enumerate([4, 2, 1, 5]):
        used = np.abs(slope[i]).max(1) > 0
        assert list(np.flatnonzero(used)) == list(range(1, end + 1))
