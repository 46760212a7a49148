"""The loop that writes: greedily, or drawing from what the model holds likely.

B rows, P tokens of the longest prompt, N new tokens, V vocabulary.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Key

from mmjax.core import rng
from mmjax.decoding.beam import beam_search
from mmjax.decoding.choose import Stops, choose, penalised, seen_in
from mmjax.decoding.options import Options
from mmjax.decoding.prompt import Cache, Prompt, Step, read_guided


class Generated(NamedTuple):
    """New tokens, without the prompt.

    Attributes:
      tokens: a row's text, the stop that ended it, and `pad`.
      lengths: tokens of the text, without the stop.
      scores: log-probability of all new tokens, the stop among them, by the model (and its guidance), before penalties, temperature and
        what is ruled out. Of a beam search as the search ranks them: by `length_penalty`, penalties counted.
      ended: by a stop; if not, by `max_new_tokens`.
    """

    tokens: Int[Array, "B N"]
    lengths: Int[Array, "B"]
    scores: Float[Array, "B"]
    ended: Bool[Array, "B"]


class _State(NamedTuple):
    t: Int[Array, ""]
    token: Int[Array, "B"]
    tail: Int[Array, "B M"]
    seen: Any  # bool[B, V] where there is a penalty
    cache: Cache
    out: Generated


def generate(prompt: Prompt, keys: Key[Array, "B"], options: Options, *, negative: Prompt | None = None) -> Generated:
    """Continues every row of a prompt, and ends when all rows have ended; a row's text follows from its prompt and its key alone.

    Its work is traced once for a shape: the prompt is one forward pass, all further tokens one loop.

    Args:
      negative: what `options.guidance` moves away from, a prompt a row.
    """
    if options.beams > 1:
        found = beam_search(prompt, options, negative=negative)
        return Generated(*(x[:, 0] for x in found))
    step, cache = read_guided(prompt, negative, options.guidance)
    body, state = _loop(step, cache, prompt, keys, options)
    return jax.lax.while_loop(lambda s: (s.t < options.max_new_tokens) & ~s.out.ended.all(), body, state).out


def _loop(step: Step, cache: Cache, prompt: Prompt, keys: Key[Array, "B"], options: Options) -> tuple[Any, _State]:
    """What the loop does, and what it starts from."""
    stops, rows, penalty = Stops(options.stop), len(prompt.tokens), options.repetition_penalty

    def body(s: _State) -> _State:
        raw, cache = step(s.token, s.t, s.cache)
        logits = raw if s.seen is None else penalised(raw, s.seen, penalty)
        logits = stops.held_off(logits, s.tail, s.t, options.min_new_tokens)
        token = choose(logits, rng.fold(keys, s.t), options)
        out = _written(s.out, raw, token, stops.completed(s.tail, token), s.t, options.pad)
        if options.on_token is not None:
            jax.debug.callback(options.on_token, s.t, token, s.out.ended)
        seen = None if s.seen is None else s.seen.at[jnp.arange(rows), token].set(True)
        return _State(s.t + 1, token, stops.push(s.tail, token), seen, cache, out)

    empty = Generated(
        jnp.full((rows, options.max_new_tokens), options.pad, jnp.int32),
        jnp.zeros(rows, jnp.int32),
        jnp.zeros(rows),
        jnp.zeros(rows, bool),
    )
    t = jnp.int32(0)
    token = jnp.zeros(rows, jnp.int32)
    seen = None
    if penalty != 1:
        seen = seen_in(prompt.tokens, prompt.lengths, jax.eval_shape(step, token, t, cache)[0].shape[-1])
    return body, _State(t, token, stops.tail(rows), seen, cache, empty)


def _written(
    out: Generated, logits: Float[Array, "B V"], token: Int[Array, "B"], stop: Int[Array, "B"], t: Int[Array, ""], pad: int
) -> Generated:
    """With one token more in the rows that had not ended."""
    own = jnp.take_along_axis(logits, token[:, None], axis=1)[:, 0] - jax.nn.logsumexp(logits, axis=-1)
    tokens = out.tokens.at[:, t].set(jnp.where(out.ended, pad, token))
    lengths = jnp.where(out.ended, out.lengths, t + 1 - stop)
    return Generated(tokens, lengths, out.scores + jnp.where(out.ended, 0.0, own), out.ended | (stop > 0))
