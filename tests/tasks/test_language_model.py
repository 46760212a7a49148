"""The next-token task: what counts, what it costs, and that what is written is what its logits say."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from ml_collections import ConfigDict

from mmjax import tasks
from mmjax.core.config import base
from mmjax.core.errors import UserError
from mmjax.objectives.next_token import next_token
from mmjax.tasks.language_model import Rows, said

LM = {"vocab": 20, "length": 16, "width": 16, "depth": 2, "heads": 2, "mlp": 32}
ROWS, LENGTH, END = 3, 10, 19


def config(**model):
    c = base()
    c.task, c.batch_size = "language_model", ROWS
    c.model = ConfigDict({"lm": LM, "length": LENGTH, **model})
    return c


@pytest.fixture(scope="module")
def packed():
    """A task of packed rows and its parameters."""
    task = tasks.make(config(packed=True, z_loss=1e-2))
    return task, jax.jit(task.init)(jax.random.key(0))


def row(*texts):
    """A packed row's `tokens`, `segments` and `positions`."""
    out = np.zeros((3, LENGTH), np.int32)
    at = 0
    for number, text in enumerate(texts, 1):
        out[:, at : at + len(text)] = text, [number] * len(text), range(len(text))
        at += len(text)
    return out


TEXTS = ([3, 7, 1, 19], [5, 5, 2, 8, 19], [4, 6, 11, 13, 2, 9], [1, 2])
BATCH = dict(zip(("tokens", "segments", "positions"), np.stack([row(*TEXTS[:2]), row(*TEXTS[2:]), row()], 1), strict=True))


def test_what_is_to_be_said():
    tokens = jnp.array([[19, 4, 5, 19, 19], [19, 19, 1, 0, 0], [3, 4, 5, 6, 7]])
    # The end token may be the start token too: only a later one ends a text, and it is to be said itself.
    assert said({"tokens": tokens}, Rows(5, end=END)).tolist() == [[1, 1, 1, 1, 0], [1, 1, 0, 0, 0], [1, 1, 1, 1, 1]]
    segments = jnp.array([[1, 1, 2, 2, 0]])
    assert said({"tokens": tokens[:1], "segments": segments}, Rows(5, packed=True)).tolist() == [[0, 1, 0, 1, 0]]
    mask = jnp.array([[0.0, 1, 1, 0, 1]])
    both = {"tokens": tokens[:1], "segments": segments, "loss_mask": mask}
    assert said(both, Rows(5, packed=True, loss_mask=True)).tolist() == [[0, 1, 0, 0, 0]]


def test_the_loss_of_packed_texts_is_that_of_the_texts_apart(packed):
    """By their own logits, in float64, and the z-loss with it."""
    task, params = packed
    loss, aux = jax.jit(task.loss)(params, {**BATCH, "_index": jnp.arange(ROWS)}, jax.random.key(0), 0)
    apart = np.zeros((4, 6), np.int32)
    for i, text in enumerate(TEXTS):
        apart[i, : len(text)] = text
    logits = np.asarray(task.predict["logits"](params, jnp.asarray(apart)), np.float64)
    nll, squared, count = 0.0, 0.0, 0
    for i, text in enumerate(TEXTS):
        log_z = np.log(np.exp(logits[i]).sum(-1))
        for place, token in enumerate(text[1:]):
            nll += log_z[place] - logits[i, place, token]
            squared += log_z[place] ** 2
            count += 1
    assert aux["weight"] == count == 13
    np.testing.assert_allclose(loss, (nll + 1e-2 * squared) / count, rtol=1e-5)
    np.testing.assert_allclose(aux["metrics"]["cross_entropy"], nll / count, rtol=1e-5)


@pytest.mark.parametrize("chunk", [0, 4])
def test_logits_by_parts_and_rows_without_a_token(chunk):
    """Loss, gradient and metrics against one product in numpy; with no weight at all everything is 0, and finite."""
    r = np.random.default_rng(0)
    x, kernel = r.normal(size=(2, 8, 5)).astype(np.float32), r.normal(size=(5, 7)).astype(np.float32)
    tokens, weights = r.integers(0, 7, (2, 8)).astype(np.int32), (r.random((2, 8)) < 0.6).astype(np.float32)

    @jax.jit
    def graded(kernel, weights):
        loss = lambda kernel: next_token(lambda x: x @ kernel, jnp.asarray(x), jnp.asarray(tokens), weights, z_loss=0.1, chunk=chunk)
        return jax.value_and_grad(lambda k: (loss(k)[0], loss(k)[1:]), has_aux=True)(kernel)

    (loss, (metrics, weight)), grad = graded(kernel, weights)
    logits, w = (x @ kernel)[:, :-1].astype(np.float64), weights[:, 1:]
    p = np.exp(logits) / np.exp(logits).sum(-1, keepdims=True)
    log_z = np.log(np.exp(logits).sum(-1))
    hot = np.eye(7)[tokens[:, 1:]]
    want = (w * (log_z - (logits * hot).sum(-1) + 0.1 * log_z**2)).sum() / w.sum()
    np.testing.assert_allclose(loss, want, rtol=1e-5)
    pull = w[..., None] * (p - hot + 0.2 * log_z[..., None] * p) / w.sum()
    np.testing.assert_allclose(grad, np.einsum("ble,blv->ev", x[:, :-1], pull), atol=1e-5)
    assert weight == w.sum() and metrics["token_accuracy"] == pytest.approx((w * (logits.argmax(-1) == tokens[:, 1:])).sum() / w.sum())
    (loss, (metrics, weight)), grad = graded(kernel, np.zeros_like(weights))
    assert loss == weight == metrics["cross_entropy"] == 0 and not np.asarray(grad).any()


@pytest.mark.slow
def test_what_is_written_is_as_likely_as_its_score_says(packed):
    """Rows of unlike lengths; that a text is what the logits say: tests/cli/test_chat.py."""
    task, params = packed
    prompts, lengths = np.array([[3, 7, 1, 4], [5, 0, 0, 0], [2, 9, 0, 0]]), np.array([4, 1, 2])
    got = task.predict["generate"](params, prompts, jax.random.key(0), lengths=lengths, max_new_tokens=6)
    known = task.predict["log_likelihood"](params, prompts, np.asarray(got.tokens)[:, None], np.full((3, 1), 6), lengths=lengths)
    np.testing.assert_allclose(known[:, 0], got.scores, rtol=1e-4)
    apart = task.predict["unrolled"](params)
    again = task.predict["generate"](apart, prompts, jax.random.key(0), lengths=lengths, max_new_tokens=6)
    np.testing.assert_array_equal(got.tokens, again.tokens)
    where = lambda tree: [x.unsafe_buffer_pointer() for x in jax.tree.leaves(tree)]
    assert where(task.predict["unrolled"](apart)) == where(apart)  # the same arrays, no copies


@pytest.mark.parametrize(
    ("model", "message"),
    [
        ({"lenght": 8}, "Rows has no field 'lenght'; did you mean 'length'"),
        ({"length": 17}, "config.model.length is 17, expected 2 to the 16 tokens"),
        ({"end": 20}, "config.model.end is 20, expected an id of the vocabulary of 20"),
        ({"end": 3, "packed": True}, "of rows without packed and loss_mask"),
        ({"z_loss": -1.0}, "z_loss and chunk are 0 or more"),
        ({"lm": {**LM, "widht": 3}}, "no field 'widht'; did you mean 'width'"),
    ],
)
def test_bad_input_is_one_clear_line(model, message):
    with pytest.raises(UserError, match=message) as e:
        tasks.make(config(**model))
    assert "\n" not in str(e.value)
