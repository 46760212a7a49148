"""From config group `data` to a stream of positions: source, transform and order. One source, a mixture of several, or one stream
for every part of a nested batch."""

import dataclasses
import zlib
from collections.abc import Mapping

import numpy as np
from ml_collections import ConfigDict

from mmjax.core.config import Group
from mmjax.core.errors import UserError, suggest
from mmjax.data import transforms
from mmjax.data.loader import OrderLike
from mmjax.data.mixture import ByComponent, Concat, MixtureOrder, shares
from mmjax.data.order import Order
from mmjax.data.provenance import Remembered, remembered
from mmjax.data.source import Source, open_source, open_tokenizer, rooted
from mmjax.data.text_lengths import open_grouped, open_packed
from mmjax.data.transforms import Transform

_OF_THE_RUN = ("mixture", "streams", "workers", "threads", "prefetch", "max_bad")  # keys that no single source has


@dataclasses.dataclass(frozen=True)
class Stream:
    """What `loader.batches` reads, and the sets it is made of."""

    source: Source
    transform: Transform
    order: OrderLike
    seed: int
    sets: tuple[Remembered, ...] = ()


def open_streams(data: ConfigDict, seed: int) -> dict[str, Stream]:
    """name -> stream of `data.streams`; {"": the one stream} where there are none.

    A stream's group holds the keys of `data` that differ from it, and may be a mixture. Streams draw independently.

    Raises:
      UserError: a key that a stream does not take, or what opening a source raises.
    """
    if not len(data.streams):
        return {"": open_stream(data, seed)}
    streams = {}
    for name, keys in data.streams.items():
        group = overlaid(data, keys, f"data.streams.{name}", ("mixture",))
        streams[name] = open_stream(group, derived(seed, zlib.crc32(name.encode())), f"data.streams.{name}")
    return streams


def open_stream(data: ConfigDict, seed: int, where: str = "data") -> Stream:
    """One source in its order, or the mixture `data.mixture` = ((weight, {keys of data that differ}), ...).

    Raises:
      UserError: a component that is none, a key it does not take, or what opening a source raises.
    """
    if not data.mixture:
        return _single(data, seed, where)
    parts, weights = [], []
    for i, component in enumerate(data.mixture):
        place = f"{where}.mixture[{i}]"
        if not isinstance(component, tuple | list) or len(component) != 2 or not isinstance(component[1], Mapping | ConfigDict):
            raise UserError(f"{place}: expected (weight, {{keys of data}}), got {component!r}")
        weights.append(component[0])
        group = overlaid(data, component[1], place)
        if group.length_groups:
            raise UserError(f"{place}: data.length_groups is for one source; in a mixture no batch is one group")
        parts.append(open_stream(group, derived(seed, i), place))
    order, transform = MixtureOrder(shares(weights), tuple(part.order for part in parts)), ByComponent(tuple(p.transform for p in parts))
    return Stream(Concat([part.source for part in parts]), transform, order, seed, tuple(s for part in parts for s in part.sets))


def _single(data: ConfigDict, seed: int, where: str) -> Stream:
    """One source in its order: its own, or that of its packs or length groups."""
    source = open_source(data, data.split)
    tokenizer = open_tokenizer(source, data.tokenizer)
    if data.packing and data.length_groups:
        raise UserError(f"{where}: data.packing and data.length_groups are two ways to the same end; set one of them")
    block = 1
    if data.packing:
        # Of texts alone an index says which tokens a row holds; rows with pictures are made of whole records.
        source = open_packed(data, source, tokenizer, together=any(spec[0] == "interleave" for spec in data.transforms))
    elif data.length_groups:
        source = open_grouped(data, source, tokenizer)
        block = source.size
    limits = {key: data[key] for key in ("max_aspect", "min_side")}
    transform = transforms.build(data.transforms, tokenizer, f"{where}.transforms", limits)
    order = Order(len(source), seed, source.info.groups, data.window, block=block)
    return Stream(source, transform, order, seed, (remembered(source, where, data.path and rooted(data, data.path)),))


def overlaid(data: ConfigDict, keys: Group, where: str, also: tuple[str, ...] = ()) -> ConfigDict:
    """`data` with a component's own keys over it.

    Raises:
      UserError: a key that is none of `data`'s, belongs to the run as a whole, or has a value of another type.
    """
    group = data.copy_and_resolve_references()
    group.unlock()
    group.mixture, group.streams = (), ConfigDict()
    takes = sorted(set(group) - set(_OF_THE_RUN) | set(also))
    for key, value in keys.items():
        if key not in takes:
            raise UserError(f"{where} has unknown key {key!r}{suggest(key, takes)}")
        try:
            group[key] = value
        except TypeError as e:
            raise UserError(f"{where}.{key}: {e}") from e
    group.lock()
    return group


def derived(seed: int, purpose: int) -> int:
    """An independent seed below 2**64 for one part of a run's data."""
    return int(np.random.SeedSequence([seed, purpose]).generate_state(1, np.uint64)[0])
