"""Zero-shot classification by prompt ensembles (Radford et al. 2021, section 3.1.4).

N images, K classes, T prompts, E embedding.
"""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from jax.sharding import Mesh
from jaxtyping import Bool, Float, Int, Int64

from mmjax.core.config import Group
from mmjax.core.errors import UserError, suggest
from mmjax.core.types import Params
from mmjax.data import files, transforms
from mmjax.data.source import Info, open_source, open_tokenizer
from mmjax.evals import encode, templates
from mmjax.evals.accuracy import accuracies

NEEDS = ("encode_image", "encode_text")
ARGUMENTS = ("split", "batch_size", "length", "transforms")
OPTIONAL = {"prompts": templates.SOURCE, "candidates": "all"}


def ensemble(prompts: Float[np.ndarray, "K T E"]) -> Float[np.ndarray, "K E"]:
    """One unit vector a class: normalise every prompt's embedding, average over prompts, normalise again."""
    return encode.unit(encode.unit(prompts).mean(1))


@dataclasses.dataclass(frozen=True)
class ZeroShot:
    """What the evaluation needs at hand; `images`, `classifier` and `candidates` are also what a report shows."""

    encode_image: Callable
    encode_text: Callable
    source: Any
    transform: Callable
    templates: tuple[str, ...]
    tokens: Int[np.ndarray, "P L"]  # of `texts_of_classes`
    candidates: Callable[[Int[np.ndarray, "N"]], Bool[np.ndarray, "K"]]  # labels of a split -> the classes an image may be taken for
    batch_size: int
    mesh: Mesh

    def texts_of_classes(self) -> list[str]:
        """The prompts, class by class, template by template."""
        return fill(self.source.info, self.templates)

    def texts(self, params: Params) -> Float[np.ndarray, "P E"]:
        """Unit-norm embeddings of every prompt."""
        return encode.unit(encode.texts(self.encode_text, params, self.tokens, self.batch_size, self.mesh))

    def classifier(self, params: Params) -> Float[np.ndarray, "K E"]:
        """The class vectors of the ensembled prompts."""
        embedded = self.texts(params)
        return ensemble(embedded.reshape(len(self.source.info.classes), -1, embedded.shape[-1]))

    def images(self, params: Params) -> tuple[Float[np.ndarray, "N E"], Int[np.ndarray, "N"], Int64[np.ndarray, "N"]]:
        """Unit-norm embeddings, labels and records' numbers of the split's sound images whose class is a candidate."""
        images, labels, places = self._sound(params)
        kept = self.candidates(labels)[labels]
        return images[kept], labels[kept], places[kept]

    def _sound(self, params: Params) -> tuple[Float[np.ndarray, "N E"], Int[np.ndarray, "N"], Int64[np.ndarray, "N"]]:
        keys = ("image", "label")
        images, *rest = encode.split(self.encode_image, params, self.source, self.transform, keys, self.batch_size, self.mesh)
        return encode.unit(images), *rest

    def __call__(self, params: Params) -> dict[str, float]:
        """`accuracy.accuracies` among the candidates; `other_classes`, how many images are of none of them, if there are any."""
        images, labels, places = self._sound(params)
        allowed = self.candidates(labels)
        kept = allowed[labels]
        if not kept.any():
            raise UserError(f"zero_shot: no image of split '{self.source.info.split}' is of a class in `candidates`")
        number = np.cumsum(allowed) - 1  # of a class among the candidates
        scores = images[kept] @ self.classifier(params)[allowed].T
        others = {"other_classes": float((~kept).sum())} if not kept.all() else {}
        return {**accuracies(scores, number[labels[kept]]), **others, **encode.left_out(self.source, places)}


def fill(info: Info, prompts: tuple[str, ...]) -> list[str]:
    """Every prompt with every class name in it, class by class."""
    return [prompt.format(name) for name in info.classes for prompt in prompts]


def candidates(given: str, info: Info) -> Callable[[Int[np.ndarray, "N"]], Bool[np.ndarray, "K"]]:
    """From a split's labels to the classes its images may be taken for; `given` as in `make`.

    Raises:
      UserError: a file that cannot be read, or a line of it that names no class of the source.
    """
    count = len(info.classes)
    if given == "all":
        return lambda labels: np.ones(count, bool)
    if given == "present":
        return lambda labels: np.isin(np.arange(count), labels)
    try:
        lines = [line.strip() for line in files.read(given).decode().splitlines() if line.strip()]
    except (OSError, UnicodeDecodeError) as e:
        raise UserError(f"zero_shot: candidates is {given!r}, neither 'all' nor 'present' nor a file that can be read: {e}") from e
    listed = np.zeros(count, bool)
    for line in lines:
        found = [k for names in (info.ids, info.classes) for k, name in enumerate(names) if name == line]
        if not found:
            known = (*info.ids, *info.classes)
            raise UserError(f"zero_shot: '{given}' lists {line!r}, no class of source '{info.name}'{suggest(line, known)}")
        listed[found] = True
    return lambda labels: listed


def make(predict: Mapping[str, Callable], config: Group, mesh: Mesh, data: Group) -> ZeroShot:
    """Config: `split`, `batch_size`, `length` (tokens), `transforms`. Class names come from the source.

    `prompts`: "source", those of the source, or a name of `templates.SETS`.
    `candidates`: "all"; "present", the classes that the split has images of, which are ImageNet-A's and ImageNet-R's 200; or a file with
    one class a line, as the set calls it (ImageNet's by WordNet ids) or by its word. Images of other classes are left out.

    Raises:
      UserError: the source has no class names or prompts, or an unknown set of prompts or candidate.
    """
    source = open_source(data, config["split"])
    prompts = templates.choose(config["prompts"], source.info.prompts)
    if not source.info.classes or not prompts:
        raise UserError(f"zero_shot: source '{source.info.name}' has no class names or no prompts; it needs both")
    tokenizer = open_tokenizer(source, data.tokenizer)
    if tokenizer is None:
        raise UserError(f"zero_shot: source '{source.info.name}' has no tokenizer; name one with data.tokenizer")
    return ZeroShot(
        encode_image=encode.compile_over(mesh, predict["encode_image"]),
        encode_text=encode.compile_over(mesh, predict["encode_text"]),
        source=source,
        transform=transforms.build(config["transforms"], tokenizer),
        templates=prompts,
        tokens=tokenizer.encode(fill(source.info, prompts), config["length"]),
        candidates=candidates(config["candidates"], source.info),
        batch_size=encode.pad_to_mesh(config["batch_size"], mesh),
        mesh=mesh,
    )
