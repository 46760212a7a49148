"""`tfds`: any prepared TFDS set in array_record, opened from its folder alone; what published sets call their features is in `SETS`.

Config (group `data`):
  path: the set's folder: `mnist/3.0.1`, or `mnist` for its newest version; relative to `dir` (default $MMJAX_DATA or ~/.cache/mmjax/data).
    Local, or gs://.
  split: a split, or what TFDS makes of one: "train[:10%]", "train+validation".
  features: key of a record -> feature, with "/" into nested ones: {"image": "image", "captions": "captions/text", "label": "label"}.
    Unset: that of `SETS` for the set's name, else every feature under its own name.
  classes: a file with the classes' names, one a line in the order of the labels; unset, the names the set has.
  prompts: zero-shot templates; unset, those of `SETS`, else "a photo of a {}.".

A record: `image` encoded bytes as stored, `captions` a tuple of text, `label` int32; other features as text, numbers or arrays, images as
bytes, several (a video) as a tuple of bytes. No TensorFlow is imported, and nothing in the folder is executed.
"""

import contextlib
import dataclasses
import functools
import hashlib
import json
import re
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from mmjax.core.errors import UserError, suggest
from mmjax.data import files, tokenizer
from mmjax.data.bad import BadSample
from mmjax.data.source import Info, data_dir, features_of, option, within

_IN_MEMORY = 64 << 20  # a split of fewer bytes on disk is read once and kept
_MODULES = "tensorflow_datasets.core.features."


@dataclasses.dataclass(frozen=True)
class Set:
    """What a published set calls its features, and the prompts for its classes."""

    features: Mapping[str, str]
    prompts: tuple[str, ...] = ()


_LABELLED = {"image": "image", "label": "label"}
# The seven templates that make up most of the gain of CLIP's eighty on ImageNet, as its authors published them.
CLIP_SEVEN = (
    "itap of a {}.",
    "a bad photo of the {}.",
    "a origami {}.",
    "a photo of the large {}.",
    "a {} in a video game.",
    "art of the {}.",
    "a photo of the small {}.",
)
_SMALL = ("a photo of a {}.", "a blurry photo of a {}.", "a low contrast photo of a {}.", "a photo of a small {}.", "a photo of a big {}.")
SETS: dict[str, Set] = {
    "mnist": Set(_LABELLED, ('a photo of the number: "{}".',)),
    "cifar10": Set(_LABELLED, _SMALL),
    "cifar100": Set(_LABELLED, _SMALL),
    # ImageNet and the sets that test what was learnt from it: labels are its 1,000 in its order in all five, named by WordNet ids.
    # data.classes gives words, one file for all; ImageNet-A and -R have images of 200 classes each.
    **dict.fromkeys(("imagenet2012", "imagenet_v2", "imagenet_a", "imagenet_r", "imagenet_sketch"), Set(_LABELLED, CLIP_SEVEN)),
    "coco_captions": Set({"image": "image", "captions": "captions/text"}),
    "flickr30k": Set({"image": "image", "captions": "caption"}),
}


def open_tfds(config: Any, split: str) -> "Prepared":
    """See the module's docstring.

    Raises:
      UserError: no prepared set there, one in another format than array_record, an unknown split, or a feature that is not there.
    """
    if not option(config, "path"):
        raise UserError("data.source=tfds needs data.path, the set's folder below data.dir: data.path=mnist/3.0.1")
    given = config.path
    root = given if files.is_remote(given) or Path(given).expanduser().is_absolute() else None
    if root is None and files.is_remote(option(config, "dir", "")):
        root = files.join(config.dir, given)
    folder = version_folder(root or str(data_dir(option(config, "dir")) / given))
    classes = read_classes(config.classes) if option(config, "classes") else None
    return Prepared(folder, split, features_of(config, {}), classes=classes, prompts=tuple(option(config, "prompts", ())))


def read_classes(path: str) -> tuple[str, ...]:
    """The lines of a file of class names. Raises UserError if it cannot be read or has an empty line."""
    try:
        lines = tuple(files.read(path).decode().splitlines())
    except (OSError, UnicodeDecodeError) as e:
        raise UserError(f"data.classes: '{path}' cannot be read: {e}") from e
    if not lines or not all(line.strip() for line in lines):
        raise UserError(f"data.classes: '{path}' has an empty line, expected a class name on each")
    return tuple(line.strip() for line in lines)


