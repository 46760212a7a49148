"""config.json of diffusers' U-Nets -> fields of models.unet.UNet. What a config leaves out has the default that diffusers gives it."""

from collections.abc import Callable, Mapping
from typing import Any

from mmjax.convert.source import Source
from mmjax.core.errors import UserError, suggest
from mmjax.models.unet import NUMBER_WIDTH

Json = Mapping[str, Any]

# Block types -> (attention after every residual block, which kind of it, how the level is left).
SELF = {
    "DownBlock2D": (0, "self", "conv"),
    "AttnDownBlock2D": (1, "self", ""),  # as downsample_type says
    "ResnetDownsampleBlock2D": (0, "self", "residual"),
}
CONDITIONED = {
    "DownBlock2D": (0, "", "conv"),
    "CrossAttnDownBlock2D": (1, "cross", "conv"),
    "ResnetDownsampleBlock2D": (0, "", "residual"),
    "SimpleCrossAttnDownBlock2D": (1, "added", "residual"),
}
# Settings with one value here, which both classes have; a config that leaves them out means that one.
FIXED: Json = {
    **{"act_fn": "silu", "center_input_sample": False, "mid_block_scale_factor": 1, "time_embedding_type": "positional"},
    **{"num_train_timesteps": None, "time_embedding_dim": None},
}
FIXED_CONDITIONED: Json = {
    **{"only_cross_attention": False, "mid_block_only_cross_attention": None, "dual_cross_attention": False, "encoder_hid_dim": None},
    **{"encoder_hid_dim_type": None, "num_attention_heads": None, "reverse_transformer_layers_per_block": None},
    **{"resnet_skip_time_act": False, "resnet_out_scale_factor": 1.0, "time_embedding_act_fn": None, "timestep_post_act": None},
    **{"time_cond_proj_dim": None, "conv_in_kernel": 3, "conv_out_kernel": 3, "attention_type": "default"},
    **{"class_embeddings_concat": False, "cross_attention_norm": None},
}
POOLED, SIZES = 1280, (6, 5)  # width of SDXL's pooled text; how many numbers its base model and its refiner are told
WORDS = 77  # words of a prompt, on which no weight depends


def of(source: Source, classes: tuple[str, ...]) -> tuple[Json, str]:
    """config.json, and what messages call it.

    Raises:
      UserError: there is none, or it is of none of these classes.
    """
    config, where = source.jsons.get("config.json"), f"{source.folder}: config.json"
    if not isinstance(config, dict):
        raise UserError(f"{where} is missing, which says what the shapes of diffusers' weights do not")
    name = config.get("_class_name")
    if name not in classes:
        raise UserError(f"{where} is of class {name!r}, and the tensors beside it are of {' or '.join(classes)}")
    return config, where


def part(source: Source, folder: str, kind: str) -> tuple[Json, str]:
    """The config.json of one of the folders that are a model together, and what messages call it.

    Raises:
      UserError: there is none, or it is of another class.
    """
    config, where = source.jsons.get(f"{folder}/config.json"), f"{source.folder / folder}: config.json"
    if not isinstance(config, dict) or config.get("_class_name") != kind:
        got = f"is of class {config.get('_class_name')!r}" if isinstance(config, dict) else "is missing"
        raise UserError(f"{where} {got}, expected {kind}")
    return config, where


def read(describe: Callable[[Json, str], Any], config: Json, where: str) -> Any:
    """describe(config, where), and one line where the config is not built as it must be."""
    try:
        return describe(config, where)
    except (TypeError, IndexError, AttributeError, KeyError, ValueError, ZeroDivisionError) as e:
        raise UserError(f"{where}: not as diffusers writes it ({type(e).__name__}: {str(e)[:80]})") from None


def check(config: Json, fixed: Json, where: str) -> None:
    """Raises `UserError` for a setting with another value than the one that there is here."""
    for key, want in fixed.items():
        got = config.get(key, want)
        if got != want and not (want is None and got is False):
            raise UserError(f"{where}: {key} is {got!r}, and the networks here have {want!r}")


