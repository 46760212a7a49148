"""Sets of records that a model made, as array_record files: written shard by shard, resumable, and read back as a source.

A record is a dict of arrays, text, tuples of text and bytes, in a plain binary form (`encode`): a JSON header of names, kinds,
dtypes and shapes behind its length, then the raw bytes. Nothing in it is ever executed.

A finished set is the folder DIR/SPLIT of shard files and `meta.json`. Until it is finished it is called DIR/SPLIT.partial, where a
shard stands under its own name only when it is complete.
"""

import collections
import contextlib
import hashlib
import itertools
import json
import os
import re
import shutil
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np

from mmjax.core.errors import UserError, suggest
from mmjax.data.bad import KINDS, BadSample
from mmjax.data.files import write_json
from mmjax.data.source import Info, option, rooted, within
from mmjax.data.tokenizer import Tokenizer
from mmjax.version import __version__

FORMAT = 1  # a reader refuses a newer one
META, TOKENIZER, WORDS, PARTIAL = "meta.json", "tokenizer.json", "words.txt", ".partial"
_WORD = re.compile(r"\w+")
_FLOATS = frozenset(name for name in dir(ml_dtypes) if name.startswith(("bfloat", "float")))  # dtypes numpy knows through ml_dtypes
BAD = "bad"  # the one key of a record whose input could not be used: its kind; reading it raises BadSample


# --- one record -------------------------------------------------------------------------------------------------------------


def encode(record: Mapping[str, Any]) -> bytes:
    """The bytes of a record of arrays (bool, integer, float), numpy scalars, str, bytes and tuples of str.

    Raises:
      UserError: a value of another kind.
    """
    fields, body = {}, []
    for key, value in record.items():
        if isinstance(value, str):
            data = value.encode("utf-8", "surrogatepass")
            fields[key] = ["text", len(data)]
        elif isinstance(value, bytes):
            data = value
            fields[key] = ["bytes", len(data)]
        elif isinstance(value, tuple | list) and all(isinstance(text, str) for text in value):
            texts = [text.encode("utf-8", "surrogatepass") for text in value]
            data = b"".join(texts)
            fields[key] = ["texts", [len(text) for text in texts]]
        else:
            array = np.asarray(value)
            if array.dtype.kind not in "biufc" and array.dtype.name not in _FLOATS:
                raise UserError(f"a cached record cannot hold {key!r}, {type(value).__name__} of {array.dtype}; keep arrays and text only")
            array = np.ascontiguousarray(array).reshape(array.shape)
            data = array.astype(_little(array.dtype), copy=False).tobytes()
            fields[key] = ["array", array.dtype.name, list(array.shape)]
        body.append(data)
    header = json.dumps(fields, separators=(",", ":")).encode()
    return b"".join([len(header).to_bytes(4, "little"), header, *body])


def _little(dtype: np.dtype) -> np.dtype:
    return dtype if dtype.kind == "V" else dtype.newbyteorder("<")


def decode(data: bytes) -> dict[str, Any]:
    """The record of `encode`; arrays are copies that may be written to.

    Raises:
      ValueError: the bytes are no record.
    """
    size = int.from_bytes(data[:4], "little")
    try:
        fields, at, out = json.loads(data[4 : 4 + size]), 4 + size, {}
        for key, (kind, *form) in fields.items():
            if kind == "array":
                dtype = np.dtype(form[0])
                if dtype.kind not in "biufc" and dtype.name not in _FLOATS:
                    raise ValueError(f"dtype {form[0]}")
                length = int(np.prod(form[1], dtype=np.int64)) * dtype.itemsize
                out[key] = np.frombuffer(data[at : at + length], _little(dtype)).astype(dtype).reshape(form[1])
                out[key] = out[key] if form[1] else out[key][()]
            elif kind == "texts":
                length, ends = sum(form[0]), np.cumsum([0, *form[0]]).tolist()
                out[key] = tuple(_text(data[at + a : at + b]) for a, b in itertools.pairwise(ends))
            elif kind in ("text", "bytes"):
                length = int(form[0])
                out[key] = _text(data[at : at + length]) if kind == "text" else data[at : at + length]
            else:
                raise ValueError(f"kind {kind}")
            at += length
    except (ValueError, TypeError, AttributeError, KeyError) as e:
        raise ValueError(f"not a record of a cached set ({e})") from e
    if at != len(data):
        raise ValueError(f"a record of {len(data)} bytes that says it has {at}")
    return out


def _text(data: bytes) -> str:
    return data.decode("utf-8", "surrogatepass")


# --- writing ----------------------------------------------------------------------------------------------------------------


