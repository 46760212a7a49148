"""`documents`: text with pictures in it, as MMC4 and OBELICS lay it down, in one form.

Config (group `data`):
  path: jsonl files of documents: braces and globs, local or objects; relative to `dir` if that is set. Of either form, a line:
    MMC4 (W. Zhu et al. 2023): `text_list`, and `image_info` of {image_name or raw_url, matched_text_index};
    OBELICS (H. Laurencon et al. 2023): `texts` and `images`, equally long, one of the two None at each place.
  images: where the pictures lie: a folder that names are relative to (unset, that of the jsonl), or tar shards (a pattern ending in .tar)
    whose members are looked up by name, or by the "url" of the json beside them, as img2dataset writes it.

A record: `texts` a tuple of text, `images` a tuple of encoded bytes, `positions` int32[images] ascending, `missing` int32: how many
pictures the document names that are not there. Picture j stands before texts[positions[j]], or after all text where that is len(texts).
"""

import contextlib
import hashlib
import json
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from mmjax.core.errors import UserError
from mmjax.data import files, tar
from mmjax.data.bad import BadSample
from mmjax.data.jsonl import Lines, open_lines
from mmjax.data.source import Info, described, option, rooted, within

_FEATURES = {"texts": "tuple of text", "images": "tuple of encoded bytes", "positions": "int32, one an image", "missing": "int32"}
# A member by two halves of the hash of its name, sorted: 32 bytes each, found by bisection.
_MEMBER = np.dtype([("high", "<u8"), ("low", "<u8"), ("offset", "<u8"), ("size", "<u4"), ("shard", "<u4")])


def open_documents(config: Any, split: str) -> "Documents":
    """See the module's docstring.

    Raises:
      UserError: no such files, a first line of neither form, or a damaged shard of images.
    """
    if not option(config, "path"):
        raise UserError("data.source=documents needs data.path, the jsonl: data.path='/sets/mmc4/docs_*.jsonl'")
    lines = open_lines(files.expand(rooted(config, config.path)))
    given = option(config, "images")
    images = rooted(config, given) if given else files.parent(lines.paths[0])
    store = open_members(files.expand(images)) if images.endswith(".tar") else Folder(images)
    try:
        parse(lines.first())
    except BadSample as e:
        raise UserError(f"{lines.describe(0)}: {e.detail}") from e
    return Documents(lines, split, store)


def parse(line: Mapping[str, Any]) -> tuple[tuple[str, ...], list[tuple[int, str]]]:
    """(texts, (position, name) of each picture in reading order) of a document of either form.

    Raises:
      BadSample: a line of neither form, or one whose lists do not fit together.
    """
    if "text_list" in line and "image_info" in line:
        texts, pictures = line["text_list"], line["image_info"]
        if not _all(texts, str) or not _all(pictures, dict):
            raise BadSample("other", "text_list holds something else than text, or image_info than objects")
        found = []
        for picture in pictures:
            name, at = picture.get("image_name") or picture.get("raw_url"), picture.get("matched_text_index")
            if not isinstance(name, str) or not isinstance(at, int) or not 0 <= at <= len(texts):
                raise BadSample("other", f"a picture without name or with matched_text_index {at!r} of {len(texts)} texts")
            found.append((at, name))
        return tuple(texts), sorted(found, key=lambda picture: picture[0])  # stable: as listed, where several share a text
    if "texts" in line and "images" in line:
        texts, pictures = line["texts"], line["images"]
        if not isinstance(texts, list) or not isinstance(pictures, list) or len(texts) != len(pictures):
            raise BadSample("other", "texts and images are not two lists of one length")
        out, found = [], []
        for text, picture in zip(texts, pictures, strict=True):
            if picture is not None:
                found.append((len(out), picture))
            if text is not None:
                out.append(text)
        if not _all(out, str) or not _all([name for _, name in found], str):
            raise BadSample("other", "texts or images holds something else than text")
        return tuple(out), found
    got = ", ".join(sorted(line)) or "nothing"
    raise BadSample("other", f"no document: expected text_list and image_info (MMC4), or texts and images (OBELICS), got {got}")


def _all(values: Any, kind: type) -> bool:
    return isinstance(values, list) and all(isinstance(value, kind) for value in values)


