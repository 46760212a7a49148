"""Evaluators against hand-worked scores and a model whose answers are known."""

import jax.numpy as jnp
import numpy as np
import pytest
from ml_collections import ConfigDict

from mmjax import evals
from mmjax.core import config as config_lib
from mmjax.core import sharding
from mmjax.core.errors import UserError
from mmjax.data.bad import BadSample
from mmjax.data.source import open_source, open_tokenizer
from mmjax.evals import retrieval, zero_shot
from mmjax.evals.accuracy import accuracies, confusion

LENGTH = 16
SHOWN = (("decode", {"channels": 1}), ("normalize", {"mean": 0.0, "std": 1.0}), ("keep", {"keys": ("image", "label")}))
COMMON = {"every": 1, "split": "validation", "batch_size": 48, "length": LENGTH, "transforms": SHOWN}


@pytest.fixture(scope="module")
def data():
    return config_lib.override(config_lib.base(), ["data.source=digits_captions"]).data


def test_accuracies_by_hand():
    scores = np.array([[9, 1, 0, 0, 0, 0], [1, 9, 0, 0, 0, 0], [5, 9, 0, 0, 0, 0], [0, 1, 2, 3, 4, 5.0]])
    got = accuracies(scores, np.array([0, 1, 0, 0]))
    assert got == {"accuracy": 0.5, "accuracy_top5": 0.75, "mean_per_class": pytest.approx((1 / 3 + 1) / 2)}
    assert accuracies(np.zeros((4, 3)), np.array([0, 1, 2, 0])) == {"accuracy": 0.0, "mean_per_class": 0.0}  # ties are no answers
    np.testing.assert_array_equal(confusion(scores, np.array([0, 1, 0, 0]))[0], [1, 1, 0, 0, 0, 1])


def test_ensemble_normalises_averages_and_normalises():
    prompts = np.array([[[3.0, 0.0], [0.0, 5.0]], [[0.0, 2.0], [0.0, 2.0]]])
    np.testing.assert_allclose(zero_shot.ensemble(prompts), [[np.sqrt(0.5), np.sqrt(0.5)], [0.0, 1.0]])
    # A long prompt weighs no more than a short one, which averaging first would not give.
    assert not np.allclose(zero_shot.ensemble(prompts)[0], prompts[0].mean(0) / np.linalg.norm(prompts[0].mean(0)))


def knowing(data, wrong=()):
    """Predict functions that look an image's class up by its pixels and a prompt's class by its tokens; classes in `wrong` are mistaken."""
    source = open_source(data, "validation")
    tokenizer = open_tokenizer(source)
    from mmjax.data.loader import eval_batches
    from mmjax.data.transforms import build

    with eval_batches(source, build(SHOWN, tokenizer), batch_size=len(source)) as batches:
        whole = next(iter(batches))
    pixels = jnp.asarray(whole["image"].reshape(len(source), -1))
    labels = np.array([(k + 1) % 10 if k in wrong else k for k in whole["label"]])
    texts = [p.format(name) for name in source.info.classes for p in source.info.prompts]
    tokens = jnp.asarray(tokenizer.encode(texts, LENGTH))
    classes = jnp.asarray(np.repeat(np.arange(10), len(source.info.prompts)))

    # All directions lie close together and lengths differ (by powers of 2, which round nothing): only cosines tell right from wrong.
    embed = lambda k: (jnp.eye(10)[k] + 0.9) * 2.0 ** (k % 4)[:, None]

    def encode_image(params, images):
        i = (images.reshape(images.shape[0], 1, -1) == pixels[None]).all(-1).argmax(1)
        return embed(jnp.asarray(labels)[i])

    def encode_text(params, ids):
        i = (ids[:, None] == tokens[None]).all(-1).argmax(1)
        return embed(classes[i])

    return {"encode_image": encode_image, "encode_text": encode_text}


