"""Which of a checkpoint's parameters initialises which of a model's, by explicit rules: nothing is matched by guesswork."""

import re
from collections.abc import Mapping, Sequence
from typing import Any

import jax.numpy as jnp

from mmjax.core.errors import UserError


def match_params(
    source: Mapping[str, Any],
    target: Mapping[str, Any],
    rename: Sequence[tuple[str, str]] = (),
    skip: Sequence[str] = (),
) -> dict[str, str]:
    """Maps target paths to the source paths they are initialised from.

    Args:
      source: path -> array or ShapeDtypeStruct of what is there, for example `checkpoint_read.contents(...)`'s.
      target: the same of what is to be initialised.
      rename: (regex, replacement) pairs for source paths. The first regex that matches a whole path rewrites it; replacements
        may refer to groups (`\\1`). A path no rule matches keeps its name.
      skip: regexes of whole paths. A target path that matches keeps its initial value; a source path that matches, before or
        after renaming, is left out.

    Returns:
      target path -> source path, for every target path not skipped.

    Raises:
      UserError: listing both sides, for source paths without a target, target paths without a source, pairs of another shape
        or kind of dtype (a float may become another float), two source paths for one target; and for a rule that is no regex
        or matches nothing.
    """
    rules = [(_compile(p, "rename"), p, to) for p, to in rename]
    skips = [(_compile(p, "skip"), p) for p in skip]
    used: set[str] = set()

    def skipped(path: str) -> bool:
        hits = [p for regex, p in skips if regex.fullmatch(path)]
        used.update(hits)
        return bool(hits)

    sources: dict[str, str] = {}  # renamed -> as it is there
    doubled = []
    for path in source:
        if skipped(path):
            continue
        name = _rename(path, rules, used)
        if skipped(name):
            continue
        if name in sources:
            doubled.append(f"{sources[name]} and {path} both become {name}")
        sources[name] = path
    wanted = [path for path in target if not skipped(path)]

    for key in (*(p for p, _ in rename), *skip):
        if key not in used:
            raise UserError(
                f"init_from: rule {key!r} matches nothing, or an earlier rule takes all it matches. "
                f"Source paths: {_list(source)}. Target paths: {_list(target)}"
            )
    pairs = {path: sources[path] for path in wanted if path in sources}
    problems = {
        "in the source only": [p if p == n else f"{p} (renamed {n})" for n, p in sources.items() if n not in pairs],
        "in the target only": [f"{p} {_kind(target[p])}" for p in wanted if p not in pairs],
        "of another shape or dtype": [
            f"{p} {_kind(target[p])} from {s} {_kind(source[s])}" for p, s in pairs.items() if not _fits(source[s], target[p])
        ],
        "named twice": doubled,
    }
    if any(problems.values()):
        listed = ". ".join(f"{len(items)} {what}: {_list(items)}" for what, items in problems.items() if items)
        raise UserError(f"init_from: source and target parameters do not match. {listed}. Add rules to init_from.rename or init_from.skip")
    return pairs


def _compile(pattern: str, what: str) -> re.Pattern:
    try:
        return re.compile(pattern)
    except re.error as e:
        raise UserError(f"init_from.{what}: {pattern!r} is no regular expression: {e}") from e


def _rename(path: str, rules: Sequence[tuple[re.Pattern, str, str]], used: set[str]) -> str:
    for regex, pattern, replacement in rules:
        if match := regex.fullmatch(path):
            used.add(pattern)
            try:
                return match.expand(replacement)
            except (re.error, IndexError) as e:
                raise UserError(f"init_from.rename: replacement {replacement!r} does not fit {pattern!r}: {e}") from e
    return path


def _fits(a: Any, b: Any) -> bool:
    kinds = (jnp.floating, jnp.integer, jnp.bool_)
    return tuple(a.shape) == tuple(b.shape) and all(jnp.issubdtype(a.dtype, k) == jnp.issubdtype(b.dtype, k) for k in kinds)


def _kind(x: Any) -> str:
    return f"{jnp.dtype(x.dtype).name}[{','.join(map(str, x.shape))}]"


def _list(items, n: int = 8) -> str:
    items = list(items)
    return (", ".join(items[:n]) + (f", and {len(items) - n} more" if len(items) > n else "")) or "none"
