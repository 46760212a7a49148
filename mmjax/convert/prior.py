"""unCLIP's diffusion prior: diffusers' PriorTransformer (Karlo's and Kandinsky's) and Karlo's original state dict, in and out.

Fields and paths of parameters are those of task "diffusion_prior", so `init_from` takes what is imported here.
"""

import dataclasses
import functools
from collections.abc import Collection, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from mmjax.convert import diffusers_config, pieces, schedulers, torch_file
from mmjax.convert.diffusion import by_shapes, rooted
from mmjax.convert.family import Family, Fields, Target, compiled, finished
from mmjax.convert.family import Model as Built
from mmjax.convert.layout import Layout, Model
from mmjax.convert.rules import Rule, constant, identity, reshape, under
from mmjax.convert.source import Source
from mmjax.convert.unet import joined
from mmjax.core.config import with_variant
from mmjax.core.errors import UserError
from mmjax.models import prior
from mmjax.models.clip import TEXT_TOWERS, tower

HEAD_WIDTH = 64  # of Karlo's, where a state dict does not say
STATISTICS = "_stats.th"  # how the name ends of the file of CLIP's mean and deviation that Karlo publishes (ViT-L-14_stats.th)
# How Karlo's prior was trained and is sampled: kakaobrain/karlo, configs/prior_1B_vit_l.yaml and karlo/sampler/template.py.
KARLO = {
    "path": {"name": "discrete", "betas": "cosine", "steps": 1000},
    "prediction": "x0",
    "sampler": {"solver": "ddpm", "spacing": "unclip", "options": {"variance": "fixed_small"}, "clip": "static", "clip_range": 10.0},
}
SAMPLED = {"steps": 25, "guidance": 4.0}
# Settings of PriorTransformer with one value here.
FIXED = {
    **{"time_embed_act_fn": "silu", "norm_in_type": None, "embedding_proj_norm_type": None, "encoder_hid_proj_type": "linear"},
    **{"dropout": 0.0},
}


def _network(model: Model) -> prior.Prior:
    return prior.build(with_variant(model["prior"], prior.VARIANTS, "model.prior"))


def _positions(net: prior.Prior) -> tuple[int, int]:
    return net.length + 3 + net.query, net.width


# --- diffusers -----------------------------------------------------------------------------------------------------------


def diffusers_rules(model: Model, names: Collection[str]) -> list[Rule]:
    """PriorTransformer."""
    net, at, to = _network(model), "transformer_blocks.{i}", "blocks"
    rules = [*pieces.dense("time_embedding.linear_1", "time/dense1"), *pieces.dense("time_embedding.linear_2", "time/dense2")]
    for theirs, ours in (("proj_in", "image"), ("embedding_proj", "text"), ("encoder_hidden_states_proj", "context")):
        rules += pieces.dense(theirs, ours)
    places = _positions(net)
    rules += pieces.table("positional_embedding", "pos", reshape((1, *places), places))
    rules += [Rule("prd_embedding", "query", reshape((1, 1, net.width), (net.width,)))] if net.query else []
    rules += pieces.norm(f"{at}.norm1", f"{to}/norm1") + pieces.norm(f"{at}.norm3", f"{to}/norm2")
    for theirs, ours in (("to_q", "q"), ("to_k", "k"), ("to_v", "v"), ("to_out.0", "out")):
        rules += pieces.dense(f"{at}.attn1.{theirs}", f"{to}/attn/{ours}")
    rules += pieces.mlp(f"{at}.ff.net", f"{to}/mlp", "0.proj", "2")
    rules += pieces.norm("norm_out", "norm") + pieces.dense("proj_to_clip_embeddings", "head")
    return rooted("prior", rules) + _statistics(model, net.embedding)


def _statistics(model: Model, width: int) -> list[Rule]:
    """Mean and standard deviation; of a prior that has none, those that do what its scale does."""
    if model.get("statistics"):
        return [Rule(f"clip_{name}", f"statistics/{name}", reshape((1, width), (width,))) for name in ("mean", "std")]
    std = np.full((1, width), 1 / model.get("scale", 1.0), np.float32)
    return [Rule("clip_mean", (), constant(np.zeros_like(std))), Rule("clip_std", (), constant(std))]


def _diffusers(source: Source) -> dict[str, Any]:
    config, where = diffusers_config.of(source, ("PriorTransformer",))
    found = diffusers_config.read(diffusers_describe, config, where)
    said = {**{k: v for k, v in KARLO.items() if k != "sampler"}, "sampler": {**KARLO["sampler"], **SAMPLED}}
    told = schedulers.read(source)
    return {"model": {**found, **said, **told, "sampler": {**told.get("sampler", said["sampler"]), **SAMPLED}}}


