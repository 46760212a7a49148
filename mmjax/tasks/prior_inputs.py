"""What the priors of unCLIP are told of a caption, and how embeddings are read: shared by the diffusion and the autoregressive one.

Conditions are a dict `given`, an example a row, named as in tasks.conditions: `text_embedding`; `tokens`, or `context` and its `mask`.
B examples, L words, E width of an embedding, M width of words' features.
"""

import dataclasses
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from mmjax.core import rng
from mmjax.core.config import get
from mmjax.core.errors import UserError
from mmjax.core.types import Array, Batch, Key, Params
from mmjax.diffusion.embeddings import unit
from mmjax.layers import split_axes
from mmjax.models.clip import TEXT_TOWERS, tower


@dataclasses.dataclass(frozen=True)
class Captions:
    """Attributes:
    network: the prior, whose `length` and `vocab` say which words it takes.
    width: E.
    tower: a text tower of its own, whose features of every token are the words; None where there is none.
    features: M, where a batch holds words' features as `context`; 0 where it holds `tokens`.
    masked: padding is not looked at. Tokens after the last that is not 0 are padding; of features a batch holds `mask` bool[B, L].
    dropout: share of captions that training leaves out, embedding and words at once: zeros in their place.
    unit: embeddings are brought to length 1, whatever they had.
    """

    network: Any
    width: int
    tower: Any | None
    features: int
    masked: bool
    dropout: float
    unit: bool

    def batch_spec(self, size: int) -> dict[str, jax.ShapeDtypeStruct]:
        """What a batch of so many examples holds."""
        struct = lambda *shape, dtype=jnp.float32: jax.ShapeDtypeStruct((size, *shape), dtype)
        out = {"embedding": struct(self.width), "text_embedding": struct(self.width)}
        if self.features:
            out["context"] = struct(self.network.length, self.features)
            out |= {"mask": struct(self.network.length, dtype=jnp.bool_)} if self.masked else {}
        elif self.network.length:
            out["tokens"] = struct(self.network.length, dtype=jnp.int32)
        return out

    @property
    def limits(self) -> dict[str, int]:
        """Of a batch's integers."""
        vocab = self.network.vocab if self.tower is None else self.tower.vocab
        return {"tokens": vocab} if vocab else {}

    def read(self, x: Array) -> Array:
        """An embedding as the prior sees it, before it is scaled."""
        return unit(x) if self.unit else x

    def of_batch(self, batch: Batch, keys: Key) -> tuple[dict[str, Array], Array]:
        """The batch's captions, left out of some examples; and of which, bool[B]."""
        given = {k: batch[k] for k in ("text_embedding", "tokens", "context", "mask") if k in batch}
        given["text_embedding"] = self.read(given["text_embedding"])
        drop = jax.vmap(lambda key: jax.random.bernoulli(rng.named(key, "caption"), self.dropout))(keys)
        pick = lambda x: jnp.where(drop.reshape(-1, *(1,) * (x.ndim - 1)), jnp.zeros_like(x), x)
        return {k: x if k == "mask" else pick(x) for k, x in given.items()}, drop

    def shown(self, words: Array | None, text: Array, mask: Array | None = None) -> dict[str, Array]:
        """What a caller of `image_embedding` gives. `words` None: no caption but its embedding.

        Raises:
          UserError: of another shape than the prior takes.
        """
        count, length = text.shape[0], self.network.length
        if text.shape[1:] != (self.width,):
            raise UserError(f"text: shape {tuple(text.shape)} is given, the prior takes embeddings of {self.width} numbers")
        given = {"text_embedding": self.read(text.astype(jnp.float32))}
        if length:
            name, shape = ("context", (count, length, self.features)) if self.features else ("tokens", (count, length))
            if words is None:
                words = jnp.zeros(shape, jnp.float32 if self.features else jnp.int32)
            if words.shape != shape:
                raise UserError(f"words: shape {tuple(words.shape)} is given, the prior takes {name} {shape}")
            given[name] = words
        if mask is not None:
            given["mask"] = mask
        return given

    def words(self, params: Params, given: Mapping[str, Array], keys: Key | None = None) -> dict[str, Array]:
        """What the network takes of the caption's words."""
        out = {k: given[k] for k in ("tokens", "context", "mask") if k in given}
        if self.masked and "tokens" in given and "mask" not in given:
            out["mask"] = not_padding(given["tokens"])
        if self.tower is not None:
            own = None if keys is None else jax.vmap(lambda key: rng.named(key, "text"))(keys)
            out["context"] = self.tower.apply({"params": params["text"]}, out.pop("tokens"), own, method="sequence")
        return out

    def init(self, key: Key, network: Callable[[Key, dict[str, Array]], Any]) -> dict[str, Any]:
        """Boxed parameters of the tower, if there is one, and of the network; `network(key, words)` makes those."""
        spec, out = self.batch_spec(1), {}
        words = {k: jnp.zeros(spec[k].shape, spec[k].dtype) for k in ("tokens", "context") if k in spec}
        if self.tower is not None:
            tokens = words.pop("tokens")
            features, made = self.tower.init_with_output(rng.named(key, "text"), tokens, method="sequence")
            words["context"], out["text"] = features, made["params"]
        return {**out, "prior": network(rng.named(key, "prior"), words)["params"]}


