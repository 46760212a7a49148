"""Captions of pairs of scenes: the same words in another order (`swaps`), and a true beside a false one (`hard_negatives`).

Both captions of a pair come from one form of words: the grammar is derived for both scenes with the same draws until the two
sentences differ as they should, which is checked on the words.
"""

from collections import Counter
from collections.abc import Callable, Iterator

import numpy as np

from mmjax.data.scenes.captions import GRAMMAR, Content
from mmjax.data.scenes.describe import Description
from mmjax.data.scenes.grammar import Sentence
from mmjax.data.scenes.prompts import Requirement, Things
from mmjax.data.scenes.world import Relation, Scene

TRIES = 200  # derivations before a pair is given up; a handful is usual
NEEDS = ("shape+colour", "shape", "size+shape+colour")  # what is told of each object

Check = Callable[[Sentence, Sentence], bool]


def swap_captions(one: Scene, other: Scene, rng: np.random.Generator) -> tuple[Sentence, Sentence]:
    """A caption of each, true of its own scene and false of the other, with the same words ("a" and "an" being one).

    Raises:
      ValueError: the scenes do not differ by an exchange.
    """
    return _pair(one, other, [(need, {}) for need in NEEDS if "colour" in need], _same_words, rng)


def hard_negative_captions(scene: Scene, changed: Scene, kind: str, rng: np.random.Generator) -> tuple[Sentence, Sentence]:
    """(a caption of the scene, one of the changed scene that is false of the first); `kind` is one of pairs.HARD_NEGATIVES.

    Raises:
      ValueError: the change is not of that kind.
    """
    forms: list[tuple[str, dict[int, str]]] = [(need, {}) for need in NEEDS]
    if kind == "add_att":  # the attribute that is not true must be new to the sentence
        differing = [
            (i, name)
            for i, (a, b) in enumerate(zip(scene.objects, changed.objects, strict=True))
            for name in ("size", "outline", "colour")
            if getattr(a, name) != getattr(b, name)
        ]
        forms = [(need, {i: name}) for i, name in differing for need in NEEDS if name not in need]
    checks = {"add": _more_words, "swap": _same_words, "replace": _one_word}
    return _pair(scene, changed, forms, _one_relation if kind == "replace_rel" else checks[kind.split("_")[0]], rng)


def _pair(
    one: Scene, other: Scene, forms: list[tuple[str, dict[int, str]]], check: Check, rng: np.random.Generator
) -> tuple[Sentence, Sentence]:
    """`forms`: (what is told of every object, what is told besides of some objects of the other scene)."""
    options = []
    for need, more in forms:
        for a, b in zip(_contents(one, need, {}), _contents(other, need, more), strict=True):
            only_b = not _requirement(other, b).met(one.objects)
            if only_b and (check is not _same_words or not _requirement(one, a).met(other.objects)):
                options.append((a, b))
    for _ in range(TRIES if options else 0):
        a, b = options[int(rng.random() * len(options))]
        seed = int(rng.random() * 2**32)
        first, second = (GRAMMAR.derive("naming", s, np.random.Generator(np.random.Philox(seed)), c) for s, c in ((one, a), (other, b)))
        if first and second and check(first, second):
            return first, second
    raise ValueError(f"no captions tell these scenes apart by such a change: {one} and {other}")


def _contents(scene: Scene, need: str, more: dict[int, str]) -> Iterator[Content]:
    """What may be told: the stated relation where there is one, else all objects one by one, from the first and from the last."""
    if scene.relations:
        told = scene.relations[0]
        yield ("related", told.name, (told.subject, told.object), need)
        return
    each = [("group", "a", (i,), f"{need}+{more[i]}" if i in more else need) for i in range(len(scene.objects))]
    yield ("list", tuple(each))
    yield ("list", tuple(each[::-1]))


def _requirement(scene: Scene, content: Content) -> Requirement:
    """What a content claims, with the words it needs and no more."""

    def things(i: int, need: str) -> Things:
        return Things(Description(**{name: getattr(scene.objects[i], name) for name in need.split("+")}))

    if content[0] == "related":
        _, name, pair, need = content
        return Requirement(tuple(things(i, need) for i in pair), (Relation(0, name, 1),))
    return Requirement(tuple(things(targets[0], need) for _, _, targets, need in content[1]))


def _bare(sentence: Sentence) -> list[str]:
    return ["a" if word == "an" else word for word in (word.lower() for word in sentence.words)]


def _same_words(one: Sentence, other: Sentence) -> bool:
    first, second = _bare(one), _bare(other)
    return first != second and Counter(first) == Counter(second)


def _more_words(one: Sentence, other: Sentence) -> bool:
    """The first is the second with some words left out (and "and" perhaps a comma)."""
    words = iter(w for w in _bare(other) if w not in (",", "and"))
    return len(_bare(one)) < len(_bare(other)) and all(word in words for word in _bare(one) if word not in (",", "and"))


def _one_word(one: Sentence, other: Sentence) -> bool:
    first, second = _bare(one), _bare(other)
    return len(first) == len(second) and sum(a != b for a, b in zip(first, second, strict=True)) == 1


def _one_relation(one: Sentence, other: Sentence) -> bool:
    """All but the relation's words is the same."""

    def rest(sentence: Sentence) -> list[str]:
        words = _bare(sentence)
        for slot in reversed([slot for slot in sentence.slots if slot.kind == "relation"]):
            del words[slot.start : slot.stop]
        return words

    return _bare(one) != _bare(other) and rest(one) == rest(other)
