"""Rows of text with pictures: layouts, labels and windows against sequences written down by hand."""

import io
import itertools
import pickle
from types import SimpleNamespace

import numpy as np
import pytest
from ml_collections import ConfigDict
from PIL import Image

from mmjax.core import config as config_lib
from mmjax.core.errors import UserError
from mmjax.data import interleave, packing, tokenizer, transforms
from mmjax.data.bad import BadSample
from mmjax.data.stream import open_stream
from mmjax.data.text_lengths import TextIds, measure, open_packed
from tests.data.test_mixture import Named

WORDS = "cute my dog cat question answer a b c d e f g h : ?"


@pytest.fixture(scope="module")
def words():
    return tokenizer.train([WORDS] * 3, 10_000)


def picture(value: int) -> bytes:
    out = io.BytesIO()
    Image.new("RGB", (8, 8), (value, value, value)).save(out, "PNG")
    return out.getvalue()


SHORT = {"<start>": "<B>", "<end>": "<E>", "<image>": "<I>", "<|endofchunk|>": "|", "<fake_token_around_image>": "<F>"}


def spelt(ids, m):
    """The row in words, its marks shortened."""
    return " ".join(SHORT.get(word, word) for word in interleave.spelt(ids, m).split())


STEPS = (("decode", {}), ("normalize", {"mean": 0.0, "std": 1.0}))


def make(words, **args):
    return transforms.build((("interleave", {"length": 24, "size": 8, "picture": STEPS, **args}),), words)


def run(words, record, seed=0, **args):
    chain = make(words, **args)
    return chain(record, np.random.default_rng(seed)), chain.steps[0].marks


def document(*texts, at):
    return {"texts": texts, "images": tuple(picture(20 * k + 20) for k in range(len(at))), "positions": np.array(at, np.int32)}


PETS = document("cute", "my dog", "my cat", at=(1, 2))


def test_special_tokens_come_behind_the_vocabulary_and_are_never_text(words):
    more = words.extended(interleave.special("flamingo"))
    assert [more.find(t) for t in ("<|endofchunk|>", "<image>")] == [words.vocab_size, words.vocab_size + 1]
    assert more.vocab_size == words.vocab_size + 2
    assert more.extended(interleave.special("flamingo")) is more
    assert more.encode_plain("<image>") == words.encode_plain("<image>")  # spelt out it stays text
    assert more.decode([more.find("<image>"), *words.encode_plain("my dog")]) == "my dog"
    again = pickle.loads(pickle.dumps(more))
    assert (again.vocab_size, again.find("<image>")) == (more.vocab_size, more.find("<image>"))
    with pytest.raises(UserError, match="did you mean 'openflamingo'"):
        interleave.special("openflaminga")


@pytest.mark.parametrize(
    ("layout", "expected", "chunks"),
    [
        ("flamingo", "<B> cute | <I> my dog | <I> my cat | <E>", "my dog | my cat |"),
        ("openflamingo", "<B> cute <I> my dog | <I> my cat | <E>", "my dog | my cat |"),
        ("idefics", "<B> cute <F> <I> <F> my dog <F> <I> <F> my cat <E>", "my dog my cat <E>"),
    ],
)
def test_documents_and_their_labels_as_published(words, layout, expected, chunks):
    row, m = run(words, PETS, layout=layout, images=2)
    real = row["segments"] > 0
    assert spelt(row["tokens"][real], m) == expected and (row["tokens"][~real] == m.tokenizer.pad).all()
    assert spelt(row["tokens"][row["loss_mask"] > 0], m) == chunks
    text, _ = run(words, PETS, layout=layout, images=2, labels="text")
    left_out = text["tokens"][real & (text["loss_mask"] == 0)]
    assert set(left_out.tolist()) == {m.start, *m.image}
    assert row["images"] == 2 and row["pixels"].shape == (2, 1, 8, 8, 3)
    np.testing.assert_allclose(row["pixels"][:, 0, 0, 0, 0] * 255, [20, 40], rtol=1e-6)


def test_the_worked_example_of_labels(words):
    # BOS Cute EOC IMG my dog EOC IMG my cat EOC: loss on "my dog EOC" and "my cat EOC"; text after a chunk's end is nobody's.
    m = interleave.marks(words, "flamingo")
    ids = [m.start, 5, m.chunk, m.media, 6, 7, m.chunk, 8, m.media, 6, 9, m.chunk, m.end]
    assert interleave.labels(np.array(ids), m, "chunks").astype(int).tolist() == [0, 0, 0, 0, 1, 1, 1, 0, 0, 1, 1, 1, 0]
    assert not interleave.labels(np.array([m.start, 5, 6]), m, "chunks").any()  # no picture, nothing to say


