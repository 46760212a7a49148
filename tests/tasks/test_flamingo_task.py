"""The task of Flamingo: the loss of several data sets, what is frozen and where it comes from, labels that are all masked."""

from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from ml_collections import ConfigDict

from mmjax.core import state, tree
from mmjax.core.config import base
from mmjax.core.errors import UserError
from mmjax.layers import stack_params
from mmjax.tasks import flamingo, make, weights

VOCAB, SIZE, CHUNK, IMAGE = 20, 8, 20, 21
STREAMS = {"pairs": {"batch": 2, "length": 6, "weight": 0.2}, "documents": {"batch": 2, "length": 12, "images": 2, "packed": True}}


def config(**more):
    c = base()
    c.task, c.batch_size = "flamingo", 4
    c.model = ConfigDict(
        {
            "vision": {"type": "vit", "patch": 4, "width": 8, "depth": 1, "heads": 2, "mlp": 8, "scan": False},
            "resampler": {"form": "flamingo", "width": 8, "depth": 1, "heads": 2, "head_width": 4, "mlp": 8, "latents": 2, "scan": False},
            "xattn": {"form": "flamingo", "heads": 2, "head_width": 4, "mlp": 8},
            "lm": {"vocab": VOCAB, "length": 16, "width": 8, "depth": 1, "heads": 2, "mlp": 8, "scan": False},
            **{"every": 1, "new_tokens": 2, "image_token": IMAGE, "size": SIZE, "streams": STREAMS},
        }
    )
    for key, value in more.items():
        if key in c.model:
            del c.model[key]
        c.model[key] = ConfigDict(value) if isinstance(value, dict) else value
    return c


@pytest.fixture(scope="module")
def task():
    return make(config())


@pytest.fixture(scope="module")
def params(task):
    """Of any values, gates among them: pictures are seen."""
    r = np.random.default_rng(5)
    return jax.tree.map(lambda x: jnp.asarray(r.normal(0, 0.3, x.shape).astype(np.float32)), jax.eval_shape(task.init, jax.random.key(0)))


@pytest.fixture(scope="module")
def loss(task):
    return jax.jit(jax.value_and_grad(lambda p, b: task.loss(p, b, jax.random.key(1), jnp.int32(0)), has_aux=True))


def batch():
    r = np.random.default_rng(0)
    row = lambda *ids: np.array(ids, np.int32)
    pairs = {
        "tokens": np.stack([row(1, IMAGE, 5, 6, CHUNK, 0), row(1, IMAGE, 7, CHUNK, 0, 0)]),
        "segments": np.stack([row(1, 1, 1, 1, 1, 0), row(1, 1, 1, 1, 0, 0)]),
        "images": row(1, 1),
        "_index": row(0, 1),
    }
    pairs["loss_mask"] = ((pairs["segments"] > 0) & (pairs["tokens"] != IMAGE)).astype(np.float32)
    tokens = np.stack(
        [row(1, IMAGE, 5, CHUNK, 1, IMAGE, 8, 9, CHUNK, 0, 0, 0), row(1, 4, CHUNK, IMAGE, 5, 6, 7, CHUNK, 1, IMAGE, 3, CHUNK)]
    )
    segments = np.stack([row(*[1] * 4, *[2] * 5, 0, 0, 0), row(*[1] * 8, *[2] * 4)])
    documents = {"tokens": tokens, "segments": segments, "images": row(2, 2), "_index": row(2, 3)}
    documents["loss_mask"] = ((segments > 0) & (tokens != IMAGE)).astype(np.float32)
    for part in (pairs, documents):
        part["pixels"] = r.normal(size=(2, int(part["images"].max()), 1, SIZE, SIZE, 3)).astype(np.float32)
    return {"pairs": pairs, "documents": documents}


