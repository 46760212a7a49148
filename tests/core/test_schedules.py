"""Schedules against closed forms in float64."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mmjax.core import schedules
from mmjax.core.config import base
from mmjax.core.errors import UserError

PEAK, WARMUP, STEPS = 3e-3, 20, 200
CHECKED = (20, 21, 50, 110, 150, 180, 181, 199, 200, 230)


def optim(schedule, warmup=WARMUP, **args):
    config = base().optim
    config.lr, config.schedule, config.warmup = PEAK, schedule, warmup
    config.schedule_args.update(args)
    return config


def share(step):
    return min((step - WARMUP) / (STEPS - WARMUP), 1.0)


CLOSED = {
    "constant": ({}, lambda s: 1.0),
    "linear": ({"end_factor": 0.1}, lambda s: 1 - 0.9 * share(s)),
    "cosine": ({"end_factor": 0.1}, lambda s: 0.1 + 0.9 * (1 + math.cos(math.pi * share(s))) / 2),
    "rsqrt": ({"timescale": 100}, lambda s: math.sqrt(100 / (100 + s - WARMUP))),
    "wsd": ({"decay_steps": 50, "end_factor": 0.2}, lambda s: 1 - 0.8 * min(max(s - 150, 0) / 50, 1)),
    "piecewise": ({"boundaries": {"50": 0.1, "181": 0.5}}, lambda s: (0.1 if s >= 50 else 1.0) * (0.5 if s >= 181 else 1.0)),
}


@pytest.mark.parametrize("name", CLOSED)
def test_closed_form(name):
    args, factor = CLOSED[name]
    schedule = schedules.make(optim(name, **args), STEPS)
    jitted = jax.jit(schedule)
    for step in (0, 1, 7, 19):
        np.testing.assert_allclose(float(schedule(step)), PEAK * step / WARMUP, rtol=1e-6)
    for step in CHECKED:
        np.testing.assert_allclose(float(schedule(step)), PEAK * factor(step), rtol=1e-6)
        np.testing.assert_allclose(float(jitted(jnp.int32(step))), PEAK * factor(step), rtol=1e-6)
    assert schedule(3).dtype == jnp.float32 and schedule(3).shape == ()


@pytest.mark.parametrize("name", CLOSED)
def test_without_warmup_starts_at_the_peak(name):
    assert float(schedules.make(optim(name, 0, **CLOSED[name][0]), STEPS)(0)) == np.float32(PEAK)


@pytest.mark.parametrize("name", ["linear", "cosine", "wsd"])
@pytest.mark.parametrize("end_factor", [0.0, 0.25])
def test_ends_exactly_where_the_run_ends(name, end_factor):
    args = {"decay_steps": 30} if name == "wsd" else {}
    schedule = schedules.make(optim(name, end_factor=end_factor, **args), STEPS)
    np.testing.assert_allclose(float(schedule(STEPS)), PEAK * end_factor, rtol=1e-6, atol=1e-12)
    assert float(schedule(STEPS - 1)) > PEAK * end_factor


def test_rsqrt_with_the_warmup_as_timescale_is_the_transformers():
    schedule = schedules.make(optim("rsqrt"), STEPS)
    for step in (20, 80, 180):
        np.testing.assert_allclose(float(schedule(step)), PEAK * math.sqrt(WARMUP / step), rtol=1e-6)


def test_piecewise_takes_pairs():
    schedule = schedules.make(optim("piecewise", boundaries=((100, 0.5),)), STEPS)
    np.testing.assert_allclose([float(schedule(99)), float(schedule(100))], [PEAK, PEAK / 2], rtol=1e-6)


BAD = {
    "unknown schedule": (optim("cosin"), "did you mean 'cosine'"),
    "unknown argument": (optim("cosine", end_facter=0.1), "did you mean 'end_factor'"),
    "none taken": (optim("constant", end_factor=0.1), "takes none"),
    "missing": (optim("wsd"), "'decay_steps' must be given"),
    "type": (optim("cosine", end_factor="0.1"), "end_factor is '0.1', expected float"),
    "bool": (optim("wsd", decay_steps=True), "decay_steps is True, expected int"),
    "range": (optim("linear", end_factor=2.0), "expected 0 to 1"),
    "decay too long": (optim("wsd", decay_steps=181), "expected 1 to 180"),
    "warm-up fills the run": (optim("cosine", warmup=200), "optim.warmup is 200 and the run has 200 steps"),
    "boundary in warm-up": (optim("piecewise", boundaries={20: 0.1}), "boundary 20"),
    "boundary no number": (optim("piecewise", boundaries={"half": 0.1}), "expected ((step, factor), ...)"),
    "no timescale": (optim("rsqrt", warmup=0), "expected a timescale"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input_is_one_line(case):
    config, message = BAD[case]
    with pytest.raises(UserError) as error:
        schedules.make(config, STEPS)
    assert message in str(error.value) and "\n" not in str(error.value)