@pytest.mark.parametrize("sizes", [{"data": 1}, {"data": 2, "fsdp": 2, "tensor": 2}], ids=str)
def test_a_model_that_knows_scores_one_and_its_mistakes_are_counted(data, sizes):
    import jax

    mesh = sharding.make_mesh(sizes, jax.devices()[: int(np.prod(list(sizes.values())))])
    evaluate = evals.make("z", knowing(data), ConfigDict({"type": "zero_shot", **COMMON}), mesh, data)
    assert evaluate({}) == {"accuracy": 1.0, "accuracy_top5": 1.0, "mean_per_class": 1.0}
    for found in (evaluate.images({})[0], evaluate.texts({})):  # as the report's cosines need them
        np.testing.assert_allclose(np.linalg.norm(found, axis=1), 1, rtol=1e-6)
    # 14 of the 140 validation images are of each class.
    flawed = evals.make("z", knowing(data, wrong=(3,)), ConfigDict({"type": "zero_shot", **COMMON}), mesh, data)({})
    assert flawed["accuracy"] == pytest.approx(0.9) and flawed["mean_per_class"] == pytest.approx(0.9)
    group = ConfigDict({"type": "retrieval", "captions": "prompts", **COMMON})
    found = evals.make("r", knowing(data), group, mesh, data)({})
    assert all(v == 1.0 for v in found.values()) and len(found) == 6
    lost = evals.make("r", knowing(data, wrong=(3,)), group, mesh, data)({})
    assert lost["image_to_text_r1"] == pytest.approx(0.9) and lost["text_to_image_r1"] == pytest.approx(0.8)


@pytest.mark.parametrize(
    "group, message",
    [
        ({"type": "zero_shoot"}, r"config.evals.e.type is 'zero_shoot'; did you mean 'zero_shot'\?"),
        ({"type": "zero_shot", **COMMON, "lenght": 3}, r"unknown key 'lenght'; did you mean 'length'\?"),
        ({"type": "zero_shot", "every": 1}, "lacks the key 'split'; a zero_shot evaluation takes"),
        ({"type": "classification", **COMMON}, "needs the predict function 'logits', this task has encode_image, encode_text"),
        ({"type": "retrieval", **COMMON, "captions": "mine"}, "captions is 'mine', expected 'own' or 'prompts'"),
    ],
)
def test_bad_groups(data, group, message):
    predict = {"encode_image": lambda p, x: x, "encode_text": lambda p, x: x}
    with pytest.raises(UserError, match=message):
        evals.make("e", predict, ConfigDict(group), sharding.make_mesh({"data": 8}), data)


class Faulty:
    """A source whose images of class 3, and record 0, cannot be used; a few of them not even read."""

    def __init__(self, source):
        self.source, self.info = source, source.info

    def __len__(self):
        return len(self.source)

    def __getitem__(self, i):
        record = self.source[i]
        if i == 0 or (record["label"] == 3 and i % 2):
            raise BadSample("missing", "made so")
        return {**record, "image": b""} if record["label"] == 3 else record


def test_bad_records_are_left_out_and_counted(data, monkeypatch):
    source = open_source(data, "validation")
    assert source[0]["label"] != 3
    predict, mesh = knowing(data), sharding.make_mesh({"data": 2, "fsdp": 2, "tensor": 2})
    for module in (zero_shot, retrieval):
        monkeypatch.setattr(module, "open_source", lambda *a: Faulty(open_source(*a)))
    expected = {"accuracy": 1.0, "accuracy_top5": 1.0, "mean_per_class": 1.0, "bad_samples": 15.0}  # 14 of class 3, and record 0
    evaluate = evals.make("z", predict, ConfigDict({"type": "zero_shot", **COMMON}), mesh, data)
    assert evaluate({}) == expected
    assert 0 not in evaluate.images({})[2] and len(evaluate.images({})[2]) == 125
    # The prompts of class 3 have no image left to find: they ask for nothing, rather than count as lost.
    found = evals.make("r", predict, ConfigDict({"type": "retrieval", "captions": "prompts", **COMMON}), mesh, data)({})
    assert found.pop("bad_samples") == 15 and len(found) == 6 and all(v == 1.0 for v in found.values())