def unet(config: Json, where: str) -> dict[str, Any]:
    """A config's `model`, of UNet2DModel or UNet2DConditionModel.

    Raises:
      UserError: a setting that models.unet has nothing for.
    """
    return read(_conditioned if config["_class_name"] == "UNet2DConditionModel" else _plain, config, where)


def _plain(config: Json, where: str) -> dict[str, Any]:
    c = {**{"block_out_channels": (224, 448, 672, 896), "attention_head_dim": 8, "in_channels": 3, "out_channels": 3}, **config}
    check(c, {**FIXED, "class_embed_type": None, "time_embedding_dim": None}, where)
    check(c, {"mid_block_type": "UNetMidBlock2D"}, where)
    types = c.get("down_block_types", ("DownBlock2D", *("AttnDownBlock2D",) * 3))
    attention, _, resample = _levels(c, types, SELF, where)
    groups, scale_shift = c.get("norm_num_groups", 32), _scale_shift(c, where)
    attends = c.get("add_attention", True)  # in the middle
    mid = c.get("attn_norm_num_groups") or (None if scale_shift else groups)
    if attends and mid != groups:
        raise UserError(f"{where}: attn_norm_num_groups is {mid}, and the networks here have it as norm_num_groups, {groups}")
    width = c["attention_head_dim"]
    network = {**_common(c, resample), "attention": attention, "groups": groups, "scale_shift": scale_shift}
    network |= {"heads": 1} if width is None else {"head_width": width}
    return _model(c, network | ({} if attends else {"mid_attention": 0}))


def _conditioned(config: Json, where: str) -> dict[str, Any]:
    c = {**{"block_out_channels": (320, 640, 1280, 1280), "attention_head_dim": 8, "in_channels": 4, "out_channels": 4}, **config}
    check(c, {**FIXED, **FIXED_CONDITIONED}, where)
    types = c.get("down_block_types", (*("CrossAttnDownBlock2D",) * 3, "DownBlock2D"))
    attention, kinds, resample = _levels(c, types, CONDITIONED, where)
    mids = {"UNetMidBlock2DCrossAttn": "cross", "UNetMidBlock2DSimpleCrossAttn": "added"}
    mid = c.get("mid_block_type", "UNetMidBlock2DCrossAttn")
    kinds |= {mids.get(mid, mid)}
    if kinds not in ({"cross"}, {"added"}):
        raise UserError(f"{where}: attention of several kinds, or of none known here: mid_block_type {mid!r}, {', '.join(types)}")
    (kind,) = kinds
    depth, width = c.get("transformer_layers_per_block", 1), c.get("cross_attention_dim", 1280)
    depths = _each(depth, len(types), f"{where}: transformer_layers_per_block") if kind == "cross" else (1,) * len(types)
    if not isinstance(width, int):
        raise UserError(f"{where}: cross_attention_dim is {width!r}; the networks here look at one width of words")
    heads = c["attention_head_dim"]  # the number of heads, whatever its name, but where keys and values are added
    network = {**_common(c, resample), "kind": kind, "groups": c.get("norm_num_groups", 32), "scale_shift": _scale_shift(c, where)}
    network |= {"attention": tuple(a * d for a, d in zip(attention, depths, strict=True)), "mid_attention": depths[-1]}
    if kind == "added":
        network["head_width"] = heads
    else:
        network["heads"] = heads if isinstance(heads, int) else _each(heads, len(types), f"{where}: attention_head_dim")
    network |= _embeddings(c, where)
    return _model(c, network) | {"context": {"length": WORDS, "width": width}}


