"""The likelihood evaluation: a mean over records, whose draws belong to a record's number."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from ml_collections import ConfigDict

from mmjax.core import rng, sharding
from mmjax.core.errors import UserError
from mmjax.evals import likelihood
from tests.sets import jsonl_data

COUNT, SEED = 20, 4
SHOWN = (("decode", {"channels": 1}), ("normalize", {"mean": 0.5, "std": 0.5}), ("keep", {"keys": ("image", "label")}))
GROUP = {"split": "train", "batch_size": 8, "transforms": SHOWN, "seed": SEED, "bound": False, "labels": True, "options": {"gain": 3.0}}


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return jsonl_data(tmp_path_factory.mktemp("likelihood"), COUNT, broken=(5,))


def bits(params, images, labels, keys, *, bound=False, gain=1.0):
    """Of a picture, its label and its key."""
    noise = jax.vmap(jax.random.uniform)(keys)
    labels = jnp.zeros(images.shape[0]) if labels is None else labels
    return params["offset"] + gain * (images.mean((1, 2, 3)) + labels + noise) + 100 * bound


def make(data, sizes=None, **changes):
    mesh = sharding.make_mesh(sizes or {"data": 8})
    return likelihood.make({"bits_per_dimension": bits}, ConfigDict({**likelihood.OPTIONAL, **GROUP, **changes}), mesh, data)


def test_it_is_the_mean_over_records(data):
    found = make(data)({"offset": jnp.float32(1)})
    other = make(data, {"data": 2, "fsdp": 2, "tensor": 2}, batch_size=5)({"offset": jnp.float32(1)})
    assert found == pytest.approx(other, rel=1e-6)
    assert (found["n"], found["bad_samples"]) == (COUNT - 1, 1)
    places = jnp.delete(jnp.arange(COUNT), 5)
    key = rng.named(rng.wrap(rng.root(SEED)), "likelihood")
    drawn = 1 + 3 * (places % 10 + jax.vmap(jax.random.uniform)(rng.per_example(key, places)))
    assert found["bits_per_dimension"] == pytest.approx(float(drawn.mean()), abs=3.01)  # and a picture's mean, of -1..1
    bound = make(data, bound=True, labels=False, options={})({"offset": jnp.float32(0)})
    assert 99 < bound["bits_per_dimension_bound"] < 102 and 0 < bound["bits_per_dimension_bound_se"] < 1
    assert np.isfinite(list(found.values())).all()


def test_bad_configs(data):
    with pytest.raises(UserError, match="bound is 'yes', expected true"):
        make(data, bound="yes")
