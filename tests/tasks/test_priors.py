"""Both priors as tasks: loss by formula, samples by hand, what is left out and what guides, and a run that begins by fitting itself."""

import functools
import json
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from ml_collections import ConfigDict

from mmjax import tasks
from mmjax.cli.main import main
from mmjax.core import config as config_lib
from mmjax.core import rng, tree
from mmjax.core.errors import UserError
from mmjax.data import store
from mmjax.diffusion import density, embeddings, spacing, walk
from mmjax.diffusion import path as paths
from mmjax.diffusion.posterior import posterior
from mmjax.tasks import ar_prior, diffusion_prior, prior_inputs
from tests.benchmarks import prior_gaussian
from tests.runs import arrays

BATCH, E, LENGTH, VOCAB = 4, 6, 5, 9
SMALL = {"width": 8, "depth": 1, "heads": 2, "length": LENGTH, "vocab": VOCAB}
COSINE = {"name": "discrete", "betas": "cosine", "steps": 50}
DIFFUSION = {"prior": {**SMALL, "embedding": E, "query": False}, "path": COSINE, "statistics": True, "dropout": 0.5, "candidates": 2}
DIFFUSION |= {"sampler": {"solver": "ddpm", "steps": 3, "guidance": 2.0, "clip": "static", "clip_range": 2.0}}
AR = {"width": E, "prior": {**SMALL, "codes": 4, "buckets": 16, "dots": 4}, "dropout": 0.5, "candidates": 1}


def task_of(name, **model):
    c = config_lib.base()
    c.task, c.batch_size, c.model = name, BATCH, ConfigDict(model)
    return tasks.make(c)


def parsed(module, **model):
    return module.parse(ConfigDict(model), jnp.float32)


def batch_of(start=0, count=BATCH):
    r = np.random.default_rng(0)
    draw = lambda *shape: r.normal(size=(8, *shape)).astype(np.float32)
    tokens = r.integers(1, VOCAB, (8, LENGTH)).astype(np.int32) * (np.arange(LENGTH) < 3)
    whole = {"embedding": draw(E) + 1, "text_embedding": draw(E), "tokens": tokens.astype(np.int32), "_index": np.arange(8, dtype=np.int32)}
    return {k: x[start : start + count] for k, x in whole.items()}


@functools.cache
def made(name):
    """(task, parameters of which none is 0, fitted to the batch)."""
    task = task_of(name, **(DIFFUSION if name == "diffusion_prior" else AR))
    shapes = jax.eval_shape(task.init, jax.random.key(0))
    # Large, so that every input has a say; the last product small, so that x0 is not clipped everywhere.
    fill = lambda i, path, x: (0.3 if "head" in path else 1.0) * np.random.default_rng(i).normal(size=x.shape)
    params = tree.unflatten({path: fill(i, path, x) for i, (path, x) in enumerate(tree.flatten(shapes).items())})
    params = tree.merge(params, task.fit(iter([batch_of(0, 8)] * 100_000)))
    assert tree.flatten(params).keys() == tree.flatten(shapes).keys()
    return task, jax.tree.map(lambda x: jnp.asarray(x, jnp.float32), params)


def keys_of(count, start=0):
    return rng.per_example(jax.random.key(3), jnp.arange(start, start + count))


@functools.cache
def loss_of(name):
    task, params = made(name)
    return jax.jit(lambda batch: task.loss(params, batch, jax.random.key(5), jnp.int32(0))[0])


def dropped_of(batch):
    return np.asarray(jax.vmap(lambda key: jax.random.bernoulli(rng.named(key, "caption"), 0.5))(training_keys(batch)))


def training_keys(batch):
    return rng.per_example(jax.random.key(5), jnp.asarray(batch["_index"]))


@functools.cache
def denoised():
    """The diffusion prior's network, compiled: (x, t, text, tokens, mask) -> [B, E]."""
    system, params = parsed(diffusion_prior, **DIFFUSION), made("diffusion_prior")[1]["prior"]
    run = jax.jit(lambda x, t, text, tokens, mask: system.network.apply({"params": params}, x, t, text, tokens=tokens, mask=mask))
    return lambda x, t, text, tokens, mask: run(*(np.asarray(a, np.float32) for a in (x, t, text)), np.int32(tokens), np.asarray(mask))


@functools.cache
def logits():
    """The autoregressive prior's, compiled: (codes, conditions) -> [B, N, V]."""
    system, params = parsed(ar_prior, **AR), made("ar_prior")[1]
    return jax.jit(functools.partial(system.logits, params))


def unit(x):
    return x.astype(np.float64) / np.linalg.norm(x, axis=1, keepdims=True)