def diffusers_describe(config: Mapping[str, Any], where: str) -> dict[str, Any]:
    """The fields of task "diffusion_prior" but for how it is sampled, from config.json.

    Raises:
      UserError: a setting that models.prior has nothing for.
    """
    diffusers_config.check(config, FIXED, where)
    c = {"num_attention_heads": 32, "attention_head_dim": 64, "num_layers": 20, "embedding_dim": 768, "num_embeddings": 77, **config}
    width, embedding = c["num_attention_heads"] * c["attention_head_dim"], c["embedding_dim"]
    for key, want in (("time_embed_dim", width), ("embedding_proj_dim", embedding), ("clip_embed_dim", embedding)):
        if c.get(key) not in (None, want):
            raise UserError(f"{where}: {key} is {c[key]}, and the priors here have {want}")
    query = c.get("added_emb_type", "prd") is not None
    if c.get("additional_embeddings", 4) != 3 + query:
        raise UserError(f"{where}: additional_embeddings is {c['additional_embeddings']}, expected {3 + query} with this added_emb_type")
    fields = {"embedding": embedding, "width": width, "depth": c["num_layers"], "heads": c["num_attention_heads"], "query": query}
    return _model({**fields, "length": c["num_embeddings"]}, statistics=True)


def _model(fields: dict[str, Any], statistics: bool) -> dict[str, Any]:
    """Words are CLIP's features, its padding masked; embeddings are as CLIP gives them."""
    context = {"length": fields["length"], "width": fields["embedding"]}
    return {"prior": fields, "context": context, "masked": True, "unit": False, "statistics": statistics, "candidates": 1}


DIFFUSERS = Layout(
    "diffusers",
    "prior",
    (r"positional_embedding", r"proj_to_clip_embeddings\.weight", r"transformer_blocks\.0\.attn1\.to_q\.weight"),
    _diffusers,
    diffusers_rules,
)

# --- the original --------------------------------------------------------------------------------------------------------


def karlo_rules(model: Model, names: Collection[str]) -> list[Rule]:
    """kakaobrain/karlo's state dict: queries, keys and values of a head stand together."""
    net, at, to = _network(model), "transformer.resblocks.{i}", "blocks"
    rules = [*pieces.dense("time_embed.0", "time/dense1"), *pieces.dense("time_embed.2", "time/dense2")]
    for theirs, ours in (("clip_img_proj", "image"), ("text_emb_proj", "text"), ("text_enc_proj", "context"), ("out_proj", "head")):
        rules += pieces.dense(theirs, ours)
    places, parts = _positions(net), [f"{to}/attn/{c}" for c in "qkv"]
    rules += pieces.table("positional_embedding", "pos", reshape((1, *places), places))
    rules += [Rule("prd_emb", "query", reshape((1, 1, net.width), (net.width,)))]
    rules += [
        Rule(f"{at}.attn.c_qkv.weight", tuple(f"{part}/kernel" for part in parts), joined("legacy", net.heads, 0)),
        Rule(f"{at}.attn.c_qkv.bias", tuple(f"{part}/bias" for part in parts), joined("legacy", net.heads, None)),
    ]
    rules += pieces.dense(f"{at}.attn.c_proj", f"{to}/attn/out") + pieces.mlp(f"{at}.mlp", f"{to}/mlp", "c_fc", "c_proj")
    rules += pieces.norm(f"{at}.ln_1", f"{to}/norm1") + pieces.norm(f"{at}.ln_2", f"{to}/norm2")
    rules += pieces.norm("final_ln", "norm") if net.norm else []
    given = [Rule(f"clip_{name}", f"statistics/{name}", identity) for name in ("mean", "std")] if model.get("statistics") else []
    return rooted("prior", under("model.", rules)) + given


def _with_statistics(source: Source) -> Source:
    """With mean and deviation of CLIP's embeddings, which Karlo publishes in a file of their own, if one lies beside the weights.

    Raises:
      UserError: several such files, or one that holds something else.
    """
    found = sorted(source.folder.glob(f"*{STATISTICS}"))
    if not found:
        return source
    if len(found) > 1:
        raise UserError(f"{source.folder}: {len(found)} files *{STATISTICS}; leave the one of the prior's CLIP")
    pair, width = torch_file.read(found[0]), source.tensors["model.clip_img_proj.weight"].shape[-1]
    if set(pair) != {"0", "1"} or any(x.shape != (width,) for x in pair.values()):
        raise UserError(f"{found[0]}: expected two tensors of {width} numbers, mean and deviation of CLIP's embeddings")
    return dataclasses.replace(source, tensors={**source.tensors, "clip_mean": pair["0"], "clip_std": pair["1"]})


