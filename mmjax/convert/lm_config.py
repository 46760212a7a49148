"""What Hugging Face's config.json of language models have in common. They are read strictly: a key that is not heeded changes the text."""

import dataclasses
import re
from collections.abc import Callable, Collection, Mapping
from typing import Any

from mmjax.convert import hf_config
from mmjax.convert.layout import Layout, Model
from mmjax.convert.rules import Rule, identity, tied, transpose
from mmjax.convert.source import Source
from mmjax.core.errors import UserError
from mmjax.models.lm import LanguageModel

Json = Mapping[str, Any]

# Keys that say nothing of what a model computes: how it was made, started, trained or called.
_IDLE = re.compile(
    r"_name_or_path|architectures|auto_map|model_type|transformers_version|(torch_)?dtype|use_cache|return_dict|output_\w+|"
    r"problem_type|chunk_size_feed_forward|is_decoder|is_encoder_decoder|\w*dropout|\w+_pdrop|layerdrop|init(ializer)?_\w+|emb_init_\w+|"
    r"param_init_fn|fan_mode|embedding_fraction|summary_\w+|task_specific_params|prefix|tokenizer_(class|name)|verbose|pretraining_tp|"
    r"attn_impl|low_precision_layernorm|norm_type|n_ctx|max_sequence_length|\w+_token_id|gradient_checkpointing|id2label|label2id|"
    r"reorder_and_upcast_attn|(max|min)_length|do_sample|temperature|top_[kp]|num_beams|(length|repetition)_penalty|no_repeat_ngram_size"
)
# Fields that say how a model is trained and computed, not what it computes.
_HOW = ("parent", "name", "dtype", "scan", "remat", "backend", "dropout", "init_std")
SPECIAL = ("bos", "eos", "pad")


@dataclasses.dataclass(frozen=True)
class Kind:
    """A family of language models.

    Attributes:
      fields: (config.json, what messages call it) -> fields of models.lm.LanguageModel.
      out: all those fields -> config.json, whatever they are: `fields` of it tells whether it says them.
      rules: as `Layout`'s, under `lm`.
      marks: as `Layout`'s.
      types: other values of `model_type` than `name`.
    """

    name: str
    fields: Callable[[Json, str], dict[str, Any]]
    out: Callable[[Json], dict[str, Any]]
    rules: Callable[[Model, Collection[str]], list[Rule]]
    marks: tuple[str, ...]
    types: tuple[str, ...] = ()


def layout(*kinds: Kind) -> Layout:
    """Of kinds whose tensors have the same names; which it is says `model_type`."""
    known = {name: kind for kind in kinds for name in (kind.name, *kind.types)}

    def describe(source: Source) -> dict[str, Any]:
        config, where = hf_config.of(source)
        name = config.get("model_type", kinds[0].name)
        if name not in known:
            raise UserError(f"{where}: model_type is {name!r}; with tensors of these names {', '.join(known)} are known")
        kind = known[name]
        fields = trimmed(kind.fields(config, where))
        special = {key: config[f"{key}_token_id"] for key in SPECIAL if config.get(f"{key}_token_id") is not None}
        return {"family": kind.name, "model": {"lm": fields}, "special": special}

    return Layout("hf", kinds[0].name, kinds[0].marks, describe, kinds[0].rules)


def complete(fields: Json) -> dict[str, Any]:
    """Fields with the module's defaults, of what decides what it computes; two that say the same are equal."""
    ours = {f.name: f.default for f in dataclasses.fields(LanguageModel) if f.name not in _HOW and f.default is not dataclasses.MISSING}
    out = {**ours, **{key: value for key, value in fields.items() if key not in _HOW}}
    usual = {"kv_heads": out["heads"], "head_width": out["width"] // out["heads"], "embed_width": out["width"]}
    return out | {key: None for key, value in usual.items() if out[key] == value}


def trimmed(fields: Json) -> dict[str, Any]:
    """Fields without those that say what the module's defaults say."""
    ours = {f.name: f.default for f in dataclasses.fields(LanguageModel)}
    return {key: value for key, value in complete(fields).items() if value != ours[key]}


def read(config: Json, known: Json, where: str) -> dict[str, Any]:
    """The values of `known`'s keys, each of its default's type, None where the default is.

    Raises:
      UserError: a value of another type, or a key that says something and is not known.
    """
    for key, value in config.items():
        if key not in known and not _IDLE.fullmatch(key) and value not in (None, False, 0, "", [], {}):
            raise UserError(f"{where}: {key!r} is {value!r}, and what it asks for is not known here; known: {', '.join(known)}")
    flags = {key: config.get(key, default) for key, default in known.items() if isinstance(default, bool)}
    for key, value in flags.items():
        if not isinstance(value, bool):
            raise UserError(f"{where}: {key} is {value!r}, expected true or false")
    return {**hf_config.fill(config, {key: x for key, x in known.items() if key not in flags}, where), **flags}


def only(c: Json, where: str, **values: Any) -> None:
    """Raises `UserError` unless keys have the one value that is known here."""
    for key, value in values.items():
        if c[key] != value:
            raise UserError(f"{where}: {key} is {c[key]!r}; {value!r} is all that is known here")


def rope(c: Json, where: str, fraction: float = 1.0) -> dict[str, Any]:
    """Fields of turned queries and keys, from `rope_parameters` (transformers 5) or `rope_theta` and `rope_scaling`.

    Raises:
      UserError: a way of stretching that is not known.
    """
    given = {**(c.get("rope_scaling") or {}), **(c.get("rope_parameters") or {})}
    kind = given.pop("rope_type", None) or given.get("type") or "default"
    given.pop("type", None)
    base, fraction = given.pop("rope_theta", None) or c["rope_theta"], given.pop("partial_rotary_factor", fraction)
    stretch = given.pop("factor", 1.0) if kind == "linear" else 1.0
    if kind not in ("default", "linear") or given:
        key = "rope_scaling" if c.get("rope_scaling") else "rope_parameters"
        raise UserError(f"{where}: {key} is {c[key]!r}; of its types 'default' and 'linear' (with a factor) are known here")
    return {"positions": "rope", "rope_base": float(base), "rope_fraction": float(fraction), "rope_stretch": float(stretch)}


def rope_out(fields: Json) -> dict[str, Any] | None:
    """`rope_scaling`, as transformers 4 has it, which 5 takes."""
    stretch = fields["rope_stretch"]
    return {"type": "linear", "factor": stretch} if stretch != 1 else None


def tokens(names: Collection[str], table: str, head: str, is_tied: bool) -> list[Rule]:
    """The token table and the head, which where they are one a file may hold under either name or both."""
    if not is_tied:
        return [Rule(table, "lm/token/embedding", identity), Rule(head, "lm/head/kernel", transpose)]
    held = tuple(name for name in (table, head) if name in names) or (table,)
    return [Rule(held, "lm/token/embedding", tied(len(held)))]
