"""Ids equal to those of the reference implementations (transformers, open_clip, sentencepiece) on hard strings; made by
tests/golden/make_tokenizers.py."""

import json
import pickle
import shutil
from pathlib import Path

import pytest

from mmjax.data import tokenizer

GOLDEN = Path(__file__).parents[1] / "golden" / "tokenizers"
STRINGS = json.loads((GOLDEN / "strings.json").read_text())
IDS = json.loads((GOLDEN / "ids.json").read_text())
LENGTH = IDS["length"]
PATHS = {name: GOLDEN / name for name in IDS["forms"]} | {"openai": GOLDEN / "bpe_simple_vocab_16e6.txt.gz"}


@pytest.fixture(scope="module", params=sorted(IDS["forms"]))
def form(request, tmp_path_factory):
    name = request.param
    if name == "siglip":
        PATHS[name] = tmp_path_factory.mktemp("siglip")
        shutil.copy(GOLDEN / "unigram" / "spiece.model", PATHS[name])
        (PATHS[name] / "tokenizer_config.json").write_text('{"tokenizer_class": "SiglipTokenizer", "pad_token": "</s>"}')
    return name, tokenizer.load(PATHS[name])


def test_every_string(form):
    name, ours = form
    wrong = {s: (ours.encode_plain(s), ids) for s, ids in zip(STRINGS, IDS["forms"][name]["plain"], strict=True)}
    assert {s: pair for s, pair in wrong.items() if pair[0] != pair[1]} == {}


@pytest.mark.parametrize("form", [name for name, ids in sorted(IDS["forms"].items()) if "rows" in ids], indirect=True)
def test_rows_with_special_tokens_cut_and_padded(form):
    """Of all forms but one, whose reference, sentencepiece itself, makes no rows."""
    name, ours = form
    rows = IDS["forms"][name]["rows"]
    rows = rows if isinstance(rows, dict) else dict(enumerate(rows))
    for i, row in rows.items():
        assert ours.encode(STRINGS[int(i)], LENGTH).tolist() == [row], STRINGS[int(i)]


def test_a_batch_and_a_copy_in_another_process_give_the_same(form):
    _, ours = form
    batch = ours.encode(STRINGS, LENGTH)
    assert batch.tolist() == [ours.encode(s, LENGTH)[0].tolist() for s in STRINGS]
    copy = pickle.loads(pickle.dumps(ours))
    assert copy.encode(STRINGS, LENGTH).tolist() == batch.tolist()
    assert [copy.encode_plain(s) for s in STRINGS] == [ours.encode_plain(s) for s in STRINGS]
    assert (copy.vocab_size, copy.start, copy.end, copy.pad) == (ours.vocab_size, ours.start, ours.end, ours.pad)
    assert copy.decode(batch[4]) == ours.decode(batch[4])


def test_ids_lie_in_the_vocabulary_and_rows_decode(form):
    _, ours = form
    assert all(0 <= i < ours.vocab_size for s in STRINGS for i in ours.encode_plain(s))
    assert ours.decode(ours.encode("a small dog runs", 40)[0]) == "a small dog runs"
