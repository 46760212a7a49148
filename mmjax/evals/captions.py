"""Scores of captions against reference captions, as the COCO evaluation computes them: BLEU, ROUGE-L, CIDEr-D, CIDEr.

N images, one hypothesis and one or more references each, as lists of tokens (`ptb.tokenize`). Numbers are those of coco-caption
with two things to know. What it and every COCO table call "CIDEr" is CIDEr-D here; `cider` is the paper's original, without clipping
and without the penalty on length. And both take their inverse document frequencies from the references they are given, so that
scores of different sets of images, or of a part and the whole, cannot be compared; of a single image they are 0.
"""

import math
from collections import Counter
from collections.abc import Sequence

import numpy as np
from jaxtyping import Float64

from mmjax.evals import ptb

Tokens = Sequence[str]
Ngram = tuple[str, ...]
ORDER = 4  # n-grams of 1 to 4 tokens
SIGMA = 6.0  # of CIDEr-D's penalty on length, in tokens
BETA = 1.2  # ROUGE-L: how much more recall weighs than precision
LABELS = {
    **{f"bleu_{n}": f"BLEU-{n}" for n in range(1, ORDER + 1)},
    "rouge_l": "ROUGE-L",
    "cider_d": "CIDEr-D",
    "cider": "CIDEr",
}


def ngrams(tokens: Tokens) -> Counter[Ngram]:
    """How often every n-gram of 1 to 4 tokens occurs."""
    return Counter(tuple(tokens[i : i + n]) for n in range(1, ORDER + 1) for i in range(len(tokens) - n + 1))


def bleu(references: Sequence[Sequence[Tokens]], hypotheses: Sequence[Tokens]) -> Float64[np.ndarray, "4"]:
    """BLEU-1 to BLEU-4 of the corpus (Papineni et al. 2002): clipped counts summed over images, no smoothing.

    The brevity penalty uses, an image, the reference length nearest to the hypothesis, the shorter of two as near.
    """
    right, guessed = np.zeros(ORDER), np.zeros(ORDER)
    length = reference_length = 0
    for given, hypothesis in zip(references, hypotheses, strict=True):
        allowed: Counter[Ngram] = Counter()
        for reference in given:
            allowed |= ngrams(reference)
        for ngram, count in ngrams(hypothesis).items():
            right[len(ngram) - 1] += min(count, allowed[ngram])
        guessed += [max(0, len(hypothesis) - n) for n in range(ORDER)]
        length += len(hypothesis)
        reference_length += min((abs(len(r) - len(hypothesis)), len(r)) for r in given)[1]
    # coco-caption keeps clear of 0 / 0 and of a product of zero by these; without a match of four tokens BLEU-4 is small, not 0.
    precision = np.cumprod((right + 1e-15) / (guessed + 1e-9)) ** (1 / np.arange(1, ORDER + 1))
    ratio = (length + 1e-15) / (reference_length + 1e-9)
    return precision * math.exp(min(0.0, 1 - 1 / ratio))


def longest_common(a: Tokens, b: Tokens) -> int:
    """Length of the longest common subsequence: one addition of big integers for each of `b` (Hyyrö 2004)."""
    places: dict[str, int] = {}
    for i, token in enumerate(a):
        places[token] = places.get(token, 0) | 1 << i
    full = (1 << len(a)) - 1
    row = full  # bit i is 0 where the length grows at a[i]
    for token in b:
        match = row & places.get(token, 0)
        row = (row + match | row - match) & full
    return len(a) - row.bit_count()


def rouge_l(references: Sequence[Sequence[Tokens]], hypotheses: Sequence[Tokens]) -> Float64[np.ndarray, "N"]:
    """F-measure of the longest common subsequence (Lin 2004), an image; beta 1.2.

    Precision and recall are each the best over the references, perhaps of two different ones, as in coco-caption.
    """
    out = np.zeros(len(hypotheses))
    for i, (given, hypothesis) in enumerate(zip(references, hypotheses, strict=True)):
        common = [longest_common(reference, hypothesis) for reference in given]
        precision = max(common) / max(1, len(hypothesis))
        recall = max(c / max(1, len(reference)) for c, reference in zip(common, given, strict=True))
        if precision and recall:
            out[i] = (1 + BETA**2) * precision * recall / (recall + BETA**2 * precision)
    return out


def cider(references: Sequence[Sequence[Tokens]], hypotheses: Sequence[Tokens]) -> dict[str, Float64[np.ndarray, "N"]]:
    """CIDEr-D and CIDEr an image (Vedantam et al. 2015, equations 1 to 3 and 5), times 10.

    Both are a cosine of n-gram counts weighted by log(N / images whose references hold the n-gram), averaged over n = 1..4 and over
    references. CIDEr-D clips the hypothesis's weights at the reference's and multiplies by exp(-difference in length² / (2 * 6²)).
    """
    counted = [[ngrams(reference) for reference in given] for given in references]
    frequency = Counter(ngram for given in counted for ngram in set().union(*given))
    rarest = math.log(max(1, len(counted)))  # the weight of an n-gram that no reference holds, or one image's alone
    rarity = {ngram: rarest - math.log(count) for ngram, count in frequency.items()}

    def weigh(counts: Counter[Ngram]) -> tuple[dict[Ngram, float], list[float]]:
        weights = {g: count * rarity.get(g, rarest) for g, count in counts.items()}
        squares = [0.0] * ORDER
        for g, weight in weights.items():
            squares[len(g) - 1] += weight * weight
        return weights, [math.sqrt(s) for s in squares]

    out = {"cider_d": np.zeros(len(hypotheses)), "cider": np.zeros(len(hypotheses))}
    for i, (given, hypothesis) in enumerate(zip(references, hypotheses, strict=True)):
        weights, norms = weigh(ngrams(hypothesis))
        for reference, counts in zip(given, counted[i], strict=True):
            theirs, their_norms = weigh(counts)
            clipped, plain = [0.0] * ORDER, [0.0] * ORDER
            for g in weights.keys() & theirs.keys():
                clipped[len(g) - 1] += min(weights[g], theirs[g]) * theirs[g]
                plain[len(g) - 1] += weights[g] * theirs[g]
            penalty = math.exp(-((len(hypothesis) - len(reference)) ** 2) / (2 * SIGMA**2))
            scale = [10 / (ORDER * len(given)) / (a * b) if a and b else 0.0 for a, b in zip(norms, their_norms, strict=True)]
            out["cider_d"][i] += penalty * sum(c * s for c, s in zip(clipped, scale, strict=True))
            out["cider"][i] += sum(c * s for c, s in zip(plain, scale, strict=True))
    return out


def score(references: Sequence[Sequence[str]], hypotheses: Sequence[str]) -> tuple[dict[str, float], dict[str, np.ndarray]]:
    """Scores of N captions as text: of the corpus (the keys of `LABELS`), and image by image (all but BLEU, which has no such thing).

    BLEU and ROUGE-L are 0 to 1, CIDEr-D and CIDEr 0 to 10; published tables show all of them times 100.
    """
    given = [[ptb.tokenize(reference) for reference in texts] for texts in references]
    tokens = [ptb.tokenize(hypothesis) for hypothesis in hypotheses]
    each = {"rouge_l": rouge_l(given, tokens), **cider(given, tokens)}
    corpus = {f"bleu_{n}": float(value) for n, value in enumerate(bleu(given, tokens), 1)}
    return {**corpus, **{name: float(values.mean()) for name, values in each.items()}}, each
