"""Classification with every image tower: one training step each, running statistics included, and what is refused."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from ml_collections import ConfigDict

from mmjax.core import config as config_lib
from mmjax.core import state, step, tree
from mmjax.core.errors import UserError
from mmjax.tasks import classification

TOWERS = {
    "vit": {"patch": 16, "width": 16, "depth": 1, "heads": 2, "mlp": 32, "pool": "map"},
    "resnet": {"width": 4, "depths": (1, 1, 1, 1), "heads": 2},
    "nfnet": {"depths": (1, 1, 1, 1), "widths": (8, 8, 8, 8), "group": 4},
}
BATCH, SIZE, CLASSES = 4, 32, 3


def config(**groups):
    c = config_lib.base()
    c.task, c.batch_size = "classification", BATCH
    c.model = ConfigDict({"size": SIZE, "channels": 3, "smoothing": 0.1, **groups})
    return c


def test_every_tower_has_a_case():
    assert TOWERS.keys() == classification.MODELS.keys()


@pytest.mark.parametrize("name", TOWERS)
def test_a_step(name):
    task = classification.make(config(**{name: {**TOWERS[name], "classes": CLASSES}}))
    r = np.random.default_rng(0)
    batch = {
        "image": jnp.asarray(r.standard_normal((BATCH, SIZE, SIZE, 3)), jnp.float32),
        "label": jnp.asarray(r.integers(0, CLASSES, BATCH), jnp.int32),
    }
    tx = optax.with_extra_args_support(optax.sgd(0.1))
    train = jax.jit(step.make_train_step(task, tx))
    start = jax.jit(lambda: state.init(task, tx, {}, 0))()
    new, metrics = train(start, batch)
    assert np.isfinite(metrics["loss"])
    before, after = tree.flatten(start.params), tree.flatten(new.params)
    statistics = {p for p in before if tree.matches(p, task.state)}
    assert bool(statistics) == (name == "resnet")
    for path in statistics:
        assert not np.array_equal(before[path], after[path]), path
    assert not np.array_equal(before["head/kernel"], after["head/kernel"])
    logits = jax.jit(task.predict["logits"])(new.params, batch["image"])
    assert logits.shape == (BATCH, CLASSES)


@pytest.mark.parametrize(
    ("groups", "message"),
    [
        ({}, "^config.model holds no image tower; expected one group of vit, resnet, nfnet$"),
        ({"vit": {}, "nfnet": {}}, "^config.model holds vit and nfnet; expected one group of"),
        ({"resnet": TOWERS["resnet"]}, "^config.model.resnet.classes is 0; classification needs the number of classes$"),
        ({"nfnet": {**TOWERS["nfnet"], "clases": 3}}, "^config.model.nfnet: NFNet has no field 'clases'; did you mean 'classes'"),
    ],
)
def test_refused(groups, message):
    with pytest.raises(UserError, match=message):
        classification.make(config(**groups))
