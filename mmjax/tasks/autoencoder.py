"""The autoencoder of latent diffusion (Rombach et al. 2022, section 3.1 and appendix G): reconstruction, KL, perception and a critic.

One scalar trains both players of the game: the critic sees pictures through which no gradient flows back, and the autoencoder is judged
by a critic whose parameters are constants. Each has its own betas and clipping by `optim.groups`:

    c.optim.groups = (("discriminator", "discriminator/.*", {"args": {"b1": 0.5, "b2": 0.9}, "clip_norm": 1.0}),)

Both take their step from the same parameters, where VQGAN's code moves the autoencoder before the critic.

Config `model`: the fields of `Settings`. Images are in -1..1: the transform ("normalize", {"mean": 0.5, "std": 0.5}).
A diffusion model in the latents starts from `init_from.path=WORKDIR` with
`init_from.rename=((r"autoencoder/(.*)", r"first_stage/\\1"),)`.
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from mmjax.core import checkpoint_read, rng, tree
from mmjax.core.config import Group, kwargs_for, with_variant
from mmjax.core.errors import UserError, suggest
from mmjax.core.types import Array, Batch, Key, Metrics, Params, PyTree, Task
from mmjax.layers import split_axes
from mmjax.models import autoencoder_kl
from mmjax.models.autoencoder_kl import LAST, AutoencoderKL
from mmjax.models.discriminator import PatchGAN
from mmjax.objectives.adversarial import LOSSES, balanced, discriminator_loss, generator_loss, started
from mmjax.objectives.autoencoder import NORMS, kl_to_standard, reconstruction
from mmjax.tasks import perceptual
from mmjax.tasks.perceptual import Perceptual


@dataclasses.dataclass(frozen=True)
class Settings:
    """What config.model says.

    Attributes:
      size, channels: of pictures, in pixels.
      autoencoder: fields of models.autoencoder_kl.AutoencoderKL, or `variant`, a published name.
      norm: "l1" or "l2" between pictures.
      log_scale: the logarithm of the density's scale at the start (objectives.autoencoder); learnt with `learn_scale`. The published
        models have a parameter for it that no optimizer of theirs was given: fixed at 0.
      kl: weight of the KL term, summed over a latent, beside the reconstruction, summed over a picture.
      perceptual: None, or what judges pictures (tasks.perceptual): `type` "lpips" with files of published weights, or "features" of a
        network trained here, which is no LPIPS.
      perceptual_weight: of that distance.
      discriminator: None for no game, or fields of models.discriminator.PatchGAN.
      adversarial: the game, of objectives.adversarial.LOSSES.
      adversarial_weight: of the autoencoder's part in it.
      adaptive: times the factor of VQGAN's equation 7, of which a batch is no mean over examples: without accumulation.
      start: the step from which the game is played; the critic's running statistics alone follow the pictures before.
    """

    size: int
    channels: int
    autoencoder: Group
    norm: str = "l1"
    log_scale: float = 0.0
    learn_scale: bool = False
    kl: float = 1e-6
    perceptual: Group | None = None
    perceptual_weight: float = 1.0
    discriminator: Group | None = None
    adversarial: str = "hinge"
    adversarial_weight: float = 0.5
    adaptive: bool = True
    start: int = 0


@dataclasses.dataclass(frozen=True)
class System:
    """Modules of the settings."""

    settings: Settings
    model: AutoencoderKL
    critic: PatchGAN | None
    judge: Perceptual | None

    def decode(self, params: Params, z: Array) -> tuple[Array, Array]:
        """Pictures, and what the last convolution saw."""
        y, found = self.model.apply({"params": params["autoencoder"]}, z, method="decode", mutable=[LAST])
        return y, found[LAST]["decoder"]["seen"][0]

    def likelihood(self, params: Params, x: Array, y: Array) -> tuple[Array, Array]:
        """float32[B]: the negative log-density of pictures, summed, less a constant; the perceptual distance."""
        s = self.settings
        distance = jnp.zeros(x.shape[0]) if self.judge is None else self.judge.distance(params["perceptual"], x, y)
        return reconstruction(x, y, s.perceptual_weight * distance, params["log_scale"], s.norm), distance

    def fooled(self, params: Params, y: Array) -> Array:
        """The autoencoder's loss in the game, the critic a constant whose statistics are the batch's."""
        critic = jax.lax.stop_gradient(params["discriminator"])
        logits, _ = self.critic.apply({"params": critic}, y, train=True, mutable=["state"])
        return generator_loss(self.settings.adversarial, logits)

    def critic_loss(self, params: Params, x: Array, y: Array) -> tuple[Array, Metrics, Params]:
        """The critic's loss, its mean logits, and the running statistics after both batches."""
        own = params["discriminator"]
        real, new = self.critic.apply({"params": own}, x, train=True, mutable=["state"])
        own = tree.merge(own, new.get("state", {}))
        fake, new = self.critic.apply({"params": own}, jax.lax.stop_gradient(y), train=True, mutable=["state"])
        metrics = {"logits_real": real.mean(), "logits_fake": fake.mean()}
        return discriminator_loss(self.settings.adversarial, real, fake), metrics, new.get("state", {})

    def factor(self, params: Params, x: Array, seen: Array) -> Array:
        """VQGAN's equation 7, over the decoder's last kernel. `seen`: what the last convolution saw."""
        params, seen = jax.lax.stop_gradient((params, seen))

        def losses(kernel: Array) -> tuple[Array, Array]:
            y = autoencoder_kl.last_layer(params["autoencoder"], seen, kernel)
            return self.likelihood(params, x, y)[0].mean(), self.fooled(params, y)

        return balanced(losses, params["autoencoder"]["decoder"]["conv_out"]["kernel"])


