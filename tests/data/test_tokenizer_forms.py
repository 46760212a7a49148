"""What `tokenizer.load` takes, and the conventions of each form by hand. Ids against references: test_tokenizer_golden.py."""

import gzip
import itertools
import json
import multiprocessing
import shutil
from pathlib import Path

import numpy as np
import pytest

from mmjax.core import config
from mmjax.core.errors import UserError
from mmjax.data import tokenizer
from mmjax.data import tokenizer_engines as engines
from mmjax.data.source import open_tokenizer

GOLDEN = Path(__file__).parents[1] / "golden" / "tokenizers"
GZ = GOLDEN / "bpe_simple_vocab_16e6.txt.gz"
LONG = "a small dog runs along the beach " * 20


def copied(name, to, **config):
    shutil.copytree(GOLDEN / name, to, dirs_exist_ok=True)
    if config:
        (to / "tokenizer_config.json").write_text(json.dumps(config))
    return to


def test_openai_arithmetic_at_full_size(tmp_path):
    characters = list(engines.BYTES)
    merges = [f"{a} {b}" for a, b in itertools.product(characters, characters)]  # 65,536: more than are taken, as in the real file
    (tmp_path / "bpe_simple_vocab_16e6.txt.gz").write_bytes(gzip.compress("\n".join(["header", *merges, ""]).encode(), 1))
    t = tokenizer.load(tmp_path)
    assert (t.vocab_size, t.start, t.end, t.pad) == (49_408, 49_406, 49_407, 0)
    # "!" is byte 33, the first id; at a word's end 256 more. "!!" is the first merge, and "!!" + "!</w>" is none.
    assert t.encode("!!!", 77)[0, :5].tolist() == [49_406, 512, 256, 49_407, 0]
    last = merges[48_893].split()
    assert t._engine.find("".join(last)) == 49_405 and t._engine.find("".join(merges[48_894].split())) is None


def test_clip_cuts_and_keeps_the_end_token():
    t = tokenizer.load(GZ)
    plain = t.encode_plain(LONG)
    assert len(plain) > 20 and t.encode(LONG, 20).tolist() == [[t.start, *plain[:18], t.end]]
    assert t.end == t.vocab_size - 1 and (t.encode([LONG, "a", ""], 20).argmax(-1) == [19, 2, 1]).all()  # how CLIP finds it


def test_clip_padding_is_0_or_the_end_token():
    for path, usual in ((GZ, 0), (GOLDEN / "clip", 1013)):
        t = tokenizer.load(path)
        assert t.end == 1013 and t.pad == usual and t.encode("", 4).tolist() == [[1012, 1013, usual, usual]]
        for pad in (0, 1013):
            assert tokenizer.load(path, pad=pad).encode("", 4).tolist() == [[1012, 1013, pad, pad]]
    with pytest.raises(UserError, match="pad 1014 is outside the vocabulary of 1014"):
        tokenizer.load(GZ, pad=1014)


def test_clip_conventions_are_of_the_form_or_as_asked():
    escaped, plain = "Fish &amp;amp; “Chips”", 'fish & "chips"'
    openai, hugging_face = tokenizer.load(GZ), tokenizer.load(GOLDEN / "clip")
    assert openai.encode_plain(escaped) == openai.encode_plain(plain) == hugging_face.encode_plain(plain)
    assert hugging_face.encode_plain(escaped) != hugging_face.encode_plain(plain)
    assert (
        tokenizer.load(GOLDEN / "clip", convention="openai").encode([escaped, LONG], 20).tolist()
        == openai.encode([escaped, LONG], 20).tolist()
    )
    assert tokenizer.load(GZ, convention="transformers").encode(escaped, 20).tolist() == hugging_face.encode(escaped, 20).tolist()
    with pytest.raises(UserError, match="convention is 'open_clip', expected one of openai, transformers"):
        tokenizer.load(GZ, convention="open_clip")


def test_without_ftfy_there_is_an_error_and_not_other_ids(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "ftfy", None)
    engines._ftfy.cache_clear()
    try:
        with pytest.raises(UserError, match="pip install 'ftfy"):
            tokenizer.load(GZ)
    finally:
        engines._ftfy.cache_clear()


@pytest.mark.parametrize(
    ("path", "text"), [(GZ, "<|endoftext|>"), ("clip", "<|endoftext|>"), ("bert_cased", "[SEP]"), ("byte_level", "<|eot_id|>")]
)
def test_special_tokens_in_text_are_text_if_so_wished(path, text):
    parsed, plain = tokenizer.load(GOLDEN / path), tokenizer.load(GOLDEN / path, parse_special=False)
    special = parsed._engine.find(text)
    assert special in parsed.encode_plain(f"a {text} b") and special not in plain.encode_plain(f"a {text} b")
    assert len(plain.encode_plain(text)) > 1 and parsed.encode_plain(text) == [special]


