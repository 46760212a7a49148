"""Beam search: the K likeliest texts that were found, by the rules of transformers' generate, whose beams these are.

B rows, K beams, N new tokens, V vocabulary, C candidates a step. A step takes the C likeliest continuations of all running beams; those
of the best K that end a text compete for the K places of ended ones, and the best K that do not run on.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from mmjax.decoding.choose import Stops, penalised, seen_in
from mmjax.decoding.options import Options
from mmjax.decoding.prompt import Cache, Prompt, read_guided

LOW = -1e9  # a score that no text has


class Beams(NamedTuple):
    """New tokens of K texts a row, best first.

    Attributes:
      tokens: a text, the stop that ended it, and `pad`.
      lengths: tokens of the text, without the stop.
      scores: log-probability over (new tokens, the stop among them) ** length_penalty.
      ended: by a stop; if not, by `max_new_tokens`.
    """

    tokens: Int[Array, "B K N"]
    lengths: Int[Array, "B K"]
    scores: Float[Array, "B K"]
    ended: Bool[Array, "B K"]


class _Running(NamedTuple):
    tokens: Int[Array, "B K N"]
    scores: Float[Array, "B K"]
    tail: Int[Array, "B K M"]
    seen: Any  # bool[B, K, V] where there is a penalty


class _State(NamedTuple):
    t: Int[Array, ""]
    running: _Running
    found: Beams
    open: Bool[Array, "B"]  # whether a running beam may still better what was found
    cache: Cache


def beam_search(prompt: Prompt, options: Options, *, negative: Prompt | None = None) -> Beams:
    """The `options.beams` best texts for every row of a prompt. The prompt is read once, not once a beam."""
    step, cache = read_guided(prompt, negative, options.guidance, options.beams)
    rows, beams, new, stops = len(prompt.tokens), options.beams, options.max_new_tokens, Stops(options.stop)

    def body(s: _State) -> _State:
        flat = lambda x: None if x is None else x.reshape(rows * beams, *x.shape[2:])
        token = s.running.tokens[:, :, jnp.maximum(s.t - 1, 0)]
        logits, cache = step(flat(token), s.t, s.cache)
        log_p = jax.nn.log_softmax(logits)
        log_p = log_p if s.running.seen is None else penalised(log_p, flat(s.running.seen), options.repetition_penalty)
        log_p = stops.held_off(log_p, flat(s.running.tail), s.t, options.min_new_tokens)
        candidates, parents, stop = _candidates(s, log_p.reshape(rows, beams, -1), stops, options)
        ends = (stop > 0) | (s.t + 1 == new)
        running, best = _run_on(candidates, ends, beams)
        found = _ended(s, candidates, stop, ends, options)
        places = jnp.arange(rows)[:, None] * beams + jnp.take_along_axis(parents, best, axis=1)
        return _State(s.t + 1, running, found, s.open & _may_improve(running, found, s.t + 1, options), _moved(cache, s.cache, places))

    return jax.lax.while_loop(lambda s: (s.t < new) & s.open.any(), body, _start(prompt, step, cache, stops, options)).found


def _moved(cache: Cache, before: Cache, places: Int[Array, "B K"]) -> Cache:
    """The cache with rows where their beams are now. What a step hands on as it was given it was copied from a prompt and is equal for
    all beams of a row: keys and values of pictures, which are most of some caches, stay where they are."""
    move = lambda x, old: x if x is old else jnp.take(x, places.reshape(-1), axis=0)
    return jax.tree.map(move, cache, before)


def _start(prompt: Prompt, step: Any, cache: Cache, stops: Stops, options: Options) -> _State:
    """One beam runs, that all of the first candidates be different."""
    rows, beams, new = len(prompt.tokens), options.beams, options.max_new_tokens
    tokens = jnp.full((rows, beams, new), options.pad, jnp.int32)
    seen = None
    if options.repetition_penalty != 1:
        vocab = jax.eval_shape(step, jnp.zeros(rows * beams, jnp.int32), jnp.int32(0), cache)[0].shape[-1]
        seen = jnp.repeat(seen_in(prompt.tokens, prompt.lengths, vocab)[:, None], beams, axis=1)
    scores = jnp.broadcast_to(jnp.where(jnp.arange(beams) == 0, 0.0, LOW), (rows, beams))
    running = _Running(tokens, scores, stops.tail(rows * beams).reshape(rows, beams, -1), seen)
    none = Beams(tokens, jnp.zeros((rows, beams), jnp.int32), jnp.full((rows, beams), LOW), jnp.zeros((rows, beams), bool))
    return _State(jnp.int32(0), running, none, jnp.ones(rows, bool), cache)


def _gather(tree: Any, places: Int[Array, "B n"]) -> Any:
    """Entries of every leaf's second axis."""
    one = lambda x: jnp.take_along_axis(x, places.reshape(*places.shape, *(1,) * (x.ndim - 2)), axis=1)
    return jax.tree.map(one, tree)


