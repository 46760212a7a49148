"""Distances by hand; copies that were planted are found, wherever the chunks are cut."""

import numpy as np
import pytest

from mmjax.data.scenes import draw, sample
from mmjax.evals import memorisation


def scenes(split, count):
    return np.stack([draw.render(sample.sample("objects", split, i), 32) for i in range(count)])


TRAINING, VALIDATION = scenes("train", 60), scenes("validation", 30)


def test_distances_by_hand():
    a = np.zeros((2, 16, 16, 3), np.uint8)
    a[1] += 255
    b = np.concatenate([a, a[:1]])
    b[2, :8] = 255
    np.testing.assert_allclose(memorisation.pixel_distances(a, b), [[0, 1, 0.5**0.5], [1, 0, 0.5**0.5]])
    codes = np.array([0, 2**64 - 1, 7], np.uint64)
    np.testing.assert_array_equal(memorisation.hash_distances(codes[:2], codes), [[0, 64, 3], [64, 0, 61]])


@pytest.mark.parametrize("cuts", [[], [1, 7, 30], list(range(1, 60))])
def test_search_is_brute_force(cuts, monkeypatch):
    monkeypatch.setattr(memorisation, "BLOCK_BYTES", 8 * VALIDATION[:7].size)  # blocks of seven
    found = memorisation.search(VALIDATION, np.split(TRAINING, cuts))
    difference = VALIDATION[:, None].astype(float) - TRAINING[None]
    brute = np.sqrt((difference**2).mean((2, 3, 4))) / 255
    np.testing.assert_array_equal(found["pixels"].numbers, brute.argmin(1))
    np.testing.assert_allclose(found["pixels"].distances, brute.min(1), rtol=1e-12)
    bits = memorisation.hash_distances(memorisation.hashes(VALIDATION), memorisation.hashes(TRAINING))
    np.testing.assert_array_equal(found["hash"].distances, bits.min(1))
    np.testing.assert_array_equal(found["hash"].numbers, bits.argmin(1))


def test_planted_copies_are_found():
    generated = np.concatenate([scenes("unseen", 8), TRAINING[[41, 5]]])
    noisy = np.clip(TRAINING[[17]].astype(int) + np.random.default_rng(0).integers(-2, 3, TRAINING[[17]].shape), 0, 255)
    generated = np.concatenate([generated, noisy.astype(np.uint8)])
    found = memorisation.search(np.concatenate([generated, VALIDATION]), np.array_split(TRAINING, 4))
    cut = {
        k: (memorisation.Nearest(n.distances[:11], n.numbers[:11]), memorisation.Nearest(n.distances[11:], n.numbers[11:]))
        for k, n in found.items()
    }
    near = cut["pixels"][0]
    assert near.numbers[8:].tolist() == [41, 5, 17] and near.distances[8:10].tolist() == [0, 0] and 0 < near.distances[10] < 0.01
    assert cut["hash"][0].distances[8:10].tolist() == [0, 0]
    measured = memorisation.measure(*cut["pixels"])
    assert measured.share == pytest.approx(3 / 11) and measured.validation_share == pytest.approx(1 / 30)
    assert 0.01 < measured.threshold < measured.validation_median
    assert (
        "27.27" in memorisation.table({"pixels": measured})
        and memorisation.plain({"pixels": measured})["pixels"]["share"] == measured.share
    )


def test_threshold_is_a_quantile_of_validation():
    even = memorisation.Nearest(np.arange(1000.0), np.zeros(1000, int))
    made = memorisation.measure(memorisation.Nearest(np.array([0.0, 5.0, 9.0, 9.5, 500.0]), np.zeros(5, int)), even)
    assert made.threshold == 9 and made.share == 3 / 5 and made.validation_share == 0.01 and made.median == 9
