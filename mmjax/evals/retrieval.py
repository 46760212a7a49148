"""Image-text retrieval: recall at 1, 5 and 10 both ways.

N images, M distinct captions, E embedding. A caption that several images carry is one entry of the gallery, and all
those images count as right for it. With captions that are all different this is the protocol of COCO and Flickr30k:
an image is found if any of its captions is among the first K, a caption if its image is.
"""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from jax.sharding import Mesh
from jaxtyping import Bool, Float, Int

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


def recall(similarity: Float[np.ndarray, "Q G"], relevant: Bool[np.ndarray, "Q G"]) -> dict[int, float]:
    """Share of queries with a relevant entry among the K most similar. An irrelevant entry that ties with it goes first."""
    best = np.where(relevant, similarity, -np.inf).max(1, keepdims=True)
    rank = ((similarity >= best) & ~relevant).sum(1)
    return {k: float((rank < k).mean()) for k in KS}


@dataclasses.dataclass(frozen=True)
class Retrieval:
    """Encodes a split and its captions and ranks them against each other."""

    encode_image: Callable
    encode_text: Callable
    source: Any
    transform: Callable
    tokens: Int[np.ndarray, "M L"]
    relevant: Bool[np.ndarray, "N M"]
    batch_size: int
    mesh: Mesh

    def __call__(self, params: Params) -> dict[str, float]:
        images, _, places = encode.split(
            self.encode_image, params, self.source, self.transform, ("image", "_mask"), self.batch_size, self.mesh
        )
        images = encode.unit(images)
        texts = encode.unit(encode.texts(self.encode_text, params, self.tokens, self.batch_size, self.mesh))
        sound = self.relevant[places].any(1)  # an image without captions asks for nothing, nor does a caption without images
        images, places = images[sound], places[sound]
        used = self.relevant[places].any(0)
        similarity, relevant = images @ texts[used].T, self.relevant[places][:, used]
        out = {f"image_to_text_r{k}": v for k, v in recall(similarity, relevant).items()}
        out |= {f"text_to_image_r{k}": v for k, v in recall(similarity.T, relevant.T).items()}
        return {**out, **encode.left_out(self.source, places)}


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

    def captions_of(record: int) -> list[str]:
        try:
            example = source[record]
        except BadSample:  # left out of the evaluation
            return []
        if config["captions"] == "own":
            return [caption for caption in example["captions"] if caption.strip()]
        return [p.format(info.classes[example["label"]]) for p in info.prompts]

    per_image = [captions_of(i) for i in range(len(source))]
    gallery = {caption: i for i, caption in enumerate(dict.fromkeys(c for captions in per_image for c in captions))}
    relevant = np.zeros((len(source), len(gallery)), bool)
    for i, captions in enumerate(per_image):
        relevant[i, [gallery[c] for c in captions]] = True
    tokenizer = open_tokenizer(source, data.tokenizer)
    if tokenizer is None:
        raise UserError(f"retrieval: source '{source.info.name}' has no tokenizer; name one with data.tokenizer")
    return Retrieval(
        encode_image=encode.compile_over(mesh, predict["encode_image"]),
        encode_text=encode.compile_over(mesh, predict["encode_text"]),
        source=source,
        transform=transforms.build(config["transforms"], tokenizer),
        tokens=tokenizer.encode(list(gallery), config["length"]),
        relevant=relevant,
        batch_size=encode.pad_to_mesh(config["batch_size"], mesh),
        mesh=mesh,
    )
