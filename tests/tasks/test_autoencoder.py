"""The autoencoder's game: who is moved by what, the factor between the losses, batch statistics, perception, and what is refused."""

import ast
import dataclasses
import functools
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from ml_collections import ConfigDict

from mmjax import tasks
from mmjax.core import config as config_lib
from mmjax.core import optim, state, tree
from mmjax.core.errors import UserError
from mmjax.core.step import make_train_step
from mmjax.models.autoencoder_kl import AutoencoderKL, draw
from mmjax.models.discriminator import PatchGAN

BATCH, SIZE = 4, 16
AE = {"latent": 2, "mults": (1,), "width": 8, "blocks": 1, "groups": 4}
CRITIC = {"width": 4, "depth": 1}
GROUPS = (("discriminator", "discriminator/.*", {"args": {"b1": 0.5, "b2": 0.9}, "clip_norm": 0.1}),)
STATISTICS = {f"discriminator/norm1/{name}" for name in ("mean", "var")}


def config(**model):
    c = config_lib.base()
    c.task, c.batch_size = "autoencoder", BATCH
    c.model = ConfigDict({"size": SIZE, "channels": 3, "autoencoder": AE, "discriminator": CRITIC, "kl": 1e-3, **model})
    return c


def task_of(**model):
    return tasks.make(config(**model))


@functools.cache
def started():
    return filled(task_of())


def filled(task, seed=0):
    """Parameters of about the size of fresh ones, without compiling an initialisation."""
    r = np.random.default_rng(seed)

    def value(path, x):
        name, draw = path.split("/")[-1], r.normal(size=x.shape).astype(np.float32)
        if name in ("scale", "var"):
            return 1 + 0.1 * np.abs(draw)
        return np.float32(0) if name == "log_scale" else draw * (0.1 if x.ndim == 1 else np.prod(x.shape[:-1]) ** -0.5)

    shapes = tree.flatten(jax.eval_shape(task.init, jax.random.key(0)))
    return tree.unflatten({path: jnp.asarray(value(path, x), jnp.float32) for path, x in shapes.items()})


def batch_of(seed=0):
    x = np.random.default_rng(seed).uniform(-1, 1, (BATCH, SIZE, SIZE, 3)).astype(np.float32)
    return {"image": jnp.asarray(x), "_index": jnp.arange(BATCH)}


@functools.cache
def compiled(options):
    """value_and_grad of the task of `options`, a repr."""
    task = task_of(**ast.literal_eval(options))
    return jax.jit(jax.value_and_grad(lambda p, step: task.loss(p, batch_of(), jax.random.key(1), step), has_aux=True))


def value_and_grad(params, step=0, **options):
    (value, aux), grads = compiled(repr(options))(params, jnp.int32(step))
    return float(value), aux, grads


def norm(grads):
    return float(jnp.sqrt(sum(jnp.square(g).sum() for g in jax.tree.leaves(grads))))


@functools.cache
def players():
    """(params, weight) -> the two losses' values and gradients, each player's from its own loss alone."""
    model, critic = AutoencoderKL(**AE), PatchGAN(**CRITIC)
    x, keys = batch_of()["image"], jax.vmap(lambda i: jax.random.fold_in(jax.random.key(1), i))(jnp.arange(BATCH))
    judged = lambda d, y: critic.apply({"params": d}, y, train=True, mutable=["state"])[0]

    def pictures(p):
        mean, logvar = model.apply({"params": p}, x, method="encode")
        return model.apply({"params": p}, draw(mean, logvar, keys), method="decode"), mean, logvar

    def own(p, d, weight):
        y, mean, logvar = pictures(p)
        kl = 0.5 * (mean**2 + jnp.exp(logvar) - 1 - logvar).sum((1, 2, 3))
        return (jnp.abs(x - y).sum((1, 2, 3)) + 1e-3 * kl).mean() - weight * judged(d, y).mean()

    def other(d, p):
        y = pictures(p)[0]
        return (jax.nn.relu(1 - judged(d, x)).mean() + jax.nn.relu(1 + judged(d, y)).mean()) / 2

    def both(params, weight):
        p, d = params["autoencoder"], params["discriminator"]
        return jax.value_and_grad(own)(p, d, weight), jax.value_and_grad(other)(d, p)

    return jax.jit(both)


def by_hand(params, weight):
    """(loss, gradients of the autoencoder, gradients of the critic)."""
    (one, g1), (two, g2) = players()(params, jnp.float32(weight))
    return float(one + two), g1, g2


