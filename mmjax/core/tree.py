"""Nested dicts of arrays addressed by "/"-joined paths, and first-match rules over those paths."""

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import jax
import numpy as np

from mmjax.core.errors import UserError

PyTree = Any


def is_axes(x: Any) -> bool:
    """Whether `x` is a leaf of an axes tree: a tuple of logical axis names and None."""
    return isinstance(x, tuple) and all(a is None or isinstance(a, str) for a in x)


def flatten(tree: Mapping[str, Any]) -> dict[str, Any]:
    """`{"a": {"b": x}}` -> `{"a/b": x}`, sorted by path as jax sorts dict keys. Anything but a mapping is a leaf."""
    out: dict[str, Any] = {}
    for name in sorted(tree):
        value = tree[name]
        if isinstance(value, Mapping):
            out.update({f"{name}/{k}": v for k, v in flatten(value).items()})
        else:
            out[name] = value
    return out


def unflatten(flat: Mapping[str, Any]) -> dict[str, Any]:
    """The inverse of `flatten`."""
    out: dict[str, Any] = {}
    for path, value in flat.items():
        *parents, leaf = path.split("/")
        node = out
        for parent in parents:
            node = node.setdefault(parent, {})
        node[leaf] = value
    return out


def select(tree: Mapping[str, Any], keep: Callable[[str], bool]) -> dict[str, Any]:
    """The subtree of leaves whose path satisfies `keep`; empty dicts vanish."""
    return unflatten({k: v for k, v in flatten(tree).items() if keep(k)})


def merge(*trees: Mapping[str, Any]) -> dict[str, Any]:
    """One tree holding the leaves of all; a later tree's leaf replaces an earlier one's."""
    flat: dict[str, Any] = {}
    for tree in trees:
        flat.update(flatten(tree))
    return unflatten(flat)


def matches(path: str, patterns: Iterable[str]) -> bool:
    """Whether any regex matches the whole path."""
    return any(re.fullmatch(p, path) for p in patterns)


def first_match(paths: Iterable[str], rules: Sequence[tuple[str, Any]], what: str, among: Iterable[str] = ()) -> dict[str, Any]:
    """Assigns to each path the value of the first rule whose regex matches all of it.

    A rule may also earn its place by deciding a path of `among`: what is frozen today leaves no rule without use.

    Raises:
      UserError: a path no rule covers, or a rule that is first for no path; `what` names the rule list.
    """
    paths, used, out = list(paths), set(), {}
    needed = set(paths)
    for path in dict.fromkeys((*paths, *among)):
        for i, (pattern, value) in enumerate(rules):
            if re.fullmatch(pattern, path):
                used.add(i)
                if path in needed:
                    out[path] = value
                break
        else:
            if path not in needed:
                continue
            listed = ", ".join(repr(p) for p, _ in rules) or "none"
            raise UserError(f"{what}: no rule covers parameter '{path}' (rules: {listed}); add a last rule ('.*', ...)")
    for i, (pattern, _) in enumerate(rules):
        if i not in used:
            raise UserError(
                f"{what}: rule {i} {pattern!r} decides no parameter; it matches none or an earlier rule takes them all. "
                f"Parameters: {', '.join(paths[:8])}{', ...' if len(paths) > 8 else ''}"
            )
    return out


def check_patterns(paths: Iterable[str], patterns: Iterable[str], what: str) -> None:
    """Raises `UserError` for a pattern that fully matches no path."""
    paths = list(paths)
    for pattern in patterns:
        if not any(re.fullmatch(pattern, p) for p in paths):
            shown = ", ".join(paths[:8])
            raise UserError(f"{what}: pattern {pattern!r} matches no parameter; parameters are {shown}{', ...' if len(paths) > 8 else ''}")


def count(tree: PyTree) -> int:
    """The number of scalars in the tree's arrays (or ShapeDtypeStructs)."""
    return sum(int(np.prod(x.shape)) for x in jax.tree.leaves(tree))


def nbytes(tree: PyTree) -> int:
    """Bytes of the tree's arrays (or ShapeDtypeStructs)."""
    return sum(int(np.prod(x.shape)) * np.dtype(x.dtype).itemsize for x in jax.tree.leaves(tree))
