"""Dialogues: turns of question and answer on one picture, in which later questions say "it", "they" and "that one".

A turn's program names what its pronoun stands for in full, so each answer can be recomputed without reading the earlier turns.
"""

import dataclasses
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from mmjax.data.scenes.describe import Description, fitting
from mmjax.data.scenes.grammar import Call, Grammar, Leaf, Node, Rule, Sentence, Tree
from mmjax.data.scenes.question_programs import Ambiguous, selecting, settled
from mmjax.data.scenes.question_rules import RULES as QUESTION_RULES
from mmjax.data.scenes.questions import ASKED, VALUES
from mmjax.data.scenes.sample import Draws
from mmjax.data.scenes.world import Object, Scene, relations

TRIES = 60  # turns drawn before a dialogue is left as it is
PATIENCE = 12  # of them in vain before another thing is brought up
IT = "it"


@dataclasses.dataclass(frozen=True)
class Turn:
    """A question, its answer and program; `focus` are the objects it is about, which the next turn's pronoun stands for."""

    text: str
    answer: str
    program: tuple
    focus: tuple[int, ...]
    sentence: Sentence

    def json(self) -> dict[str, Any]:
        """As plain data."""
        return {"text": self.text, "answer": self.answer, "program": self.program, "focus": list(self.focus)}


@dataclasses.dataclass(frozen=True)
class _Focus:
    """What is spoken of: the objects, the program of their set, and the attributes already told."""

    objects: tuple[int, ...]
    found: tuple
    told: tuple[str, ...]


def dialogue(scene: Scene, rng: np.random.Generator, turns: int = 4) -> list[Turn]:
    """`turns` turns, the first in full and the others about what the one before brought up, while there is more to ask of it.

    No question is asked twice. Shorter where the scene gives nothing more to ask; a scene without objects has no dialogue.
    """
    out: list[Turn] = []
    focus: _Focus | None = None
    d = Draws(rng)
    vain = 0
    for _ in range(TRIES if scene.objects else 0):
        if len(out) == turns:
            break
        vain += 1
        if vain > PATIENCE:
            focus, vain = None, 0
        drawn = _opening(d, scene.objects) if focus is None else _follow_up(d, scene.objects, focus)
        if drawn is None:
            continue
        program, rule, arguments, after = drawn
        try:
            said = settled(program, scene.objects)
        except Ambiguous:
            continue
        if (said == "no" and focus is None) or program in [turn.program for turn in out]:
            continue
        told = GRAMMAR.derive(rule, scene, rng, *arguments)
        out.append(Turn(told.text, said, program, after.objects, told))
        focus, vain = after, 0
    return out


_Drawn = tuple[tuple, str, tuple, _Focus]


def _opening(d: Draws, objects: Sequence[Object]) -> _Drawn | None:
    """A question that brings up one object, or several at once."""
    one = d.pick(objects)
    names = d.shuffled(ASKED)[: d.pick((1, 2))]
    description = Description(**{name: getattr(one, name) for name in names})
    found = fitting(objects, description)
    focus = _Focus(found, selecting(description), tuple(names))
    if len(found) > 1:
        return ("count", focus.found), "count", (found, description), focus
    return ("exist", focus.found), "exist", (found, description), focus


def _follow_up(d: Draws, objects: Sequence[Object], focus: _Focus) -> _Drawn | None:
    if len(focus.objects) > 1:
        return _of_them(d, objects, focus)
    return d.pick((_query_it, _query_it, _check_it, _beside_it, _like_it))(d, objects, focus)


def _query_it(d: Draws, objects: Sequence[Object], focus: _Focus) -> _Drawn | None:
    left = [name for name in ASKED if name not in focus.told]
    if not left:
        return None
    name = d.pick(left)
    after = dataclasses.replace(focus, told=(*focus.told, name))
    return ("query", ("unique", focus.found), name), "follow", (f"query_{name}", (focus.objects, None)), after


