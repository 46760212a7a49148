"""unCLIP's decoder and upsampler as Karlo publishes them: diffusers' folders, two of which are one model, and the original state dicts.

The decoder is a U-Net with `text_proj` (models.unclip), the upsampler a U-Net for all steps but the last and one for that.
"""

from collections.abc import Collection, Mapping
from typing import Any

import numpy as np

from mmjax.convert import diffusers_config, pieces, schedulers, unet, unet_shapes
from mmjax.convert.diffusion import by_shapes, rooted
from mmjax.convert.layout import Layout, Model
from mmjax.convert.rules import Op, Rule, identity, under
from mmjax.convert.source import Source
from mmjax.core.errors import UserError
from mmjax.models import unet as unets

HEAD_WIDTH = 64  # of Karlo's, where a state dict does not say
# How Karlo's are trained and, where no scheduler's config lies beside them, sampled.
COSINE = {"path": {"name": "discrete", "betas": "cosine", "steps": 1000}, "prediction": "eps"}
ANCESTRAL = {"solver": "ddpm", "spacing": "unclip", "clip": "static"}
FIXED = {**COSINE, "sampler": {**ANCESTRAL, "options": {"variance": "fixed_small"}}}
LEARNED = {**COSINE, "variance": "learned_range", "sampler": {**ANCESTRAL, "options": {"variance": "learned_range"}}}
DECODED, ENLARGED = {"steps": 25, "guidance": 8.0}, {"steps": 7}
DROPPED = 0.3  # share of captions that Karlo's training left out
# Our names of the products around an embedding -> diffusers' in text_proj, and the original's.
PRODUCTS = {
    "time": ("clip_image_embeddings_project_to_time_embeddings", "clip_emb"),
    "text": ("embedding_proj", "text_feat_proj"),
    "words": ("encoder_hidden_states_proj", "text_seq_proj.0"),
}
NORM = ("text_encoder_hidden_states_norm", "text_seq_proj.1")
TOKENS = ("clip_extra_context_tokens_proj", "clip_tok_proj")
NULL = ("learned_classifier_free_guidance_embeddings", "cf_param")


def interleaved(tokens: int) -> Op:
    """Rows that run through the tokens for every channel <-> columns that run through the channels for every token."""

    def forward(x: np.ndarray) -> tuple[np.ndarray, ...]:
        return (x.reshape(-1, tokens, *x.shape[1:]).swapaxes(0, 1).reshape(x.shape).T,)

    def inverse(x: np.ndarray) -> tuple[np.ndarray, ...]:
        x = x.T
        return (x.reshape(tokens, -1, *x.shape[1:]).swapaxes(0, 1).reshape(x.shape),)

    return Op(forward, inverse)


def condition(model: Model, form: int) -> list[Rule]:
    """Of models.unclip.EmbeddingCondition; `form`: 0 for diffusers', 1 for the original's names."""
    tokens = model["embedding"]["tokens"]
    rules = [rule for ours, theirs in PRODUCTS.items() for rule in pieces.dense(theirs[form], ours)]
    rules += pieces.norm(NORM[form], "words_norm")
    rules += [
        Rule(f"{TOKENS[form]}.{theirs}", f"tokens/{ours}", interleaved(tokens)) for theirs, ours in (("weight", "kernel"), ("bias", "bias"))
    ]
    return [*rules, Rule(NULL[form], "null", identity)]


def network(model: Model) -> unets.UNet:
    """The module."""
    return unets.build({k: v for k, v in model["network"].items() if k != "type"})


def _embedding(width: int, tokens: int, context: int) -> dict[str, Any]:
    return {"width": width, "tokens": tokens, "context_width": context, "text": True, "project": True}


# --- diffusers' folders --------------------------------------------------------------------------------------------------


def _decoder(source: Source) -> dict[str, Any]:
    told, where = diffusers_config.part(source, "text_proj", "UnCLIPTextProjModel")
    model = diffusers_config.unet(*diffusers_config.part(source, "decoder", "UNet2DConditionModel"))
    width, context = told.get("clip_embeddings_dim", 768), told.get("cross_attention_dim")
    if context != model["context"]["width"]:
        raise UserError(f"{where}: cross_attention_dim is {context}, and the decoder beside it has {model['context']['width']}")
    embedding = _embedding(width, told.get("clip_extra_context_tokens", 4), context)
    learned = LEARNED if model["network"]["out_channels"] == 2 * model["channels"] else FIXED
    caption = {"context": {**model["context"], "width": width}, "context_dropout": DROPPED}
    return {"model": {**model, **sampled(learned, source, DECODED), **caption, "embedding": embedding}}


def _decoder_rules(model: Model, names: Collection[str]) -> list[Rule]:
    net = rooted("network", under("decoder.", unet.diffusers(network(model), names)))
    return net + rooted("condition", under("text_proj.", condition(model, 0)))


