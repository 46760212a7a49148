"""What a way of publishing weights consists of; `layouts.LAYOUTS` lists those that are known."""

import dataclasses
import re
from collections.abc import Callable, Collection, Mapping
from typing import Any

import numpy as np

from mmjax.convert.rules import Rule, constant, reshape
from mmjax.convert.source import Source

Model = Mapping[str, Any]


@dataclasses.dataclass(frozen=True)
class Layout:
    """Names and shapes that a library gives the weights of a family of models.

    Attributes:
      family: of networks, such as "clip" (two towers, or one of them), "bert", "t5" or "unet".
      marks: regexes; a file is of this layout if each matches a whole name of a tensor.
      describe: from configs and shapes a config: `model`, fields of one of `models.FAMILIES`, and what else there is to say.
      rules: of a model's fields and the names that a file has (its tensors, where there is one): some may be there or not.
      told: whether `describe` heeds `Source.variant`.
      forms: rules of layouts with the same names of tensors; `describe` tells which it is by `layout`.
      join: adds the tensors of further checkpoints that a model needs.
    """

    name: str
    family: str
    marks: tuple[str, ...]
    describe: Callable[[Source], dict[str, Any]]
    rules: Callable[[Model, Collection[str]], list[Rule]]
    told: bool = False
    forms: Mapping[str, Callable[[Model, Collection[str]], list[Rule]]] = dataclasses.field(default_factory=dict)
    join: Callable[[Source], Source] = lambda source: source

    def recognises(self, names: Collection[str]) -> bool:
        return all(any(re.fullmatch(mark, name) for name in names) for mark in self.marks)


def dropped(names: Collection[str], pattern: str) -> list[Rule]:
    """Rules for the tensors of a file, matched by a regex, that the model has no place for."""
    return [Rule(name, (), constant(None)) for name in names if re.fullmatch(pattern, name)]


def scalar(names: Collection[str], theirs: str, ours: str, shape: tuple[int, ...]) -> list[Rule]:
    """A number, which libraries hold in an array of `shape`, () or (1,); a file may have the other one."""
    if isinstance(names, Mapping) and theirs in names and names[theirs].shape in ((), (1,)):
        shape = names[theirs].shape
    return [Rule(theirs, ours, reshape(shape, ()))]


def positions(names: Collection[str], count: Mapping[str, int]) -> list[Rule]:
    """Rules for buffers of transformers 4 that count positions: regex -> how many."""
    return [Rule(name, (), constant(np.arange(n)[None])) for name in names for pattern, n in count.items() if re.fullmatch(pattern, name)]
