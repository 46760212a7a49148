"""Predict functions of a model that writes, `generate`, `log_likelihood` and `unrolled`: compiled, with what the host sees checked first.

B rows, P tokens of the longest prompt, A answers of N tokens at most.
"""

import functools
from collections.abc import Callable, Collection, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Int

from mmjax.core import rng
from mmjax.core.errors import UserError
from mmjax.decoding.generate import Generated
from mmjax.decoding.generate import generate as write
from mmjax.decoding.likelihood import TOGETHER
from mmjax.decoding.likelihood import log_likelihood as rank
from mmjax.decoding.options import Options, options
from mmjax.decoding.prompt import Cache, Forward, Prompt

# begin(unrolled params, tokens int32[B, P], length, **inputs) -> the model and an empty cache with room for `length` tokens a row.
Begin = Callable[..., tuple[Forward, Cache]]


def functions(
    begin: Begin, *, unrolled: Callable[[Any], Any] = lambda params: params, context: int | None, vocab: int, inputs: Collection[str] = ()
) -> dict[str, Callable]:
    """`generate`, `log_likelihood` and `unrolled` of a model.

    Args:
      unrolled: params -> params as `begin` reads them, their layers one by one; those that are so already as they are. It is compiled by
        itself: the loop is given layers as they lie in memory, and copies no weight.
      context: the most positions it has; None where there is no end to them.
      inputs: names of further arrays that the functions take and `begin` is given, rows in front.
    """

    compiled, as_they_are = jax.jit(unrolled), {}

    def apart(params: Any) -> Any:
        """What `unrolled` makes; those of the same form, which it leaves, as the same arrays: what is compiled would copy them."""
        form = jax.tree.structure(params)
        if form not in as_they_are:
            as_they_are[form] = jax.tree.structure(jax.eval_shape(unrolled, params)) == form
        return params if as_they_are[form] else compiled(params)

    def prompt(params: Any, given: Mapping[str, Array], new: int) -> Prompt:
        tokens, lengths, *_ = given["tokens"], given["lengths"]
        forward, cache = begin(params, tokens, tokens.shape[1] + new, **{k: given[k] for k in inputs if k in given})
        return Prompt(forward, cache, tokens, lengths)

    @functools.partial(jax.jit, static_argnames="how")
    def written(params: Any, given: dict, other: dict | None, keys: Array, how: Options) -> Generated:
        new = how.max_new_tokens
        return write(prompt(params, given, new), keys, how, negative=None if other is None else prompt(params, other, new))

    @functools.partial(jax.jit, static_argnames="together")
    def ranked(params: Any, given: dict, answers: Array, lengths: Array, together: int) -> Array:
        return rank(prompt(params, given, answers.shape[2]), answers, lengths, together=together)

    def generate(params, tokens, key, *, lengths=None, negative=None, **more) -> Generated:
        """Continues prompts.

        Args:
          params: the model's, or what `unrolled` made of them, which saves making it again in every call.
          tokens: int32[B, P], filled up on the right with any of the vocabulary.
          key: one key, from which every row takes its own by its number, or a key a row.
          lengths: int32[B], of the prompts; all P without it.
          negative: {"tokens": ..., "lengths": ..., further inputs}, a prompt a row for `guidance` to move away from.
          more: fields of decoding.Options, `max_new_tokens` among them; and the model's further inputs.

        Raises:
          UserError: an empty prompt, one that leaves too little of the context, ids outside the vocabulary, an unknown option.
        """
        own = {k: more.pop(k) for k in inputs if more.get(k) is not None}
        how = options(**{k: v for k, v in more.items() if k not in inputs})
        check = functools.partial(_checked, inputs=inputs, new=how.max_new_tokens, context=context, vocab=vocab)
        given = check({"tokens": tokens, "lengths": lengths, **own}, "prompt")
        other = None if negative is None else check(dict(negative), "negative prompt")
        if other is not None and len(other["tokens"]) != len(given["tokens"]):
            raise UserError(f"decoding: {len(given['tokens'])} prompts and {len(other['tokens'])} negative ones; expected one for each")
        if (how.guidance != 1) != (other is not None):
            raise UserError(f"decoding: guidance is {how.guidance} {'without' if other is None else 'with'} a negative prompt; give both")
        keys = rng.per_example(key, jnp.arange(len(given["tokens"]))) if key.ndim == 0 else key
        return written(apart(params), given, other, keys, how)

    def log_likelihood(params, tokens, answers, answer_lengths, *, lengths=None, together: int = TOGETHER, **more) -> Array:
        """float32[B, A]: log-probability of answers after prompts, -inf where an answer has no token. Arguments as of `generate`, and
        answers int32[B, A, N], filled up on the right, answer_lengths int32[B, A].

        Raises:
          UserError: as `generate`.
        """
        answers, answer_lengths = jnp.asarray(answers), jnp.asarray(answer_lengths)
        _check_ids(answers, vocab, "answers")
        given = {"tokens": tokens, "lengths": lengths, **{k: v for k, v in more.items() if v is not None}}
        given = _checked(given, "prompt", inputs=inputs, new=answers.shape[2], context=context, vocab=vocab)
        return ranked(apart(params), given, answers, answer_lengths, together)

    return {"generate": generate, "log_likelihood": log_likelihood, "unrolled": apart}