def test_bert_keeps_sep_and_knows_its_case(tmp_path):
    t = tokenizer.load(GOLDEN / "bert_uncased" / "vocab.txt")
    lines = (GOLDEN / "bert_uncased" / "vocab.txt").read_text().split("\n")
    cls, sep, pad = (lines.index(name) for name in ("[CLS]", "[SEP]", "[PAD]"))
    assert (t.start, t.end, t.pad) == (cls, sep, pad)
    assert t.encode("", 4).tolist() == [[cls, sep, pad, pad]] and t.encode(LONG, 9)[0, [0, -1]].tolist() == [cls, sep]
    assert t.encode_plain("The DOG") == t.encode_plain("thé dog")
    # A cased vocabulary without the file that says so: its capitals say it.
    shutil.copy(GOLDEN / "bert_cased" / "vocab.txt", tmp_path)
    alone, told = tokenizer.load(tmp_path), tokenizer.load(GOLDEN / "bert_cased")
    assert alone.encode_plain("The DOG") == told.encode_plain("The DOG") != told.encode_plain("the dog")
    (tmp_path / "tokenizer_config.json").write_text('{"do_lower_case": true}')
    assert tokenizer.load(tmp_path).encode_plain("The DOG") == told.encode_plain("the dog")


def test_t5_has_a_sticky_end_and_no_start():
    t = tokenizer.load(GOLDEN / "unigram")
    plain = t.encode_plain(LONG)
    assert (t.start, t.end, t.pad) == (None, 1, 0)
    assert t.encode(LONG, 9).tolist() == [[*plain[:8], 1]] and t.encode("", 3).tolist() == [[1, 0, 0]]
    with pytest.raises(UserError, match="start=True, but it has no start token"):
        t.encode("a", 4, start=True)


def test_siglip_pads_with_the_end_token(tmp_path):
    t = tokenizer.load(copied("unigram", tmp_path / "a", tokenizer_class="SiglipTokenizer"))
    plain = tokenizer.load(GOLDEN / "unigram").encode_plain("a dog")
    assert t.encode("A  (dog)!", 8).tolist() == [[*plain, *[1] * (8 - len(plain))]]  # as big_vision: end and padding are both 1
    assert tokenizer.load(GOLDEN / "unigram", pad=1).encode("a dog", 8).tolist() == t.encode("a dog", 8).tolist()


def test_llama_and_gemma_start_and_may_end(tmp_path):
    llama, gemma = tokenizer.load(GOLDEN / "llama" / "tokenizer.model"), tokenizer.load(GOLDEN / "gemma")
    assert (llama.start, llama.end, llama.pad) == (1, 2, 2) and (gemma.start, gemma.end, gemma.pad) == (2, 1, 0)
    a = llama.encode_plain("a")
    assert llama.encode("a", 4).tolist() == [[1, *a, *[2] * (3 - len(a))]]
    assert gemma.encode("a", 4).tolist() == [[2, *gemma.encode_plain("a"), 0, 0]]
    assert gemma.encode("a", 4, start=False, end=True).tolist() == [[*gemma.encode_plain("a"), 1, 0, 0]]
    assert gemma.encode(LONG, 6, end=True)[0, [0, -1]].tolist() == [2, 1] and gemma.encode(LONG, 6)[0, -1] not in (0, 1)
    told = tokenizer.load(copied("llama", tmp_path / "a", add_bos_token=True, add_eos_token=True, pad_token="<unk>"))
    assert told.encode("a", 5).tolist() == [[1, *a, 2, *[0] * (3 - len(a))]]
    # The dummy prefix is the model file's: LLaMA's has one, Gemma's has none.
    assert llama._engine.core.id_to_piece(a) == ["▁a"] and gemma._engine.core.id_to_piece(gemma.encode_plain("a")) == ["a"]


def test_tokens_beyond_a_sentencepiece_model_count(tmp_path):
    extra = {"added_tokens_decoder": {"420": {"content": "<extra_id_0>"}, "421": {"content": "<pad2>"}}}
    t = tokenizer.load(copied("unigram", tmp_path / "a", pad_token="<pad2>", **extra))
    assert t.vocab_size == 422 and t.pad == 421 and t.decode([*t.encode_plain("a dog"), 421]) == "a dog"


