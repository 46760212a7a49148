"""Principal components, buckets and arcs, against closed forms in float64."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mmjax.core.errors import UserError
from mmjax.diffusion import embeddings
from mmjax.diffusion.embeddings import Buckets

E, KEPT = 12, 5
VALUES = 0.7 ** np.arange(E)


@pytest.fixture(scope="module")
def data():
    """Normal numbers of known covariance and mean, and its components."""
    r = np.random.default_rng(0)
    turn = np.linalg.qr(r.normal(size=(E, E)))[0]
    x = r.normal(size=(20_000, E)) * np.sqrt(VALUES) @ turn + 0.5
    return x, embeddings.fit_pca(x, KEPT)


def test_components_are_those_of_the_covariance(data):
    x, pca = data
    assert pca.directions.shape == (KEPT, E) and pca.eigenvalues.shape == (E,) and pca.directions.dtype == np.float64
    np.testing.assert_allclose(pca.eigenvalues, VALUES, rtol=0.05)
    np.testing.assert_allclose(pca.directions @ pca.directions.T, np.eye(KEPT), atol=1e-12)
    y = embeddings.project(pca, x)
    np.testing.assert_allclose(y.mean(0), 0, atol=1e-12)
    np.testing.assert_allclose(y.T @ y / len(y), np.diag(pca.eigenvalues[:KEPT]), atol=1e-10)  # not whitened
    assert (pca.directions[np.arange(KEPT), np.abs(pca.directions).argmax(1)] > 0).all()


def test_what_is_left_out_is_what_the_eigenvalues_say(data):
    x, pca = data
    for dims in (0, 2, KEPT):
        back = embeddings.partial_reconstruction(pca, x, dims)
        error = ((back - x) ** 2).sum(1).mean()
        np.testing.assert_allclose(error, embeddings.round_trip_error(pca.eigenvalues, dims), rtol=1e-10)
    whole = embeddings.fit_pca(x)
    np.testing.assert_allclose(embeddings.partial_reconstruction(whole, x[:9], E), x[:9], atol=1e-10)


@pytest.mark.parametrize("buckets", [Buckets(8, 2.0), Buckets(16, 4.0), Buckets()], ids=str)
def test_a_round_trip_errs_as_predicted(data, buckets):
    """What the buckets' width and the tails beyond the last of them cost, beside the variance that is left out."""
    x, pca = data
    with jax.enable_x64(True):
        codes = embeddings.encode(pca, x, buckets)
        back = np.asarray(embeddings.decode(pca, codes, buckets))
    assert codes.dtype == jnp.int32 and codes.min() >= 0 and codes.max() < buckets.count
    kept = x - embeddings.partial_reconstruction(pca, x, KEPT)
    cost = ((back - x) ** 2).sum(1).mean() - (kept**2).sum(1).mean()
    np.testing.assert_allclose(cost, buckets.error() * pca.eigenvalues[:KEPT].sum(), rtol=0.05)
    total = embeddings.round_trip_error(pca.eigenvalues, KEPT, buckets)
    np.testing.assert_allclose(((back - x) ** 2).sum(1).mean(), total, rtol=0.01)
    inside = np.abs(embeddings.project(pca, x) / np.sqrt(pca.eigenvalues[:KEPT])).max(1) < buckets.spread
    off = np.abs(embeddings.project(pca, back - x + pca.mean)[inside]) / np.sqrt(pca.eigenvalues[:KEPT])
    assert off.max() <= buckets.step / 2 + 1e-9


def test_many_buckets_cost_a_twelfth_of_a_step():
    """Within 8 deviations nothing lies beyond the last bucket, and the error is uniform in each."""
    buckets = Buckets(1024, 8.0)
    np.testing.assert_allclose(buckets.error(), buckets.step**2 / 12, rtol=1e-6)
    np.testing.assert_allclose(Buckets(2, 2.0).error(), 2 - 2 * np.sqrt(2 / np.pi), rtol=1e-12)  # E (|z| - 1)^2


