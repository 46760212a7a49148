"""What Winoground, SugarCrepe and ARO share: cases of a few pictures and captions, and a model's similarity of each to each.

A benchmark reads its cases from its annotation file, with pictures in a folder, or from a source (scenes' `swaps` and
`hard_negatives`), and scores the matrices of similarities by its own rule for ties. N cases, I pictures and C captions a case,
E embedding.
"""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from jax.sharding import Mesh
from jaxtyping import Bool, Float, Int

from mmjax.core.config import Group
from mmjax.core.errors import UserError, suggest
from mmjax.core.types import Params
from mmjax.data import files, transforms
from mmjax.data import tokenizer as tokenizer_lib
from mmjax.data.bad import BadSample
from mmjax.data.image import Decode, to_array, to_pil
from mmjax.data.jsonl import read_image
from mmjax.data.source import Info, Source, open_source, open_tokenizer
from mmjax.evals import encode

NEEDS = ("encode_image", "encode_text")
ARGUMENTS = ("split", "batch_size", "length", "transforms", "annotations", "images")


@dataclasses.dataclass(frozen=True)
class Picture:
    """A file below the folder of pictures, perhaps a part of it, or picture `number` of a source's record."""

    path: str = ""
    box: tuple[float, float, float, float] | None = None  # left, top, right, bottom, in pixels
    record: int = -1
    number: int = 0


@dataclasses.dataclass(frozen=True)
class Case:
    """Pictures and captions; which belong together, the benchmark knows by their order."""

    pictures: tuple[Picture, ...]
    captions: tuple[str, ...]
    type: str = ""


Score = Callable[[Float[np.ndarray, "N I C"], Sequence[str]], dict[str, float]]


def means(values: Float[np.ndarray, "N"] | Bool[np.ndarray, "N"], types: Sequence[str], least: int = 1) -> dict[str, float]:
    """type -> mean of its cases, for types of at least `least` cases, in the order of names; "" is no type."""
    names, which, counts = np.unique(np.asarray(types), return_inverse=True, return_counts=True)
    sums = np.bincount(which, weights=values)
    return {str(t): float(s / n) for t, s, n in zip(names, sums, counts, strict=True) if t and n >= least}


def pictures_of(record: Mapping[str, Any]) -> list[bytes]:
    """The encoded pictures of a source's record: `images`, or the one `image`."""
    return list(record["images"]) if "images" in record else [record["image"]]


def cases_of(source: Source, keys: Sequence[str], case: Callable[[Mapping[str, Any], int], Case]) -> list[Case]:
    """One case a record; bad records are left out.

    Raises:
      UserError: records have not all of `keys`.
    """
    out = []
    for i in range(len(source)):
        try:
            record = source[i]
        except BadSample:
            continue
        for key in keys:
            if key not in record:
                raise UserError(f"source '{source.info.name}' ({source.info.split}), record {i} has no {key!r}{suggest(key, record)}")
        out.append(case(record, i))
    return out


@dataclasses.dataclass(frozen=True)
class Gallery:
    """Every picture of some cases once, as a source: `image`, encoded, and `box` where only a part of it counts."""

    pictures: tuple[Picture, ...]
    root: str
    source: Source | None
    info: Info

    def __len__(self) -> int:
        return len(self.pictures)

    def __getitem__(self, i: int) -> dict[str, Any]:
        picture = self.pictures[i]
        if self.source is not None:
            return {"image": pictures_of(self.source[picture.record])[picture.number]}
        image = {"image": read_image(picture.path, self.root, absolute=False)}
        return image if picture.box is None else {**image, "box": picture.box}

    def describe(self, i: int) -> str:
        """The picture in words."""
        picture = self.pictures[i]
        return f"picture '{picture.path}'" if self.source is None else f"source '{self.info.name}', record {picture.record}"


@dataclasses.dataclass(frozen=True)
class CropToBox:
    """The part of a decoded picture that its box names, if it has one; black where the box is outside, as Pillow has it."""

    def __call__(self, example: Mapping[str, Any], rng: np.random.Generator) -> dict[str, Any]:
        example = dict(example)
        box = example.pop("box", None)
        if box is not None:
            example["image"] = to_array(to_pil(example["image"]).crop(box))
        return example


def _cropping(chain: transforms.Chain) -> transforms.Chain:
    at = next((i + 1 for i, step in enumerate(chain.steps) if isinstance(step, Decode)), 0)
    put = lambda items, item: (*items[:at], item, *items[at:])
    return transforms.Chain(put(chain.names, "crop to box"), put(chain.steps, CropToBox()))


