"""Masks against examples worked by hand."""

import jax
import jax.numpy as jnp
import numpy as np

from mmjax.layers import masks


def rows(mask):
    """[1, 1, L, S] as strings of 0 and 1."""
    mask = np.asarray(mask)
    assert mask.dtype == bool and mask.shape[:2] == (1, 1)
    return ["".join("01"[int(x)] for x in row) for row in mask[0, 0]]


def row(text):
    return jnp.asarray([[int(x) for x in text.split()]])


def words(text, *found):
    return jnp.asarray([[word in found for word in text.split()]])


def test_causal_three_ways():
    want = ["1000", "1100", "1110", "1111"]
    assert rows(masks.causal(4)) == rows(masks.blockwise(row("1 1 1 1"))) == rows(masks.written(row("0 1 2 3"), 4)) == want


def test_prefix_of_a_picture_and_a_question():
    """PaliGemma: image image BOS question SEP | answer EOS padding."""
    starts, valid = row("0 0 0 0 0 1 1 1"), row("1 1 1 1 1 1 1 0").astype(bool)
    assert rows(masks.blockwise(starts, valid)) == ["11111000"] * 5 + ["11111100", "11111110", "00000000"]
    assert rows(masks.prefix(jnp.asarray([5]), 7)) == ["1111100"] * 5 + ["1111110", "1111111"]


def test_blocks_and_what_queries_see():
    assert rows(masks.blockwise(row("1 0 1 0 0 1"))) == ["110000", "110000", "111110", "111110", "111110", "111111"]
    # BLIP-2's image-grounded generation: two queries see each other, a token sees them and itself and what comes before.
    assert rows(masks.blockwise(row("1 0 1 1 1"))) == ["11000", "11000", "11100", "11110", "11111"]


def test_packed_texts_and_their_padding():
    segments = row("1 1 2 2 0")
    assert rows(masks.same_segment(segments) & masks.causal(5)) == ["10000", "11000", "00100", "00110", "00001"]
    assert rows(masks.same_segment(row("2 1"), segments)) == ["00110", "11000"]
    assert masks.documents(row("0 0 1 0 1 0 0").astype(bool)).tolist() == [[1, 1, 1, 2, 2, 3, 3]]


def test_molmo_annotations_share_their_image():
    """i sees j iff id_i <= id_j and j <= i: the image has id 10000, annotations 1 and 2."""
    ids = np.array([10000, 10000, 1, 1, 2])
    shared = masks.same_segment(jnp.asarray(ids)[None]) | jnp.asarray(ids == 10000)[None, None, None]
    want = (ids[:, None] <= ids[None]) & (np.arange(5)[:, None] >= np.arange(5))
    # Annotation 1 may see 2 by that rule too, but 2 comes after it.
    np.testing.assert_array_equal(np.asarray(shared & masks.causal(5))[0, 0], want)


def test_a_cache_is_seen_up_to_each_rows_own_place():
    mask = np.asarray(masks.written(jnp.asarray([[2, 3], [0, 1]]), 5))
    assert mask.shape == (2, 1, 2, 5)
    assert mask[:, 0].sum(-1).tolist() == [[3, 4], [1, 2]] and mask[..., 0].all()


TEXT = "BOS Cute EOC IMG my dog EOC IMG my cat EOC"


def test_flamingo_sees_the_last_image():
    index = masks.media_index(words(TEXT, "IMG"))
    assert index.tolist() == [[0, 0, 0, 1, 1, 1, 1, 2, 2, 2, 2]]
    mask = masks.cross(index, images=2, latents=2)
    assert rows(mask) == ["0000"] * 3 + ["1100"] * 4 + ["0011"] * 4
    assert masks.seeing(mask)[0, :, 0].tolist() == [False] * 3 + [True] * 8
    # All previous images, and none before the first.
    assert rows(masks.cross(index, 2, first=jnp.ones_like(index))) == ["00"] * 3 + ["10"] * 4 + ["11"] * 4


def test_flamingo_sees_the_image_that_follows():
    """The image's own token stays with it; after the last image there is none to follow. Row 0 looks back, row 1 forward."""
    both = jnp.repeat(words(TEXT, "IMG"), 2, axis=0)
    index = masks.media_index(both, following=jnp.asarray([False, True]))
    assert index.tolist() == [[0, 0, 0, 1, 1, 1, 1, 2, 2, 2, 2], [1, 1, 1, 1, 2, 2, 2, 2, 0, 0, 0]]


def test_idefics_packs_documents():
    """After a document's end no image is seen until the next; images are counted through the row."""
    text = "IMG a end b IMG c IMG d end e"
    is_image, segments = words(text, "IMG"), masks.documents(words(text, "end"))
    index = masks.media_index(is_image, segments)
    assert index.tolist() == [[1, 1, 1, 0, 2, 2, 3, 3, 3, 0]]
    first = masks.first_image(is_image, segments)
    assert rows(masks.cross(index, 3, first=first)) == ["100"] * 3 + ["000"] + ["010"] * 2 + ["011"] * 3 + ["000"]
    # To follow is within the document: b has image 2 before it in nothing but the row.
    following = masks.media_index(is_image, segments, jnp.asarray([True]))
    assert following.tolist() == [[1, 0, 0, 2, 2, 3, 3, 0, 0, 0]]


def test_by_loops():
    """Random rows of documents and images against the definitions, token by token."""
    r = np.random.default_rng(0)
    is_image, follow = r.random((6, 30)) < 0.25, np.array([True, False] * 3)
    segments = np.sort(r.integers(0, 4, (6, 30)), axis=1)
    got = jax.jit(masks.media_index)(jnp.asarray(is_image), jnp.asarray(segments), jnp.asarray(follow))
    first = jax.jit(masks.first_image)(jnp.asarray(is_image), jnp.asarray(segments))
    for b in range(6):
        number = np.cumsum(is_image[b])
        for t in range(30):
            own = [j for j in range(30) if is_image[b, j] and segments[b, j] == segments[b, t]]
            before, after = [j for j in own if j <= t], [j for j in own if j > t]
            seen = after[:1] if follow[b] and not is_image[b, t] else before[-1:]
            assert got[b, t] == (number[seen[0]] if seen else 0), (b, t)
            earlier = sum(is_image[b, j] for j in range(30) if segments[b, j] < segments[b, t])
            assert first[b, t] == earlier + 1