def _checked(given: dict, what: str, *, inputs: Collection[str], new: int, context: int | None, vocab: int) -> dict[str, Array]:
    """Arrays of a prompt, with its lengths."""
    for name in given:
        if name not in ("tokens", "lengths", *inputs):
            raise UserError(f"decoding: the model takes no {name!r}; of a {what} it takes {', '.join(('tokens', 'lengths', *inputs))}")
    tokens = jnp.asarray(given["tokens"])
    if tokens.ndim != 2 or 0 in tokens.shape:
        raise UserError(f"decoding: a {what} is tokens [rows, tokens], one at least, got {list(tokens.shape)}; begin with the start token")
    rows, width = tokens.shape
    lengths = given.get("lengths")
    lengths = jnp.full(rows, width, jnp.int32) if lengths is None else jnp.asarray(lengths, jnp.int32)
    if lengths.shape != (rows,):
        raise UserError(f"decoding: lengths has shape {list(lengths.shape)}, expected one for each of {rows} rows")
    _check_ids(tokens, vocab, f"{what}")
    _check_lengths(lengths, width, new, context, what)
    return {**{k: jnp.asarray(v) for k, v in given.items() if k in inputs and v is not None}, "tokens": tokens, "lengths": lengths}


def _check_ids(ids: Int[Array, "..."], vocab: int, what: str) -> None:
    """A token past a table's end reads garbage without an error."""
    if isinstance(ids, jax.core.Tracer) or not ids.size:
        return
    host = np.asarray(ids)
    wrong = (host < 0) | (host >= vocab)
    if wrong.any():
        raise UserError(f"decoding: {what} hold id {host[wrong][0]} in row {np.argwhere(wrong)[0][0]}; the vocabulary has 0 to {vocab - 1}")


def _check_lengths(lengths: Int[Array, "B"], width: int, new: int, context: int | None, what: str) -> None:
    """Within the row, and with what is to be written within the context; where lengths are not known yet, whole rows must be."""
    known = None if isinstance(lengths, jax.core.Tracer) else np.asarray(lengths)
    if known is not None and not ((known >= 1) & (known <= width)).all():
        row = int(np.argmax((known < 1) | (known > width)))
        which = "is empty; it needs a token to go on from, the start token at least" if known[row] < 1 else f"has room for {width} tokens"
        raise UserError(f"decoding: the {what} of row {row} {which}; its length is {known[row]}")
    longest, row = (width, 0) if known is None else (int(known.max()), int(known.argmax()))
    if context is not None and (longest + new > context or width > context):
        longest = max(longest, width) if width > context else longest
        raise UserError(
            f"decoding: the {what} of row {row} has {longest} tokens and {new} are to follow, but the model sees {context}: shorten one"
        )