def test_codes_are_the_middles_of_their_buckets():
    values = np.float32([4.0, 0.0, 1.0])
    codes = np.arange(12, dtype=np.int32).reshape(4, 3)
    y = embeddings.dequantise(codes, values, Buckets(12, 3.0))
    np.testing.assert_allclose(y[:, 0], 2 * (0.5 * (codes[:, 0] + 0.5) - 3), rtol=1e-6)
    np.testing.assert_array_equal(embeddings.quantise(y, values, Buckets(12, 3.0)), codes)
    far = embeddings.quantise(jnp.asarray([[99.0, 0.0, -99.0]]), values, Buckets(12, 3.0))
    np.testing.assert_array_equal(far, [[11, 6, 0]])


def test_quantiles_share_the_numbers_out():
    x = np.random.default_rng(1).normal(size=1000)
    edges = embeddings.quantile_edges(x, 8)
    np.testing.assert_array_equal(np.bincount(embeddings.bucket_of(x.astype(np.float32), edges.astype(np.float32))), [125] * 8)
    assert embeddings.quantile_edges(x, 1).shape == (0,)


def test_arcs():
    """At a share of the angle, in the plane of the two, the length of either; the length in between where they differ."""
    a, b = np.float32([[1, 0, 0], [2, 0, 0], [0, 3, 0]]), np.float32([[0, 1, 0], [0, 0, 4], [0, 3, 0]])
    got = embeddings.slerp(a, b, jnp.asarray([1 / 3, 0.5, 0.7]))
    want = [[np.cos(np.pi / 6), 0.5, 0], [3 / np.sqrt(2), 0, 3 / np.sqrt(2)], [0, 3, 0]]
    np.testing.assert_allclose(got, want, atol=1e-6)
    np.testing.assert_allclose(embeddings.slerp(a, b, 0.0), a, atol=1e-6)
    np.testing.assert_allclose(embeddings.slerp(a, b, 1.0), b, atol=1e-6)
    near = a + np.float32([[0, 1e-4, 0]])
    np.testing.assert_allclose(embeddings.slerp(a, near, 0.5), (a + near) / 2, atol=1e-6)
    noise = np.random.default_rng(2).normal(size=(2, 2, 4, 4, 3)).astype(np.float32)
    between = embeddings.slerp(noise[0], noise[1], 0.5)  # of pictures' noise: all of a picture is one vector
    assert between.shape == (2, 4, 4, 3)
    lengths = np.linalg.norm(np.stack([noise[0], between, noise[1]]).reshape(3, 2, -1), axis=2)
    np.testing.assert_allclose(lengths[1], (lengths[0] + lengths[2]) / 2, rtol=1e-3)
    assert np.isfinite(embeddings.slerp(a, -a, 0.5)).all() and np.isfinite(embeddings.slerp(0 * a, b, 0.5)).all()


def test_text_diffs_turn_a_picture_toward_a_difference():
    base, target = np.float32([[5, 0, 0]]), np.float32([[0, 2, 0]])
    direction = embeddings.text_difference(target, base)
    np.testing.assert_allclose(direction, [[-(0.5**0.5), 0.5**0.5, 0]], atol=1e-6)
    turned = embeddings.text_diff(np.float32([[0, 0, 7]]), direction, 0.5)
    np.testing.assert_allclose(turned, [[-3.5, 3.5, 7 / np.sqrt(2)]], rtol=1e-5)  # half of a right angle, the length kept


def test_components_that_cannot_be():
    with pytest.raises(UserError, match="PCA to 7 dimensions of embeddings of 3"):
        embeddings.fit_pca(np.zeros((9, 3)), 7)
    with pytest.raises(UserError, match="PCA of 1 embeddings"):
        embeddings.fit_pca(np.zeros((1, 3)), 2)
    with pytest.raises(UserError, match="from 3 principal components, and 2 are kept"):
        embeddings.partial_reconstruction(embeddings.fit_pca(np.eye(3), 2), np.eye(3), 3)
    with pytest.raises(UserError, match="1 buckets over 4.0"):
        Buckets(1, 4.0)
