"""Several captions a record: their rows of tokens, one row drawn for all keys, and the words that a set has seen."""

import numpy as np
import pytest

from mmjax.core.errors import UserError
from mmjax.data import store, transforms
from mmjax.data import tokenizer as tokenizers
from mmjax.data.bad import BadSample
from mmjax.data.scenes.builder import TOKENIZER

WORDS = tokenizers.load(TOKENIZER)
META = {
    "predict": {},
    "features": {},
    "model": {"fingerprint": "aa", "workdir": "", "step": 1},
    "source": {"name": "s", "split": "train", "classes": [], "prompts": []},
}


def written(folder, rows, **more):
    """A set of token rows, and of what else is given, a row a record."""
    writer = store.Writer(folder, {}, len(rows), len(rows))
    writer.write(0, ({"tokens": row, **{k: x[i] for k, x in more.items()}} for i, row in enumerate(rows)))
    return writer.finish(META, TOKENIZER)


def test_rows_of_every_caption_in_turn():
    rows = transforms.TokenizeAll(transforms.Tokenize(WORDS, 8), 3)
    got = rows({"captions": ("a red circle", "a star")}, np.random.default_rng(0))["tokens"]
    np.testing.assert_array_equal(got, WORDS.encode(["a red circle", "a star", "a red circle"], 8))
    with pytest.raises(BadSample):
        rows({"captions": ()}, np.random.default_rng(0))


def test_one_row_of_all_keys():
    pick = transforms.build((("pick_row", {"keys": ("x", "y")}),))
    example, rng = {"x": np.arange(5), "y": 10 * np.arange(5), "z": 1}, np.random.default_rng(0)
    got = [pick(example, rng) for _ in range(40)]
    assert all(10 * g["x"] == g["y"] and g["z"] == 1 for g in got) and len({int(g["x"]) for g in got}) == 5
    assert transforms.PickRow(("x",), 3)(example, rng)["x"] == 3


def test_words_are_those_that_tokens_spell(tmp_path):
    rows = [WORDS.encode(["a Red circle", "two stars!"], 6), WORDS.encode(["a red circle on a very large square", "a star"], 6)]
    folder = written(tmp_path / "train", rows)
    assert store.Cached(folder).info.words is None and store.Cached(folder).info.model == "aa"
    store.write_words(folder, "tokens", WORDS)
    words = store.Cached(folder).info.words.read_text().split()
    assert {"a", "red", "circle", "two", "stars", "star", "on"} == set(words)  # what was cut off was not seen


def test_a_transform_that_does_not_exist():
    with pytest.raises(UserError, match="did you mean 'pick_row'"):
        transforms.build((("pick_rows", {"keys": ("x",)}),))
