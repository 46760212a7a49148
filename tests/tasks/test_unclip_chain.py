"""The stages of unCLIP as one system, over stages whose answers are known: what reaches which, and the manipulations' arithmetic."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mmjax.core import rng
from mmjax.core.errors import UserError
from mmjax.diffusion.embeddings import fit_pca
from mmjax.tasks import unclip
from mmjax.tasks.unclip import Chain

E, L, SMALL = 4, 3, 2
TABLE = np.random.default_rng(0).normal(size=(10, E)).astype(np.float32)
PARAMS = {"clip": {"scale": jnp.float32(1.0)}, "prior": {}, "decoder": {"gain": jnp.float32(0.1)}, "upsampler0": {}, "upsampler1": {}}
KEYS = rng.per_example(jax.random.key(7), jnp.arange(2))
TOKENS = jnp.array([[1, 2, 0], [3, 4, 5]], jnp.int32)


def noise_of(keys, *shape):
    return jax.vmap(lambda key: jax.random.normal(key, shape))(keys)


def encode_image(params, x):
    """Three channels' means, and the picture's side."""
    return jnp.concatenate([x.mean((1, 2)), jnp.full((x.shape[0], 1), x.shape[1] / 100)], 1) * params["scale"]


def shade(params, embedding):
    return params["gain"] * embedding[:, None, None, :3]


def embedding_to_image(params, embedding, words, keys, *, noise=None, sampler=None):
    x = noise_of(keys, SMALL, SMALL, 3) if noise is None else noise
    x = x + (0 if embedding is None else shade(params, embedding)) + (0 if words is None else words.mean(-1)[:, None, None, None])
    return x + 10 * (sampler or {"options": {"eta": 0.0}})["options"]["eta"] * noise_of(keys, SMALL, SMALL, 3)


CHAIN = Chain(
    clip={"encode_image": encode_image, "encode_text": lambda params, t: jnp.asarray(TABLE)[t].sum(1) * params["scale"]},
    prior={"image_embedding": lambda params, words, text, keys: text + 0.1 * noise_of(keys, E) + words.sum(-1, keepdims=True)},
    decoder={
        "embedding_to_image": embedding_to_image,
        "invert": lambda params, x, embedding, words=None: x - shade(params, embedding),
    },
    upsamplers=tuple({"upsample": lambda params, x, keys: x.repeat(2, 1).repeat(2, 2) + 0.01 * noise_of(keys, 1, 1, 3)} for _ in range(2)),
    size=SMALL,
    prepare=lambda x: x,
    judged=1,
)


def named(keys, name):
    return jax.vmap(lambda key: rng.named(key, name))(keys)


def by_hand(own, tokens):
    text = TABLE[np.asarray(tokens)].sum(1)
    embedding = text + 0.1 * noise_of(named(own, "prior"), E) + tokens.sum(-1, keepdims=True)
    x = noise_of(named(own, "decoder"), SMALL, SMALL, 3) + 0.1 * embedding[:, None, None, :3] + tokens.mean(-1)[:, None, None, None]
    for stage in ("upsampler0", "upsampler1"):
        x = x.repeat(2, 1).repeat(2, 2) + 0.01 * noise_of(named(own, stage), 1, 1, 3)
    return x


def test_the_whole_chain_by_hand():
    whole = jax.jit(lambda params, tokens, keys: unclip.text_to_image(CHAIN, params, tokens, keys))
    own = unclip.candidates(KEYS, 1)
    np.testing.assert_allclose(whole(PARAMS, TOKENS, KEYS), by_hand(own, TOKENS), atol=1e-5)
    later = unclip.text_to_image(CHAIN, PARAMS, TOKENS[1:], KEYS[1:])
    np.testing.assert_allclose(later, by_hand(own, TOKENS)[1:], atol=1e-5)  # a picture follows from its own key


def test_clip_chooses_among_candidates_and_the_first_are_always_the_same():
    count = 5
    own = unclip.candidates(KEYS, count)
    assert (own[::count] == unclip.candidates(KEYS, 1)).all()
    all_of_them = by_hand(own, jnp.repeat(TOKENS, count, 0))
    half = all_of_them[:, ::2, ::2]  # about what CLIP sees after one upsampler
    texts = np.repeat(TABLE[np.asarray(TOKENS)].sum(1), count, 0)
    images = np.asarray(encode_image({"scale": 1.0}, half))
    cosines = (images * texts).sum(1) / np.linalg.norm(images, axis=1) / np.linalg.norm(texts, axis=1)
    best = cosines.reshape(2, count).argmax(1)
    assert best.any()  # not the first of both
    got = unclip.text_to_image(CHAIN, PARAMS, TOKENS, KEYS, count=count)
    np.testing.assert_allclose(got, all_of_them.reshape(2, count, *got.shape[1:])[np.arange(2), best], atol=1e-5)


def test_ablations():
    text = TABLE[np.asarray(TOKENS)].sum(1)
    of = lambda chain=CHAIN, **how: unclip.of_caption(chain, PARAMS, TOKENS, KEYS, **how)
    given = of(embedding="text")
    np.testing.assert_allclose(given.embedding, text, atol=1e-6)
    assert given.words is TOKENS and given.noise is None
    nothing = of(embedding="nothing")
    assert nothing.embedding is None and nothing.words is TOKENS
    alone = of(words=False)
    assert alone.words is None and np.abs(alone.embedding - text).max() > 0.5
    np.testing.assert_array_equal(alone.embedding, of().embedding)
    blind = dataclasses.replace(CHAIN, words="")
    assert of(blind).words is None
    with pytest.raises(UserError, match="told nothing"):
        of(blind, embedding="nothing")
    with pytest.raises(UserError, match="has no prior"):
        of(dataclasses.replace(CHAIN, prior=None))
    with pytest.raises(UserError, match="'txt'; did you mean 'text'"):
        of(embedding="txt")


def test_a_stage_may_take_features():
    clip = {**CHAIN.clip, "token_features": lambda params, t: 2.0 * t}
    chain = dataclasses.replace(CHAIN, clip=clip, words="features", prior_words="features")
    plain, twice = (unclip.of_caption(c, PARAMS, TOKENS, KEYS) for c in (CHAIN, chain))
    np.testing.assert_array_equal(twice.words, 2.0 * TOKENS)
    np.testing.assert_allclose(twice.embedding - plain.embedding, jnp.broadcast_to(TOKENS.sum(-1, keepdims=True), (2, E)), atol=1e-5)


def test_what_stages_are_told_beside():
    """The decoder the caption's embedding and which tokens are padding, the prior the latter; and both what an empty text says."""
    seen = {}

    def image_embedding(params, words, text, keys, **beside):
        seen["prior"] = beside
        return text

    def embedding_to_image(params, embedding, words, keys, *, noise=None, **beside):
        seen["decoder"] = beside
        return jnp.zeros((2, SMALL, SMALL, 3))

    clip = {**CHAIN.clip, "token_features": lambda params, t: t[..., None] + 0.5}
    stages = {"clip": clip, "prior": {"image_embedding": image_embedding}, "decoder": {"embedding_to_image": embedding_to_image}}
    empty = jnp.array([[9, 0, 0]], jnp.int32)
    kinds = {"words": "features", "prior_words": "features", "told": ("text_embedding", "mask"), "prior_told": ("mask",), "empty": empty}
    chain = dataclasses.replace(CHAIN, **stages, **kinds)
    unclip.decode(chain, PARAMS, unclip.of_caption(chain, PARAMS, TOKENS, KEYS), KEYS)
    mask = [[True, True, False], [True, True, True]]
    assert seen["prior"]["mask"].tolist() == seen["decoder"]["mask"].tolist() == mask and "text_embedding" not in seen["prior"]
    np.testing.assert_allclose(seen["decoder"]["text_embedding"], TABLE[np.asarray(TOKENS)].sum(1), atol=1e-6)
    for beside in seen.values():
        np.testing.assert_array_equal(beside["null"]["context"][..., 0], jnp.tile(empty, (2, 1)) + 0.5)
        np.testing.assert_allclose(beside["null"]["text_embedding"][1], TABLE[[9, 0, 0]].sum(0), atol=1e-6)
        assert beside["null"]["mask"].tolist() == [[True, False, False]] * 2