class Documents:
    """A `Source` of documents."""

    def __init__(self, lines: Lines, split: str, store: "Folder | Members"):
        self._lines, self._store = lines, store
        name = files.basename(lines.paths[0]).removesuffix(".jsonl")
        fingerprint = hashlib.sha256(f"{lines.digest} {store.digest}".encode()).hexdigest()[:16]
        self.info = Info(name, split, (), (), None, _FEATURES, fingerprint=fingerprint)

    def __reduce__(self):
        return Documents, (self._lines, self.info.split, self._store)

    def __len__(self) -> int:
        return len(self._lines)

    def describe(self, i: int) -> str:
        return described(self.info, i, self._lines.describe(i))

    def __getitem__(self, i: int) -> dict[str, Any]:
        """Raises: BadSample: a line that is no document."""
        within(self, i)
        texts, named = parse(self._lines[i])
        read = [(at, self._store.read(name)) for at, name in named]
        there = [(at, data) for at, data in read if data is not None]
        positions = np.array([at for at, _ in there], np.int32)
        return {"texts": texts, "images": tuple(d for _, d in there), "positions": positions, "missing": np.int32(len(read) - len(there))}


class Folder:
    """Pictures that are files below a folder. Names that lead out of it are not there."""

    digest = ""

    def __init__(self, root: str):
        self._root = root

    def read(self, name: str) -> bytes | None:
        path = files.inside(self._root, name)
        if path is None:
            return None
        try:
            return files.read(path)
        except OSError:
            return None


def open_members(paths: Sequence[str]) -> "Members":
    """Finds every picture in tar shards by its name, and by the url in the json of its key. 32 bytes of memory a name.

    Raises:
      UserError: a shard that is missing, cut off or damaged.
    """
    reader, tables, marks = files.Reader(), [], []
    for number, path in enumerate(paths):
        size = files.stat(path, "shard").size
        tables.append(_members(reader, path, size, number))
        marks.append([files.basename(path), size, len(tables[-1])])
    table = np.concatenate(tables)
    table = table[np.lexsort((np.arange(len(table)), table["low"], table["high"]))]  # of equal names the first stays first
    return Members(tuple(paths), table, hashlib.sha256(json.dumps(marks).encode()).hexdigest())


def _members(reader: files.Reader, path: str, size: int, shard: int) -> np.ndarray:
    rows, pictures, urls = [], {}, {}
    for member in tar.scan(lambda offset, n: reader(path, offset, n), size, path, files.is_remote(path)):
        stem, _, kind = member.name.rpartition(".")
        if kind.lower() != "json":
            pictures[stem] = member
            rows += [(*_hash(name), member.offset, member.size, shard) for name in {member.name, files.basename(member.name)}]
        else:
            with contextlib.suppress(ValueError, AttributeError, RecursionError):
                url = json.loads(reader(path, member.offset, min(member.size, 1 << 20))).get("url")
                if isinstance(url, str):
                    urls[stem] = url
    rows += [(*_hash(url), pictures[stem].offset, pictures[stem].size, shard) for stem, url in urls.items() if stem in pictures]
    return np.array(rows, _MEMBER)


def _hash(name: str) -> tuple[int, int]:
    digest = hashlib.blake2b(name.encode("utf-8", "surrogatepass"), digest_size=16).digest()
    return int.from_bytes(digest[:8], "little"), int.from_bytes(digest[8:], "little")


class Members:
    """Pictures that are members of tar shards."""

    def __init__(self, paths: tuple[str, ...], table: np.ndarray, digest: str):
        self._paths, self._table, self.digest, self._read = paths, table, digest, files.Reader()

    def __reduce__(self):
        return Members, (self._paths, self._table, self.digest)

    def read(self, name: str) -> bytes | None:
        """Raises: UserError if the shard has gone or is shorter than it was."""
        high, low = _hash(name)
        at = int(np.searchsorted(self._table["high"], np.uint64(high)))
        while at < len(self._table) and self._table["high"][at] == high:
            if self._table["low"][at] == low:
                return self._bytes(self._table[at])
            at += 1
        return None

    def _bytes(self, row: np.void) -> bytes:
        path, size = self._paths[row["shard"]], int(row["size"])
        try:
            data = self._read(path, int(row["offset"]), size)
        except OSError as e:
            raise UserError(f"shard '{path}' cannot be read: {e}") from e
        if len(data) < size:
            raise UserError(f"shard '{path}' is shorter than when it was opened (half-written?); restore it and continue the run")
        return data
