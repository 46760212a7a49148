"""mmjax.evals.retrieval: ranks by hand and against a loop over pairs, ties, chunks, several captions an image."""

import tracemalloc

import numpy as np
import pytest

from mmjax.evals import retrieval
from mmjax.evals.retrieval import kept, ranks, recall


def pairs_of(relevant):
    return np.argwhere(np.asarray(relevant, bool)).astype(np.int64)


def test_recall_by_hand():
    similarity = np.array([[0.9, 0.5, 0.1], [0.2, 0.3, 0.4], [0.7, 0.7, 0.1]])
    relevant = np.array([[0, 1, 0], [1, 0, 0], [0, 1, 1]], bool)
    of = lambda relevant: recall(similarity, np.eye(3), pairs_of(relevant))  # entries that read one column each
    # ranks of the best right entry: 1 (after 0.9), 2, and 1 for the tie, which the wrong entry wins
    assert ranks(similarity, np.eye(3), pairs_of(relevant)).tolist() == [1, 2, 1]
    assert of(relevant) == {1: 0.0, 5: 1.0, 10: 1.0}
    assert of(~relevant)[1] == pytest.approx(2 / 3)  # the third query ties again
    wide = np.tile(np.arange(20.0), (2, 1))
    assert recall(wide, np.eye(20), np.array([[0, 14], [1, 9]])) == {1: 0.0, 5: 0.0, 10: 0.5}  # ranks 5 and 10


def slowly(queries, gallery, pairs):
    """One query, one entry at a time."""
    out = []
    for q in range(len(queries)):
        right = {g for p, g in pairs.tolist() if p == q}
        cosine = [float(np.float32(np.dot(queries[q].astype(float), gallery[g].astype(float)))) for g in range(len(gallery))]
        best = max(cosine[g] for g in right)
        out.append(sum(cosine[g] >= best for g in range(len(gallery)) if g not in right))
    return out


@pytest.mark.parametrize("cells", [1, 100, 1 << 20])
def test_five_captions_an_image_in_chunks_of_any_size(cells):
    rng = np.random.default_rng(0)
    images, texts = rng.standard_normal((13, 7)).astype(np.float32), rng.standard_normal((65, 7)).astype(np.float32)
    texts[60:] = texts[:5]  # whole ties: wrong copies of the first image's captions
    pairs = rng.permutation(np.stack([np.repeat(np.arange(13), 5), np.arange(65)], 1))
    assert ranks(images, texts, pairs, cells).tolist() == slowly(images, texts, pairs)
    back = pairs[:, ::-1]
    assert ranks(texts, images, back, cells).tolist() == slowly(texts, images, back)
    assert (ranks(images, texts, pairs, cells)[[0]] >= 1).all()  # never before its own copy


def test_equal_embeddings_tie_wherever_they_stand():
    """Single-precision products of the same two vectors differ with the place in the matrix; these must not."""
    rng = np.random.default_rng(1)
    one = rng.standard_normal((1, 512)).astype(np.float32)
    gallery = np.repeat(one, 1003, 0)
    queries = rng.standard_normal((50, 512)).astype(np.float32)
    assert set(ranks(queries, gallery, np.stack([np.arange(50), np.full(50, 1002)], 1), 3 * 1003)) == {1002}


def test_memory_is_that_of_a_chunk():
    rng = np.random.default_rng(2)
    images, texts = rng.standard_normal((3000, 8)).astype(np.float32), rng.standard_normal((15000, 8)).astype(np.float32)
    pairs = np.stack([np.repeat(np.arange(3000), 5), np.arange(15000)], 1)
    tracemalloc.start()
    recall(images, texts, pairs, cells=1 << 20)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 20 << 20  # all similarities in single precision alone are 172 MiB


def test_images_without_captions_and_captions_without_images_ask_for_nothing():
    pairs = np.array([[0, 0], [0, 1], [2, 2], [3, 3], [3, 0]])
    new, images, captions = kept(pairs, np.array([0, 1, 3]))  # record 2 is damaged, record 1 has no caption
    assert images.tolist() == [0, 2] and captions.tolist() == [0, 1, 3]
    assert sorted(map(tuple, new.tolist())) == [(0, 0), (0, 1), (1, 0), (1, 2)]


def test_ks():
    assert retrieval.KS == (1, 5, 10)
