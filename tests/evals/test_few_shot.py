"""Few-shot prompts, choices and scores, with a model that reads the level of a picture and nothing else."""

import io
import json
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from ml_collections import ConfigDict
from PIL import Image

from mmjax.cli import eval as verb
from mmjax.core import config as config_lib
from mmjax.core import sharding
from mmjax.core.errors import UserError
from mmjax.data import tokenizer
from mmjax.data.bad import BadSample
from mmjax.data.source import Info
from mmjax.evals import few_shot, few_shot_prompts, few_shot_sets, predictions
from mmjax.evals.few_shot_sets import Item

NAMES = ("zero", "one", "two", "three", "four", "five", "six", "seven")
STEPS = (("decode", {}), ("normalize", {"mean": 0.0, "std": 1.0}))
SIZE = 4


def picture(level: int) -> bytes:
    out = io.BytesIO()
    Image.new("RGB", (SIZE, SIZE), (30 * level,) * 3).save(out, "PNG")
    return out.getvalue()


class Levels:
    """Record i is a picture of level i % 8, with a question that names it; `bad` ones cannot be read."""

    def __init__(self, count, split="validation", bad=(), tokenizer=None):
        self.count, self.bad = count, bad
        self.info = Info("levels", split, NAMES, (), tokenizer, {"image": "", "question": "", "answer": ""}, fingerprint=str(count))

    def __len__(self):
        return self.count

    def __getitem__(self, i):
        name = NAMES[i % 8]
        if i in self.bad:
            return {"image": b"no picture", "question": f"level {i}", "answer": name, "captions": (name,), "label": i % 8, "type": "low"}
        return {
            "image": picture(i % 8),
            "question": f"level {i}",
            "answer": name,
            "captions": (name,),
            "label": np.int32(i % 8),
            "type": "low",
        }


@pytest.fixture(scope="module")
def words(tmp_path_factory):
    path = tmp_path_factory.mktemp("words") / "tokenizer.json"
    made = tokenizer.train([" ".join(NAMES) + " question answer short output level : 0 1 2 3 4 5 6 7 8 9 short is"] * 3, 10_000)
    made.save(path)
    return path


SEEN = []  # what the model was shown, call after call


def model(words):
    """`generate` writes the name of the last real picture's level, `log_likelihood` prefers its answer."""
    t = tokenizer.load(words).extended(("<|endofchunk|>", "<image>"))
    ids = np.zeros((9, 6), np.int32)
    for k, name in enumerate((*NAMES, "question")):
        own = t.encode_plain(name)
        ids[k, : len(own) + 1] = [*own, t.find("<|endofchunk|>")]
    lengths_of = np.array([len(t.encode_plain(n)) for n in (*NAMES, "question")], np.int32)

    def level(pixels, images):
        last = jnp.take_along_axis(pixels[:, :, 0, 0, 0, 0], jnp.maximum(images - 1, 0)[:, None], axis=1)[:, 0]
        return jnp.where(images > 0, jnp.round(last * 255 / 30).astype(jnp.int32), 8)

    def shown(tokens, lengths, images):
        jax.debug.callback(lambda *x: SEEN.append(tuple(np.asarray(a) for a in x)), tokens, lengths, images)

    def generate(params, tokens, key, *, lengths, pixels=None, images=None, max_new_tokens, beams, length_penalty, stop):
        assert (beams, length_penalty, stop) == (3, 0.0, ((t.find("<|endofchunk|>"),), (t.end,)))
        if pixels is None:
            pixels, images = jnp.zeros((len(tokens), 1, 1, 1, 1, 3)), jnp.zeros(len(tokens), jnp.int32)
        shown(tokens, lengths, images)
        k = level(pixels, images)
        return SimpleNamespace(tokens=jnp.asarray(ids)[k], lengths=jnp.asarray(lengths_of)[k])

    def log_likelihood(params, tokens, answers, answer_lengths, *, lengths, pixels, images):
        shown(tokens, lengths, images)
        k = level(pixels, images)
        right = (answers[:, :, 0] == jnp.asarray(ids)[k, :1]).astype(jnp.float32)
        return right - answer_lengths

    features = lambda params, x: jnp.stack([x.mean((1, 2, 3)), jnp.ones(len(x))], 1)
    return {"generate": generate, "log_likelihood": log_likelihood, "image_features": features}


