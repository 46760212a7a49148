import io
import subprocess
import sys
from collections import Counter
from types import SimpleNamespace

import numpy as np
from PIL import Image
from sklearn.datasets import load_digits

from mmjax.data import digits_captions as dc
from mmjax.data.source import open_source

SIZES = {"train": 1297, "validation": 140, "test": 360}


def test_splits_are_fixed_stratified_and_disjoint():
    labels = load_digits().target
    split = dc.split_indices(labels)
    assert {name: len(indices) for name, indices in split.items()} == SIZES
    assert sorted(i for indices in split.values() for i in indices) == list(range(1797))
    assert set(Counter(labels[split["test"]].tolist()).values()) == {36}
    assert set(Counter(labels[split["validation"]].tolist()).values()) == {14}
    assert split["test"][:5] == [0, 7, 9, 23, 25], "the test split may never move: published numbers stand on it"
    assert split == dc.split_indices(labels)


def test_stored_images_are_scikit_learns(data):
    digits = load_digits()
    expected = Counter(
        (np.round(image * 255 / 16).astype(np.uint8).tobytes(), int(t)) for image, t in zip(digits.images, digits.target, strict=True)
    )
    stored = Counter()
    for split, size in SIZES.items():
        source = open_source(data, split)
        assert len(source) == size
        for i in range(size):
            image = np.asarray(Image.open(io.BytesIO(source[i]["image"])))
            assert image.shape == (8, 8) and image.dtype == np.uint8
            stored[image.tobytes(), int(source[i]["label"])] += 1
    # All 1797 scans differ, so this also says that no image is in two splits.
    assert stored == expected and max(stored.values()) == 1


def test_templates():
    assert len(dc.TRAIN_TEMPLATES) + len(dc.HELD_OUT_TEMPLATES) >= 20 and len(dc.HELD_OUT_TEMPLATES) == 5
    every = [" ".join(t.split()) for t in (*dc.TRAIN_TEMPLATES, *dc.HELD_OUT_TEMPLATES)]
    assert len(set(every)) == len(every)
    assert all(t.count("{}") == 1 for t in every)
    for prompt in dc.HELD_OUT_TEMPLATES:  # not hidden inside a longer training sentence either, nor the other way round
        assert not any((t != "{}" and t in prompt) or prompt in t for t in dc.TRAIN_TEMPLATES if len(t.split()) > 3)


def test_captions_name_the_digit_and_never_use_a_prompt(train_source):
    prompts = {p.format(w) for p in dc.HELD_OUT_TEMPLATES for w in dc.WORDS}
    assert train_source.info.prompts == dc.HELD_OUT_TEMPLATES and train_source.info.classes == dc.WORDS
    for i in range(0, len(train_source), 37):
        record = train_source[i]
        assert record["captions"] == tuple(t.format(dc.WORDS[record["label"]]) for t in dc.TRAIN_TEMPLATES)
        assert not prompts & set(record["captions"])


def test_every_caption_and_prompt_fits_in_16_ids(words):
    longest = max(len(words._ids(t.format(w))) for t in (*dc.TRAIN_TEMPLATES, *dc.HELD_OUT_TEMPLATES) for w in dc.WORDS)
    assert longest + 2 <= 16
    assert all(len(words._ids(w)) == 1 for w in dc.WORDS)
    assert words.vocab_size == dc.VOCAB_SIZE


def test_preparation_is_deterministic_and_free_of_tensorflow(data, tmp_path):
    code = (
        "import sys; from types import SimpleNamespace as N; from mmjax.data.source import open_source;"
        "open_source(N(source='digits_captions', dir=sys.argv[1]), 'test')[0];"
        "assert 'tensorflow' not in sys.modules; assert 'flax' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code, str(tmp_path)], check=True, capture_output=True)
    again = SimpleNamespace(source="digits_captions", dir=str(tmp_path))
    for split in SIZES:  # the same records in the same places; array_record's bytes differ, as protobuf maps have no order
        first, second = open_source(data, split), open_source(again, split)
        assert all(first[i] == second[i] for i in range(len(first)))
    assert first.info.tokenizer.read_bytes() == second.info.tokenizer.read_bytes() and first.info.tokenizer != second.info.tokenizer
