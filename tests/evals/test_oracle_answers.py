"""Questions about pictures are answered rightly by what the oracle reads in them: no scene graph is looked at on the way."""

import pytest

from tests.evals.readings import answered


@pytest.mark.parametrize("n", [24, pytest.param(600, marks=pytest.mark.slow)])
def test_questions_are_answered_from_pictures(n):
    found = answered("validation", n)
    wrong = [(i, question, said, right) for i, question, said, right in found if said != right]
    assert len(wrong) <= 0.005 * n, wrong
    assert len({right for *_, right in found}) >= 4
