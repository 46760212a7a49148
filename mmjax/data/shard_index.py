"""The index of a set of tar shards: where every sample's image, text and json lie, built once and then memory-mapped.

File: 16 bytes (magic, format), one record of `RECORD` a sample, a JSON footer, the footer's length (uint64) and the magic again. It is
written beside its name, shard by shard, and appears by one rename; a build that was stopped goes on with the shard it was at. The
footer names the shards with their sizes and time stamps, which is how an index that no longer fits its shards is noticed.
"""

import array
import collections
import concurrent.futures
import contextlib
import dataclasses
import fcntl
import hashlib
import json
import os
import re
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from mmjax.core.errors import UserError
from mmjax.data import files, tar
from mmjax.data.files import Stat

FORMAT = 1
MAGIC = b"mmjaxidx"
_HEAD = MAGIC + FORMAT.to_bytes(8, "little")
# Byte offsets and sizes within shard number `shard`; an offset of 0 means there is none (a tar starts with a header).
RECORD = np.dtype(
    [("shard", "<u4")] + [(name, kind) for part in ("image", "text", "meta") for name, kind in ((part, "<u8"), (f"{part}_size", "<u4"))]
)
# As WebDataset splits names: the key goes to the first dot of the last part, the rest is the kind.
_NAME = re.compile(r"((?:.*/)?[^./]+)\.([^/]+)", re.DOTALL)
IMAGES = ("jpg", "jpeg", "png", "webp", "gif", "bmp")
_SLOTS = {**dict.fromkeys(IMAGES, 0), "txt": 1, "json": 2}
_LARGEST = (1 << 32) - 1
REMOTE_WORKERS = 16


@dataclasses.dataclass(frozen=True)
class Index:
    """An opened index. `records` is a read-only memory map of `RECORD`."""

    path: str
    shards: tuple[tuple[str, int, str, int], ...]  # (name below the shards' common folder, bytes, stamp, samples)
    left_out: dict[str, int]  # why -> how many
    needs_caption: bool
    digest: str  # of names, sizes and records; not of time stamps, so that a copy of a set has it too
    records: np.ndarray

    @property
    def groups(self) -> tuple[int, ...]:
        return tuple(shard[3] for shard in self.shards)


def build_index(
    pattern: str | os.PathLike | Sequence[str],
    out: str | os.PathLike,
    *,
    captions: bool = True,
    workers: int | None = None,
    progress: bool = True,
) -> Index:
    """Indexes the tar shards that `pattern` stands for (see `files.expand`) into the file `out`; opens it if it is there and fits.

    A sample is an image (jpg, jpeg, png, webp, gif, bmp) with a txt or json of the same key in the same shard, in the order in which
    keys first appear; members need not stand together. Left out and counted: samples without an image, without either text
    (unless `captions` is False), and members whose key and kind were there before.

    Args:
      out: a local file; its folder is made if need be.
      workers: shards read at once; default 1 for local ones, 16 for objects.

    Raises:
      UserError: a shard that is missing, cut off or damaged (the message names it), or no samples at all.
    """
    paths, out = files.expand(pattern), os.path.expanduser(os.fspath(out))
    if files.is_remote(out):
        raise UserError(f"index '{out}': an index is memory-mapped and must be a local file; its shards may be anywhere")
    found = files.stats(paths)
    for path, stat in zip(paths, found, strict=True):
        if stat is None:
            raise UserError(f"shard '{path}' does not exist; download it, or take it out of the pattern")
    names = relative(paths)
    try:
        Path(out).parent.mkdir(parents=True, exist_ok=True)
        with _locked(f"{out}.lock"):
            if os.path.exists(out):
                with contextlib.suppress(UserError):
                    index = open_index(out)
                    check(index, paths)
                    if index.needs_caption == captions:
                        return index
            workers = workers or (REMOTE_WORKERS if any(map(files.is_remote, paths)) else 1)
            _build(list(zip(names, paths, found, strict=True)), out, captions, workers, progress)
    except OSError as e:
        raise UserError(f"index '{out}' cannot be built: {e}") from e
    return open_index(out)


def command(out: str) -> str:
    """The command that builds an index."""
    return f"mmjax data build-index SHARDS --out {out}"


def relative(paths: Sequence[str]) -> list[str]:
    """The paths below the folder that all of them share, so that an index fits a set that was moved."""
    folders = [files.parent(p).split("/") for p in paths]
    first, last = min(folders), max(folders)
    shared = next((i for i, (a, b) in enumerate(zip(first, last, strict=False)) if a != b), min(len(first), len(last)))
    return ["/".join([*folder[shared:], files.basename(path)]) for folder, path in zip(folders, paths, strict=True)]


