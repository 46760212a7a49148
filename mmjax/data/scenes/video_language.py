"""The language of videos: captions and questions on motions, which no single frame answers.

A video is a scene (its objects as they are at first, or are to be when they appear) and a list of `Motion`s. Everything said is of what
happens and in which order; nothing of what stands still.
"""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from mmjax.core.errors import UserError, suggest
from mmjax.data.scenes.describe import NOUN_PHRASES, describing
from mmjax.data.scenes.grammar import Call, Grammar, Leaf, Node, Rule, Sentence, Tree, join
from mmjax.data.scenes.question_rules import RULES as QUESTION_RULES
from mmjax.data.scenes.sample import Draws
from mmjax.data.scenes.world import MOTIONS, Scene

OPPOSITES = (("grows", "shrinks"), ("appears", "disappears"), ("moves left", "moves right"), ("moves up", "moves down"))
TYPES = ("which moves", "what happens", "either", "order", "first", "count motions")
ORDER_GAP = 2  # frames between two beginnings that a question of order may ask about


@dataclasses.dataclass(frozen=True)
class Motion:
    """objects[index] does `kind` (of world.MOTIONS) from frame `start` to frame `end`, both included; it is still before and after.

    Raises:
      UserError: no such kind of motion, or it ends before it starts.
    """

    index: int
    kind: str
    start: int
    end: int

    def __post_init__(self):
        if self.kind not in MOTIONS:
            raise UserError(f"motion {self.kind!r}{suggest(self.kind, MOTIONS)}")
        if self.end < self.start:
            raise UserError(f"motion {self.kind!r} of object {self.index} ends at frame {self.end}, before it starts at {self.start}")


@dataclasses.dataclass(frozen=True)
class VideoQuestion:
    """`objects`: those whose motions the answer rests on."""

    text: str
    answer: str
    type: str
    objects: tuple[int, ...]
    sentence: Sentence

    def json(self) -> dict[str, Any]:
        """As plain data."""
        return {"text": self.text, "answer": self.answer, "type": self.type, "objects": list(self.objects)}


@dataclasses.dataclass(frozen=True)
class _Context:
    """What a grammar of videos sees."""

    scene: Scene
    motions: tuple[Motion, ...]

    @property
    def objects(self):
        return self.scene.objects


# kind -> ways to say it: (third person, participle, infinitive, words after the verb)
VERBS: Mapping[str, tuple[tuple[str, str, str, str], ...]] = {
    "moves left": (
        ("moves", "moving", "move", "left"),
        ("slides", "sliding", "slide", "to the left"),
        ("goes", "going", "go", "to the left"),
    ),
    "moves right": (
        ("moves", "moving", "move", "right"),
        ("slides", "sliding", "slide", "to the right"),
        ("goes", "going", "go", "to the right"),
    ),
    "moves up": (("moves", "moving", "move", "up"), ("rises", "rising", "rise", ""), ("goes", "going", "go", "up")),
    "moves down": (("moves", "moving", "move", "down"), ("sinks", "sinking", "sink", ""), ("goes", "going", "go", "down")),
    "grows": (("grows", "growing", "grow", ""), ("gets", "getting", "get", "bigger"), ("becomes", "becoming", "become", "larger")),
    "shrinks": (
        ("shrinks", "shrinking", "shrink", ""),
        ("gets", "getting", "get", "smaller"),
        ("becomes", "becoming", "become", "smaller"),
    ),
    "turns": (("turns", "turning", "turn", ""), ("rotates", "rotating", "rotate", ""), ("spins", "spinning", "spin", "")),
    "appears": (("appears", "appearing", "appear", ""), ("comes", "coming", "come", "into view")),
    "disappears": (("disappears", "disappearing", "disappear", ""), ("vanishes", "vanishing", "vanish", "")),
    "blinks": (("blinks", "blinking", "blink", ""), ("flashes", "flashing", "flash", "")),
    "orbits": (("orbits", "orbiting", "orbit", ""), ("revolves", "revolving", "revolve", ""), ("goes", "going", "go", "round and round")),
}
_TAGS = {"to": "TO", "the": "DT", "into": "IN", "view": "NN", "bigger": "JJR", "larger": "JJR", "smaller": "JJR", "and": "CC"}
_FORMS = {"third": (0, "VBZ"), "participle": (1, "VBG"), "plain": (2, "VB")}


def tellable(scene: Scene, motions: Sequence[Motion]) -> bool:
    """Whether every object that moves can be told from the others by shape and colour, as captions and questions take for granted."""
    return all(describing(scene.objects, (m.index,), ("shape",), ("shape", "colour")) for m in motions)


