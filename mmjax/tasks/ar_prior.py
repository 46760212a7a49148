"""The autoregressive prior of unCLIP: from a caption and its CLIP embedding to a picture's CLIP embedding, code by code.

Ramesh et al. 2022, arXiv 2204.06125, section 2.2: the leading principal components of the embedding, quantised, behind a token of its dot
product with the text embedding. Config `model`: the fields of `Settings`; a batch as of tasks.diffusion_prior. Components and quantiles of
dot products are fitted when a run begins, and are parameters, which a checkpoint holds.
"""

import dataclasses
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Float
from jaxtyping import Key as Keys
from ml_collections import ConfigDict

from mmjax.core import rng
from mmjax.core.config import Group, get, kwargs_for, to_dict, with_variant
from mmjax.core.errors import UserError
from mmjax.core.types import Array, Batch, Key, Params, Task
from mmjax.diffusion import embeddings
from mmjax.diffusion.embeddings import PCA, Buckets
from mmjax.layers import split_axes
from mmjax.models import ar_prior
from mmjax.tasks import prior_inputs
from mmjax.tasks.prior_inputs import Captions


@dataclasses.dataclass(frozen=True)
class Sampling:
    """Config `model.sampler`.

    Attributes:
      temperature: logits are divided by it; 0 takes the likeliest code.
      top_p: codes are drawn of the likeliest that together have so much probability.
      top_dots: the dot product is drawn from so large a top share of training's (0.5 in the paper).
      guidance: s of classifier-free guidance, on logits: l_null + s (l - l_null); 1 for none.
    """

    temperature: float = 1.0
    top_p: float = 1.0
    top_dots: float = 0.5
    guidance: float = 1.0


@dataclasses.dataclass(frozen=True)
class Settings:
    """What config.model says.

    Attributes:
      width: E, of embeddings.
      prior: fields of models.ar_prior.ARPrior, or `variant`, a published size's name. Its `codes` are the components that are kept.
      spread: of diffusion.embeddings.Buckets.
      text, context, masked, dropout, unit: as of tasks.diffusion_prior.Settings; the dot product is left out with the caption.
      fit_examples: components and quantiles are those of so many first examples of a run.
      candidates: so many are drawn, and the one nearest to the text embedding is kept.
      sampler: fields of `Sampling`.
    """

    width: int
    prior: Group
    spread: float = 5.0
    text: Group | None = None
    context: Group | None = None
    masked: bool = True
    dropout: float = 0.1
    unit: bool = True
    fit_examples: int = 100_000
    candidates: int = 1
    sampler: Group = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True)
class System:
    """The settings, understood."""

    settings: Settings
    network: ar_prior.ARPrior
    captions: Captions
    sampling: Sampling

    @property
    def buckets(self) -> Buckets:
        return Buckets(self.network.buckets, self.settings.spread)

    def logits(self, params: Params, codes: Array, given: Mapping[str, Array], keys: Key | None = None) -> Array:
        """[B, n + 1, V], of the codes after each of the leading n that are given, and of the first one."""
        words = self.captions.words(params, given, keys)
        return self.network.apply({"params": params["prior"]}, codes, given["text_embedding"], given["dot"], **words, keys=keys)

    def null(self, given: Mapping[str, Array]) -> dict[str, Array]:
        """Conditions that say nothing: zeros, and no dot product."""
        out = {k: jnp.zeros_like(given[k]) for k in ("text_embedding", "tokens", "context") if k in given}
        return {**given, **out, "dot": jnp.full_like(given["dot"], self.network.dots)}


