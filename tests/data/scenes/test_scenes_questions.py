"""Questions: programs worked by hand, words answered by the independent parser, balance."""

import json
from collections import Counter, defaultdict

import numpy as np
import pytest

from mmjax.core.errors import UserError
from mmjax.data.scenes.dialogue import GRAMMAR as DIALOGUE_GRAMMAR
from mmjax.data.scenes.dialogue import dialogue
from mmjax.data.scenes.question_programs import NEAR, Ambiguous, answer, settled
from mmjax.data.scenes.questions import FORMS, GRAMMAR, TYPES, ask, plan, questions
from mmjax.data.scenes.sample import sample
from mmjax.data.scenes.world import Object, Scene
from tests import scene_parser

RED = Object("circle", "red", "medium", 0.2, 0.5)
BLUE = Object("square", "blue", "medium", 0.8, 0.5)
SMALL = Object("circle", "blue", "small", 0.5, 0.1)
OBJECTS = (RED, BLUE, SMALL)
ALL = ("scene",)
CIRCLES, BLUES = ("filter", ALL, "shape", "circle"), ("filter", ALL, "colour", "blue")
THE_RED, THE_SQUARE = ("unique", ("filter", ALL, "colour", "red")), ("unique", ("filter", ALL, "shape", "square"))


def rng(seed):
    return np.random.default_rng(seed)


@pytest.mark.parametrize(
    "program, said",
    [
        (("count", CIRCLES), "2"),
        (("exist", ("filter", CIRCLES, "colour", "green")), "no"),
        (("count", ("union", CIRCLES, BLUES)), "3"),
        (("query", THE_RED, "size"), "medium"),
        (("more", ("count", CIRCLES), ("count", BLUES)), "no"),
        (("equal", ("count", CIRCLES), ("count", BLUES)), "yes"),
        (("fewer", ("count", ("filter", ALL, "size", "small")), ("count", BLUES)), "yes"),
        (("stands", THE_RED, "left of", THE_SQUARE), "yes"),
        (("query", ("unique", ("relate", THE_SQUARE, "left of")), "colour"), "red"),
        (("count", ("relate", THE_SQUARE, "above")), "1"),
        (("count", ("same", THE_RED, "size")), "1"),
        (("alike", THE_RED, THE_SQUARE, "size"), "yes"),
    ],
)
def test_programs(program, said):
    assert answer(program, OBJECTS) == said
    assert answer(json.loads(json.dumps(program)), OBJECTS) == said  # lists after a trip through JSON
    shifted = [Object(o.shape, o.colour, o.size, o.x + 0.01, o.y - 0.01) for o in OBJECTS]
    assert settled(program, shifted) == said


def test_what_cannot_be_answered():
    with pytest.raises(Ambiguous, match="the only one of 2"):
        answer(("query", ("unique", CIRCLES), "colour"), OBJECTS)
    with pytest.raises(UserError, match="no operator 'cuont'; did you mean 'count'"):
        answer(("cuont", ALL), OBJECTS)


def test_near_ties_are_not_settled():
    edge = Object("star", "pink", "small", 0.8 - 0.13, 0.5 - 0.125)  # all but as far above the square as it is left of it
    program = ("stands", ("unique", ("filter", ALL, "shape", "star")), "above", THE_SQUARE)
    assert answer(program, (*OBJECTS, edge)) == "no"
    with pytest.raises(Ambiguous, match="too close to tell"):
        close = Object("star", "pink", "small", 0.8 - 0.3, 0.5 - 0.3 - NEAR / 2)
        settled(program, (*OBJECTS, close))
    grown = Object("square", "blue", "medium", 0.8, 0.5, radius=0.3)  # its size says less than it fills
    inside = Object("star", "pink", "small", 0.75, 0.5)
    with pytest.raises(Ambiguous):
        settled(("stands", ("unique", ("filter", ALL, "shape", "star")), "inside", THE_SQUARE), (grown, inside))


@pytest.fixture(scope="module")
def asked():
    out = []
    for k in range(100):
        scene = sample(("objects", "relations")[k % 2], "train", k)
        out += [(scene, question) for question in questions(scene, rng(k), 10)]
    return out


def test_words_and_program_agree(asked):
    assert len(asked) > 900
    for scene, question in asked:
        assert scene_parser.answer(question.text, scene.json()) == question.answer, question.text
        assert answer(question.program, scene.objects) == question.answer


