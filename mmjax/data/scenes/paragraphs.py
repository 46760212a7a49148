"""Paragraphs: longer descriptions of a picture, three to six sentences, in which "it" may stand for the thing named before."""

import numpy as np

from mmjax.data.scenes.captions import RULES as CAPTION_RULES
from mmjax.data.scenes.captions import detail, either
from mmjax.data.scenes.describe import ATTRIBUTES, Description, groups
from mmjax.data.scenes.grammar import Grammar, Rule, Sentence, join
from mmjax.data.scenes.sample import Draws
from mmjax.data.scenes.world import Scene

LEAST, MOST = 3, 6  # sentences

RULES: dict[str, Rule] = {
    **CAPTION_RULES,
    "overview t": [
        "(S (NP (EX there)) (VP <how_many t> <np a t ->) (PP (IN in) (NP (DT the) <medium>)) (. .))",
        "(S (NP (DT this) <medium>) (VP (VBZ shows) <np a t ->) (. .))",
        "(S (NP (PRP we)) (VP (VBP see) <np a t -> (PP (IN in) (NP (DT this) <medium>))) (. .))",
        "(S (NP (DT the) <medium>) (VP (VBZ has) <np a t ->) (. .))",
    ],
    "how_many t": lambda scene, t: CAPTION_RULES["be many"](scene, "one" if len(t) == 1 else "many"),
    "it_is t d": [
        *["(S (NP (PRP it)) (VP (VBZ is) <predicate t d>) (. .))"] * 2,
        "(S (NP (DT this) (NN one)) (VP (VBZ is) <predicate t d>) (. .))",
    ],
    "nothing": [
        "(S (NP (EX there)) (VP (VBZ is) (NP (NN nothing) (RB else))) (. .))",
        "(S (NP (NN nothing) (RB else)) (VP (VBZ is) (VP (VBN shown))) (. .))",
    ],
}

GRAMMAR = Grammar(RULES)


def paragraph(scene: Scene, rng: np.random.Generator) -> Sentence:
    """An opening, the objects in detail, what was stated of them, the drawn word and the background, as far as there is room."""
    closing = ["word_told", "background_told"] if scene.word else ["background_told"]
    related = _related(scene, rng)
    everything = tuple(range(len(scene.objects)))
    said = [_say(scene, rng, "overview", everything)] if everything else []
    said += _objects(scene, rng, MOST - len(said) - len(closing) - len(related)) + related
    if any(slot.kind == "background" for one in said for slot in one.slots):
        closing.remove("background_told")
    said += [_say(scene, rng, rule) for rule in closing]
    return join(said if len(said) >= LEAST else [*said, _say(scene, rng, "nothing")])


def _say(scene: Scene, rng: np.random.Generator, rule: str, *arguments: object) -> Sentence:
    return GRAMMAR.derive(rule, scene, rng, *arguments)


def _objects(scene: Scene, rng: np.random.Generator, room: int) -> list[Sentence]:
    """Each kind of object in one or two sentences, or all in one where there is no room for so many."""
    things = groups(scene.objects, ATTRIBUTES)
    if len(things) > room:
        return [_say(scene, rng, "all_placed", things)]
    d = Draws(rng)
    out: list[Sentence] = []
    for k, group in enumerate(things):
        spare = room - len(out) - (len(things) - k)
        in_two = _in_two(scene, rng, group) if spare > 0 and len(group) == 1 and d.chance(0.7) else None
        many = "one" if len(group) == 1 else "many"
        out += in_two or [_say(scene, rng, "placed", group, detail(scene, group), many)]
    return out


def _in_two(scene: Scene, rng: np.random.Generator, group: tuple[int, ...]) -> list[Sentence] | None:
    """Named and placed first, its size and outline after; None if shape and colour do not tell it apart."""
    named = _say(scene, rng, "placed", group, "shape+colour", "one")
    if named is None or any(slot.kind in ("size", "outline") for slot in named.slots):
        return None
    thing = scene.objects[group[0]]
    description = Description(size=thing.size, outline=True if thing.outline else None)
    return [named, _say(scene, rng, "it_is", group, description)]


def _related(scene: Scene, rng: np.random.Generator) -> list[Sentence]:
    for relation in scene.relations:
        name, pair = either(relation.name, (relation.subject, relation.object), rng)
        if told := _say(scene, rng, "told", name, pair, "shape"):
            return [told]
    return []