def version_folder(folder: str) -> str:
    """The folder with dataset_info.json: `folder` itself, or the newest version in it. Raises UserError if there is none."""
    if folder.startswith("s3://"):
        raise UserError(f"TFDS set '{folder}': array_record is read from local disks and gs:// only; copy it to a disk")
    try:
        entries = dict(files.listdir(folder))
    except (FileNotFoundError, NotADirectoryError):
        raise UserError(f"TFDS set '{folder}' does not exist; see data.path and data.dir") from None
    if "dataset_info.json" in entries:
        return folder
    versions = [name for name, is_folder in entries.items() if is_folder and re.fullmatch(r"\d+\.\d+\.\d+", name)]
    if versions:
        return version_folder(files.join(folder, max(versions, key=lambda v: [int(n) for n in v.split(".")])))
    inner = ", ".join(name for name, is_folder in entries.items() if is_folder)
    raise UserError(f"'{folder}' is no prepared TFDS set: no dataset_info.json; {f'it holds {inner}' if inner else 'see data.path'}")


class _Refused(UserError):
    """What is wrong with a set that is not damaged."""


def refuse_foreign_code(text: str, where: str) -> None:
    """TFDS imports the module that features.json names for a feature it does not know; only its own may be named.

    Raises:
      UserError: a feature of another package.
    """

    def look(value: Any) -> None:
        for item in value.values() if isinstance(value, dict) else value if isinstance(value, list) else ():
            look(item)
        if not isinstance(value, dict):
            return
        if isinstance(inner := value.get("json"), str):  # the older form, JSON within JSON
            with contextlib.suppress(ValueError):
                look(json.loads(inner))
        for key in ("type", "pythonClassName", "python_class_name"):
            name = value.get(key)
            if isinstance(name, str) and "." in name and not re.fullmatch(re.escape(_MODULES) + r"\w+\.\w+", name):
                raise _Refused(f"'{where}' names the feature class '{name}'; only TFDS's own are read, since others would run code")

    look(json.loads(text))