@pytest.fixture
def make(words, monkeypatch):
    sources = {"train": Levels(24, "train", bad=(3,)), "validation": Levels(10, bad=(5,))}
    monkeypatch.setattr(few_shot, "open_source", lambda data, split: sources[split])
    mesh = sharding.make_mesh({"data": 1, "fsdp": 1, "tensor": 1}, jax.devices()[:1])

    def made(**args):
        SEEN.clear()
        data = config_lib.base().data
        data.tokenizer = str(words)
        base = {
            "split": "validation",
            "support": "train",
            "task": "qa",
            "shots": (0,),
            "batch_size": 4,
            "length": 128,
            "size": SIZE,
            "picture": STEPS,
        }
        return few_shot.make(model(words), ConfigDict({**base, **args}), mesh, data)

    return made


def spelt(evaluator, row):
    t, m = evaluator.marks.tokenizer, evaluator.marks
    names = {m.start: "<B>", m.chunk: "|", m.media: "<I>"}
    return " ".join(names.get(int(i)) or t.decode([int(i)]) for i in row)


def prompts_seen(evaluator):
    jax.effects_barrier()
    return [spelt(evaluator, row[:n]) for tokens, lengths, _ in SEEN for row, n in zip(tokens, lengths, strict=True)]


def test_open_answers_their_prompts_and_their_scores(make, tmp_path):
    evaluate = make(shots=(0, 2))
    found = evaluate.found({})
    assert {s: f.scores for s, f in found.items()} == {0: {"accuracy": 1.0, "bad_samples": 1.0}, 2: {"accuracy": 1.0, "bad_samples": 1.0}}
    ids = [one["question_id"] for one in found[2].predictions]
    assert ids == [str(i) for i in range(10) if i != 5] and found[2].predictions[2]["answer"] == "two"
    assert verb.run("qa", evaluate, {}, tmp_path, None) == evaluate({})  # `mmjax eval` writes them down
    assert list(predictions.read(str(tmp_path / "predictions" / "qa_2_shots.json"), predictions.ANSWER)) == ids
    SEEN.clear()
    evaluate({})
    said = prompts_seen(evaluate)
    assert all(
        s.count("<I>") == 1 and s.count("|") == 2 and s.startswith("<B> question : level") for s in said[:8]
    )  # two examples without pictures
    two = [s for s in said if s.count("<I>") == 3]
    assert len(two) >= 9 and all(s.endswith("answer :") and s.count("|") == 2 for s in two)
    assert two[0].endswith("| <I> question : level 0 answer :")
    assert all("level 3 answer" not in s.rpartition("|")[0] for s in two)  # a bad picture is no example
    assert evaluate.found({})[2].predictions == found[2].predictions
    assert evaluate({}) == {"accuracy_0": 1.0, "bad_samples_0": 1.0, "accuracy_2": 1.0, "bad_samples_2": 1.0}


def test_without_or_with_another_picture_it_guesses(make):
    assert make(pictures="none")({})["accuracy_0"] == 0.0
    assert make(pictures="shuffled", shots=(2,))({})["accuracy_2"] == 0.0
    evaluate = make(pictures="none", shots=(2,))
    evaluate({})
    assert not any("<I>" in s for s in prompts_seen(evaluate)) and all(images.max() == 0 for *_, images in SEEN)
    for retrieval in ("random", "rices"):  # where no example is shown, none is read
        assert make(text_only=0, support="no such split", retrieval=retrieval)({})["accuracy_0"] == 1.0


def test_closed_answers_are_ranked_and_averaged_over_orders(make):
    evaluate = make(task="classes", shots=(3,), permutations=6)
    assert evaluate({}) == {"accuracy_3": 1.0, "bad_samples_3": 1.0}
    of_first = [s for s in prompts_seen(evaluate)][:4:4] + [prompts_seen(evaluate)[4 * k] for k in range(1, 6)]
    examples = [tuple(s.split(" | ")[:-1]) for s in of_first]
    assert len(set(examples)) == 6 and len({tuple(sorted(part.removeprefix("<B> ") for part in e)) for e in examples}) == 1
    assert make(closed=True)({})["accuracy_0"] == 1.0  # of questions: the answers among the examples
    with pytest.raises(UserError, match="permutations is 6; scores are averaged over orders of closed answers only"):
        make(permutations=6)


