"""Frechet distance, KID, Inception score, precision and recall: closed forms of Gaussians, and plain restatements in float64."""

import itertools

import numpy as np
import pytest

from mmjax.core.errors import UserError
from mmjax.evals import frechet
from mmjax.evals.frechet import Statistics, distance, merged, of, read, write
from mmjax.evals.inception_score import inception_score
from mmjax.evals.kid import discrepancy, kid
from mmjax.evals.precision_recall import precision_recall

RNG = np.random.default_rng


def gaussian(seed: int, size: int, rank: int | None = None) -> Statistics:
    draw = RNG(seed)
    a = draw.standard_normal((size, rank or size))
    return Statistics(draw.standard_normal(size), a @ a.T, 0)


def test_diagonal_covariances_in_closed_form():
    a, b = np.array([1.0, 4.0, 0.0, 9.0]), np.array([4.0, 4.0, 1.0, 0.25])
    one, other = Statistics(np.zeros(4), np.diag(a), 0), Statistics(np.array([1.0, 0, 2, 0]), np.diag(b), 0)
    assert distance(one, other) == pytest.approx(5 + np.square(np.sqrt(a) - np.sqrt(b)).sum(), rel=1e-12)


def test_a_rotation_and_a_scale_in_closed_form():
    """Covariances that commute, turned into no axes: C and 4 C are sqrt(tr C) apart."""
    g = gaussian(0, 6)
    assert distance(g, Statistics(g.mean, 4 * g.covariance, 0)) == pytest.approx(np.trace(g.covariance), rel=1e-9)
    assert distance(g, g) == pytest.approx(0, abs=1e-10)


def test_general_covariances_against_the_root_of_their_product():
    """scipy's root of the matrix product, as the peers compute it."""
    from scipy.linalg import sqrtm

    a, b = gaussian(1, 12), gaussian(2, 12)
    root = np.trace(sqrtm(a.covariance @ b.covariance)).real
    want = np.square(a.mean - b.mean).sum() + np.trace(a.covariance) + np.trace(b.covariance) - 2 * root
    assert distance(a, b) == pytest.approx(want, rel=1e-9) and distance(b, a) == pytest.approx(want, rel=1e-9)


def test_fewer_pictures_than_features():
    """Covariances of rank 3 of 40: C of rank r and C + epsilon differ by little, which the peers' root loses first."""
    a, b = gaussian(3, 40, 3), gaussian(4, 40, 3)
    raised = lambda g: Statistics(g.mean, g.covariance + 1e-14 * np.eye(40), 0)
    assert distance(a, b) == pytest.approx(distance(raised(a), raised(b)), rel=1e-7)
    assert distance(a, a) == pytest.approx(0, abs=1e-8)


def test_the_estimate_converges_to_the_closed_form():
    draw, mean, scale = RNG(5), np.array([1.0, -1.0, 0.0]), np.array([1.0, 2.0, 0.5])
    x, y = draw.standard_normal((200_000, 3)), mean + scale * draw.standard_normal((200_000, 3))
    assert distance(of(x), of(y)) == pytest.approx(2 + np.square(scale - 1).sum(), rel=0.02)


def test_batches_merge_to_the_whole_in_any_order():
    x = RNG(6).standard_normal((57, 5)) * [1, 10, 0.1, 1, 1] + 1e3
    whole = of(x)
    np.testing.assert_allclose(whole.covariance, np.cov(x, rowvar=False), rtol=1e-10)
    for order in itertools.permutations([x[:1], x[1:30], x[30:]]):
        a, b, c = map(of, order)
        for found in (merged(merged(a, b), c), merged(a, merged(b, c))):
            assert found.count == 57
            np.testing.assert_allclose(found.mean, whole.mean, rtol=1e-13)
            np.testing.assert_allclose(found.covariance, whole.covariance, rtol=1e-8, atol=1e-10)


def test_files(tmp_path):
    g = of(RNG(7).standard_normal((9, 4)))
    write(tmp_path / "a.npz", g)
    back = read(str(tmp_path / "a.npz"), 4)
    assert back.count == 9 and (back.mean == g.mean).all() and (back.covariance == g.covariance).all()
    np.savez(tmp_path / "peer.npz", mu=g.mean.astype(np.float32), sigma=g.covariance)  # pytorch-fid's and EDM's
    assert read(str(tmp_path / "peer.npz")).count == 0
    np.savez(tmp_path / "adm.npz", mu=g.mean, sigma=g.covariance, mu_s=g.mean, sigma_s=g.covariance, arr_0=np.zeros((2, 3)))
    assert distance(read(str(tmp_path / "adm.npz")), g) == pytest.approx(0, abs=1e-10)
    with pytest.raises(UserError, match="does not say of how many"):
        merged(read(str(tmp_path / "peer.npz")), g)


@pytest.mark.parametrize(
    ("stored", "message"),
    [
        ({"mu": np.zeros(3), "sigma": np.zeros((3, 3))}, "are of 3 features, the network that judges has 4"),
        ({"mu": np.zeros(4), "sigma": np.zeros((3, 3))}, r"mu \(4,\) and sigma \(3, 3\) are no finite mean"),
        ({"mu": np.full(4, np.nan), "sigma": np.eye(4)}, "are no finite mean and covariance"),
        ({"mean": np.zeros(4)}, "hold mean; expected mu and sigma"),
        ({"mu": np.array([None]), "sigma": np.eye(4)}, "cannot be read: Object arrays cannot be loaded"),
    ],
)
def test_bad_files(tmp_path, stored, message):
    np.savez(tmp_path / "a.npz", **stored)
    with pytest.raises(UserError, match=message):
        read(str(tmp_path / "a.npz"), 4)


