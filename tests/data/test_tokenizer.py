import json
import pickle

import numpy as np
import pytest

from mmjax.core.errors import UserError
from mmjax.data import tokenizer

TEXTS = ["ab ab ab abc", "AB  c\n"]  # words: ab x4, abc x1, c x1
A, B, C = ord("a") - 33, ord("b") - 33, ord("c") - 33  # CLIP's byte order starts at "!"


@pytest.fixture(scope="module")
def small():
    return tokenizer.train(TEXTS, 10_000)


def test_layout_of_ids_by_hand(small):
    # Merges: a+b</w> (4 words), then a+b (1, of "abc": lowest ids first among equals), then ab+c</w>.
    assert small.vocab_size == 512 + 3 + 2
    assert (small.pad, small.start, small.end) == (0, 515, 516)
    assert small.encode("ab abc c a", 8).tolist() == [[515, 512, 514, 256 + C, 256 + A, 516, 0, 0]]
    assert small.encode("abb", 5).tolist() == [[515, 513, 256 + B, 516, 0]]


def test_vocab_size_limits_merges():
    limited = tokenizer.train(TEXTS, 515)
    assert limited.vocab_size == 515 and limited.end == 514
    assert limited.encode("abc", 6).tolist() == [[513, A, B, 256 + C, 514, 0]]
    with pytest.raises(UserError, match="514"):
        tokenizer.train(TEXTS, 513)


def test_truncation_keeps_the_end_token(small):
    assert small.encode("ab ab ab ab", 6).tolist() == [[515, 512, 512, 512, 512, 516]]  # just fits
    assert small.encode("ab ab ab ab", 5).tolist() == [[515, 512, 512, 512, 516]]
    assert small.encode("ab ab ab ab", 2).tolist() == [[515, 516]]
    with pytest.raises(UserError, match="no room"):
        small.encode("ab", 1)


def test_batch_and_empty_text(small):
    out = small.encode(["", "ab"], 4)
    assert out.dtype == np.int32 and out.tolist() == [[515, 516, 0, 0], [515, 512, 516, 0]]
    assert small.encode([], 4).shape == (0, 4)


def test_cleaning(small):
    assert small.encode("  AB\t\nabC ", 6).tolist() == small.encode("ab abc", 6).tolist()
    assert small.encode("it's", 16).tolist() == small.encode("it 's", 16).tolist()  # contractions are pieces of their own
    assert small.encode("12", 16).tolist() == small.encode("1 2", 16).tolist()  # digits go one by one
    assert small.decode(small.encode("a,b", 8)[0]) == "a , b"


@pytest.mark.parametrize("text", ["café naïve", "数字 seven", "🙂 ok", "a\x00b", "ß"])
def test_any_text_survives_a_round_trip(small, text):
    assert small.decode(small.encode(text, 64)[0]).replace(" ", "") == text.lower().replace(" ", "")


def test_text_cannot_spell_a_special_token(small):
    ids = small.encode("ab <|endoftext|> ab", 32)[0].tolist()
    assert ids.count(small.end) == 1 and ids.count(small.start) == 1
    assert small.decode(ids) == "ab <| endoftext |> ab"
    assert pickle.loads(pickle.dumps(small)).encode("<|endoftext|>", 32).tolist() == small.encode("<|endoftext|>", 32).tolist()


def test_file_is_the_same_every_time_and_reads_back(small, tmp_path):
    # Ties abound here, which is where an unordered hash map would show.
    texts = [f"{a}{b} {b}{a}" for a in "abcdefgh" for b in "ijklmnop"]
    for name in "12":
        tokenizer.train(texts, 700).save(tmp_path / name)
    assert (tmp_path / "1").read_bytes() == (tmp_path / "2").read_bytes()
    back = tokenizer.load(tmp_path / "1")
    assert back.encode(texts, 9).tolist() == tokenizer.train(texts, 700).encode(texts, 9).tolist()
    assert sorted(p.name for p in tmp_path.iterdir()) == ["1", "2"]  # no temporary file is left


def test_bad_files(small, tmp_path):
    with pytest.raises(UserError, match=r"nowhere\.json.*cannot be read"):
        tokenizer.load(tmp_path / "nowhere.json")
    (tmp_path / "bad.json").write_text("{")
    with pytest.raises(UserError, match=r"bad\.json.*not a tokenizer\.json"):
        tokenizer.load(tmp_path / "bad.json")
    small.save(tmp_path / "other.json")
    content = json.loads((tmp_path / "other.json").read_text())
    del content["model"]["vocab"][tokenizer.END]
    content["added_tokens"] = []
    (tmp_path / "other.json").write_text(json.dumps(content))
    with pytest.raises(UserError, match="endoftext"):
        tokenizer.load(tmp_path / "other.json")
    with pytest.raises(UserError, match="outside the vocabulary"):
        small.decode([100_000])
