"""From logits to the next token: what may not be chosen, what is made less likely, and the choice. B rows, V vocabulary."""

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, Key

from mmjax.decoding.options import Options

ANY = -1  # in a stop: matches every token
NONE = -2  # where no token was written yet


class Stops:
    """Stop sequences as a table, and the question whether a token completes one.

    Attributes:
      width: of the longest; a text's `tail` holds so many tokens less one, the newest last.
    """

    def __init__(self, stop: tuple[tuple[int, ...], ...]):
        self.width = max(map(len, stop), default=1)
        table = [(ANY,) * (self.width - len(s)) + s for s in stop]
        self._before = np.array([s[:-1] for s in table], np.int32).reshape(len(table), self.width - 1)
        self._last = np.array([s[-1] for s in table], np.int32)
        self._lengths = np.array([len(s) for s in stop], np.int32)

    def tail(self, rows: int) -> Int[Array, "B M"]:
        """Of texts without a token."""
        return jnp.full((rows, self.width - 1), NONE, jnp.int32)

    def _near(self, tail: Int[Array, "B M"]) -> Bool[Array, "B S"]:
        """Which stops lack their last token alone."""
        same = (tail[:, None, :] == self._before[None]) | (self._before[None] == ANY)
        return same.all(-1)

    def completed(self, tail: Int[Array, "B M"], token: Int[Array, "B"]) -> Int[Array, "B"]:
        """Tokens of the longest stop that `token` completes; 0 if it completes none."""
        hit = self._near(tail) & (token[:, None] == self._last[None])
        return jnp.where(hit, self._lengths[None], 0).max(1, initial=0)

    def held_off(self, logits: Float[Array, "B V"], tail: Int[Array, "B M"], t: Int[Array, ""], least: int) -> Float[Array, "B V"]:
        """Logits of token t by which no stop can be completed that would leave fewer than `least` tokens of text."""
        if not least or not len(self._last):
            return logits
        early = (t + 1 - self._lengths < least)[None]
        return logits.at[:, self._last].min(jnp.where(self._near(tail) & early, -jnp.inf, jnp.inf))

    def push(self, tail: Int[Array, "B M"], token: Int[Array, "B"]) -> Int[Array, "B M"]:
        """The tail with a newer token."""
        return jnp.concatenate([tail, token[:, None]], axis=1)[:, 1:]


def seen_in(tokens: Int[Array, "B P"], lengths: Int[Array, "B"], vocab: int) -> Bool[Array, "B V"]:
    """Which tokens of the vocabulary stand in the prompts."""
    rows = jnp.arange(len(tokens))[:, None]
    real = jnp.arange(tokens.shape[1])[None] < lengths[:, None]
    return jnp.zeros((len(tokens), vocab), bool).at[rows, tokens].max(real)


def penalised(logits: Float[Array, "B V"], seen: Bool[Array, "B V"], penalty: float) -> Float[Array, "B V"]:
    """Keskar et al. 2019, section 4.1, with the sign taken care of as everybody does."""
    return jnp.where(seen, jnp.where(logits < 0, logits * penalty, logits / penalty), logits)


def likely(logits: Float[Array, "B V"], top_k: int, top_p: float) -> Float[Array, "B V"]:
    """Logits with all but the likeliest tokens ruled out; at least one stays, and a tie with the last that stays, stays."""
    if not top_k and top_p == 1:
        return logits
    count = min(top_k or logits.shape[-1], logits.shape[-1])
    best = jax.lax.top_k(logits, count)[0]
    probabilities = jax.nn.softmax(best)
    before = jnp.cumsum(probabilities, axis=-1) - probabilities
    last = jnp.where(before < top_p, best, jnp.inf).min(-1)
    return jnp.where(logits < last[:, None], -jnp.inf, logits)


def choose(logits: Float[Array, "B V"], keys: Key[Array, "B"], options: Options) -> Int[Array, "B"]:
    """The likeliest token, or one drawn from its row's key."""
    if not options.temperature:
        return logits.argmax(-1).astype(jnp.int32)
    logits = likely(logits / options.temperature, options.top_k, options.top_p)
    return jax.vmap(jax.random.categorical)(keys, logits).astype(jnp.int32)
