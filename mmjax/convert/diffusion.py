"""The layouts of diffusion's networks: diffusers' folders, and state dicts as the authors' code saves them."""

import dataclasses
import functools
from collections.abc import Callable, Collection, Mapping
from typing import Any

from mmjax.convert import autoencoder_kl, diffusers_config, dit, schedulers, unet, unet_shapes
from mmjax.convert.layout import Layout, Model
from mmjax.convert.rules import Rule
from mmjax.convert.source import Source
from mmjax.core.config import kwargs_for
from mmjax.core.errors import UserError, suggest
from mmjax.models import autoencoder_kl as autoencoders
from mmjax.models import dit as transformers
from mmjax.models import edm2, song_unet, unet_classifier
from mmjax.models import unet as unets
from mmjax.models.unet import UNet

Rules = Callable[[Model, Collection[str]], list[Rule]]
_MODULES = {"unet": unets, "song_unet": song_unet, "edm2": edm2}
# How the published transformers were trained, in our terms. SiT's time runs the other way: config `reversed` (pretrained.Pretrained).
_TRAINED = {
    "DiT": {"path": {"name": "discrete", "betas": "linear", "steps": 1000}, "prediction": "eps", "variance": "learned_range"},
    "SiT": {"path": {"name": "flow"}, "prediction": "velocity", "reversed": True},
}


def rooted(root: str, rules: list[Rule]) -> list[Rule]:
    """Rules whose leaves lie under `root`."""
    return [dataclasses.replace(rule, target=tuple(f"{root}/{path}" for path in rule.targets)) for rule in rules]


def _told(source: Source, variants: Collection[str], fields: Mapping[str, Any], cls: type, more: tuple[str, ...] = ()) -> dict[str, Any]:
    """Fields with those that the caller gives; a name is for the caller to look up.

    Raises:
      UserError: an unknown name or field.
    """
    given = source.variant
    if isinstance(given, str):
        unet_shapes.check_name(given, variants)
        return dict(fields)
    given = {} if given is None else dict(given)
    kwargs_for(cls, {k: v for k, v in given.items() if k not in more}, "variant")
    return {**fields, **{k: v for k, v in given.items() if k not in more}}


def by_shapes(describe: Callable[[Source], dict[str, Any]]) -> Callable[[Source], dict[str, Any]]:
    """`describe`, with one line where a tensor whose shape it asks for is missing."""

    @functools.wraps(describe)
    def described(source: Source) -> dict[str, Any]:
        try:
            return describe(source)
        except (KeyError, IndexError, AttributeError, ValueError) as e:
            what = f"tensor {e} is missing" if isinstance(e, KeyError) else str(e)[:80]
            raise UserError(f"{source.path}: the shapes of its tensors are of no network known here: {what}") from None

    return described


# --- U-Nets --------------------------------------------------------------------------------------------------------------


def is_linear(net: UNet) -> bool:
    """Whether transformers' first and last products are written as matrices, as SD 2 and XL have them: where heads are told by level."""
    return net.kind == "cross" and (net.head_width is not None or not isinstance(net.heads, int))


def _unet_rules(make: Callable[..., list[Rule]]) -> Rules:
    def rules(model: Model, names: Collection[str]) -> list[Rule]:
        given = dict(model["network"])
        net = _MODULES[given.pop("type")].build(given)
        return rooted("network", make(net, names, model))

    return rules


def _diffusers_unet(source: Source) -> dict[str, Any]:
    config, where = diffusers_config.of(source, ("UNet2DModel", "UNet2DConditionModel"))
    model = diffusers_config.unet(config, where)
    network = {**_told(source, unets.VARIANTS, {k: v for k, v in model["network"].items() if k != "type"}, UNet), "type": "unet"}
    return {"model": {**model, "network": network, "channels": network["in_channels"], **schedulers.read(source)}}


DIFFUSERS_UNET = Layout(
    "diffusers",
    "unet",
    (r"time_embedding\.linear_1\.weight", r"conv_norm_out\.weight", r"down_blocks\.0\.resnets\.0\.conv1\.weight"),
    _diffusers_unet,
    # Without a file the layout of its products is ours to choose.
    _unet_rules(lambda net, names, model: unet.diffusers(net, names, None if isinstance(names, Mapping) else is_linear(net))),
    told=True,
)


