"""`digits_captions`: the 1,797 handwritten digits that scikit-learn ships, captioned in words, as a TFDS set.

The scans are UCI's "Optical Recognition of Handwritten Digits" test set (E. Alpaydin, C. Kaynak, 1998): 8x8 pixels, 17 grey
levels. Nothing is downloaded. Importing this module imports tensorflow_datasets but never TensorFlow: images are handed over as
PNG bytes and stored as array_record.
"""

import io
import os
from pathlib import Path

import numpy as np
import tensorflow_datasets as tfds

from mmjax.data import tokenizer

WORDS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")

# Captions of training: every image is stored with all of them, and a transform picks.
TRAIN_TEMPLATES = (
    "{}",
    "the digit {}",
    "the number {}",
    "a {}",
    "a scanned digit {}",
    "a handwritten {}",
    "a handwritten number {}",
    "a small picture of the digit {}",
    "a picture of the number {}",
    "a photo of a {} on paper",
    "somebody wrote the number {} by hand",
    "a grey scan of a {}",
    "this is the digit {}",
    "this shows a {}",
    "here is a handwritten {}",
    "a {} written with a pen",
    "the figure {} in ink",
    "an image of the handwritten digit {}",
    "a tiny image of a {}",
    "a low resolution scan of the number {}",
    "a blurry {}",
    "one can read the number {} here",
    "the image shows the digit {}",
    "the paper has a {} on it",
    "a digit, namely {}",
    "scan of the figure {}, written by hand",
    "it is a {}",
    "a person drew this {}",
    "the handwriting says {}",
    "that looks like a {}",
)

# Sentences no training caption uses: the prompts of zero-shot classification.
HELD_OUT_TEMPLATES = (
    "a scan of the digit {}",
    "a photo of the number {}",
    "a picture showing the handwritten figure {}",
    "the number in this image is {}",
    "a pen drew the digit {} on paper",
)

TEST_PER_CLASS, VALIDATION_PER_CLASS = 36, 14
_SPLIT_SEED = 1797
VOCAB_SIZE = 640  # of the tokenizer: every number word is one token, and no caption or prompt takes more than 16 ids


def captions(label: int) -> list[str]:
    """Every training caption of a digit."""
    return [template.format(WORDS[label]) for template in TRAIN_TEMPLATES]


def split_indices(labels: np.ndarray) -> dict[str, list[int]]:
    """The fixed, stratified split: 36 scans of each digit for test, 14 for validation, the rest for training."""
    out: dict[str, list[int]] = {"train": [], "validation": [], "test": []}
    for label in range(len(WORDS)):
        rng = np.random.Generator(np.random.Philox(key=[_SPLIT_SEED, label]))
        members = rng.permutation(np.flatnonzero(labels == label)).tolist()
        cut = TEST_PER_CLASS + VALIDATION_PER_CLASS
        out["test"] += members[:TEST_PER_CLASS]
        out["validation"] += members[TEST_PER_CLASS:cut]
        out["train"] += members[cut:]
    return {name: sorted(indices) for name, indices in out.items()}


def png(levels: np.ndarray) -> bytes:
    """PNG bytes of grey levels 0..16 [H, W], spread over 0..255."""
    from PIL import Image

    buffer = io.BytesIO()
    Image.fromarray(np.round(levels * (255 / 16)).astype(np.uint8)).save(buffer, "PNG")
    return buffer.getvalue()


class DigitsCaptions(tfds.core.GeneratorBasedBuilder):
    """Features: `image` uint8[8, 8, 1], `label` (zero..nine), `captions` (one a training template)."""

    VERSION = tfds.core.Version("1.0.0")
    RELEASE_NOTES = {"1.0.0": "First version."}  # noqa: RUF012 (the attribute TFDS reads)

    def _info(self) -> tfds.core.DatasetInfo:
        features = tfds.features.FeaturesDict(
            {
                "image": tfds.features.Image(shape=(8, 8, 1), dtype=np.uint8, encoding_format="png"),
                "label": tfds.features.ClassLabel(names=WORDS),
                "captions": tfds.features.Sequence(tfds.features.Text()),
            }
        )
        return tfds.core.DatasetInfo(
            builder=self,
            description="Scanned handwritten digits (8x8, grey) with captions that name the digit in words.",
            features=features,
            homepage="https://archive.ics.uci.edu/dataset/80",
            citation="E. Alpaydin and C. Kaynak. Optical Recognition of Handwritten Digits. UCI Machine Learning Repository, 1998.",
        )

    def _split_generators(self, dl_manager):
        from sklearn.datasets import load_digits

        digits = load_digits()
        return {name: self._generate_examples(digits, indices) for name, indices in split_indices(digits.target).items()}

    def _generate_examples(self, digits, indices):
        for i in indices:
            label = int(digits.target[i])
            yield i, {"image": io.BytesIO(png(digits.images[i])), "label": label, "captions": captions(label)}


def prepare(data_dir: str | os.PathLike) -> Path:
    """Writes the set and its tokenizer under `data_dir`; returns the folder that holds them, `<name>/<version>`."""
    builder = DigitsCaptions(data_dir=data_dir, file_format="array_record")
    builder.download_and_prepare()
    train = builder.as_data_source(split="train", decoders={"image": tfds.decode.SkipDecoding()})
    texts = [text.decode() for record in train for text in record["captions"]]
    folder = Path(builder.data_path)
    tokenizer.train(texts, VOCAB_SIZE).save(folder / "tokenizer.json")
    return folder
