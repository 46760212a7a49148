"""Entropy against closed forms, what is counted, and a model that has learnt the training distribution."""

import itertools
import math

import numpy as np
import pytest

from mmjax.evals import diversity
from mmjax.evals.judged import Judged
from mmjax.evals.oracle import Reading, Seen
from tests.evals import drawn
from tests.evals.drawn import thing


def reading(*things):
    return Reading(tuple(Seen(o.shape, o.colour, o.size, o.x, o.y, 1.0, o.r, o.angle, o.outline) for o in things))


def judged(prompts, rows):
    met = [[p.requirement.met([o.object() for o in r.objects]) for r in row] for p, row in zip(prompts, rows, strict=True)]
    return Judged(prompts, tuple(map(tuple, rows)), np.array(met))


def test_entropy_closed_forms():
    assert diversity.entropy([5]) == 0 and diversity.entropy([]) == 0 and diversity.entropy([3, 3, 0, 3, 3]) == pytest.approx(2)
    p = 0.2
    assert diversity.entropy([1, 4]) == pytest.approx(-p * math.log2(p) - (1 - p) * math.log2(1 - p))
    assert diversity.corrected([1, 4]) == pytest.approx(diversity.entropy([1, 4]) + 1 / (2 * 5 * math.log(2)))


def test_expected_entropy_is_exact():
    """Against every outcome of n draws, one by one."""
    shares, n = [0.5, 0.3, 0.2], 4
    by_hand = 0.0
    for draws in itertools.product(range(3), repeat=n):
        by_hand += math.prod(shares[i] for i in draws) * diversity.entropy(np.bincount(draws).tolist())
    assert diversity.expected(shares, n) == pytest.approx(by_hand, rel=1e-12)
    assert diversity.expected([0.5, 0.5], 2) == pytest.approx(0.5) and diversity.expected(shares, 1) == 0
    assert diversity.expected([0.25] * 4, 10_000) == pytest.approx(2, abs=1e-3)


def test_what_is_open():
    """Two wordings are one prompt; stated attributes, failing pictures and prompts for more things do not count; the largest thing does."""
    prompts = drawn.prompts(
        ("c", "a red circle"), ("c", "a picture of a red circle"), ("c", "two circles"), ("c", "a red circle and a star")
    )
    large = thing("circle", "red", 0.1, 0.1, "large", outline=True)
    small = thing("circle", "red", 0.9, 0.9, "small")
    rows = [
        [reading(small), reading(small, large)],
        [reading(small), reading(thing("star", "red"))],
        [reading(small)] * 2,
        [reading(small)] * 2,
    ]
    found = diversity.measure(judged(prompts, rows))
    assert set(found) == {"size", "outline", "place", "number"} and {d.prompts for d in found.values()} == {1}
    third = diversity.entropy([1, 2])
    assert all(d.bits == pytest.approx(third) and d.training is None for d in found.values())
    assert diversity.measure(judged(prompts[:1], [[reading(small), reading()]])) == {}  # one picture that meets it shows nothing


def test_a_model_that_has_learnt_reaches_training():
    rng = np.random.default_rng(0)
    draw = lambda: [thing("circle", str(rng.choice(["red", "blue", "pink"], p=[0.6, 0.3, 0.1])))]
    training = [draw() for _ in range(400)] + [[thing("star", "black")]] * 50
    n = 8
    prompts = drawn.prompts(("c", "a circle"))
    seen = [diversity.measure(judged(prompts, [[reading(*draw()) for _ in range(n)]]), training)["colour"] for _ in range(40)]
    bits = np.array([d.bits for d in seen])
    assert seen[0].training == pytest.approx(diversity.expected([0.6, 0.3, 0.1], n), abs=0.1)
    assert abs(bits.mean() - seen[0].training) < 3 * bits.std() / 40**0.5
    assert bits.mean() < diversity.entropy([60, 30, 10]) - 0.1  # though it is the same distribution
    same = diversity.measure(judged(prompts, [[reading(thing("circle", "red"))] * n]), training)["colour"]
    assert same.bits == 0 and same.corrected == 0 and same.training > 1


def test_prompts_that_training_never_shows_are_left_out():
    prompts = drawn.prompts(("c", "a circle"))
    rows = [[reading(thing("circle", "red"))] * 2]
    assert diversity.measure(judged(prompts, rows), [[thing("star", "red")]]) == {}
