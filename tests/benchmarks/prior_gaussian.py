"""Both priors of unCLIP on synthetic embeddings whose conditional distribution is known: p(z_i | z_t) is Gaussian.

    python tests/benchmarks/prior_gaussian.py [--steps 4000] [--width 64] [--out results/prior_gaussian.json]

z_t is standard normal and z_i = b + A z_t + C^(1/2) noise, of some numbers each, C of falling eigenvalues; so the mean of z_i given z_t is
b + A z_t, and its covariance C. Each prior is trained on examples drawn anew in every step and asked for pictures of fixed z_t. Stated are

    loss        and the least that any network could have: of the diffusion prior the variance of x0 given x_t and z_t, of the
                autoregressive one the entropy of the codes given z_t; in training z_t is left out of a tenth of the examples
    mean        squared distance of the samples' mean from the truth, over the trace of C, averaged over the z_t
    covariance  Frobenius norm of the samples' covariance less C, over that of C; `pooled`: of the residuals of all z_t together
    floors      the same of as many samples of the truth itself (`samples`), and of a perfect network under the prior's own sampler: the
                exact denoiser in the same solver, exact samples put into buckets and out again (`method`)
"""

import argparse
import json
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

import jax  # noqa: E402
import jax.numpy as jnp  # noqa: E402
import numpy as np  # noqa: E402
import optax  # noqa: E402
from ml_collections import ConfigDict  # noqa: E402

from mmjax.core import config as config_lib  # noqa: E402
from mmjax.core import rng  # noqa: E402
from mmjax.diffusion import embeddings, samplers, walk  # noqa: E402
from mmjax.diffusion import path as paths  # noqa: E402
from mmjax.diffusion.prediction import denoiser  # noqa: E402
from mmjax.diffusion.spacing import times  # noqa: E402
from mmjax.tasks import ar_prior, diffusion_prior  # noqa: E402

TASKS = {"diffusion_prior": diffusion_prior, "ar_prior": ar_prior}
COSINE = {"name": "discrete", "betas": "cosine", "steps": 1000}
SAMPLER = {"solver": "dpmpp_2m", "spacing": "linspace_open", "steps": 32}


class Truth(NamedTuple):
    """z_i given z_t: mean `b + A z_t`, covariance C, of which `root` is a square root."""

    a: np.ndarray
    b: np.ndarray
    covariance: np.ndarray
    root: np.ndarray

    def mean(self, z_t: Any) -> Any:
        return z_t @ self.a.T + self.b[None]

    def draw(self, key: Any, z_t: Any) -> Any:
        return self.mean(z_t) + jax.random.normal(key, z_t.shape) @ self.root.T


def truth(size: int, seed: int = 0) -> Truth:
    """Of z_i the marginal covariance has eigenvalues that fall geometrically, and z_t explains between a tenth and nine tenths of each."""
    r = np.random.default_rng(seed)
    turn = lambda: np.linalg.qr(r.normal(size=(size, size)))[0]
    whole, explained, left, right = 0.8 ** np.arange(size), np.linspace(0.9, 0.1, size), turn(), turn()
    root = left @ np.diag(np.sqrt(whole * (1 - explained))) @ turn()
    made = left @ np.diag(np.sqrt(whole * explained)) @ right, 0.3 * r.normal(size=size), root @ root.T, root
    return Truth(*(x.astype(np.float32) for x in made))


def config_of(task: str, size: int, width: int, depth: int, batch: int, buckets: int = 64) -> ConfigDict:
    """A prior that is told the text embedding alone, and no dot product."""
    network = {"width": width, "depth": depth, "heads": 4}
    c = config_lib.base()
    c.task, c.batch_size = task, batch
    c.model.unit = False
    if task == "ar_prior":
        c.model.update({"width": size, "prior": {**network, "codes": size, "buckets": buckets, "dots": 0}, "fit_examples": 20_000})
    else:
        c.model.update({"prior": {**network, "embedding": size}, "path": COSINE, "candidates": 1, "sampler": SAMPLER})
    return c


