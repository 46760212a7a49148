"""Language models of all families: layouts, predict functions, and the way out to Hugging Face."""

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from mmjax.convert import lm_config
from mmjax.convert.family import Family, Fields, Model, Target, compiled, finished
from mmjax.convert.gemma import GEMMA
from mmjax.convert.gpt2 import GPT2
from mmjax.convert.gpt_neox import GPT_NEOX
from mmjax.convert.llama import LLAMA
from mmjax.convert.lm_config import complete
from mmjax.convert.mpt import MARK, MPT
from mmjax.convert.opt import OPT
from mmjax.core.errors import UserError
from mmjax.decoding import functions
from mmjax.models import lm

KINDS = (GPT2, OPT, MPT, LLAMA, GEMMA, GPT_NEOX)
HF_LLAMA = lm_config.layout(LLAMA, GEMMA)
OWN_CODE = "transformers itself has no MPT with norms on queries and keys: load it with the code that mpt-1b-redpajama-200b comes with"
LAYOUTS = (lm_config.layout(GPT2), lm_config.layout(OPT), lm_config.layout(MPT), HF_LLAMA, lm_config.layout(GPT_NEOX))


def build(fields: Fields, dtype: Any = jnp.float32, mesh: jax.sharding.Mesh | None = None) -> Model:
    """Of `lm`, fields of models.lm.LanguageModel.

    Raises:
      UserError: an unknown field, or sizes that do not fit.
    """
    module = lm.build(fields["lm"], dtype, "model.lm")
    boxed = jax.eval_shape(module.init, jax.random.key(0), jax.ShapeDtypeStruct((1, 1), jnp.int32))["params"]
    return finished({"lm": boxed}, predict(module, mesh))


def predict(module: lm.LanguageModel, mesh: jax.sharding.Mesh | None = None) -> dict[str, Callable]:
    """`logits`, `generate`, `log_likelihood` and `unrolled` of a model whose parameters stand under `lm`."""
    call = compiled(lambda params, tokens, **more: module.apply({"params": params["lm"]}, tokens, **more), mesh)

    def logits(params: Any, tokens: Any, *, positions: Any = None, segments: Any = None, mask: Any = None) -> jax.Array:
        more = {"positions": positions, "segments": segments, "mask": mask}
        return call(params, checked(tokens, module), **{name: x for name, x in more.items() if x is not None})

    def begin(params: Any, tokens: jax.Array, length: int) -> tuple:
        return lm.forward(module, params["lm"]), module.init_cache(len(tokens), length)

    unrolled = lambda params: {**params, "lm": lm.unrolled(params["lm"])}
    return {"logits": logits, **functions(begin, unrolled=unrolled, context=module.length, vocab=module.vocab)}


def checked(tokens: Any, module: lm.LanguageModel) -> Any:
    """int32[B, L], held against the vocabulary and the context where the host can see them.

    Raises:
      UserError: another type or shape, too many tokens, or an id that the model has no row for.
    """
    shape = np.shape(tokens)
    if len(shape) != 2 or not 1 <= shape[1] <= module.length:
        raise UserError(f"tokens: shape {shape}, the language model takes (B, L) with L from 1 to {module.length}")
    if isinstance(tokens, jax.core.Tracer):
        return tokens
    tokens = np.asarray(tokens)
    if not np.issubdtype(tokens.dtype, np.integer):
        raise UserError(f"tokens: type {tokens.dtype}, expected the integers of a tokenizer")
    outside = np.argwhere((tokens < 0) | (tokens >= module.vocab))
    if len(outside):
        row, column = outside[0]
        found, last = f"tokens[{row}, {column}] is {tokens[row, column]}", module.vocab - 1
        raise UserError(f"{found}, outside the model's vocabulary of 0 to {last}; use the tokenizer that belongs to these weights")
    return tokens.astype(np.int32)


def to_hf(config: Mapping[str, Any]) -> Target:
    """The folder of the class of transformers that has this model: the family it came from, or the first that can say its fields.

    Raises:
      UserError: none can.
    """
    fields = complete(config["model"]["lm"])
    for kind in sorted(KINDS, key=lambda kind: kind.name != config.get("family")):
        written = kind.out(fields)
        if not _says(kind, written, fields):
            continue
        old = kind is MPT and fields["qk_norm"]
        notes = [OWN_CODE] if old else []
        written |= {f"{key}_token_id": value for key, value in config.get("special", {}).items()}
        layout = next(x for x in LAYOUTS if x.family == ("llama" if kind is GEMMA else kind.name))
        return Target(layout, (MARK,) if old else (), {"config.json": written}, "model", notes)
    raise UserError(f"transformers has no class for this language model; known families: {', '.join(kind.name for kind in KINDS)}")


def _says(kind: lm_config.Kind, written: Mapping[str, Any], fields: Fields) -> bool:
    """Whether a config.json, read again, is the model of these fields."""
    try:
        return complete(kind.fields(written, "")) == fields
    except (UserError, TypeError):
        return False


def says(fields: Fields) -> str:
    """Its sizes."""
    group = complete(fields["lm"])
    return f"language model of width {group['width']}, depth {group['depth']} and {group['vocab']} tokens"


FAMILY = Family(("lm",), ("lm",), build, says, {"hf": to_hf})