def test_a_tokenizer_json_takes_its_special_tokens_from_beside_it_or_itself(tmp_path):
    told = tokenizer.load(GOLDEN / "byte_level")
    assert (told.start, told.end, told.pad, told.vocab_size) == (900, 901, 903, 904)
    assert told.encode("", 3).tolist() == [[900, 903, 903]] and told.encode("", 3, end=True).tolist() == [[900, 901, 903]]
    shutil.copy(GOLDEN / "byte_level" / "tokenizer.json", tmp_path)
    alone = tokenizer.load(tmp_path)  # start by the template, end by its name, no padding token: the end token
    assert (alone.start, alone.end, alone.pad) == (900, 901, 901) and alone.encode("", 2).tolist() == [[900, 901]]
    (tmp_path / "special_tokens_map.json").write_text('{"eos_token": {"content": "<|eot_id|>"}, "pad_token": "<|end_of_text|>"}')
    assert (tokenizer.load(tmp_path).end, tokenizer.load(tmp_path).pad) == (902, 901)
    (tmp_path / "tokenizer_config.json").write_text('{"eos_token": "<|end_of_text|>", "add_bos_token": false, "add_eos_token": true}')
    assert tokenizer.load(tmp_path).encode("", 3).tolist() == [[901, 901, 901]]
    (tmp_path / "tokenizer_config.json").write_text('{"eos_token": "<|nowhere|>"}')
    with pytest.raises(UserError, match=r"eos_token '<\|nowhere\|>', which the vocabulary beside it lacks"):
        tokenizer.load(tmp_path)


def test_start_and_end_may_be_one_token(tmp_path):
    config = {"bos_token": "<|end_of_text|>", "eos_token": "<|end_of_text|>", "add_bos_token": True, "add_eos_token": True}  # as OPT's
    t = tokenizer.load(copied("byte_level", tmp_path / "a", **config))
    row = t.encode("a dog", 12)[0]
    assert t.start == t.end == row[0] == 901 and t.decode(row) == "a dog"


def test_siglip2_lower_cases(tmp_path):
    t = tokenizer.load(copied("byte_level", tmp_path / "a", tokenizer_class="Siglip2Tokenizer"))
    assert t.encode_plain("A DOG") == tokenizer.load(GOLDEN / "byte_level").encode_plain("a dog")


def test_stored_dropout_truncation_and_padding_are_switched_off(tmp_path):
    content = json.loads((GOLDEN / "byte_level" / "tokenizer.json").read_text())
    content["model"]["dropout"] = 0.5
    content["truncation"] = {"direction": "Right", "max_length": 3, "strategy": "LongestFirst", "stride": 0}
    content["padding"] = {"strategy": {"Fixed": 9}, "direction": "Right", "pad_to_multiple_of": None, "pad_id": 902, "pad_type_id": 0,
                          "pad_token": "<|eot_id|>"}  # fmt: skip
    (tmp_path / "tokenizer.json").write_text(json.dumps(content))
    t = tokenizer.load(tmp_path)
    assert t.encode_plain(LONG) == tokenizer.load(GOLDEN / "byte_level").encode_plain(LONG)
    assert t.encode("", 3).tolist() == [[900, 902, 902]]


def test_a_lone_surrogate_is_a_replacement_character():
    for path in (GZ, GOLDEN / "clip", GOLDEN / "bert_cased", GOLDEN / "llama"):
        t = tokenizer.load(path)
        assert t.encode_plain("a \ud83d b") == t.encode_plain("a � b")
        assert t.encode(["a \ud83d b", "x"], 20).tolist() == t.encode(["a � b", "x"], 20).tolist()


def _encode(t, text, queue):
    queue.put(t.encode([text, text], 16).tolist())


@pytest.mark.parametrize("name", ["clip", "llama"])
def test_a_forked_process_does_not_hang(name):
    t = tokenizer.load(GOLDEN / name)
    texts = t.encode([LONG] * 64, 16)  # the library's threads have run
    context = multiprocessing.get_context("fork")
    queue = context.Queue()
    process = context.Process(target=_encode, args=(t, LONG, queue))
    process.start()
    assert queue.get(timeout=30) == texts[:2].tolist()
    process.join(30)


def test_folders_and_files(tmp_path):
    t = tokenizer.load(GOLDEN / "clip")
    for path in ("clip/vocab.json", "clip/merges.txt"):
        assert tokenizer.load(str(GOLDEN / path)).encode("a dog", 8).tolist() == t.encode("a dog", 8).tolist()
    (tmp_path / "bpe_simple_vocab_16e6.txt").write_bytes(gzip.decompress(GZ.read_bytes()))
    assert tokenizer.load(tmp_path / "bpe_simple_vocab_16e6.txt").encode("a", 3).tolist() == tokenizer.load(GZ).encode("a", 3).tolist()
    shutil.copy(GOLDEN / "llama" / "tokenizer.model", tmp_path / "m.model")  # the one model of a folder, whatever its name
    assert tokenizer.load(tmp_path).start == 1
    shutil.copy(GOLDEN / "byte_level" / "tokenizer.json", tmp_path)  # first of all forms
    assert tokenizer.load(tmp_path).vocab_size == 904
    with pytest.raises(UserError, match="only one trained by mmjax is saved"):
        t.save(tmp_path / "x.json")


