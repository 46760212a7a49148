"""A teacher's pairs for reflow: what `mmjax cache --predict pairs` does otherwise than for functions of examples alone."""

import argparse
import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from mmjax.core import rng
from mmjax.core.errors import UserError
from mmjax.core.types import Array, Params
from mmjax.data import bad
from mmjax.data.source import Info, Source

NAME = "pairs"  # of core.types.PREDICT


def check(asked: Mapping[str, str], args: argparse.Namespace) -> bool:
    """Whether pairs are asked for.

    Args:
      asked: key of a record -> predict function.

    Raises:
      UserError: pairs beside another function, or a flag of one kind of function given to the other.
    """
    if NAME not in asked.values():
        for flag in ("seed", "draws"):
            if getattr(args, flag) is not None:
                raise UserError(f"--{flag} goes with --predict {NAME}: {args.predict} draws nothing; leave it out")
        return False
    if args.predict != NAME:
        raise UserError(f"--predict {args.predict!r}: {NAME} names the keys of its records itself, and stands alone")
    for flag in ("input", "captions"):
        if getattr(args, flag):
            raise UserError(f"--{flag}: {NAME} takes what the model is shown, as training made it; choose with --transforms and --draws")
    if args.draws is not None and args.draws < 1:
        raise UserError(f"--draws is {args.draws}, expected at least 1")
    return True


def seeded(pairs: Callable, conditions: Sequence[str], seed: int, place: str) -> Callable[[Params, Mapping[str, Array]], dict[str, Array]]:
    """`pairs` of a batch that has its records' places in the set under the key `place`; noise follows from seed and place alone.

    The draws of `mmjax sample` are others, whatever its seed, so that a student is not judged by the noise it was trained on.
    """
    key = rng.named(rng.wrap(rng.root(seed)), NAME)
    return lambda params, x: pairs(params, {name: x[name] for name in conditions}, rng.per_example(key, x[place]))


@dataclasses.dataclass(frozen=True)
class Repeated:
    """A source gone through several times: record i is the source's record i modulo its length."""

    source: Source
    times: int

    @property
    def info(self) -> Info:
        return self.source.info

    def __len__(self) -> int:
        return self.times * len(self.source)

    def __getitem__(self, i: int) -> Mapping[str, Any]:
        return self.source[i % len(self.source)]

    def describe(self, i: int) -> str:
        """The record in words."""
        return bad.place(self.source, i % len(self.source))
