"""What diffusion is made of: the networks that denoise, the autoencoders of their latents, the classifiers that guide them.

Fields and paths of parameters are those of task "diffusion", so `init_from` takes what is imported here.
"""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from mmjax.convert import diffusers_out
from mmjax.convert.family import Family, Fields, Model, compiled, finished
from mmjax.core.errors import UserError, suggest
from mmjax.models import autoencoder_kl, dit, edm2, song_unet, unclip, unet, unet_classifier

MODULES = {"unet": unet, "song_unet": song_unet, "edm2": edm2, "dit": dit}  # by `type`
# Inputs that some networks have beside x, t, context and labels.
FURTHER = {
    "unet": ("context_mask", "low_res", "vector", "numbers", "embedding"),
    "song_unet": ("augment",),
}


def module_of(fields: Fields, dtype: Any = jnp.float32) -> Any:
    """The network of `fields["network"]`.

    Raises:
      UserError: an unknown type or field.
    """
    given = dict(fields["network"])
    kind = given.pop("type", None)
    if kind not in MODULES:
        raise UserError(f"model.network.type is {kind!r}{suggest(str(kind), MODULES)}")
    return MODULES[kind].build(given, dtype, "model.network")


def build(fields: Fields, dtype: Any = jnp.float32, mesh: jax.sharding.Mesh | None = None) -> Model:
    """Of `network`, `size`, `channels` and, where it looks at words, `context`."""
    module = module_of(fields, dtype)
    spec = lambda *shape: jax.ShapeDtypeStruct((1, *shape), jnp.float32)
    side = fields.get("size") or 2 ** len(getattr(module, "channels", ()))
    given = {"labels": jax.ShapeDtypeStruct((1,), jnp.int32)} if module.classes else {}
    shapes = {}
    if "embedding" in fields:
        shapes["condition"], given["context"], given["embedding"] = _condition(fields, module, spec)
    elif "context" in fields:
        given["context"] = spec(fields["context"]["length"], fields["context"]["width"])
    if isinstance(module, unet.UNet):
        given |= {name: spec(getattr(module, name)) for name in ("vector", "numbers") if getattr(module, name)}
        given |= {"low_res": spec(1, 1, module.low_res)} if module.low_res else {}
    made = jax.eval_shape(functools.partial(module.init, jax.random.key(0)), spec(side, side, fields["channels"]), spec(), **given)
    shapes |= {name: made["params"] for name in ("network", "last") if name == "network" or fields.get("last_until") is not None}
    call = compiled(lambda params, x, t, **given: module.apply({"params": params["network"]}, x, t, **given), mesh)
    further = FURTHER.get(fields["network"]["type"], ())

    def network(params: Any, x: Any, t: Any, *, context: Any = None, labels: Any = None, **more: Any) -> jax.Array:
        for name in more:
            if name not in further:
                raise TypeError(f"network takes (params, x, t, *, {', '.join(('context', 'labels', *further))}), got {name!r}")
        x, t = _pictures(x, "x"), _times(t, np.shape(x)[0])
        given = {"context": context, "labels": labels, **more}
        return call(params, x, t, **{name: jnp.asarray(value) for name, value in given.items() if value is not None})

    return finished(shapes, {"network": network})


def _condition(fields: Fields, module: unet.UNet, spec: Callable) -> tuple[Any, Any, Any]:
    """Of an embedding shown to the network: the shapes of its parameters, and what the network is given of it."""
    words = spec(fields["context"]["length"], fields["context"]["width"]) if "context" in fields else None
    condition = unclip.build(fields["embedding"], module, words and words.shape[-1], where="model.embedding")
    embedding, there = spec(condition.width), jax.ShapeDtypeStruct((1,), jnp.bool_)
    told = {"words": words, **({"text_embedding": embedding} if condition.text else {})}
    (context, added), made = jax.eval_shape(functools.partial(condition.init_with_output, jax.random.key(0)), embedding, there, **told)
    return made["params"], context, added


def _pictures(x: Any, name: str) -> jax.Array:
    if np.ndim(x) != 4:
        raise UserError(f"{name}: shape {np.shape(x)}, expected (B, H, W, C), channels last")
    x = jnp.asarray(x)
    if not jnp.issubdtype(x.dtype, jnp.floating):
        raise UserError(f"{name}: type {x.dtype}, expected floats")
    return x


def _times(t: Any, batch: int) -> jax.Array:
    """float32[B]; one time stands for all."""
    if np.shape(t) not in ((), (batch,)):
        raise UserError(f"t: shape {np.shape(t)}, expected one time for each of {batch} examples")
    return jnp.broadcast_to(jnp.asarray(t, jnp.float32), (batch,))


def says(fields: Fields) -> str:
    """The network's kind and widths."""
    network = fields["network"]
    widths = network.get("channels") or tuple(network.get("width", 192) * m for m in network.get("multiples", ()))
    if not widths:
        return f"{network['type']} of width {network.get('width')} and depth {network.get('depth')}"
    return f"{network['type']} of widths {', '.join(map(str, widths))}"


# --- autoencoders and classifiers ----------------------------------------------------------------------------------------


def build_autoencoder(fields: Fields, dtype: Any = jnp.float32, mesh: jax.sharding.Mesh | None = None) -> Model:
    """Of `latent.autoencoder`."""
    module = autoencoder_kl.build(fields["latent"]["autoencoder"], dtype, "model.latent.autoencoder")
    pictures = jax.ShapeDtypeStruct((1, module.factor, module.factor, module.channels), jnp.float32)
    shapes = jax.eval_shape(module.init, jax.random.key(0), pictures)

    def function(name: str, takes: str) -> Callable:
        call = compiled(lambda params, x: module.apply({"params": params["first_stage"]}, x, method=name), mesh)
        return lambda params, x: call(params, _pictures(x, takes))

    return finished({"first_stage": shapes["params"]}, {"encode": function("encode", "x"), "decode": function("decode", "z")})


def says_autoencoder(fields: Fields) -> str:
    """Its latents."""
    one = fields["latent"]["autoencoder"]
    return f"KL autoencoder of {one['latent']} channels at 1 / {2 ** (len(one['mults']) - 1)}"


def build_classifier(fields: Fields, dtype: Any = jnp.float32, mesh: jax.sharding.Mesh | None = None) -> Model:
    """Of `classifier`, `size` and `channels`: its pooling has a position for every place."""
    module = unet_classifier.build(fields["classifier"], dtype, "model.classifier")
    pictures = jax.ShapeDtypeStruct((1, fields["size"], fields["size"], fields["channels"]), jnp.float32)
    shapes = jax.eval_shape(module.init, jax.random.key(0), pictures, jax.ShapeDtypeStruct((1,), jnp.float32))
    call = compiled(lambda params, x, t: module.apply({"params": params["classifier"]}, x, t), mesh)
    classify = lambda params, x, t: call(params, _pictures(x, "x"), _times(t, np.shape(x)[0]))
    return finished({"classifier": shapes["params"]}, {"classify": classify})


def says_classifier(fields: Fields) -> str:
    """Its widths."""
    return f"noisy classifier of widths {', '.join(map(str, fields['classifier']['channels']))}"


NETWORK = Family(("network",), ("network", "condition", "last"), build, says, {"hf": diffusers_out.network})
AUTOENCODER = Family(("latent",), ("first_stage",), build_autoencoder, says_autoencoder, {"hf": diffusers_out.autoencoder})
CLASSIFIER = Family(("classifier",), ("classifier",), build_classifier, says_classifier, {})
