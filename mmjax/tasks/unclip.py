"""unCLIP (Ramesh et al. 2022, arXiv 2204.06125): the stages as one system, pure functions over what each of them predicts.

A caption's CLIP embedding becomes that of a picture (the prior), this a small picture (the decoder), this a larger one (upsamplers).
What the decoder is given can also be made of pictures: variations, interpolations, text diffs, partial reconstructions (section 3).

B examples, L tokens, E width of CLIP's embeddings, N candidates, h the decoder's side, S the last stage's. Pictures are in 0..1. `params`
has each stage's by its role: "clip", "prior", "decoder", "upsampler0", ...
"""

import dataclasses
import functools
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Key

from mmjax.core import rng
from mmjax.core.errors import UserError, suggest
from mmjax.core.types import Params
from mmjax.diffusion import cascade, embeddings
from mmjax.diffusion.embeddings import PCA
from mmjax.tasks.prior_inputs import not_padding

Predict = Mapping[str, Callable]
Pictures = Float[Array, "B _ _ _"]
# What stands in the place of a picture's embedding where a caption is all there is: the prior's, the caption's own, or nothing.
EMBEDDINGS = ("prior", "text", "nothing")
WORDS = ("tokens", "features", "")  # what the decoder is told of the caption beside the embedding
NOISES = ("interpolated", "fixed")
# Of a decoder's sampler, where noise is to lead back to the picture that it was made of.
PLAIN = {"solver": "ddim", "guidance": 1.0, "guided": "all", "caption_guidance": None, "clip": ""}


@dataclasses.dataclass(frozen=True)
class Chain:
    """The stages' predict functions, and how they meet.

    Attributes:
      clip: `encode_image`, `encode_text`, and `token_features` where `words` or the prior take them; `token_mask` if it has one.
      prior: `image_embedding`; None for a chain without.
      decoder: `embedding_to_image`, `invert`.
      upsamplers: `upsample`, in their order.
      size: h.
      prepare: pictures -> what CLIP's image tower takes.
      words: of WORDS: what the decoder takes of the caption.
      prior_words: the same of the prior.
      told, prior_told: what they take beside: "text_embedding", the caption's own, and "mask", which of its tokens are no padding.
      empty: tokens of the empty text, where its features stand for no caption (Karlo), in guidance as well as of a picture that comes
        without; None for zeros.
      end: the token after a caption's last; what follows is padding, whichever token fills it. None: zeros at the end are.
      judged: so many upsamplers are run before CLIP chooses among candidates: those that it needs to see them at its own size.
    """

    clip: Predict
    prior: Predict | None
    decoder: Predict
    upsamplers: tuple[Predict, ...]
    size: int
    prepare: Callable[[Pictures], Array]
    words: str = "tokens"
    prior_words: str = "tokens"
    told: tuple[str, ...] = ()
    prior_told: tuple[str, ...] = ()
    empty: Int[Array, "1 L"] | None = None
    end: int | None = None
    judged: int = 0


class Given(NamedTuple):
    """What the decoder draws of.

    Attributes:
      embedding: of a picture; None leaves it out.
      words: of the caption, as the decoder takes them; None leaves it out.
      noise: what sampling starts from; None for what the keys give.
      beside: further arguments of `embedding_to_image` that say something of the caption.
    """

    embedding: Float[Array, "B E"] | None = None
    words: Array | None = None
    noise: Float[Array, "B h w c"] | None = None
    beside: Mapping[str, Any] | None = None


def resized(pictures: Pictures, size: int) -> Pictures:
    """Square pictures of another side; downwards with antialiasing."""
    return pictures if pictures.shape[1] == size else jnp.clip(cascade.resize(pictures, (size, size)), 0.0, 1.0)


# --- embeddings ----------------------------------------------------------------------------------------------------------


def encode_pictures(chain: Chain, params: Params, pictures: Pictures) -> Float[Array, "B E"]:
    """CLIP's embeddings of pictures of any size."""
    return chain.clip["encode_image"](params["clip"], chain.prepare(pictures))


def caption_words(chain: Chain, params: Params, tokens: Int[Array, "B L"], kind: str) -> Array | None:
    """A caption as a stage takes it; `kind` of WORDS."""
    if kind not in WORDS:
        raise UserError(f"a stage of unCLIP takes words {kind!r}{suggest(kind, WORDS)}")
    if not kind:
        return None
    return tokens if kind == "tokens" else chain.clip["token_features"](params["clip"], tokens)


def real_words(chain: Chain, params: Params, tokens: Int[Array, "B L"]) -> Bool[Array, "B L"]:
    """Which tokens are no padding, as CLIP's own `token_mask` has it, else up to the end token, which some tokenizers pad with too."""
    if "token_mask" in chain.clip:
        return chain.clip["token_mask"](params["clip"], tokens)
    if chain.end is None:
        return not_padding(tokens)
    ends = (tokens == chain.end).astype(jnp.int32)
    return jnp.cumsum(ends, axis=1) - ends == 0