@by_shapes
def _adm(source: Source) -> dict[str, Any]:
    """From shapes and, for heads, from the published network that has these shapes."""
    _told(source, unets.VARIANTS, {}, UNet, ("order", "size"))
    fields, order = unet_shapes.adm(source)
    given = source.variant if isinstance(source.variant, Mapping) else {}
    fields = _told(source, unets.VARIANTS, fields, UNet, ("order", "size"))
    order = given.get("order", order)
    if order not in ("legacy", "new"):
        raise UserError(f"variant: order is {order!r}{suggest(str(order), ('legacy', 'new'))}, the order of queries, keys and values")
    width = fields.pop("context", None)
    size = given.get("size") or unet_shapes.published_size(fields, width)
    model = {"network": {"type": "unet", **fields}, "channels": fields["in_channels"], **({"size": size} if size else {})}
    model |= {"context": {"length": diffusers_config.WORDS, "width": width}} if width else {}
    return {"layout": "adm" if order == "legacy" else "adm_new", "model": model | ({"labels": True} if fields["classes"] else {})}


ADM = Layout(
    "adm",
    "unet",
    (r"time_embed\.0\.weight", r"input_blocks\.0\.0\.weight", r"middle_block\.0\.in_layers\.0\.weight", r"out\.2\.weight"),
    _adm,
    _unet_rules(lambda net, names, model: unet.adm(net, names)),
    told=True,
    forms={"adm_new": _unet_rules(lambda net, names, model: unet.adm(net, names, "new"))},
)


@by_shapes
def _adm_classifier(source: Source) -> dict[str, Any]:
    _told(source, unet_classifier.VARIANTS, {}, unet_classifier.UNetClassifier)
    fields, size = unet_shapes.classifier(source)
    fields = _told(source, unet_classifier.VARIANTS, fields, unet_classifier.UNetClassifier)
    return {"model": {"classifier": fields, "size": size, "channels": source.tensors["input_blocks.0.0.weight"].shape[1]}}


def _classifier_rules(model: Model, names: Collection[str]) -> list[Rule]:
    return rooted("classifier", unet.adm(unet_classifier.build(model["classifier"]), names))


ADM_CLASSIFIER = Layout(
    "adm",
    "classifier",
    (r"time_embed\.0\.weight", r"input_blocks\.0\.0\.weight", r"out\.2\.positional_embedding"),
    _adm_classifier,
    _classifier_rules,
    told=True,
)


@by_shapes
def _edm(source: Source) -> dict[str, Any]:
    kind, fields, size, channels = unet_shapes.edm(source)
    module = {"unet": UNet, "song_unet": song_unet.SongUNet, "edm2": edm2.EDM2}[kind]
    fields = _told(source, _MODULES[kind].VARIANTS, fields, module)
    trained = {"path": {"name": "edm"}, "prediction": "edm"}
    return {"family": kind, "model": {"network": {"type": kind, **fields}, "size": size, "channels": channels, **trained}}


def _prefix(names: Collection[str]) -> str:
    return "model." if any(name.startswith("model.") for name in names) else ""


EDM = Layout(
    "edm",
    "song_unet",
    (r"(model\.)?enc\.\d+x\d+_conv\.weight", r"(model\.)?map_layer0\.weight"),
    _edm,
    _unet_rules(lambda net, names, model: unet.edm(net, model["size"], _prefix(names))),
    told=True,
)
EDM2_LAYOUT = Layout(
    "edm2",
    "edm2",
    (r"unet\.enc\.\d+x\d+_conv\.weight", r"unet\.emb_noise\.weight", r"logvar_linear\.weight"),
    _edm,
    _unet_rules(lambda net, names, model: unet.edm2(net, model["size"])),
    told=True,
)


# --- transformers --------------------------------------------------------------------------------------------------------


def _dit_rules(make: Rules) -> Rules:
    def rules(model: Model, names: Collection[str]) -> list[Rule]:
        return rooted("network", make({**model["network"], "channels": model["channels"], "size": model.get("size")}, names))

    return rules


def _transformer(source: Source, fields: dict[str, Any]) -> dict[str, Any]:
    size, channels = fields.pop("size", None), fields.pop("channels")
    fields = _told(source, transformers.VARIANTS, fields, transformers.DiT, ("size",))
    if isinstance(source.variant, Mapping):
        size = source.variant.get("size", size)
    labels = {"labels": True} if fields["classes"] else {}
    return {"network": {"type": "dit", **fields}, **({"size": size} if size else {}), "channels": channels, **labels}


