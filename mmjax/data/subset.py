"""The kept index that curation writes, and the view of a source that reads only what it names."""

import dataclasses
import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Int64

from mmjax.core.errors import UserError
from mmjax.data.bad import place
from mmjax.data.provenance import fingerprint
from mmjax.data.source import Source, within
from mmjax.version import __version__

FORMAT = 1  # a reader refuses a newer one
KEPT, HEADER, REPORT, TABLE = "kept.npy", "header.json", "report.json", "report.txt"


def save(kept: Int64[np.ndarray, "K"], report: Mapping[str, Any], table: str, out: str | os.PathLike, *, overwrite: bool = False) -> Path:
    """Writes a kept index: a folder of kept.npy (ascending int64), header.json, report.json and report.txt, whole or not at all.

    Args:
      report: of `curate.curate`, also the header's source and parameters.
      table: the report as text.

    Raises:
      UserError: it exists and `overwrite` is not set, or cannot be written.
    """
    out = Path(out)
    check_out(out, overwrite)
    header = {
        "format": FORMAT,
        "mmjax": __version__,
        "source": report["source"],
        "pairs": report["pairs"],
        "kept": len(kept),
        "kept_sha256": hashlib.sha256(kept.tobytes()).hexdigest(),
        "parameters": report["parameters"],
    }
    temporary = None
    try:
        temporary = Path(tempfile.mkdtemp(prefix=f".{out.name}-", dir=out.parent))
        np.save(temporary / KEPT, kept, allow_pickle=False)
        (temporary / HEADER).write_text(json.dumps(header, indent=1) + "\n")
        (temporary / REPORT).write_text(json.dumps(report, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
        (temporary / TABLE).write_text(table, encoding="utf-8")
        for file in temporary.iterdir():
            with open(file, "rb") as f:
                os.fsync(f.fileno())
        temporary.chmod(0o755)
        old = Path(f"{temporary}.old")
        if out.exists():
            os.rename(out, old)
        os.rename(temporary, out)
        shutil.rmtree(old, ignore_errors=True)
    except OSError as e:
        raise UserError(f"kept index '{out}' cannot be written: {e}") from e
    finally:
        if temporary:
            shutil.rmtree(temporary, ignore_errors=True)
    return out


def check_out(out: str | os.PathLike, overwrite: bool = False) -> None:
    """Raises `UserError` if a kept index may not be written there; good to know before hours are spent on it."""
    out = Path(out)
    if not out.parent.is_dir():
        raise UserError(f"kept index '{out}': folder '{out.parent}' does not exist; create it")
    if out.exists() and not overwrite:
        raise UserError(f"kept index '{out}' exists already; choose another --out, or give --overwrite")
    if out.exists() and not (out / HEADER).is_file():
        raise UserError(f"'{out}' is no kept index and is not overwritten; choose another --out")


def load(path: str | os.PathLike) -> tuple[Int64[np.ndarray, "K"], dict[str, Any]]:
    """(places, memory-mapped, and the header) of a kept index.

    Raises:
      UserError: there is none, it is damaged, or of a newer format.
    """
    path = Path(path)
    if not (path / HEADER).is_file():
        raise UserError(f"data.subset: '{path}' is no kept index (it has no {HEADER}); make one with mmjax data curate --out {path}")
    try:
        header = json.loads((path / HEADER).read_text())
        if header["format"] > FORMAT:
            raise UserError(f"data.subset: '{path}' was written by mmjax {header['mmjax']}, a newer one; upgrade mmjax")
        kept = np.load(path / KEPT, mmap_mode="r", allow_pickle=False)
        wanted = (int(header["kept"]), int(header["pairs"]))
        for part in ("name", "split", "fingerprint"):
            header["source"][part]
        header["kept_sha256"]
    except (OSError, EOFError, ValueError, KeyError, TypeError) as e:
        raise UserError(f"data.subset: kept index '{path}' is damaged ({e}); run mmjax data curate again") from e
    if kept.dtype != np.int64 or kept.shape != wanted[:1] or (len(kept) and not 0 <= kept[0] <= kept[-1] < wanted[1]):
        raise UserError(f"data.subset: kept index '{path}' is damaged ({KEPT} is not what {HEADER} says); run mmjax data curate again")
    return kept, header


class Subset:
    """The records of a source that a kept index names, in the source's order."""

    def __init__(self, source: Source, path: str | os.PathLike):
        """Raises: UserError if the index is damaged or belongs to another source."""
        kept, header = load(path)
        made, own = header["source"], {"name": source.info.name, "split": source.info.split, "fingerprint": fingerprint(source)}
        if header["pairs"] != len(source) or made["fingerprint"] != own["fingerprint"]:
            raise UserError(
                f"data.subset: '{path}' was made of source {made['name']!r} ({made['split']}; {header['pairs']:,} records, fingerprint "
                f"{made['fingerprint']}), this one is {own['name']!r} ({own['split']}; {len(source):,} records, fingerprint "
                f"{own['fingerprint']}); run mmjax data curate again for it"
            )
        if not len(kept):
            raise UserError(f"data.subset: '{path}' keeps no record")
        self._source, self._path, self._kept = source, path, kept
        digest = hashlib.sha256(f"{made['fingerprint']} {header['kept_sha256']}".encode()).hexdigest()[:16]
        self.info = dataclasses.replace(source.info, groups=_group_sizes(source.info.groups, kept), fingerprint=digest)

    def __reduce__(self):
        return Subset, (self._source, self._path)

    def __len__(self) -> int:
        return len(self._kept)

    def __getitem__(self, i: int) -> Mapping[str, Any]:
        within(self, i)
        return self._source[int(self._kept[i])]

    def describe(self, i: int) -> str:
        """A record in words, for messages: by its place in the whole source."""
        return place(self._source, int(self._kept[i]))


def _group_sizes(groups: Sequence[int], kept: Int64[np.ndarray, "K"]) -> tuple[int, ...]:
    """How many of the records kept lie in each shard of a source that has shards; those of which none is kept are gone."""
    sizes = np.diff(np.searchsorted(kept, np.cumsum([0, *groups])))
    return tuple(sizes[sizes > 0].tolist())


def subset(source: Source, path: str | os.PathLike) -> Source:
    """`source` cut down to a kept index; see `Subset`."""
    return Subset(source, path)