def test_data_tokenizer_of_a_config(train_source):
    data = config.base().data
    assert open_tokenizer(train_source, data.tokenizer).vocab_size == open_tokenizer(train_source).vocab_size
    data.tokenizer = str(GOLDEN / "bert_cased")
    assert open_tokenizer(train_source, data.tokenizer).vocab_size == 700


def _records(proto, n):
    """Where the n-th piece of a SentencePiece model ends; each is a tag, a length below 128 and so many bytes."""
    at = 0
    for _ in range(n):
        at += 2 + proto[at + 1]
    return at


def _damaged(tmp_path, name, change):
    source = GOLDEN / name
    shutil.copytree(source.parent, tmp_path, dirs_exist_ok=True) if source.parent != GOLDEN else None
    (tmp_path / source.name).write_bytes(change(source.read_bytes()))
    return tmp_path / source.name


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        ("byte_level/tokenizer.json", lambda b: b[: len(b) // 2], r"not a tokenizer\.json"),
        ("byte_level/tokenizer.json", lambda b: b'{"a": 1}', r"not a tokenizer\.json"),
        ("byte_level/tokenizer_config.json", lambda b: b[:40], r"tokenizer_config\.json' is damaged: not JSON"),
        ("clip/vocab.json", lambda b: b[:900], "damaged: not JSON"),
        ("clip/vocab.json", lambda b: b"[1, 2]", "expected a JSON object, got list"),
        ("clip/vocab.json", lambda b: b'{"\xc4\xa0the": 0, "a": 1}', r"not CLIP's.*give the tokenizer\.json"),
        ("clip/vocab.json", lambda b: b.replace(b": 1013", b": 2000"), "expected a map of tokens to ids"),
        ("clip/merges.txt", lambda b: b"\n".join(b.split(b"\n")[:300]), "do not belong together, or one is cut"),
        ("clip/merges.txt", lambda b: b"#version: 0.2\na b c\n", "expected two tokens a line, got 'a b c'"),
        ("bpe_simple_vocab_16e6.txt.gz", lambda b: b[: len(b) // 2], "is damaged: Compressed file ended"),
        ("bpe_simple_vocab_16e6.txt.gz", lambda b: b[:40] + b"\0\0\0" + b[43:], "is damaged"),
        ("bert_cased/vocab.txt", lambda b: b.replace(b"[SEP]\n", b""), r"it lacks \[SEP\]"),
        ("bert_cased/vocab.txt", lambda b: b"\xff\xfe\0", "not UTF-8 text"),
        ("unigram/spiece.model", lambda b: b[: _records(b, 9) + 3], "not a SentencePiece model, or damaged"),
        ("unigram/spiece.model", lambda b: b[: _records(b, 9)], "the file ends before its normalisation rules"),
        ("unigram/spiece.model", lambda b: b"", "not a SentencePiece model, or damaged"),
        ("llama/tokenizer.model", lambda b: b"IQ== 0\nIg== 1\n", "not a SentencePiece model, or damaged"),  # tiktoken's, as Llama 3 has
    ],
)
def test_damaged_files(tmp_path, name, change, message):
    path = _damaged(tmp_path, name, change)
    for what in (path, tmp_path) if path.name != "tokenizer_config.json" else (tmp_path,):
        with pytest.raises(UserError, match=message) as e:
            tokenizer.load(what)
        assert "\n" not in str(e.value) and str(tmp_path) in str(e.value)


def test_unknown_forms(tmp_path):
    with pytest.raises(UserError, match=r"holds none; expected tokenizer\.json.*vocab\.txt"):
        tokenizer.load(tmp_path)
    (tmp_path / "tokenizer.pkl").write_bytes(b"\x80\x04.")
    with pytest.raises(UserError, match=r"tokenizer\.pkl': not a form known by its name; expected tokenizer\.json"):
        tokenizer.load(tmp_path / "tokenizer.pkl")
    with pytest.raises(UserError, match=r"nowhere' cannot be read"):
        tokenizer.load(tmp_path / "nowhere")
    shutil.copy(GOLDEN / "clip" / "vocab.json", tmp_path)
    with pytest.raises(UserError, match=r"has vocab\.json without the merges\.txt"):
        tokenizer.load(tmp_path)
    with pytest.raises(UserError, match=r"moves the ids.*give its tokenizer\.json"):
        tokenizer.load(copied("unigram", tmp_path / "m", tokenizer_class="MBartTokenizer") / "spiece.model")


def test_no_room_and_no_such_id():
    t = tokenizer.load(GOLDEN / "unigram")
    assert t.encode("a", 1).tolist() == [[1]]
    for length in (0, -1):
        with pytest.raises(UserError, match="leaves no room"):
            t.encode("a", length)
    with pytest.raises(UserError, match="id 420 is outside the vocabulary of 420"):
        t.decode(np.array([3, 420]))
