"""Perplexity of texts under a bigram table: every number by hand."""

import itertools
import json
import math
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest
from ml_collections import ConfigDict

import mmjax
from mmjax import evals
from mmjax.core import config as config_lib
from mmjax.core import sharding
from mmjax.core.errors import UserError
from mmjax.data import tokenizer, transforms
from mmjax.data.bad import BadSample
from mmjax.evals.perplexity import windows

WORDS = Path(mmjax.__file__).parent / "data" / "scenes" / "tokenizer.json"
RECORDS = [
    {"question": "Is there a red circle?", "answers": ["yes"]},
    {"question": "Which shape is the red thing that is above the small blue star?", "answers": ["circle", "disc"]},
    {"question": "Why?", "answers": ["no"]},
]
TEMPLATE = "{question} {answers}"


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    path = tmp_path_factory.mktemp("texts") / "texts.jsonl"
    path.write_text("".join(json.dumps(r) + "\n" for r in RECORDS))
    group = config_lib.base().data
    group.source, group.path, group.tokenizer = "jsonl", str(path), str(WORDS)
    group.features = ConfigDict({"question": "question", "answers": "answers"})
    return group


def make(data, **changes):
    predict = {"logits": lambda params, tokens: params["table"][tokens], "generate": None}
    group = {"type": "perplexity", "split": "train", "batch_size": 3, "length": 6}
    group["transforms"] = (("compose", {"template": TEMPLATE, "join": True}),)
    return evals.make("lm", predict, ConfigDict({**group, **changes}), sharding.make_mesh({"data": 8}), data)


@pytest.mark.parametrize(("length", "stride"), [(6, 6), (6, 2), (6, 1), (30, 30)])
def test_windows_predict_every_token_but_the_first_once(length, stride):
    ids = list(range(100, 117))
    predicted, least = [], length
    for tokens, counts in windows(ids, length, stride, 0):
        assert len(tokens) == length and not counts[0]
        predicted += tokens[counts > 0].tolist()
        if tokens[0] != 100:
            least = min(least, int(np.argmax(counts)))
    assert predicted == ids[1:]
    assert least >= (length - stride if stride < length else 1)


def test_numbers_by_hand(data):
    words = tokenizer.load(WORDS)
    table = np.random.default_rng(0).normal(size=(words.vocab_size, words.vocab_size)).astype(np.float32)
    log_p = table - np.log(np.exp(table.astype(np.float64)).sum(-1, keepdims=True))
    nll, right, count, size = 0.0, 0, 0, 0
    for record in RECORDS:
        text = f"{record['question']} {' '.join(record['answers'])}"
        ids = [words.start, *words.encode_plain(text), words.end]
        nll -= sum(log_p[a, b] for a, b in itertools.pairwise(ids))
        right += sum(log_p[a].argmax() == b for a, b in itertools.pairwise(ids))
        count, size = count + len(ids) - 1, size + len(text.encode())
    for stride in (0, 2):  # a bigram table sees no further, so overlaps change nothing
        found = make(data, stride=stride)({"table": jnp.asarray(table)})
        assert found["perplexity"] == pytest.approx(math.exp(nll / count), rel=1e-5)
        assert found["bits_per_byte"] == pytest.approx(nll / math.log(2) / size, rel=1e-5)
        assert (found["tokens"], found["texts"], found["token_accuracy"]) == (count, 3, pytest.approx(right / count))
    assert make(data, count=1)({"table": jnp.asarray(table)})["texts"] == 1


def test_bad_input(data):
    with pytest.raises(UserError, match="length is 6 and stride 7"):
        make(data, stride=7)
    with pytest.raises(UserError, match="have no text 'txt'; they have answers"):
        make(data, text="txt")({})
    with pytest.raises(UserError, match="has no text of two tokens"):
        make(data, text="answers", start=False, end=False, transforms=(), count=1)({})


def test_compose():
    rng = np.random.default_rng(0)
    many = {"questions": ["q0", "q1", "q2"], "answers": ["a0", "a1", "a2"], "one": "x"}
    drawn = {transforms.Compose("{questions}:{answers}{one}")(many, rng)["caption"] for _ in range(60)}
    assert drawn == {"q0:a0x", "q1:a1x", "q2:a2x"}
    assert transforms.Compose("{questions}", index=1, target="t")(many, rng)["t"] == "q1"
    assert transforms.Compose("{answers}.", join=True)(many, rng)["caption"] == "a0 a1 a2."
    for record in ({**many, "answers": ["a0"]}, {**many, "questions": []}):
        with pytest.raises(BadSample, match="of lists of"):
            transforms.Compose("{questions}{answers}")(record, rng)
    with pytest.raises(UserError, match="expected keys of the example in braces"):
        transforms.build((("compose", {"template": "{a.b}"}),), None)