def test_the_end_token_may_be_what_pads():
    tokens = jnp.array([[8, 0, 9, 9, 9], [8, 1, 2, 3, 9], [8, 9, 0, 0, 0]], jnp.int32)
    want = [[1, 1, 1, 0, 0], [1, 1, 1, 1, 1], [1, 1, 0, 0, 0]]
    np.testing.assert_array_equal(unclip.real_words(dataclasses.replace(CHAIN, end=9), {}, tokens), np.array(want, bool))


PICTURES = jnp.asarray(np.random.default_rng(1).uniform(0.2, 0.8, (2, SMALL, SMALL, 3)), jnp.float32)


def test_inversion_leads_back_and_eta_away():
    given = unclip.of_pictures(CHAIN, PARAMS, PICTURES)
    np.testing.assert_allclose(unclip.decode(CHAIN, PARAMS, given, KEYS, eta=0.0), PICTURES, atol=1e-6)
    assert np.abs(unclip.decode(CHAIN, PARAMS, given, KEYS, eta=0.5) - PICTURES).mean() > 1
    assert unclip.of_pictures(CHAIN, PARAMS, PICTURES, invert=False).noise is None
    large = jnp.repeat(jnp.repeat(PICTURES, 4, 1), 4, 2)
    assert unclip.of_pictures(CHAIN, PARAMS, large).noise.shape == PICTURES.shape  # inverted at the decoder's size


