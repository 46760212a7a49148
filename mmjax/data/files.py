"""Files by path or URL, through one small layer: list, stat, read, and random reads from many threads.

Local paths use the operating system directly; anything with a scheme (`gs://`, `s3://`, `memory://`, ...) goes through fsspec, which
is imported when it is first needed. Names found inside data are never used as paths without `inside`.
"""

import collections
import contextlib
import dataclasses
import glob
import itertools
import json
import os
import posixpath
import re
import threading
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from mmjax.core.errors import UserError, suggest

_OPEN_FILES = 256  # kept open at most, of one reader
_MOST_NAMES = 1_000_000  # that braces may stand for
_EXTRAS = {"gs": "gcsfs", "gcs": "gcsfs", "s3": "s3fs", "az": "adlfs", "abfs": "adlfs"}
_STAMPS = ("etag", "ETag", "md5Hash", "generation", "mtime", "LastModified", "last_modified", "updated", "created")


@dataclasses.dataclass(frozen=True)
class Stat:
    """What tells one version of a file from another. `stamp` is text: nanoseconds of a local file, a tag or time of an object."""

    size: int
    stamp: str


def is_remote(path: str) -> bool:
    return "://" in path


def filesystem(path: str) -> tuple[Any, str]:
    """(fsspec file system, path within it) of a URL. Raises UserError if its package is not installed or the scheme unknown."""
    import fsspec

    try:
        return fsspec.core.url_to_fs(path)
    except ImportError as e:
        package = _EXTRAS.get(path.split("://")[0], "the package fsspec names")
        raise UserError(f"'{path}' cannot be opened: {e}; pip install {package}") from e
    except ValueError as e:
        raise UserError(f"'{path}' cannot be opened: {e}") from e


def expand(pattern: str | os.PathLike | Sequence[str]) -> list[str]:
    """The files a pattern stands for, sorted within each glob: braces `{00000..00041}` and `{a,b}`, then `*`, `?` and `[...]`.

    A name without a glob is taken as it is, whether it exists or not (a missing one is found by `stats`), and so is one of a file that
    exists, whatever it is called.

    Raises:
      UserError: a glob that nothing matches.
    """
    given = [pattern] if isinstance(pattern, str | os.PathLike) else pattern
    out: list[str] = []
    for name in itertools.chain.from_iterable(_names(os.path.expanduser(os.fspath(p))) for p in given):
        out += _glob(name)
        if len(out) > _MOST_NAMES:
            raise UserError(f"pattern {pattern!r} stands for more than {_MOST_NAMES:,} files; is a brace range too long?")
    if not out:
        raise UserError("data.path names no file")
    return list(dict.fromkeys(out))


def _names(text: str) -> Iterator[str]:
    return iter([text]) if not is_remote(text) and os.path.exists(text) else _braces(text)


def _braces(text: str) -> Iterator[str]:
    found = re.search(r"\{([^{}]*)\}", text)
    if not found:
        yield text
        return
    body, parts = found[1], None
    if span := re.fullmatch(r"(\d+)\.\.(\d+)", body):
        first, last = int(span[1]), int(span[2])
        width = len(span[1]) if span[1].startswith("0") or len(span[1]) == len(span[2]) else 0
        if abs(last - first) >= _MOST_NAMES:
            raise UserError(f"pattern {text!r} stands for more than {_MOST_NAMES:,} files; is a brace range too long?")
        step = 1 if first <= last else -1
        parts = (str(i).zfill(width) for i in range(first, last + step, step))
    elif "," in body:
        parts = iter(body.split(","))
    if parts is None:
        raise UserError(f"pattern {text!r}: {{{body}}} is neither a range {{0..9}} nor a list {{a,b}}")
    for part in parts:
        yield from _braces(text[: found.start()] + part + text[found.end() :])


def _glob(pattern: str) -> list[str]:
    if not re.search(r"[*?\[]", pattern) or (not is_remote(pattern) and os.path.exists(pattern)):
        return [pattern]
    if is_remote(pattern):
        fs, inner = filesystem(pattern)
        with _store(pattern):
            fs.invalidate_cache()
            found = sorted(fs.unstrip_protocol(name) for name in fs.glob(inner))
    else:
        found = sorted(glob.glob(pattern, recursive=True))
    if not found:
        raise UserError(f"no file matches '{pattern}'; see data.path")
    return found


@contextlib.contextmanager
def _store(path: str) -> Iterator[None]:
    """Each kind of object store has errors of its own; most often it is a login that is missing."""
    try:
        yield
    except FileNotFoundError:
        raise
    except Exception as e:
        reason = f"{type(e).__name__}: {' '.join(str(e).split())[:200]}"
        raise UserError(f"'{path}' cannot be listed ({reason}); is this machine allowed to read it?") from e


def join(folder: str, name: str) -> str:
    return f"{folder.rstrip('/')}/{name}" if is_remote(folder) else os.path.join(folder, name)


def parent(path: str) -> str:
    return path.rsplit("/", 1)[0] if is_remote(path) else os.path.dirname(path) or "."


def basename(path: str) -> str:
    return path.rstrip("/").rsplit("/", 1)[-1]


