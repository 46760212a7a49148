"""Questions on a scene in CLEVR's functional types, each with the program (question_programs.py) that gives its answer.

Balance: the type is drawn first, uniformly, then its form, then the wanted answer, uniformly over FORMS[type][form]; then
questions are drawn until one has that answer. Where the scene allows none, they are drawn anew. A caller that can choose
scenes gets exact balance from `plan` and `ask`: draw the plan first and keep it, taking scenes until `ask` succeeds.
"""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from mmjax.data.scenes.describe import Description, fitting
from mmjax.data.scenes.grammar import Grammar, Sentence
from mmjax.data.scenes.question_programs import Ambiguous, selecting, settled
from mmjax.data.scenes.question_rules import RULES
from mmjax.data.scenes.sample import Draws
from mmjax.data.scenes.world import COLOURS, RELATIONS, SHAPES, SIZES, Object, Scene, relations

TYPES = ("exist", "count", "query colour", "query shape", "query size", "compare numbers", "relation", "same attribute")
VALUES: Mapping[str, tuple[str, ...]] = {"shape": SHAPES, "colour": COLOURS, "size": SIZES}
ASKED = tuple(VALUES)  # the attributes a question may speak of
COUNTS = tuple(str(n) for n in range(5))
YES_NO = ("yes", "no")
# type -> form -> its answers
FORMS: Mapping[str, Mapping[str, tuple[str, ...]]] = {
    "exist": {"exist": YES_NO},
    "count": {"count": COUNTS},
    "query colour": {"query colour": COLOURS},
    "query shape": {"query shape": SHAPES},
    "query size": {"query size": SIZES},
    "compare numbers": {"more": YES_NO, "fewer": YES_NO, "equal": YES_NO},
    "relation": {"stands": YES_NO, "relate colour": COLOURS, "relate shape": SHAPES, "relate count": COUNTS[:4]},
    "same attribute": {"alike": YES_NO, "same exist": YES_NO, "same shape": SHAPES, "same colour": COLOURS},
}
TRIES = 40  # questions drawn for a plan

GRAMMAR = Grammar(RULES)


@dataclasses.dataclass(frozen=True)
class Question:
    """A question with its one answer, its type (of TYPES) and the program that gives the answer."""

    text: str
    answer: str
    type: str
    program: tuple
    sentence: Sentence

    def json(self) -> dict[str, Any]:
        """As plain data."""
        return {"text": self.text, "answer": self.answer, "type": self.type, "program": self.program}


def plan(rng: np.random.Generator) -> tuple[str, str, str]:
    """(type, form, wanted answer), each uniform given those before."""
    d = Draws(rng)
    type_ = d.pick(TYPES)
    form = d.pick(tuple(FORMS[type_]))
    return type_, form, d.pick(FORMS[type_][form])


def ask(scene: Scene, planned: tuple[str, str, str], rng: np.random.Generator) -> Question | None:
    """A question of the planned type, form and answer, or None where the scene has none that was found."""
    type_, form, wanted = planned
    d = Draws(rng)
    objects = scene.objects
    for _ in range(TRIES if _conceivable(objects, wanted) else 0):
        drawn = _PROPOSALS[form](d, objects, form, wanted)
        if drawn is None:
            continue
        program, rule, arguments = drawn
        try:
            if settled(program, objects) != wanted:
                continue
        except Ambiguous:
            continue
        if told := GRAMMAR.derive(rule, scene, rng, *arguments):
            return Question(told.text, wanted, type_, program, told)
    return None


def questions(scene: Scene, rng: np.random.Generator, n: int) -> list[Question]:
    """n different questions on the scene (fewer where a scene is too empty for so many).

    As values of an attribute are alike in rarity, of them only the wanted answer is drawn anew, so that their types stay as frequent
    as the others.
    """
    found: dict[str, Question] = {}
    d = Draws(rng)
    for _ in range(20 * n):
        if len(found) == n:
            break
        type_, form, wanted = plan(rng)
        answers = FORMS[type_][form]
        for again in d.shuffled(answers) if answers in VALUES.values() else (wanted,):
            if one := ask(scene, (type_, form, again), rng):
                found.setdefault(one.text, one)
                break
    return list(found.values())


def _conceivable(objects: Sequence[Object], wanted: str) -> bool:
    """Whether any question on these objects can have the answer."""
    if wanted in YES_NO:
        return bool(objects)
    if wanted in COUNTS:
        return len(objects) > 0 and int(wanted) <= len(objects)
    return any(wanted in (o.shape, o.colour, o.size) for o in objects)


# How a question of each form is drawn: (draws, objects, form, wanted answer) -> (program, rule of the grammar, its arguments), or None
# where that draw led nowhere. What is drawn need not have the wanted answer: that is tested afterwards.

Proposal = tuple[tuple, str, tuple]


def _any_description(d: Draws, objects: Sequence[Object], most: int) -> Description:
    """Of 1 to `most` attributes of one object, half the time with one of them drawn freely: it may fit any number of objects."""
    one = d.pick(objects)
    names = d.shuffled(ASKED)[: d.pick(range(1, most + 1))]
    values = {name: getattr(one, name) for name in names}
    if d.chance(0.5):
        values[names[0]] = d.pick(VALUES[names[0]])
    return Description(**values)