class Writer:
    """Writes a set; a second `Writer` with the same plan goes on where a killed one stopped.

    Attributes:
      folder: where the finished set will be.
      missing: numbers of the shards that are not complete yet, ascending.
    """

    def __init__(self, folder: str | os.PathLike, plan: Mapping[str, Any], count: int, per_shard: int):
        """Creates or reopens `folder`.partial.

        Args:
          plan: JSON values that say what the set will hold; a half-made set of another plan is refused.
          count: records in the whole set.
          per_shard: records a file.

        Raises:
          UserError: the set exists, another one was begun there, or the place cannot be written.
        """
        self.folder = Path(folder)
        self._partial = self.folder.with_name(self.folder.name + PARTIAL)
        self._plan = json.loads(json.dumps({**plan, "count": count, "per_shard": per_shard}))
        self._count, self._per_shard = count, per_shard
        self._shards = -(-count // per_shard)
        check_free(self.folder)
        try:
            self._partial.mkdir(parents=True, exist_ok=True)
            self._begin()
        except OSError as e:
            raise UserError(f"cached set '{self.folder}' cannot be written: {e}; choose another --out") from e
        self.missing = [k for k in range(self._shards) if not (self._partial / self._name(k)).is_file()]

    def _begin(self) -> None:
        path = self._partial / "plan.json"
        if not path.is_file():
            write_json(path, self._plan)
            return
        begun = json.loads(path.read_text())
        differ = sorted(key for key in {*begun, *self._plan} if begun.get(key) != self._plan.get(key))
        if differ:
            was = ", ".join(f"{key}: {_short(begun.get(key))} -> {_short(self._plan.get(key))}" for key in differ)
            raise UserError(
                f"'{self._partial}' holds the beginning of another set ({was}); repeat the command that began it, delete it, or choose "
                "another --out"
            )

    def _name(self, k: int) -> str:
        return f"data-{k:05d}-of-{self._shards:05d}.array_record"

    def rows(self, k: int) -> range:
        """The records of shard `k`."""
        return range(k * self._per_shard, min((k + 1) * self._per_shard, self._count))

    def write(self, k: int, records: Iterable[Mapping[str, Any]]) -> None:
        """Writes shard `k`, which appears whole or not at all. `records` are those of `rows(k)`."""
        from array_record.python.array_record_module import ArrayRecordWriter

        path = self._partial / self._name(k)
        temporary = path.with_suffix(".writing")
        writer, n, bad = ArrayRecordWriter(str(temporary), "group_size:1"), 0, collections.Counter()
        try:
            for record in records:
                writer.write(encode(record))
                n += 1
                bad.update([record[BAD]] if BAD in record else [])
        finally:
            writer.close()
        if n != len(self.rows(k)):
            raise ValueError(f"shard {k} got {n} records, its rows are {self.rows(k)}")
        with open(temporary, "rb") as f:
            os.fsync(f.fileno())
        write_json(path.with_suffix(".json"), bad)  # before the shard, so that it is there if the shard is
        os.replace(temporary, path)

    def finish(self, meta: Mapping[str, Any], tokenizer: Path | None = None) -> Path:
        """Writes meta.json beside the shards and gives the set its name; returns it.

        Raises:
          UserError: another process finished it first.
        """
        files = [self._name(k) for k in range(self._shards)]
        sizes = [(self._partial / name).stat().st_size for name in files]
        bad: collections.Counter = collections.Counter()
        for name in files:
            bad.update(json.loads((self._partial / name).with_suffix(".json").read_text()))
        if tokenizer is not None:
            shutil.copyfile(tokenizer, self._partial / TOKENIZER)
        body = {
            "format": FORMAT,
            "mmjax": __version__,
            **meta,
            "count": self._count,
            "bad": dict(sorted(bad.items())),
            "shards": [{"file": f, "bytes": b, "records": len(self.rows(k))} for k, (f, b) in enumerate(zip(files, sizes, strict=True))],
        }
        write_json(self._partial / META, body)
        for path in self._partial.iterdir():
            if path.name not in (*files, META, TOKENIZER):
                path.unlink()
        check_free(self.folder)
        os.rename(self._partial, self.folder)
        return self.folder


def check_free(folder: str | os.PathLike) -> None:
    """Raises `UserError` if a finished set, or anything else, stands where one is to be written."""
    if Path(folder).exists():
        raise UserError(f"cached set '{folder}' exists already; delete it or choose another --out")


def _short(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) <= 60 else text[:57] + "..."


# --- reading ----------------------------------------------------------------------------------------------------------------


class Cached:
    """A finished set as a source. Record i is made from record i of the source it was cached from; `index` says so too."""

    def __init__(self, folder: str | os.PathLike, expect: str | None = None):
        """Args: expect: the fingerprint of the model that must have made it.

        Raises:
          UserError: no such set, unfinished, damaged, or made by another model.
        """
        from array_record.python.array_record_data_source import ArrayRecordDataSource

        self._folder, self._expect = Path(folder), expect
        self.meta = meta = read_meta(self._folder)
        if expect is not None and expect != meta["model"]["fingerprint"]:
            raise UserError(
                f"cached set '{folder}' was made by the model with fingerprint {meta['model']['fingerprint']} ({meta['predict']} of "
                f"'{meta['model']['workdir']}', step {meta['model']['step']}), data.expect_fingerprint is {expect}; "
                "run mmjax cache with the model you mean, or change the key"
            )
        paths = []
        for shard in meta["shards"]:
            path = self._folder / shard["file"]
            size = path.stat().st_size if path.is_file() else None
            if size != shard["bytes"]:
                found = "is missing" if size is None else f"has {size} bytes, {shard['bytes']} were written"
                raise UserError(f"cached set '{folder}' is damaged: {shard['file']} {found}; restore it, or delete the set and cache again")
            paths.append(str(path))
        with self._damage("its shards"):
            self._records = ArrayRecordDataSource(paths)
            if len(self._records) != meta["count"]:
                raise ValueError(f"{len(self._records)} records, {meta['count']} were written")
        tokenizer = self._folder / TOKENIZER
        made = meta["source"]
        self.info = Info(
            made["name"],
            made["split"],
            tuple(made["classes"]),
            tuple(made["prompts"]),
            tokenizer if tokenizer.is_file() else None,
            dict(meta["features"]),
            tuple(shard["records"] for shard in meta["shards"]),
            hashlib.sha256(json.dumps(meta, sort_keys=True).encode()).hexdigest()[:16],
            model=meta["model"]["fingerprint"],
            words=self._folder / WORDS if (self._folder / WORDS).is_file() else None,
        )

    def __reduce__(self):
        return Cached, (self._folder, self._expect)

    def __len__(self) -> int:
        return self.meta["count"]

    def __getitem__(self, i: int) -> Mapping[str, Any]:
        within(self, i)
        with self._damage(f"record {i}"):
            record = decode(self._records[i])
        if BAD in record:
            raise BadSample(record[BAD] if record[BAD] in KINDS else "other", "when it was cached")
        return record

    @contextlib.contextmanager
    def _damage(self, what: str):
        """Whatever fails while reading a set that was written whole is damage; array_record raises many kinds."""
        try:
            yield
        except Exception as e:
            reason = " ".join(str(e).split())[:200]
            raise UserError(
                f"cached set '{self._folder}' is damaged: {what} ({reason}); restore it, or delete the set and cache again"
            ) from e


def words_of(text: str) -> list[str]:
    """Its words, in lower case, in their order."""
    return _WORD.findall(text.lower())


def write_words(folder: str | os.PathLike, key: str, tokenizer: Tokenizer) -> None:
    """Writes the words of a finished set's token rows beside it, one a line: what was cut off from a text is not among them."""
    made = Cached(folder)
    rows: set[bytes] = set()
    shape = None
    for i in range(len(made)):
        with contextlib.suppress(BadSample):
            tokens = made[i][key]
            shape = tokens.shape[-1], tokens.dtype
            rows.update(row.tobytes() for row in tokens.reshape(-1, tokens.shape[-1]))
    texts = (tokenizer.decode(np.frombuffer(row, shape[1])) for row in rows)
    found = sorted({word for text in texts for word in words_of(text)})
    (Path(folder) / WORDS).write_text("".join(word + "\n" for word in found), encoding="utf-8")


def open_cached(config: Any, split: str) -> Cached:
    """The set of `split` in the folder `data.path`, which is what `mmjax cache --out` was given; checked against `data.expect_fingerprint`.

    Raises:
      UserError: no path, or whatever is wrong with the set.
    """
    path = option(config, "path")
    if path is None:
        raise UserError("data.source=cached needs data.path, the folder that mmjax cache --out was given")
    return Cached(Path(rooted(config, path)) / split, option(config, "expect_fingerprint"))


def read_meta(folder: str | os.PathLike) -> dict[str, Any]:
    """`meta.json` of a finished set.

    Raises:
      UserError: there is none, it is unfinished, damaged or of a newer format.
    """
    folder = Path(folder)
    if not (folder / META).is_file():
        if folder.with_name(folder.name + PARTIAL).is_dir():
            raise UserError(f"cached set '{folder}' is not finished; repeat the mmjax cache command that began it")
        there = [p.name for p in folder.parent.iterdir() if (p / META).is_file()] if folder.parent.is_dir() else []
        raise UserError(f"there is no cached set '{folder}'{suggest(folder.name, there)}; make one with mmjax cache --out {folder.parent}")
    try:
        meta = json.loads((folder / META).read_text(encoding="utf-8"))
        if meta["format"] > FORMAT:
            raise UserError(f"cached set '{folder}' was written by mmjax {meta['mmjax']}, a newer one; upgrade mmjax")
        for group, keys in _WANTED.items():
            for key in keys:
                (meta[group] if group else meta)[key]
    except (OSError, ValueError, KeyError, TypeError) as e:
        raise UserError(f"cached set '{folder}' is damaged: {META} ({e}); restore it, or delete the set and cache again") from e
    return meta


_WANTED = {
    "": ("count", "predict", "shards", "features"),
    "model": ("fingerprint", "workdir", "step"),
    "source": ("name", "split", "classes", "prompts"),
}
