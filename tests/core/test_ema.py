"""Averages of parameters: decays against closed forms, widths after the fact against quadrature and tracked ones."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from ml_collections import ConfigDict

from mmjax.core import ema, state
from mmjax.core.checkpoint import Checkpoints
from mmjax.core.errors import UserError
from mmjax.core.step import make_train_step
from mmjax.core.types import Task

BATCH = 8


def decay(entry, batch=BATCH):
    rule = ema.decays(ConfigDict({"a": entry}), batch)["a"]
    return lambda step: float(rule(jnp.int32(step)))


def test_a_number_stays_what_it_was():
    """The very object, so that old runs take the same steps to the bit."""
    assert ema.decays(ConfigDict({"a": 0.999, "b": 0.5}), BATCH) == {"a": 0.999, "b": 0.5}


def test_half_life_with_and_without_ramp():
    """After so many examples a parameter counts half; early on the half-life is a share of the examples seen."""
    plain = decay({"half_life": 4000})
    assert plain(0) == plain(777) == pytest.approx(0.5 ** (BATCH / 4000), rel=1e-6)
    assert plain(5) ** (4000 / BATCH) == pytest.approx(0.5, rel=1e-4)
    ramped = decay({"half_life": 4000, "ramp": 0.05})
    assert ramped(0) == 0  # nothing seen: the average is the parameters
    assert ramped(100) == pytest.approx(0.5 ** (BATCH / (0.05 * 800)), rel=1e-6)
    assert ramped(20_000) == pytest.approx(plain(0), rel=1e-7)
    assert decay({"half_life": 4000, "ramp": None})(3) == plain(3)


@pytest.mark.parametrize("std", [0.01, 0.05, 0.1, 0.2, 0.28])
def test_gamma_has_the_width_it_is_asked_for(std):
    """Mean and variance of the density (gamma + 1) u^gamma on 0..1, by their closed forms."""
    gamma = ema.gamma_of(std)
    mean = (gamma + 1) / (gamma + 2)
    assert np.sqrt((gamma + 1) / (gamma + 3) - mean**2) == pytest.approx(std, rel=1e-9)
    assert ema.std_of(gamma) == pytest.approx(std, rel=1e-9)


def test_published_exponents():
    """EDM2 tells its two widths by gamma as well: 0.05 is about 16.97 and 0.10 about 6.94."""
    assert ema.gamma_of(0.05) == pytest.approx(16.97, abs=0.01)
    assert ema.gamma_of(0.10) == pytest.approx(6.94, abs=0.01)


def profile(decays):
    """Weight of the parameters after each step in the average after the last one."""
    weights = np.zeros(len(decays))
    for i, b in enumerate(decays):
        weights *= b
        weights[i] += 1 - b
    return weights


def powers(std, steps):
    """The decays of the first so many steps."""
    return np.asarray(ema.decays(ConfigDict({"a": {"power": std}}), BATCH)["a"](jnp.arange(steps)), np.float64)


def test_power_decays_make_the_profile():
    """The weights are those of (gamma + 1) u^gamma / t^(gamma + 1), and have its width."""
    n = 2000
    assert decay({"power": 0.1})(0) == 0
    weights = profile(powers(0.1, n))
    u = (np.arange(n) + 1) / n
    assert weights.sum() == pytest.approx(1, rel=1e-5)
    assert np.sqrt((weights * u**2).sum() - (weights * u).sum() ** 2) == pytest.approx(0.1, rel=2e-3)
    gamma = ema.gamma_of(0.1)
    np.testing.assert_allclose(weights * n, (gamma + 1) * u**gamma, atol=0.01 * (gamma + 1))


# Post-hoc synthesis.


def by_quadrature(snapshots, time, std):
    """Least squares of profiles over 0..time, every product integrated numerically; the factors made to add up to 1."""
    nodes, w = np.polynomial.legendre.leggauss(400)

    def density(t, s):
        g = ema.gamma_of(s)
        return lambda u: np.where(u <= t, (g + 1) * np.clip(u, 0, t) ** g / t ** (g + 1), 0.0)

    def product(a, b):  # of (time, std), over the earlier one's support, where both are polynomials of any degree
        end = min(a[0], b[0])
        u = end * (nodes + 1) / 2
        return (w * density(*a)(u) * density(*b)(u)).sum() * end / 2

    among = np.array([[product(a, b) for b in snapshots] for a in snapshots])
    wanted = np.array([product(a, (time, std)) for a in snapshots])
    x = np.linalg.solve(among, wanted)
    return x / x.sum()


@pytest.mark.parametrize("std", [0.03, 0.07, 0.15])
def test_coefficients_against_quadrature(std):
    snapshots = [(t, s) for t in (100.0, 230.0, 300.0, 400.0) for s in (0.05, 0.1)]
    found = ema.coefficients(snapshots, 400.0, std)
    np.testing.assert_allclose(found, by_quadrature(snapshots, 400.0, std), rtol=1e-6, atol=1e-9)
    assert found.sum() == pytest.approx(1)


def test_a_stored_width_is_its_own_snapshot():
    found = ema.coefficients([(100, 0.05), (100, 0.1), (200, 0.05), (200, 0.1)], 200, 0.1)
    np.testing.assert_allclose(found, [0, 0, 0, 1], atol=1e-9)


def test_a_synthesised_profile_is_the_one_tracked_directly():
    n, every = 1024, 32
    tracked = {s: powers(s, n) for s in (0.05, 0.1, 0.07, 0.13)}
    snapshots = [(t, s) for t in range(every, n + 1, every) for s in (0.05, 0.1)]
    stored = [np.pad(profile(tracked[s][:t]), (0, n - t)) for t, s in snapshots]
    for std in (0.07, 0.13):
        made = sum(f * p for f, p in zip(ema.coefficients(snapshots, n, std), stored, strict=True))
        want = profile(tracked[std])
        assert np.abs(made - want).sum() < 0.02  # of a total of 1
        other = profile(tracked[0.1])
        assert np.abs(other - want).sum() > 0.15  # which no stored one is near


def toy():
    """Parameters that wander: each step's gradient is a batch's own."""
    return Task(
        init=lambda key: {"w": jnp.zeros(3), "fixed": jnp.ones(2)},
        axes={"w": (None,), "fixed": (None,)},
        loss=lambda params, batch, key, step: ((batch["x"] @ params["w"]).mean(), {}),
        batch_spec={"x": jax.ShapeDtypeStruct((BATCH, 3), jnp.float32)},
        predict={},
        frozen=("fixed",),
    )


def test_a_run_s_snapshots_make_the_average_it_would_have_tracked(tmp_path):
    given = ConfigDict({"a05": {"power": 0.05}, "a10": {"power": 0.1}, "a07": {"power": 0.07}})
    rules, task = ema.decays(given, BATCH), toy()
    tx = optax.with_extra_args_support(optax.sgd(0.1))
    train = jax.jit(make_train_step(task, tx, ema=rules))
    s = state.init(task, tx, dict(given), 0)
    r = np.random.default_rng(0)
    kept = ConfigDict({name: given[name] for name in ("a05", "a10")})
    with Checkpoints(tmp_path / ema.SNAPSHOTS, keep_every=1, label=ema.SNAPSHOTS) as store:
        for step in range(1, 257):
            s, _ = train(s, {"x": r.normal(size=(BATCH, 3)).astype(np.float32) + np.float32([1, 0, -1])})
            if step % 16 == 0:
                store.save(step, {"ema": {name: s.ema[name] for name in kept}})
    at, count, made = ema.synthesise(tmp_path, kept, 0.07)
    assert (at, count, made.keys()) == (256, 32, {"w"})
    size = np.abs(s.ema["a07"]["w"]).max()
    gap = lambda a: np.abs(np.asarray(a) - s.ema["a07"]["w"]).max() / size
    assert gap(made["w"]) < 2e-3 < 2e-2 < min(gap(s.ema["a05"]["w"]), gap(s.ema["a10"]["w"]))
    assert ema.synthesise(tmp_path, kept, 0.07, step=100)[:2] == (96, 12)
    with pytest.raises(UserError, match="has no snapshots up to step 9; see checkpoint.snapshot_every"):
        ema.synthesise(tmp_path, kept, 0.07, step=9)
    with pytest.raises(UserError, match="keeps no power-function average"):
        ema.synthesise(tmp_path, ConfigDict({"a": 0.9}), 0.07)
    with pytest.raises(UserError, match=r"the average's std is 0.3, .* below 0.2887"):
        ema.synthesise(tmp_path, kept, 0.3)


BAD = {
    "ema.a is 'slow', expected a decay": "slow",
    "ema.a is True": True,
    "ema.a has an unknown key 'halflife'; did you mean 'half_life'?": {"halflife": 3},
    "ema.a.half_life is 0, expected a number above 0": {"half_life": 0},
    "ema.a.ramp is -0.1, expected a number above 0": {"half_life": 3, "ramp": -0.1},
    "ema.a has a ramp and no half_life": {"ramp": 0.05},
    "ema.a has 'power', a profile of its own, and ramp": {"power": 0.05, "ramp": 0.05},
    "ema.a.power is 0.3, the width of a power-function average: expected above 0 and below 0.2887": {"power": 0.3},
}


@pytest.mark.parametrize("message", BAD)
def test_bad_input(message):
    with pytest.raises(UserError) as e:
        ema.decays(ConfigDict({"a": BAD[message]}), BATCH)
    assert message in str(e.value) and "\n" not in str(e.value)


def test_snapshots_of_the_future_are_refused():
    with pytest.raises(UserError, match="made of snapshots from steps 1 to 100, got"):
        ema.coefficients([(50, 0.05), (200, 0.05)], 100, 0.1)
