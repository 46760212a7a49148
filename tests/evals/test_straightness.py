"""The straightness of a flow that is known in closed form, under each record's condition."""

import jax.numpy as jnp
import numpy as np
import pytest
from ml_collections import ConfigDict

from mmjax import evals, tasks
from mmjax.core import config as config_lib
from mmjax.core import rng, sharding
from mmjax.core.errors import UserError
from mmjax.diffusion import walk
from mmjax.tasks import diffusion
from tests.sets import jsonl_data

COUNT, SIZE, SEED = 20, 8, 4
DIT = {"type": "dit", "patch": 4, "width": 16, "depth": 1, "heads": 2, "classes": 10, "label_dropout": 0.1}
FLOW = {"path": {"name": "flow"}, "prediction": "velocity", "labels": True, "network": DIT, "size": SIZE, "channels": 1}
SHOWN = (("decode", {"channels": 1}), ("normalize", {"mean": 0.5, "std": 0.5}), ("keep", {"keys": ("image", "label")}))
GROUP = {"type": "straightness", "split": "train", "batch_size": 5, "transforms": SHOWN, "n": 12, "steps": 100, "seed": SEED}


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return jsonl_data(tmp_path_factory.mktemp("straightness"), COUNT, broken=(5,))


def task_of(**model):
    c = config_lib.base()
    c.task, c.batch_size = "diffusion", 4
    c.model = ConfigDict({**FLOW, "sampler": {"solver": "midpoint", "steps": 2}, **model})
    return tasks.make(c)


def velocity(self, params, x, t, given, keys=None):
    """Of data N(0, s^2), s one more than the label: noise z goes along z sqrt((1 - t)^2 s^2 + t^2)."""
    t, s = t[:, None, None, None], 1.0 + given["labels"][:, None, None, None]
    return x * (t - (1 - t) * s**2) / ((1 - t) ** 2 * s**2 + t**2)


def test_gaussians_of_several_widths(data, monkeypatch):
    """S = |z|^2 (int sigma'^2 dt - (1 - s)^2), averaged over the first sound records, whose noise follows from their numbers."""
    monkeypatch.setattr(diffusion.System, "apply", velocity)
    found = evals.make("way", task_of().predict, ConfigDict(GROUP), sharding.make_mesh({"data": 8}), data)({})
    places = np.delete(np.arange(COUNT), 5)[:12]
    keys = rng.per_example(rng.named(rng.wrap(rng.root(SEED)), "straightness"), jnp.asarray(places))
    t, s = (np.arange(20000) + 0.5) / 20000, 1.0 + places[:, None] % 10
    rate = (t - (1 - t) * s**2) / np.sqrt((1 - t) ** 2 * s**2 + t**2)
    each = np.square(walk.draw(keys, (SIZE, SIZE, 1))).sum((1, 2, 3)) * ((rate**2).mean(1) - (1 - s[:, 0]) ** 2)
    assert found["straightness"] == pytest.approx(each.mean(), rel=5e-3)
    assert found["straightness_se"] == pytest.approx(each.std(ddof=1) / np.sqrt(12), rel=2e-2) and found["n"] == 12


def test_refused(data):
    make = lambda predict, **changes: evals.make("way", predict, ConfigDict({**GROUP, **changes}), sharding.make_mesh({"data": 8}), data)
    with pytest.raises(UserError, match="needs the predict function 'straightness'"):
        make(task_of(path={"name": "vp"}, prediction="v").predict)
    for name in ("n", "steps"):
        with pytest.raises(UserError, match=f"straightness: {name} is 1, expected at least two"):
            make({"straightness": print}, **{name: 1})