@contextlib.contextmanager
def _locked(path: str) -> Iterator[None]:
    """Of processes that build one index at once, one does; the others wait and find it."""
    with open(path, "w") as f:
        fcntl.flock(f, fcntl.LOCK_EX)
        yield
        with contextlib.suppress(OSError):
            os.unlink(path)


def _build(shards: list[tuple[str, str, Stat]], out: str, captions: bool, workers: int, progress: bool) -> None:
    partial, log = f"{out}.partial", f"{out}.partial.jsonl"
    done = _resume(shards, partial, log, captions)
    with open(partial, "ab") as records, open(log, "a") as lines:
        if not records.tell():
            records.write(_HEAD)
            lines.write(json.dumps({"format": FORMAT, "captions": captions}) + "\n")
        todo = list(enumerate(shards))[len(done) :]
        with _bar(len(shards), len(done), sum(d["count"] for d in done), progress) as bar:
            for entry, rows in _scanned(todo, captions, workers):
                records.write(rows)
                records.flush()
                lines.write(json.dumps(entry) + "\n")
                lines.flush()
                done.append(entry)
                bar(entry["count"])
        if not sum(d["count"] for d in done):
            left = _total(done) or "no members"
            raise UserError(f"no sample with an image{' and a text' * captions} in {len(shards)} shards, first '{shards[0][1]}' ({left})")
        footer = json.dumps({"captions": captions, "left_out": _total(done), "digest": _digest(done), "shards": done}).encode()
        records.write(footer + len(footer).to_bytes(8, "little") + MAGIC)
        records.flush()
        os.fsync(records.fileno())
    os.replace(partial, out)
    os.unlink(log)


def _resume(shards: list[tuple[str, str, Stat]], partial: str, log: str, captions: bool) -> list[dict[str, Any]]:
    """What an earlier build finished and still stands, with the partial file cut back to it."""
    done, kept = [], len(_HEAD)
    try:
        with open(log) as lines, open(partial, "rb") as records:
            if json.loads(lines.readline()) != {"format": FORMAT, "captions": captions} or records.read(kept) != _HEAD:
                raise ValueError
            for line, (name, _, stat) in zip(lines, shards, strict=False):
                entry = json.loads(line)
                data = records.read(entry["count"] * RECORD.itemsize)
                if [entry["name"], entry["size"], entry["stamp"]] != [name, stat.size, stat.stamp] or entry["sha256"] != _sha(data):
                    break
                done.append(entry)
                kept += len(data)
    except (OSError, ValueError, KeyError, TypeError):
        pass
    if not done:
        for path in (partial, log):
            with contextlib.suppress(FileNotFoundError):
                os.unlink(path)
        return []
    os.truncate(partial, kept)
    with open(log, "w") as lines:
        lines.writelines(json.dumps(entry) + "\n" for entry in [{"format": FORMAT, "captions": captions}, *done])
    return done


def _scanned(todo: list[tuple[int, tuple[str, str, Stat]]], captions: bool, workers: int) -> Iterator[tuple[dict[str, Any], bytes]]:
    """(log entry, its records) of every shard in order, `workers` of them at once and as many waiting."""
    pool, pending, reader = concurrent.futures.ThreadPoolExecutor(workers), collections.deque(), files.Reader()
    try:
        for number, (name, path, stat) in todo:
            pending.append((number, name, stat, pool.submit(scan_shard, reader, path, stat.size, captions)))
            while len(pending) >= 2 * workers or (pending and number == todo[-1][0]):
                yield _entry(*pending.popleft())
    finally:
        pool.shutdown(wait=False, cancel_futures=True)


def _entry(number: int, name: str, stat: Stat, future: concurrent.futures.Future) -> tuple[dict[str, Any], bytes]:
    rows, left_out = future.result()
    rows["shard"] = number
    data = rows.tobytes()
    return {"name": name, "size": stat.size, "stamp": stat.stamp, "count": len(rows), "left_out": left_out, "sha256": _sha(data)}, data


def scan_shard(reader: files.Reader, path: str, size: int, captions: bool) -> tuple[np.ndarray, dict[str, int]]:
    """The samples of one shard as `RECORD` (`shard` left 0), and what was left out: why -> how many."""
    slots, rows, left_out = array.array("Q"), {}, collections.Counter()
    for member in tar.scan(lambda offset, n: reader(path, offset, n), size, path, files.is_remote(path)):
        parts = _NAME.fullmatch(member.name)
        slot = parts and _SLOTS.get(parts[2].lower())
        if slot is None:
            continue
        row = rows.setdefault(parts[1], len(rows))
        if row * 6 == len(slots):
            slots.extend((0,) * 6)
        at = row * 6 + 2 * slot
        if slots[at]:
            left_out["duplicate"] += 1
        elif member.size > _LARGEST:
            left_out["too_large"] += 1
        else:
            slots[at], slots[at + 1] = member.offset, member.size
    table = np.frombuffer(slots, np.uint64).reshape(-1, 6) if slots else np.zeros((0, 6), np.uint64)
    has_image, has_text = table[:, 0] > 0, (table[:, 2] > 0) | (table[:, 4] > 0)
    keep = has_image & (has_text | (not captions))
    left_out["no_image"] += int((~has_image).sum())
    left_out["no_caption"] += int((has_image & ~keep).sum())
    out = np.zeros(int(keep.sum()), RECORD)
    for column, field in enumerate(RECORD.names[1:]):
        out[field] = table[keep, column]
    return out, {why: n for why, n in left_out.items() if n}


