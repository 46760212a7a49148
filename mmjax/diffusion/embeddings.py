"""Embeddings of pictures and texts as vectors: principal components, buckets, arcs on the sphere. Arrays only.

unCLIP (Ramesh et al. 2022, arXiv 2204.06125) quantises the leading principal components of CLIP's image embeddings for its autoregressive
prior (section 2.2: 1024 dimensions to 319, ordered by eigenvalue, 1,024 buckets each), turns embeddings along arcs (sections 3.2 and 3.3)
and decodes what the leading components alone say (figure 7). Where the edges of buckets lie is not published; ours are equal steps over
`spread` standard deviations to both sides of each component's mean, and a bucket stands for its middle.

B examples, E width of an embedding, N components that are kept.
"""

import dataclasses
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike
from jaxtyping import Array, Float, Int
from scipy.special import ndtr

from mmjax.core.errors import UserError

Either = Array | np.ndarray


class PCA(NamedTuple):
    """Principal components, without whitening: coordinates keep the variances of the data.

    Attributes:
      mean: of the data.
      directions: orthonormal rows, the one of the largest variance first.
      eigenvalues: variances along all E directions, falling, those that are not kept too.
    """

    mean: Float[Either, "E"]
    directions: Float[Either, "N E"]
    eigenvalues: Float[Either, "E"]


def fit_pca(x: Float[np.ndarray, "n E"], dims: int | None = None) -> PCA:
    """Components of data on the host, in float64; `dims` of them are kept, or all. The largest entry of a direction is positive.

    Raises:
      UserError: more dimensions than the embedding has, or fewer than two examples.
    """
    x = np.asarray(x, np.float64)
    kept = x.shape[1] if dims is None else dims
    if not 1 <= kept <= x.shape[1]:
        raise UserError(f"PCA to {kept} dimensions of embeddings of {x.shape[1]}; expected 1 to {x.shape[1]}")
    if len(x) < 2:
        raise UserError(f"PCA of {len(x)} embeddings; expected two at least, and many more than {x.shape[1]}")
    mean = x.mean(0)
    values, vectors = np.linalg.eigh(np.cov(x, rowvar=False, bias=True).reshape(x.shape[1], -1))
    directions = vectors.T[::-1]
    signs = np.sign(directions[np.arange(len(directions)), np.abs(directions).argmax(1)])
    return PCA(mean, (directions * signs[:, None])[:kept], np.maximum(values[::-1], 0.0))


def project(pca: PCA, x: Float[Either, "B E"]) -> Float[Either, "B N"]:
    """Coordinates along the kept directions."""
    return (x - pca.mean[None]) @ pca.directions.T


def reconstruct(pca: PCA, y: Float[Either, "B K"]) -> Float[Either, "B E"]:
    """The embedding of K leading coordinates, the others at their mean."""
    return pca.mean[None] + y @ pca.directions[: y.shape[1]]


def partial_reconstruction(pca: PCA, x: Float[Either, "B E"], dims: int) -> Float[Either, "B E"]:
    """What the `dims` leading components alone say of embeddings; shorter than they are.

    Raises:
      UserError: more dimensions than are kept.
    """
    if not 0 <= dims <= len(pca.directions):
        raise UserError(f"a reconstruction from {dims} principal components, and {len(pca.directions)} are kept")
    return reconstruct(pca, project(pca, x)[:, :dims])


@dataclasses.dataclass(frozen=True)
class Buckets:
    """How a coordinate becomes one of `count` integers: equal steps over `spread` standard deviations to both sides of 0.

    The first and the last bucket hold what lies beyond.
    """

    count: int = 1024
    spread: float = 5.0

    def __post_init__(self):
        if self.count < 2 or not self.spread > 0:
            raise UserError(f"{self.count} buckets over {self.spread} standard deviations; expected two at least, and a positive spread")

    @property
    def step(self) -> float:
        """Width of a bucket, in standard deviations."""
        return 2 * self.spread / self.count

    def error(self) -> float:
        """Mean squared error of a standard normal number's round trip: of the buckets' width, and of the two tails."""
        edges = np.concatenate([[-np.inf], self.step * np.arange(1, self.count) - self.spread, [np.inf]])
        middle = self.step * (np.arange(self.count) + 0.5) - self.spread
        density = np.exp(-(edges**2) / 2) / np.sqrt(2 * np.pi)
        # Of each bucket the integrals of z^2 p, z p and p between its edges.
        first = -np.diff(np.where(np.isfinite(edges), edges, 0.0) * density)
        return float(np.sum(first + (1 + middle**2) * np.diff(ndtr(edges)) + 2 * middle * np.diff(density)))


def quantise(y: Float[Either, "B N"], eigenvalues: Float[Either, "M"], buckets: Buckets) -> Int[Array, "B N"]:
    """The bucket of each coordinate, int32; `eigenvalues` are the variances along N directions, and more that are not looked at."""
    z = jnp.asarray(y) / _scale(eigenvalues, y.shape[1])
    return jnp.clip(jnp.floor((z + buckets.spread) / buckets.step), 0, buckets.count - 1).astype(jnp.int32)


