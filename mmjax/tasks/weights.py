"""Parts of a task's parameters that a fresh run takes from other runs or published weights: config group `model.weights`, part -> path."""

from collections.abc import Callable, Mapping

import jax
import numpy as np

from mmjax.convert.pretrained import from_pretrained
from mmjax.core import tree
from mmjax.core.config import Group
from mmjax.core.errors import UserError
from mmjax.core.types import Params
from mmjax.layers import stack_params, unstack_params


def reader(paths: Mapping[str, str], roots: Mapping[str, str], init: Callable[[], Params]) -> Callable[[], Params] | None:
    """A `Task.weights`, or None where no path is set. Nothing is read before it is called.

    Args:
      paths: part -> a workdir, or what `mmjax.from_pretrained` reads; "" for none.
      roots: part -> what holds such a part there.
      init: makes the task's parameters, of which only shapes are asked.
    """
    given = {name: path for name, path in paths.items() if path}
    return (lambda: read(given, roots, jax.eval_shape(init))) if given else None


def read(paths: Mapping[str, str], roots: Mapping[str, str], wanted: Params) -> Params:
    """The parts as host arrays, such as a language model's `lm` or the `image` tower of a CLIP.

    Raises:
      UserError: a checkpoint without such a part, or one of other shapes, with the first that differs.
    """
    out = {}
    for name, path in paths.items():
        found = from_pretrained(path).params
        root = roots[name]
        if root not in found:
            raise UserError(f"config.model.weights.{name}: '{path}' has no {root!r}, it has {', '.join(sorted(found))}")
        like = tree.flatten(wanted[name])
        held = tree.flatten(_stacked_as(found[root], like))
        wrong = [path for path, x in like.items() if path not in held or held[path].shape != x.shape]
        if wrong:
            first = wrong[0]
            got = list(held[first].shape) if first in held else "nothing"
            raise UserError(
                f"config.model.weights.{name}: '{path}' is another model than config.model.{name}: {len(wrong)} parameters differ, "
                f"{first} is {list(like[first].shape)} and there {got}"
            )
        out[name] = tree.unflatten({p: np.asarray(held[p]) for p in like})
    return out


def _stacked_as(params: Params, like: Group) -> Params:
    """Layers in one array or one by one, as `like` has them."""
    stacked = lambda paths: any(p.startswith("blocks/") or "/blocks/" in p for p in paths)
    if stacked(like) == stacked(tree.flatten(params)):
        return params
    return stack_params(params) if stacked(like) else unstack_params(params)
