"""Small sets on disk, as people bring them."""

import io
import json
import tarfile
from pathlib import Path

import numpy as np
from ml_collections import ConfigDict
from PIL import Image

from mmjax.core import config as config_lib


def picture(i: int, size=(8, 8), mode="L", kind="PNG") -> bytes:
    """An encoded image that depends on `i` alone; `size` is (width, height)."""
    shape = (size[1], size[0]) if mode == "L" else (size[1], size[0], 3)
    out = io.BytesIO()
    Image.fromarray(np.random.default_rng(i).integers(0, 256, shape, np.uint8), mode).save(out, kind)
    return out.getvalue()


def write_jsonl(folder: Path, count: int, broken=()) -> Path:
    """`folder/set.jsonl` of labelled, captioned pictures; those in `broken` are no pictures."""
    (folder / "images").mkdir(parents=True)
    lines = []
    for i in range(count):
        name = f"images/{i:05d}.png"
        (folder / name).write_bytes(b"no picture" if i in broken else picture(i))
        lines.append(json.dumps({"image": name, "label": i % 10, "caption": f"picture {'of many things ' * (i % 7)}{i}"}))
    (folder / "set.jsonl").write_text("\n".join(lines) + "\n")
    return folder / "set.jsonl"


def jsonl_data(folder: Path, count: int, broken=()) -> ConfigDict:
    """Config `data` of the set that `write_jsonl` writes."""
    group = config_lib.base().data
    group.source, group.path = "jsonl", str(write_jsonl(folder, count, broken))
    return group


def write_shards(folder: Path, counts) -> Path:
    """`folder/00000.tar` and so on as img2dataset writes them, with so many samples each; the folder."""
    folder.mkdir(parents=True)
    i = 0
    for shard, count in enumerate(counts):
        with tarfile.open(folder / f"{shard:05d}.tar", "w") as t:
            for _ in range(count):
                parts = {"png": picture(i), "txt": f"picture number {i}".encode(), "json": json.dumps({"label": i % 10}).encode()}
                for kind, data in parts.items():
                    info = tarfile.TarInfo(f"{i:08d}.{kind}")
                    info.size = len(data)
                    t.addfile(info, io.BytesIO(data))
                i += 1
    return folder


def write_tfds(root: Path, count: int) -> Path:
    """`root/pictures/1.0.0`, a TFDS set in array_record; the folder `root`."""
    import tensorflow_datasets as tfds

    class Pictures(tfds.core.GeneratorBasedBuilder, skip_registration=True):
        VERSION = tfds.core.Version("1.0.0")

        def _info(self):
            features = {
                "image": tfds.features.Image(shape=(8, 8, 1), encoding_format="png"),
                "label": tfds.features.ClassLabel(num_classes=10),
            }
            return tfds.core.DatasetInfo(builder=self, features=tfds.features.FeaturesDict(features))

        def _split_generators(self, dl_manager):
            return {"train": self._generate_examples()}

        def _generate_examples(self):
            for i in range(count):
                yield i, {"image": io.BytesIO(picture(i)), "label": i % 10}

    Pictures.name = "pictures"
    Pictures(data_dir=str(root), file_format="array_record").download_and_prepare()
    return root
