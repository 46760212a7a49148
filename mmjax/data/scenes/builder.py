"""`scenes` as a TFDS set: prepared once, in array_record, the same bytes on any machine with any number of processes.

`Settings` are a config, the pictures' side and the number of examples; its name is the set's folder: `scenes/objects_64_20000_1000`.
Importing this module imports tensorflow_datasets but never TensorFlow.
"""

import contextlib
import dataclasses
import io
import multiprocessing
import os
import shutil
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import tensorflow_datasets as tfds
from tensorflow_datasets.core import writer
from tensorflow_datasets.proto import tf_example_pb2

from mmjax.core.errors import UserError, suggest
from mmjax.core.progress import Progress
from mmjax.data.scenes import draw
from mmjax.data.scenes.examples import CONFIGS, Example, example
from mmjax.data.scenes.splits import SPLITS

TOKENIZER = Path(__file__).with_name("tokenizer.json")  # one for every config, made by vocabulary.py
PAIRS = ("swaps", "hard_negatives")  # splits of pairs: configs of their own, since an example holds something else
_CHUNK = 50  # examples a process makes at a time


@dataclasses.dataclass(frozen=True)
class Settings:
    """What is prepared. `train`: examples of that split; `evaluation`: of each other one."""

    config: str
    pixels: int
    train: int
    evaluation: int

    def __post_init__(self):
        """Raises: UserError: no such config or picture size, or no examples."""
        splits_of(self.config)
        if self.pixels not in draw.IMAGE_SIZES:
            raise UserError(f"data.scenes.pixels is {self.pixels}; scenes are drawn at {', '.join(map(str, draw.IMAGE_SIZES))}")
        for key in ("train", "evaluation"):
            if getattr(self, key) < 1:
                raise UserError(f"data.scenes.{key} is {getattr(self, key)}, expected at least one example")

    @property
    def name(self) -> str:
        return f"{self.config}_{self.pixels}_{self.train}_{self.evaluation}"

    def counts(self) -> dict[str, int]:
        """Examples a split."""
        return {split: self.train if split == "train" else self.evaluation for split in CONFIGS[self.config].splits}


def settings(config: str, split: str, pixels: int, train: int, evaluation: int) -> Settings:
    """Of the set that holds a split: `swaps` and `hard_negatives` are the same whatever the config.

    Raises:
      UserError: no such config, split or picture size.
    """
    if split.partition("[")[0] in PAIRS:
        config, train = split.partition("[")[0], evaluation
    return Settings(config, pixels, train, evaluation)


def splits_of(config: str) -> tuple[str, ...]:
    """Those that `data.split` may name with a config.

    Raises:
      UserError: no such config.
    """
    if config not in CONFIGS:
        raise UserError(f"data.scenes.config: scenes have no config {config!r}{suggest(config, CONFIGS)}")
    return CONFIGS[config].splits if config in PAIRS else (*CONFIGS[config].splits, *PAIRS)


def _feature(kind: str, pixels: int):
    f = tfds.features
    image = lambda: f.Image(shape=(pixels, pixels, 3), dtype=np.uint8, encoding_format="png")
    return {
        "image": image,
        "images": lambda: f.Sequence(image()),
        "text": f.Text,
        "texts": lambda: f.Sequence(f.Text()),
        "integers": lambda: f.Sequence(f.Scalar(np.int32)),
    }[kind]()


