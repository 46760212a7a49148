"""The transform `tokenize`: rows as the text towers of published models want them, for every form of tokenizer."""

import json
import pickle
from pathlib import Path

import numpy as np
import pytest

from mmjax.core.errors import UserError
from mmjax.data import tokenizer, transforms

GOLDEN = Path(__file__).parents[1] / "golden" / "tokenizers"
STRINGS = json.loads((GOLDEN / "strings.json").read_text())
FORMS = json.loads((GOLDEN / "ids.json").read_text())["forms"]
PATHS = {"clip": "clip", "openai": "bpe_simple_vocab_16e6.txt.gz", "bert": "bert_uncased", "t5": "unigram", "llama": "llama"}
SHORT, LONG = "a small dog", " ".join(["a small dog runs over the hill"] * 9)


def rows(name, length, **options):
    """(ids of the two texts alone, their rows, the tokenizer)."""
    words = tokenizer.load(GOLDEN / PATHS[name])
    chain = transforms.build((("tokenize", {"length": length, **options}),), words)
    chain = pickle.loads(pickle.dumps(chain))
    made = [chain({"caption": text}, np.random.default_rng(0))["tokens"] for text in (SHORT, LONG)]
    assert all(row.dtype == np.int32 and row.shape == (length,) for row in made)
    return [words.encode_plain(text) for text in (SHORT, LONG)], [row.tolist() for row in made], words


@pytest.mark.parametrize("name", sorted(PATHS))
def test_rows_by_the_form(name):
    (short, long), (padded, cut), w = rows(name, 24)
    before = [] if name == "t5" else [w.start]
    after = [] if name == "llama" else [w.end]
    text = before + short + after
    assert padded == text + [w.pad] * (24 - len(text))
    assert cut == (before + long)[: 24 - len(after)] + after  # the last id is the end token's, whatever was there


def test_openai_cuts_as_its_reference_does():
    """All ids with start and end, cut to the length, and the last one overwritten by the end token."""
    (_, long), (_, cut), w = rows("openai", 24)
    expected = [w.start, *long, w.end][:24]
    expected[-1] = w.end
    assert cut == expected and int(np.argmax(cut)) == 23  # where CLIP pools
    assert rows("openai", 24)[1][0][-1] == 0  # padded with 0, not with the end token


def test_siglip_ends_and_pads_with_one_token_and_has_no_start(tmp_path):
    (tmp_path / "spiece.model").write_bytes((GOLDEN / "unigram" / "spiece.model").read_bytes())
    (tmp_path / "tokenizer_config.json").write_text('{"tokenizer_class": "SiglipTokenizer", "pad_token": "</s>"}')
    words = tokenizer.load(tmp_path)
    chain = transforms.build((("tokenize", {"length": 16}),), words)
    row = chain({"caption": SHORT}, np.random.default_rng(0))["tokens"].tolist()
    ids = words.encode_plain(SHORT)
    assert row == ids + [words.end] * (16 - len(ids)) and words.pad == words.end
    plain = transforms.build((("tokenize", {"length": 16, "start": False, "end": True, "pad": 1}),), tokenizer.load(GOLDEN / "unigram"))
    ids = tokenizer.load(GOLDEN / "unigram").encode_plain(SHORT)
    end = tokenizer.load(GOLDEN / "unigram").end
    assert plain({"caption": SHORT}, np.random.default_rng(0))["tokens"].tolist() == [*ids, end] + [1] * (15 - len(ids))


def test_start_end_and_pad_by_the_config():
    (short, long), (padded, cut), w = rows("bert", 12, start=False, end=False, pad=7)
    assert padded == short + [7] * (12 - len(short)) and cut == long[:12]
    (short, _), (padded, _), w = rows("llama", 12, end=True)
    assert padded[: len(short) + 2] == [w.start, *short, w.end]
    assert rows("openai", 12, pad=5)[1][0][-1] == 5


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("clip", {"start": "yes"}, r"start is of type bool \| None, got 'yes'"),
        ("t5", {"start": True}, "start=True, but it has no start token"),
        ("clip", {"length": 1}, "leaves no room for its special tokens"),
        ("clip", {"length": 2}, "is all special tokens, of which there are 2"),
        ("clip", {"length": 0}, "length must be at least 1"),
        ("clip", {"pad": 10**6}, "pad 1000000 is outside the vocabulary"),
        ("clip", {"lenght": 1}, "has no argument 'lenght'; did you mean 'length'"),
    ],
)
def test_bad_arguments_are_one_line_with_their_place(name, options, message):
    with pytest.raises(UserError, match=message) as e:
        rows(name, **{"length": 24, **options})
    assert str(e.value).startswith("data.transforms[0]: 'tokenize'") and "\n" not in str(e.value)


def test_one_more_than_the_special_tokens_is_room_enough():
    (short, _), (padded, _), w = rows("clip", 3)
    assert padded == [w.start, short[0], w.end] and rows("t5", 2)[1][0][1] == rows("t5", 2)[2].end