def test_every_question_template_is_used(asked):
    used = {rule for _, question in asked for rule in question.sentence.rules}
    own = {name for name in GRAMMAR.alternatives if name.split("/")[0] not in PLACES}
    print(f"{len(used & own)} of {len(own)} alternatives, {len({q.sentence.template for _, q in asked})} surface forms")
    assert {name.split("/")[0] for name in own - used} <= {"enclosed", "touching"}  # what touches or is in a grown thing is rarely settled
    assert len({q.sentence.template for _, q in asked}) > 500


PLACES = {"upper_left", "upper_right", "lower_left", "lower_right", "left", "right", "top", "bottom", "centre"}


def test_questions_of_one_scene_differ_and_do_not_hinge_on_a_shift(asked):
    moves = rng(0)
    for scene, question in asked[::5]:
        shifted = [
            Object(o.shape, o.colour, o.size, o.x + moves.uniform(-NEAR, NEAR) / 2, o.y + moves.uniform(-NEAR, NEAR) / 2)
            for o in scene.objects
        ]
        assert answer(question.program, shifted) == question.answer, question.text
    scene = max((scene for scene, _ in asked), key=lambda s: len(s.objects))
    assert len({q.text for q in questions(scene, rng(1), 8)}) == 8
    assert questions(scene, rng(1), 3) == questions(scene, rng(1), 3)
    assert questions(Scene(()), rng(0), 3) == []


@pytest.mark.parametrize("n", [80, pytest.param(1000, marks=pytest.mark.slow)])
def test_planned_questions_are_balanced(n):
    """Types and answers are as uniform as n draws are: each within four standard deviations."""
    types, answers = Counter(), defaultdict(Counter)
    for k in range(n):
        draws = rng(k)
        planned = plan(draws)
        scenes = (sample("objects", "train", 1000 * k + again) for again in range(300))
        scene, first = next((scene, found) for scene in scenes if (found := ask(scene, planned, draws)))
        assert scene_parser.answer(first.text, scene.json()) == first.answer
        types[first.type] += 1
        answers[first.type][first.answer] += 1
    _uniform(types, TYPES, n)
    for type_ in ("exist", "count", "query colour", "query shape", "query size", "compare numbers"):
        (options,) = {tuple(o) for o in FORMS[type_].values()}
        _uniform(answers[type_], options, types[type_])
    print({t: dict(c) for t, c in answers.items()})


def _uniform(counts, options, n):
    p = 1 / len(options)
    assert set(counts) <= set(options)
    for option in options:
        assert abs(counts[option] - n * p) < 4 * np.sqrt(n * p * (1 - p)) + 1, (option, counts)


def test_unplanned_questions_lean_to_no_answer_of_two(asked):
    said = defaultdict(Counter)
    for _, question in asked:
        said[question.type][question.answer] += 1
    for type_ in ("exist", "compare numbers"):
        assert 0.4 < said[type_]["yes"] / said[type_].total() < 0.6, said[type_]
    assert max(said["query colour"].values()) / said["query colour"].total() < 0.2


def test_a_plan_that_a_scene_does_not_allow():
    assert ask(Scene((RED,)), ("query colour", "query colour", "blue"), rng(0)) is None
    assert ask(Scene(()), ("exist", "exist", "no"), rng(0)) is None
    assert plan(rng(3)) == plan(rng(3))


def test_dialogues():
    used, lengths = Counter(), Counter()
    for k in range(100):
        scene = sample(("objects", "counting", "relations")[k % 3], "train", k)
        turns = dialogue(scene, rng(k), 4)
        lengths[len(turns)] += 1
        assert len({json.dumps(turn.program) for turn in turns}) == len(turns)
        for j, turn in enumerate(turns):
            assert answer(turn.program, scene.objects) == turn.answer
            about = turns[j - 1].focus if j else ()
            assert scene_parser.answer(turn.text, scene.json(), about) == turn.answer, turns[: j + 1]
            words = set(turn.text.lower().strip("?").split())
            pronoun = bool(words & {"it", "them", "those"}) or "that one" in turn.text.lower()
            opening = turn.sentence.rules[0].split("/")[0] in ("exist", "count")
            assert pronoun or opening, turn.text
            if pronoun:
                assert j > 0, turn.text
            if pronoun and words & {"it"}:
                assert len(turns[j - 1].focus) == 1, turns
            used.update(turn.sentence.rules)
    assert lengths[4] > 66 and set(lengths) <= {1, 2, 3, 4}, lengths
    own = {name for name in DIALOGUE_GRAMMAR.alternatives if name.split("/")[0] in ("it", "is_it", "how_many_of_them", "any_of_them")}
    assert own <= set(used), own - set(used)
    assert dialogue(Scene(()), rng(0)) == []