class Prepared:
    """One split of a set that TFDS prepared as array_record. A `Source`; images stay encoded."""

    def __init__(
        self,
        folder: str,
        split: str,
        features: Mapping[str, str] | None,
        *,
        name: str | None = None,
        classes: tuple[str, ...] | None = None,
        prompts: tuple[str, ...] = (),
        own_tokenizer: bool = False,
    ):
        """Args: own_tokenizer: the set was prepared here, with a tokenizer.json that must be there; it can be prepared again.

        Raises: UserError if the split or a feature is unknown or the folder damaged.
        """
        import tensorflow_datasets as tfds

        self._given = (folder, split, features), {"name": name, "classes": classes, "prompts": prompts, "own_tokenizer": own_tokenizer}
        name = name or files.basename(files.parent(folder))
        self._place = f"{name!r} ({split})"
        self._fix = f"delete {folder!r} and run again" if own_tokenizer else f"copy or prepare {folder!r} again"
        with self._damage():
            refuse_foreign_code(files.read(files.join(folder, "features.json")).decode(), files.join(folder, "features.json"))
            _check_format(json.loads(files.read(files.join(folder, "dataset_info.json"))), folder)
            builder = tfds.builder_from_directory(folder, file_format="array_record")
            name = self._given[1]["name"] or builder.name
            if own_tokenizer:
                tokenizer.load(Path(folder) / "tokenizer.json")
        _check_split(split, builder.info.splits, name)
        known = SETS.get(name, Set({}))
        features = features or known.features or {key: key for key in builder.info.features}
        found = {key: _find(builder.info.features, path) for key, path in features.items()}
        for key, value in found.items():
            if value is None:
                paths = _paths(builder.info.features)
                raise UserError(f"data.features.{key}: set {name!r} has no feature {features[key]!r}{suggest(features[key], paths)}")
        self._take = {key: (keys, _converter(key, feature)) for key, (keys, feature) in found.items()}
        needed = {keys[0] for keys, _ in found.values()}
        self._decode = tfds.features.FeaturesDict({key: _reading(f) for key, f in builder.info.features.items() if key in needed})
        self.info = self._describe(builder, name, split, found, features, classes, prompts or known.prompts)
        with self._damage():
            raw = tfds.decode.DeserializeMethod.RAW_BYTES
            self._records = builder.as_data_source(split=split, deserialize_method=raw)
            small = sum(builder.info.splits[part].num_bytes for part in _parts(split, builder.info.splits)) < _IN_MEMORY
            self._kept = [self._keep(i) for i in range(len(self._records))] if small else None

    def _describe(self, builder: Any, name: str, split: str, found: Any, features: Any, classes: Any, prompts: tuple[str, ...]) -> Info:
        from tensorflow_datasets.core.features import ClassLabel

        folder, label = self._given[0][0], found.get("label", (None, None))[1]
        names = tuple(label.names) if isinstance(label, ClassLabel) and label.num_classes else ()
        if classes is not None and names and len(classes) != len(names):
            raise UserError(f"data.classes has {len(classes)} names, set {name!r} has {len(names)} classes")
        ids = names
        if names and all(re.fullmatch(r"n\d{8}", n) for n in names):
            names = ()  # WordNet ids are no words: better no zero-shot classification than one by such prompts
        names = names if classes is None else classes
        tokens = Path(folder) / "tokenizer.json"
        here = not files.is_remote(folder) and tokens.is_file()
        words = {key: f"{feature!r}" if features[key] == key else f"{features[key]}: {feature!r}" for key, (_, feature) in found.items()}
        with self._damage():
            parts = {part: builder.info.splits[part] for part in _parts(split, builder.info.splits)}
            paths = [str(path) for part in parts.values() for path in part.filepaths]
            sizes = [stat and stat.size for stat in files.stats(paths)]
            missing = next((path for path, size in zip(paths, sizes, strict=True) if size is None), None)
            if missing:
                raise FileNotFoundError(f"{missing} is missing")
            lengths = [list(p.shard_lengths) for p in parts.values()]
        marks = [name, str(builder.info.version), split, lengths, sizes, sorted(features.items())]
        fingerprint = hashlib.sha256(json.dumps(marks).encode()).hexdigest()[:16]
        prompts = prompts or (("a photo of a {}.",) if names else ())
        stored = {"fingerprint": fingerprint, "ids": ids, "files": len(paths), "bytes": sum(sizes)}
        return Info(name, split, names, prompts if names else (), tokens if here else None, words, **stored)

    def __reduce__(self):
        args, options = self._given
        return functools.partial(Prepared, **options), args

    def __len__(self) -> int:
        return len(self._records)

    def __getitem__(self, i: int) -> Mapping[str, Any]:
        within(self, i)
        if self._kept is not None:
            if isinstance(self._kept[i], BadSample):
                raise BadSample(*self._kept[i].args)
            return self._kept[i]
        with self._damage():
            return self._record(i)

    def _keep(self, i: int) -> dict[str, Any] | BadSample:
        try:
            return self._record(i)
        except BadSample as e:
            return e

    def _record(self, i: int) -> dict[str, Any]:
        read = self._decode.deserialize_example_np(self._records[i])
        return {key: convert(functools.reduce(lambda v, k: v[k], keys, read)) for key, (keys, convert) in self._take.items()}

    @contextlib.contextmanager
    def _damage(self):
        """Whatever fails while reading a set that was written whole is damage; array_record, TFDS and json raise many kinds."""
        try:
            yield
        except (BadSample, _Refused):
            raise
        except Exception as e:
            reason = f"{type(e).__name__}: {' '.join(str(e).split())[:200]}"
            raise UserError(f"source {self._place}: prepared data is damaged ({reason}); {self._fix}") from e


def _check_format(info: Mapping[str, Any], folder: str) -> None:
    formats = [info.get("fileFormat") or "tfrecord", *info.get("alternativeFileFormats", ())]
    if "array_record" not in formats:
        raise _Refused(
            f"TFDS set '{folder}' is stored as {formats[0]}, which has no random access; convert it once, where TensorFlow is installed: "
            f"tfds convert_format --dataset_version_dir={folder} --out_file_format=array_record"
        )