@by_shapes
def _karlo(source: Source) -> dict[str, Any]:
    """From shapes. `variant` may say heads, which they do not."""
    shape = lambda name: source.tensors[f"model.{name}"].shape
    _, places, width = shape("positional_embedding")
    given = source.variant if isinstance(source.variant, Mapping) else {}
    fields = {"embedding": shape("out_proj.weight")[0], "width": width, "length": places - 4}
    fields |= {"heads": given.get("heads", max(1, width // HEAD_WIDTH)), "norm": "model.final_ln.weight" in source.tensors}
    depth = len({name.split(".")[3] for name in source.tensors if ".resblocks." in name})
    known = "clip_mean" in source.tensors
    return {"model": {**_model({**fields, "depth": depth}, statistics=known), **KARLO, "sampler": {**KARLO["sampler"], **SAMPLED}}}


ORIGINAL = Layout(
    "karlo",
    "prior",
    (r"model\.prd_emb", r"model\.clip_img_proj\.weight", r"model\.transformer\.resblocks\.0\.attn\.c_qkv\.weight"),
    _karlo,
    karlo_rules,
    told=True,
    join=_with_statistics,
)
LAYOUTS = (DIFFUSERS, ORIGINAL)

# --- the model -----------------------------------------------------------------------------------------------------------


def build(fields: Fields, dtype: Any = jnp.float32, mesh: jax.sharding.Mesh | None = None) -> Built:
    """Of `prior`, and as far as they are there `context`, `text` and `statistics`."""
    module = prior.build(with_variant(fields["prior"], prior.VARIANTS, "model.prior"), dtype, "model.prior")
    spec = lambda *shape, dtype=jnp.float32: jax.ShapeDtypeStruct((1, *shape), dtype)
    key, tokens = jax.random.key(0), spec(module.length, dtype=jnp.int32)
    words, shapes = {"tokens": tokens} if module.vocab else {}, {}
    if fields.get("text") is not None:
        encoder = tower(fields["text"], TEXT_TOWERS, dtype, "model.text")
        words["context"], made = jax.eval_shape(functools.partial(encoder.init_with_output, method="sequence"), key, tokens)
        shapes["text"] = made["params"]
    elif fields.get("context") is not None:
        words["context"] = spec(fields["context"]["length"], fields["context"]["width"])
    embedding = spec(module.embedding)
    shapes["prior"] = jax.eval_shape(module.init, key, embedding, spec(), embedding, **words)["params"]
    call = compiled(lambda params, x, t, text, **given: module.apply({"params": params["prior"]}, x, t, text, **given), mesh)

    def network(params: Any, x: Any, t: Any, text: Any, *, words: Any = None, mask: Any = None) -> jax.Array:
        given = {"tokens" if module.vocab else "context": words, "mask": mask}
        t = jnp.broadcast_to(jnp.asarray(t, jnp.float32), np.shape(x)[:1])
        return call(params, jnp.asarray(x), t, jnp.asarray(text), **{k: jnp.asarray(v) for k, v in given.items() if v is not None})

    model = finished(shapes, {"network": network})
    if fields.get("statistics"):
        for name in ("mean", "std"):
            model.shapes[f"statistics/{name}"] = jax.ShapeDtypeStruct((module.embedding,), jnp.float32)
            model.axes[f"statistics/{name}"] = ("width",)
    return model


def says(fields: Fields) -> str:
    """Its sizes."""
    net = _network(fields)
    return f"diffusion prior of width {net.width} and depth {net.depth}, for embeddings of {net.embedding} numbers"


def exported(config: Mapping[str, Any]) -> Target:
    """The folder of PriorTransformer.

    Raises:
      UserError: a prior that reads words in another way, or has another form.
    """
    model = config["model"]
    net = _network(model)
    if net.vocab or model.get("text") is not None or not net.length or model["context"]["width"] != net.embedding:
        raise UserError(
            "diffusers' PriorTransformer reads a caption as features as wide as embeddings (model.context), and this prior does not"
        )
    if not net.norm or net.mlp_ratio != 4 or net.act != "gelu" or net.eps != 1e-5 or model.get("time_scale", 1) != 1:
        raise UserError("diffusers' PriorTransformer has a last norm, an mlp of 4 times its width, exact GELU, and times as they are")
    written = {
        "_class_name": "PriorTransformer",
        "num_attention_heads": net.heads,
        "attention_head_dim": net.width // net.heads,
        "num_layers": net.depth,
        "embedding_dim": net.embedding,
        "num_embeddings": net.length,
        "additional_embeddings": 3 + net.query,
        "dropout": 0.0,
        "added_emb_type": "prd" if net.query else None,
    }
    notes = (
        []
        if model.get("statistics")
        else ["the weights hold no mean and deviation of embeddings: clip_mean is 0 and clip_std the same for all"]
    )
    return Target(DIFFUSERS, (), {"config.json": written}, "diffusion_pytorch_model", notes)


FAMILY = Family(("prior",), ("prior", "statistics"), build, says, {"hf": exported})