def caption(scene: Scene, motions: Sequence[Motion], rng: np.random.Generator) -> Sentence:
    """Everything that happens, in the order in which it begins: "while" of what goes on at once, "then" of what comes after."""
    ordered = sorted(motions, key=lambda m: (m.start, m.end, m.index))
    context = _Context(scene, tuple(ordered))
    if not ordered:
        return GRAMMAR.derive("still", context, rng)
    said: list[Sentence] = []
    k = 0
    while k < len(ordered):
        here, after = ordered[k], ordered[k + 1 : k + 2]
        rest = k > 0 and here.start > ordered[k - 1].end
        lead = "later" if rest else "also" if k else "first"
        if after and lead != "also":
            later = after[0]
            rule = "while" if later.start <= here.end else "then"
            said.append(GRAMMAR.derive(rule, context, rng, lead, here, later))
            k += 2
        else:
            said.append(GRAMMAR.derive("happens", context, rng, lead, here))
            k += 1
    return join(said) if len(said) > 1 else said[0]


def questions(scene: Scene, motions: Sequence[Motion], rng: np.random.Generator, n: int) -> list[VideoQuestion]:
    """n different questions (fewer where too little happens): a type is drawn, then of it one that can be asked."""
    context = _Context(scene, tuple(motions))
    d = Draws(rng)
    found: dict[str, VideoQuestion] = {}
    for _ in range(10 * n if motions else 0):
        if len(found) == n:
            break
        if one := _DRAW[type_ := d.pick(TYPES)](d, context, rng):
            rule, arguments, answer, objects = one
            if told := GRAMMAR.derive(rule, context, rng, *arguments):
                found.setdefault(told.text, VideoQuestion(told.text, answer, type_, objects, told))
    return list(found.values())


_Drawn = tuple[str, tuple, str, tuple[int, ...]]


def _kinds(context: _Context) -> dict[str, set[int]]:
    """Which objects do what."""
    out: dict[str, set[int]] = {}
    for m in context.motions:
        out.setdefault(m.kind, set()).add(m.index)
    return out


def _which_moves(d: Draws, context: _Context, rng: np.random.Generator) -> _Drawn | None:
    """The colour or shape of the only thing that does something."""
    options = sorted((kind, i) for kind, who in _kinds(context).items() if len(who) == 1 for i in who)
    if not options:
        return None
    kind, i = d.pick(options)
    asked = _open_attribute(d, context)
    return asked and ("which_moves", (asked, (i,), kind), getattr(context.objects[i], asked), (i,))


def _open_attribute(d: Draws, context: _Context) -> str | None:
    """Colour or shape, where the objects differ in it: else any frame would tell."""
    options = [name for name in ("colour", "shape") if len({getattr(o, name) for o in context.objects}) > 1]
    return d.pick(options) if options else None


def _what_happens(d: Draws, context: _Context, rng: np.random.Generator) -> _Drawn | None:
    """What a thing does, if it does one thing; the answer is the motion's name."""
    options = [m for m in context.motions if sum(other.index == m.index for other in context.motions) == 1]
    if not options:
        return None
    m = d.pick(options)
    return "what_happens", ((m.index,),), m.kind, (m.index,)


def _either(d: Draws, context: _Context, rng: np.random.Generator) -> _Drawn | None:
    """ "Does the red circle grow or shrink?": which of two it does, in the infinitive's first word or the direction."""
    kinds = _kinds(context)
    options = [
        (m, pair)
        for m in context.motions
        for pair in OPPOSITES
        if m.kind in pair and sum(m.index in kinds.get(kind, ()) for kind in pair) == 1
    ]
    if not options:
        return None
    m, pair = d.pick(options)
    return "either", ((m.index,), *(pair if d.chance(0.5) else pair[::-1])), m.kind, (m.index,)


def _order(d: Draws, context: _Context, rng: np.random.Generator) -> _Drawn | None:
    """Whether one thing begins before another does."""
    pairs = [(a, b) for a in context.motions for b in context.motions if a.index != b.index and abs(a.start - b.start) >= ORDER_GAP]
    if not pairs:
        return None
    wanted = d.chance(0.5)
    pairs = [(a, b) for a, b in pairs if (a.start < b.start) == wanted]  # never empty: every pair is there both ways round
    a, b = d.pick(pairs)
    return "order", (a, b), "yes" if wanted else "no", (a.index, b.index)


def _first(d: Draws, context: _Context, rng: np.random.Generator) -> _Drawn | None:
    """The colour or shape of what begins first, or last, or appears first."""
    kind = d.pick((None, "appears"))
    chosen = [m for m in context.motions if kind in (None, m.kind)]
    if len(chosen) < 2 or len({m.index for m in chosen}) < 2:
        return None
    last = d.chance(0.5)
    ordered = sorted(chosen, key=lambda m: -m.start if last else m.start)
    if abs(ordered[0].start - ordered[1].start) < ORDER_GAP:
        return None
    i, asked = ordered[0].index, _open_attribute(d, context)
    return asked and ("first", (asked, kind or "moves", "last" if last else "first"), getattr(context.objects[i], asked), (i,))


