"""Sources: random access to records, with what one needs to know about them; and where prepared sets lie on disk."""

import contextlib
import dataclasses
import importlib
import os
import shutil
import sys
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from types import ModuleType
from typing import Any, Protocol, runtime_checkable

import numpy as np
from ml_collections import ConfigDict

from mmjax.core.errors import UserError, suggest
from mmjax.data import files, tokenizer
from mmjax.data.bad import BadSample
from mmjax.data.tokenizer import Tokenizer


@dataclasses.dataclass(frozen=True)
class Info:
    """What a source says about itself.

    Attributes:
      classes: a word a class, in the order of the labels; empty if the set has no classes.
      prompts: zero-shot templates with `{}` for the class word, none of them used by a training caption.
      tokenizer: the tokenizer.json trained at preparation, if there is one.
      features: key of a record -> what it holds, in words.
      groups: how many records each of the source's consecutive shards holds, if reading them together is cheaper; see order.Order.
      fingerprint: a few hex digits that change when the set does (its names, sizes, counts and, where that is cheap, its content),
        and stay when it is copied to another place. Empty if the source cannot tell.
      ids: what the set itself calls its classes, WordNet ids where they are ImageNet's; empty if it names none.
      files, bytes: what it takes on disk; 0 if the source cannot tell.
      model: fingerprint of the model that made the set, as `mmjax cache` gives it; empty for any other set.
      words: a file of the words that the set's texts hold, one a line; None where nobody counted them.
    """

    name: str
    split: str
    classes: tuple[str, ...]
    prompts: tuple[str, ...]
    tokenizer: Path | None
    features: Mapping[str, str]
    groups: tuple[int, ...] = ()
    fingerprint: str = ""
    ids: tuple[str, ...] = ()
    files: int = 0
    bytes: int = 0
    model: str = ""
    words: Path | None = None


@runtime_checkable
class Source(Protocol):
    """Random access to records: dicts of numpy values, text, and images as encoded bytes (a transform decodes them).

    `source[i]` is for 0 <= i < len(source), always the same for the same i, and safe to call from several threads. A source is
    picklable, since worker processes are sent a copy.
    """

    info: Info

    def __len__(self) -> int: ...

    def __getitem__(self, i: int) -> Mapping[str, Any]: ...


def open_source(config: Any, split: str) -> Source:
    """Opens `config.source` (a key of `SOURCES`); what else of the config group `data` it reads, its module says.

    Raises:
      UserError: an unknown source or split, a folder or file that is missing or cannot be used, or a damaged set.
    """
    if config.source not in SOURCES:
        raise UserError(f"data.source: unknown source {config.source!r}{suggest(config.source, SOURCES)}")
    source, kept = SOURCES[config.source](config, split), option(config, "subset")
    if not kept or split != option(config, "split"):  # a kept index belongs to one split; evaluations read others
        return source
    from mmjax.data.subset import subset

    return subset(source, rooted(config, kept))


def open_tokenizer(source: Source, path: str | None = None) -> Tokenizer | None:
    """The tokenizer at `path` (`data.tokenizer`), else the one stored beside the set; None if it has none.

    Raises:
      UserError: it cannot be read.
    """
    path = path or source.info.tokenizer
    return None if path is None else tokenizer.load(path)


# Each imports its module when it is called: TFDS and Pillow are not for everyone.
def digits_captions(config: Any, split: str) -> Source:
    """Scanned digits with captions; see `digits_captions.py`. Prepared on first use."""
    from mmjax.data.tfds_sets import Prepared

    module = importlib.import_module("mmjax.data.digits_captions")
    builder = module.DigitsCaptions
    folder = _prepared(data_dir(config.dir), Path(builder.name) / str(builder.VERSION), lambda d: _prepare_quietly(module, d))
    made = {"name": builder.name, "classes": module.WORDS, "prompts": module.HELD_OUT_TEMPLATES, "own_tokenizer": True}
    return Prepared(str(folder), split, None, **made)