def nll(logits, tokens, mask):
    """Mean of -log p, in float64."""
    x = np.asarray(logits, np.float64)[:, :-1]
    log_p = x - np.log(np.exp(x - x.max(-1, keepdims=True)).sum(-1, keepdims=True)) - x.max(-1, keepdims=True)
    own = np.take_along_axis(log_p, tokens[:, 1:, None], 2)[..., 0]
    return -(own * mask[:, 1:]).sum() / mask[:, 1:].sum()


def test_the_loss_is_the_weighted_sum_of_each_sets_mean(task, params, loss):
    b = batch()
    (value, aux), grads = loss(params, b)
    part = b["documents"]
    own = {"segments": part["segments"], "positions": flamingo.within(jnp.asarray(part["segments"]))}
    logits = jax.jit(task.predict["logits"])(params, part["tokens"], pixels=part["pixels"], images=part["images"], **own)
    first = np.diff(part["segments"], axis=1, prepend=-1) != 0  # of a document: it follows from nothing
    metrics = {name: float(aux["metrics"][f"cross_entropy_{name}"]) for name in STREAMS}
    np.testing.assert_allclose(metrics["documents"], nll(logits, part["tokens"], part["loss_mask"] * ~first), rtol=1e-5)
    np.testing.assert_allclose(value, 0.2 * metrics["pairs"] + metrics["documents"], rtol=1e-6)
    assert (float(aux["metrics"]["tokens_pairs"]), float(aux["metrics"]["tokens_documents"])) == (5, 13) and float(aux["weight"]) == 1
    moved = {p.partition("/")[0] for p, g in tree.flatten(grads).items() if float(abs(g).max()) > 0}
    assert {"resampler", "xattn", "new_tokens"} <= moved
    who = state.roles(task, params)
    assert {p.partition("/")[0] for p in who.trained} == {"resampler", "xattn", "new_tokens"}
    assert {p.partition("/")[0] for p in who.frozen} == {"vision", "lm"}


def test_labels_that_are_all_masked_weigh_nothing(params, loss):
    b = batch()
    for part in b.values():
        part["loss_mask"] = np.zeros_like(part["loss_mask"])
    (value, aux), grads = loss(params, b)
    assert float(value) == 0 and float(aux["weight"]) == 0
    assert all(float(abs(g).max()) == 0 for g in jax.tree.leaves(grads))
    b["pairs"]["loss_mask"] = batch()["pairs"]["loss_mask"]
    (value, aux), grads = loss(params, b)
    assert float(value) > 0 and float(aux["weight"]) == 1 and float(aux["metrics"]["cross_entropy_documents"]) == 0
    assert all(bool(jnp.isfinite(g).all()) for g in jax.tree.leaves(grads))


def test_documents_of_a_row_do_not_see_each_other(params, loss):
    b = batch()
    # Read at once: where it can, jax computes on numpy's own memory, which is written to below.
    of_documents = lambda: float(loss(params, b)[0][1]["metrics"]["cross_entropy_documents"])
    before = of_documents()
    b["documents"]["loss_mask"][:, :] = 0
    b["documents"]["loss_mask"][0, 6:9] = 1
    second = of_documents()
    b["documents"]["tokens"][0, 2] = 11  # another word and another picture in the first document
    b["documents"]["pixels"][0, 0] += 1
    same = of_documents()
    assert second == same != before
    b["documents"]["pixels"][0, 1] += 1
    assert of_documents() != same


def test_half_of_the_documents_look_at_the_next_picture(params):
    _, streams, model = flamingo.parse(config(streams={**STREAMS, "documents": {**STREAMS["documents"], "p_next": 0.5}}))
    run = jax.jit(lambda b, key: flamingo.part_loss(model, streams["documents"], flamingo.Options(), params, b, key)[0])
    b = batch()["documents"]
    b["loss_mask"] = np.zeros_like(b["loss_mask"])
    b["loss_mask"][1, 1:3] = 1  # text before the first picture of its document
    other = {**b, "pixels": b["pixels"].copy()}
    other["pixels"][:, 0] += 1.0  # the first picture is another
    drawn = [(float(run(b, jax.random.key(k))), float(run(other, jax.random.key(k)))) for k in range(8)]
    assert len({one for one, _ in drawn}) == 2 and 0 < sum(one != two for one, two in drawn) < 8
    assert len({one for one, two in drawn if one == two}) == len({one for one, two in drawn if one != two}) == 1


