"""A scanned and an unrolled model take the same step, under every optimizer."""

from pathlib import Path

import jax
import numpy as np
import pytest

from mmjax.cli.program import assemble
from mmjax.core import config as config_lib
from mmjax.core import sharding, tree
from mmjax.core.step import make_train_step
from mmjax.data.synthetic import synthetic_batch
from mmjax.layers import stack_params, unstack_params

CONFIG = Path(__file__).resolve().parents[1] / "configs" / "classification" / "digits.py"
# Softmax ignores what is added to all keys alike, so this leaf's true gradient is zero, and an optimizer that divides by the
# gradient's size scales rounding noise up to a full step.
NO_GRADIENT = "attn/k/bias"


def step_of(scan, *words):
    """The program of the small model, its dropout on."""
    c = config_lib.load(f"{CONFIG}:smoke", [f"model.vit.scan={scan}", *words])
    return assemble(c, sharding.make_mesh({"data": 1}, jax.devices()[:1]))


@pytest.mark.parametrize(
    "words",
    [
        ["optim.name=adamw"],
        pytest.param(["optim.name=adafactor", "optim.args.min_dim_size_to_factor=8"], marks=pytest.mark.slow),
        pytest.param(["optim.name=lion"], marks=pytest.mark.slow),
        pytest.param(["optim.name=sgd"], marks=pytest.mark.slow),
        pytest.param(["optim.name=muon"], marks=pytest.mark.slow),
        pytest.param(["optim.name=sgd", "optim.agc=0.01", "optim.agc_rules=(('head/.*', False), ('.*', True))"], marks=pytest.mark.slow),
        pytest.param(["optim.name=adamw", "optim.layer_decay=0.5"], marks=pytest.mark.slow),
    ],
    ids=lambda words: " ".join(words),
)
def test_the_same_step(words):
    words = [*words, "optim.schedule=constant", "optim.warmup=0", "optim.lr=1e-2"]
    scanned, unrolled = step_of(True, *words), step_of(False, *words)
    state = scanned.init()
    # A head of zeros passes no gradient on; start from where every leaf has one.
    head = jax.random.normal(jax.random.key(1), (16, 10)) * 0.2
    params = tree.merge(state.params, {"head": {"kernel": head}})
    batch = synthetic_batch(scanned.task.batch_spec, seed=3, cursor=0)
    batch["label"] = batch["label"] % 10

    def steps(program, params):
        start = type(state)(**{**vars(program.init()), "params": params, "ema": {}})
        new, metrics = jax.jit(make_train_step(program.task, program.tx))(start, batch)
        return tree.flatten(new.params), metrics["loss"]

    one, loss1 = steps(scanned, params)
    flat, loss2 = steps(unrolled, unstack_params(params))
    other = tree.flatten(stack_params(tree.unflatten(flat)))
    np.testing.assert_allclose(loss1, loss2, rtol=1e-6)
    assert one.keys() == other.keys()
    before = tree.flatten(params)
    for path in one:
        if NO_GRADIENT in path:
            continue
        a, b = np.asarray(one[path] - before[path]), np.asarray(other[path] - before[path])
        assert np.abs(a).max() > 0, path
        np.testing.assert_allclose(a, b, atol=1e-4 * np.abs(a).max(), err_msg=path)
