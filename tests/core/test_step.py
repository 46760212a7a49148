"""The train step against closed forms on a task small enough to work out by hand."""

import dataclasses

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from mmjax.core import rng, state, step, tree
from mmjax.core.errors import UserError
from mmjax.core.types import Task

B, D = 8, 3


def make_task(*, noise=False, weighted=False, **fields):
    """Mean over examples of |w . x + b - y|^2 with a running mean of x in a state leaf and a constant frozen leaf."""

    def init(key):
        return {
            "w": jnp.arange(1.0, D + 1),
            "b": jnp.float32(0.5),
            "scale": jnp.full((2,), 3.0),
            "stats": {"mean": jnp.zeros(D), "count": jnp.int32(0)},
        }

    def loss(params, batch, key, step):
        x = batch["x"]
        if noise:
            x = x + jax.vmap(lambda k: jax.random.normal(k, (D,)))(rng.per_example(key, batch["_index"]))
        error = (x @ params["w"] + params["b"] - batch["y"]) ** 2 * params["scale"][0] / 3
        count = params["stats"]["count"] + 1
        mean = params["stats"]["mean"] * 0.5 + x.mean(0) * 0.5
        aux = {"metrics": {"mse": error.mean()}, "state": {"stats": {"mean": mean, "count": count}}}
        if weighted:
            w = batch["w"].sum()
            return (error * batch["w"]).sum() / w, {**aux, "weight": w}
        return error.mean(), aux

    return Task(
        init=init,
        axes={"w": ("embed",), "b": (), "scale": (None,), "stats": {"mean": (None,), "count": ()}},
        loss=loss,
        batch_spec={"x": jax.ShapeDtypeStruct((B, D), jnp.float32), "y": jax.ShapeDtypeStruct((B,), jnp.float32)},
        predict={},
        frozen=("scale",),
        state=("stats/.*",),
        **fields,
    )


def batch_of(seed=0, **extra):
    r = np.random.default_rng(seed)
    return {"x": r.normal(size=(B, D)).astype(np.float32), "y": r.normal(size=B).astype(np.float32), **extra}


SGD = optax.with_extra_args_support(optax.sgd(0.1))


def fresh(task, ema=()):
    return state.init(task, SGD, {name: 0.0 for name in ema}, seed=7)


def grads_by_hand(params, batch):
    """float64 gradient of the mean squared error."""
    x, y = batch["x"].astype(np.float64), batch["y"].astype(np.float64)
    r = x @ np.asarray(params["w"], np.float64) + float(params["b"]) - y
    return 2 * (r[:, None] * x).mean(0), 2 * r.mean(), (r**2).mean()


@pytest.mark.parametrize("accumulate", [1, 2])
def test_a_step_with_nothing_to_learn_from_is_skipped_and_counted(accumulate):
    def loss(params, batch, key, step):
        value, aux = make_task().loss(params, batch, key, step)
        w = batch["w"].sum()
        return value * w / jnp.maximum(w, 1.0), {**aux, "weight": w}

    task = dataclasses.replace(make_task(), loss=loss)
    s = fresh(task, ema=("a",))
    run = jax.jit(step.make_train_step(task, SGD, accumulate=accumulate, ema={"a": 0.5}))
    one, metrics = run(s, batch_of(w=np.zeros(B, np.float32)))
    chex.assert_trees_all_equal(one.params, s.params)
    assert (int(one.step), int(one.skipped), int(one.nonfinite), float(metrics["loss"])) == (1, 1, 0, 0.0)
    two, _ = run(one, batch_of(w=np.ones(B, np.float32)))
    assert (int(two.skipped), float(abs(two.params["w"] - s.params["w"]).max()) > 0) == (1, True)