def make(config: ConfigDict) -> Task:
    """Batch: as of tasks.diffusion_prior.

    Raises:
      UserError: settings that are unknown or do not go together.
    """
    system = parse(config.model, jnp.dtype(config.dtype))
    net, captions, width = system.network, system.captions, system.settings.width
    boxed = lambda key: captions.init(key, lambda key, words: _network(system, key, words))

    def init(key: Key) -> Params:
        pca = PCA(jnp.zeros(width), jnp.eye(net.codes, width), jnp.ones(width))
        return {**split_axes(boxed(key))[0], "pca": pca._asdict(), "dots": {"edges": jnp.linspace(-1.0, 1.0, net.dots + 1)[1:-1]}}

    def loss(params: Params, batch: Batch, key: Key, step: Array) -> tuple[Array, dict]:
        keys = rng.per_example(key, batch["_index"])
        x, text = captions.read(batch["embedding"]), captions.read(batch["text_embedding"])
        codes = embeddings.encode(PCA(**params["pca"]), x, system.buckets)
        given, dropped = captions.of_batch(batch, keys)
        given["dot"] = jnp.where(dropped, net.dots, embeddings.bucket_of((x * text).sum(-1), params["dots"]["edges"]))
        logits = system.logits(params, codes[:, :-1], given, keys)
        nats = optax.softmax_cross_entropy_with_integer_labels(logits, codes)
        accuracy = (logits.argmax(-1) == codes).mean(dtype=jnp.float32)
        return nats.mean(), {"metrics": {"accuracy": accuracy}, "state": {}}

    return Task(
        init=init,
        axes=prior_inputs.axes_of(boxed)
        | {"pca": {"mean": ("width",), "directions": (None, "width"), "eigenvalues": ("width",)}, "dots": {"edges": (None,)}},
        loss=loss,
        batch_spec=captions.batch_spec(config.batch_size),
        limits=captions.limits,
        predict={"image_embedding": _image_embedding(system)},
        state=("pca/.*", "dots/.*"),
        fit=lambda batches: fitted(system, batches),
    )


def _network(system: System, key: Key, words: dict[str, Array]) -> Any:
    codes = jnp.zeros((1, system.network.codes - 1), jnp.int32)
    return system.network.init(key, codes, jnp.zeros((1, system.settings.width)), jnp.zeros(1, jnp.int32), **words)


def fitted(system: System, batches: Iterable[Batch]) -> Params:
    """Principal components of image embeddings, and quantiles of their dot products with text embeddings."""
    s = system.settings
    image, text = prior_inputs.gathered(batches, s.fit_examples, s.unit)
    edges = embeddings.quantile_edges((image * text).sum(1), max(system.network.dots, 1))
    return {"pca": embeddings.fit_pca(image, system.network.codes)._asdict(), "dots": {"edges": edges}}


def parse(model: Group, dtype: Any) -> System:
    """Config `model`, understood and checked.

    Raises:
      UserError: an unknown key or name, or settings that do not go together.
    """
    where = "config.model"
    get(model, "width", where)
    s = Settings(**kwargs_for(Settings, to_dict(model) if isinstance(model, ConfigDict) else dict(model), where))
    network = ar_prior.build(with_variant(s.prior, ar_prior.VARIANTS, f"{where}.prior"), dtype, f"{where}.prior")
    if not 1 <= network.codes <= s.width:
        raise UserError(f"{where}.prior.codes is {network.codes}; expected 1 to {where}.width, {s.width}")
    if s.candidates < 1 or s.fit_examples < 2 or network.dots < 0:
        raise UserError(
            f"{where}: candidates is {s.candidates}, fit_examples {s.fit_examples}, dots {network.dots}; expected at least 1, 2 and 0"
        )
    sampling = parse_sampling(s.sampler, s.dropout)
    Buckets(network.buckets, s.spread)
    return System(s, network, prior_inputs.parse(network, s.width, s, dtype), sampling)


def parse_sampling(given: Group, dropout: float) -> Sampling:
    """Config `model.sampler`.

    Raises:
      UserError: an unknown key, a number out of range, guidance of a prior that never was without captions.
    """
    where = "config.model.sampler"
    s = Sampling(**kwargs_for(Sampling, given, where))
    if s.temperature < 0 or not 0 < s.top_p <= 1 or not 0 < s.top_dots <= 1:
        raise UserError(
            f"{where}: temperature {s.temperature}, top_p {s.top_p}, top_dots {s.top_dots}; expected 0 or more, and shares above 0"
        )
    if s.guidance != 1 and not dropout:
        raise UserError(f"{where}.guidance is {s.guidance}, but the prior was trained with its captions always there: set dropout above 0")
    return s


