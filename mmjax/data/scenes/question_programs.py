"""Programs of questions, run on a list of objects.

A program is nested tuples (lists after a trip through JSON), the operator first:

    ("scene",)                           all objects
    ("filter", set, attribute, value)    those that are so
    ("relate", one, relation)            those that stand in the relation to the one
    ("same", one, attribute)             the others that share its attribute
    ("union", set, set)
    ("unique", set)                      the only one
    ("exist", set) ("count", set)        yes/no, a number
    ("query", one, attribute)            its value
    ("more", a, b) ("fewer", a, b) ("equal", a, b)       of two counts
    ("alike", one, other, attribute)     whether two share it
    ("stands", one, relation, other)     whether the relation holds

An object's shape, colour, size and centre are all a program looks at: lengths are those of the sizes, so the answer can be
recomputed from what an oracle reads. Types and operators follow CLEVR (Johnson et al. 2017, arXiv 1612.06890, section 3).
"""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from mmjax.core.errors import UserError, suggest
from mmjax.data.scenes.describe import Description
from mmjax.data.scenes.world import Object, holds

NEAR = 0.012  # no answer may hinge on a shift of this much: three quarters of a pixel at 64

Program = Sequence[Any]


class Ambiguous(ValueError):
    """A program asks for the only one of none or several, or its answer hinges on a near tie."""


def answer(program: Program, objects: Sequence[Object]) -> str:
    """The answer in words: "yes", "no", a number in digits, or an attribute's value.

    Raises:
      Ambiguous: the program speaks of the only such thing where there is none, or are several.
      UserError: an operator that is none.
    """
    return _Run([_bare(o) for o in objects], strict=False).say(program)


def settled(program: Program, objects: Sequence[Object]) -> str:
    """As `answer`, but raises Ambiguous too where a relation the answer needs would change with a shift of NEAR."""
    return _Run([_bare(o) for o in objects], strict=True, real=objects).say(program)


def _bare(o: Object) -> Object:
    """What an oracle reads of it."""
    return Object(o.shape, o.colour, o.size, o.x, o.y)


class _Run:
    """One execution over objects; sets are tuples of indices."""

    def __init__(self, objects: Sequence[Object], strict: bool, real: Sequence[Object] = ()):
        self.objects, self.strict, self.real = objects, strict, real

    def say(self, program: Program) -> str:
        value = self.value(program)
        if isinstance(value, bool):
            return "yes" if value else "no"
        return str(value)

    def value(self, program: Program) -> Any:
        operator, *arguments = program
        if operator not in _OPERATORS:
            raise UserError(f"a question's program has no operator {operator!r}{suggest(str(operator), _OPERATORS)}")
        return _OPERATORS[operator](self, *(a if isinstance(a, str) else self.value(a) for a in arguments))

    def unique(self, found: tuple[int, ...]) -> int:
        if len(found) != 1:
            raise Ambiguous(f"the only one of {len(found)}")
        return found[0]

    def stands(self, i: int, name: str, j: int) -> bool:
        a, b = self.objects[i], self.objects[j]
        truth = holds(a, name, b)
        if self.strict and not self._firm(i, name, j, truth):
            raise Ambiguous(f"whether {i} is {name} {j} is too close to tell")
        return truth

    def _firm(self, i: int, name: str, j: int, truth: bool) -> bool:
        """Holds, or does not, however the two are shifted a little, and with the lengths they are drawn with too."""
        a, b = self.objects[i], self.objects[j]
        shifts = [(dx, dy) for dx in (-NEAR, 0, NEAR) for dy in (-NEAR, 0, NEAR)]
        moved = (dataclasses.replace(a, x=a.x + dx, y=a.y + dy) for dx, dy in shifts)
        return all(holds(m, name, b) == truth for m in moved) and holds(self.real[i], name, self.real[j]) == truth


_OPERATORS: Mapping[str, Callable[..., Any]] = {
    "scene": lambda run: tuple(range(len(run.objects))),
    "filter": lambda run, found, name, value: tuple(i for i in found if getattr(run.objects[i], name) == value),
    "relate": lambda run, one, name: tuple(i for i in range(len(run.objects)) if i != one and run.stands(i, name, one)),
    "same": lambda run, one, name: tuple(
        i for i, o in enumerate(run.objects) if i != one and getattr(o, name) == getattr(run.objects[one], name)
    ),
    "union": lambda run, one, other: tuple(sorted({*one, *other})),
    "unique": lambda run, found: run.unique(found),
    "exist": lambda run, found: bool(found),
    "count": lambda run, found: len(found),
    "query": lambda run, one, name: getattr(run.objects[one], name),
    "more": lambda run, a, b: a > b,
    "fewer": lambda run, a, b: a < b,
    "equal": lambda run, a, b: a == b,
    "alike": lambda run, one, other, name: getattr(run.objects[one], name) == getattr(run.objects[other], name),
    "stands": lambda run, one, name, other: run.stands(one, name, other),
}


def selecting(description: Description, source: Program = ("scene",)) -> tuple:
    """The program of the set a description fits."""
    program = tuple(source)
    for name, value in description.stated:
        program = ("filter", program, name, value)
    return program