def scenes(config: Any, split: str) -> Source:
    """Procedural scenes; `config.scenes` says which, see `scenes/builder.py`. Prepared on first use."""
    from mmjax.data.scenes import builder
    from mmjax.data.tfds_sets import Prepared

    wanted = config.scenes
    known = builder.splits_of(wanted.config)
    if split.partition("[")[0] not in known:
        raise UserError(f"data.split: scenes/{wanted.config} has no split {split!r}{suggest(split, known)}")
    made = builder.settings(wanted.config, split, wanted.pixels, wanted.train, wanted.evaluation)
    name = Path(builder.Scenes.name) / made.name / str(builder.Scenes.VERSION)
    folder = _prepared(data_dir(config.dir), name, lambda d: builder.prepare(d, made))
    return Prepared(str(folder), split, None, name=f"scenes/{made.name}", own_tokenizer=True)


def tfds(config: Any, split: str) -> Source:
    from mmjax.data import tfds_sets

    return tfds_sets.open_tfds(config, split)


def shards(config: Any, split: str) -> Source:
    from mmjax.data.shards import open_shards

    return open_shards(config, split)


def jsonl(config: Any, split: str) -> Source:
    from mmjax.data.jsonl import open_jsonl

    return open_jsonl(config, split)


def documents(config: Any, split: str) -> Source:
    from mmjax.data.documents import open_documents

    return open_documents(config, split)


def video(config: Any, split: str) -> Source:
    from mmjax.data.video import open_video

    return open_video(config, split)


def cached(config: Any, split: str) -> Source:
    from mmjax.data.store import open_cached

    return open_cached(config, split)


SOURCES: dict[str, Callable[[Any, str], Source]] = {
    "cached": cached,
    "digits_captions": digits_captions,
    "documents": documents,
    "jsonl": jsonl,
    "scenes": scenes,
    "shards": shards,
    "tfds": tfds,
    "video": video,
}

# --- what the sources share: numbers of records, reading their config, and features out of nested records --------------------------------


def within(source: Source, i: int) -> None:
    """Raises: IndexError where a source has no record `i`; a negative number is none."""
    if not 0 <= i < len(source):
        raise IndexError(f"source {source.info.name!r} ({source.info.split}) has {len(source)} records, asked for number {i}")


def described(info: Info, i: int, where: str) -> str:
    """Record `i` for a message, with the file it lies in."""
    return f"source {info.name!r} ({info.split}), record {i} ({where})"


def option(config: Any, key: str, default: Any = None) -> Any:
    """A key of a config group that may not be there (a group saved before the key was, or a test's)."""
    value = config.get(key) if isinstance(config, Mapping | ConfigDict) else getattr(config, key, None)
    return default if value is None else value


def rooted(config: Any, path: str) -> str:
    """`path`, or below `config.dir` if that is set and `path` is neither absolute nor a URL."""
    root, path = option(config, "dir"), os.path.expanduser(path)
    return path if not root or files.is_remote(path) or os.path.isabs(path) else files.join(os.path.expanduser(root), path)


def features_of(config: Any, default: Mapping[str, str]) -> dict[str, str]:
    """`config.features` (key of a record -> where it comes from), or `default` if it is empty. Raises UserError if it is no such map."""
    given = dict(option(config, "features") or {})
    for key, value in given.items():
        if not isinstance(value, str) or not value:
            raise UserError(f"data.features.{key} is {value!r}, expected the name of a feature, with '/' into nested ones")
    return given or dict(default)


NOTHING = object()


def field(value: Any, path: str) -> Any:
    """The part of nested dicts that `a/b` names, through lists too (then one value an item); `NOTHING` if there is no such part."""
    if isinstance(value, list):
        found = [field(item, path) for item in value]
        return NOTHING if any(f is NOTHING for f in found) else found
    if not isinstance(value, Mapping):
        return NOTHING
    key, _, rest = path.partition("/")
    if path in value:  # a key may hold a slash itself
        return value[path]
    return field(value[key], rest) if rest and key in value else NOTHING


def fields_of(value: Mapping[str, Any], features: Mapping[str, str], where: str) -> None:
    """Raises: UserError if a feature names nothing in `value`; with what is there."""
    for key, path in features.items():
        if field(value, path) is NOTHING:
            raise UserError(f"data.features.{key}: {where} has no {path!r}{suggest(path, paths_of(value))}")


