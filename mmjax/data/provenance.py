"""What a run remembers of the sets it is trained on: `data.json` in its workdir, so that a set that changed is noticed.

A set is known by its fingerprint, which follows its names, sizes, counts and, where that is cheap, its content, but neither its place nor
any time stamp: a folder that was moved or copied is the same set.
"""

import dataclasses
import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from mmjax.core.errors import UserError
from mmjax.data.bad import BadSample
from mmjax.data.files import write_json
from mmjax.data.source import Source
from mmjax.version import __version__

FILE = "data.json"
FORMAT = 1  # a reader refuses a newer one


@dataclasses.dataclass(frozen=True)
class Remembered:
    """A set as a run knows it.

    Attributes:
      key: of the config that names it: `data`, `data.mixture[0]`, `data.streams.text`.
      place: where it lay, for messages.
      model: fingerprint of the model that made it; empty for a set that none made.
    """

    key: str
    place: str
    name: str
    split: str
    records: int
    fingerprint: str
    model: str = ""


def fingerprint(source: Source) -> str:
    """16 hex digits that change with the source: a hash of its split, length and own fingerprint, and where it has none of its name and
    of 16 records spread over it."""
    n, info = len(source), source.info
    h = hashlib.sha256(json.dumps([info.split, n, info.fingerprint or info.name]).encode())
    for i in sorted({i * (n - 1) // 15 for i in range(16)} if n and not info.fingerprint else ()):
        try:
            record = source[i]
        except BadSample as e:
            record = {"bad": e.kind}
        for key in sorted(record):
            data = _bytes_of(record[key])
            h.update(f"{key} {len(data)} ".encode() + data)
    return h.hexdigest()[:16]


def _bytes_of(value: Any) -> bytes:
    if isinstance(value, bytes):
        return value
    return value.tobytes() if hasattr(value, "tobytes") else repr(value).encode()


def remembered(source: Source, key: str, place: str | None) -> Remembered:
    """The facts about an opened source."""
    info = source.info
    return Remembered(key, place or info.name, info.name, info.split, len(source), fingerprint(source), info.model)


def digest(sets: Sequence[Remembered]) -> str:
    """16 hex digits of all sets of a run together."""
    body = [[s.key, s.fingerprint] for s in sets]
    return hashlib.sha256(json.dumps(body).encode()).hexdigest()[:16]


def check(workdir: str | os.PathLike, sets: Sequence[Remembered], step: int, accept: str | None = None) -> str:
    """Holds the sets against those of `workdir/data.json` and writes that file, by a rename; returns a notice, "" if there is none.

    Args:
      step: where the run goes on; at 0 it only begins, whatever an attempt before it left behind.
      accept: the `digest` of changed sets to go on with; the file then keeps what they were before.

    Raises:
      UserError: a set that is not what it was when the run began, or a file that is damaged or of a newer format.
    """
    path = Path(workdir) / FILE
    held = _read(path) if step and path.is_file() else None
    then = {s["key"]: s for s in held["sets"]} if held else {}
    earlier, notice = held["earlier"] if held else [], ""
    changed = [s for s in sets if held and then.get(s.key, {}).get("fingerprint") != s.fingerprint]
    if changed and accept != digest(sets):
        raise UserError(_complaint(workdir, changed[0], then.get(changed[0].key), digest(sets)))
    if changed:
        earlier = [*earlier, {"until_step": step, "sets": held["sets"]}]
        notice = f"from step {step} on with changed data, as data.accept_changed={accept} asks: {', '.join(s.place for s in changed)}"
    elif step and not held:
        notice = f"'{workdir}' has no {FILE}: its sets are remembered from step {step} on"
    body = {"format": FORMAT, "mmjax": __version__, "sets": [dataclasses.asdict(s) for s in sets], "earlier": earlier}
    if body != held:
        write_json(path, body)
    return notice


def models(workdir: str | os.PathLike) -> dict[str, str]:
    """Fingerprint of a model -> place of the set it made, of the sets that the run in a workdir is trained on.

    Raises:
      UserError: a file that is damaged or of a newer format.
    """
    path = Path(workdir) / FILE
    return {s["model"]: s["place"] for s in _read(path)["sets"] if s.get("model")} if path.is_file() else {}


def _complaint(workdir: str | os.PathLike, now: Remembered, then: Mapping[str, Any] | None, accept: str) -> str:
    was = f"it had {then['records']:,} records and fingerprint {then['fingerprint']}" if then else "it was not there"
    place = f", lying at '{then['place']}'," if then and then["place"] != now.place else ","
    return (
        f"{now.key}: set {now.name!r} ({now.split}) at '{now.place}' is not what it was when the run in '{workdir}' began: {was}{place} "
        f"and now has {now.records:,} and {now.fingerprint}. Restore it, choose another --workdir, or go on with it as it is by "
        f"data.accept_changed={accept}"
    )


def _read(path: Path) -> dict[str, Any]:
    try:
        held = json.loads(path.read_text(encoding="utf-8"))
        if held["format"] > FORMAT:
            raise UserError(f"'{path}' was written by mmjax {held['mmjax']}, a newer one; upgrade mmjax")
        for s in held["sets"]:
            Remembered(**s)
        held["earlier"]
    except (OSError, ValueError, KeyError, TypeError) as e:
        raise UserError(f"'{path}' is damaged ({e}); restore it, or delete it to go on without knowing whether the sets changed") from e
    return held
