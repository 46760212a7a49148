"""Packing and length grouping, computed once at preparation and stored as an index that is opened by memory map.

A pack is several sequences in one row of fixed length; a length group is several records of about the same length that stay
together in a batch. Both are lists of record numbers: group g is `members[offsets[g]:offsets[g + 1]]`.
"""

import bisect
import dataclasses
import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Int, Int64

from mmjax.core.errors import UserError
from mmjax.data.bad import place
from mmjax.data.provenance import fingerprint
from mmjax.data.source import Info, Source

FORMAT = 1
KINDS = ("packs", "length_groups")


@dataclasses.dataclass(frozen=True)
class Index:
    """Groups of record numbers.

    Attributes:
      kind: "packs" or "length_groups".
      size: tokens a pack holds, or records a group holds.
      count: records of the source it was made for.
      members: int64[M], record numbers, group by group.
      offsets: int64[G + 1].
      about: what else to know: how full packs are, how many sequences are cut, how they were measured.
      digest: hex digits of members and offsets.
    """

    kind: str
    size: int
    count: int
    members: np.ndarray
    offsets: np.ndarray
    about: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    digest: str = ""

    def __len__(self) -> int:
        return len(self.offsets) - 1

    def __getitem__(self, g: int) -> Int64[np.ndarray, "m"]:
        return np.asarray(self.members[self.offsets[g] : self.offsets[g + 1]])

    def __reduce__(self):
        arrays = (self.members, self.offsets)
        if all(isinstance(a, np.memmap) for a in arrays):  # a worker process opens the files itself
            arrays = tuple(Path(a.filename) for a in arrays)
        return _rebuild, (self.kind, self.size, self.count, *arrays, self.about, self.digest)


def _rebuild(kind: str, size: int, count: int, members: Any, offsets: Any, about: Mapping[str, Any], digest: str) -> Index:
    arrays = [np.load(a, mmap_mode="r", allow_pickle=False) if isinstance(a, Path) else a for a in (members, offsets)]
    return Index(kind, size, count, *arrays, about, digest)


def pack(lengths: Int[np.ndarray, "N"], capacity: int, window: int = 8192) -> Index:
    """Sequences of these lengths into packs of at most `capacity` tokens.

    Best fit decreasing in a bounded window: of each `window` consecutive sequences the longest goes first, into the fullest pack
    that still takes it (the oldest among equals), else into a new one; within 11/9 of the fewest packs (D. Johnson 1973). The
    members of a pack are in the order of the source, packs in the order of their first member; so the result depends on the
    arguments alone. Sequences longer than `capacity` count as `capacity` (they are cut when read), empty ones are left out; `about`
    says how many of both and how full the packs are.

    Raises:
      UserError: a capacity or window below 1, or no sequence with anything in it.
    """
    if capacity < 1 or window < 1:
        raise UserError(f"packing: capacity and window are at least 1, got {capacity} and {window}")
    groups: list[list[int]] = []
    for begin in range(0, len(lengths), window):
        sizes = np.minimum(np.asarray(lengths[begin : begin + window], np.int64), capacity)
        groups += [[begin + i for i in g] for g in _pack_window(sizes.tolist(), capacity)]
    if not groups:
        raise UserError(f"packing: none of the {len(lengths)} sequences holds a token")
    used = int(np.minimum(lengths, capacity).sum())
    about = {
        "cut": int((np.asarray(lengths) > capacity).sum()),
        "empty": int((np.asarray(lengths) == 0).sum()),
        "filled": round(used / (len(groups) * capacity), 6),
        "window": window,
    }
    return _index("packs", capacity, len(lengths), groups, about)


def _pack_window(sizes: list[int], capacity: int) -> list[list[int]]:
    packs: list[list[int]] = []
    room: list[tuple[int, int]] = []  # (tokens free, pack), ascending: the first that fits is the fullest
    for i in sorted((i for i, size in enumerate(sizes) if size), key=lambda i: (-sizes[i], i)):
        at = bisect.bisect_left(room, (sizes[i], -1))
        if at == len(room):
            free, p = capacity, len(packs)
            packs.append([])
        else:
            free, p = room.pop(at)
        packs[p].append(i)
        if free > sizes[i]:
            bisect.insort(room, (free - sizes[i], p))
    return sorted(sorted(p) for p in packs)