@by_shapes
def _dit(source: Source) -> dict[str, Any]:
    """DiT and SiT have the same tensors: which of them it is, and so how it was trained, `variant` says."""
    where, name = str(source.path), source.variant if isinstance(source.variant, str) else None
    fields = {**dit.original_describe(source.tensors, where), "freq_shift": 0}
    if "pos_embed" in source.tensors:
        fields["size"] = round(source.tensors["pos_embed"].shape[1] ** 0.5) * fields["patch"]
    model = _transformer(source, fields)
    if name is not None:
        known = transformers.VARIANTS[name]
        for key in ("patch", "width", "depth"):
            if known[key] != fields[key]:
                raise UserError(f"{where}: variant {name!r} has {key} {known[key]}, and the tensors have {fields[key]}")
    return {"model": model | (_TRAINED[name[:3]] if name else {})}


DIT = Layout(
    "dit",
    "dit",
    (r"x_embedder\.proj\.weight", r"t_embedder\.mlp\.0\.weight", r"blocks\.0\.adaLN_modulation\.1\.weight"),
    _dit,
    _dit_rules(dit.original_rules),
    told=True,
)


def _diffusers_dit(source: Source) -> dict[str, Any]:
    """What diffusers computes with these weights; fields of `variant` (freq_shift, eps) in their place."""
    config, where = diffusers_config.of(source, ("DiTTransformer2DModel", "Transformer2DModel"))
    model = _transformer(source, diffusers_config.read(functools.partial(dit.diffusers_describe, compatible=True), config, where))
    return {"model": {**model, **schedulers.read(source)}}


DIFFUSERS_DIT = Layout(
    "diffusers",
    "dit",
    (r"pos_embed\.proj\.weight", r"transformer_blocks\.0\.norm1\.emb\.timestep_embedder\.linear_1\.weight", r"proj_out_2\.weight"),
    _diffusers_dit,
    _dit_rules(dit.diffusers_rules),
    told=True,
)


# --- autoencoders --------------------------------------------------------------------------------------------------------


def _autoencoder_rules(make: Rules) -> Rules:
    return lambda model, names: rooted("first_stage", make(model["latent"]["autoencoder"], names))


def _diffusers_autoencoder(source: Source) -> dict[str, Any]:
    config, where = diffusers_config.of(source, ("AutoencoderKL",))
    fields = diffusers_config.read(autoencoder_kl.diffusers_describe, config, where)
    side = {"size": config["sample_size"]} if isinstance(config.get("sample_size"), int) else {}
    return {"model": {"latent": {"autoencoder": fields, **autoencoder_kl.latent_scale(config)}, "channels": fields["channels"], **side}}


AUTOENCODER = Layout(
    "diffusers",
    "autoencoder_kl",
    (r"encoder\.down_blocks\.0\.resnets\.0\.conv1\.weight", r"decoder\.conv_norm_out\.weight"),
    _diffusers_autoencoder,
    _autoencoder_rules(autoencoder_kl.diffusers_rules),
)


@by_shapes
def _ldm_autoencoder(source: Source) -> dict[str, Any]:
    """From shapes. They do not tell what a diffusion model scales the latents by: `variant` does, a key of SCALES, or the fields."""
    fields = autoencoder_kl.ldm_describe(source.tensors, str(source.path))
    given = source.variant
    scales = autoencoders.SCALES
    _told(source, scales, {}, autoencoders.AutoencoderKL, ("scale", "shift"))
    scale = scales[given] if isinstance(given, str) else {"scale": 1.0, "shift": 0.0, **(given or {})}
    fields |= {k: v for k, v in scale.items() if k not in ("scale", "shift")}
    scale = {k: scale[k] for k in ("scale", "shift")}
    return {"model": {"latent": {"autoencoder": fields, **scale}, "channels": fields["channels"]}}


LDM_AUTOENCODER = Layout(
    "ldm",
    "autoencoder_kl",
    (r"encoder\.down\.0\.block\.0\.conv1\.weight", r"decoder\.mid\.attn_1\.q\.weight"),
    _ldm_autoencoder,
    _autoencoder_rules(autoencoder_kl.ldm_rules),
    told=True,
)
LAYOUTS = (AUTOENCODER, LDM_AUTOENCODER, DIFFUSERS_UNET, DIFFUSERS_DIT, DIT, ADM_CLASSIFIER, ADM, EDM2_LAYOUT, EDM)