DECODER = Layout(
    "diffusers",
    "unet",
    (r"decoder\.time_embedding\.linear_1\.weight", r"text_proj\.learned_classifier_free_guidance_embeddings"),
    _decoder,
    _decoder_rules,
)


def _upsampler(source: Source) -> dict[str, Any]:
    """Two U-Nets that are shown a picture beside their noise."""
    made = [diffusers_config.unet(*diffusers_config.part(source, f"super_res_{name}", "UNet2DModel")) for name in ("first", "last")]
    if made[0]["network"] != made[1]["network"]:
        raise UserError(f"{source.path}: the first and the last network of super resolution are not alike")
    return {"model": enlarging(made[0], source)}


def sampled(trained: dict[str, Any], source: Source, how: dict[str, Any]) -> dict[str, Any]:
    """Path, prediction, variance and sampler, as a scheduler's config has them if there is one, and Karlo's steps and guidance."""
    found = {**trained, **schedulers.read(source)}
    return {**found, "sampler": {**found["sampler"], **how}}


def enlarging(model: dict[str, Any], source: Source) -> dict[str, Any]:
    """A network that takes two pictures as one, told apart; the smaller one is a quarter as large, as Karlo's is."""
    channels = model["channels"] // 2
    sizes = {"low_resolution": {"size": model["size"] // 4}} if "size" in model else {}
    network = {**model["network"], "in_channels": channels, "low_res": channels}
    return {**model, **sampled(FIXED, source, ENLARGED), **sizes, "network": network, "channels": channels, "last_until": 0.0}


def _upsampler_rules(model: Model, names: Collection[str]) -> list[Rule]:
    rules = unet.diffusers(network(model), names)
    return rooted("network", under("super_res_first.", rules)) + rooted("last", under("super_res_last.", rules))


UPSAMPLER = Layout(
    "diffusers",
    "unet",
    (r"super_res_first\.conv_in\.weight", r"super_res_last\.conv_in\.weight"),
    _upsampler,
    _upsampler_rules,
)

# --- the original state dicts --------------------------------------------------------------------------------------------


def _shapes(source: Source, prefix: str) -> dict[str, Any]:
    """The fields of the U-Net whose tensors have this prefix."""
    given = source.variant if isinstance(source.variant, Mapping) else {}
    tensors = {name.removeprefix(prefix): x for name, x in source.tensors.items() if name.startswith(prefix)}
    fields = unet_shapes.of_adm(tensors)
    return {**fields, "type": "unet", "head_width": given.get("head_width", HEAD_WIDTH)}


@by_shapes
def _karlo_decoder(source: Source) -> dict[str, Any]:
    """`variant` may say head_width, which shapes do not, and size."""
    net = {**_shapes(source, "model."), "dropout": 0.1}
    context = net.pop("context")
    outputs, width = source.tensors["model.clip_tok_proj.weight"].shape
    given = source.variant if isinstance(source.variant, Mapping) else {}
    return {
        "model": {
            **{"network": net, "channels": net["in_channels"], "size": given.get("size", 64)},
            **{
                "context": {"length": diffusers_config.WORDS, "width": width},
                "context_dropout": DROPPED,
                **sampled(LEARNED, source, DECODED),
            },
            "embedding": _embedding(width, outputs // context, context),
        }
    }


def _karlo_decoder_rules(model: Model, names: Collection[str]) -> list[Rule]:
    return rooted("network", under("model.", unet.adm(network(model), names))) + rooted("condition", under("model.", condition(model, 1)))


KARLO_DECODER = Layout(
    "karlo",
    "unet",
    (r"model\.cf_param", r"model\.clip_tok_proj\.weight", r"model\.time_embed\.0\.weight"),
    _karlo_decoder,
    _karlo_decoder_rules,
    told=True,
)


@by_shapes
def _karlo_upsampler(source: Source) -> dict[str, Any]:
    net = _shapes(source, "model_first_steps.")
    given = source.variant if isinstance(source.variant, Mapping) else {}
    return {"model": enlarging({"network": net, "channels": net["in_channels"], "size": given.get("size", 256)}, source)}


def _karlo_upsampler_rules(model: Model, names: Collection[str]) -> list[Rule]:
    rules = unet.adm(network(model), names)
    return rooted("network", under("model_first_steps.", rules)) + rooted("last", under("model_last_step.", rules))


KARLO_UPSAMPLER = Layout(
    "karlo",
    "unet",
    (r"model_first_steps\.time_embed\.0\.weight", r"model_last_step\.time_embed\.0\.weight"),
    _karlo_upsampler,
    _karlo_upsampler_rules,
    told=True,
)
LAYOUTS = (DECODER, UPSAMPLER, KARLO_DECODER, KARLO_UPSAMPLER)