def _candidates(
    s: _State, log_p: Float[Array, "B K V"], stops: Stops, options: Options
) -> tuple[_Running, Int[Array, "B C"], Int[Array, "B C"]]:
    """The likeliest continuations, best first; which beam each is of; and how long the stop is that its token completes, 0 without."""
    rows, beams, vocab = log_p.shape
    count = min(max(2, 1 + len(options.stop)) * beams, beams * vocab)  # so that K are left when every other one ends a text
    scores, places = jax.lax.top_k((log_p + s.running.scores[..., None]).reshape(rows, -1), count)
    parents, token = places // vocab, (places % vocab).astype(jnp.int32)
    of = _gather(s.running, parents)
    flat = lambda x: x.reshape(rows * count, *x.shape[2:])
    stop = stops.completed(flat(of.tail), flat(token)).reshape(rows, count)
    tail = stops.push(flat(of.tail), flat(token)).reshape(rows, count, -1)
    seen = of.seen
    if seen is not None:
        seen = seen.at[jnp.arange(rows)[:, None], jnp.arange(count)[None], token].set(True)
    return _Running(of.tokens.at[:, :, s.t].set(token), scores, tail, seen), parents, stop


def _run_on(candidates: _Running, ends: Bool[Array, "B C"], beams: int) -> tuple[_Running, Int[Array, "B K"]]:
    """The best K that do not end, and which of the candidates they are."""
    scores, best = jax.lax.top_k(candidates.scores + jnp.where(ends, LOW, 0.0), beams)
    return _gather(candidates, best)._replace(scores=scores), best


def _ended(s: _State, candidates: _Running, stop: Int[Array, "B C"], ends: Bool[Array, "B C"], options: Options) -> Beams:
    """The best K of the texts that had ended and of those that end now. Only the K likeliest candidates may: the others are there lest
    beams run out."""
    full = s.found.scores.min(1) > LOW / 2
    frozen = ~s.open | (full & (options.early_stopping is True))
    counts = ends & (jnp.arange(ends.shape[1]) < options.beams)[None] & ~frozen[:, None]
    scores = jnp.where(counts, candidates.scores / _length(s.t + 1, options), LOW)
    new = Beams(candidates.tokens, s.t + 1 - stop, scores, stop > 0)
    both = jax.tree.map(lambda a, b: jnp.concatenate([a, b], axis=1), s.found, new)
    scores, best = jax.lax.top_k(both.scores, options.beams)
    return _gather(both, best)


def _length(count: Int[Array, ""], options: Options) -> Float[Array, ""]:
    return count.astype(jnp.float32) ** options.length_penalty


def _may_improve(running: _Running, found: Beams, count: Int[Array, ""], options: Options) -> Bool[Array, "B"]:
    """Whether a search goes on: by `options.early_stopping`, after `count` new tokens."""
    far = options.early_stopping == "never" and options.length_penalty > 0
    hoped = running.scores[:, 0] / _length(jnp.int32(options.max_new_tokens) if far else count, options)
    worst = found.scores.min(1)
    better = hoped > worst
    return better & (worst <= LOW / 2) if options.early_stopping is True else better