def test_rices_shows_the_most_similar_last(make):
    evaluate = make(task="captions", shots=(4,), retrieval="rices")
    scores = evaluate({})
    assert scores["bleu_1_4"] > 0.99 and scores["cider_d_4"] == pytest.approx(2.5)  # captions of one word have no longer n-grams
    first = next(s for s in prompts_seen(evaluate) if s.count("<I>") == 5)
    assert [part.rpartition(": ")[2] for part in first.split(" | ")[:-1]][-3:] == ["zero"] * 3  # of the three pictures of level 0
    assert "one" in first.split(" | ")[0]


def test_prompts_with_examples_of_their_own(make, monkeypatch):
    texts = ("level 1 one", "level 2")
    record = {"texts": texts, "images": (picture(1), picture(2)), "positions": np.array([0, 1]), "answer": "two", "form": "count, 1 shots"}
    own = Levels(3)
    own.__class__ = type(
        "Prompts", (Levels,), {"__getitem__": lambda self, i: record if i else {**record, "form": "question, 1 shots", "answer": "six"}}
    )
    monkeypatch.setattr(few_shot, "open_source", lambda data, split: own)
    for closed in (None, True):
        evaluate = make(task="prompts", closed=closed)
        scores = evaluate({})
        assert scores == {"accuracy": 2 / 3, "accuracy/count, 1 shots": 1.0, "accuracy/question, 1 shots": 0.0}
        assert prompts_seen(evaluate)[:3] == ["<B> <I> level 1 one | <I> level 2"] * 3


def test_openflamingos_prompts(make):
    evaluate = make(style="openflamingo", layout="openflamingo", shots=(1,))
    evaluate({})
    assert all("short answer :" in s and s.count("|") == 1 for s in prompts_seen(evaluate)[:9])


def test_examples_are_drawn_once_and_for_all():
    among = np.arange(100, 150)
    few = few_shot_prompts.random_examples(4, 0, 7, among)
    assert few.tolist() == few_shot_prompts.random_examples(12, 0, 7, among)[-4:].tolist() and len(set(few.tolist())) == 4
    assert (
        few.tolist()
        != few_shot_prompts.random_examples(4, 0, 8, among).tolist()
        != few_shot_prompts.random_examples(4, 1, 7, among).tolist()
    )
    assert few_shot_prompts.nearest_examples(np.array([1.0, 0.0]), np.array([[0.6, 0.8], [1.0, 0.0], [0.0, 1.0]]), 2).tolist() == [0, 1]
    for count, wanted, expected in ((0, 6, 1), (1, 6, 1), (2, 6, 2), (3, 6, 6), (3, 4, 4), (8, 6, 6)):
        orders = few_shot_prompts.permutations(count, wanted, 0, 1)
        assert len(orders) == len(set(orders)) == expected and orders[0] == tuple(range(count))
    items = [Item(str(i), r, "", ()) for i, r in enumerate((0, 0, 1, 2))]
    assert few_shot_prompts.shuffled(items) == [1, 1, 2, 0]


def test_area_under_the_curve_of_two_classes():
    scores, positive = np.array([0.1, 0.4, 0.4, 0.8, 0.9]), np.array([False, False, True, True, False])
    assert few_shot.roc_auc(scores, positive) == pytest.approx((1 + 0.5 + 0 + 1 + 1 + 0) / 6)  # pairs of one of each, by hand
    assert np.isnan(few_shot.roc_auc(scores, np.ones(5, bool)))


def test_what_is_read_from_an_answer():
    assert few_shot_prompts.cleaned(" yes, it is", "vqa") == "yes" and few_shot_prompts.cleaned("two Question: what", "qa") == "two"
    assert few_shot_prompts.cleaned(' a "dog" Output: a cat', "captions") == "a dog"


COCO = {
    "images": [{"id": 7, "file_name": "a.png"}, {"id": 9, "file_name": "b.png"}],
    "annotations": [{"image_id": 9, "caption": "two"}, {"image_id": 7, "caption": "one"}, {"image_id": 9, "caption": "too"}],
}
KARPATHY = {
    "images": [
        {"cocoid": 7, "filepath": "val", "filename": "a.png", "split": "test", "sentences": [{"raw": "one"}]},
        {"cocoid": 8, "filepath": "val", "filename": "c.png", "split": "train", "sentences": [{"raw": "x"}]},
    ]
}
ANSWERS = {"annotations": [{"question_id": 71, "answers": [{"answer": "one"}, {"answer": "1"}], "answer_type": "number"}]}
QUESTIONS = {"data_subtype": "val2014", "questions": [{"question_id": 71, "image_id": 7, "question": "how many"}]}
GQA = {"q1": {"imageId": "n7", "question": "who", "answer": "me", "types": {"structural": "query"}}}
CLEVR = {
    "questions": [{"question_index": 0, "image_filename": "C_0.png", "question": "how", "answer": "2", "program": [{"function": "count"}]}]
}
MEMES = [{"id": 5, "img": "img/5.png", "label": 1, "text": "hm"}]
OWN = [{"question_id": "x", "question": "who", "answer": "me", "image": "a.png"}]


