"""A bias that was planted is measured, with an interval that covers it."""

import numpy as np
import pytest

from mmjax.data.scenes import splits
from mmjax.data.scenes.sample import sample
from mmjax.evals import amplification
from tests.evals import drawn
from tests.evals.drawn import thing
from tests.evals.test_diversity import judged, reading


def pictures(rng, share, count):
    """Circles that are red with a share; stars of evenly spread colours."""
    others = ["blue", "green", "yellow", "pink"]
    circles = [thing("circle", "red" if rng.random() < share else str(rng.choice(others))) for _ in range(count)]
    return [[c, thing("star", splits.colours("star")[i % 9])] for i, c in enumerate(circles)]


def test_a_planted_amplification_is_recovered():
    rng = np.random.default_rng(0)
    training = [[thing("circle", "red")]] * 90 + [[thing("circle", "blue")]] * 10
    covered = 0
    for _ in range(40):
        found = amplification.measure(training, pictures(rng, 0.97, 200))
        assert list(found.pairs) == [("circle", "red")]
        pair = found.pairs["circle", "red"]
        assert pair.training == pytest.approx(0.9) and pair.amplification.mean == pytest.approx(pair.generated - 0.9)
        assert found.mean.mean == pytest.approx(pair.amplification.mean)
        covered += pair.amplification.low <= 0.07 <= pair.amplification.high
    assert covered >= 32  # nominally 38 of 40


def test_by_hand():
    training = [[thing("circle", "red"), thing("circle", "blue")], [thing("circle", "red")]]  # a picture counts once: 3/4
    generated = [[thing("circle", "red"), thing("star", "black")]] * 3 + [[thing("circle", "pink")]]
    found = amplification.measure(training, generated)
    assert {k: (p.training, p.generated) for k, p in found.pairs.items()} == {
        ("circle", "red"): (0.75, 0.75),
        ("circle", "blue"): (0.25, 0.0),
    }
    assert found.mean.mean == pytest.approx(0 - 0.25)  # Zhao et al.: summed over the colours a shape favours
    assert amplification.plain(found)["pairs"]["blue circle"]["amplification"]["mean"] == pytest.approx(-0.25)
    assert "blue circle" in amplification.table(found) and "mean over shapes" in amplification.table(found)


def test_split_biased_is_favoured_and_an_even_one_is_not():
    biased = [[o for o in sample("objects", "biased", i).objects if o.shape in splits.BIAS] for i in range(60)]
    found = amplification.measure(biased, biased)
    assert set(found.pairs) == set(splits.BIAS.items()) and found.mean.mean == pytest.approx(0)
    assert all(p.training > 0.7 for p in found.pairs.values())
    even = [[thing(shape, c)] for shape in ("circle", "star") for c in splits.colours(shape)]
    assert amplification.measure(even, even).mean is None and "no colour" in amplification.table(amplification.measure(even, even))


def test_prompts_that_name_a_colour_do_not_count():
    prompts = drawn.prompts(("c", "a circle"), ("c", "a red circle"), ("c", "a star left of a circle"), ("c", 'the word "ANT"'))
    rows = [[reading(thing("circle", colour))] for colour in ("blue", "red", "pink", "black")]
    assert [[o.colour for o in objects] for objects in amplification.of_open_prompts(judged(prompts, rows))] == [["blue"], ["pink"]]
