"""A language model small enough to enumerate: every token votes for the next one, less the longer ago it stood."""

import itertools

import jax.numpy as jnp
import numpy as np

from mmjax.decoding import Prompt

VOCAB = 5
VOTES = (np.random.default_rng(91).normal(0, 1.5, (VOCAB, VOCAB)) - 2 * np.eye(VOCAB)).astype(np.float32)  # no token again and again
FADE = 0.6


def forward(tokens, start, cache):
    """The model with a cache, which holds the tokens themselves."""
    places = start[:, None] + jnp.arange(tokens.shape[1])[None]
    kept = cache["kept"].at[jnp.arange(len(tokens))[:, None], places].set(tokens)
    age = places[:, :, None] - jnp.arange(kept.shape[1])[None, None]
    weight = jnp.where(age >= 0, FADE ** jnp.maximum(age, 0), 0.0)
    return jnp.einsum("bns,bsv->bnv", weight, jnp.asarray(VOTES)[kept]), {"kept": kept}


def cache(rows, length):
    """Of junk that no token may see."""
    return {"kept": jnp.full((rows, length), VOCAB - 1, jnp.int32)}


def prompts(texts, room):
    """Rows of unlike lengths, filled up with junk."""
    width = max(map(len, texts))
    tokens = np.array([[*t, *[VOCAB - 1] * (width - len(t))] for t in texts], np.int32)
    lengths = np.array([len(t) for t in texts], np.int32)
    return Prompt(forward, cache(len(texts), width + room), jnp.asarray(tokens), jnp.asarray(lengths))


def logits(text):
    """Of the next token after all of `text`, without a cache, float64."""
    return FADE ** np.arange(len(text))[::-1] @ VOTES[np.array(text)].astype(np.float64)


def log_p(text):
    """Log-probabilities of the same."""
    x = logits(text)
    return x - np.log(np.exp(x).sum())


def texts(prompt, count):
    """Every continuation of so many tokens, with its log-probability."""
    out = {}
    for text in itertools.product(range(VOCAB), repeat=count):
        out[text] = sum(log_p([*prompt, *text[:i]])[token] for i, token in enumerate(text))
    return out
