"""A small context-free grammar that writes sentences with their parse trees, part-of-speech tags and semantic slots.

A rule is a head `"name parameter ..."` and its alternatives, each a bracketed tree in the Penn Treebank's form in which
`<name argument ...>` stands for another rule:

    {"there t": ["(S (NP (EX there)) (VP <be t> <np t>))"]}

An argument is a parameter of the rule it stands in, or itself when it is none. `(PP@relation:r ...)` says that the words written
inside that bracket (not those of rules it calls) name the relation of what `r` holds: a tuple of objects' indices. A rule may
also be a function `(context, *arguments) -> alternatives`, each alternative a tuple of trees: how a lexicon enters, and how a
sentence depends on a scene. No alternatives means that a derivation fails there; another is then tried, so a function that
answers `[()]` or `[]` is a condition.

Rules are context-free: which alternatives there are depends on a rule's arguments and the context (one scene), never on its
surroundings. Tags are the Penn Treebank's (Marcus et al. 1993).
"""

import dataclasses
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import cache
from typing import Any

import numpy as np

OPENING, CLOSING = "``", "''"  # the tags of quotation marks


@dataclasses.dataclass(frozen=True)
class Leaf:
    """A word with its tag; `slot` is (kind, objects) where the word says something of the scene (in a rule: kind, parameter)."""

    tag: str
    word: str
    slot: tuple[str, tuple[int, ...] | str] | None = None


@dataclasses.dataclass(frozen=True)
class Node:
    """A phrase."""

    label: str
    children: tuple["Tree", ...]


@dataclasses.dataclass(frozen=True)
class Call:
    """Another rule's place in an alternative."""

    name: str
    arguments: tuple[Any, ...]


Tree = Leaf | Node | Call
Rule = Sequence[str] | Callable[..., Iterable[tuple[Tree, ...]]]


@dataclasses.dataclass(frozen=True)
class Slot:
    """Words [start, stop) of a sentence name the `kind` (shape, colour, size, count, relation, place, ...) of these objects."""

    kind: str
    objects: tuple[int, ...]
    start: int
    stop: int


@dataclasses.dataclass(frozen=True)
class Sentence:
    """What a derivation says. `tree` is its bracketed string; `words` and `tags` (one each) include punctuation.

    `rules` names the alternatives the derivation took, in order, as `name/number`.
    """

    text: str
    tree: str
    words: tuple[str, ...]
    tags: tuple[str, ...]
    slots: tuple[Slot, ...]
    rules: tuple[str, ...] = ()

    @property
    def template(self) -> str:
        """The surface form: the text with every slot's words replaced by the slot's kind."""
        out, position = [], 0
        for slot in self.slots:
            out += [*self.words[position : slot.start], slot.kind.upper()]
            position = slot.stop
        return " ".join([*out, *self.words[position:]])

    def json(self) -> dict[str, Any]:
        """As plain data: text, tree, tags and slots."""
        slots = [dataclasses.asdict(slot) | {"objects": list(slot.objects)} for slot in self.slots]
        return {"text": self.text, "tree": self.tree, "words": list(self.words), "tags": list(self.tags), "slots": slots}


class _Dead(Exception):
    """No alternative of a rule can be derived."""


class Grammar:
    """Rules by name. A head that is defined twice, a call to nothing and a wrong number of arguments are errors when it is made."""

    def __init__(self, rules: Mapping[str, Rule]):
        self._rules: dict[str, tuple[tuple[str, ...], Rule]] = {}
        for head, rule in rules.items():
            name, *parameters = head.split()
            if name in self._rules:
                raise ValueError(f"rule {name!r} is defined twice")
            self._rules[name] = tuple(parameters), rule
        for name, (parameters, rule) in self._rules.items():
            for call in _calls(rule) if not callable(rule) else ():
                if call.name not in self._rules:
                    raise ValueError(f"rule {name!r} calls {call.name!r}, which is no rule")
                if len(call.arguments) != len(self._rules[call.name][0]):
                    raise ValueError(f"rule {name!r} calls {call.name!r} with {len(call.arguments)} arguments")
            if not callable(rule):
                for variable in (v for text in rule for v in re.findall(r"@\w+:(\w+)", text)):
                    if variable not in parameters:
                        raise ValueError(f"rule {name!r} marks a slot of {variable!r}, which is none of its parameters")

    @property
    def alternatives(self) -> tuple[str, ...]:
        """Every written alternative as `name/number`: what a test counts coverage of."""
        return tuple(f"{name}/{k}" for name, (_, rule) in self._rules.items() if not callable(rule) for k in range(len(rule)))

    def derive(self, name: str, context: Any, rng: np.random.Generator, *arguments: Any) -> Sentence | None:
        """One derivation, every alternative that can be derived being as likely as the others of its rule; None if there is none."""
        try:
            trees, rules = self._expand(Call(name, arguments), context, rng)
        except _Dead:
            return None
        return sentence(trees[0] if len(trees) == 1 else Node("S", trees), rules)

    def _expand(self, call: Call, context: Any, rng: np.random.Generator) -> tuple[tuple[Tree, ...], tuple[str, ...]]:
        parameters, rule = self._rules[call.name]
        choices = list(rule(context, *call.arguments)) if callable(rule) else rule
        bound = dict(zip(parameters, call.arguments, strict=True))
        left = list(range(len(choices)))
        while left:
            k = left.pop(int(rng.random() * len(left)) if len(left) > 1 else 0)
            trees = choices[k] if callable(rule) else (_bind(_compiled(choices[k]), bound),)
            try:
                out, rules = self._forest(trees, context, rng)
            except _Dead:
                continue
            return out, (() if callable(rule) else (f"{call.name}/{k}",)) + rules
        raise _Dead

    def _forest(self, trees: tuple[Tree, ...], context: Any, rng: np.random.Generator) -> tuple[tuple[Tree, ...], tuple[str, ...]]:
        out: list[Tree] = []
        rules: tuple[str, ...] = ()
        for tree in trees:
            if isinstance(tree, Leaf):
                out.append(tree)
                continue
            if isinstance(tree, Call):
                children, taken = self._expand(tree, context, rng)
                out += children
            else:
                children, taken = self._forest(tree.children, context, rng)
                if children:  # a phrase of nothing but conditions is no phrase
                    out.append(Node(tree.label, children))
            rules += taken
        return tuple(out), rules