def beside_words(chain: Chain, params: Params, tokens: Int[Array, "B L"], *, prior: bool) -> dict[str, Any]:
    """What the prior or the decoder takes of a caption beside its words, by the names of arguments."""
    kind, told = (chain.prior_words, chain.prior_told) if prior else (chain.words, chain.told)
    encode = lambda tokens: chain.clip["encode_text"](params["clip"], tokens)
    out: dict[str, Any] = {}
    if "mask" in told:
        out["mask"] = real_words(chain, params, tokens)
    if "text_embedding" in told:
        out["text_embedding"] = encode(tokens)
    if chain.empty is not None and kind == "features":
        empty = jnp.broadcast_to(chain.empty, tokens.shape)
        out["null"] = {"context": caption_words(chain, params, empty, kind)}
        out["null"] |= {"text_embedding": encode(empty)} if prior or "text_embedding" in told else {}
        out["null"] |= {"mask": real_words(chain, params, empty)} if "mask" in told else {}
    return out


def captioned(chain: Chain, params: Params, given: Given, tokens: Int[Array, "B L"]) -> Given:
    """With a caption, as far as the decoder takes one."""
    words = caption_words(chain, params, tokens, chain.words)
    if words is None and "text_embedding" not in chain.told:
        return given
    return given._replace(words=words, beside=beside_words(chain, params, tokens, prior=False))


def uncaptioned(chain: Chain, params: Params, given: Given, count: int) -> Given:
    """Of pictures without a caption: with the empty one, where stages know no other nothing."""
    if given.words is not None or chain.empty is None or chain.words != "features":
        return given
    return captioned(chain, params, given, jnp.broadcast_to(chain.empty, (count, chain.empty.shape[1])))


def of_caption(
    chain: Chain, params: Params, tokens: Int[Array, "B L"], keys: Key[Array, "B"], *, embedding: str = "prior", words: bool = True
) -> Given:
    """What the decoder is given of a caption.

    Args:
      embedding: of EMBEDDINGS: the picture's that the prior draws; the caption's own in its place; or none: the words speak alone.
      words: whether the decoder is told the caption itself, if it takes it; without them the embedding speaks alone.

    Raises:
      UserError: an unknown name, a chain without a prior, or a decoder that is told nothing.
    """
    if embedding not in EMBEDDINGS:
        raise UserError(f"the embedding of a caption is to be {embedding!r}{suggest(embedding, EMBEDDINGS)}")
    told = captioned(chain, params, Given(), tokens) if words else Given()
    if embedding == "nothing":
        if told.words is None:
            raise UserError("the decoder would be told nothing: neither an embedding nor the caption's words")
        return told
    text = chain.clip["encode_text"](params["clip"], tokens)
    if embedding == "text":
        return told._replace(embedding=text)
    if chain.prior is None:
        raise UserError("the pipeline has no prior; give it one, or decode the caption's own embedding (embedding=text)")
    known = caption_words(chain, params, tokens, chain.prior_words)
    beside = beside_words(chain, params, tokens, prior=True)
    return told._replace(embedding=chain.prior["image_embedding"](params["prior"], known, text, _named(keys, "prior"), **beside))


def of_pictures(chain: Chain, params: Params, pictures: Pictures, *, invert: bool = True) -> Given:
    """What the decoder is given of pictures: CLIP's embedding z_i and, with `invert`, the noise x_T that DDIM draws them from.

    Together they say all of a picture (section 3.1).
    """
    embedding = encode_pictures(chain, params, pictures)
    if not invert:
        return Given(embedding)
    told = uncaptioned(chain, params, Given(embedding), len(pictures))
    words = {} if told.words is None else {"words": told.words, **{k: x for k, x in told.beside.items() if k != "null"}}
    return Given(embedding, None, chain.decoder["invert"](params["decoder"], resized(pictures, chain.size), embedding, **words))


def interpolated(a: Given, b: Given, share: Float[Array, "B"], noise: str = "interpolated") -> Given:
    """Between two pictures, their embeddings turned along the arc (section 3.2).

    Args:
      share: 0 is a, 1 is b.
      noise: "interpolated", along the arc between the two pictures' own; "fixed", what the keys give: equal keys, equal noise.
    """
    if noise not in NOISES:
        raise UserError(f"the noise of an interpolation is {noise!r}{suggest(noise, NOISES)}")
    between = embeddings.slerp(embeddings.unit(a.embedding), embeddings.unit(b.embedding), share)
    return Given(between, None, embeddings.slerp(a.noise, b.noise, share) if noise == "interpolated" else None)


