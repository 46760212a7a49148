"""Image-text retrieval: recall at 1, 5 and 10 both ways.

N images, M distinct captions, E embedding. A caption that several images carry is one entry of the gallery, and all
those images count as right for it. With captions that are all different this is the protocol of COCO and Flickr30k:
an image is found if any of its captions (five, there) is among the first K, a caption if its image is.
"""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from jax.sharding import Mesh
from jaxtyping import Float, Int, Int64

from mmjax.core.config import Group
from mmjax.core.errors import UserError
from mmjax.core.types import Params
from mmjax.data import transforms
from mmjax.data.bad import BadSample
from mmjax.data.source import open_source, open_tokenizer
from mmjax.evals import encode

NEEDS = ("encode_image", "encode_text")
ARGUMENTS = ("split", "batch_size", "length", "transforms", "captions")
KS = (1, 5, 10)
CELLS = 1 << 23  # similarities held at a time: 96 MiB, in two precisions

Pairs = Int64[np.ndarray, "P 2"]  # (query, entry of the gallery) that belong together, in any order


def ranks(queries: Float[np.ndarray, "Q E"], gallery: Float[np.ndarray, "G E"], right: Pairs, cells: int = CELLS) -> Int64[np.ndarray, "Q"]:
    """How many wrong entries of the gallery come before the first right one of each query, all of which must have one.

    A wrong entry whose cosine, rounded to float32, equals the right one's goes first. Products are summed in float64, so neither
    the size of a chunk nor an entry's place decides what ties: equal embeddings do. Memory: `cells` similarities, or a row of G
    where that is more, beside a float64 copy of the gallery.
    """
    right = right[np.argsort(right[:, 0], kind="stable")]
    entries = np.asarray(gallery.T, np.float64)
    out = np.empty(len(queries), np.int64)
    rows = max(1, cells // max(1, len(gallery)))
    for start in range(0, len(queries), rows):
        chunk = (queries[start : start + rows].astype(np.float64) @ entries).astype(np.float32)
        first, last = np.searchsorted(right[:, 0], [start, start + len(chunk)])
        query, entry = right[first:last, 0] - start, right[first:last, 1]
        best = np.full(len(chunk), -np.inf, np.float32)
        np.maximum.at(best, query, chunk[query, entry])
        own = np.bincount(query[chunk[query, entry] == best[query]], minlength=len(chunk))  # right entries among those counted below
        out[start : start + rows] = (chunk >= best[:, None]).sum(1) - own
    return out


def recall(queries: Float[np.ndarray, "Q E"], gallery: Float[np.ndarray, "G E"], right: Pairs, cells: int = CELLS) -> dict[int, float]:
    """Share of queries with a right entry among the first K, K in `KS`; arguments and ties as of `ranks`."""
    found = ranks(queries, gallery, right, cells)
    return {k: float((found < k).mean()) for k in KS}


def kept(pairs: Pairs, places: Int64[np.ndarray, "S"]) -> tuple[Int64[np.ndarray, "Q 2"], Int64[np.ndarray, "n"], Int64[np.ndarray, "m"]]:
    """The pairs of the images at `places`, numbered anew among those images and captions that are in one: an image without captions
    asks for nothing, nor does a caption without images. Also which of `places`, and which captions, these are."""
    pairs = pairs[np.isin(pairs[:, 0], places)]
    images, captions = np.unique(pairs[:, 0]), np.unique(pairs[:, 1])
    renumbered = np.stack([np.searchsorted(images, pairs[:, 0]), np.searchsorted(captions, pairs[:, 1])], 1)
    return renumbered, np.searchsorted(places, images), captions


@dataclasses.dataclass(frozen=True)
class Retrieval:
    """Encodes a split and its captions and ranks them against each other."""

    encode_image: Callable
    encode_text: Callable
    source: Any
    transform: Callable
    tokens: Int[np.ndarray, "M L"]
    pairs: Pairs  # (record, caption)
    batch_size: int
    mesh: Mesh

    def __call__(self, params: Params) -> dict[str, float]:
        images, _, places = encode.split(
            self.encode_image, params, self.source, self.transform, ("image", "_mask"), self.batch_size, self.mesh
        )
        texts = encode.texts(self.encode_text, params, self.tokens, self.batch_size, self.mesh)
        pairs, sound, used = kept(self.pairs, places)
        images, texts = encode.unit(images[sound]), encode.unit(texts[used])
        out = {f"image_to_text_r{k}": v for k, v in recall(images, texts, pairs).items()}
        out |= {f"text_to_image_r{k}": v for k, v in recall(texts, images, pairs[:, ::-1]).items()}
        return {**out, **encode.left_out(self.source, places[sound])}


def make(predict: Mapping[str, Callable], config: Group, mesh: Mesh, data: Group) -> Retrieval:
    """Config: `split`, `batch_size`, `length` (tokens), `transforms`, and `captions`: "own", the texts stored with each
    image, or "prompts", the source's held-out prompts filled with each image's class name.

    Raises:
      UserError: another value of `captions`, or a source without captions or prompts.
    """
    source = open_source(data, config["split"])
    info = source.info
    if config["captions"] not in ("own", "prompts"):
        raise UserError(f"retrieval: captions is {config['captions']!r}, expected 'own' or 'prompts'")
    if config["captions"] == "prompts" and not (info.classes and info.prompts):
        raise UserError(f"retrieval: source '{info.name}' has no class names or no prompts; use captions='own'")
    if config["captions"] == "own" and "captions" not in info.features:
        raise UserError(f"retrieval: examples of source '{info.name}' have no captions, only {', '.join(sorted(info.features))}")
    tokenizer = open_tokenizer(source, data.tokenizer)
    if tokenizer is None:
        raise UserError(f"retrieval: source '{info.name}' has no tokenizer; name one with data.tokenizer")

    def captions_of(record: int) -> list[str]:
        try:
            example = source[record]
        except BadSample:  # left out of the evaluation
            return []
        if config["captions"] == "own":
            return [caption for caption in example["captions"] if caption.strip()]
        return [p.format(info.classes[example["label"]]) for p in info.prompts]

    gallery: dict[str, int] = {}  # caption -> its number
    pairs = {(i, gallery.setdefault(c, len(gallery))): None for i in range(len(source)) for c in captions_of(i)}
    if not pairs:
        raise UserError(f"retrieval: no image of source '{info.name}' ({info.split}) has a caption")
    return Retrieval(
        encode_image=encode.compile_over(mesh, predict["encode_image"]),
        encode_text=encode.compile_over(mesh, predict["encode_text"]),
        source=source,
        transform=transforms.build(config["transforms"], tokenizer),
        tokens=tokenizer.encode(list(gallery), config["length"]),
        pairs=np.array(list(pairs), np.int64),
        batch_size=encode.pad_to_mesh(config["batch_size"], mesh),
        mesh=mesh,
    )