def sentence(tree: Tree, rules: tuple[str, ...] = ()) -> Sentence:
    """Realises a finished tree: a/an, spaces, and a capital where it ends in a full stop or a question mark."""
    leaves = list(_leaves(tree))
    words = [leaf.word for leaf in leaves]
    for i, leaf in enumerate(leaves[:-1]):
        if leaf.tag == "DT" and leaf.word == "a" and words[i + 1][0] in "aeiou":
            words[i] = "an"
    if leaves[-1].tag == ".":
        words[0] = words[0][0].upper() + words[0][1:]
    tags = tuple(leaf.tag for leaf in leaves)
    return Sentence(_text(words, tags), _bracketed(tree, iter(words)), tuple(words), tags, _slots(leaves), rules)


def join(sentences: Iterable[Sentence]) -> Sentence:
    """Several sentences as one text, under one node TOP."""
    sentences = tuple(sentences)
    slots, offset = [], 0
    for one in sentences:
        slots += [dataclasses.replace(slot, start=slot.start + offset, stop=slot.stop + offset) for slot in one.slots]
        offset += len(one.words)
    return Sentence(
        text=" ".join(one.text for one in sentences),
        tree=f"(TOP {' '.join(one.tree for one in sentences)})",
        words=sum((one.words for one in sentences), ()),
        tags=sum((one.tags for one in sentences), ()),
        slots=tuple(slots),
        rules=sum((one.rules for one in sentences), ()),
    )


@cache
def _compiled(text: str) -> Tree:
    """The tree an alternative writes; variables are left by name."""
    tokens = iter(re.findall(r"<[^>]*>|[()]|[^\s()<>]+", text))
    first = next(tokens)
    tree = _call(first) if first.startswith("<") else _phrase(tokens, text)
    if next(tokens, None) is not None:
        raise ValueError(f"more than one tree: {text}")
    return tree


def _call(token: str) -> Call:
    name, *arguments = token[1:-1].split()
    return Call(name, tuple(arguments))


def _phrase(tokens: Iterator[str], text: str, slot: tuple[str, str] | None = None) -> Tree:
    head = next(tokens)
    label, _, mark = head.partition("@")
    if mark:
        slot = tuple(mark.split(":"))
    children: list[Tree] = []
    for token in tokens:
        if token == ")":
            return Node(label, tuple(children))
        if token == "(":
            children.append(_phrase(tokens, text, slot))
        elif token.startswith("<"):
            children.append(_call(token))
        else:
            if next(tokens) != ")" or children:
                raise ValueError(f"the word {token!r} stands beside something else in its bracket: {text}")
            return Leaf(label, token, slot)
    raise ValueError(f"a bracket is left open: {text}")


def _bind(tree: Tree, bound: Mapping[str, Any]) -> Tree:
    """An alternative's tree with values in place of its rule's parameters."""
    if isinstance(tree, Call):
        return Call(tree.name, tuple(bound.get(a, a) for a in tree.arguments))
    if isinstance(tree, Leaf):
        return Leaf(tree.tag, tree.word, (tree.slot[0], bound[tree.slot[1]])) if tree.slot else tree
    return Node(tree.label, tuple(_bind(child, bound) for child in tree.children))


def _calls(rule: Sequence[str]) -> Iterator[Call]:
    stack: list[Tree] = [_compiled(text) for text in rule]
    while stack:
        tree = stack.pop()
        if isinstance(tree, Call):
            yield tree
        elif isinstance(tree, Node):
            stack += tree.children


def _leaves(tree: Tree) -> Iterator[Leaf]:
    if isinstance(tree, Leaf):
        yield tree
    else:
        for child in tree.children:
            yield from _leaves(child)


def _bracketed(tree: Tree, words: Iterator[str]) -> str:
    if isinstance(tree, Leaf):
        return f"({tree.tag} {next(words)})"
    return f"({tree.label} {' '.join(_bracketed(child, words) for child in tree.children)})"


def _text(words: Sequence[str], tags: Sequence[str]) -> str:
    out, glue = "", True  # glue: no space before the next word
    for word, tag in zip(words, tags, strict=True):
        closes = tag in (".", ",", ":", CLOSING)
        out += word if glue or closes else f" {word}"
        glue = tag == OPENING
    return out


def _slots(leaves: Sequence[Leaf]) -> tuple[Slot, ...]:
    """Neighbouring words of one slot are one slot."""
    out: list[Slot] = []
    for i, leaf in enumerate(leaves):
        if leaf.slot is None:
            continue
        kind, objects = leaf.slot
        if out and out[-1].stop == i and (out[-1].kind, out[-1].objects) == (kind, tuple(objects)):
            out[-1] = dataclasses.replace(out[-1], stop=i + 1)
        else:
            out.append(Slot(kind, tuple(objects), i, i + 1))
    return tuple(out)
