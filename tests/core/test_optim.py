"""Optimizers: one step by hand in float64, agreement with optax, and the same step for scanned and unrolled models."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import optax
import optax.contrib
import orbax.checkpoint as ocp
import pytest

from mmjax.core import optim, tree
from mmjax.core.config import base
from mmjax.core.errors import UserError

STEPS = 10


def settings(name="adamw", *, args=None, **changes):
    config = base().optim
    config.name, config.schedule = name, "constant"
    config.args.update(args or {})
    config.update(changes)
    return config


# Path -> (shape, logical axes). Two towers: a plain stack of 3 layers, and 2 super-blocks of a cross-attention and 2 layers.
# Some sizes reach 128, from which Adafactor factors; the stack of 130 biases must not look like a matrix to it.
MODEL = {
    "image/patch/kernel": ((130, 136), ("patch", "embed")),
    "image/cls": ((136,), ("embed",)),
    "image/blocks/attn/kernel": ((3, 136, 144), ("layers", "embed", "heads")),
    "image/blocks/attn/bias": ((3, 144), ("layers", "heads")),
    "image/blocks/mlp/kernel": ((3, 12, 7), ("layers", "embed", "mlp")),
    "image/blocks/gate": ((3,), ("layers",)),
    "image/post_norm/scale": ((136,), ("embed",)),
    "text/embed/embedding": ((20, 8), ("vocab", "embed")),
    "text/blocks/cross/kernel": ((2, 8, 6), ("layers", "embed", "heads")),
    "text/blocks/self/blocks/kernel": ((2, 2, 8, 6), ("layers", "layers", "embed", "heads")),
    "text/blocks/self/blocks/bias": ((2, 2, 6), ("layers", "layers", "heads")),
    "head/kernel": ((136, 10), ("embed", "classes")),
    "head/conv": ((3, 3, 4, 5), (None, None, "embed", "classes")),
    "scale": ((), ()),
}


def tree_of(value):
    return tree.unflatten({path: value(i, *spec) for i, (path, spec) in enumerate(MODEL.items())})


def model_axes():
    return tree_of(lambda i, shape, axes: axes)


def random_model(seed, scale=1.0, dtype=np.float32):
    rng = np.random.default_rng(seed)
    return tree_of(lambda i, shape, axes: jnp.asarray(rng.normal(size=shape) * scale, dtype))


def unroll(params, scans=0):
    """(parameters, axes) with a leaf a layer under `blocks_i` names, but for the outermost `scans` layer axes."""
    out, out_axes = {}, {}
    axes = tree.flatten(model_axes())
    for path, x in tree.flatten(params).items():
        depth = axes[path].count("layers")
        kept = min(scans, depth)
        for index in np.ndindex(*x.shape[kept:depth]):
            names = path.split("/")
            stacks = [i for i, name in enumerate(names) if name == "blocks"]
            for i, layer in zip(stacks[kept:depth], index, strict=True):
                names[i] = f"blocks_{layer}"
            out["/".join(names)] = x[(slice(None),) * kept + index]
            out_axes["/".join(names)] = axes[path][:kept] + axes[path][depth:]
    return tree.unflatten(out), tree.unflatten(out_axes)


def run(config, params, axes, grads, steps=(0, 1, 2)):
    """Parameters after some updates, the gradient of each step being `grads` of it."""
    tx, _ = optim.make(config, params, axes, STEPS)
    update = jax.jit(lambda g, s, p, step: tx.update(g, s, p, step=step))
    state = tx.init(params)
    for step in steps:
        updates, state = update(grads(step), state, params, jnp.int32(step))
        params = optax.apply_updates(params, updates)
    return params


def single(config, value, gradient, axes=None, *, steps=1):
    """New value of a model of one parameter `w` that sees the same gradient every step."""
    value = jnp.asarray(value)
    axes = axes or {"w": ("in", "out")[-value.ndim :]}
    out = run(config, {"w": value}, axes, lambda step: {"w": jnp.asarray(gradient, value.dtype)}, range(steps))
    return np.asarray(out["w"], np.float64)


# --- scanned == unrolled ---------------------------------------------------------------------------------------------

IMAGE_LAYERS = r"image/blocks(_\d+)?/.*"
SAME = {
    "adamw": settings(weight_decay=0.1),
    "adafactor": settings("adafactor"),
    "adafactor with momentum": settings("adafactor", args={"momentum": 0.9, "min_dim_size_to_factor": 6}),
    "lion": settings("lion", weight_decay=0.1),
    "sgd": settings("sgd"),
    "muon": settings("muon", weight_decay=0.1),
    "muon by rules": settings(
        "muon", args={"adaptive": True, "consistent_rms": 0.2}, muon_rules=((".*(kernel|conv|cls)", True), (".*", False))
    ),
    "agc": settings("sgd", agc=0.01),
    "agc by rules": settings("muon", agc=0.02, agc_rules=(("head/.*", False), (".*", True))),
    "clip_norm": settings("sgd", clip_norm=0.5),
    "layer_decay": settings("adamw", layer_decay=0.5, weight_decay=0.1, clip_norm=0.5, agc=0.01),
    "a number a layer": settings(
        lr_rules=((IMAGE_LAYERS, (0.1, 0.5, 0.7)), (".*", 1.0)), wd_rules=((IMAGE_LAYERS, (0.0, 3.0, 1.0)), (".*", 0.0)), weight_decay=0.1
    ),
}


@pytest.mark.parametrize(("case", "scans"), [(case, 0) for case in SAME] + [("adafactor", 1), ("muon by rules", 1), ("layer_decay", 1)])
def test_scanned_and_unrolled_take_the_same_steps(case, scans):
    with jax.enable_x64(True):  # so that the order of sums is no excuse
        params = random_model(0, 0.3, np.float64)
        grads = lambda step: random_model(step + 1, 10.0**step, np.float64)
        config = SAME[case]
        scanned, _ = unroll(run(config, params, model_axes(), grads), scans)
        flat, axes = unroll(params, scans)
        separate = run(config, flat, axes, lambda step: unroll(grads(step), scans)[0])
        assert set(tree.flatten(scanned)) == set(tree.flatten(separate))
        for path, x in tree.flatten(scanned).items():
            start = tree.flatten(flat)[path]
            assert (np.abs(x - start) > 0).any(), f"{path} did not move"
            np.testing.assert_allclose(x - start, tree.flatten(separate)[path] - start, rtol=1e-9, atol=1e-13, err_msg=path)


@pytest.mark.parametrize("case", ["adamw", "adafactor", "lion", "sgd", "muon", "agc", "clip_norm"])
def test_scanned_and_unrolled_take_the_same_step_in_float32(case):
    params, config = random_model(0, 0.3), SAME[case]
    scanned, _ = unroll(run(config, params, model_axes(), lambda step: random_model(step + 1)))
    flat, axes = unroll(params)
    separate = run(config, flat, axes, lambda step: unroll(random_model(step + 1))[0])
    for path, x in tree.flatten(scanned).items():
        y = tree.flatten(separate)[path]
        assert np.linalg.norm(x - y) <= 1e-6 * np.linalg.norm(y), path


def test_adafactor_factors_matrices_of_a_layer_and_nothing_else():
    shapes = {"w": jnp.zeros((2, 130, 140)), "b": jnp.zeros((130, 140)), "table": jnp.zeros((150, 160))}
    axes = {"w": ("layers", "in", "out"), "b": ("layers", "out"), "table": ("vocab", "embed")}
    tx, _ = optim.make(settings("adafactor"), shapes, axes, STEPS)
    state = tx.init(shapes)["adafactor"]["second"]
    assert state.count.shape == ()
    assert {p: x.shape for p, x in state.v_row.items()} == {"w": (2, 130), "b": (130, 1), "table": (150,)}
    assert {p: x.shape for p, x in state.v_col.items()} == {"w": (2, 140), "b": (130, 1), "table": (160,)}
    assert {p: x.shape for p, x in state.v.items()} == {"w": (2, 1), "b": (130, 140), "table": (1,)}


# --- one step by hand, in float64 --------------------------------------------------------------------------------------

RNG = np.random.default_rng(5)
W, G = RNG.normal(size=(6, 4)), RNG.normal(size=(6, 4))
LR, WD = 1e-2, 0.3


def test_adamw_by_hand():
    args = {"b1": 0.8, "b2": 0.95, "eps": 1e-3}
    out = single(settings(lr=LR, weight_decay=WD, args=args), W, G, steps=2)
    w, m, v = W, 0.0, 0.0
    for t in (1, 2):
        m, v = 0.8 * m + 0.2 * G, 0.95 * v + 0.05 * G**2
        w = w - LR * (m / (1 - 0.8**t) / (np.sqrt(v / (1 - 0.95**t)) + 1e-3) + WD * w)
    np.testing.assert_allclose(out, w, rtol=1e-5, atol=1e-7)


def test_sgd_nesterov_by_hand():
    out = single(settings("sgd", lr=LR, weight_decay=WD), W, G, steps=2)
    w, m = W, 0.0
    for _ in range(2):
        m = 0.9 * m + G
        w = w - LR * (G + 0.9 * m + WD * w)
    np.testing.assert_allclose(out, w, rtol=1e-5, atol=1e-7)


def test_lion_by_hand():
    grads = [G, -3 * W]
    w, m = W, 0.0
    for g in grads:
        w, m = w - LR * (np.sign(0.9 * m + 0.1 * g) + WD * w), 0.99 * m + 0.01 * g
    out = run(
        settings("lion", lr=LR, weight_decay=WD),
        {"w": jnp.asarray(W)},
        {"w": ("in", "out")},
        lambda s: {"w": jnp.asarray(grads[s])},
        (0, 1),
    )
    np.testing.assert_allclose(out["w"], w, rtol=1e-5, atol=1e-6)


def test_muon_makes_singular_values_near_one():
    g = np.linalg.qr(RNG.normal(size=(12, 6)))[0] * np.array([5, 4, 3, 2, 1, 0.5])
    moved = single(settings("muon", lr=1.0, muon_rules=((".*", True),)), np.zeros((12, 6)), g)
    singular = np.linalg.svd(moved, compute_uv=False)
    assert (singular > 0.6).all() and (singular < 1.3).all()
    wide = single(settings("muon", lr=1.0, muon_rules=((".*", True),)), np.zeros((6, 12)), g.T)
    np.testing.assert_allclose(np.linalg.svd(wide, compute_uv=False), np.sqrt(2) * singular, rtol=1e-4)


def test_clip_norm_by_hand():
    params = {"a": jnp.zeros((2,)), "b": jnp.zeros((1, 2))}
    axes = {"a": ("out",), "b": ("in", "out")}
    grads = {"a": jnp.array([3.0, 0.0]), "b": jnp.array([[0.0, 4.0]])}  # norm 5
    plain = {"momentum": 0.0, "nesterov": False}
    out = run(settings("sgd", lr=1.0, args=plain, clip_norm=2.0), params, axes, lambda step: grads, (0,))
    np.testing.assert_allclose(out["a"], [-1.2, 0.0], rtol=1e-6)
    np.testing.assert_allclose(out["b"], [[0.0, -1.6]], rtol=1e-6)
    out = run(settings("sgd", lr=1.0, args=plain, clip_norm=5.5), params, axes, lambda step: grads, (0,))
    np.testing.assert_allclose(out["a"], [-3.0, 0.0], rtol=1e-6)


@pytest.mark.parametrize("shape", [(6, 4), (4,), (3, 3, 4, 5)])
def test_agc_by_hand(shape):
    """Brock et al. 2021, eq. 3: a unit is a column of an [in, out] kernel, an output channel of an HWIO one, all of a vector."""
    w, g = RNG.normal(size=shape), RNG.normal(size=shape)
    w[..., 0] *= 1e-6  # a unit below the floor of 1e-3 on its norm
    g[..., 1] *= 1e-3  # a unit whose gradient is small enough
    axis = tuple(range(len(shape) - 1)) or (0,)
    norm = lambda x: np.sqrt((x**2).sum(axis, keepdims=True))
    most = 0.05 * np.maximum(norm(w), 1e-3)
    expected = np.where(norm(g) > most, g * most / norm(g), g)
    config = settings("sgd", lr=1.0, args={"momentum": 0.0, "nesterov": False}, agc=0.05)
    tx, _ = optim.make(config, {"w": w}, {"w": (None,) * len(shape)}, STEPS)
    out, _ = tx.update({"w": jnp.asarray(g)}, tx.init({"w": jnp.asarray(w)}), {"w": jnp.asarray(w)}, step=jnp.int32(0))
    np.testing.assert_allclose(-np.asarray(out["w"]), expected, rtol=1e-5)
    assert len(shape) == 1 or (expected[..., 1] == g[..., 1]).all()


# --- agreement with optax's own optimizers -----------------------------------------------------------------------------


def plain_model():
    rng = np.random.default_rng(2)
    return {"w": jnp.asarray(rng.normal(size=(140, 150)), jnp.float32), "b": jnp.asarray(rng.normal(size=(9,)), jnp.float32)}


@pytest.mark.parametrize(
    ("config", "reference"),
    [
        (settings("adamw", lr=LR, weight_decay=WD), optax.adamw(LR, weight_decay=WD)),
        (settings("lion", lr=LR, weight_decay=WD), optax.lion(LR, weight_decay=WD)),
        (settings("sgd", lr=LR), optax.sgd(LR, 0.9, nesterov=True)),
        (settings("adafactor", lr=LR), optax.adafactor(LR)),
        (
            settings("adafactor", lr=LR, args={"momentum": 0.9, "clipping_threshold": None}),
            optax.adafactor(LR, momentum=0.9, clipping_threshold=None),
        ),
        (settings("muon", lr=LR, muon_rules=((".*", True),)), optax.contrib.muon(LR)),
        (settings("muon", lr=LR, muon_rules=((".*", True),), args={"consistent_rms": 0.2}), optax.contrib.muon(LR, consistent_rms=0.2)),
    ],
    ids=lambda x: x.name if hasattr(x, "name") else "",
)
def test_agrees_with_optax(config, reference):
    params = plain_model()
    grads = lambda step: jax.tree.map(lambda p: jnp.sin(p * (step + 2)), plain_model())
    ours = run(config, params, {"w": ("in", "out"), "b": ("out",)}, grads)
    state = reference.init(params)
    for step in range(3):
        updates, state = reference.update(grads(step), state, params)
        params = optax.apply_updates(params, updates)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-5, atol=1e-6), ours, params)


# --- rules ---------------------------------------------------------------------------------------------------------------


def test_learning_rate_follows_the_given_step_and_the_multipliers():
    config = settings("sgd", lr=0.5, args={"momentum": 0.0, "nesterov": False}, schedule="linear", lr_rules=(("b", 0.1), (".*", 2.0)))
    params = {"w": jnp.ones((2, 2)), "b": jnp.ones((2,))}
    tx, schedule = optim.make(config, params, {"w": ("in", "out"), "b": ("out",)}, STEPS)
    state = tx.init(params)
    for step in (7, 7, 0):  # no count of its own: a step may be repeated or skipped
        updates, state = tx.update(params, state, params, step=jnp.int32(step))
        lr = 0.5 * (1 - step / STEPS)
        np.testing.assert_allclose(schedule(step), lr, rtol=1e-6)
        np.testing.assert_allclose(updates["w"], np.full((2, 2), -2.0 * lr), rtol=1e-6)
        np.testing.assert_allclose(updates["b"], np.full(2, -0.1 * lr), rtol=1e-6)


def test_weight_decay_factor():
    config = settings("sgd", lr=LR, weight_decay=WD, wd_rules=(("b", 0.0), (".*", 2.0)))
    params = {"w": jnp.ones((2, 2)), "b": jnp.ones((2,))}
    out = run(config, params, {"w": ("in", "out"), "b": ("out",)}, lambda step: jax.tree.map(jnp.zeros_like, params), (0,))
    np.testing.assert_allclose(out["w"], np.full((2, 2), 1 - LR * WD * 2), rtol=1e-6)
    assert (out["b"] == 1).all()


def test_layer_decay_is_that_of_beit():
    """n = 3 in the image tower; 2 super-blocks of 2 layers make n = 4 in the text tower."""
    plan = optim.make_plan(settings(layer_decay=0.5), random_model(0), model_axes())
    lr = {path: np.squeeze(f).tolist() for path, f in plan.lr.items()}
    d = lambda *powers: [0.5**p for p in powers]
    assert lr == {
        "image/patch/kernel": 0.5**4,
        "image/cls": 0.5**4,
        "image/blocks/attn/kernel": d(3, 2, 1),
        "image/blocks/attn/bias": d(3, 2, 1),
        "image/blocks/mlp/kernel": d(3, 2, 1),
        "image/blocks/gate": d(3, 2, 1),
        "image/post_norm/scale": 1.0,
        "text/embed/embedding": 0.5**5,
        "text/blocks/cross/kernel": d(4, 2),
        "text/blocks/self/blocks/kernel": [d(4, 3), d(2, 1)],
        "text/blocks/self/blocks/bias": [d(4, 3), d(2, 1)],
        "head/kernel": 1.0,
        "head/conv": 1.0,
        "scale": 1.0,
    }
    assert plan.lr["text/blocks/self/blocks/kernel"].shape == (2, 2, 1, 1)
    flat, axes = unroll(random_model(0))
    unrolled = optim.make_plan(settings(layer_decay=0.5), flat, axes).lr
    assert unrolled["image/blocks_0/gate"] == 0.5**3 and unrolled["image/patch/kernel"] == 0.5**4
    assert unrolled["text/blocks_1/cross/kernel"] == 0.5**2 and unrolled["text/blocks_1/self/blocks_0/bias"] == 0.5**2


def test_layer_decay_where_the_scanned_stack_lies_inside_an_unrolled_one():
    shapes = {f"blocks_{i}": {"norm": jnp.zeros(4), "inner": jnp.zeros((2, 4))} for i in range(3)}
    axes = {f"blocks_{i}": {"norm": ("embed",), "inner": ("layers", "embed")} for i in range(3)}
    lr = optim.make_plan(settings(layer_decay=0.5), {**shapes, "head": jnp.zeros(4)}, {**axes, "head": ("embed",)}).lr
    assert lr["blocks_1/norm"] == 0.5**4 and np.squeeze(lr["blocks_1/inner"]).tolist() == [0.5**4, 0.5**3] and lr["head"] == 1.0


def test_muon_takes_the_matrices_of_the_stacks():
    kinds = optim.make_plan(settings("muon"), random_model(0), model_axes()).kind
    assert {path for path, kind in kinds.items() if kind == "muon"} == {
        "image/blocks/attn/kernel",
        "image/blocks/mlp/kernel",
        "text/blocks/cross/kernel",
        "text/blocks/self/blocks/kernel",
    }
    assert set(kinds.values()) == {"muon", "adam"}


def test_describe_is_plain_json():
    config = settings("muon", layer_decay=0.5, weight_decay=0.1, wd_rules=((".*(bias|gate)", 0.0), (".*", 1.0)))
    table = optim.describe(config, random_model(0), model_axes())
    assert table["image/blocks/gate"] == {"lr": [0.125, 0.25, 0.5], "weight_decay": 0.0, "optimizer": "adam"}
    assert table["head/kernel"] == {"lr": 1.0, "weight_decay": 0.1, "optimizer": "adam"}
    assert json.loads(json.dumps(table)) == table


# --- state -----------------------------------------------------------------------------------------------------------------

STATEFUL = {
    "adamw": settings(clip_norm=1.0, agc=0.1, weight_decay=0.1),
    "adafactor": settings("adafactor", args={"momentum": 0.9}),
    "lion": settings("lion"),
    "sgd": settings("sgd"),
    "muon": settings("muon", agc=0.1),
}


@pytest.mark.parametrize("name", STATEFUL)
def test_state_is_float32_and_survives_orbax_bit_for_bit(name, tmp_path):
    params = random_model(0)
    tx, _ = optim.make(STATEFUL[name], jax.eval_shape(lambda: params), model_axes(), STEPS)
    state = tx.init(params)
    for step in range(2):
        _, state = jax.jit(tx.update)(random_model(step + 1), state, params, step=jnp.int32(step))
    for x in jax.tree.leaves(state):
        assert x.dtype == (jnp.int32 if x.shape == () and jnp.issubdtype(x.dtype, jnp.integer) else jnp.float32)
    assert jax.tree.structure(jax.eval_shape(tx.init, params)) == jax.tree.structure(state)
    jax.tree.map(lambda a, b: (a.shape, a.dtype) == (b.shape, b.dtype) or pytest.fail("init and update differ"), tx.init(params), state)
    with ocp.Checkpointer(ocp.PyTreeCheckpointHandler()) as checkpointer:
        checkpointer.save(tmp_path / "state", args=ocp.args.PyTreeSave(state))
        abstract = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), state)
        restored = checkpointer.restore(
            tmp_path / "state", args=ocp.args.PyTreeRestore(abstract, restore_args=ocp.checkpoint_utils.construct_restore_args(abstract))
        )
    assert jax.tree.structure(restored) == jax.tree.structure(state)
    jax.tree.map(lambda a, b: np.asarray(a).tobytes() == np.asarray(b).tobytes() or pytest.fail("bits differ"), restored, state)


def test_clipping_does_not_change_the_states_tree():
    params = random_model(0)
    with_clip, without = (
        optim.make(c, params, model_axes(), STEPS)[0].init(params) for c in (settings(clip_norm=1.0, agc=0.1, weight_decay=0.1), settings())
    )
    assert jax.tree.structure(with_clip) == jax.tree.structure(without)


# --- bad input -----------------------------------------------------------------------------------------------------------

BAD = {
    "name": (settings("adamm"), "did you mean 'adamw'"),
    "argument": (settings(args={"beta1": 0.9}), "optim.args of 'adamw': unknown key 'beta1'"),
    "argument's type": (settings(args={"b1": "0.9"}), "b1 is '0.9', expected float"),
    "other optimizer's argument": (settings("lion", args={"eps": 0.9}), "unknown key 'eps'"),
    "muon's preconditioning": (settings("muon", args={"preconditioning": "frob"}), "preconditioning is 'frob'"),
    "clip_norm": (settings(clip_norm=0.0), "optim.clip_norm is 0.0, expected a number above 0"),
    "agc": (settings(agc=-0.1), "optim.agc is -0.1"),
    "weight_decay": (settings(weight_decay=-1.0), "optim.weight_decay is -1.0"),
    "lr rule matches nothing": (
        settings(lr_rules=(("imgae/.*", 0.1), (".*", 1.0))),
        "optim.lr_rules: rule 0 'imgae/.*' decides no parameter",
    ),
    "lr rules leave some": (settings(lr_rules=(("image/.*", 0.1),)), "optim.lr_rules: no rule covers"),
    "wd rule": (settings(wd_rules=((".*", "none"),)), "the value is 'none', expected a number or one number a layer"),
    "agc rule": (settings(agc=0.1, agc_rules=(("nothing", False), (".*", True))), "optim.agc_rules: rule 0"),
    "agc rule's value": (settings(agc=0.1, agc_rules=((".*", 1.0),)), "is 1.0, expected True or False"),
    "muon rule": (settings("muon", muon_rules=(("nothing", False), (".*", True))), "optim.muon_rules: rule 0"),
    "no matrix": (settings("muon", muon_rules=((".*", False),)), "optim.muon_rules choose no matrix"),
    "numbers outside a stack": (settings(lr_rules=((".*", (1.0, 2.0, 3.0)),)), "belongs to no stack"),
    "too few numbers": (settings(lr_rules=(("image/blocks/.*", (1.0, 2.0)), (".*", 1.0))), "has 3 layers"),
    "layer_decay": (settings(layer_decay=1.5), "optim.layer_decay is 1.5"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input_is_one_line(case):
    config, message = BAD[case]
    with pytest.raises(UserError) as error:
        optim.make(config, random_model(0), model_axes(), STEPS)
    assert message in str(error.value) and "\n" not in str(error.value)


def test_models_without_a_stack():
    params, axes = {"w": jnp.ones((2, 2))}, {"w": ("in", "out")}
    optim.make(settings(), params, axes, STEPS)
    with pytest.raises(UserError, match=r"no stack of layers, so the empty optim\.muon_rules choose no matrix"):
        optim.make(settings("muon"), params, axes, STEPS)
    with pytest.raises(UserError, match=r"optim\.layer_decay is set but no trained parameter"):
        optim.make(settings(layer_decay=0.5), params, axes, STEPS)


def test_axes_must_fit():
    with pytest.raises(UserError, match="'w' of shape \\(2, 2\\) has logical axes"):
        optim.make(settings(), {"w": jnp.ones((2, 2))}, {"w": ("in",)}, STEPS)
    with pytest.raises(UserError, match="'layers' must come first"):
        optim.make(settings(), {"w": jnp.ones((2, 2))}, {"w": ("in", "layers")}, STEPS)


def test_integers_cannot_be_trained():
    with pytest.raises(UserError, match="'w' is int32"):
        optim.make(settings(), {"w": jnp.ones((2,), jnp.int32)}, {"w": ("in",)}, STEPS)


# --- groups --------------------------------------------------------------------------------------------------------------

GROUPS = (
    ("head", "head/.*", {"args": {"b1": 0.5}, "clip_norm": 0.1, "lr": 0.01}),
    ("text", "(text|head)/.*", {"name": "lion", "args": {}, "weight_decay": 0.0}),
)


def test_groups_step_as_if_each_were_alone():
    """Own optimizer, betas, clipping, decay and learning rate; a rule of all parameters need decide nothing within a group."""
    params, axes = random_model(0), model_axes()
    grads = lambda step: random_model(step + 1)
    rules = {"wd_rules": (("image/.*", 2.0), (".*", 1.0))}
    whole = run(settings(weight_decay=0.1, clip_norm=1.0, groups=GROUPS, **rules), params, axes, grads)
    own = {
        "head/": settings(args={"b1": 0.5}, weight_decay=0.1, clip_norm=0.1, lr=0.01),
        "text/": settings("lion", clip_norm=1.0),
        "": settings(weight_decay=0.1, clip_norm=1.0, wd_rules=rules["wd_rules"]),
    }
    for prefix, config in own.items():
        mine = lambda p, prefix=prefix: p.startswith(prefix) if prefix else not p.startswith(("head/", "text/"))
        pick = lambda t, mine=mine: tree.select(t, mine)
        alone = run(config, pick(params), axes, lambda step, pick=pick: pick(grads(step)))
        jax.tree.map(np.testing.assert_array_equal, pick(whole), alone)


def test_groups_learning_rates_and_description():
    config = settings(groups=GROUPS)
    shapes, axes = jax.eval_shape(lambda: random_model(0)), model_axes()
    rates = optim.learning_rates(config, shapes, axes, STEPS)
    assert {k: float(f(3)) for k, f in rates.items()} == pytest.approx(
        {"learning_rate": 1e-3, "learning_rate_head": 0.01, "learning_rate_text": 1e-3}
    )
    told = optim.describe(config, shapes, axes)
    assert told["head/kernel"]["group"] == "head" and told["text/embed/embedding"]["optimizer"] == "lion"
    assert "group" not in told["scale"] and list(told) == sorted(told) and json.dumps(told)
    assert optim.learning_rates(settings(), shapes, axes, STEPS).keys() == {"learning_rate"}


def test_without_groups_nothing_is_wrapped():
    """Checkpoints of runs from before there were groups still fit."""
    made, _ = optim.make(settings(), random_model(0), model_axes(), STEPS)
    assert set(made.init(random_model(0))) == {"adamw"}
    frozen = (("nobody", "scale", {"lr": 1.0}),)  # of which a run trains nothing
    params = tree.select(random_model(0), lambda p: p != "scale")
    assert set(optim.make(settings(groups=frozen), params, model_axes(), STEPS)[0].init(params)) == {"adamw"}


BAD_GROUPS = {
    "optim.groups has ('head', 'head/.*'), expected ('name', 'regex of parameters', {'key of optim': value})": (("head", "head/.*"),),
    "optim.groups: group 'head' has an unknown key 'clip'; did you mean": (("head", "head/.*", {"clip": 1.0}),),
    "optim.groups: group 'head' has an unknown key 'freeze'": (("head", "head/.*", {"freeze": ()}),),
    "optim.groups: group 'head': lr is 'x'": (("head", "head/.*", {"lr": "x"}),),
    "optim.groups has two groups named 'head'": (("head", "head/.*", {}), ("head", "text/.*", {})),
    "optim.groups: 'rest' names what no group takes": (("rest", "head/.*", {}),),
    "optim.groups: rule 1 'head/kernel' decides no parameter": (("head", "head/.*", {}), ("kernel", "head/kernel", {})),
    "optim.name is 'adamm'": (("head", "head/.*", {"name": "adamm"}),),
}


@pytest.mark.parametrize("message", BAD_GROUPS)
def test_bad_groups_are_one_line(message):
    with pytest.raises(UserError) as error:
        optim.make(settings(groups=BAD_GROUPS[message]), random_model(0), model_axes(), STEPS)
    assert message in str(error.value) and "\n" not in str(error.value)