def _check_it(d: Draws, objects: Sequence[Object], focus: _Focus) -> _Drawn | None:
    left = [name for name in ("colour", "size") if name not in focus.told]
    if not left:
        return None
    name = d.pick(left)
    value = getattr(objects[focus.objects[0]], name)
    if d.chance(0.5):
        value = d.pick([v for v in VALUES[name] if v != value])
    after = dataclasses.replace(focus, told=(*focus.told, name)) if value == getattr(objects[focus.objects[0]], name) else focus
    program = ("exist", ("filter", focus.found, name, value))
    return program, "follow", ("is_it", (focus.objects, Description(**{name: value}))), after


def _beside_it(d: Draws, objects: Sequence[Object], focus: _Focus) -> _Drawn | None:
    """What stands in a relation to it, if one thing does; that is what is spoken of from there on."""
    i = focus.objects[0]
    beside = [(name, j) for j, o in enumerate(objects) if j != i for name in relations(o, objects[i])]
    if not beside:
        return None
    name, j = d.pick(beside)
    found = ("relate", ("unique", focus.found), name)
    asked = d.pick(("shape", "colour"))
    program = ("query", ("unique", found), asked)
    arguments = (asked, name, (j, i), (j,), Description(), IT)
    return program, "follow", ("relate_query", arguments), _Focus((j,), found, (asked,))


def _like_it(d: Draws, objects: Sequence[Object], focus: _Focus) -> _Drawn | None:
    name = d.pick(ASKED)
    program = ("exist", ("same", ("unique", focus.found), name))
    return program, "follow", ("same_exist", (name, focus.objects, None)), focus


def _of_them(d: Draws, objects: Sequence[Object], focus: _Focus) -> _Drawn | None:
    left = [name for name in ("colour", "size") if name not in focus.told]
    if not left:
        return None
    name = d.pick(left)
    value = d.pick([getattr(objects[i], name) for i in focus.objects] + [d.pick(VALUES[name])])
    chosen = tuple(i for i in focus.objects if getattr(objects[i], name) == value)
    found = ("filter", focus.found, name, value)
    after = _Focus(chosen, found, (*focus.told, name)) if chosen else focus
    arguments = (chosen, Description(**{name: value}))
    if d.chance(0.5):
        return ("count", found), "follow", ("how_many_of_them", arguments), after
    return ("exist", found), "follow", ("any_of_them", arguments), after


def _follow(context: Any, rule: str, arguments: tuple) -> list[tuple[Tree, ...]]:
    call = Call(rule, arguments)
    return [(call,), (call,), (Node("S", (Leaf("CC", "and"), call)),)]


def _pronoun_or_np(context: Any, article: str, targets: tuple[int, ...], need: Any) -> Iterator[tuple[Tree, ...]]:
    if need == IT:
        yield (Node("NP", (Leaf("PRP", "it"),)),)
    else:
        yield from QUESTION_RULES["np article t need"](context, article, targets, need)


RULES: dict[str, Rule] = {
    **QUESTION_RULES,
    "np article t need": _pronoun_or_np,
    "it t d": ["(NP (PRP it))", "(NP (DT that) (NN one))"],
    "follow rule arguments": _follow,
    "is_it t d": [
        "(SQ (VBZ is) <it t d> <predicate t d> (. ?))",
        "(SQ (MD would) (NP (PRP you)) (VP (VB call) (S <it t d> <predicate t d>)) (. ?))",
    ],
    "how_many_of_them t d": [
        "(SBARQ (WHNP (WHNP (WRB how) (JJ many)) (PP (IN of) (NP (PRP them)))) (SQ (VBP are) <predicate t d>) (. ?))",
        "(SBARQ (WHNP (WHNP (WRB how) (JJ many)) (PP (IN of) (NP (DT those)))) (SQ (VBP are) <predicate t d>) (. ?))",
    ],
    "any_of_them t d": [
        "(SQ (VBP are) (NP (NP (DT any)) (PP (IN of) (NP (PRP them)))) <predicate t d> (. ?))",
        "(SQ (VBZ is) (NP (NP (DT any)) (PP (IN of) (NP (DT those)))) <predicate t d> (. ?))",
    ],
}

GRAMMAR = Grammar(RULES)
