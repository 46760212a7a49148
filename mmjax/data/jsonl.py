"""`jsonl`: one JSON object a line, `{"image": "a/0001.jpg", "caption": "..."}`, or `"captions": [...]`, or `"label": 3`.

Config (group `data`):
  path: the files: braces and globs, local or objects; relative to `dir` if that is set.
  images: the folder image paths are relative to; unset, that of the file they stand in.
  absolute: allow image paths that are absolute or URLs; otherwise a path that leads out of the folder makes a bad sample.
  features: key of a record -> field of the line, with "/" into nested ones. Unset: what the first line has of image, caption(s), label.
  classes, prompts: as for `tfds`.

A record: `image` encoded bytes, `captions` a tuple of text, `label` int32, other features as the line has them.
"""

import dataclasses
import functools
import hashlib
import json
import os
import zlib
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from mmjax.core.errors import UserError
from mmjax.data import files
from mmjax.data.bad import BadSample
from mmjax.data.source import NOTHING, Info, described, features_of, field, fields_of, label_of, option, rooted, texts_of, within

_CHUNK = 16 << 20
_LONGEST_LINE = 64 << 20


@dataclasses.dataclass(frozen=True)
class Lines:
    """Random access to the lines of files; blank ones do not count. `starts` holds, a file, where lines begin; `numbers` their numbers."""

    paths: tuple[str, ...]
    starts: tuple[np.ndarray, ...]  # int64[n], file by file
    ends: tuple[np.ndarray, ...]
    numbers: tuple[np.ndarray, ...]  # from 1; empty where line i is number i + 1
    digest: str  # of names, sizes and content
    read: files.Reader = dataclasses.field(default_factory=files.Reader)

    @functools.cached_property
    def firsts(self) -> np.ndarray:
        return np.cumsum([0, *(len(s) for s in self.starts)])

    def __len__(self) -> int:
        return int(self.firsts[-1])

    def place(self, i: int) -> tuple[str, int, int, int]:
        """(file, first byte, bytes, line number from 1) of line `i`."""
        f = int(np.searchsorted(self.firsts, i, "right")) - 1
        j = i - int(self.firsts[f])
        start, end = int(self.starts[f][j]), int(self.ends[f][j])
        return self.paths[f], start, end - start, int(self.numbers[f][j]) if len(self.numbers[f]) else j + 1

    def describe(self, i: int) -> str:
        path, _, _, number = self.place(i)
        return f"'{path}', line {number}"

    def first(self) -> dict[str, Any]:
        """Line 0. Raises UserError if it is no object: then most likely none is."""
        try:
            return self[0]
        except BadSample as e:
            raise UserError(f"{e.detail}; expected one JSON object a line") from e

    def __getitem__(self, i: int) -> dict[str, Any]:
        """The object on line `i`. Raises BadSample, with file and line, if it is none; UserError if the file is shorter than it was."""
        path, start, size, number = self.place(i)
        try:
            data = self.read(path, start, size)
        except OSError as e:
            raise UserError(f"'{path}' cannot be read: {e}") from e
        if len(data) < size:
            raise UserError(f"'{path}' is shorter than when it was opened; restore it and continue the run")
        try:
            value = json.loads(data)
        except (ValueError, RecursionError) as e:
            raise BadSample("other", f"'{path}', line {number} is no JSON ({e}): {data[:60]!r}") from e
        if not isinstance(value, dict):
            raise BadSample("other", f"'{path}', line {number} is no object {{...}}: {data[:60]!r}")
        return value


def open_lines(paths: list[str]) -> Lines:
    """Finds the lines of files in one pass each; 8 to 24 bytes of memory a line.

    Raises:
      UserError: a file that is missing, has no lines, or is not text in lines.
    """
    starts, ends, numbers, marks = [], [], [], []
    for path in paths:
        size = files.stat(path).size
        breaks, returns, crc, reader = [], [np.zeros(0, np.int64)], 0, files.Reader()
        for offset in range(0, size, _CHUNK):
            chunk = reader(path, offset, min(_CHUNK, size - offset))
            crc = zlib.crc32(chunk, crc)
            breaks.append(np.flatnonzero(np.frombuffer(chunk, np.uint8) == 10) + offset)
            if b"\r" in chunk:
                returns.append(np.flatnonzero(np.frombuffer(chunk, np.uint8) == 13) + offset)
        after = np.concatenate([*breaks, np.array([size])]).astype(np.int64)
        before = np.concatenate([np.zeros(1, np.int64), after[:-1] + 1])
        length = after - before
        full = (length > 1) | ((length == 1) & ~np.isin(before, np.concatenate(returns)))
        if length.max() > _LONGEST_LINE:
            raise UserError(f"'{path}' has a line of over {_LONGEST_LINE >> 20} MiB; is it one JSON object a line?")
        starts.append(before[full])
        ends.append(after[full])
        kept = np.flatnonzero(full) + 1
        numbers.append(kept if len(kept) and kept[-1] != len(kept) else np.zeros(0, np.int64))
        marks.append([files.basename(path), size, crc])
    lines = Lines(tuple(paths), tuple(starts), tuple(ends), tuple(numbers), hashlib.sha256(json.dumps(marks).encode()).hexdigest())
    if not len(lines):
        raise UserError(f"'{paths[0]}' {'and the others have' if len(paths) > 1 else 'has'} no lines")
    return lines