def _count_motions(d: Draws, context: _Context, rng: np.random.Generator) -> _Drawn:
    """How many things do something, or one thing of what can be done."""
    kinds = _kinds(context)
    kind = d.pick((*kinds, None, d.pick(MOTIONS)))
    who = {m.index for m in context.motions} if kind is None else kinds.get(kind, set())
    return "count_motions", (kind or "any",), str(len(who)), tuple(sorted(who))


_DRAW: Mapping[str, Callable[..., _Drawn | None]] = {
    "which moves": _which_moves,
    "what happens": _what_happens,
    "either": _either,
    "order": _order,
    "first": _first,
    "count motions": _count_motions,
}


# The rules' functions.


def _verb(context: _Context, kind: str, form: str, targets: tuple[int, ...]) -> list[tuple[Tree, ...]]:
    """The motion as a verb with what follows it."""
    which, tag = _FORMS[form]
    out = []
    for *verb, after in VERBS[kind]:
        slot = ("motion", targets)
        rest = [Leaf(_TAGS.get(word, "RB"), word, slot) for word in after.split()]
        out.append((Node("VP", (Leaf(tag, verb[which], slot), *rest)),))
    return out


def _mover(context: _Context, article: str, motion: Motion) -> list[tuple[Tree, ...]]:
    description = describing(context.objects, (motion.index,), ("shape", "colour"), ("shape", "colour", "size"))
    return [(Call("described", (article, "one", (motion.index,), one)),) for one in description]


def _does(context: _Context, motion: Motion, form: str) -> list[tuple[Tree, ...]]:
    return [(Call("verb", (motion.kind, form, (motion.index,))),)]


def _thing(context: _Context, targets: tuple[int, ...]) -> list[tuple[Tree, ...]]:
    found = describing(context.objects, targets, ("shape",), ("shape", "colour", "size"))
    return [(Call("described", ("the", "one", targets, one)),) for one in found]


def _infinitives(context: _Context, targets: tuple[int, ...], one: str, other: str) -> list[tuple[Tree, ...]]:
    first, second = (Call("verb", (kind, "plain", targets)) for kind in (one, other))
    return [(Node("VP", (first, Leaf("CC", "or"), second)),)]


def _starts(context: _Context, kind: str) -> list[tuple[Tree, ...]]:
    """ "Appears", or what stands for any motion."""
    if kind == "appears":
        return [(Call("verb", ("appears", "third", ())),)]
    move = Node("S", (Node("VP", (Leaf("TO", "to"), Node("VP", (Leaf("VB", "change"),)))),))
    return [(Node("VP", (Leaf("VBZ", "starts"), move)),), (Node("VP", (Leaf("VBZ", "changes"),)),)]


def _they_do(context: _Context, kind: str) -> list[tuple[Tree, ...]]:
    if kind == "any":
        return [(Node("VP", (Leaf("VBP", "change"),)),), (Node("VP", (Leaf("VBP", "do"), Leaf("NN", "something"))),)]
    trees = _verb(context, kind, "plain", ())
    return [(Node("VP", (Leaf("VBP", t.children[0].word, t.children[0].slot), *t.children[1:])),) for (t,) in trees]