@pytest.mark.parametrize(
    ("kind", "content", "more", "split", "expected"),
    [
        ("captions", COCO, {}, None, [("9", "b.png", "", ("two", "too")), ("7", "a.png", "", ("one",))]),
        ("captions", KARPATHY, {}, "test", [("7", "val/a.png", "", ("one",))]),
        ("vqa", ANSWERS, {"questions": QUESTIONS}, None, [("71", "COCO_val2014_000000000007.jpg", "how many", ("one", "1"))]),
        ("vqa", ANSWERS, {"questions": QUESTIONS, "names": "{image_id}.png"}, None, [("71", "7.png", "how many", ("one", "1"))]),
        ("gqa", GQA, {}, None, [("q1", "n7.jpg", "who", ("me",))]),
        ("clevr", CLEVR, {}, None, [("0", "C_0.png", "how", ("2",))]),
        ("classes", MEMES, {}, None, [("5", "img/5.png", "hm", ("yes",))]),
        ("qa", OWN, {}, None, [("x", "a.png", "who", ("me",))]),
    ],
)
def test_published_files(kind, content, more, split, expected, tmp_path):
    given = {"annotations": str(tmp_path / "a.json"), "images": str(tmp_path)}
    (tmp_path / "a.json").write_text(json.dumps(content))
    for key, value in more.items():
        given[key] = value if isinstance(value, str) else str(tmp_path / f"{key}.json")
        if not isinstance(value, str):
            (tmp_path / f"{key}.json").write_text(json.dumps(value))
    asked = few_shot_sets.of_files(given, kind, split, ("no", "yes"))
    assert [(i.id, asked.gallery.names[i.record], i.question, i.answers) for i in asked.items] == expected


def test_examples_and_questions_out_of_files(make, tmp_path):
    for k in range(4):
        (tmp_path / f"{k}.png").write_bytes(picture(k))
    for name, ids in (("train", (0, 1)), ("test", (2, 3))):
        lines = [{"question_id": f"q{k}", "question": f"level {k}", "answer": NAMES[k], "image": f"{k}.png"} for k in ids]
        (tmp_path / f"{name}.json").write_text(json.dumps(lines))
    files = lambda name: {"annotations": str(tmp_path / f"{name}.json"), "images": str(tmp_path)}
    evaluate = make(split="", support="", files=files("test"), support_files=files("train"), shots=(2,))
    (found,) = evaluate.found({}).values()
    assert found.predictions == [{"question_id": "q2", "answer": "two"}, {"question_id": "q3", "answer": "three"}]
    assert found.scores == {"accuracy": 1.0} and all(s.count("<I>") == 3 for s in prompts_seen(evaluate)[:2])


def test_what_is_wrong_is_said_in_one_line(make, tmp_path):
    for args, message in (
        ({"task": "caption"}, "task is 'caption'; did you mean 'captions'"),
        ({"shots": ()}, r"shots is \(\)"),
        ({"shots": (25,)}, "25 shots, and source 'levels' .train. has 24 examples"),
        ({"style": "flamin"}, "style is 'flamin'"),
        ({"template": "x"}, "has no {answer}"),
        ({"task": "prompts", "shots": (4,)}, "prompts have their own examples"),
        ({"files": {"annotations": "x"}}, "both `annotations` and `images`"),
        ({"files": {"annotation": "x"}}, "no key 'annotation'; did you mean 'annotations'"),
    ):
        with pytest.raises(UserError, match=message):
            make(**args)
    with pytest.raises(UserError, match=r"prompt of source 'levels' .validation., id \d, has .* tokens, and length is 16"):
        make(length=16)({})
    (tmp_path / "a.json").write_text(json.dumps(ANSWERS))
    with pytest.raises(UserError, match="vqa needs `questions`"):
        few_shot_sets.of_files({"annotations": str(tmp_path / "a.json"), "images": str(tmp_path)}, "vqa", None, ())
    with pytest.raises(BadSample, match="there is no file"):
        few_shot_sets.Folder(("x.png",), str(tmp_path))[0]
