"""What CLIP was measured against: predicting the caption of an image, as a bag of words or word by word (Radford et al. 2021, section 2.3
and figure 2, where contrast learns 12 times as fast as the latter).

Config `model`: `size` (pixels), `channels`, `objective` ("words" or "language"), `image` (fields of an image tower and its `type`), and
`text`: `vocab` and `length` (tokens), and for "language" the other fields of models.captioner.Captioner. Images are classified zero-shot
by the log-probability of prompts: evaluation `prompt_scores`.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax import lax
from ml_collections import ConfigDict

from mmjax.core import rng
from mmjax.core.config import get, kwargs_for
from mmjax.core.errors import UserError, suggest
from mmjax.core.types import Array, Params, Task
from mmjax.layers import split_axes
from mmjax.models.captioner import Captioner, WordPredictor
from mmjax.models.clip import IMAGE_TOWERS, tower
from mmjax.objectives import predictive

OBJECTIVES = ("words", "language")


def make(config: ConfigDict) -> Task:
    """Batch: `image` float32[B, size, size, channels], `tokens` int32[B, length]."""
    m, where = config.model, "config.model"
    size, channels, objective, text = (get(m, k, where) for k in ("size", "channels", "objective", "text"))
    vocab, length = (get(text, k, f"{where}.text") for k in ("vocab", "length"))
    dtype = jnp.dtype(config.dtype)
    image = tower(get(m, "image", where), IMAGE_TOWERS, dtype, f"{where}.image")
    if objective not in OBJECTIVES:
        raise UserError(f"{where}.objective is {objective!r}{suggest(str(objective), OBJECTIVES)}")
    words = objective == "words"
    model = WordPredictor(image, vocab) if words else Captioner(image, **kwargs_for(Captioner, text, f"{where}.text"), dtype=dtype)
    spec = {
        "image": jax.ShapeDtypeStruct((config.batch_size, size, size, channels), jnp.float32),
        "tokens": jax.ShapeDtypeStruct((config.batch_size, length), jnp.int32),
    }
    inputs = ("image",) if words else ("image", "tokens")
    boxed = lambda key: model.init(key, *(jnp.zeros((1, *spec[k].shape[1:]), spec[k].dtype) for k in inputs))["params"]
    _, axes = split_axes(jax.eval_shape(boxed, jax.random.key(0)))
    measure = predictive.bag_of_words if words else predictive.caption

    def loss(params, batch, key, step):
        keys = rng.per_example(key, batch["_index"])
        logits, new = model.apply({"params": params}, *(batch[k] for k in inputs), keys, mutable=["state"])
        value, metrics = measure(logits, batch["tokens"])
        return value, {"metrics": metrics, "state": new.get("state", {})}

    return Task(
        init=lambda key: split_axes(boxed(key))[0],
        axes=axes,
        loss=loss,
        batch_spec=spec,
        predict={"score": word_scores(model) if words else caption_scores(model)},
        state=image.state_paths,
        limits={"tokens": vocab},
    )


def word_scores(model: WordPredictor) -> Callable[[Params, Array, Array], Array]:
    """`score(params, images, tokens [N, L]) -> [B, N]`: mean log-probability of a text's words, whose order is not seen."""

    def score(params, images, tokens):
        logits = model.apply({"params": params}, images)
        one = lambda text: predictive.bag_scores(logits, jnp.broadcast_to(text[None], (images.shape[0], *text.shape)))
        return lax.map(one, tokens).T

    return score


def caption_scores(model: Captioner) -> Callable[[Params, Array, Array], Array]:
    """`score(params, images, tokens [N, L]) -> [B, N]`: log-probability of a text given an image."""

    def score(params, images, tokens):
        features = model.apply({"params": params}, images, method="features")

        def one(text):
            texts = jnp.broadcast_to(text[None], (images.shape[0], *text.shape))
            return predictive.caption_scores(model.apply({"params": params}, features, texts, method="decode"), texts)

        return lax.map(one, tokens).T

    return score