def _parts(split: str, splits: Mapping[str, Any]) -> list[str]:
    """The names in `train[:10%]+validation`; `all` is every split."""
    names = [re.sub(r"\[.*\]$", "", part.strip()) for part in split.split("+")]
    return [name for part in names for name in (splits if part == "all" and part not in splits else [part])]


def _check_split(split: str, splits: Mapping[str, Any], name: str) -> None:
    for part in _parts(split, splits):
        if part not in splits:
            raise UserError(f"source {name!r}: unknown split {part!r}{suggest(part, splits)}")
    try:
        count = splits[split].num_examples
    except (ValueError, AssertionError) as e:
        raise UserError(f"source {name!r}: split {split!r} cannot be read ({e}); expected the like of 'train[:10%]' or 'train+test'") from e
    if count <= 0:  # TFDS counts train[5:2] as less than nothing
        raise UserError(f"source {name!r}: split {split!r} is empty")


def _find(features: Any, path: str) -> tuple[tuple[str, ...], Any] | None:
    """(keys that lead to it in what is read, feature) of a path; a key may hold a slash itself (COCO's image/filename)."""
    from tensorflow_datasets import features as f

    inner = features
    while isinstance(inner, f.Sequence):
        inner = inner.feature
    if not isinstance(inner, f.FeaturesDict):
        return None
    for key in inner:
        if path == key:
            return (key,), inner[key]
        if path.startswith(f"{key}/") and (found := _find(inner[key], path[len(key) + 1 :])):
            return (key, *found[0]), found[1]
    return None


def _paths(features: Any, prefix: str = "") -> list[str]:
    from tensorflow_datasets import features as f

    while isinstance(features, f.Sequence):
        features = features.feature
    if not isinstance(features, f.FeaturesDict):
        return [prefix.rstrip("/")]
    return [path for key in features for path in _paths(features[key], f"{prefix}{key}/")]


def _reading(feature: Any) -> Any:
    """The feature as it is read: pictures as the bytes they are stored as, whatever they lie in."""
    from tensorflow_datasets import features as f

    if isinstance(feature, f.Image):
        return f.Text()
    if isinstance(feature, f.FeaturesDict):
        return f.FeaturesDict({key: _reading(inner) for key, inner in feature.items()})
    if isinstance(feature, f.Sequence):
        return f.Sequence(_reading(feature.feature))
    return feature


def _converter(key: str, feature: Any) -> Callable[[Any], Any]:
    """From what TFDS reads to what a record holds. A feature within a sequence of dicts comes as the list of its values."""
    from tensorflow_datasets import features as f

    inner = feature
    while isinstance(inner, f.Sequence):
        inner = inner.feature
    if isinstance(inner, f.Image):
        return _pictures
    text = isinstance(inner, f.Text) or getattr(inner, "np_dtype", None) in (np.str_, np.object_)
    if key == "captions":
        return _captions
    if key == "label" and feature is inner:
        return np.int32
    if isinstance(inner, f.ClassLabel) and feature is inner:
        return _labels
    return _strings if text else _numbers


def _pictures(value: Any) -> Any:
    return value if isinstance(value, bytes) else tuple(value)


def _captions(value: Any) -> tuple[str, ...]:
    return (_string(value),) if isinstance(value, bytes | str) else _strings(value)


def _strings(value: Any) -> Any:
    return _string(value) if isinstance(value, bytes | str) else tuple(_strings(v) for v in value)


def _string(value: bytes | str) -> str:
    try:
        return value if isinstance(value, str) else value.decode()
    except UnicodeDecodeError as e:
        raise BadSample("bad_text", f"not UTF-8 at byte {e.start}") from e


def _labels(value: Any) -> Any:
    return np.asarray(value, np.int32) if isinstance(value, Iterable) else np.int32(value)


def _numbers(value: Any) -> Any:
    """Lists of numbers as arrays; lists of lists, which may differ in length, as they are."""
    return np.asarray(value) if isinstance(value, list) and not any(isinstance(v, list) for v in value) else value