def open_jsonl(config: Any, split: str) -> "Jsonl":
    """See the module's docstring.

    Raises:
      UserError: no such file, a first line that is no JSON object, or a feature that names nothing in it.
    """
    if not option(config, "path"):
        raise UserError("data.source=jsonl needs data.path, the file: data.path=/sets/mine/train.jsonl")
    lines = open_lines(files.expand(rooted(config, config.path)))
    first = lines.first()
    default = {key: name for key, names in _USUAL.items() for name in [next((n for n in names if n in first), None)] if name}
    features = features_of(config, default)
    if not features:
        raise UserError(f"{lines.describe(0)} has none of image, caption, captions and label but {', '.join(first)}; set data.features")
    fields_of(first, features, lines.describe(0))
    images = option(config, "images")
    classes, prompts = (), tuple(option(config, "prompts", ()))
    if option(config, "classes"):
        from mmjax.data.tfds_sets import read_classes

        classes = read_classes(config.classes)
        prompts = prompts or ("a photo of a {}.",)
    root = rooted(config, images) if images else None
    return Jsonl(lines, split, features, root, bool(option(config, "absolute", False)), classes, prompts)


_USUAL = {"image": ("image",), "captions": ("captions", "caption"), "label": ("label",)}


class Jsonl:
    """A `Source` over lines and the image files they name."""

    def __init__(
        self,
        lines: Lines,
        split: str,
        features: Mapping[str, str],
        root: str | None,
        absolute: bool,
        classes: tuple[str, ...] = (),
        prompts: tuple[str, ...] = (),
    ):
        """Args: root: of relative image paths; None is the folder of the file they stand in."""
        self._lines, self._features, self._root, self._absolute = lines, dict(features), root, absolute
        name = files.basename(lines.paths[0]).removesuffix(".jsonl")
        fingerprint = hashlib.sha256(f"{lines.digest} {sorted(features.items())}".encode()).hexdigest()[:16]
        described = {key: f"field {path!r}" for key, path in features.items()}
        self.info = Info(name, split, classes, prompts, None, described, fingerprint=fingerprint)

    def __reduce__(self):
        info = self.info
        return Jsonl, (self._lines, info.split, self._features, self._root, self._absolute, info.classes, info.prompts)

    def __len__(self) -> int:
        return len(self._lines)

    def describe(self, i: int) -> str:
        return described(self.info, i, self._lines.describe(i))

    def __getitem__(self, i: int) -> dict[str, Any]:
        """Raises: BadSample: a line that is no JSON object, or a field or an image that is missing or not allowed."""
        within(self, i)
        return dict(self._items(self._lines[i], i))

    def _items(self, line: Mapping[str, Any], i: int) -> Iterator[tuple[str, Any]]:
        for key, path in self._features.items():
            value = field(line, path)
            if key == "captions":
                yield key, texts_of(value)
            elif value is NOTHING or value is None:
                raise BadSample("missing", f"the line has no {path!r}")
            elif key == "image":
                yield key, read_image(value, self._root or files.parent(self._lines.place(i)[0]), self._absolute)
            elif key == "label":
                yield key, label_of(value, len(self.info.classes))
            else:
                yield key, value


def read_image(name: Any, root: str, absolute: bool) -> bytes:
    """The file a line names. Raises BadSample if the name leads out of `root` (unless `absolute`) or there is no such file."""
    if not isinstance(name, str) or not name:
        raise BadSample("other", f"the image is named by {name!r}, expected a path")
    path = files.inside(root, name)
    if path is None and absolute and (files.is_remote(name) or os.path.isabs(name)):
        path = name
    if path is None:
        raise BadSample("other", f"image path {name!r} leads out of '{root}'; data.absolute=true allows absolute paths and URLs")
    try:
        return files.read(path)
    except FileNotFoundError:
        raise BadSample("missing", f"there is no file '{path}'") from None
    except OSError as e:
        raise BadSample("other", f"'{path}' cannot be read: {e}") from e
