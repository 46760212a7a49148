"""`shards`: image-text tar shards as img2dataset and WebDataset write them, read in place by random access through an index.

Config (group `data`):
  path: the shards: braces and globs, local or objects, e.g. "gs://bucket/laion/{00000..41407}.tar"; relative to `dir` if that is set.
  index: file of the index, built by `mmjax data build-index`; unset, it lies below the folder of prepared sets and is built on first use.
  features: key of a record -> what fills it. Unset: {"image": "image", "captions": "caption"}. "caption" is the txt member, else the json's
    "caption"; any other value is a field of the json member, with "/" into nested ones. Without `captions`, images alone are enough.

A record: `image` encoded bytes, `captions` a tuple of text, `label` int32, and the other features as the json has them.
"""

import hashlib
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mmjax.core.errors import UserError
from mmjax.data import files, shard_index
from mmjax.data.bad import BadSample
from mmjax.data.source import NOTHING, Info, data_dir, described, features_of, field, fields_of, label_of, option, rooted, texts_of, within

_GAP = 64 << 10  # members closer than this are read in one go
FEATURES = {"image": "image", "captions": "caption"}


def open_shards(config: Any, split: str) -> "Shards":
    """See the module's docstring. `split` names the set only: a split is a pattern of its own.

    Raises:
      UserError: no such shards, an index that does not fit them, or a feature that names nothing.
    """
    if not option(config, "path"):
        raise UserError("data.source=shards needs data.path, the shards: data.path='/sets/laion/{00000..00099}.tar'")
    pattern = rooted(config, config.path)
    paths = files.expand(pattern)
    features = features_of(config, FEATURES)
    if features.get("image", "image") != "image":
        raise UserError(f"data.features.image is {features['image']!r}; in shards the picture is called 'image' whatever its format")
    captions = "captions" in features
    given = option(config, "index")
    where = os.path.expanduser(given) if given else str(default_index(paths, captions))
    if given and not os.path.exists(where):
        raise UserError(f"data.index: '{where}' does not exist; build it: {shard_index.command(where)} (or leave data.index unset)")
    index = shard_index.open_index(where) if os.path.exists(where) else shard_index.build_index(paths, where, captions=captions)
    shard_index.check(index, paths)
    if captions and not index.needs_caption:
        raise UserError(f"index '{where}' was built without captions, which data.features asks for; build it again with them")
    return Shards(where, tuple(paths), split, features)


def default_index(paths: list[str], captions: bool) -> Path:
    """Where the index of these shards lies if the config names none."""
    whole = [p if files.is_remote(p) else os.path.abspath(p) for p in paths]
    key = hashlib.sha256("\n".join([str(captions), *whole]).encode()).hexdigest()[:16]
    return data_dir(None) / "indexes" / f"{files.basename(files.parent(paths[0])) or 'shards'}-{key}.index"