# --- in training ---------------------------------------------------------------------------------------------------------


def test_loss_of_the_diffusion_prior_is_the_formula():
    """x0 of unit embeddings, less their mean and over their deviation, by its squared error; captions left out as zeros."""
    (_, params), batch = made("diffusion_prior"), batch_of()
    system = parsed(diffusion_prior, **DIFFUSION)
    every = unit(batch_of(0, 8)["embedding"])
    np.testing.assert_allclose(params["statistics"]["mean"], every.mean(0), rtol=1e-5)
    x0 = (every[:BATCH] - every.mean(0)) / every.std(0)
    np.testing.assert_allclose(system.scaled(params, jnp.asarray(batch["embedding"])), x0, rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(system.decode(params, jnp.asarray(x0, jnp.float32)), every[:BATCH], rtol=1e-4, atol=1e-5)
    own = lambda name: jax.vmap(lambda k: rng.named(k, name))(training_keys(batch))
    path = paths.make(COSINE)
    t = density.make({"name": "uniform"}, path).draw(own("time"))
    eps = jax.vmap(lambda k: jax.random.normal(k, (E,)))(own("noise"))
    x = path.alpha(t)[:, None] * x0 + path.sigma(t)[:, None] * eps
    keep = ~dropped_of(batch)[:, None]
    assert 0 < keep.sum() < BATCH
    tokens = batch["tokens"] * keep  # and what is not there is not looked at
    got = denoised()(x, t, unit(batch["text_embedding"]) * keep, tokens, tokens > 0)
    np.testing.assert_allclose(loss_of("diffusion_prior")(batch), np.mean((got - x0) ** 2), rtol=1e-4)


def test_loss_of_the_autoregressive_prior_is_the_formula():
    """Cross-entropy of the buckets of principal components, behind the quantile of the dot product."""
    (_, params), batch = made("ar_prior"), batch_of()
    every, texts = unit(batch_of(0, 8)["embedding"]), unit(batch_of(0, 8)["text_embedding"])
    values, vectors = np.linalg.eigh(np.cov(every, rowvar=False, bias=True))
    np.testing.assert_allclose(params["pca"]["eigenvalues"], np.maximum(values[::-1], 0), rtol=1e-4, atol=1e-7)
    y = (every - every.mean(0)) @ np.asarray(params["pca"]["directions"], np.float64).T
    np.testing.assert_allclose(np.abs(y), np.abs((every - every.mean(0)) @ vectors[:, ::-1][:, :4]), rtol=1e-3, atol=1e-4)
    codes = np.clip(np.floor((y[:BATCH] / np.sqrt(values[::-1][:4]) + 5) / (10 / 16)), 0, 15).astype(np.int32)
    dots = (every * texts).sum(1)
    np.testing.assert_allclose(params["dots"]["edges"], np.quantile(dots, [0.25, 0.5, 0.75]), rtol=1e-5)
    drop = dropped_of(batch)
    dot = np.where(drop, 4, (dots[:BATCH, None] > np.quantile(dots, [0.25, 0.5, 0.75])).sum(1))
    keep = ~drop[:, None]
    given = {"text_embedding": texts[:BATCH] * keep, "tokens": batch["tokens"] * keep, "dot": dot}
    given = {k: jnp.asarray(x, jnp.float32 if k == "text_embedding" else jnp.int32) for k, x in given.items()}
    said = logits()(jnp.asarray(codes[:, :-1]), given)
    want = -jnp.take_along_axis(jax.nn.log_softmax(said), jnp.asarray(codes)[..., None], axis=-1).mean()
    np.testing.assert_allclose(loss_of("ar_prior")(batch), want, rtol=1e-4)


@pytest.mark.parametrize("name", ["diffusion_prior", "ar_prior"])
def test_an_examples_noise_is_its_own(name):
    """The mean over a batch is that over its parts, in another order: an example's draws follow from its index alone."""
    batch = batch_of()
    turned = {k: x[::-1] for k, x in batch.items()}
    np.testing.assert_allclose(loss_of(name)(batch), loss_of(name)(turned), rtol=1e-5)


def test_padding_ends_with_the_last_token():
    tokens = jnp.asarray([[3, 0, 2, 0, 0], [0, 0, 0, 0, 0], [1, 2, 3, 4, 5]])
    want = [[True] * 3 + [False] * 2, [False] * 5, [True] * 5]
    np.testing.assert_array_equal(prior_inputs.not_padding(tokens), want)


# --- in sampling ---------------------------------------------------------------------------------------------------------


@functools.cache
def draw_of(name):
    task, params = made(name)
    return jax.jit(functools.partial(task.predict["image_embedding"], params))


@functools.cache
def drawn(name):
    b = batch_of()
    return draw_of(name)(b["tokens"], b["text_embedding"], keys_of(BATCH))


def test_samples_of_the_diffusion_prior_by_hand():
    """Guidance away from no caption, x0 clipped at 2, ancestral steps, and of two candidates the one nearer to the text."""
    (_, params), batch, path = made("diffusion_prior"), batch_of(), paths.make(COSINE)
    mean, std = (np.asarray(params["statistics"][name])[None] for name in ("mean", "std"))
    text, tokens = unit(batch["text_embedding"]), batch["tokens"]
    walked = spacing.times(path, 3, "trailing")
    step = walk.on_host(lambda t, s: posterior(path, t, s), walked[:-1], walked[1:])

    def candidate(i):
        own = jax.vmap(lambda key: jax.random.fold_in(key, i))(keys_of(BATCH))
        x = np.asarray(walk.draw(own, (E,)))
        for k, t in enumerate(walked[:-1]):
            told, untold = (denoised()(x, np.full(BATCH, t), text * on, tokens * on, tokens * on > 0) for on in (1, 0))
            x0 = np.clip(2 * told - untold, -2, 2)
            noise = np.asarray(walk.gaussian(own, jnp.int32(k), jnp.asarray(x)))
            x = step.x0[k] * x0 + step.x[k] * x + np.sqrt(step.variance[k]) * noise
            x = np.asarray(x, np.float32)
        return unit(x * std + mean)

    both = np.stack([candidate(0), candidate(1)], 1)
    best = np.einsum("bce,be->bc", both, text).argmax(1)
    assert 0 < best.sum() < BATCH and np.abs(both[:, 0] - both[:, 1]).max(1).min() > 5e-3  # each is chosen somewhere, and tells
    np.testing.assert_allclose(drawn("diffusion_prior"), both[np.arange(BATCH), best], rtol=1e-3, atol=1e-4)


def test_samples_of_the_autoregressive_prior_by_hand():
    """Code by code without a cache, the dot product from the upper half."""
    (_, params), batch = made("ar_prior"), batch_of()
    system = parsed(ar_prior, **AR)
    own = jax.vmap(lambda key: jax.random.fold_in(key, 0))(keys_of(BATCH))
    given = system.captions.shown(jnp.asarray(batch["tokens"]), jnp.asarray(batch["text_embedding"]))
    given["dot"] = jax.vmap(lambda key: jax.random.randint(rng.named(key, "dot"), (), 2, 4))(own)
    codes = np.zeros((BATCH, 4), np.int32)
    for i in range(4):
        codes[:, i] = jax.vmap(jax.random.categorical)(rng.fold(own, i), logits()(jnp.asarray(codes[:, :-1]), given)[:, i])
    others = logits()(jnp.asarray(codes[:, :-1]), {**given, "dot": 3 - given["dot"]})
    assert np.abs(others - logits()(jnp.asarray(codes[:, :-1]), given)).max() > 0.3  # the dot product has a say
    pca = embeddings.PCA(**params["pca"])
    want = embeddings.unit(embeddings.decode(pca, codes, system.buckets))
    np.testing.assert_allclose(drawn("ar_prior"), want, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(("share", "wanted"), [(0.5, {4, 5, 6, 7}), (1.0, set(range(8))), (0.01, {7})])
def test_dot_products_are_of_the_top_share(share, wanted):
    assert set(np.asarray(ar_prior.high_dots(8, share, keys_of(200))).tolist()) == wanted


@pytest.mark.parametrize("name", ["diffusion_prior", "ar_prior"])
def test_a_sample_depends_on_its_key_alone(name):
    b = batch_of()
    turned = draw_of(name)(b["tokens"][::-1], b["text_embedding"][::-1], keys_of(BATCH)[::-1])
    np.testing.assert_allclose(drawn(name)[::-1], turned, rtol=1e-4, atol=1e-5)


def test_guided_codes_are_of_guided_logits():
    """At temperature 0 the likeliest of l_null + s (l - l_null); the cache holds both."""
    (_, params), batch = made("ar_prior"), batch_of()
    system = parsed(ar_prior, **AR)
    given = system.captions.shown(jnp.asarray(batch["tokens"]), jnp.asarray(batch["text_embedding"]))
    how = ar_prior.Sampling(temperature=0.0, guidance=3.0, top_dots=0.25)
    codes = jax.jit(lambda given, keys: ar_prior.draw(system, how, params, given, keys))(given, keys_of(BATCH))
    given["dot"] = jnp.full(BATCH, 3)
    given["dot"] = given["dot"].astype(jnp.int32)
    told, untold = (logits()(codes[:, :-1], g) for g in (given, system.null(given)))
    np.testing.assert_array_equal(codes, (untold + 3 * (told - untold)).argmax(-1))
    assert (codes != told.argmax(-1)).any()


def test_top_p_keeps_the_likeliest():
    """Of 0.5, 0.3, 0.15, 0.05 the first two have 0.7 together, and 0.4 needs the first alone."""
    said, keys = jnp.log(jnp.asarray([0.05, 0.5, 0.15, 0.3]))[None].repeat(400, 0), keys_of(400)
    shares = lambda **how: np.bincount(ar_prior.pick(said, keys, ar_prior.Sampling(**how)), minlength=4) / 400
    np.testing.assert_allclose(shares(top_p=0.7), [0, 0.625, 0, 0.375], atol=0.08)
    np.testing.assert_array_equal(shares(top_p=0.4), [0, 1, 0, 0])
    np.testing.assert_array_equal(shares(temperature=0.0), [0, 1, 0, 0])
    np.testing.assert_allclose(shares(), [0.05, 0.5, 0.15, 0.3], atol=0.08)
    assert shares(temperature=0.3)[1] > 0.8


# --- settings ------------------------------------------------------------------------------------------------------------

WORDLESS = {k: v for k, v in SMALL.items() if k not in ("vocab", "length")}
TOWER = {"vocab": VOCAB, "length": LENGTH, "width": 8, "depth": 1, "heads": 2, "mlp": 16}


@pytest.mark.parametrize(
    "model, spec",
    [
        ({"prior": WORDLESS}, set()),
        ({"prior": {**WORDLESS, "length": LENGTH}, "text": TOWER}, {"tokens"}),
        ({"prior": {**WORDLESS, "length": LENGTH}, "context": {"length": LENGTH, "width": 7}}, {"context", "mask"}),
    ],
    ids=["embedding alone", "own tower", "features"],
)
def test_what_a_caption_is(model, spec):
    """Of every kind of words the loss has shapes, and parameters are those that axes name."""
    for name, more in (("diffusion_prior", {"embedding": E}), ("ar_prior", {"codes": 4})):
        own = {"width": E} if name == "ar_prior" else {"path": COSINE, "sampler": {"steps": 3}}
        task = task_of(name, **{**model, "prior": {**model["prior"], **more}, **own})
        assert set(task.batch_spec) == {"embedding", "text_embedding", *spec}
        assert task.limits == ({"tokens": VOCAB} if "tokens" in spec else {})
        params = jax.eval_shape(task.init, jax.random.key(0))
        axes = {path: len(a) for path, a in tree.flatten(task.axes).items()}
        assert axes == {path: len(x.shape) for path, x in tree.flatten(params).items()}
        batch = {**task.batch_spec, "_index": jax.ShapeDtypeStruct((BATCH,), jnp.int32)}
        assert jax.eval_shape(lambda p, b, t=task: t.loss(p, b, jax.random.key(0), jnp.int32(0))[0], params, batch).shape == ()
        key, text = jax.ShapeDtypeStruct((BATCH,), jax.random.key(0).dtype), batch["text_embedding"]
        words = batch.get("tokens", batch.get("context"))
        more = {"mask": batch["mask"]} if "mask" in spec else {}
        if more and name == "diffusion_prior":  # what an empty caption's features are, in place of zeros
            more |= {"null": {"context": words, "text_embedding": text, "mask": batch["mask"]}}
        draw = functools.partial(task.predict["image_embedding"], sampler={"guidance": 2.0})
        assert jax.eval_shape(draw, params, words, text, key, **more).shape == (BATCH, E)


# Beside 1B each in the paper's table 3: one transformer; text encoder, latent decoder, components and quantiles. Karlo's as in diffusers.
SIZES = {"paper": 1_325_014_016, "paper_ar": 1_310_314_496 + 807_555_200 + 321 * 1024 + 63, "karlo": 1_022_030_080}


@pytest.mark.parametrize("kind", SIZES)
def test_published_sizes(kind):
    task = tasks.make(config_lib.load(f"configs/unclip/prior.py:{kind}"))
    assert tree.count(jax.eval_shape(task.init, jax.random.key(0))) == SIZES[kind]


@pytest.mark.parametrize(
    "name, change, message",
    [
        ("diffusion_prior", {"scal": 2.0}, "Settings has no field 'scal'.*scale"),
        ("diffusion_prior", {"prior": {"variant": "karlo1"}}, "prior.variant is 'karlo1'.*karlo"),
        ("diffusion_prior", {"prior": {"width": 8}}, "has no key 'embedding'"),
        ("diffusion_prior", {"scale": 3.0}, "scale is 3.0; expected a positive number, and 1 where statistics"),
        ("diffusion_prior", {"text": TOWER}, "prior.vocab is 9: set prior.vocab to 0"),
        ("diffusion_prior", {"dropout": 0.0}, "guidance is 2.0, but the model was trained with its condition always there"),
        ("diffusion_prior", {"dropout": 1.0}, "dropout is 1.0, expected a share"),
        ("diffusion_prior", {"prediction": "x1"}, "prediction of a denoiser is 'x1'"),
        ("ar_prior", {"prior": {**SMALL, "codes": 7}}, "prior.codes is 7; expected 1 to config.model.width, 6"),
        ("ar_prior", {"sampler": {"top_p": 0.0}}, "top_p 0.0"),
        ("ar_prior", {"sampler": {"guidance": 2.0}, "dropout": 0.0}, "guidance is 2.0, but the prior was trained with its captions"),
        ("ar_prior", {"prior": {**SMALL, "codes": 4, "buckets": 1}}, "1 buckets over 5.0"),
        ("ar_prior", {"context": {"length": 4, "width": 7}}, "prior.length is 5, and there are 4 words"),
    ],
)
def test_settings_that_do_not_go_together(name, change, message):
    with pytest.raises(UserError, match=message) as e:
        task_of(name, **{**(DIFFUSION if name == "diffusion_prior" else AR), **change})
    assert "\n" not in str(e.value)


def test_what_a_caller_gives_is_looked_at():
    task, params = made("diffusion_prior")
    draw = lambda words, text: task.predict["image_embedding"](params, words, text, keys_of(2))
    with pytest.raises(UserError, match=r"text: shape \(2, 5\) is given, the prior takes embeddings of 6 numbers"):
        draw(jnp.zeros((2, LENGTH), jnp.int32), jnp.zeros((2, 5)))
    with pytest.raises(UserError, match=r"words: shape \(2, 4\) is given, the prior takes tokens \(2, 5\)"):
        draw(jnp.zeros((2, 4), jnp.int32), jnp.zeros((2, E)))


# --- runs ----------------------------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["smoke", "smoke_ar"])
def test_a_run_fits_itself_stops_and_continues_to_the_same_bits(kind, tmp_path):
    r, records = np.random.default_rng(0), []
    for i in range(32):
        rows = {"text_embedding": r.normal(size=(3, 16)).astype(np.float32), "tokens": r.integers(0, 99, (3, 24)).astype(np.int32)}
        records.append({"embedding": r.normal(size=16).astype(np.float32) + 2, **rows, "index": np.int64(i)})
    model = {"fingerprint": "0" * 16, "workdir": "clip", "step": 1}
    source = {"name": "made", "split": "train", "fingerprint": "x", "classes": (), "prompts": ()}
    made = {"predict": "encode_image", "model": model, "source": source}
    writer = store.Writer(tmp_path / "set" / "train", made, 32, 32)
    writer.write(0, iter(records))
    writer.finish({**made, "features": {}})
    command = ["train", "--config", f"configs/unclip/prior.py:{kind}", f"data.path={tmp_path / 'set'}", "mesh.data=2", "mesh.fsdp=2"]
    assert main([*command, "mesh.tensor=2", "--workdir", str(tmp_path / "straight")]) == 0
    stopped = tmp_path / "stopped"
    shutil.copytree(tmp_path / "straight", stopped)
    (stopped / "checkpoints" / "4").rename(stopped / "taken_away")
    assert main(["train", "--workdir", str(stopped)]) == 0
    found = arrays(tmp_path / "straight")
    assert arrays(stopped) == found
    assert json.loads((stopped / "config.json").read_text())["config"]["task"] == ("ar_prior" if kind == "smoke_ar" else "diffusion_prior")


@pytest.mark.slow
@pytest.mark.parametrize("task", prior_gaussian.TASKS)
def test_both_reach_a_known_gaussian(task):
    """A few numbers, a small network: near the least loss, and moments near those of as many true samples."""
    found = prior_gaussian.measure(task, size=3, width=32, depth=2, steps=1500, batch=128, conditions=8, count=512)
    assert found["loss"] < found["floors"]["loss"] + 0.03
    assert found["found"]["mean"] < 0.05 and found["found"]["pooled_covariance"] < found["floors"]["method"]["pooled_covariance"] + 0.1