# --- sampling ------------------------------------------------------------------------------------------------------------


def _image_embedding(system: System) -> Callable:
    def image_embedding(
        params: Params,
        words: Array | None,
        text: Array,
        keys: Key,
        *,
        mask: Array | None = None,
        candidates: int | None = None,
        sampler: Mapping[str, Any] | None = None,
    ) -> Array:
        """`mask`: words that count; `sampler`: fields in place of config.model.sampler's."""
        given = dataclasses.asdict(system.sampling) | dict(sampler or {})
        count, how = candidates or system.settings.candidates, parse_sampling(given, system.settings.dropout)
        own, shown = prior_inputs.of_candidates(count, keys, system.captions.shown(words, text, mask))
        x = embeddings.decode(PCA(**params["pca"]), draw(system, how, params, shown, own), system.buckets)
        x = system.captions.read(x)
        return prior_inputs.nearest(x.reshape(-1, count, x.shape[-1]), shown["text_embedding"][::count])

    return image_embedding


def draw(system: System, how: Sampling, params: Params, given: Mapping[str, Array], keys: Key) -> Array:
    """Codes int32[B, N], one after the other over a cache; what is drawn for an example comes of its key alone.

    With guidance the cache holds every example twice, with its caption and without.
    """
    net = system.network
    given = {**given, "dot": high_dots(max(net.dots, 1), how.top_dots, keys)}
    guided = how.guidance != 1
    if guided:
        given = jax.tree.map(lambda a, b: jnp.concatenate([a, b]), given, system.null(given))
    twice = lambda x: jnp.concatenate([x, x]) if guided else x
    words = system.captions.words(params, given)
    tree = {"params": params["prior"]}

    def ask(state: Any, codes: Array, at: int | Array, **prefix: Array) -> tuple[Array, Any]:
        told = {**prefix, **({"mask": words["mask"]} if "mask" in words else {})}
        logits, new = net.apply({**tree, **state}, codes, **told, at=jnp.asarray(at, jnp.int32), mutable=["state"])
        logits = logits[:, -1]
        if guided:
            told, untold = jnp.split(logits, 2)
            logits = untold + how.guidance * (told - untold)
        return logits, new

    said = {k: v for k, v in words.items() if k != "mask"}
    none = jnp.zeros((given["dot"].shape[0], 0), jnp.int32)
    logits, state = ask({}, none, 0, text=given["text_embedding"], dot=given["dot"], **said)

    def step(carry: tuple[Array, Any], i: Array) -> tuple[tuple[Array, Any], Array]:
        logits, state = carry
        code = pick(logits, rng.fold(keys, i), how)
        return ask(state, twice(code)[:, None], net.prefix + i), code

    (logits, _), codes = jax.lax.scan(step, (logits, state), jnp.arange(net.codes - 1))
    return jnp.concatenate([codes.T, pick(logits, rng.fold(keys, net.codes - 1), how)[:, None]], axis=1)


def high_dots(count: int, share: float, keys: Keys[Array, "B"]) -> Array:
    """One of `count` buckets an example, of the top `share` of them, int32[B]."""
    lowest = min(count - 1, round(count * (1 - share)))
    return jax.vmap(lambda key: jax.random.randint(rng.named(key, "dot"), (), lowest, count))(keys)


def pick(logits: Float[Array, "B V"], keys: Keys[Array, "B"], how: Sampling) -> Array:
    """One code an example, int32[B]."""
    if how.temperature == 0:
        return logits.argmax(-1).astype(jnp.int32)
    logits = logits / how.temperature
    if how.top_p < 1:
        falling = jnp.sort(logits, axis=-1, descending=True)
        shares = jax.nn.softmax(falling, axis=-1)
        inside = jnp.cumsum(shares, axis=-1) - shares < how.top_p  # what stands before has not reached it yet
        least = jnp.where(inside, falling, jnp.inf).min(-1, keepdims=True)
        logits = jnp.where(logits >= least, logits, -jnp.inf)
    return jax.vmap(jax.random.categorical)(keys, logits).astype(jnp.int32)