def _sha(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def _total(done: list[dict[str, Any]]) -> dict[str, int]:
    total = collections.Counter()
    for entry in done:
        total.update(entry["left_out"])
    return dict(sorted(total.items()))


def _digest(done: list[dict[str, Any]]) -> str:
    return _sha(json.dumps([[d["name"], d["size"], d["count"], d["sha256"]] for d in done]).encode())


@contextlib.contextmanager
def _bar(total: int, initial: int, samples: int, enabled: bool) -> Iterator[Any]:
    terminal = sys.stderr.isatty()
    wait = 0.2 if terminal else 30
    with tqdm(total=total, initial=initial, desc="indexing", unit=" shards", disable=not enabled, mininterval=wait, delay=0.5) as bar:

        def done(count: int) -> None:
            nonlocal samples
            samples += count
            bar.set_postfix_str(f"{samples:,} samples", refresh=False)
            bar.update()

        yield done


def open_index(path: str | os.PathLike) -> Index:
    """Maps an index into memory; reads its footer only.

    Raises:
      UserError: it is missing, of another format, or damaged.
    """
    path = os.fspath(path)
    again = f"build it again: {command(path)}"
    try:
        with open(path, "rb") as f:
            head, size = f.read(len(_HEAD)), os.fstat(f.fileno()).st_size
            f.seek(max(size - 16, 0))
            tail = f.read(16)
            length = int.from_bytes(tail[:8], "little")
            f.seek(max(size - 16 - length, 0))
            footer = f.read(length) if 0 < length <= size - 32 else b""
    except OSError as e:
        raise UserError(f"index '{path}' cannot be read ({e.strerror or e}); {again}") from e
    if head[:8] != MAGIC:
        raise UserError(f"'{path}' is no index of shards; {again}")
    if head != _HEAD:
        raise UserError(f"index '{path}' has format {int.from_bytes(head[8:], 'little')}, this mmjax reads {FORMAT}; {again}")
    try:
        read = json.loads(footer)
        shards = tuple((s["name"], s["size"], s["stamp"], s["count"]) for s in read["shards"])
        count = sum(s[3] for s in shards)
        if tail[8:] != MAGIC or size != len(_HEAD) + count * RECORD.itemsize + length + 16:
            raise ValueError("its length is wrong")
        records = np.memmap(path, RECORD, "r", len(_HEAD), (count,))
        return Index(path, shards, read["left_out"], read["captions"], read["digest"], records)
    except (ValueError, KeyError, TypeError) as e:
        raise UserError(f"index '{path}' is damaged ({e}); {again}") from e


def check(index: Index, paths: Sequence[str]) -> None:
    """Whether the shards `paths` are those the index was built over.

    Raises:
      UserError: one is missing, was changed or cut off since, or is not in the index; with its name.
    """
    again = f"or build the index again: {command(index.path)}"
    by_name = dict(zip(relative(paths), paths, strict=True))
    known = [name for name, *_ in index.shards]
    if (fresh := [p for n, p in by_name.items() if n not in set(known)]) and len(by_name) > len(known):
        raise UserError(f"shard '{fresh[0]}' is not in index '{index.path}'; take it out of the pattern, {again}")
    missing = [n for n in known if n not in by_name]
    if missing:
        raise UserError(f"index '{index.path}' was built over shard '{missing[0]}', which data.path does not name; restore it, {again}")
    if known != list(by_name):
        raise UserError(f"index '{index.path}' has its shards in another order than data.path; write them in that order, {again}")
    for (_, size, stamp, _), path, now in zip(index.shards, paths, files.stats(paths), strict=True):
        if now is None:
            raise UserError(f"shard '{path}' is missing; index '{index.path}' was built over it: restore it, {again}")
        if now.size < size:
            raise UserError(f"shard '{path}' has {now.size} bytes, {size} when indexed (half-written?): restore it, {again}")
        if (now.size, now.stamp) != (size, stamp):
            raise UserError(f"index '{index.path}' is older than shard '{path}', which was changed since; {again[3:]}")