def _referring(d: Draws, objects: Sequence[Object], i: int, without: str | None = None) -> Description | None:
    """A description of this object alone that leaves out an attribute; None if there is none."""
    names = [name for name in ASKED if name != without]
    chosen = [[name for k, name in enumerate(names) if mask >> k & 1] for mask in range(1, 2 ** len(names))]
    options = [Description(**{name: getattr(objects[i], name) for name in some}) for some in chosen]
    options = [description for description in options if fitting(objects, description) == (i,)]
    return d.pick(options) if options else None


def _two(d: Draws, objects: Sequence[Object], without: str | None = None) -> tuple[int, int, Description, Description] | None:
    """Two objects and a reference to each."""
    if len(objects) < 2:
        return None
    i, j = d.shuffled(range(len(objects)))[:2]
    one, other = _referring(d, objects, i, without), _referring(d, objects, j, without)
    return (i, j, one, other) if one and other else None


def _the(description: Description) -> tuple:
    return ("unique", selecting(description))


def _exist(d: Draws, objects: Sequence[Object], form: str, wanted: str) -> Proposal:
    description = _any_description(d, objects, 3)
    return ("exist", selecting(description)), "exist", (fitting(objects, description), description)


def _count(d: Draws, objects: Sequence[Object], form: str, wanted: str) -> Proposal | None:
    if d.chance(0.4):
        return _count_either(d, objects)
    description = Description() if d.chance(0.2) else _any_description(d, objects, 2)
    return ("count", selecting(description)), "count", (fitting(objects, description), description)


def _count_either(d: Draws, objects: Sequence[Object]) -> Proposal | None:
    one, other = _any_description(d, objects, 1), _any_description(d, objects, 1)
    a, b = fitting(objects, one), fitting(objects, other)
    if set(a) & set(b) or one == other:  # or "circles or red things" might count one twice
        return None
    return ("count", ("union", selecting(one), selecting(other))), "count_either", (a, one, b, other)


def _query(d: Draws, objects: Sequence[Object], form: str, wanted: str) -> Proposal | None:
    name = form.split()[1]
    right = [i for i, o in enumerate(objects) if getattr(o, name) == wanted]
    i = d.pick(right) if right else None
    description = None if i is None else _referring(d, objects, i, without=name)
    return description and (("query", _the(description), name), f"query_{name}", ((i,), description))


def _compare(d: Draws, objects: Sequence[Object], form: str, wanted: str) -> Proposal | None:
    one, other = _any_description(d, objects, 2), _any_description(d, objects, 2)
    a, b = fitting(objects, one), fitting(objects, other)
    if set(a) & set(b) or one == other or not a + b:
        return None
    return (form, ("count", selecting(one)), ("count", selecting(other))), form, (a, one, b, other)


def _stands(d: Draws, objects: Sequence[Object], form: str, wanted: str) -> Proposal | None:
    found = _two(d, objects)
    if found is None:
        return None
    i, j, one, other = found
    true = relations(objects[i], objects[j])
    options = true if wanted == "yes" else [name for name in RELATIONS if name not in true]
    name = d.pick(options) if options else None
    return name and (("stands", _the(one), name, _the(other)), "stands", (name, (i, j), (i,), one, other))


def _relate(d: Draws, objects: Sequence[Object], form: str, wanted: str) -> Proposal | None:
    asked = form.split()[1]
    j = d.pick(range(len(objects)))
    reference, name = _referring(d, objects, j), d.pick(RELATIONS)
    if reference is None:
        return None
    there = tuple(i for i, o in enumerate(objects) if i != j and name in relations(o, objects[j]))
    found = ("relate", _the(reference), name)
    if asked == "count":
        return ("count", found), "relate_count", (name, (*there, j), there, reference)
    kind = Description()
    if there and d.chance(0.4):
        other = d.pick([a for a in ("shape", "colour") if a != asked])
        kind = Description(**{other: getattr(objects[there[0]], other)})
    there = tuple(i for i in there if kind.fits(objects[i]))
    program = ("query", ("unique", selecting(kind, found)), asked)
    return program, "relate_query", (asked, name, (*there, j), there, kind, reference)


def _alike(d: Draws, objects: Sequence[Object], form: str, wanted: str) -> Proposal | None:
    name = d.pick(ASKED)
    found = _two(d, objects, without=name)
    if found is None:
        return None
    i, j, one, other = found
    return ("alike", _the(one), _the(other), name), "alike", (name, (i,), one, (j,), other)


def _same(d: Draws, objects: Sequence[Object], form: str, wanted: str) -> Proposal | None:
    asked = form.split()[1]
    i, name = d.pick(range(len(objects))), d.pick([a for a in ASKED if a != asked])
    reference = _referring(d, objects, i, without=name)
    if reference is None:
        return None
    others = ("same", _the(reference), name)
    if asked == "exist":
        return ("exist", others), "same_exist", (name, (i,), reference)
    return ("query", ("unique", others), asked), "same_query", (asked, name, (i,), reference)


_PROPOSALS: Mapping[str, Callable[[Draws, Sequence[Object], str, str], Proposal | None]] = {
    "exist": _exist,
    "count": _count,
    **dict.fromkeys(("query colour", "query shape", "query size"), _query),
    **dict.fromkeys(("more", "fewer", "equal"), _compare),
    "stands": _stands,
    **dict.fromkeys(("relate colour", "relate shape", "relate count"), _relate),
    "alike": _alike,
    **dict.fromkeys(("same exist", "same shape", "same colour"), _same),
}