def make(config: ConfigDict) -> Task:
    """Batch: `image` float32[B, size, size, channels] in -1..1.

    Raises:
      UserError: settings that are unknown or do not go together.
    """
    system = parse(config.model, jnp.dtype(config.dtype))
    s = system.settings
    boxed = lambda key: _init(system, key)
    shapes, axes = split_axes(jax.eval_shape(boxed, jax.random.key(0)))

    def init(key: Key) -> Params:
        return {**split_axes(boxed(key))[0], "log_scale": jnp.float32(s.log_scale)}

    def loss(params: Params, batch: Batch, key: Key, step: Array) -> tuple[Array, dict]:
        x, keys = batch["image"], rng.per_example(key, batch["_index"])
        mean, logvar = system.model.apply({"params": params["autoencoder"]}, x, method="encode")
        y, seen = system.decode(params, autoencoder_kl.draw(mean, logvar, keys))
        likelihood, distance = system.likelihood(params, x, y)
        kl = kl_to_standard(mean, logvar)
        total = likelihood.mean() + s.kl * kl.mean()
        metrics = {"l1": jnp.abs(x - y).mean(), "mse": jnp.square(x - y).mean(), "kl": kl.mean(), "likelihood": likelihood.mean()}
        if system.judge is not None:
            metrics["perceptual"] = distance.mean()
        if s.learn_scale:
            metrics["log_scale"] = params["log_scale"]
        if system.critic is None:
            return total, {"metrics": metrics}
        played, more, state = game(system, params, x, y, seen, step)
        return total + played, {"metrics": metrics | more, "state": {"discriminator": state} if state else {}}

    return Task(
        init=init,
        axes={**axes, "log_scale": ()},
        loss=loss,
        batch_spec={"image": jax.ShapeDtypeStruct((config.batch_size, s.size, s.size, s.channels), jnp.float32)},
        predict={
            "encode": lambda params, images: jnp.concatenate(_apply(system, params, images, "encode"), -1),
            "decode": lambda params, z: _apply(system, params, z, "decode"),
        },
        frozen=(*(() if system.judge is None else ("perceptual/.*",)), *(() if s.learn_scale else ("log_scale",))),
        state=() if system.critic is None or system.critic.norm != "batch" else tuple(f"discriminator/{p}" for p in PatchGAN.state_paths),
        can_accumulate=system.critic is None or not s.adaptive,
        weights=None if system.judge is None else lambda: {"perceptual": _checked(system.judge, shapes["perceptual"])},
    )


def game(system: System, params: Params, x: Array, y: Array, seen: Array, step: Array) -> tuple[Array, Metrics, Params]:
    """What both players add to the loss, 0 until it starts; metrics; the critic's new running statistics.

    Args:
      x, y: pictures, and reconstructions through which the autoencoder is trained.
      seen: what the decoder's last convolution saw of them.
    """
    s = system.settings
    on, factor = started(step, s.start), system.factor(params, x, seen) if s.adaptive else jnp.float32(1)
    fooled = system.fooled(params, y)
    critic, metrics, state = system.critic_loss(params, x, y)
    metrics |= {"generator": fooled, "discriminator": critic, "adversarial_factor": factor}
    return on * (s.adversarial_weight * factor * fooled + critic), metrics, state


def _apply(system: System, params: Params, x: Array, method: str) -> Any:
    return system.model.apply({"params": params["autoencoder"]}, x, method=method)


def _init(system: System, key: Key) -> PyTree:
    """Boxed parameters, all but `log_scale`."""
    keys = dict(zip(("autoencoder", "discriminator", "perceptual"), jax.random.split(key, 3), strict=True))
    s = system.settings
    x = jnp.zeros((1, s.size, s.size, s.channels))
    out = {"autoencoder": system.model.init(keys["autoencoder"], x)["params"]}
    if system.critic is not None:
        out["discriminator"] = system.critic.init(keys["discriminator"], x)["params"]
    if system.judge is not None:
        out["perceptual"] = system.judge.init(keys["perceptual"])
    return out


def _checked(judge: Perceptual, shapes: Params) -> Params:
    """The judge's weights; all of them, or a UserError."""
    kinds = lambda t: {p: {"shape": list(x.shape), "dtype": np.dtype(x.dtype).name} for p, x in tree.flatten(t).items()}
    found = judge.weights()
    checkpoint_read.check_same(kinds(found), kinds(shapes), f"config.model.perceptual: {judge.told}:")
    return found


def parse(model: Group, dtype: Any) -> System:
    """Config `model`, understood and checked.

    Raises:
      UserError: an unknown key or name, or sizes that do not fit.
    """
    where = "config.model"
    s = Settings(**kwargs_for(Settings, model, where))
    fields = with_variant(s.autoencoder, autoencoder_kl.VARIANTS, f"{where}.autoencoder")
    made = autoencoder_kl.build(fields, dtype, f"{where}.autoencoder")
    if s.size % made.factor:
        raise UserError(f"{where}.size is {s.size}, which the autoencoder cannot divide by {made.factor}")
    if made.channels != s.channels:
        raise UserError(f"{where}.channels is {s.channels}, and the autoencoder's pictures have {made.channels}")
    for key, known in (("norm", NORMS), ("adversarial", LOSSES)):
        if getattr(s, key) not in known:
            raise UserError(f"{where}.{key} is {getattr(s, key)!r}{suggest(getattr(s, key), known)}")
    critic = None
    if s.discriminator is not None:
        critic = PatchGAN(**{"dtype": dtype, **kwargs_for(PatchGAN, s.discriminator, f"{where}.discriminator")})
    return System(s, made, critic, perceptual.make(s.perceptual, s.channels, f"{where}.perceptual"))
