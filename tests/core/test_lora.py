"""Low-rank adapters on a small task: y = act(x W) V with a stacked and a plain kernel, and a target network as state."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mmjax.core import lora, tree
from mmjax.core.config import base
from mmjax.core.errors import UserError
from mmjax.core.state import roles
from mmjax.core.types import Task

L, D, E = 3, 5, 4


def network(params, x):
    for i in range(L):
        x = jnp.tanh(x @ params["blocks"]["kernel"][i] + params["blocks"]["bias"][i][None])
    return x @ params["head"]["kernel"]


def make_task(**changes):
    def init(key):
        k = jax.random.split(key, 3)
        head = jax.random.normal(k[2], (D, E))
        return {
            "blocks": {"kernel": jax.random.normal(k[0], (L, D, D)), "bias": jax.random.normal(k[1], (L, D))},
            "head": {"kernel": head},
            "scale": jnp.float32(9.0),
            "target": {"kernel": head},
        }

    def post_update(params, aux, step):
        target = jax.tree.map(lambda t, h: 0.5 * t + 0.5 * h, params["target"], params["head"])
        return {**params, "scale": jnp.minimum(params["scale"], 2.0), "target": target}

    fields = {
        "init": init,
        "axes": {
            "blocks": {"kernel": ("layers", "embed", "mlp"), "bias": ("layers", "mlp")},
            "head": {"kernel": ("embed", "classes")},
            "scale": (),
            "target": {"kernel": ("embed", "classes")},
        },
        "loss": lambda params, batch, key, step: (jnp.mean(network(params, batch["x"]) ** 2) * params["scale"], {}),
        "batch_spec": {"x": jax.ShapeDtypeStruct((8, D), jnp.float32)},
        "predict": {"encode_image": network},
        "state": ("target/.*",),
        "post_update": post_update,
    }
    return Task(**{**fields, **changes})


def lora_config(rules=("blocks/kernel", "head/kernel"), train=(), rank=2, alpha=6.0):
    config = base().lora
    config.rules, config.train, config.rank, config.alpha = rules, train, rank, alpha
    return config


def noisy(params):
    """Adapters moved away from zero."""
    flat = tree.flatten(params)
    draw = lambda i, x: 0.1 * jax.random.normal(jax.random.key(i), x.shape)
    return tree.unflatten({p: x + draw(i, x) if "_lora_" in p else x for i, (p, x) in enumerate(flat.items())})


X = jax.random.normal(jax.random.key(7), (8, D))


def test_starts_as_the_base_exactly():
    task = make_task()
    wrapped = lora.wrap(task, lora_config())
    params, plain = wrapped.init(jax.random.key(3)), task.init(jax.random.key(3))
    shared = tree.flatten(plain)
    assert all((tree.flatten(params)[p] == x).all() for p, x in shared.items())
    assert (wrapped.predict["encode_image"](params, X) == network(plain, X)).all()
    added = {p: x.shape for p, x in tree.flatten(params).items() if p not in shared}
    assert added == {
        "blocks/kernel_lora_a": (L, D, 2),
        "blocks/kernel_lora_b": (L, 2, D),
        "head/kernel_lora_a": (D, 2),
        "head/kernel_lora_b": (2, E),
    }
    a = params["blocks"]["kernel_lora_a"]
    assert (a != 0).all() and (a[0] != a[1]).any() and (params["head"]["kernel_lora_b"] == 0).all()
    axes = tree.flatten(wrapped.axes)
    assert axes["blocks/kernel_lora_a"] == ("layers", "embed", None) and axes["blocks/kernel_lora_b"] == ("layers", None, "mlp")
    assert {p: len(a) for p, a in axes.items()} == {p: x.ndim for p, x in tree.flatten(params).items()}


def test_a_has_variance_one_over_fan_in():
    big = make_task(init=lambda key: {"w": jnp.zeros((400, 300))}, axes={"w": ("embed", "mlp")}, state=())
    a = lora.wrap(big, lora_config(("w",), rank=64)).init(jax.random.key(0))["w_lora_a"]
    np.testing.assert_allclose(np.asarray(a).std(), 400**-0.5, rtol=0.02)


def test_merged_equals_adapted_and_equation_3():
    wrapped = lora.wrap(make_task(), lora_config())
    params = noisy(wrapped.init(jax.random.key(3)))
    merged = lora.merge(params, 6.0)
    assert set(tree.flatten(merged)) == set(tree.flatten(make_task().init(jax.random.key(0))))
    for i in range(L):
        w, a, b = (np.asarray(params["blocks"][k][i], np.float64) for k in ("kernel", "kernel_lora_a", "kernel_lora_b"))
        np.testing.assert_allclose(merged["blocks"]["kernel"][i], w + 6.0 / 2 * a @ b, rtol=1e-5, atol=1e-6)
    adapted = wrapped.predict["encode_image"](params, X)
    assert (adapted == network(merged, X)).all()
    assert np.abs(adapted - network(params, X)).max() > 0.01
    loss, _ = wrapped.loss(params, {"x": X}, jax.random.key(0), jnp.int32(0))
    assert loss == make_task().loss(merged, {"x": X}, jax.random.key(0), jnp.int32(0))[0]


def test_only_adapters_and_train_are_trained():
    wrapped = lora.wrap(make_task(), lora_config(train=("scale",)))
    params = noisy(wrapped.init(jax.random.key(3)))
    who = roles(wrapped, params)
    assert who.trained == {p for p in tree.flatten(params) if "_lora_" in p} | {"scale"}
    assert who.state == {"target/kernel"}
    trained, rest = who.split(params)
    loss = lambda t: wrapped.loss(tree.merge(rest, t), {"x": X}, jax.random.key(0), jnp.int32(0))[0]
    grads = tree.flatten(jax.grad(loss)(trained))
    assert set(grads) == who.trained and all(np.abs(g).max() > 0 for g in grads.values())


def test_what_the_task_froze_gets_an_adapter_but_stays_frozen():
    wrapped = lora.wrap(make_task(frozen=("head/.*", "blocks/bias")), lora_config(("head/kernel",), train=("scale",)))
    assert roles(wrapped, wrapped.init(jax.random.key(0))).trained == {"head/kernel_lora_a", "head/kernel_lora_b", "scale"}
    with pytest.raises(UserError, match=r"lora\.train: pattern 'blocks/bias'"):
        lora.wrap(make_task(frozen=("blocks/bias",)), lora_config(train=("blocks/bias",)))


def test_post_update_sees_merged_weights_and_leaves_the_base():
    wrapped = lora.wrap(make_task(), lora_config())
    params = noisy(wrapped.init(jax.random.key(3)))
    new = wrapped.post_update(params, {}, jnp.int32(0))
    assert new["scale"] == 2.0
    merged = lora.merge(params, 6.0)["head"]["kernel"]
    np.testing.assert_allclose(new["target"]["kernel"], 0.5 * params["target"]["kernel"] + 0.5 * merged, rtol=1e-6)
    same = [p for p in tree.flatten(params) if p not in ("scale", "target/kernel")]
    assert set(tree.flatten(new)) == set(tree.flatten(params))
    assert all((tree.flatten(new)[p] == tree.flatten(params)[p]).all() for p in same)


def test_post_update_may_not_write_an_adapted_kernel():
    task = make_task(post_update=lambda params, aux, step: {**params, "head": {"kernel": params["head"]["kernel"] * 2}})
    wrapped = lora.wrap(task, lora_config())
    with pytest.raises(UserError, match="post_update writes 'head/kernel'"):
        wrapped.post_update(wrapped.init(jax.random.key(0)), {}, jnp.int32(0))


def test_no_rules_is_the_task_itself():
    task = make_task()
    assert lora.wrap(task, lora_config(())) is task


BAD = {
    "matches nothing": (("blocks/kernle",), {}, "lora.rules: pattern 'blocks/kernle' matches no parameter"),
    "one of two matches nothing": (("blocks/kernel", "nope"), {}, "pattern 'nope'"),
    "no matrix": (("blocks/.*",), {}, "match 'blocks/bias' of shape (3, 5)"),
    "state": ((".*kernel",), {}, "match 'target/kernel', which only the task writes"),
    "rank": (("head/kernel",), {"rank": 0}, "lora.rank is 0"),
    "train without adapters": ((), {"train": ("scale",)}, "lora.rules is empty"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input(case):
    rules, changes, message = BAD[case]
    with pytest.raises(UserError) as error:
        lora.wrap(make_task(), lora_config(rules, **changes))
    assert message in str(error.value) and "\n" not in str(error.value)


def test_merge_of_half_an_adapter():
    params = lora.wrap(make_task(), lora_config()).init(jax.random.key(0))
    del params["head"]["kernel_lora_b"]
    with pytest.raises(UserError, match=r"kernel_lora_a.* but not 'head/kernel_lora_b'"):
        lora.merge(params, 6.0)
