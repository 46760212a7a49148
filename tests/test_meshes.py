"""Twenty steps with augmentation and dropout are the same on any mesh, and with accumulation."""

from itertools import islice
from pathlib import Path

import jax
import numpy as np
import pytest

from mmjax.cli.program import assemble
from mmjax.cli.train import open_data
from mmjax.core import config as config_lib
from mmjax.core import sharding

CONFIGS = Path(__file__).resolve().parents[1] / "configs"
STEPS = 20


def losses(config, sizes, devices=8, **overrides):
    """float32[STEPS, 2]: loss and gradient norm of every step."""
    words = [f"{k}={v}" for k, v in {"steps": STEPS, "optim.warmup": 5, **overrides}.items()]
    c = config_lib.load(f"{CONFIGS / config}:smoke", words)
    program = assemble(c, sharding.make_mesh(sizes, jax.devices()[:devices]))
    step, state, out = program.lower().compile(), program.init(), []
    feed = open_data(program)(0)
    for batch in islice(feed, STEPS):
        state, metrics = step(state, batch)
        out.append([float(metrics["loss"]), float(metrics["grad_norm"])])
    feed.close()
    return np.array(out)


@pytest.fixture(scope="module")
def one_device():
    return losses("clip/digits.py", {"data": 1}, devices=1)


@pytest.mark.parametrize("sizes", [*(pytest.param(s, marks=pytest.mark.slow) for s in ((8, 1, 1), (2, 4, 1))), (2, 2, 2)], ids=str)
def test_meshes_agree_with_one_device(one_device, sizes):
    got = losses("clip/digits.py", dict(zip(sharding.MESH_AXES, sizes, strict=True)))
    np.testing.assert_allclose(got, one_device, rtol=1e-5)
    assert got[-1, 0] < got[0, 0]  # it does learn: equal constants would agree too


def test_accumulation_agrees_with_the_whole_batch():
    whole = losses("classification/digits.py", {"data": 1}, devices=1)
    parts = losses("classification/digits.py", {"data": 1}, devices=1, accumulate=4)
    np.testing.assert_allclose(parts, whole, rtol=1e-5)


@pytest.mark.slow
def test_dropout_and_augmentation_are_on():
    """Without either, the numbers are others: so the agreement above is not of models that draw nothing."""
    whole = losses("classification/digits.py", {"data": 1}, devices=1)
    still = losses("classification/digits.py", {"data": 1}, devices=1, **{"model.vit.dropout": 0.0})
    plain = "(('decode',{'channels':1}),('normalize',{'mean':(0.3,),'std':(0.35,)}),('keep',{'keys':('image','label')}))"
    fixed = losses("classification/digits.py", {"data": 1}, devices=1, **{"data.transforms": plain})
    assert np.abs(still - whole)[3:].max() > 1e-3 and np.abs(fixed - whole)[3:].max() > 1e-3