def changed_by_text(
    chain: Chain, params: Params, given: Given, source: Int[Array, "B L"], target: Int[Array, "B L"], share: Float[Array, "B"]
) -> Given:
    """A picture turned toward the difference of two captions, its noise kept (section 3.3, text diffs).

    Args:
      source, target: what the picture shows, and what it is to show.
      share: how far; the paper's go from 0 to 0.25 or 0.5.
    """
    texts = [chain.clip["encode_text"](params["clip"], tokens) for tokens in (source, target)]
    direction = embeddings.text_difference(texts[1], texts[0])
    return given._replace(embedding=embeddings.text_diff(given.embedding, direction, share))


def partial(pca: PCA, given: Given, dims: int) -> Given:
    """A picture of whose embedding the `dims` leading principal components alone are told (figure 7)."""
    return given._replace(embedding=embeddings.partial_reconstruction(pca, given.embedding, dims))


# --- pictures ------------------------------------------------------------------------------------------------------------


def decode(chain: Chain, params: Params, given: Given, keys: Key[Array, "B"], *, eta: float | None = None) -> Pictures:
    """The decoder's pictures, h pixels a side.

    Args:
      eta: DDIM's, without guidance: noise that is given leads back to its picture at 0, and to variations of it above. None for the
        decoder's own sampler.
    """
    how = {} if eta is None else {"sampler": {**PLAIN, "options": {"eta": eta}}}
    own, given = _named(keys, "decoder"), uncaptioned(chain, params, given, keys.shape[0])
    return chain.decoder["embedding_to_image"](
        params["decoder"], given.embedding, given.words, own, noise=given.noise, **(given.beside or {}), **how
    )


def upsample(chain: Chain, params: Params, stage: int, pictures: Pictures, keys: Key[Array, "B"]) -> Pictures:
    """Upsampler number `stage` on the pictures of the stage before it."""
    name = f"upsampler{stage}"
    return chain.upsamplers[stage]["upsample"](params[name], pictures, _named(keys, name))


def enlarge(chain: Chain, params: Params, pictures: Pictures, keys: Key[Array, "B"], first: int = 0, last: int | None = None) -> Pictures:
    """Upsamplers `first` to before `last`, one after the other."""
    for stage in range(len(chain.upsamplers))[first:last]:
        pictures = upsample(chain, params, stage, pictures, keys)
    return pictures


def candidates(keys: Key[Array, "B"], count: int) -> Key[Array, "BN"]:
    """Keys of the candidates, those of one example side by side. The first candidates are the same however many there are."""
    return jax.vmap(lambda key: jax.vmap(functools.partial(jax.random.fold_in, key))(jnp.arange(count)))(keys).reshape(-1)


def repeated(x: Array, count: int) -> Array:
    """Rows of the candidates, those of one example side by side."""
    return jnp.repeat(x, count, axis=0)


def chosen(chain: Chain, params: Params, pictures: Float[Array, "BN _ _ _"], tokens: Int[Array, "B L"]) -> Int[Array, "B"]:
    """Of every example's candidates the row whose picture CLIP finds most like the caption (DALL-E's reranking)."""
    images = embeddings.unit(encode_pictures(chain, params, pictures))
    texts = embeddings.unit(chain.clip["encode_text"](params["clip"], tokens))
    count = images.shape[0] // texts.shape[0]
    cosines = jnp.einsum("bne,be->bn", images.reshape(texts.shape[0], count, -1), texts)
    return jnp.arange(texts.shape[0]) * count + cosines.argmax(1)


def text_to_image(
    chain: Chain,
    params: Params,
    tokens: Int[Array, "B L"],
    keys: Key[Array, "B"],
    *,
    embedding: str = "prior",
    words: bool = True,
    count: int = 1,
) -> Pictures:
    """All of it: pictures of captions, S pixels a side, the best of `count` candidates each. `embedding`, `words`: of `of_caption`.

    This is what `text_to_image` of core.types.PREDICT asks for, so that whatever scores one model scores the chain.
    """
    own = candidates(keys, count)
    given = of_caption(chain, params, repeated(tokens, count), own, embedding=embedding, words=words)
    return finished(chain, params, decode(chain, params, given, own), tokens, own)


def finished(
    chain: Chain, params: Params, pictures: Float[Array, "BN _ _ _"], tokens: Int[Array, "B L"], keys: Key[Array, "BN"]
) -> Pictures:
    """The decoder's candidates enlarged; those that CLIP does not choose, only as far as it needs to see them."""
    if len(tokens) == len(pictures):
        return enlarge(chain, params, pictures, keys)
    seen = enlarge(chain, params, pictures, keys, 0, chain.judged)
    best = chosen(chain, params, seen, tokens)
    return enlarge(chain, params, seen[best], keys[best], chain.judged)


def _named(keys: Key[Array, "B"], name: str) -> Key[Array, "B"]:
    return jax.vmap(lambda key: rng.named(key, name))(keys)