def _embeddings(c: Json, where: str) -> dict[str, Any]:
    """What is embedded beside the time."""
    added, classes, width = c.get("addition_embed_type"), c.get("class_embed_type"), c.get("projection_class_embeddings_input_dim")
    if added == "text_time":
        check(c, {"addition_time_embed_dim": NUMBER_WIDTH, "class_embed_type": None}, where)
        numbers = next((n for n in SIZES if width - n * NUMBER_WIDTH == POOLED), SIZES[0])
        return {"vector": width - numbers * NUMBER_WIDTH, "numbers": numbers}
    if added is not None:
        raise UserError(f"{where}: addition_embed_type is {added!r}{suggest(str(added), ('text_time',))}")
    if classes == "projection":
        return {"vector": width}
    if classes not in (None, "identity"):  # what comes in as it is, is an input of every U-Net here
        raise UserError(f"{where}: class_embed_type is {classes!r}{suggest(str(classes), ('projection', 'identity'))}")
    return {}


def _levels(c: Json, types: Any, known: Mapping[str, tuple[int, str, str]], where: str) -> tuple[tuple[int, ...], set[str], str]:
    """Attention of every level, its kinds, and how levels are left, which is the same everywhere and on the way up."""
    for name in types:
        if name not in known:
            raise UserError(f"{where}: down_block_types has {name!r}{suggest(str(name), known)}")
    if len(types) != len(c["block_out_channels"]):
        raise UserError(f"{where}: {len(types)} down_block_types and {len(c['block_out_channels'])} block_out_channels")
    mirrored = [name.replace("Downsample", "Upsample").replace("Down", "Up") for name in reversed(types)]
    if list(c.get("up_block_types", mirrored)) != mirrored:
        raise UserError(f"{where}: up_block_types {', '.join(c['up_block_types'])} do not mirror down_block_types {', '.join(types)}")
    typed = {c.get("downsample_type", "conv"), c.get("upsample_type", "conv")}
    ways = {way for name in types[:-1] for way in ([known[name][2]] if known[name][2] else typed)}
    ways = {"residual" if way == "resnet" else way for way in ways} or {"conv"}
    if len(ways) > 1 or not ways <= {"conv", "residual"}:
        raise UserError(f"{where}: levels are left in several ways, {', '.join(sorted(ways))}; the networks here have one")
    (way,) = ways
    padding = c.get("downsample_padding", 1)
    if way == "conv" and padding not in (0, 1):
        raise UserError(f"{where}: downsample_padding is {padding!r}, expected 0 or 1")
    kinds = {known[name][1] for name in types} - {""}
    return tuple(known[name][0] for name in types), kinds, "conv_same" if way == "conv" and padding == 0 else way


def _common(c: Json, resample: str) -> dict[str, Any]:
    return {
        "type": "unet",
        "channels": tuple(c["block_out_channels"]),
        "blocks": c.get("layers_per_block", 2),
        "in_channels": c["in_channels"],
        "out_channels": c["out_channels"],
        "time_order": "cos_sin" if c.get("flip_sin_to_cos", True) else "sin_cos",
        "freq_shift": c.get("freq_shift", 0),
        "classes": c.get("num_class_embeds") or 0,
        "resample": resample,
        "eps": c.get("norm_eps", 1e-5),
        "dropout": c.get("dropout", 0.0),
    }


def _model(c: Json, network: dict[str, Any]) -> dict[str, Any]:
    side = c.get("sample_size")
    size = {"size": side} if isinstance(side, int) else {}
    return {"network": network, **size, "channels": c["in_channels"], **({"labels": True} if network["classes"] else {})}


def _scale_shift(c: Json, where: str) -> bool:
    how = c.get("resnet_time_scale_shift", "default")
    if how not in ("default", "scale_shift"):
        raise UserError(f"{where}: resnet_time_scale_shift is {how!r}{suggest(str(how), ('default', 'scale_shift'))}")
    return how == "scale_shift"


def _each(value: Any, levels: int, what: str) -> tuple[int, ...]:
    values = (value,) * levels if isinstance(value, int) else tuple(value)
    if len(values) != levels or not all(isinstance(n, int) for n in values):
        raise UserError(f"{what} is {value!r}, expected a number, or one for each of {levels} levels")
    return values
