"""How text is written: one record of everything that may be asked for, checked when it is made."""

import dataclasses
import math
from collections.abc import Callable, Sequence
from typing import Any

from mmjax.core.errors import UserError, suggest

EARLY = (False, True, "never")


@dataclasses.dataclass(frozen=True)
class Options:
    """Hashable, so that a compiled function may take it as a static argument.

    Attributes:
      max_new_tokens: at most so many after the prompt.
      min_new_tokens: no stop may leave a text of fewer: the token that would complete it is not chosen.
      temperature: what logits are divided by before a token is drawn; 0, the default, takes the likeliest token.
      top_k: draws among the k likeliest tokens only; 0 among all.
      top_p: then among the fewest of them whose probabilities sum to at least this (Holtzman et al. 2020, section 3.1).
      repetition_penalty: logits of tokens that were in the prompt or were written are divided by it where positive and multiplied where
        negative (Keskar et al. 2019, section 4.1).
      guidance: with a `negative` prompt, log p(token | prompt) is moved away from log p(token | negative) by this factor; 1 is none.
      stop: sequences of ids that end a text, each of one token or several; an end token is a sequence of one.
      pad: what fills a row after its end.
      beams: more than 1 searches with so many, and takes the best.
      length_penalty: of beams, whose log-probability is divided by (number of new tokens) ** length_penalty: above 0 favours long ones.
      early_stopping: True ends a search when it has `beams` ended texts, False when the running ones' scores at their present length are
        no better, "never" when they could not become better at any length.
      on_token: called on the host as `on_token(t, tokens [B], ended [B])` with every token that is chosen, in any order of t. It makes
        text appear while it is written; not with beams.
    """

    max_new_tokens: int
    min_new_tokens: int = 0
    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    repetition_penalty: float = 1.0
    guidance: float = 1.0
    stop: tuple[tuple[int, ...], ...] = ()
    pad: int = 0
    beams: int = 1
    length_penalty: float = 1.0
    early_stopping: bool | str = False
    on_token: Callable[..., None] | None = None

    def __post_init__(self):
        for name, ok, expected in (
            ("max_new_tokens", self.max_new_tokens >= 1, "at least 1"),
            ("min_new_tokens", 0 <= self.min_new_tokens <= self.max_new_tokens, f"0 to max_new_tokens, {self.max_new_tokens}"),
            ("temperature", 0 <= self.temperature < math.inf, "0 (the likeliest token) or more"),
            ("top_k", self.top_k >= 0, "a number of tokens, or 0 for all"),
            ("top_p", 0 < self.top_p <= 1, "above 0, at most 1"),
            ("repetition_penalty", 0 < self.repetition_penalty < math.inf, "above 0; 1 is none"),
            ("beams", self.beams >= 1, "at least 1"),
            ("early_stopping", self.early_stopping in EARLY, "True, False or 'never'"),
        ):
            if not ok:
                raise UserError(f"decoding: {name} is {getattr(self, name)!r}, expected {expected}")
        if self.beams > 1 and (self.temperature or self.top_k or self.top_p < 1 or self.on_token):
            raise UserError(f"decoding: beams is {self.beams}; beams are neither drawn (temperature, top_k, top_p) nor streamed (on_token)")
        if not self.temperature and (self.top_k or self.top_p < 1):
            raise UserError("decoding: top_k and top_p are of tokens that are drawn; set temperature above 0, 1 for the model's own")


def stops(given: Sequence[int | Sequence[int]]) -> tuple[tuple[int, ...], ...]:
    """Stop sequences; a token alone is a sequence of one.

    Raises:
      UserError: an empty one.
    """
    out = tuple((int(s),) if not isinstance(s, Sequence) else tuple(int(i) for i in s) for s in given)
    if () in out:
        raise UserError("decoding: a stop sequence is empty; every one needs a token")
    return out


def options(**given: Any) -> Options:
    """`Options`, of keywords.

    Raises:
      UserError: one that is not known, or a bad value.
    """
    known = [f.name for f in dataclasses.fields(Options)]
    for name in given:
        if name not in known:
            raise UserError(f"decoding has no option {name!r}{suggest(name, known)}")
    if "max_new_tokens" not in given:
        raise UserError("decoding: max_new_tokens is needed, the most tokens to write")
    reals = ("temperature", "top_p", "repetition_penalty", "guidance", "length_penalty")
    return Options(**{**given, "stop": stops(given.get("stop", ())), **{k: float(given[k]) for k in reals if k in given}})