class Scenes(tfds.core.GeneratorBasedBuilder):
    """Features as examples.CONFIGS states them for the config."""

    VERSION = tfds.core.Version("1.0.0")
    RELEASE_NOTES = {"1.0.0": "First version."}  # noqa: RUF012 (the attribute TFDS reads)

    def __init__(self, *, made: Settings, workers: int = 0, progress: Progress | None = None, **kwargs):
        """Args: made: what is prepared. workers: processes that draw, 0 for this one. progress: told of every example."""
        self._made, self._workers, self._progress, self._done = made, workers, progress, 0
        super().__init__(config=tfds.core.BuilderConfig(name=made.name, version=self.VERSION), **kwargs)

    def _info(self) -> tfds.core.DatasetInfo:
        kinds = CONFIGS[self._made.config].features
        return tfds.core.DatasetInfo(
            builder=self,
            description="Procedural scenes with captions, questions or motions, and the scene graph they were made from.",
            features=tfds.features.FeaturesDict({name: _feature(kind, self._made.pixels) for name, kind in kinds.items()}),
        )

    def _example_writer(self) -> writer.ExampleWriter:
        return _SameBytes(file_format=tfds.core.FileFormat.ARRAY_RECORD)

    def _split_generators(self, dl_manager):
        return {split: self._generate_examples(split, count) for split, count in self._made.counts().items()}

    def _generate_examples(self, split: str, count: int):
        kinds = CONFIGS[self._made.config].features
        for index, made in enumerate(_in_order(self._made, split, count, self._workers)):
            yield index, {name: _handed_over(kinds[name], value) for name, value in made.items()}
            self._done += 1
            if self._progress is not None:
                self._progress.update(self._done)


class _SameBytes(writer.ExampleWriter):
    """A record's features in the order of their names: TFDS leaves that to protobuf, whose order changes from process to process."""

    def write(self, path, examples):
        return super().write(path, ((key, _sorted(record)) for key, record in examples))


def _sorted(record: bytes) -> bytes:
    return tf_example_pb2.Example.FromString(record).SerializeToString(deterministic=True)


def _handed_over(kind: str, value):
    """TFDS takes encoded pictures as files."""
    if kind == "image":
        return io.BytesIO(value)
    return [io.BytesIO(v) for v in value] if kind == "images" else value


def _in_order(made: Settings, split: str, count: int, workers: int) -> Iterator[Example]:
    chunks = [(made.config, split, start, min(start + _CHUNK, count), made.pixels) for start in range(0, count, _CHUNK)]
    if not workers:
        for chunk in chunks:
            yield from _make(chunk)
        return
    with multiprocessing.get_context("spawn").Pool(workers) as pool:
        for examples in pool.imap(_make, chunks):
            yield from examples


def _make(chunk: tuple[str, str, int, int, int]) -> list[Example]:
    config, split, start, stop, pixels = chunk
    return [example(config, split, index, pixels) for index in range(start, stop)]


def prepare(data_dir: str | os.PathLike, made: Settings, workers: int | None = None) -> Path:
    """Writes the set and its tokenizer under `data_dir`, with a bar; returns the folder that holds them, `scenes/<name>/<version>`.

    Args:
      workers: processes; by default one a core, or none for a small set, which is made sooner than they start.
    """
    total = sum(made.counts().values())
    if workers is None:
        workers = 0 if total < 4000 else os.cpu_count() or 1
    progress = Progress(total, batch_size=1, unit="example")
    began = time.monotonic()
    with contextlib.closing(progress):
        progress.say(f"preparing scenes/{made.name} (once): {', '.join(f'{n:,} {s}' for s, n in made.counts().items())}")
        progress.start()
        tfds.disable_progress_bar()
        try:
            builder = Scenes(made=made, workers=workers, progress=progress, data_dir=data_dir, file_format="array_record")
            with contextlib.redirect_stdout(None):
                builder.download_and_prepare()
        finally:
            tfds.enable_progress_bar()
        folder = Path(builder.data_path)
        shutil.copy(TOKENIZER, folder / "tokenizer.json")
        files = list(folder.glob("*.array_record*"))
        seconds = time.monotonic() - began
        size = sum(f.stat().st_size for f in files) / 2**20
        progress.say(f"prepared {total:,} examples, {size:.1f} MiB in {len(files)} files, {total / seconds:,.0f} examples a second")
    return folder


__all__ = ["PAIRS", "SPLITS", "Scenes", "Settings", "prepare", "settings", "splits_of"]