def train(task: Any, real: Truth, *, batch: int, steps: int, lr: float = 2e-3, chunk: int = 100, seed: int = 0) -> tuple[Any, float, float]:
    """(parameters, averaged; loss of the last tenth; seconds)."""
    size = len(real.b)
    params = jax.jit(task.init)(jax.random.key(seed))

    def batch_of(step: Any) -> dict[str, Any]:
        keys = jax.random.split(jax.random.fold_in(jax.random.key(seed + 1), step))
        z_t = jax.random.normal(keys[0], (batch, size))
        return {"embedding": real.draw(keys[1], z_t), "text_embedding": z_t, "_index": step * batch + jnp.arange(batch)}

    if task.fit is not None:
        found = task.fit(jax.tree.map(np.asarray, batch_of(jnp.int32(-1 - i))) for i in range(1_000_000))
        params = {**params, **jax.tree.map(lambda x: jnp.asarray(x, jnp.float32), found)}
    state = {k: params[k] for k in ("pca", "dots") if k in params}
    trained = {k: x for k, x in params.items() if k not in state}
    schedule = optax.warmup_cosine_decay_schedule(0.0, lr, min(100, steps // 10), steps)
    tx = optax.chain(optax.clip_by_global_norm(1.0), optax.adam(schedule, 0.9, 0.98))
    loss = lambda p, step: task.loss({**p, **state}, batch_of(step), jax.random.key(seed + 2), step)[0]

    def body(carry: Any, step: Any) -> tuple[Any, Any]:
        p, opt, average = carry
        value, slope = jax.value_and_grad(loss)(p, step)
        updates, opt = tx.update(slope, opt, p)
        p = optax.apply_updates(p, updates)
        return (p, opt, optax.incremental_update(p, average, 1 - jnp.minimum(0.999, 1 - 5 / (step + 5)))), value

    run = jax.jit(lambda carry, first: jax.lax.scan(body, carry, first + jnp.arange(chunk)))
    carry, losses, began = (trained, tx.init(trained), trained), [], time.perf_counter()
    for first in range(0, steps, chunk):
        carry, values = run(carry, jnp.int32(first))
        losses.append(np.asarray(values))
    seconds = time.perf_counter() - began
    return {**carry[2], **state}, float(np.concatenate(losses)[-max(steps // 10, 1) :].mean()), seconds


def compared(samples: np.ndarray, real: Truth, z_t: np.ndarray) -> dict[str, float]:
    """Errors of samples [conditions, samples, E], as the module says."""
    x, c = np.asarray(samples, np.float64), real.covariance.astype(np.float64)
    means = real.mean(z_t.astype(np.float64))
    off = x.mean(1) - means
    norm = np.linalg.norm(c)
    covariances = [np.linalg.norm(np.cov(one, rowvar=False) - c) / norm for one in x]
    residual = (x - means[:, None]).reshape(-1, x.shape[-1])
    return {
        "mean": float((off**2).sum(1).mean() / np.trace(c)),
        "covariance": float(np.mean(covariances)),
        "pooled_mean": float((residual.mean(0) ** 2).sum() / np.trace(c)),
        "pooled_covariance": float(np.linalg.norm(np.cov(residual, rowvar=False) - c) / norm),
    }


def drawn(task: Any, params: Any, z_t: np.ndarray, count: int) -> np.ndarray:
    """[conditions, count, E]."""
    keys = rng.per_example(jax.random.key(11), jnp.arange(len(z_t) * count))
    text = jnp.repeat(jnp.asarray(z_t), count, axis=0)
    draw = jax.jit(lambda params, text, keys: task.predict["image_embedding"](params, None, text, keys))
    return np.asarray(draw(params, text, keys)).reshape(len(z_t), count, -1)


def exact_denoiser(real: Truth, z_t: Any, path: paths.Path) -> Callable:
    """E[x0 | x_t, z_t]."""
    values, vectors = np.linalg.eigh(real.covariance.astype(np.float64))
    mean, turn = jnp.asarray(real.mean(z_t)), jnp.asarray(vectors, jnp.float32)

    def network(x: Any, t: Any) -> Any:
        alpha, sigma = path.alpha(t)[:, None], path.sigma(t)[:, None]
        gain = alpha * values[None] / (alpha**2 * values[None] + sigma**2)
        return mean + (((x - alpha * mean) @ turn) * gain) @ turn.T

    return denoiser(network, path, "x0")


def least_loss(task: str, system: Any, params: Any, real: Truth) -> float:
    """What the best network would have, told z_t or, of the share of examples whose caption is left out, not."""
    c = real.covariance.astype(np.float64)
    told, untold = np.linalg.eigvalsh(c), np.linalg.eigvalsh(c + (real.a.astype(np.float64) @ real.a.T))
    if task == "ar_prior":
        steps = system.buckets.step * np.sqrt(np.asarray(params["pca"]["eigenvalues"], np.float64))
        of = lambda values: (0.5 * np.log(2 * np.pi * np.e * values).sum() - np.log(steps).sum()) / len(values)
    else:
        at = walk.levels(system.path, np.arange(system.path.steps, dtype=np.float64))
        alpha, sigma = at.alpha[:, None], at.sigma[:, None]
        of = lambda values: (values * sigma**2 / (alpha**2 * values + sigma**2)).mean()
    share = system.captions.dropout
    return float((1 - share) * of(told) + share * of(untold))


def floors(task: str, system: Any, params: Any, real: Truth, z_t: np.ndarray, count: int) -> dict[str, Any]:
    """What as many samples of the truth, and a perfect network, would be found to have; and the least loss."""
    text = jnp.repeat(jnp.asarray(z_t), count, axis=0)
    exact = real.draw(jax.random.key(12), text)
    shaped = lambda x: np.asarray(x).reshape(len(z_t), count, -1)
    if task == "ar_prior":
        pca = embeddings.PCA(**params["pca"])
        method = embeddings.decode(pca, embeddings.encode(pca, exact, system.buckets), system.buckets)
    else:
        path, keys = system.path, rng.per_example(jax.random.key(13), jnp.arange(len(text)))
        walked = times(path, SAMPLER["steps"], SAMPLER["spacing"])
        x = walk.draw(keys, (len(real.b),), path.prior_std)
        method = samplers.sample(exact_denoiser(real, text, path), x, walked, keys, path=path, solver=SAMPLER["solver"])
    least = least_loss(task, system, params, real)
    return {"loss": least, "samples": compared(shaped(exact), real, z_t), "method": compared(shaped(method), real, z_t)}


def measure(task: str, *, size: int, width: int, depth: int, steps: int, batch: int, conditions: int, count: int) -> dict[str, Any]:
    """One prior, trained and asked."""
    real, config = truth(size), config_of(task, size, width, depth, batch)
    built, system = TASKS[task].make(config), TASKS[task].parse(config.model, jnp.float32)
    params, loss, seconds = train(built, real, batch=batch, steps=steps)
    z_t = np.random.default_rng(5).normal(size=(conditions, size)).astype(np.float32)
    return {
        "loss": loss,
        "found": compared(drawn(built, params, z_t, count), real, z_t),
        "floors": floors(task, system, params, real, z_t, count),
        "seconds": round(seconds, 1),
        "parameters": sum(x.size for x in jax.tree.leaves(params)),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=4000)
    parser.add_argument("--width", type=int, default=64)
    parser.add_argument("--size", type=int, default=6)
    parser.add_argument("--tasks", nargs="*", default=list(TASKS))
    parser.add_argument("--out", default=str(ROOT / "results" / "prior_gaussian.json"))
    args = parser.parse_args()
    setting = {"size": args.size, "width": args.width, "depth": 2, "steps": args.steps, "batch": 128, "conditions": 16, "count": 1024}
    out = {"setting": setting, "jax": jax.__version__, "device": jax.devices()[0].device_kind, "priors": {}}
    for task in args.tasks:
        out["priors"][task] = measure(task, **setting)
        print(json.dumps({task: out["priors"][task]}, indent=1), flush=True)
    Path(args.out).parent.mkdir(parents=True, exist_ok=True)
    Path(args.out).write_text(json.dumps(out, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