class Shards:
    """A `Source` over an index and its shards."""

    def __init__(self, index: str, paths: tuple[str, ...], split: str, features: Mapping[str, str]):
        """Args: index: a file that fits `paths`, as `shard_index.check` found."""
        self._index, self._paths, self._features = shard_index.open_index(index), paths, dict(features)
        self._read = files.Reader()
        name = files.basename(files.parent(paths[0])) or "shards"
        words = {"image": "encoded bytes", "captions": "tuple of text"}
        described = {key: words.get(key, f"json field {value!r}") for key, value in features.items()}
        marks = f"{self._index.digest} {sorted(features.items())}"
        fingerprint = hashlib.sha256(marks.encode()).hexdigest()[:16]
        self.info = Info(name, split, (), (), None, described, groups=self._index.groups, fingerprint=fingerprint)
        self._fields = {k: v for k, v in self._features.items() if k != "image" and (k, v) != ("captions", "caption")}
        self._check_fields()

    def __reduce__(self):
        return Shards, (self._index.path, self._paths, self.info.split, self._features)

    def __len__(self) -> int:
        return len(self._index.records)

    def describe(self, i: int) -> str:
        """Record `i` for a message: its shard and where its image lies in it."""
        row = self._index.records[i]
        where = f"shard '{self._paths[row['shard']]}', image at byte {row['image']}"
        return described(self.info, i, where)

    def __getitem__(self, i: int) -> dict[str, Any]:
        """Raises: BadSample: text or json that does not parse. UserError: a shard that is missing or shorter than it was."""
        within(self, i)
        shard, image, image_size, text, text_size, meta, meta_size = self._index.records[i].item()
        wants_meta = bool(self._fields) or ("captions" in self._features and not text)
        spans = {"image": (image, image_size)} if "image" in self._features else {}
        if "captions" in self._features and text:
            spans["text"] = (text, text_size)
        if wants_meta and meta:
            spans["meta"] = (meta, meta_size)
        if not spans:
            raise BadSample("missing", "no json")
        parts = self._parts(self._paths[shard], spans)
        record = {"image": parts["image"]} if "image" in parts else {}
        return {**record, **self._texts(parts)}

    def _parts(self, path: str, spans: Mapping[str, tuple[int, int]]) -> dict[str, bytes]:
        """The members' bytes; those that lie close together, as they mostly do, in one read."""
        first = min(offset for offset, _ in spans.values())
        last = max(offset + size for offset, size in spans.values())
        try:
            if last - first <= sum(size for _, size in spans.values()) + _GAP:
                whole = self._read(path, first, last - first)
                parts = {key: whole[offset - first : offset - first + size] for key, (offset, size) in spans.items()}
            else:
                parts = {key: self._read(path, *span) for key, span in spans.items()}
        except FileNotFoundError as e:
            raise UserError(f"shard '{path}' is missing since the set was opened; restore it and continue the run") from e
        except OSError as e:
            raise UserError(f"shard '{path}' cannot be read: {e}") from e
        if any(len(parts[key]) < size for key, (_, size) in spans.items()):
            index = self._index.path
            raise UserError(f"shard '{path}' is shorter than index '{index}' says (half-written?); restore it and continue the run")
        return parts

    def _texts(self, parts: Mapping[str, bytes]) -> dict[str, Any]:
        meta = _json(parts["meta"]) if "meta" in parts else {}
        out: dict[str, Any] = {key: field(meta, path) for key, path in self._fields.items()}
        missing = [path for key, path in self._fields.items() if out[key] is NOTHING]
        if missing:
            raise BadSample("missing", f"its json has no field {missing[0]!r}")
        if "captions" in self._features:
            if "captions" not in out:
                out["captions"] = _text(parts["text"]) if "text" in parts else field(meta, "caption")
            out["captions"] = texts_of(out["captions"])
        if "label" in out:
            out["label"] = label_of(out["label"])
        return out

    def _check_fields(self) -> None:
        """A feature that names nothing in the first sample with a json is a mistake of the config, not of the sample."""
        if not self._fields:
            return
        with_meta = next((i for i in range(min(len(self), 10_000)) if self._index.records[i]["meta"]), None)
        if with_meta is None:
            name = next(iter(self._fields.values()))
            raise UserError(f"data.features: {name!r} names a json field, but '{self._paths[0]}' holds no json")
        shard, *_, meta, meta_size = self._index.records[with_meta].item()
        known = _json(self._parts(self._paths[shard], {"meta": (meta, meta_size)})["meta"])
        fields_of(known, self._fields, f"the json of {self.describe(with_meta)}")


def _text(data: bytes) -> str:
    try:
        return data.decode()
    except UnicodeDecodeError as e:
        raise BadSample("bad_text", f"not UTF-8 at byte {e.start}") from e


def _json(data: bytes) -> dict[str, Any]:
    try:
        read = json.loads(data)
    except (ValueError, RecursionError) as e:
        raise BadSample("bad_text" if isinstance(e, UnicodeDecodeError) else "other", f"its json does not parse: {e}") from e
    if not isinstance(read, dict):
        raise BadSample("other", f"its json is no object but {type(read).__name__}")
    return read