def assert_same(got, want, tolerance):
    """Relative to a leaf's largest entry, or to 1."""
    for path, g in tree.flatten(want).items():
        atol = tolerance * max(1, float(jnp.abs(g).max()))
        np.testing.assert_allclose(tree.flatten(got)[path], g, rtol=0, atol=atol, err_msg=path)


def test_each_player_is_moved_by_its_own_loss_alone():
    """The gradient of the one scalar is the two gradients of the two losses; statistics have none that anybody uses."""
    value, _, grads = value_and_grad(started(), adaptive=False)
    want, own, other = by_hand(started(), 0.5)
    assert value == pytest.approx(want, rel=1e-5)
    assert_same(grads["autoencoder"], own, 2e-5)
    assert_same(grads["discriminator"], tree.select(other, lambda p: p not in ("norm1/mean", "norm1/var")), 2e-5)
    assert norm(other) > 1e-3


def test_the_factor_balances_the_gradients_at_the_last_kernel():
    params = started()
    value, aux, grads = value_and_grad(params, 3, start=3)
    factor = float(aux["metrics"]["adversarial_factor"])
    last = lambda g: g["decoder"]["conv_out"]["kernel"]
    plain, game = (last(by_hand(params, w)[1]) for w in (0.0, 1.0))
    assert factor == pytest.approx(norm(plain) / (norm(game - plain) + 1e-4), rel=1e-3)
    want, own, _ = by_hand(params, 0.5 * factor)
    assert value == pytest.approx(want, rel=1e-4)
    assert_same(grads["autoencoder"], own, 2e-4)


def test_before_the_start_there_is_no_game():
    params = started()
    value, _, grads = value_and_grad(params, 2, start=3)
    want, _, own = alone()
    assert value == pytest.approx(want, rel=1e-6)
    assert_same(grads["autoencoder"], own["autoencoder"], 1e-6)
    assert norm(grads["discriminator"]) == 0
    assert norm(value_and_grad(params, 3, start=3)[2]["discriminator"]) > 0


def alone():
    """Value, aux and gradients without a critic, the scale learnt from 0."""
    return value_and_grad({"autoencoder": started()["autoencoder"], "log_scale": jnp.float32(0)}, discriminator=None, learn_scale=True)


def test_statistics_are_state_and_follow_real_pictures_then_reconstructions():
    task, params = task_of(), started()
    _, aux, _ = value_and_grad(params, 3, start=3)
    assert {f"discriminator/{p}" for p in tree.flatten(aux["state"]["discriminator"])} == STATISTICS == state.roles(task, params).state
    critic, x = PatchGAN(**CRITIC), batch_of()["image"]
    first = critic.apply({"params": params["discriminator"]}, x, train=True, mutable=["state"])[1]["state"]["norm1"]["mean"]
    moved = aux["state"]["discriminator"]["norm1"]["mean"]
    assert not np.allclose(moved, first, rtol=1e-3)
    np.testing.assert_array_less(np.abs(moved - 0.9 * first), 0.1 * 10)  # a tenth of it new
    assert task_of(discriminator={**CRITIC, "norm": "group"}).state == ()


def test_a_step_moves_each_by_its_own_optimizer():
    """With Adam's first step every critic weight moves by lr sign(g), whatever the clipping; its moments show betas and clip."""
    c, task = config(), task_of()
    c.optim.groups, c.optim.schedule, c.optim.lr = GROUPS, "constant", 1e-3
    who = state.roles(task, started())
    tx, _ = optim.make(c.optim, who.split(started())[0], task.axes, 10)
    train = jax.jit(make_train_step(task, tx))
    start = state.init(dataclasses.replace(task, init=lambda key: started()), tx, {}, 0)
    batch = {k: v for k, v in batch_of().items() if k != "_index"}
    new, metrics = train(start, batch)
    assert np.isfinite(metrics["loss"])
    second = new.opt_state["discriminator"]["adamw"].nu["discriminator"]
    assert float(sum(x.sum() for x in jax.tree.leaves(second))) == pytest.approx((1 - 0.9) * 0.1**2, rel=1e-3)
    before, after = tree.flatten(start.params), tree.flatten(new.params)
    for path in before:
        moved = not np.array_equal(before[path], after[path])
        assert moved == (path != "log_scale"), path