def group_by_length(lengths: Int[np.ndarray, "N"], size: int, window: int = 65536) -> Index:
    """Groups of exactly `size` records of neighbouring length, every record in at least one.

    Of each `window` consecutive records (rounded down to a multiple of `size`) the records are sorted by length, the source's order
    among equals, and cut into groups. The very last group is filled up with its own members from the front, at most size - 1 of
    them; `about` says how many. Use it with `Order(..., block=size)` and that batch size: then a batch is one group.

    Raises:
      UserError: a size below 1, a window below it, or no record.
    """
    if size < 1 or window < size or not len(lengths):
        raise UserError(
            f"length groups: need a size of at least 1, a window not below it and a record, got {size}, {window}, {len(lengths)}"
        )
    window -= window % size
    groups: list[list[int]] = []
    for begin in range(0, len(lengths), window):
        by_length = (begin + np.argsort(lengths[begin : begin + window], kind="stable")).tolist()
        groups += [by_length[i : i + size] for i in range(0, len(by_length), size)]
    short = size - len(groups[-1])
    groups[-1] = (groups[-1] * size)[:size]
    return _index("length_groups", size, len(lengths), groups, {"repeated": short, "window": window})


def _index(kind: str, size: int, count: int, groups: Sequence[Sequence[int]], about: Mapping[str, Any]) -> Index:
    offsets = np.cumsum([0, *(len(g) for g in groups)], dtype=np.int64)
    members = np.array([i for g in groups for i in g], np.int64)
    digest = hashlib.sha256(members.tobytes() + offsets.tobytes()).hexdigest()[:16]
    return Index(kind, size, count, members, offsets, about, digest)


def save(index: Index, folder: str | os.PathLike, source: Source) -> None:
    """Writes `folder` (index.json, members.npy, offsets.npy) in one rename; an index of that name is replaced.

    Raises:
      UserError: it cannot be written, or something else stands there.
    """
    folder = Path(folder)
    header = {"format": FORMAT, "kind": index.kind, "size": index.size, "count": index.count, "groups": len(index)}
    header |= {**_identity(source), "source": source.info.name, "about": dict(index.about), "digest": index.digest}
    check_out(folder)
    temporary = None
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        temporary = Path(tempfile.mkdtemp(prefix=f".{folder.name}-", dir=folder.parent))
        np.save(temporary / "members.npy", index.members)
        np.save(temporary / "offsets.npy", index.offsets)
        (temporary / "index.json").write_text(json.dumps(header, indent=1, sort_keys=True) + "\n")
        for path in temporary.iterdir():
            with open(path, "rb") as f:
                os.fsync(f.fileno())
        if folder.is_dir():
            shutil.rmtree(folder)
        os.rename(temporary, folder)
    except OSError as e:
        raise UserError(f"cannot write the index {str(folder)!r}: {e}") from e
    finally:
        if temporary is not None:
            shutil.rmtree(temporary, ignore_errors=True)


def check_out(folder: str | os.PathLike) -> None:
    """Raises `UserError` if something that is no index stands where one is to be written; good to know beforehand."""
    folder = Path(folder)
    if folder.exists() and not (folder / "index.json").is_file():
        raise UserError(f"'{folder}' is no index and is not overwritten; choose another --out")


def load(folder: str | os.PathLike, source: Source, kind: str) -> Index:
    """Opens what `save` wrote; the arrays stay on disk until they are touched.

    Raises:
      UserError: no index, a damaged one, one of another kind, or one made for another source or another state of it.
    """
    folder = Path(folder)
    try:
        header = json.loads((folder / "index.json").read_text())
        members, offsets = (np.load(folder / f"{name}.npy", mmap_mode="r", allow_pickle=False) for name in ("members", "offsets"))
        if header["format"] > FORMAT:
            raise UserError(f"index {str(folder)!r} has format {header['format']}, this is mmjax with format {FORMAT}: upgrade")
        index = Index(header["kind"], header["size"], header["count"], members, offsets, header["about"], header["digest"])
        whole = len(index) == header["groups"] and index.offsets[-1] == len(members) and header["kind"] in KINDS
        made_for = {key: header[key] for key in _identity(source)}
    except FileNotFoundError:
        raise UserError(f"there is no index {str(folder)!r}; build it first: {_command(folder, kind)}") from None
    except (OSError, ValueError, KeyError, TypeError, EOFError) as e:
        raise UserError(f"index {str(folder)!r} is damaged ({type(e).__name__}: {e}); delete it and build it again") from None
    if not whole:
        raise UserError(f"index {str(folder)!r} is damaged (its arrays do not fit its header); delete it and build it again")
    if index.kind != kind:
        raise UserError(f"index {str(folder)!r} holds {index.kind}, expected {kind}: {_command(folder, kind)}")
    if made_for != _identity(source) or index.count != len(source):
        then, now = ({**made_for, "records": index.count}, {**_identity(source), "records": len(source)})
        raise UserError(f"index {str(folder)!r} was built for another set, {then}; this is {now}; build it again: {_command(folder, kind)}")
    return index


