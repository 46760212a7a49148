"""The two baselines learn captions that follow from the image, score texts rightly, and classify by prompts they score."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from ml_collections import ConfigDict

from mmjax import evals, tasks
from mmjax.core import config as config_lib
from mmjax.core import sharding, state, tree
from mmjax.core.errors import UserError
from mmjax.core.step import make_train_step
from mmjax.data.source import open_source, open_tokenizer
from mmjax.layers import split_axes
from mmjax.models.captioner import Captioner
from mmjax.models.vit import ViT

BATCH, SIZE, VOCAB, LENGTH = 8, 8, 12, 5
START, END = 10, 11
BLOCK = {"depth": 1, "heads": 2, "mlp": 32}
TEXT = {"vocab": VOCAB, "length": LENGTH, "width": 16, **BLOCK}


def task_of(objective, **model):
    c = config_lib.base()
    c.task, c.batch_size = "caption_baselines", BATCH
    image = {"patch": 4, "width": 16, **BLOCK, "pool": "gap"}
    c.model = ConfigDict({"size": SIZE, "channels": 1, "objective": objective, "image": image, "text": TEXT, **model})
    return tasks.make(c)


def batch():
    """Four kinds of images, lit in one quarter each; the caption of kind k is "k, k + 4"."""
    kinds = np.arange(BATCH) % 4
    images = np.zeros((BATCH, SIZE, SIZE, 1), np.float32)
    for i, k in enumerate(kinds):
        images[i, 4 * (k // 2) : 4 * (k // 2) + 4, 4 * (k % 2) : 4 * (k % 2) + 4] = 1.0 + i / 20
    tokens = np.stack([[START, k, k + 4, END, 0] for k in kinds]).astype(np.int32)
    return {"image": images, "tokens": tokens}, kinds


@pytest.mark.parametrize("objective", ["words", "language"])
def test_learns_and_scores(objective):
    task = task_of(objective)
    data, kinds = batch()
    tx = optax.with_extra_args_support(optax.adam(0.01))
    s = jax.jit(lambda: state.init(task, tx, {}, 0))()
    train = jax.jit(make_train_step(task, tx))
    losses = []
    for _ in range(60):
        s, metrics = train(s, data)
        losses.append(float(metrics["loss"]))
    # At the start every word is about as likely; what is left in the end is, of two words of equal rank, ln 2.
    assert losses[0] == pytest.approx(np.log(VOCAB), rel=0.15)
    assert losses[-1] < (np.log(2) + 0.3 if objective == "words" else 0.3)
    texts = jnp.asarray(np.stack([[START, k, k + 4, END, 0] for k in range(4)]).astype(np.int32))
    scores = np.asarray(jax.jit(task.predict["score"])(s.params, jnp.asarray(data["image"]), texts))
    assert scores.shape == (BATCH, 4)
    assert (scores.argmax(1) == kinds).all()


def test_a_token_is_predicted_from_the_image_and_the_tokens_before_it():
    model = Captioner(ViT(patch=4, width=8, **BLOCK), **TEXT)
    r = np.random.default_rng(0)
    images, tokens = (
        jnp.asarray(r.standard_normal((1, SIZE, SIZE, 1)), jnp.float32),
        jnp.asarray(r.integers(0, VOCAB, (1, LENGTH)), jnp.int32),
    )
    params = {"params": split_axes(jax.jit(model.init)(jax.random.key(0), images, tokens)["params"])[0]}
    run = jax.jit(model.apply)
    logits = run(params, images, tokens)
    assert logits.shape == (1, LENGTH, VOCAB)
    for t in range(LENGTH):
        moved = np.abs(run(params, images, tokens.at[0, t].add(1) % VOCAB) - logits)[0].max(1) > 1e-6
        assert list(moved) == [place > t for place in range(LENGTH)]
    assert (np.abs(run(params, -images, tokens) - logits)[0].max(1) > 1e-6).all()


def test_padding_after_the_end_changes_no_score():
    task = task_of("language")
    params = jax.jit(task.init)(jax.random.key(0))
    texts = jnp.asarray([[START, 2, END, 0, 0], [START, 2, END, 5, 7]], jnp.int32)
    scores = np.asarray(jax.jit(task.predict["score"])(params, jnp.ones((2, SIZE, SIZE, 1)), texts))
    np.testing.assert_allclose(scores[:, 0], scores[:, 1], rtol=1e-6)


def test_batch_statistics_and_dropout_go_through():
    resnet = {"type": "resnet", "width": 2, "depths": (1, 1, 1, 1), "heads": 2}
    for objective in ("words", "language"):
        task = task_of(objective, image=resnet, size=32)
        params = jax.eval_shape(task.init, jax.random.key(0))
        data = {**task.batch_spec, "_index": jax.ShapeDtypeStruct((BATCH,), jnp.int32)}
        _, aux = jax.eval_shape(task.loss, params, data, jax.random.key(0), jnp.int32(0))
        assert tree.flatten(aux["state"]).keys() == state.roles(task, params).state


def test_prompt_scores_are_means_over_the_prompts_of_a_class():
    """A stand-in model that thinks every text with a "three" likely, whatever it sees: right on threes and on nothing else."""
    data = config_lib.override(config_lib.base(), ["data.source=digits_captions"]).data
    source = open_source(data, "validation")
    three = open_tokenizer(source).encode_plain("three")[-1]
    labels = np.array([source[i]["label"] for i in range(len(source))])

    def score(params, images, tokens):
        return jnp.broadcast_to((tokens == three).any(1).astype(jnp.float32)[None], (images.shape[0], len(tokens)))

    shown = (("decode", {"channels": 1}), ("normalize", {"mean": 0.0, "std": 1.0}), ("keep", {"keys": ("image", "label")}))
    group = {"type": "prompt_scores", "every": 1, "split": "validation", "batch_size": 48, "length": 16, "transforms": shown}
    found = evals.make("e", {"score": score}, ConfigDict(group), sharding.make_mesh({"data": -1}), data)({})
    assert found["accuracy"] == pytest.approx((labels == 3).mean())
    assert found["mean_per_class"] == pytest.approx(0.1)


def test_refusals():
    with pytest.raises(UserError, match=r"config.model.objective is 'bag'; known: language, words"):
        task_of("bag")
    with pytest.raises(UserError, match=r"config.model.text: Captioner has no field 'detph'; did you mean 'depth'\?"):
        task_of("language", text={**TEXT, "detph": 2})