def not_padding(tokens: Array) -> Array:
    """bool[B, L]: up to the last token that is not 0, for 0 may also be a word's."""
    return jnp.cumsum((tokens != 0)[:, ::-1], axis=1)[:, ::-1] > 0


def parse(network: Any, width: int, given: Any, dtype: Any) -> Captions:
    """Of the fields `text`, `context`, `masked`, `dropout` and `unit` of a prior's settings.

    Raises:
      UserError: words of two kinds or of none that the network takes, other lengths, a share that is none.
    """
    where = "config.model"
    if given.text is not None and given.context is not None:
        raise UserError(f"{where} has both text and context; the prior looks at one kind of words")
    if not 0 <= given.dropout < 1:
        raise UserError(f"{where}.dropout is {given.dropout}, expected a share from 0 to 1")
    text, features, length = None, 0, network.length
    if given.text is not None:
        text = tower(given.text, TEXT_TOWERS, dtype, f"{where}.text")
        length = text.length
    if given.context is not None:
        length, features = (get(given.context, key, f"{where}.context") for key in ("length", "width"))
    if length != network.length:
        raise UserError(f"{where}.prior.length is {network.length}, and there are {length} words: make them equal")
    by_number = text is None and not features
    if bool(network.vocab) != (by_number and bool(network.length)):
        fix = "set text, context or prior.vocab" if by_number else "set prior.vocab to 0"
        raise UserError(f"{where}: the caption is {'nothing' if by_number else 'features'}, and prior.vocab is {network.vocab}: {fix}")
    return Captions(network, width, text, features, given.masked, given.dropout, given.unit)


def axes_of(boxed: Callable[[Key], Any]) -> Any:
    """Logical axes of what `boxed` makes of a key."""
    return split_axes(jax.eval_shape(boxed, jax.random.key(0)))[1]


def gathered(batches: Iterable[Batch], count: int, to_unit: bool) -> tuple[np.ndarray, np.ndarray]:
    """The image and text embeddings of the first `count` examples of a run, in float64; of length 1 where they are read so."""
    kept, total = [], 0
    for batch in batches:
        kept.append([np.asarray(batch[key], np.float64) for key in ("embedding", "text_embedding")])
        total += len(kept[-1][0])
        if total >= count:
            break
    image, text = (np.concatenate(rows)[:count] for rows in zip(*kept, strict=True))
    size = lambda x: np.maximum(np.linalg.norm(x, axis=1, keepdims=True), 1e-12) if to_unit else 1.0
    return image / size(image), text / size(text)


def nearest(candidates: Array, text: Array) -> Array:
    """Of every example's candidates [B, C, E] the one whose dot product with the text embedding is the largest, [B, E]."""
    best = jnp.einsum("bce,be->bc", candidates, text).argmax(1)
    return jnp.take_along_axis(candidates, best[:, None, None], axis=1)[:, 0]


def of_candidates(count: int, keys: Key, given: Mapping[str, Array]) -> tuple[Key, dict[str, Array]]:
    """Keys and conditions of `count` candidates an example, those of one side by side."""
    own = jax.vmap(lambda key: jax.vmap(lambda i: jax.random.fold_in(key, i))(jnp.arange(count)))(keys).reshape(-1)
    return own, {k: jnp.repeat(x, count, axis=0) for k, x in given.items()}