def test_one_sgd_step_is_the_closed_form():
    task = make_task()
    s = fresh(task)
    gw, gb, loss = grads_by_hand(s.params, batch_of())
    new, metrics = jax.jit(step.make_train_step(task, SGD))(s, batch_of())
    np.testing.assert_allclose(new.params["w"], np.arange(1, D + 1) - 0.1 * gw, rtol=1e-6)
    np.testing.assert_allclose(new.params["b"], 0.5 - 0.1 * gb, rtol=1e-6)
    np.testing.assert_allclose(metrics["loss"], loss, rtol=1e-6)
    np.testing.assert_allclose(metrics["grad_norm"], np.sqrt((gw**2).sum() + gb**2), rtol=1e-6)
    assert int(new.step) == 1 and state.cursor_to_int(new.cursor) == B


def test_frozen_leaves_have_no_optimizer_state_and_state_leaves_only_follow_the_task():
    task = make_task()
    momentum = optax.with_extra_args_support(optax.sgd(0.1, momentum=0.9))
    s = state.init(task, momentum, {"ema": 0.5}, 7)
    held = [p for p, _ in jax.tree_util.tree_flatten_with_path(s.opt_state)[0]]
    assert len(held) == 2 and set(tree.flatten(s.ema["ema"])) == {"w", "b"}
    new, _ = step.make_train_step(task, momentum, ema={"ema": 0.5})(s, batch_of())
    chex.assert_trees_all_equal(new.params["scale"], s.params["scale"])
    np.testing.assert_allclose(new.params["stats"]["mean"], 0.5 * batch_of()["x"].mean(0), rtol=1e-6)
    np.testing.assert_allclose(new.ema["ema"]["w"], 0.5 * s.params["w"] + 0.5 * new.params["w"], rtol=1e-6)


@pytest.mark.parametrize("noise", [False, True])
def test_accumulation_equals_the_whole_batch(noise):
    task = make_task(noise=noise)
    whole, m1 = step.make_train_step(task, SGD)(fresh(task), batch_of())
    parts, m4 = step.make_train_step(task, SGD, accumulate=4)(fresh(task), batch_of())
    for name in ("w", "b"):
        np.testing.assert_allclose(whole.params[name], parts.params[name], rtol=1e-6)
    np.testing.assert_allclose(m1["loss"], m4["loss"], rtol=1e-6)
    np.testing.assert_allclose(m1["mse"], m4["mse"], rtol=1e-6)


def test_state_is_carried_in_order_through_accumulation():
    task = make_task()
    new, _ = step.make_train_step(task, SGD, accumulate=4)(fresh(task), batch_of())
    x, mean = batch_of()["x"], np.zeros(D)
    for i in range(4):
        mean = 0.5 * mean + 0.5 * x[i::4].mean(0)
    np.testing.assert_allclose(new.params["stats"]["mean"], mean, rtol=1e-6)
    assert int(new.params["stats"]["count"]) == 4


def test_unequal_microbatches_are_weighted():
    w = np.array([1, 0, 0, 1, 1, 1, 0, 1], np.float32)
    task = make_task(weighted=True)
    whole, m1 = step.make_train_step(task, SGD)(fresh(task), batch_of(w=w))
    parts, m2 = step.make_train_step(task, SGD, accumulate=2)(fresh(task), batch_of(w=w))
    np.testing.assert_allclose(whole.params["w"], parts.params["w"], rtol=1e-6)
    np.testing.assert_allclose(m1["loss"], m2["loss"], rtol=1e-6)


def test_a_nonfinite_step_changes_nothing_but_the_counters():
    task = make_task()
    train = jax.jit(step.make_train_step(task, SGD, ema={"e": 0.9}))
    s = state.init(task, SGD, {"e": 0.9}, 7)
    bad = batch_of()
    bad["x"][0, 0] = np.nan
    one, m = train(s, bad)
    chex.assert_trees_all_equal((one.params, one.opt_state, one.ema), (s.params, s.opt_state, s.ema))
    assert (int(one.step), int(one.nonfinite), int(one.skipped), state.cursor_to_int(one.cursor)) == (1, 1, 1, B)
    assert not np.isfinite(m["loss"])
    two, _ = train(one, bad)
    three, _ = train(two, batch_of())
    assert (int(two.nonfinite), int(three.nonfinite), int(three.skipped)) == (2, 0, 2)
    assert not np.array_equal(three.params["w"], s.params["w"])