@dataclasses.dataclass(frozen=True)
class Compositional:
    """Encodes every picture and caption once and scores the cases' similarities."""

    encode_image: Callable
    encode_text: Callable
    cases: tuple[Case, ...]
    gallery: Gallery
    transform: Callable
    captions: Mapping[str, int]  # caption -> row of `tokens`
    tokens: Int[np.ndarray, "M L"]
    score: Score
    batch_size: int
    mesh: Mesh

    def similarities(self, params: Params) -> tuple[Float[np.ndarray, "N I C"], list[Case], dict[str, float]]:
        """Cosines of the cases whose pictures are all sound, those cases, and how many pictures are not.

        In float64, and from one embedding a caption, so that equal captions tie exactly, as tie rules assume.
        """
        images, _, places = encode.split(
            self.encode_image, params, self.gallery, self.transform, ("image", "_mask"), self.batch_size, self.mesh
        )
        texts = encode.texts(self.encode_text, params, self.tokens, self.batch_size, self.mesh)
        images, texts = _unit(images), _unit(texts)
        row = {self.gallery.pictures[place]: i for i, place in enumerate(places)}
        cases = [case for case in self.cases if all(picture in row for picture in case.pictures)]
        if not cases:
            raise UserError(f"{self.gallery.info.name}: no case has all of its pictures; {self.gallery.describe(0)} is the first")
        rows = np.array([[row[picture] for picture in case.pictures] for case in cases])
        columns = np.array([[self.captions[caption] for caption in case.captions] for case in cases])
        similarity = np.empty((len(cases), rows.shape[1], columns.shape[1]))
        for i, c in np.ndindex(*similarity.shape[1:]):
            similarity[:, i, c] = (images[rows[:, i]] * texts[columns[:, c]]).sum(-1)
        return similarity, cases, encode.left_out(self.gallery, places)

    def __call__(self, params: Params) -> dict[str, float]:
        similarity, cases, left_out = self.similarities(params)
        return {**self.score(similarity, [case.type for case in cases]), **left_out}


def _unit(x: Float[np.ndarray, "N E"]) -> Float[np.ndarray, "N E"]:
    x = x.astype(np.float64)
    return x / np.linalg.norm(x, axis=-1, keepdims=True)


def make(
    predict: Mapping[str, Callable],
    config: Group,
    mesh: Mesh,
    data: Group,
    *,
    read: Callable[[str], list[Case]],
    take: Callable[[Source], list[Case]] | None,
    score: Score,
) -> Compositional:
    """The evaluator of one benchmark.

    Config: `annotations`, the benchmark's file, and `images`, the folder of its pictures; with both "" the cases are the records of the
    data's source, `split` of it. Besides `batch_size`, `length` (tokens) and `transforms` (of pictures).

    Args:
      read: cases of an annotation file.
      take: cases of a source's records; None if the benchmark has no such form.

    Raises:
      UserError: one of the two without the other, a missing folder, a file of another form, no tokenizer.
    """
    kind, path, root = config["type"], config["annotations"], config["images"]
    if bool(path) != bool(root):
        raise UserError(f"{kind}: annotations is {path!r} and images {root!r}; set both, or neither to use the records of the source")
    if root and not files.is_dir(root):
        raise UserError(f"{kind}: images: folder '{root}' does not exist")
    if not path and take is None:
        raise UserError(f"{kind}: annotations is ''; name the benchmark's file, and with images the folder of its pictures")
    source = None if path and data.tokenizer else open_source(data, config["split"])
    tokenizer = tokenizer_lib.load(data.tokenizer) if data.tokenizer else open_tokenizer(source)
    if tokenizer is None:
        raise UserError(f"{kind}: source '{source.info.name}' has no tokenizer; name one with data.tokenizer")
    cases = read(path) if path else take(source)
    captions = {caption: i for i, caption in enumerate(dict.fromkeys(c for case in cases for c in case.captions))}
    info = Info(kind, config["split"], (), (), None, {"image": "encoded bytes"})
    pictures = tuple(dict.fromkeys(picture for case in cases for picture in case.pictures))
    return Compositional(
        encode_image=encode.compile_over(mesh, predict["encode_image"]),
        encode_text=encode.compile_over(mesh, predict["encode_text"]),
        cases=tuple(cases),
        gallery=Gallery(pictures, root, None if path else source, info),
        transform=_cropping(transforms.build(config["transforms"], tokenizer)),
        captions=captions,
        tokens=tokenizer.encode(list(captions), config["length"]),
        score=score,
        batch_size=encode.pad_to_mesh(config["batch_size"], mesh),
        mesh=mesh,
    )