def paths_of(value: Any, prefix: str = "") -> list[str]:
    """Every path into nested dicts that leads to something else."""
    if isinstance(value, list) and value:
        value = value[0]
    if not isinstance(value, Mapping):
        return [prefix.rstrip("/")] if prefix else []
    return [path for key, inner in value.items() for path in paths_of(inner, f"{prefix}{key}/")]


def texts_of(value: Any) -> tuple[str, ...]:
    """Captions as a tuple: of one text, of several, or of none (None or nothing there).

    Raises:
      BadSample: something that is no text.
    """
    if value is None or value is NOTHING:
        return ()
    out = (value,) if isinstance(value, str) else tuple(value) if isinstance(value, list | tuple) else (NOTHING,)
    if not all(isinstance(text, str) for text in out):
        raise BadSample("bad_text", f"a caption is no text but {type(value).__name__}")
    return out


def label_of(value: Any, classes: int = 0) -> np.int32:
    """A label as the number of a class, below `classes` where that is known.

    Raises:
      BadSample: something else.
    """
    if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value < (classes or 1 << 31):
        raise BadSample("other", f"label {value!r} is no number of a class{f', 0 to {classes - 1}' if classes else ''}")
    return np.int32(value)


TEXT_KEYS = ("caption", "captions", "text", "texts")


def first_sound(source: Source) -> Mapping[str, Any]:
    """The first record that can be read; {} if none can."""
    for i in range(len(source)):
        with contextlib.suppress(BadSample):
            return source[i]
    return {}


def text_key(record: Mapping[str, Any], given: str, where: str) -> str:
    """Which key of a record like this one holds the text: `given`, or the first of `TEXT_KEYS` that is there. Raises UserError."""
    key = given or next((k for k in TEXT_KEYS if k in record), "")
    if not key:
        raise UserError(f"{where} have none of the keys {', '.join(TEXT_KEYS)} but {', '.join(sorted(record))}; name theirs by --text KEY")
    if key not in record:
        raise UserError(f"{where} have no {key!r}{suggest(key, record)}")
    return key


# --- where prepared sets lie ------------------------------------------------------------------------------------------


def data_dir(directory: str | None) -> Path:
    """The folder of prepared sets, created if need be: `directory`, else $MMJAX_DATA, else ~/.cache/mmjax/data.

    Of a folder that the user named, the last part alone is created: that /disk/data appears on a disk that is not mounted helps nobody.
    """
    named = directory or os.environ.get("MMJAX_DATA")
    key = "data.dir" if directory else "MMJAX_DATA"
    path = Path(named).expanduser() if named else Path.home() / ".cache" / "mmjax" / "data"
    if named and not path.parent.is_dir():
        raise UserError(f"{key}: folder {named!r} does not exist, nor does {str(path.parent)!r}; create it, or leave {key} unset")
    try:
        path.mkdir(parents=not named, exist_ok=True)
    except OSError as e:
        raise UserError(f"data folder {str(path)!r} cannot be used: {e}; name another with data.dir") from e
    return path


def _prepared(root: Path, name: Path, prepare: Callable[[str], Path]) -> Path:
    """`root / name`, made by `prepare(temporary folder) -> folder` if it is missing.

    The set appears under its name by one rename, so a killed preparation leaves no half of one, and of two processes that prepare
    at once one wins and both read the same bytes.
    """
    folder = root / name
    if folder.exists():
        return folder
    temporary = None
    try:
        temporary = tempfile.mkdtemp(prefix=f".{name.parts[0]}-", dir=root)
        made = prepare(temporary)
        folder.parent.mkdir(parents=True, exist_ok=True)
        try:
            os.rename(made, folder)
        except OSError:
            if not folder.exists():  # or else another process was first
                raise
    except OSError as e:
        raise UserError(f"cannot prepare {name} in {str(root)!r}: {e}") from e
    finally:
        if temporary:
            shutil.rmtree(temporary, ignore_errors=True)
    return folder


def _prepare_quietly(module: ModuleType, directory: str) -> Path:
    """TFDS prints bars and paths of the temporary folder; one line is enough."""
    import tensorflow_datasets as tfds

    print(f"preparing {module.DigitsCaptions.name} (once)", file=sys.stderr)
    tfds.disable_progress_bar()
    try:
        with contextlib.redirect_stdout(None):
            return module.prepare(directory)
    finally:
        tfds.enable_progress_bar()