def test_towers_come_from_other_checkpoints(monkeypatch, task):
    like = jax.eval_shape(task.init, jax.random.key(0))
    filled = lambda t, value: jax.tree.map(lambda x: np.full(x.shape, value, np.float32), t)
    clip, text = {"image": {**filled(like["vision"], 2.0), "map": np.zeros(3)}, "text": {}}, {"lm": stack_params(filled(like["lm"], 3.0))}
    held = {"CLIP": clip, "LM": text, "BIG": {"lm": filled(jax.tree.map(lambda x: np.zeros((*x.shape, 2)), like["lm"]), 1.0)}}
    monkeypatch.setattr(weights, "from_pretrained", lambda path: SimpleNamespace(params=held[path]))
    given = make(config(weights={"vision": "CLIP", "lm": "LM"})).weights()
    assert set(given) == {"vision", "lm"} and set(tree.flatten(given)) == {
        p for p in tree.flatten(like) if p.startswith(("vision/", "lm/"))
    }
    assert {float(x.max()) for x in jax.tree.leaves(given["vision"])} == {2.0} and {
        float(x.max()) for x in jax.tree.leaves(given["lm"])
    } == {3.0}
    assert make(config(weights={"vision": "", "lm": ""})).weights is None
    for paths, message in (
        ({"lm": "CLIP"}, "'CLIP' has no 'lm', it has image, text"),
        ({"lm": "BIG"}, "'BIG' is another model than config.model.lm: .* parameters differ"),
        ({"vison": "CLIP"}, "weights names 'vison'; did you mean 'vision'"),
    ):
        with pytest.raises(UserError, match=message):
            make(config(weights=paths)).weights()


def test_what_is_frozen_and_in_which_type():
    unfrozen = make(config(train=("lm",), frozen_dtype="bfloat16"))
    shapes = jax.eval_shape(unfrozen.init, jax.random.key(0))
    assert {x.dtype.name for x in jax.tree.leaves(shapes["vision"])} == {"bfloat16"}
    assert {x.dtype.name for x in jax.tree.leaves([shapes[k] for k in ("lm", "xattn", "resampler", "new_tokens")])} == {"float32"}
    assert unfrozen.frozen == ("vision/.*",)


def test_what_is_wrong_is_said_in_one_line(task):
    for more, message in (
        ({"streams": {}}, "streams is empty"),
        ({"streams": {"pairs": {"batch": 4}}}, "streams.pairs has no key 'length'"),
        ({"streams": {"pairs": {"batch": 3, "length": 6}}}, "batch_size is 4, and the streams have 3 rows a step together"),
        ({"streams": {"pairs": {"batch": 4, "length": 6, "p_nxt": 1}}}, "has no field 'p_nxt'; did you mean 'p_next'"),
        ({"streams": {"pairs": {"batch": 4, "length": 60}}}, "length is 60, and the language model sees 16 tokens"),
        ({"train": ("text",)}, "train names 'text'"),
        ({"frozen_dtype": "float16"}, "frozen_dtype is 'float16'"),
    ):
        with pytest.raises(UserError, match=message):
            make(config(**more))
    b = batch()
    task.check(b)
    b["documents"]["tokens"][1, 9] = CHUNK
    with pytest.raises(UserError, match="stream 'documents', row 1 of the first batch: 1 image tokens .id 21. and 2 images"):
        task.check(b)
    with pytest.raises(UserError, match="videos of 0 frames"):
        task.predict["logits"]({}, b["pairs"]["tokens"], pixels=np.zeros((2, 1, 0, SIZE, SIZE, 3)))