def test_encode_and_decode():
    task, params, x = task_of(), started(), batch_of()["image"]
    moments = task.predict["encode"](params, x)
    assert moments.shape == (BATCH, SIZE, SIZE, 4)
    mean, logvar = AutoencoderKL(**AE).apply({"params": params["autoencoder"]}, x, method="encode")
    np.testing.assert_array_equal(moments, jnp.concatenate([mean, logvar], -1))
    y, *_ = AutoencoderKL(**AE).apply({"params": params["autoencoder"]}, x)
    np.testing.assert_array_equal(task.predict["decode"](params, moments[..., :2]), y)


def test_the_scale_is_learnt_where_it_says_so():
    """Of an L1 density with scale e^s the derivative in s is count (1 - mean error e^-s)."""
    _, aux, grads = alone()
    assert float(grads["log_scale"]) == pytest.approx(SIZE**2 * 3 * (1 - float(aux["metrics"]["l1"])), rel=1e-4)
    _, scaled, moved = value_and_grad({**started(), "log_scale": jnp.float32(0.3)}, adaptive=False)
    assert float(moved["log_scale"]) == pytest.approx(SIZE**2 * 3 * (1 - float(scaled["metrics"]["l1"]) * np.exp(-0.3)), rel=1e-4)
    params = {k: started()[k] for k in ("autoencoder", "log_scale")}
    learnt, fixed = (state.roles(task_of(discriminator=None, learn_scale=x), params) for x in (True, False))
    assert "log_scale" in learnt.trained and "log_scale" in fixed.frozen


# Perception.

FIELDS = {"width": 4, "depths": (1, 1, 1, 1), "heads": 2}
TOWER = {"type": "resnet", **FIELDS}


def features(path, **more):
    return {"type": "features", "path": str(path), "tower": TOWER, "size": 32, "below": "", **more}


@pytest.fixture(scope="module")
def classifier(tmp_path_factory):
    """Workdir of a classifier's run, as far as its parameters are concerned."""
    from mmjax.core.checkpoint import Checkpoints

    c = config_lib.base()
    c.task, c.batch_size = "classification", BATCH
    c.model = ConfigDict({"size": 32, "channels": 3, "smoothing": 0.0, "resnet": {**FIELDS, "classes": 3}})
    params = filled(tasks.make(c), 5)
    workdir = tmp_path_factory.mktemp("runs") / "judge"
    with Checkpoints(workdir / "checkpoints") as checkpoints:
        checkpoints.save(1, {"params": params}, wait=True)
    return workdir, params


def test_features_of_a_network_trained_here(classifier):
    """Stage by stage the squared distance of unit vectors; a frozen judge that reads its weights when a run begins."""
    workdir, judge = classifier
    options = features(workdir, tower={**TOWER, "classes": 3})
    task = task_of(discriminator=None, perceptual=options, perceptual_weight=2.0)
    given = task.weights()["perceptual"]
    jax.tree.map(np.testing.assert_array_equal, given, jax.device_get(judge))
    fresh = jax.eval_shape(task.init, jax.random.key(0))
    who = state.roles(task, fresh)
    assert {p for p in tree.flatten(fresh) if p.startswith("perceptual/")} <= who.frozen
    params = {**started(), "perceptual": given}
    value, aux, grads = value_and_grad(
        {k: params[k] for k in ("autoencoder", "log_scale", "perceptual")}, discriminator=None, perceptual=options, perceptual_weight=2.0
    )
    distance = float(aux["metrics"]["perceptual"])
    assert distance > 1e-3
    plain = alone()
    assert value - plain[0] == pytest.approx(2.0 * distance * SIZE**2 * 3, rel=1e-3)
    assert norm(jax.tree.map(jnp.subtract, grads["autoencoder"], plain[2]["autoencoder"])) > 1e-3


def test_the_maps_are_those_of_every_stage(classifier):
    from mmjax.models.lpips import distance
    from mmjax.models.resnet import ModifiedResNet
    from mmjax.tasks.perceptual import feature_maps

    model = ModifiedResNet(**FIELDS, classes=3)
    x = jax.random.normal(jax.random.key(0), (2, 32, 32, 3))
    maps = feature_maps(model, classifier[1], x)
    assert [m.shape for m in maps] == [(2, 8, 8, 16), (2, 4, 4, 32), (2, 2, 2, 64), (2, 1, 1, 128)]
    assert float(distance(maps, maps).max()) == 0