def inside(root: str, name: str) -> str | None:
    """`root / name` for a name read from data, or None where it would lead out of `root`: absolute, a URL, or through `..`."""
    clean = posixpath.normpath(name.replace("\\", "/"))
    if is_remote(name) or clean.startswith(("/", "../")) or clean in ("..", ".") or re.match(r"[A-Za-z]:", clean) or "\0" in name:
        return None
    return join(root, clean)


def stats(paths: Sequence[str]) -> list[Stat | None]:
    """Of each file, or None where there is none. Objects are listed a folder at a time, which is one request a thousand."""
    if not any(is_remote(p) for p in paths):
        return [_local_stat(p) for p in paths]
    listings: dict[str, dict[str, Stat]] = {}
    out = []
    for path in paths:
        if not is_remote(path):
            out.append(_local_stat(path))
            continue
        folder = parent(path)
        if folder not in listings:
            fs, inner = filesystem(folder)
            try:
                with _store(folder):
                    fs.invalidate_cache()  # what changed since it was last listed is what is looked for
                    entries = fs.ls(inner, detail=True)
            except FileNotFoundError:
                entries = []
            files = (e for e in entries if e.get("type") != "directory")
            listings[folder] = {basename(e["name"]): Stat(int(e["size"]), _stamp(e)) for e in files}
        out.append(listings[folder].get(basename(path)))
    return out


def _stamp(entry: dict[str, Any]) -> str:
    return next((f"{key}={entry[key]}" for key in _STAMPS if entry.get(key)), "")


def _local_stat(path: str) -> Stat | None:
    try:
        found = os.stat(path)
    except OSError:
        return None
    return Stat(found.st_size, str(found.st_mtime_ns))


def stat(path: str, what: str = "file") -> Stat:
    """Raises UserError, with names that are there, if there is no such file."""
    found = stats([path])[0]
    if found is None or (not is_remote(path) and os.path.isdir(path)):
        near = [] if is_remote(path) or not os.path.isdir(parent(path)) else os.listdir(parent(path))[:1000]
        hint = suggest(basename(path), near) if 0 < len(near) < 12 else ""
        raise UserError(f"{what} '{path}' does not exist{' (it is a folder)' if found else ''}{hint}")
    return found


def listdir(folder: str) -> list[tuple[str, bool]]:
    """(name, whether it is a folder) of what lies in a folder, sorted by name. Raises FileNotFoundError."""
    if is_remote(folder):
        fs, inner = filesystem(folder)
        entries = [(basename(e["name"]), e["type"] == "directory") for e in fs.ls(inner, detail=True)]
    else:
        with os.scandir(folder) as found:
            entries = [(e.name, e.is_dir()) for e in found]
    return sorted(entries)


def is_dir(path: str) -> bool:
    if not is_remote(path):
        return os.path.isdir(path)
    fs, inner = filesystem(path)
    return bool(fs.isdir(inner))


def read(path: str) -> bytes:
    """A whole file. Raises FileNotFoundError or another OSError."""
    if not is_remote(path):
        return Path(path).read_bytes()
    return _fetch(*filesystem(path))


def _fetch(fs: Any, inner: str, start: int | None = None, end: int | None = None) -> bytes:
    try:
        return fs.cat_file(inner, start=start, end=end)
    except OSError:
        raise
    except Exception as e:  # stores have errors of their own
        raise OSError(f"{type(e).__name__}: {' '.join(str(e).split())[:200]}") from e


class _Open:
    """A file descriptor that closes when nobody holds it any more: a reader that drops one cannot break another thread's read."""

    def __init__(self, path: str):
        self.fd = os.open(path, os.O_RDONLY | getattr(os, "O_CLOEXEC", 0))

    def __del__(self):
        if hasattr(self, "fd"):
            os.close(self.fd)


class Reader:
    """Random reads from many files, safe from several threads. A copy in another process starts with nothing open."""

    def __init__(self):
        self._lock, self._files = threading.Lock(), collections.OrderedDict()

    def __reduce__(self):
        return Reader, ()

    def __call__(self, path: str, offset: int, size: int) -> bytes:
        """Up to `size` bytes from `offset`: fewer where the file ends.

        Raises:
          OSError: the file is not there or cannot be read.
        """
        if size == 0:
            return b""
        if is_remote(path):
            return _fetch(*self._file(path, filesystem), offset, offset + size)
        held = self._file(path, _Open)
        data = os.pread(held.fd, size, offset)
        while len(data) < size and (more := os.pread(held.fd, size - len(data), offset + len(data))):
            data += more  # one call reads 2 GiB at most
        return data

    def _file(self, path: str, opener: Any) -> Any:
        with self._lock:
            held = self._files.get(path)
            if held is not None:
                self._files.move_to_end(path)
                return held
        held = opener(path)
        with self._lock:
            self._files[path] = held
            if len(self._files) > _OPEN_FILES:
                self._files.popitem(last=False)
        return held


def write_json(path: Path, body: Mapping[str, Any]) -> None:
    """Writes a local file in one move: what stands under the name is whole, the old or the new."""
    temporary = path.with_suffix(f"{path.suffix}.tmp{os.getpid()}")
    with open(temporary, "w", encoding="utf-8") as f:
        json.dump(body, f, indent=1)
        f.write("\n")
        f.flush()
        os.fsync(f.fileno())
    os.replace(temporary, path)
