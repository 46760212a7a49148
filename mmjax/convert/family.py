"""What a family of published models consists of; `models.FAMILIES` lists those that are known."""

import dataclasses
from collections.abc import Callable, Collection, Mapping
from typing import Any

import jax

from mmjax.convert.layout import Layout
from mmjax.core import sharding, tree
from mmjax.layers import split_axes

Fields = Mapping[str, Any]


@dataclasses.dataclass(frozen=True)
class Model:
    """What is known before a weight is read.

    Attributes:
      shapes: path -> ShapeDtypeStruct, float32.
      axes: path -> logical axes.
      predict: pure functions of (params, inputs); what the host sees of inputs is checked first.
    """

    shapes: dict[str, jax.ShapeDtypeStruct]
    axes: dict[str, tuple]
    predict: dict[str, Callable]


@dataclasses.dataclass(frozen=True)
class Target:
    """How a model is written for another library.

    Attributes:
      names: what the layout's rules are given as the names of a file's tensors.
      jsons: file name -> content.
      stem: of the file of weights.
      parts: of tensors whose names begin so (which is left out) the stem of a file of their own, in a folder of its own.
      words: the folder in it that the tokenizer's files belong in.
    """

    layout: Layout
    names: Collection[str]
    jsons: dict[str, Any]
    stem: str
    notes: list[str] = dataclasses.field(default_factory=list)
    parts: Mapping[str, str] = dataclasses.field(default_factory=dict)
    words: str = ""


@dataclasses.dataclass(frozen=True)
class Family:
    """Models of one kind, whose fields stand under keys of their own in `config["model"]`.

    Attributes:
      keys: a model is of the first family of which it has a key.
      roots: what the paths of its parameters begin with.
      build: (fields, dtype of products, mesh or None) -> Model.
      says: fields -> the model in a few words.
      targets: library, as `--to` calls it -> config -> Target, or a UserError where the library has no such model.
    """

    keys: tuple[str, ...]
    roots: tuple[str, ...]
    build: Callable[[Fields, Any, jax.sharding.Mesh | None], Model]
    says: Callable[[Fields], str]
    targets: Mapping[str, Callable[[Mapping[str, Any]], Target]]


def finished(boxed: Any, predict: dict[str, Callable]) -> Model:
    """A model of what `init` makes."""
    shapes, axes = split_axes(boxed)
    return Model(tree.flatten(shapes), tree.flatten(axes), predict)


def compiled(function: Callable, mesh: jax.sharding.Mesh | None) -> Callable:
    """`function`, compiled, on a mesh where there is one."""

    def traced(*args: Any, **kwargs: Any) -> Any:
        if mesh is None:
            return function(*args, **kwargs)
        with sharding.use(mesh):
            return function(*args, **kwargs)

    return jax.jit(traced)