def test_pictures_side_by_side_and_at_the_end(words):
    row, m = run(words, document("a", "b", at=(0, 0, 2)), images=3)
    assert spelt(row["tokens"][row["segments"] > 0], m) == "<B> <I> <I> a b | <I> | <E>"
    idefics, m = run(words, document("a", at=(0, 0)), images=2, layout="idefics")
    assert spelt(idefics["tokens"][idefics["segments"] > 0], m) == "<B> <F> <I> <F> <I> <F> a <E>"


def test_windows_take_the_first_pictures_in_them(words):
    texts, begun = tuple("abcdefgh"), set()
    for seed in range(30):
        row, m = run(words, document(*texts, at=range(8)), seed, length=12, images=2)
        said = spelt(row["tokens"][row["segments"] > 0], m).split()
        shown = [texts.index(after) for word, after in itertools.pairwise(said) if word == "<I>"]  # picture k stands before letter k
        assert said.count("<I>") == row["images"] == 2
        assert [round(float(x) * 255 / 20) - 1 for x in row["pixels"][: len(shown), 0, 0, 0, 0]] == shown == [shown[0], shown[0] + 1]
        begun.add((said[0], shown[0]))
    assert len(begun) > 6
    whole = interleave.row(interleave.document_chunks(texts, range(8)), m)
    assert interleave.fit(whole, 99, 8).ids.tolist() == whole.ids.tolist()
    assert interleave.fit(whole, 4, 1, 3).ids.tolist() == whole.ids[3:7].tolist()[:2] + whole.ids[5:7].tolist()
    row, m = run(words, document(*texts, at=range(8)), 3, length=12, images=2, window=False)
    assert spelt(row["tokens"][row["segments"] > 0], m) == "<B> <I> a | <I> b | c | d"  # two pictures; the others are discarded
    assert spelt(row["tokens"][row["loss_mask"] > 0], m) == "a | b |"  # and what follows them is not learnt


def test_pairs_and_questions(words):
    pair = {"image": picture(40), "captions": ("my dog",)}
    row, m = run(words, pair, form="pair", space=1.0)
    assert spelt(row["tokens"][row["segments"] > 0], m) == "<B> <I> my dog | <E>"
    assert spelt(row["tokens"][row["loss_mask"] > 0], m) == "my dog | <E>"  # of pairs all text
    asked = {"image": picture(40), "question": "a ?", "answer": "my dog"}
    row, m = run(words, asked, form="question", labels="answers")
    assert spelt(row["tokens"][row["segments"] > 0], m) == "<B> <I> question : a ? answer : my dog | <E>"
    assert spelt(row["tokens"][row["loss_mask"] > 0], m) == "my dog | <E>"
    several = {"image": picture(40), "questions": ("a", "b"), "answers": ("c", "d")}
    found = {spelt(run(words, several, s, form="question")[0]["tokens"], m).count("b answer : d") for s in range(8)}
    assert found == {0, 1}


def test_the_space_before_a_text_is_there_half_the_time():
    class Spelling(tokenizer.Tokenizer):  # tells " a" from "a"
        def __init__(self):
            self.vocab_size, self.start, self.end, self.pad = 300, None, None, 0

        extended = lambda self, tokens, first: self
        find = lambda self, token: 298 + (token == "<image>")
        encode_plain = lambda self, text, **_: [ord(c) for c in text]

    step = interleave.Interleave(Spelling(), 8, 8, STEPS, form="pair", space=0.5)
    rows = [step({"image": picture(0), "captions": ("a",)}, np.random.default_rng(s))["tokens"] for s in range(200)]
    assert 70 < sum(r[1] == ord(" ") for r in rows) < 130
    assert all(r[:4].tolist() in ([299, 97, 298, 0], [299, 32, 97, 298]) for r in rows)


@pytest.mark.parametrize(
    ("count", "fps", "frames", "expected"),
    [
        (12, 3.0, 6, [0, 2, 4, 6, 8, 10]),  # two seconds at six a second
        (12, 1.0, 2, [0, 6]),
        (12, 1.0, 4, [0, 6, 11, 11]),  # it ends: the last frame stays
        (1, 1.0, 2, [0, 0]),
    ],
)
def test_frames_of_a_video(count, fps, frames, expected):
    assert interleave.clip(count, np.arange(count) / 6, fps, frames, None) == expected


def test_videos_are_clips_of_consecutive_frames(words):
    record = {"frames": tuple(picture(10 * k) for k in range(12)), "fps": "6.0", "captions": ("my dog",)}
    row, _ = run(words, record, form="pair", frames=2, fps=1.0)
    assert row["pixels"].shape == (1, 2, 8, 8, 3)
    long = {**record, "fps": "1.0"}
    firsts = {round(float(run(words, long, s, form="pair", frames=2, fps=1.0)[0]["pixels"][0, 0, 0, 0, 0]) * 25.5) for s in range(40)}
    assert firsts == set(range(11))
    assert run(words, long, 1, form="pair", frames=2, fps=1.0, random=False)[0]["pixels"][0, 0, 0, 0, 0] == 0
    flipped = make(words, form="pair", frames=12, fps=1.0, picture=(("decode", {}), ("color_jitter", {"brightness": 0.9}), STEPS[1]))
    x = flipped({**long, "frames": (picture(100),) * 12}, np.random.default_rng(2))["pixels"][0, :, 0, 0, 0]
    assert len(set(x.tolist())) == 1 and abs(x[0] - 100 / 255) > 0.02  # frames of a video draw alike


