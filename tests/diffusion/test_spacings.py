"""Which times are walked: the reference's lists, closed forms, and what is refused. Lists are of diffusers 0.42.1."""

import jax
import numpy as np
import pytest

from mmjax.core.errors import UserError
from mmjax.diffusion import density, path
from mmjax.diffusion.spacing import SPACINGS, times

DDPM = path.discrete()
REFERENCE = [
    ("linspace", 3, 0, [999, 500, 0]),  # DDIMScheduler
    ("linspace", 7, 0, [999, 832, 666, 500, 333, 166, 0]),
    ("unclip", 7, 0, [999, 832, 666, 500, 333, 166, 0]),  # UnCLIPScheduler
    ("leading", 7, 0, [852, 710, 568, 426, 284, 142, 0]),
    ("leading", 10, 0, list(range(900, -1, -100))),
    ("leading", 50, 1, list(range(981, 0, -20))),
    ("trailing", 3, 0, [999, 666, 332]),
    ("trailing", 7, 0, [999, 856, 713, 570, 428, 285, 142]),
    ("trailing", 10, 0, list(range(999, 0, -100))),
    ("trailing", 16, 0, [999, 937, 874, 811, 749, 687, 624, 561, 499, 437, 374, 311, 249, 187, 124, 61]),
    ("linspace_open", 5, 0, [999, 799, 599, 400, 200]),  # DPMSolverMultistepScheduler
    ("linspace_open", 7, 0, [999, 856, 714, 571, 428, 285, 143]),
    ("leading_open", 5, 0, [830, 664, 498, 332, 166]),
]


@pytest.mark.parametrize(("spacing", "n", "offset", "want"), REFERENCE, ids=lambda x: str(x)[:20])
def test_discrete_times_equal_the_reference(spacing, n, offset, want):
    np.testing.assert_array_equal(times(DDPM, n, spacing, offset=offset), [*want, -1])


def test_flow_times_equal_the_reference():
    flow = path.flow()
    twice = times(flow, 4, "linspace", shift=3.0, shift_ends_too=True)
    np.testing.assert_allclose(twice, [1, 0.857692301, 0.602150559, 0.00892857183, 0], atol=1e-7)
    np.testing.assert_allclose(times(flow, 5, "linspace"), [1, 0.750249982, 0.500500023, 0.250750005, 0.001, 0], atol=1e-7)
    dynamic = density.dynamic_shift(1024)
    np.testing.assert_allclose(np.log(dynamic), 0.5 + 768 * 0.65 / 3840, rtol=1e-12)
    want = [1, 0.789953887, 0.484967351, 0.00187596434, 0]
    np.testing.assert_allclose(times(flow, 4, "linspace", shift=dynamic), want, atol=1e-7)
    once = times(flow, 4, "linspace", shift=3.0)
    np.testing.assert_allclose(once[-2], 0.003 / 1.002, rtol=1e-9)  # the bug is not ours unless it is asked for


def test_karras_times_equal_the_paper():
    np.testing.assert_allclose(times(path.edm(), 5, "karras"), [80, 17.5278320, 2.5152190, 0.1697528, 0.002, 0], rtol=1e-6)
    sd = path.discrete(betas="scaled_linear")
    t = times(sd, 5, "karras")
    want = [14.6146469, 4.79654408, 1.27410531, 0.247951716, 0.0291675348]  # DPMSolverMultistepScheduler(use_karras_sigmas=True)
    np.testing.assert_allclose(np.exp(-sd.log_snr(t[:-1])), want, rtol=1e-4)
    np.testing.assert_allclose(np.round(t[:-1]), [999, 786, 427, 59, 0])
    assert t[-1] == -1


def test_equal_steps_of_log_snr():
    for p, kwargs in ((path.vp(), {}), (path.flow(), {"sigma_max": 50.0, "sigma_min": 0.01}), (DDPM, {})):
        t = times(p, 9, "log_snr", **kwargs)
        with jax.enable_x64(True):
            steps = np.diff(p.log_snr(t[:-1]))
        np.testing.assert_allclose(steps, steps[0], rtol=1e-6)
    np.testing.assert_allclose(t[[0, -2, -1]], [999, 0, -1], atol=1e-6)
    t = times(path.flow(), 9, "log_snr", sigma_max=50.0, sigma_min=0.01)
    np.testing.assert_allclose(t[[0, -2]], [50 / 51, 0.01 / 1.01], rtol=1e-9)


def test_shift_divides_the_ratio_of_signal_to_noise():
    for p, spacing in ((path.flow(), "trailing"), (path.vp(), "trailing"), (path.edm(), "karras")):
        plain, moved = times(p, 6, spacing), times(p, 6, spacing, shift=3.0)
        inner = slice(1, -1)
        with jax.enable_x64(True):
            np.testing.assert_allclose(p.log_snr(plain[inner]) - p.log_snr(moved[inner]), np.log(3), rtol=1e-6, err_msg=p.name)
    np.testing.assert_allclose(times(path.flow(), 4, shift=3.0), [1, 0.9, 0.75, 0.5, 0], rtol=1e-12)


@pytest.mark.parametrize("name", ["discrete", "vp", "ve", "edm", "flow", "gvp"])
def test_every_spacing_falls_to_the_clean_end(name):
    p = path.make({"name": name})
    ends = {"sigma_max": 30.0} if name in ("flow", "gvp") else {}
    for spacing in SPACINGS:
        for n in (1, 2, 13):
            t = times(p, n, spacing, **(ends if spacing in ("karras", "log_snr") else {}))
            assert t.shape == (n + 1,) and t.dtype == np.float64
            assert (np.diff(t) < 0).all() and t[-1] == p.clean and t[0] <= p.noise * (1 + 1e-9), (spacing, n, t)
            if spacing in ("trailing", "linspace", "linspace_open"):
                assert t[0] == p.noise
            if name == "discrete" and spacing not in ("karras", "log_snr"):
                assert (t == np.round(t)).all()


def test_whole_schedule_every_way():
    for spacing in ("linspace", "leading", "trailing"):
        np.testing.assert_array_equal(times(DDPM, 1000, spacing), np.arange(999, -2, -1))


def test_host_numbers_while_tracing():
    want = times(path.vp(), 5, "karras")
    assert isinstance(want, np.ndarray)
    jax.jit(lambda x: np.testing.assert_array_equal(times(path.vp(), 5, "karras"), want) or x)(1.0)


REFUSED = [
    (DDPM, 1001, {}, "1001 sampling steps of a schedule of 1000; expected at most 1000"),
    (DDPM, 0, {}, "0 sampling steps; expected at least 1"),
    (DDPM, 10, {"spacing": "trialing"}, "spacing of times is 'trialing'; did you mean 'trailing'?"),
    (DDPM, 1000, {"spacing": "leading", "offset": 1}, "do not fit a schedule of 1000"),
    (DDPM, 1000, {"spacing": "leading_open"}, "do not fit a schedule of 1000"),
    (path.flow(), 5, {"spacing": "karras"}, "spacing by sigma from inf to 0.002 on the path 'flow'"),
    (path.flow(), 5, {"spacing": "trailing", "shift_ends_too": True}, "shift_ends_too is of spacing 'linspace'"),
    (path.flow(), 5, {"shift": 0.0}, "shift of times is 0.0"),
]


@pytest.mark.parametrize(("p", "n", "kwargs", "message"), REFUSED, ids=lambda x: getattr(x, "name", str(x)[:24]))
def test_refused(p, n, kwargs, message):
    with pytest.raises(UserError) as caught:
        times(p, n, **kwargs)
    assert message in str(caught.value) and "\n" not in str(caught.value)