def test_post_update_clamps_after_the_optimizer_and_before_the_average():
    task = make_task(post_update=lambda params, aux, step: {**params, "b": jnp.clip(params["b"], 0.0, 0.5)})
    s = state.init(task, SGD, {"e": 0.0}, 7)
    batch = batch_of()
    batch["y"] = batch["y"] + 100.0  # pushes b far up
    new, _ = step.make_train_step(task, SGD, ema={"e": 0.0})(s, batch)
    assert float(new.params["b"]) == 0.5 and float(new.ema["e"]["b"]) == 0.5


def test_a_task_cannot_write_leaves_it_did_not_declare():
    task = make_task()
    rogue = lambda *a: (task.loss(*a)[0], {"state": {"w": jnp.zeros(D)}})
    with pytest.raises(ValueError, match="'w'.*task.state"):
        step.make_train_step(dataclasses.replace(task, loss=rogue), SGD)(fresh(task), batch_of())


def test_contrastive_losses_refuse_accumulation():
    with pytest.raises(ValueError, match="not a mean over examples"):
        step.make_train_step(make_task(can_accumulate=False), SGD, accumulate=2)


def test_patterns_must_match():
    task = dataclasses.replace(make_task(), frozen=("sclae",))
    with pytest.raises(UserError, match="'sclae' matches no parameter"):
        fresh(task)


def test_cursor_counts_past_32_bits():
    c = jnp.array([0, 2**32 - 5], jnp.uint32)
    for _ in range(2):
        c = state.advance(c, 4)
    assert state.cursor_to_int(c) == 2**32 + 3


def test_a_batch_in_parts_is_counted_and_numbered_through():
    """Two parts of different sizes: the cursor counts all examples, whatever the parts are called, and no two of them share a number."""

    def loss(params, batch, key, step):
        assert set(batch) == {"pairs", "docs"} and set(batch["docs"]) == {"x", "_index"}
        seen = {name: part["_index"].sum() for name, part in batch.items()}
        noise = {name: jax.vmap(lambda k: jax.random.normal(k, (D,)))(rng.per_example(key, part["_index"])) for name, part in batch.items()}
        value = sum(((part["x"] + noise[name]) @ params["w"]).mean() for name, part in batch.items())
        return value, {"metrics": {**seen, "shared": (noise["docs"][0] == noise["pairs"][0]).any()}}

    task = Task(init=lambda key: {"w": jnp.ones(D)}, axes={"w": (None,)}, loss=loss, batch_spec={}, predict={})
    x = np.random.default_rng(0).normal(size=(12, D)).astype(np.float32)
    batch = {"pairs": {"x": x[:8]}, "docs": {"x": x[8:]}}
    whole, metrics = step.make_train_step(task, SGD)(fresh(task), batch)
    assert state.cursor_to_int(whole.cursor) == 12 and step.examples(batch) == {"docs": 4, "pairs": 8}
    assert metrics["docs"] == 0 + 1 + 2 + 3 and metrics["pairs"] == sum(range(4, 12)) and metrics["shared"] == 0
    split, _ = step.make_train_step(task, SGD, accumulate=2)(fresh(task), batch)
    assert state.cursor_to_int(split.cursor) == 12  # and what is drawn belongs to the example, not to the microbatch
    np.testing.assert_allclose(whole.params["w"], split.params["w"], rtol=1e-6)


@pytest.mark.parametrize(
    ("shapes", "message"),
    [
        ({"a": {"x": 4}, "b": 4}, "arrays or parts"),
        ({"a": 4, "b": 8}, r"one leading axis, got \[4, 8\]"),
        ({"a": {"x": 4, "y": 2}}, "part 'a'"),
    ],
)
def test_batches_that_cannot_be_counted(shapes, message):
    with pytest.raises(ValueError, match=message):
        step.examples(jax.tree.map(np.zeros, shapes))
