"""Captions and questions of videos, on motions worked by hand and drawn at random."""

import re
from collections import Counter

import numpy as np
import pytest

from mmjax.core.errors import UserError
from mmjax.data.scenes.video_language import GRAMMAR, ORDER_GAP, TYPES, VERBS, Motion, caption, questions, tellable
from mmjax.data.scenes.world import COLOURS, MOTIONS, SHAPES, Object, Scene

RED = Object("circle", "red", "medium", 0.2, 0.2)
BLUE = Object("square", "blue", "medium", 0.8, 0.2)
PINK = Object("star", "pink", "small", 0.2, 0.8)
SCENE = Scene((RED, BLUE, PINK))


def rng(seed):
    return np.random.default_rng(seed)


def drawn(seed):
    """A scene of distinct shapes and one motion each, at random times."""
    g = rng(seed)
    shapes, colours = g.permutation(SHAPES)[:3], g.permutation(COLOURS)[:3]
    n = int(g.integers(1, 4))
    scene = Scene(
        tuple(Object(str(s), str(c), "small", 0.2 + 0.3 * i, 0.5) for i, (s, c) in enumerate(zip(shapes[:n], colours, strict=False)))
    )
    starts = g.integers(0, 8, n)
    return scene, [Motion(i, str(g.choice(MOTIONS)), int(a), int(a + g.integers(1, 6))) for i, a in enumerate(starts)]


def test_every_motion_has_words():
    assert set(VERBS) == set(MOTIONS)


def test_captions_tell_all_motions_in_their_order():
    used = set()
    for k in range(200):
        scene, motions = drawn(k)
        said = caption(scene, motions, rng(k))
        used |= set(said.rules)
        slots = [s for s in said.slots if s.kind == "motion"]
        assert sorted(s.objects[0] for s in slots) == sorted(m.index for m in motions)
        for slot in slots:
            (m,) = [m for m in motions if m.index == slot.objects[0]]
            words = " ".join(said.words[slot.start : slot.stop]).lower()
            assert words in {f"{verb} {after}".strip() for *verbs, after in VERBS[m.kind] for verb in verbs}
        _order_is_told(said, {m.index: m for m in motions})
    own = {name for name in GRAMMAR.alternatives if name.split("/")[0] in ("happens", "while", "then")}
    assert own <= used, own - used


def _order_is_told(said, motions):
    """Of two motions in one sentence: one is said to come first only where it ends before the other begins; else they overlap."""
    start = 0
    for stop in [i for i, word in enumerate(said.words) if word == "."]:
        sentence = " ".join(said.words[start:stop]).lower()
        told = [motions[s.objects[0]] for s in said.slots if s.kind == "motion" and start <= s.start < stop]
        start = stop + 1
        if len(told) < 2:
            continue
        first, second = told
        sentence = re.sub("^(then|later|afterwards ,|meanwhile ,) ", "", sentence)
        if " while " in sentence or " same time " in sentence or sentence.startswith(("while ", "as ")):
            assert first.start <= second.end and second.start <= first.end, (sentence, told)
        elif " , then " in sentence or " before " in sentence or sentence.startswith("after "):
            assert first.end < second.start, (sentence, told)
        else:
            assert " after " in sentence and second.end < first.start, (sentence, told)


@pytest.mark.parametrize(
    "motions, type_, answers",
    [
        ([Motion(0, "grows", 0, 5)], "either", {"grows"}),
        ([Motion(0, "moves left", 0, 5)], "either", {"moves left"}),
        ([Motion(0, "grows", 0, 5)], "what happens", {"grows"}),
        ([Motion(0, "orbits", 0, 5)], "which moves", {"circle", "red"}),
        ([Motion(0, "appears", 1, 2), Motion(1, "appears", 6, 7)], "first", {"circle", "red", "square", "blue"}),
        ([Motion(0, "turns", 1, 2), Motion(1, "turns", 2, 7)], "first", set()),  # too close to tell
        ([Motion(0, "turns", 1, 2), Motion(1, "turns", 2, 7)], "order", set()),
        ([Motion(0, "turns", 1, 2), Motion(1, "turns", 3, 7)], "order", {"yes", "no"}),
        ([Motion(0, "turns", 1, 2), Motion(1, "turns", 3, 7)], "which moves", set()),  # both do
    ],
)
def test_answers(motions, type_, answers):
    found = {q.answer for k in range(40) for q in questions(SCENE, motions, rng(k), 6) if q.type == type_}
    assert found == answers


def test_order_and_first_are_right():
    motions = [Motion(0, "appears", 1, 2), Motion(1, "blinks", 4, 7), Motion(2, "appears", 7, 7)]
    asked = Counter()
    for k in range(60):
        for q in questions(SCENE, motions, rng(k), 6):
            asked[q.type] += 1
            if q.type == "order":
                began = {"circle": 1, "square": 4, "star": 7}
                first, second = sorted((o.shape for o in SCENE.objects if o.shape in q.text), key=q.text.index)
                earlier = began[first] < began[second]
                assert q.answer == ("yes" if earlier == (" before " in q.text) else "no"), q
            if q.type == "first":
                one = RED if " first" in q.text else PINK
                assert q.answer == (one.shape if "shape" in q.text.lower() else one.colour), q
    assert set(asked) == set(TYPES)


def test_questions_on_what_every_frame_shows_are_not_asked():
    """With one object, its colour and shape are seen in any frame."""
    for k in range(40):
        asked = questions(Scene((RED,)), [Motion(0, "grows", 0, 3)], rng(k), 6)
        assert asked and not {"which moves", "first", "order"} & {q.type for q in asked}


def test_every_question_template_is_used():
    used = set()
    for k in range(150):
        scene, motions = drawn(k)
        used |= {rule for q in questions(scene, motions, rng(k), 6) for rule in q.sentence.rules}
    own = {
        n for n in GRAMMAR.alternatives if n.split("/")[0] in ("which_moves", "what_happens", "either", "order", "first", "count_motions")
    }
    assert own <= used, own - used


def test_what_cannot_be_told_and_messages():
    assert tellable(SCENE, [Motion(0, "grows", 0, 1)])
    assert not tellable(Scene((RED, RED)), [Motion(0, "grows", 0, 1)])
    assert questions(SCENE, [], rng(0), 3) == [] and "." in caption(SCENE, [], rng(0)).text
    with pytest.raises(UserError, match="motion 'grow'; did you mean 'grows'"):
        Motion(0, "grow", 0, 1)
    with pytest.raises(UserError, match="ends at frame 1, before it starts at 2"):
        Motion(0, "grows", 2, 1)
    assert ORDER_GAP >= 1
