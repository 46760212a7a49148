"""Whether drawn pictures are of what was asked for, with a judge that reads a class off a picture's grey."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from ml_collections import ConfigDict

from mmjax.core import sharding
from mmjax.core.errors import UserError
from mmjax.evals import agreement, features
from tests.sets import jsonl_data

COUNT, N = 40, 50
SHOWN = (("decode", {"channels": 1}), ("keep", {"keys": ("image", "label")}))


@pytest.fixture(autouse=True)
def judge(monkeypatch):
    """Class k is a picture of grey k / 9."""
    logits = lambda params, x: -jnp.abs(x.mean((1, 2, 3))[:, None] * 9 - jnp.arange(10.0)[None])
    see = lambda params, x: jnp.concatenate([x.mean((1, 2, 3))[:, None], logits(params, x)], 1)
    make = lambda classes: features.Features("frechet_grey", "grey", "greys", 1, classes, {}, see)
    monkeypatch.setitem(features.TYPES, "grey", (make, {"classes": 10}))


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return jsonl_data(tmp_path_factory.mktemp("agreement"), COUNT, broken=(5,))


def draw(params, labels, keys):
    """The class's grey; of classes below `lost` black."""
    noise = jax.vmap(lambda key: jax.random.uniform(key, (8, 8, 1)))(keys)
    grey = jnp.where(labels < params["lost"], 0, labels) / 9
    return 0.01 * noise + grey.reshape(-1, 1, 1, 1)


GROUP = {"split": "train", "batch_size": 16, "transforms": SHOWN, "draw": "class_to_image", "n": N, "seed": 3, "judge": {"type": "grey"}}


def make(data, sizes=None, **changes):
    mesh = sharding.make_mesh(sizes or {"data": 8})
    return agreement.make({"class_to_image": draw}, ConfigDict({**GROUP, **changes}), mesh, data)


def test_shares_are_those_of_the_classes(data):
    evaluate = make(data)
    right = evaluate({"lost": jnp.int32(0)})
    assert (right["agreement"], right["mean_per_class"], right["worst_class"], right["n"]) == (1, 1, 1, N)
    assert 0 < right["judge_accuracy"] < 1  # the set's pictures are no greys
    labels = np.delete(np.arange(COUNT) % 10, 5)
    asked = labels[np.random.default_rng(3).permutation(COUNT - 1)[np.arange(N) % (COUNT - 1)]]
    some = evaluate({"lost": jnp.int32(4)})
    assert some["agreement"] == pytest.approx(1 - ((asked > 0) & (asked < 4)).mean())  # 0 is black by right
    assert (some["mean_per_class"], some["worst_class"]) == (pytest.approx(0.7), 0)
    assert evaluate.told().startswith(f"{N} pictures, seed 3, of '") and evaluate.told().endswith("judged by greys")


def test_batch_size_and_mesh_change_nothing(data):
    params = {"lost": jnp.int32(3)}
    assert make(data)(params) == make(data, {"data": 2, "fsdp": 2, "tensor": 2}, batch_size=5)(params)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"draw": "class_to_picture"}, "^agreement: draw is 'class_to_picture'; did you mean 'class_to_image'"),
        ({"draw": "text_to_image"}, "^agreement: draw is 'text_to_image', and this task has the predict functions class_to_image"),
        ({"n": 0}, "^agreement: n is 0"),
        ({"judge": {"type": "grey", "classes": 0}}, "^agreement: the judge, greys, puts nothing into classes"),
    ],
)
def test_bad_configs(data, changes, message):
    with pytest.raises(UserError, match=message):
        make(data, **changes)
