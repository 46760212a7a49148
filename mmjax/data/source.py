"""Sources: random access to records, with what one needs to know about them; and where prepared sets lie on disk."""

import contextlib
import dataclasses
import functools
import importlib
import os
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from types import ModuleType
from typing import Any, Protocol, runtime_checkable

import numpy as np

from mmjax.core.errors import UserError, suggest
from mmjax.data import tokenizer
from mmjax.data.tokenizer import Tokenizer

_IN_MEMORY = 64 << 20  # a split of fewer bytes on disk is read once and kept


@dataclasses.dataclass(frozen=True)
class Info:
    """What a source says about itself.

    Attributes:
      classes: a word a class, in the order of the labels; empty if the set has no classes.
      prompts: zero-shot templates with `{}` for the class word, none of them used by a training caption.
      tokenizer: the tokenizer.json trained at preparation, if there is one.
      features: key of a record -> what it holds, in words.
    """

    name: str
    split: str
    classes: tuple[str, ...]
    prompts: tuple[str, ...]
    tokenizer: Path | None
    features: Mapping[str, str]


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
    """Opens `config.source` (a key of `SOURCES`), prepared under `config.dir`, which None leaves to $MMJAX_DATA or ~/.cache.

    Raises:
      UserError: an unknown source or split, a data folder that is missing or cannot be written, or a damaged set.
    """
    if config.source not in SOURCES:
        raise UserError(f"data.source: unknown source {config.source!r}{suggest(config.source, SOURCES)}")
    return SOURCES[config.source](config.dir, split)


def open_tokenizer(source: Source) -> Tokenizer | None:
    """The tokenizer trained on the source's captions; None if it has none. Raises UserError if it cannot be read."""
    return None if source.info.tokenizer is None else tokenizer.load(source.info.tokenizer)


def digits_captions(directory: str | None, split: str) -> Source:
    """Scanned digits with captions; see `digits_captions.py`. Prepared on first use."""
    module = importlib.import_module("mmjax.data.digits_captions")
    builder = module.DigitsCaptions
    folder = _prepared(data_dir(directory), Path(builder.name) / str(builder.VERSION), lambda d: _prepare_quietly(module, d))
    return Prepared(folder, split, builder.name, classes=module.WORDS, prompts=module.HELD_OUT_TEMPLATES)


SOURCES: dict[str, Callable[[str | None, str], Source]] = {
    "digits_captions": digits_captions,
}


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
        folder.parent.mkdir(exist_ok=True)
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


class Prepared:
    """One split of a set that TFDS prepared as array_record, with its tokenizer.json beside it. Images stay encoded."""

    def __init__(self, folder: Path, split: str, name: str, *, classes: tuple[str, ...] = (), prompts: tuple[str, ...] = ()):
        """Raises: UserError if the split is unknown or the folder damaged."""
        import tensorflow_datasets as tfds

        self._folder, self._place = folder, f"{name!r} ({split})"
        with self._damage():
            builder = tfds.builder_from_directory(folder)
            tokenizer.load(folder / "tokenizer.json")
        if split not in builder.info.splits:
            raise UserError(f"source {name!r}: unknown split {split!r}{suggest(split, builder.info.splits)}")
        features = builder.info.features
        self.info = Info(
            name, split, classes, prompts, folder / "tokenizer.json", {key: repr(feature) for key, feature in features.items()}
        )
        self._convert = {key: _converter(feature) for key, feature in features.items()}
        encoded = {key: tfds.decode.SkipDecoding() for key, feature in features.items() if isinstance(feature, tfds.features.Image)}
        with self._damage():
            self._records = builder.as_data_source(split=split, decoders=encoded)
            small = builder.info.splits[split].num_bytes < _IN_MEMORY
            self._kept = [self._record(i) for i in range(len(self._records))] if small else None

    def __reduce__(self):
        info = self.info
        return functools.partial(Prepared, classes=info.classes, prompts=info.prompts), (self._folder, info.split, info.name)

    def __len__(self) -> int:
        return len(self._records)

    def __getitem__(self, i: int) -> Mapping[str, Any]:
        if not 0 <= i < len(self):
            raise IndexError(f"source {self._place} has {len(self)} records, asked for number {i}")
        if self._kept is not None:
            return self._kept[i]
        with self._damage():
            return self._record(i)

    def _record(self, i: int) -> dict[str, Any]:
        return {key: self._convert[key](value) for key, value in self._records[i].items()}

    @contextlib.contextmanager
    def _damage(self):
        """Whatever fails while reading a set that was written whole is damage; array_record, TFDS and json raise many kinds."""
        try:
            yield
        except Exception as e:
            reason = f"{type(e).__name__}: {' '.join(str(e).split())[:200]}"
            raise UserError(f"source {self._place}: prepared data is damaged ({reason}); delete {str(self._folder)!r} and run again") from e


def _converter(feature: Any) -> Callable[[Any], Any]:
    """From what TFDS reads to what a record holds: text as str (several as a tuple), labels as int32, the rest as it is."""
    from tensorflow_datasets import features

    if isinstance(feature, features.ClassLabel):
        return np.int32
    if isinstance(feature, features.Text):
        return bytes.decode
    if isinstance(feature, features.Sequence) and isinstance(feature.feature, features.Text):
        return _decode_all
    return _same


def _decode_all(texts: Iterable[bytes]) -> tuple[str, ...]:
    return tuple(text.decode() for text in texts)


def _same(value: Any) -> Any:
    return value