RULES: dict[str, Rule] = {
    **NOUN_PHRASES,
    "noun many t d": QUESTION_RULES["noun many t d"],
    "attribute name": QUESTION_RULES["attribute name"],
    "verb kind form t": _verb,
    "mover article m": _mover,
    "does m form": _does,
    "thing t": _thing,
    "infinitives t one other": _infinitives,
    "starts kind": _starts,
    "they_do kind": _they_do,
    "lead lead": lambda context, lead: {
        "first": [()],
        "later": [(Leaf("RB", "then"),), (Leaf("RB", "later"),), (Leaf("RB", "afterwards"), Leaf(",", ","))],
        "also": [(Leaf("RB", "meanwhile"), Leaf(",", ","))],
    }[lead],
    "happens lead m": [
        *["(S <lead lead> <mover a m> <does m third> (. .))"] * 2,
        "(S <lead lead> (NP (PRP you)) (VP (MD can) (VP (VB see) (S <mover a m> <does m participle>))) (. .))",
        "(S <lead lead> (NP (EX there)) (VP (VBZ is) (NP <mover a m> <does m participle>)) (. .))",
        "(S <lead lead> (NP (DT the) (NN video)) (VP (VBZ shows) (S <mover a m> <does m participle>)) (. .))",
    ],
    "while lead m o": [
        "(S <lead lead> <mover a m> <does m third> (SBAR (IN while) (S <mover a o> <does o third>)) (. .))",
        "(S <lead lead> (SBAR (IN while) (S <mover a m> <does m third>)) (, ,) (S <mover a o> <does o third>) (. .))",
        "(S <lead lead> (SBAR (IN as) (S <mover a m> <does m third>)) (, ,) (S <mover a o> <does o third>) (. .))",
        "(S <lead lead> <mover a m> <does m third> (, ,) (CC and) <at_once> (S <mover a o> <does o third>) (. .))",
    ],
    "at_once": ["(PP (IN at) (NP (DT the) (JJ same) (NN time)))"],
    "then lead m o": [
        "(S <lead lead> <mover a m> <does m third> (, ,) (ADVP (RB then)) (S <mover a o> <does o third>) (. .))",
        "(S <lead lead> <mover a m> <does m third> (SBAR (IN before) (S <mover a o> <does o third>)) (. .))",
        "(S <lead lead> (SBAR (IN after) (S <mover a m> <does m third>)) (, ,) (S <mover a o> <does o third>) (. .))",
        "(S <lead lead> <mover a o> <does o third> (SBAR (IN after) (S <mover a m> <does m third>)) (. .))",
    ],
    "still": [
        "(S (NP (NN nothing)) (VP (VBZ happens)) (. .))",
        "(S (NP (NN everything)) (VP (VBZ stays) (SBAR (IN as) (S (NP (PRP it)) (VP (VBZ is))))) (. .))",
    ],
    "thing_that noun t kind": ["(NP (NP (DT the) <noun_of noun>) (SBAR (WHNP (WDT that)) (S <verb kind third t>)))"],
    "noun_of noun": lambda context, noun: [(Leaf("NN", noun),)],
    "which_moves asked t kind": [
        "(SBARQ (WHNP (WDT what) <attribute asked>) (SQ (VBZ is) <thing_that thing t kind>) (. ?))",
        "(SBARQ (WHNP (WDT which) <attribute asked>) (SQ (VBZ does) <thing_that object t kind> (VP (VB have))) (. ?))",
        "(SBARQ (WHNP (WP what)) (SQ (VBZ is) (NP (NP (DT the) <attribute asked>) (PP (IN of) <thing_that object t kind>))) (. ?))",
        "(SBARQ <is_shape asked> (WHNP (WDT which) (NN shape)) (SQ <verb kind third t>) (. ?))",
    ],
    "is_shape asked": lambda context, asked: [()] if asked == "shape" else [],
    "what_happens t": [
        "(SBARQ (WHNP (WP what)) (SQ (VBZ does) <thing t> (VP (VB do))) (. ?))",
        "(SBARQ (WHNP (WP what)) (SQ (VBZ happens) (PP (TO to) <thing t>)) (. ?))",
        "(SBARQ (WHADVP (WRB how)) (SQ (VBZ does) <thing t> (VP (VB change))) (. ?))",
    ],
    "either t one other": [
        "(SQ (VBZ does) <thing t> <infinitives t one other> (. ?))",
        "(S (VP (VB say) (SBAR (IN whether) (S <thing t> (VP <verb one third t> (CC or) <verb other third t>)))) (. .))",
    ],
    "order m o": [
        "(SQ (VBZ does) <mover the m> <does m plain> (SBAR (IN before) (S <mover the o> <does o third>)) (. ?))",
        "(SQ (VBZ is) (NP (PRP it)) (ADJP (JJ true) (SBAR (IN that) <before m o>)) (. ?))",
        "(SQ (VBZ does) <mover the o> <does o plain> (SBAR (IN after) (S <mover the m> <does m third>)) (. ?))",
    ],
    "before m o": ["(S <mover the m> <does m third> (SBAR (IN before) (S <mover the o> <does o third>)))"],
    "first asked kind when": [
        "(SBARQ (WHNP (WDT what) <attribute asked>) (SQ (VBZ is) <thing_starting thing kind when>) (. ?))",
        "(SBARQ (WHNP (WP what)) (SQ (VBZ is) (NP (NP (DT the) <attribute asked>) (PP (IN of) <thing_starting object kind when>))) (. ?))",
        "(SBARQ <is_shape asked> (WHNP (WDT which) (NN shape)) (SQ <starts kind> <when when>) (. ?))",
    ],
    "thing_starting noun kind when": ["(NP (NP (DT the) <noun_of noun>) (SBAR (WHNP (WDT that)) (S <starts kind> <when when>)))"],
    "when when": lambda context, when: [(Node("ADVP", (Leaf("RB", when),)),)],
    "count_motions kind": [
        "(SBARQ (WHNP (WRB how) (JJ many) (NNS things)) (SQ <they_do kind>) (. ?))",
        "(SBARQ (WHNP (WRB how) (JJ many) (NNS objects)) (SQ <they_do kind>) (PP (IN in) (NP (DT the) (NN video))) (. ?))",
    ],
}

GRAMMAR = Grammar(RULES)
