"""Caption scores against pycocoevalcap (tests/golden/captions/make.py) and worked by hand."""

import json
import math
from pathlib import Path

import numpy as np
import pytest

from mmjax.evals import captions

SETS = json.loads((Path(__file__).parents[1] / "golden/captions/reference.json").read_text())["scores"]
split = lambda texts: [text.split() for text in texts]


@pytest.mark.parametrize("golden", SETS, ids=["by hand", "few words", "many words", "one image"])
def test_golden(golden):
    references, hypotheses = [split(texts) for texts in golden["references"]], split(golden["hypotheses"])
    np.testing.assert_allclose(captions.bleu(references, hypotheses), golden["bleu"], rtol=0, atol=1e-9)
    np.testing.assert_allclose(captions.rouge_l(references, hypotheses), golden["rouge_l"], rtol=0, atol=1e-9)
    np.testing.assert_allclose(captions.cider(references, hypotheses)["cider_d"], golden["cider_d"], rtol=0, atol=1e-9)


def test_published_numbers_of_the_set_by_hand():
    corpus, each = captions.score(SETS[0]["references"], SETS[0]["hypotheses"])
    assert corpus == pytest.approx(
        {"bleu_1": 0.9285714, "bleu_2": 0.8716308, "bleu_3": 0.7242331, "bleu_4": 0.5250084, "rouge_l": 0.7666667, "cider_d": 3.4712957}
        | {"cider": corpus["cider"]},
        abs=1e-6,
    )
    np.testing.assert_allclose(each["rouge_l"], [0.8, 2 / 3, 5 / 6])
    assert set(captions.LABELS) == set(corpus)


def test_one_image_has_no_cider():
    """log(1 image / 1 image that holds the n-gram) is 0: nothing tells this image from others."""
    assert captions.cider([split(["a cat"])], split(["a cat"])) == {"cider_d": [0.0], "cider": [0.0]}


def naive_cider(references, hypotheses):
    """The paper's equations over dense vectors: a vocabulary of n-grams for each n, cosines, means."""
    grams = lambda tokens, n: [tuple(tokens[i : i + n]) for i in range(len(tokens) - n + 1)]
    out = np.zeros(len(hypotheses))
    for n in (1, 2, 3, 4):
        vocabulary = sorted({g for given in references for r in given for g in grams(r, n)} | {g for h in hypotheses for g in grams(h, n)})
        holds = np.array([sum(any(g in grams(r, n) for r in given) for given in references) for g in vocabulary])
        idf = np.log(len(references) / np.maximum(1, holds))
        vector = lambda tokens: np.array([grams(tokens, n).count(g) for g in vocabulary]) * idf  # noqa: B023
        cosine = lambda a, b: a @ b / (np.linalg.norm(a) * np.linalg.norm(b)) if a.any() and b.any() else 0.0
        out += [np.mean([cosine(vector(h), vector(r)) for r in given]) for h, given in zip(hypotheses, references, strict=True)]
    return 10 * out / 4


@pytest.mark.parametrize("golden", SETS[:3], ids=["by hand", "few words", "many words"])
def test_cider_is_the_papers(golden):
    references, hypotheses = [split(texts) for texts in golden["references"]], split(golden["hypotheses"])
    found = captions.cider(references, hypotheses)
    np.testing.assert_allclose(found["cider"], naive_cider(references, hypotheses), atol=1e-12)
    assert (found["cider_d"] <= found["cider"] + 1e-12).all()


def test_bleu_counts_are_clipped_and_the_nearest_length_counts():
    # "the" counts twice at most; of lengths 2 and 6 the shorter is as near to 4, so there is no penalty.
    got = captions.bleu([split(["the the", "x x x x x x"])], split(["the the the the"]))
    assert got[0] == pytest.approx(2 / 4) and got[1] == pytest.approx(math.sqrt(1 / 2 * 1 / 3))
    # Length 3 against 4: exp(1 - 4/3).
    assert captions.bleu([split(["a b c d"])], split(["a b c"]))[0] == pytest.approx(math.exp(-1 / 3))
    assert captions.bleu([split(["a b"])], [[]]).tolist() == [0, 0, 0, 0]


def test_longest_common_subsequence():
    assert captions.longest_common(list("abcd"), list("bxd")) == 2
    assert captions.longest_common([], ["a"]) == captions.longest_common(["a"], []) == 0

    def table(a, b):  # by the textbook recurrence
        t = np.zeros((len(a) + 1, len(b) + 1), int)
        for i, x in enumerate(a):
            for j, y in enumerate(b):
                t[i + 1, j + 1] = t[i, j] + 1 if x == y else max(t[i, j + 1], t[i + 1, j])
        return t[-1, -1]

    rng = np.random.default_rng(0)
    for _ in range(200):
        a, b = (list(map(str, rng.integers(0, 4, rng.integers(0, 90)))) for _ in range(2))
        assert captions.longest_common(a, b) == table(a, b)


def test_rouge_takes_precision_and_recall_of_different_references():
    # Precision 2/2 from the long reference, recall 1/1 from the short one.
    assert captions.rouge_l([split(["a b c d", "b"])], split(["a b"])) == pytest.approx([1.0])
    p, r = 1 / 2, 1 / 4
    assert captions.rouge_l([split(["a x y z"])], split(["a b"])) == pytest.approx([2.44 * p * r / (r + 1.44 * p)])
