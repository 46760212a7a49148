"""Text from a model, token by token: one cached loop under every method.

A model is a `Forward`, a function of tokens, their positions and a cache; nothing here knows a network. `functions` makes of one what a
task offers under the names `generate` and `log_likelihood`.
"""

from mmjax.decoding.beam import Beams, beam_search
from mmjax.decoding.functions import Begin, functions
from mmjax.decoding.generate import Generated, generate
from mmjax.decoding.likelihood import log_likelihood
from mmjax.decoding.options import Options, options
from mmjax.decoding.prompt import Cache, Forward, Prompt

__all__ = [
    "Beams",
    "Begin",
    "Cache",
    "Forward",
    "Generated",
    "Options",
    "Prompt",
    "beam_search",
    "functions",
    "generate",
    "log_likelihood",
    "options",
]