def test_published_weights_by_path(tmp_path):
    """LPIPS from a file: the value is that of the model with those weights. The network is smaller than VGG-16."""
    from mmjax.convert import safetensors
    from mmjax.convert.tensors import Tensor
    from mmjax.models.lpips import LPIPS

    groups, r, named, n, c = ((4, 1), (8, 1)), np.random.default_rng(0), {}, 0, 3
    for i, (out, _) in enumerate(groups):
        n += i > 0
        named |= {f"features.{n}.weight": r.normal(size=(out, c, 3, 3)), f"features.{n}.bias": r.normal(size=out)}
        named[f"lin{i}.model.1.weight"] = r.uniform(size=(1, out, 1, 1))
        n, c = n + 2, out
    arrays = {k: v.astype(np.float32) for k, v in named.items()}
    path = tmp_path / "vgg.safetensors"
    safetensors.write(path, {k: Tensor(v.shape, v.dtype, lambda v=v: v) for k, v in arrays.items()})
    task = task_of(discriminator=None, perceptual={"type": "lpips", "vgg": str(path), "groups": groups})
    given = jax.tree.map(jnp.asarray, task.weights()["perceptual"])
    params = {**started(), "perceptual": given}
    batch = batch_of()
    _, aux = jax.jit(task.loss)(params, batch, jax.random.key(1), jnp.int32(0))
    keys = jax.vmap(lambda i: jax.random.fold_in(jax.random.key(1), i))(jnp.arange(BATCH))
    y, *_ = AutoencoderKL(**AE).apply({"params": params["autoencoder"]}, batch["image"], keys)
    want = LPIPS(groups).apply({"params": given}, batch["image"], y)
    assert float(aux["metrics"]["perceptual"]) == pytest.approx(float(want.mean()), rel=1e-4)


# What it refuses, each in a line.

BAD = {
    "config.model: Settings has no field 'kll'; did you mean": {"kll": 1.0},
    "config.model.size is 15, which the autoencoder cannot divide by 2": {"size": 15, "autoencoder": {**AE, "mults": (1, 2)}},
    "config.model.channels is 1, and the autoencoder's pictures have 3": {"channels": 1},
    "config.model.norm is 'l3'": {"norm": "l3"},
    "config.model.adversarial is 'hing'; did you mean 'hinge'?": {"adversarial": "hing"},
    "config.model.discriminator: PatchGAN has no field 'dept'; did you mean 'depth'?": {"discriminator": {"dept": 2}},
    "config.model.perceptual.type is 'lpip'; did you mean 'lpips'?": {"perceptual": {"type": "lpip"}},
    "config.model.perceptual.type is 'lpips', which judges pictures of 3 channels": {
        "perceptual": {"type": "lpips", "vgg": "x"},
        "autoencoder": {**AE, "channels": 1},
        "channels": 1,
    },
    "config.model.perceptual has no key 'size'": {"perceptual": {"type": "features", "path": "x", "tower": TOWER}},
    "config.model.perceptual.tower: ModifiedResNet has no field 'widht'; did you mean 'width'?": {
        "perceptual": features("x", tower={**TOWER, "widht": 4})
    },
}


@pytest.mark.parametrize("message", BAD)
def test_refusals(message):
    with pytest.raises(UserError) as e:
        task_of(**BAD[message])
    assert message in str(e.value) and "\n" not in str(e.value)


def test_weights_of_another_network_are_refused(classifier):
    task = task_of(discriminator=None, perceptual=features(classifier[0]))
    with pytest.raises(UserError, match="no LPIPS.* holds another model.*only there: head/bias"):
        task.weights()
    with pytest.raises(UserError, match="below is 'image', and '.*' has nothing there"):
        task_of(discriminator=None, perceptual=features(classifier[0], below="image")).weights()


def test_the_factor_of_a_batch_is_not_accumulated():
    assert not task_of().can_accumulate and task_of(adaptive=False).can_accumulate


# The paper's, at full size: PyTorch's counts of the autoencoders, of PatchGAN with 64 channels and three halvings, and of VGG-16 with
# the 1,472 weights of LPIPS.
@pytest.mark.parametrize(("kind", "count"), [("kl-f4", 55_312_063), ("kl-f8", 83_653_863)])
def test_published_configs(kind, count):
    c = config_lib.load(f"{Path(__file__).resolve().parents[2]}/configs/diffusion/autoencoder.py:{kind}")
    task = tasks.make(c)
    shapes = jax.eval_shape(task.init, jax.random.key(0))
    who = state.roles(task, shapes)
    assert tree.count(shapes["autoencoder"]) == count
    assert sum(x.size for p, x in tree.flatten(shapes["discriminator"]).items() if f"discriminator/{p}" in who.trained) == 2_765_633
    assert tree.count(shapes["perceptual"]) == 14_714_688 + 1472
    assert optim.split(c.optim, who.split(shapes)[0], task.axes).keys() == {"discriminator", optim.REST}