def test_what_is_no_file_and_what_is_no_feature(tmp_path):
    (tmp_path / "b.npz").write_bytes(b"PK nothing")
    for name in ("b.npz", "c.npz"):
        with pytest.raises(UserError, match=f"{name}' cannot be read"):
            read(str(tmp_path / name))
    with pytest.raises(UserError, match="features of 2 pictures are not finite"):
        of(np.array([[1.0, np.inf], [0, 0]]))
    with pytest.raises(UserError, match="statistics of 3 and of 4 features"):
        distance(gaussian(0, 3), gaussian(0, 4))
    assert frechet.of(np.ones((1, 2))).covariance.tolist() == [[0, 0], [0, 0]]


# --- KID -----------------------------------------------------------------------------------------------------------------


def test_discrepancy_by_sums_over_pairs():
    draw = RNG(8)
    x, y = draw.standard_normal((7, 3)), draw.standard_normal((5, 3)) + 1
    k = lambda a, b: (sum(p * q for p, q in zip(a, b, strict=True)) / 3 + 1) ** 3
    pairs = lambda s: np.mean([k(a, b) for i, a in enumerate(s) for j, b in enumerate(s) if i != j])
    want = pairs(x) + pairs(y) - 2 * np.mean([k(a, b) for a in x for b in y])
    assert discrepancy(x, y) == pytest.approx(want, rel=1e-12)


def test_kid_is_unbiased_and_equals_the_kernels_closed_form():
    """N(0, 1) against N(m, 1) in one dimension: the features of (x y + 1)^3 are 1, x, x^2, x^3 with weights 1, 3, 3, 1."""
    draw, m = RNG(9), 0.5
    moments = lambda m: np.array([1, m, m**2 + 1, m**3 + 3 * m])
    want = (np.array([1, 3, 3, 1]) * np.square(moments(0) - moments(m))).sum()
    x, y = draw.standard_normal((40_000, 1)), m + draw.standard_normal((40_000, 1))
    mean, std = kid(x, y, subsets=400, size=300, seed=0)
    assert mean == pytest.approx(want, abs=4 * std / 20)
    same, spread = kid(x[:20_000], x[20_000:], subsets=400, size=300, seed=0)
    assert abs(same) < 4 * spread / 20
    assert kid(x, y, 3, 50, seed=1) == kid(x, y, 3, 50, seed=1) != kid(x, y, 3, 50, seed=2)


def test_kid_of_too_few():
    with pytest.raises(UserError, match="subsets of 1000 pictures, of 50 and 2000"):
        kid(np.zeros((50, 2)), np.zeros((2000, 2)))


# --- Inception score -----------------------------------------------------------------------------------------------------


def test_score_of_sure_and_unsure_classifiers():
    sure = 50 * np.eye(10)[np.arange(100) % 10]
    assert inception_score(sure, 10)[0] == pytest.approx(10, rel=1e-6)  # every class, each for certain
    assert inception_score(np.zeros((100, 10)), 10) == pytest.approx((1, 0), abs=1e-12)
    assert inception_score(50 * np.eye(10)[np.zeros(100, int)], 5)[0] == pytest.approx(1, rel=1e-6)  # one class alone


def test_score_by_its_definition():
    logits = RNG(10).standard_normal((60, 7))
    scores = []
    for part in np.split(logits, 3):
        p = np.exp(part) / np.exp(part).sum(1, keepdims=True)
        scores.append(np.exp(np.mean([(q * np.log(q / p.mean(0))).sum() for q in p])))
    assert inception_score(logits, 3) == pytest.approx((np.mean(scores), np.std(scores)), rel=1e-10)
    with pytest.raises(UserError, match="61 splits of 60 pictures"):
        inception_score(logits, 61)


# --- precision and recall ------------------------------------------------------------------------------------------------


def brute(real, generated, k):
    def inside(points, centres):
        within = lambda c: np.sort([np.linalg.norm(c - o) for o in centres])[k]  # the nearest of all is itself
        return np.mean([any(np.linalg.norm(p - c) <= within(c) for c in centres) for p in points])

    return {"precision": inside(generated, real), "recall": inside(real, generated)}


def test_precision_and_recall_one_by_one(monkeypatch):
    draw = RNG(11)
    real, generated = draw.standard_normal((25, 2)), 0.7 * draw.standard_normal((20, 2)) + 0.5
    want = brute(real, generated, 2)
    assert 0 < want["recall"] < 1 and 0 < want["precision"] < 1
    assert precision_recall(real, generated, 2) == pytest.approx(want)
    monkeypatch.setattr("mmjax.evals.precision_recall.BLOCK", 7)
    assert precision_recall(real, generated, 2) == pytest.approx(want)


def test_a_generator_of_one_mode_is_precise_and_recalls_half():
    draw = RNG(12)
    modes = np.concatenate([draw.standard_normal((200, 3)), 100 + draw.standard_normal((200, 3))])
    got = precision_recall(modes, draw.standard_normal((200, 3)))
    assert got["precision"] > 0.8 and 0.35 < got["recall"] <= 0.5
    with pytest.raises(UserError, match="neighbour 3 of 3 and 200 pictures"):
        precision_recall(modes[:3], modes[:200])