def dequantise(codes: Int[Either, "B N"], eigenvalues: Float[Either, "M"], buckets: Buckets) -> Float[Array, "B N"]:
    """The middle of each bucket: the inverse of `quantise`, within half a bucket."""
    return (buckets.step * (jnp.asarray(codes) + 0.5) - buckets.spread) * _scale(eigenvalues, codes.shape[1])


def _scale(eigenvalues: Float[Either, "M"], dims: int) -> Float[Array, "1 N"]:
    """Standard deviations; of a direction in which nothing varies some tiny number."""
    values = jnp.asarray(eigenvalues)[:dims]
    return jnp.sqrt(jnp.maximum(values, jnp.finfo(values.dtype).tiny ** 0.5))[None]


def encode(pca: PCA, x: Float[Either, "B E"], buckets: Buckets) -> Int[Array, "B N"]:
    """Embeddings as N codes each."""
    return quantise(project(pca, x), pca.eigenvalues, buckets)


def decode(pca: PCA, codes: Int[Either, "B N"], buckets: Buckets) -> Float[Array, "B E"]:
    """The embeddings that codes stand for."""
    return reconstruct(pca, dequantise(codes, pca.eigenvalues, buckets))


def round_trip_error(eigenvalues: Float[Either, "E"], dims: int, buckets: Buckets | None = None) -> float:
    """Mean squared distance of an embedding from its reconstruction, as the eigenvalues predict it.

    The variance of the directions that are left out, and of those that are kept, whose coordinates are taken to be normal, what buckets
    cost; nothing without buckets.
    """
    values = np.asarray(eigenvalues, np.float64)
    return float(values[dims:].sum() + (0.0 if buckets is None else buckets.error() * values[:dims].sum()))


def quantile_edges(x: Float[np.ndarray, "n"], count: int) -> Float[np.ndarray, "count_minus_1"]:
    """Edges between `count` buckets that hold equal shares of the numbers."""
    return np.quantile(np.asarray(x, np.float64), np.arange(1, count) / count)


def bucket_of(x: Float[Either, "B"], edges: Float[Either, "count_minus_1"]) -> Int[Array, "B"]:
    """The bucket between edges that each number lies in, int32 from 0."""
    return jnp.searchsorted(jnp.asarray(edges), jnp.asarray(x), side="right").astype(jnp.int32)


# --- arcs ----------------------------------------------------------------------------------------------------------------


def unit(x: Float[Either, "B E"]) -> Float[Array, "B E"]:
    """x / |x|; zeros stay zeros."""
    length = jnp.linalg.norm(x, axis=-1, keepdims=True)
    return x / jnp.where(length > 0, length, 1.0)


def slerp(a: Float[Either, "B *x"], b: Float[Either, "B *x"], share: ArrayLike) -> Float[Array, "B *x"]:
    """From a (share 0) to b (share 1) along the arc between their directions (Shoemake 1985); the length changes evenly.

    All but the batch axis is one vector, so noise of pictures is turned as embeddings are: between two of the same length every point has
    it too. Where the two point the same way it is the straight line; where they are opposite no arc is the shortest, and it is that too.

    Args:
      share: a number, or one an example, [B]. Beyond 1 the arc goes on.
    """
    shape = jnp.shape(a)
    flat = lambda x: jnp.reshape(jnp.asarray(x), (shape[0], -1))
    size = lambda x: jnp.linalg.norm(x, axis=1, keepdims=True)
    u, v = flat(a), flat(b)
    first, second = size(u), size(v)
    share = jnp.reshape(jnp.broadcast_to(jnp.asarray(share, u.dtype), (shape[0],)), (-1, 1))
    p, q = unit(u), unit(v)
    # Of near directions the arc cosine has lost its digits; chords keep them.
    angle = 2 * jnp.arctan2(size(p - q), size(p + q))
    sine = jnp.sin(angle)
    straight = (sine < 1e-6) | (first == 0) | (second == 0)
    over = jnp.where(straight, 1.0, sine)
    direction = jnp.sin((1 - share) * angle) / over * p + jnp.sin(share * angle) / over * q
    turned = ((1 - share) * first + share * second) * direction
    return jnp.reshape(jnp.where(straight, (1 - share) * u + share * v, turned), shape)


def text_difference(target: Float[Either, "B E"], base: Float[Either, "B E"]) -> Float[Array, "B E"]:
    """z_d: the direction from one caption's embedding to another's, of unit length (section 3.3). Their own lengths do not matter."""
    return unit(unit(target) - unit(base))


def text_diff(image: Float[Either, "B E"], direction: Float[Either, "B E"], share: ArrayLike) -> Float[Array, "B E"]:
    """Image embeddings turned toward `text_difference`, their length kept; the paper's shares go from 0 to 0.25 or 0.5."""
    return slerp(image, direction * jnp.linalg.norm(image, axis=-1, keepdims=True), share)