def test_packed_records_share_a_row_and_keep_apart(words):
    records = tuple({"image": picture(40 * k + 40), "captions": (text,)} for k, text in enumerate(("a", "b c", "d e f")))
    row, m = run(words, {"records": records}, form="pair", length=14, images=2)
    assert spelt(row["tokens"], m) == "<B> <I> a | <E> <B> <I> b c | <E> !!!"  # the third's picture has no room
    assert row["segments"].tolist() == [1] * 5 + [2] * 6 + [0] * 3 and row["images"] == 2
    row, m = run(words, {"records": records[1:]}, form="pair", length=10, images=2)
    assert spelt(row["tokens"], m) == "<B> <I> b c | <E> <B> <I> d e"  # of a text what has room


def test_packs_of_an_index_come_with_their_records(words, tmp_path):
    class Texts(Named):
        def __getitem__(self, i):
            return {"captions": ("a " * (i + 1),), "image": picture(i)}

    source = Texts("texts", 5)
    ids = TextIds(words, "captions", False, False)
    made = packing.pack(measure(source, ids), 6)
    packing.save(packing.dataclasses.replace(made, about={**made.about, **ids.about()}), tmp_path / "packs", source)
    data = SimpleNamespace(packing=str(tmp_path / "packs"), dir=None)
    found = open_packed(data, source, words, together=True)
    assert sorted(len(found[g]["records"]) for g in range(len(found))) == [1, 2, 2] and "pack 0 of records 0, 4" in found.describe(0)


def test_what_is_wrong_is_said_in_one_line(words):
    for args, message in (
        ({"form": "documents"}, "form is 'documents'; did you mean 'document'"),
        ({"labels": "chunk"}, "labels is 'chunk'; did you mean 'chunks'"),
        ({"layout": "flamin"}, "layout is 'flamin'; did you mean 'flamingo'"),
        ({"form": "question", "template": "{question}"}, "template needs {question} and {answer}"),
        ({"frames": 0}, "size and frames are at least 1"),
    ):
        with pytest.raises(UserError, match=message.replace("{", r"\{").replace("}", r"\}")):
            make(words, **args)
    pair = {"image": picture(0), "captions": ("a",)}
    with pytest.raises(UserError, match=r"a picture is uint8\[8, 8, 3\].*expected float32\[8, 8, 3\]"):
        run(words, pair, form="pair", picture=(("decode", {}),))
    with pytest.raises(UserError, match="frames is 2, and a picture of the record has 1"):
        run(words, pair, form="pair", frames=2)
    for record, form, message in (
        ({**pair, "captions": ()}, "pair", "no caption"),
        ({"frames": (), "times": (), "captions": ("a",)}, "pair", "a video of 0 frames"),
        ({**PETS, "positions": np.array([2, 1])}, "document", r"pictures at \[2, 1\] of 3 texts"),
        ({**PETS, "positions": np.array([1])}, "document", "1 places for pictures, and 2 pictures"),
        ({**pair, "questions": ("a",), "answers": ()}, "question", "1 questions and 0 answers"),
    ):
        with pytest.raises(BadSample, match=message):
            run(words, record, form=form)


def test_text_alone_is_a_row_too(words):
    row, m = run(words, document("a", "b", at=()), images=2)
    assert row["images"] == 0 and not row["pixels"].any() and spelt(row["tokens"][row["segments"] > 0], m) == "<B> a b | <E>"


def test_a_stream_of_documents_from_a_jsonl(words, tmp_path):
    (tmp_path / "x.png").write_bytes(picture(40))
    obelics = '{"texts": ["cute", null, "my dog"], "images": [null, "x.png", null]}'
    mmc4 = '{"text_list": ["my cat"], "image_info": [{"image_name": "x.png", "matched_text_index": 0}]}'
    (tmp_path / "docs.jsonl").write_text(f"{obelics}\n{mmc4}\n")
    words.save(tmp_path / "tokenizer.json")
    c = config_lib.base()
    c.data.source, c.data.path, c.data.tokenizer = "documents", str(tmp_path / "docs.jsonl"), str(tmp_path / "tokenizer.json")
    c.data.transforms = (("interleave", {"length": 12, "size": 8, "picture": STEPS}),)
    stream = open_stream(ConfigDict(c).lock().data, 0)
    m = stream.transform.steps[0].marks
    rows = [
        spelt(r["tokens"][r["segments"] > 0], m) for r in (stream.transform(stream.source[i], np.random.default_rng(0)) for i in range(2))
    ]
    assert rows == ["<B> cute | <I> my dog | <E>", "<B> <I> my cat | <E>"]