def test_interpolations_begin_and_end_at_the_pictures():
    a, b = (unclip.of_pictures(CHAIN, PARAMS, PICTURES[i : i + 1]) for i in (0, 1))
    at = lambda s, noise="interpolated": unclip.interpolated(a, b, jnp.array([s], jnp.float32), noise)
    unit = lambda x: np.asarray(x) / np.linalg.norm(x)
    for share, end in ((0.0, a), (1.0, b)):
        np.testing.assert_allclose(at(share).embedding, unit(end.embedding), atol=1e-5)
        np.testing.assert_allclose(at(share).noise, end.noise, atol=1e-5)
    u, v = unit(a.embedding)[0], unit(b.embedding)[0]
    np.testing.assert_allclose(at(0.5).embedding[0], (u + v) / np.linalg.norm(u + v), atol=1e-5)
    assert at(0.5, "fixed").noise is None
    with pytest.raises(UserError, match="did you mean 'fixed'"):
        at(0.5, "fixd")


def test_a_text_diff_turns_toward_the_difference_of_the_captions():
    given = unclip.of_pictures(CHAIN, PARAMS, PICTURES)
    at = lambda s: unclip.changed_by_text(CHAIN, PARAMS, given, TOKENS, TOKENS[::-1], jnp.full(2, s, jnp.float32))
    np.testing.assert_allclose(at(0.0).embedding, given.embedding, atol=1e-5)
    np.testing.assert_array_equal(at(0.3).noise, given.noise)
    texts = TABLE[np.asarray(TOKENS)].sum(1)
    texts /= np.linalg.norm(texts, axis=1, keepdims=True)
    direction = texts[::-1] - texts
    cosine = lambda x: (np.asarray(x) * direction).sum(1) / np.linalg.norm(x, axis=1) / np.linalg.norm(direction, axis=1)
    assert (cosine(at(0.5).embedding) > cosine(at(0.25).embedding) + 0.1).all() and (cosine(at(1.0).embedding) > 0.999).all()
    length = np.linalg.norm(given.embedding, axis=1)
    np.testing.assert_allclose(np.linalg.norm(at(0.5).embedding, axis=1), length, rtol=1e-5)


def test_partial_reconstructions():
    pca = fit_pca(np.random.default_rng(2).normal(size=(50, E)))
    given = unclip.of_pictures(CHAIN, PARAMS, PICTURES)
    np.testing.assert_allclose(unclip.partial(pca, given, E).embedding, given.embedding, atol=1e-5)
    np.testing.assert_allclose(unclip.partial(pca, given, 0).embedding, np.tile(pca.mean, (2, 1)), atol=1e-5)
    assert unclip.partial(pca, given, 1).noise is given.noise