def _command(folder: Path, kind: str) -> str:
    return f"mmjax data pack --form {kind} --out {folder}"


def _identity(source: Source) -> dict[str, str]:
    """What an index is held against; a set that was moved has the same."""
    return {"split": source.info.split, "fingerprint": fingerprint(source)}


def _digest(source: Source, index: Index) -> str:
    """The fingerprint of packs or groups of a source."""
    return hashlib.sha256(f"{fingerprint(source)} {index.digest} {index.size}".encode()).hexdigest()[:16]


class Packed:
    """Packs as records: `tokens`, `segments` and `positions`, each int32[size].

    Sequence s of a pack (from 1) has `segments` s and `positions` 0, 1, ...; what is left over is `pad`, segment 0, position 0.
    Attention stays within a segment, and a loss leaves out segment 0.
    """

    def __init__(self, source: Source, index: Index, tokens: Callable[[Mapping[str, Any]], Sequence[int] | np.ndarray], pad: int = 0):
        """`tokens` gives a record's sequence; it is what the lengths were measured with."""
        self._source, self._index, self._tokens, self._pad = source, index, tokens, pad
        features = {key: f"int32[{index.size}]" for key in ("tokens", "segments", "positions")}
        self.info = dataclasses.replace(source.info, features=features, groups=(), fingerprint=_digest(source, index))

    def __len__(self) -> int:
        return len(self._index)

    def __getitem__(self, g: int) -> dict[str, Int[np.ndarray, "L"]]:
        out = {key: np.zeros(self._index.size, np.int32) for key in ("tokens", "segments", "positions")}
        out["tokens"][:] = self._pad
        at = 0
        for s, record in enumerate(self._index[g].tolist(), 1):
            sequence = np.asarray(self._tokens(self._source[record]), np.int32)[: self._index.size]
            if at + len(sequence) > self._index.size:
                raise UserError(f"{self.describe(g)}: sequences are longer than when the index was built; build it again")
            here = slice(at, at + len(sequence))
            out["tokens"][here], out["segments"][here], out["positions"][here] = sequence, s, np.arange(len(sequence))
            at += len(sequence)
        return out

    def describe(self, g: int) -> str:
        """A pack in words, for messages."""
        return _described(self.info, g, self._index)


def _described(info: Info, g: int, index: Index) -> str:
    members = index[g].tolist()
    more = f" and {len(members) - 8} more" if len(members) > 8 else ""
    return f"source {info.name!r} ({info.split}), pack {g} of records {', '.join(map(str, members[:8]))}{more}"


class Together:
    """Packs with their records as they are, `records`, for a transform that makes one row of them (interleave)."""

    def __init__(self, source: Source, index: Index):
        self._source, self._index = source, index
        features = {"records": "tuple of records"}
        self.info = dataclasses.replace(source.info, features=features, groups=(), fingerprint=_digest(source, index))

    def __len__(self) -> int:
        return len(self._index)

    def __getitem__(self, g: int) -> dict[str, Any]:
        return {"records": tuple(self._source[record] for record in self._index[g].tolist())}

    def describe(self, g: int) -> str:
        """A pack in words, for messages."""
        return _described(self.info, g, self._index)


class Grouped:
    """A source in the order of its length groups: record i is member i % size of group i // size."""

    def __init__(self, source: Source, index: Index):
        self._source, self._index, self.size = source, index, index.size
        self.info = dataclasses.replace(source.info, groups=(), fingerprint=_digest(source, index))

    def __len__(self) -> int:
        return len(self._index.members)

    def __getitem__(self, i: int) -> Mapping[str, Any]:
        return self._source[int(self._index.members[i])]

    def describe(self, i: int) -> str:
        """A record in words, for messages."""
        return place(self._source, int(self._index.members[i]))
