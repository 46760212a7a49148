"""Captions of a scene, short, ordinary and detailed, from a grammar with many templates. Everything they claim is true of the scene.

- short names the main thing: what a relation is told of, else the most numerous group, else the largest; or the drawn word;
- ordinary names every object with its colour, the relation the scene was made to show, and the drawn word;
- detailed gives sizes, outlines, places, every relation, the background's texture, and the word with its colour and place.
"""

from collections.abc import Iterator
from typing import Any

import numpy as np

from mmjax.core.errors import UserError, suggest
from mmjax.data.scenes.describe import ATTRIBUTES, NOUN_PHRASES, coordinated, describing, groups, place
from mmjax.data.scenes.grammar import CLOSING, OPENING, Call, Grammar, Leaf, Node, Rule, Sentence, Tree, join
from mmjax.data.scenes.sample import Draws
from mmjax.data.scenes.world import OPPOSITE, RADIUS, Scene

CONFIGS = ("objects", "few", "clear", "relations", "counting", "text")
LEVELS = ("short", "ordinary", "detailed")
TEXTURES = {"plain": "plain", "stripes": "striped", "checks": "checked", "dots": "dotted", "noise": "noisy", "gradient": "shaded"}

# What a caption is about, as an argument of rules: ("group", article, targets, need) | ("word", rule) | ("related", name, pair, need)
# | ("list", contents).
Content = tuple[Any, ...]


def captions(scene: Scene, config: str, rng: np.random.Generator) -> dict[str, Sentence]:
    """One caption of each level. `config` is one of CONFIGS.

    Raises:
      UserError: no such config.
    """
    if config not in CONFIGS:
        raise UserError(f"captions of config {config!r}{suggest(config, CONFIGS)}")
    return {"short": short(scene, config, rng), "ordinary": ordinary(scene, config, rng), "detailed": detailed(scene, rng)}


def short(scene: Scene, config: str, rng: np.random.Generator) -> Sentence:
    """A phrase or a sentence on the main thing."""
    return _some(scene, rng, "naming", _main(scene, config, rng))


def ordinary(scene: Scene, config: str, rng: np.random.Generator) -> Sentence:
    """Every object with its colour, and a relation where the scene was made to show one whose objects can be told apart."""
    for relation in Draws(rng).shuffled(scene.relations):
        pair = (relation.subject, relation.object)
        if all(describing(scene.objects, (i,), ("shape", "colour")) for i in pair):
            return _with_relation(scene, relation.name, pair, _listing(scene, config, leave=pair), rng)
    return _some(scene, rng, "naming", _listing(scene, config))


def detailed(scene: Scene, rng: np.random.Generator) -> Sentence:
    """Several sentences."""
    things = groups(scene.objects, ATTRIBUTES)
    if len(things) > 1 and rng.random() < 0.3:
        said = [_some(scene, rng, "all_placed", things)]
    else:
        said = [_some(scene, rng, "placed", group, detail(scene, group), "one" if len(group) == 1 else "many") for group in things]
    for relation in scene.relations:
        name, pair = either(relation.name, (relation.subject, relation.object), rng)
        if clause := GRAMMAR.derive("told", scene, rng, name, pair, "shape"):
            said.append(clause)
    if scene.word:
        said.append(_some(scene, rng, "word_told"))
    if any(slot.kind == "background" for one in said for slot in one.slots):
        return join(said)
    background = _some(scene, rng, "background_told")
    return join([background, *said] if rng.random() < 0.3 else [*said, background])


def _some(scene: Scene, rng: np.random.Generator, rule: str, *arguments: Any) -> Sentence:
    """A derivation that every scene allows."""
    found = GRAMMAR.derive(rule, scene, rng, *arguments)
    if found is None:
        raise AssertionError(f"nothing can be said with {rule!r}{arguments} of {scene}")
    return found


def _main(scene: Scene, config: str, rng: np.random.Generator) -> Content:
    if config == "text" and scene.word:
        return ("word", "word")
    alike = groups(scene.objects, ("shape",) if rng.random() < 0.5 else ("colour", "shape"))
    if config == "counting" and rng.random() < 0.3:
        return ("group", "count", tuple(range(len(scene.objects))), "-")
    if scene.relations:
        targets = next(group for group in alike if scene.relations[0].subject in group)
    else:
        targets = max(alike, key=lambda group: (len(group), max(RADIUS[scene.objects[i].size] for i in group)))
    need = "shape" if len({scene.objects[i].colour for i in targets}) > 1 or rng.random() < 0.4 else "shape+colour"
    return ("group", "count" if config == "counting" else "a", targets, need)


def _listing(scene: Scene, config: str, leave: tuple[int, ...] = ()) -> Content | None:
    """All objects by shape and colour, less those of `leave`; None if nothing is left."""
    things = [group for group in groups(scene.objects, ("colour", "shape")) if not set(group) & set(leave)]
    article = "count" if config == "counting" else "a"
    contents: list[Content] = [("group", article, group, "shape+colour") for group in things]
    if scene.word:
        contents.append(("word", "word_coloured"))
    return (contents[0] if len(contents) == 1 else ("list", tuple(contents))) if contents else None


def _with_relation(scene: Scene, name: str, pair: tuple[int, int], rest: Content | None, rng: np.random.Generator) -> Sentence:
    need = "shape+colour"
    form = Draws(rng).pick(("told", "two_step", "naming" if rest is None else "together"))
    if form == "naming":
        return _some(scene, rng, "naming", ("related", name, pair, need))
    if form == "together":
        return _some(scene, rng, "together", ("related", name, pair, need), rest)
    name, pair = either(name, pair, rng)
    first = _some(scene, rng, form, name, pair, *((need,) if form == "told" else (pair[:1], need)))
    return first if rest is None else join([first, _some(scene, rng, "also", rest)])


def either(name: str, pair: tuple[int, int], rng: np.random.Generator) -> tuple[str, tuple[int, int]]:
    """The relation, or as often its opposite from the other side."""
    return (OPPOSITE[name], pair[::-1]) if name in OPPOSITE and rng.random() < 0.5 else (name, pair)


def detail(scene: Scene, targets: tuple[int, ...]) -> str:
    """What a detailed caption states of a group: an outline always, being filled only to tell it apart."""
    return "size+shape+colour" + ("+outline" if scene.objects[targets[0]].outline else "")


# The rules' functions.


def _content(scene: Scene, content: Content) -> list[tuple[Tree, ...]]:
    match content:
        case ("group", article, targets, need):
            return [(Call("np", (article, targets, need)),)]
        case ("word", rule):
            return [(Call(rule, ()),)]
        case ("related", name, pair, need):
            ways = [(name, pair)] + ([(OPPOSITE[name], pair[::-1])] if name in OPPOSITE else [])
            return [(Call("related", (way, r, r[:1], need)),) for way, r in ways]
    return [(coordinated("NP", [Call("content", (one,)) for one in content[1]]),)]


def _first(scene: Scene, content: Content) -> list[tuple[Tree, ...]]:
    """ "Is" or "are" before it: agrees with what comes first."""
    while content[0] == "list":
        content = content[1][0]
    return [(Leaf("VBP", "are") if content[0] == "group" and len(content[2]) > 1 else Leaf("VBZ", "is"),)]


def _after(scene: Scene, content: Content) -> list[tuple[Tree, ...]]:
    """ "Is" or "are" after it: agrees with the whole."""
    return [(Leaf("VBP", "are"),)] if content[0] == "list" else _first(scene, content)


def _converse(scene: Scene, name: str, pair: tuple[int, int], need: str) -> list[tuple[Tree, ...]]:
    return [(Call("has_" + name.replace(" ", "_"), (pair, pair[:1], pair[1:], need)),)]


def _beside(scene: Scene, name: str, pair: tuple[int, int]) -> list[tuple[Tree, ...]]:
    return [(Call("its_" + name.replace(" ", "_"), (pair,)),)]


def _everything(scene: Scene, things: tuple[tuple[int, ...], ...]) -> list[tuple[Tree, ...]]:
    parts = [Call("np_placed", (targets, detail(scene, targets))) for targets in things]
    return [(coordinated("NP", parts),)]


def _first_be(scene: Scene, things: tuple[tuple[int, ...], ...]) -> list[tuple[Tree, ...]]:
    return [(Leaf("VBZ", "is") if len(things[0]) == 1 else Leaf("VBP", "are"),)]


def _unplaced(scene: Scene, targets: tuple[int, ...]) -> Iterator[tuple[Tree, ...]]:
    """A condition: the group is in no one place."""
    if not NOUN_PHRASES["place t"](scene, targets):
        yield ()


def _each_placed(scene: Scene, targets: tuple[int, ...]) -> list[tuple[Tree, ...]]:
    """Of two: ", one on the left and the other on the right"; fails unless both are in a place, and not the same."""
    parts = [Call("place", ((i,),)) for i in targets]
    if len(targets) != 2 or NOUN_PHRASES["place t"](scene, targets):
        return []
    one = Node("NP", (Node("NP", (Leaf("CD", "one"),)), parts[0]))
    other = Node("NP", (Node("NP", (Leaf("DT", "the"), Leaf("JJ", "other"))), parts[1]))
    return [(Leaf(",", ","), Node("NP", (one, Leaf("CC", "and"), other)))]


def _quoted(scene: Scene) -> list[tuple[Tree, ...]]:
    return [(Node("NP", (Leaf(OPENING, '"'), Leaf("NN", scene.word.text, ("word", ())), Leaf(CLOSING, '"'))),)]


def _word_colour(scene: Scene, tag: str) -> list[tuple[Tree, ...]]:
    return [(Leaf(tag, scene.word.colour, ("word colour", ())),)]


def _word_place(scene: Scene) -> list[tuple[Tree, ...]]:
    where = place([scene.word])
    return [(Call(where.replace(" ", "_"), ((),)),)] if where else []


def _texture(scene: Scene) -> list[tuple[Tree, ...]]:
    return [(Leaf("JJ", TEXTURES[scene.background.kind], ("background", ())),)]


def _pattern(scene: Scene) -> list[tuple[Tree, ...]]:
    """The texture as a noun; a plain background has none."""
    kind = scene.background.kind
    if kind == "plain":
        return []
    noun = Leaf("NNS" if kind.endswith("s") else "NN", kind, ("background", ()))
    return [(Node("NP", (Leaf("DT", "a"), noun) if kind == "gradient" else (noun,)),)]


RULES: dict[str, Rule] = {
    **NOUN_PHRASES,
    "content c": _content,
    "first c": _first,
    "after c": _after,
    "naming c": [
        *["<content c>"] * 3,
        "(NP (NP (DT a) <medium>) (PP (IN of) <content c>))",
        "(NP (NP (DT a) <medium>) (PP (IN with) <content c>))",
        "(NP (NP (DT a) <medium>) (VP (VBG showing) <content c>))",
        "(S (NP (EX there)) (VP <first c> <content c>) (. .))",
        "(S (NP (EX there)) (VP <first c> <content c> (PP (IN in) (NP (DT the) <medium>))) (. .))",
        "(S (NP (DT this) <medium>) (VP (VBZ shows) <content c>) (. .))",
        "(S (NP (DT the) <medium>) (VP (VBZ shows) <content c>) (. .))",
        "(S (NP (PRP you)) (VP (MD can) (VP (VB see) <content c>)) (. .))",
        "(S (NP (PRP we)) (VP (VBP see) <content c>) (. .))",
        "(S (PP (IN in) (NP (DT the) <medium>)) (VP <first c> <content c>) (. .))",
        "(S (ADVP (RB here)) (VP <first c> <content c>) (. .))",
        "(S <content c> (VP <after c> (VP (VBN shown))) (. .))",
        "(S <content c> (VP (MD can) (VP (VB be) (VP (VBN seen)))) (. .))",
        "(S <content c> (VP <after c> (PP (IN in) (NP (DT the) <medium>))) (. .))",
        "(S (VP (VB draw) <content c>) (. .))",
        "(S (VP (VB show) (NP (PRP me)) <content c>) (. .))",
        "(S (VP (VB paint) <content c>) (. .))",
    ],
    "related name r s need": [
        *["(NP <np a s need> <relation name a r need>)"] * 2,
        "(NP <np a s need> (SBAR (WHNP (WDT that)) (S (VP (VBZ is) <relation name a r need>))))",
        "(NP <np a s need> (VP <set> <position name a r need>))",
        "<converse name r need>",
    ],
    "set": ["(VBN placed)", "(VBN positioned)", "(VBN located)", "(VBN drawn)"],
    "converse name r need": lambda scene, name, r, need: [(Call("converse_np", (name, r, r[:1], r[1:], need)),)],
    "converse_np name r s o need": ["(NP <np a o need> (PP (IN with) (NP <np a s need> <beside name r>)))"],
    "beside name r": _beside,
    "its_left_of r": ["(PP@relation:r (TO to) (NP (PRP$ its) (NN left)))", "(PP@relation:r (IN on) (NP (PRP$ its) (NN left)))"],
    "its_right_of r": ["(PP@relation:r (TO to) (NP (PRP$ its) (NN right)))", "(PP@relation:r (IN on) (NP (PRP$ its) (NN right)))"],
    "its_above r": ["(PP@relation:r (IN above) (NP (PRP it)))", "(PP@relation:r (IN over) (NP (PRP it)))"],
    "its_below r": ["(PP@relation:r (IN below) (NP (PRP it)))", "(PP@relation:r (IN under) (NP (PRP it)))"],
    "its_on_top_of r": ["(PP@relation:r (IN on) (NP (NP (NN top)) (PP (IN of) (NP (PRP it)))))"],
    "its_inside r": ["(PP@relation:r (IN inside) (NP (PRP it)))", "(PP@relation:r (IN within) (NP (PRP it)))"],
    "told name r need": lambda scene, name, r, need: [
        *[(Call("clause", (article, name, r, r[:1], need)),) for article in ("a", "the")],
        (Call("has", (name, r, need)),),
    ],
    "clause article name r s need": [
        *["(S <np article s need> (VP (VBZ is) <relation name article r need>) (. .))"] * 2,
        "(S <np article s need> (VP (VBZ is) (VP <set> <position name article r need>)) (. .))",
        "(S <np article s need> (VP (VBZ appears) <position name article r need>) (. .))",
        "(S <np article s need> (VP (MD can) (VP (VB be) (VP (VBN seen) <position name article r need>))) (. .))",
        "(S <position name article r need> (VP (VBZ is) <np article s need>) (. .))",
        "(S <position name article r need> (, ,) (NP (EX there)) (VP (VBZ is) <np a s need>) (. .))",
        "(S <position name article r need> (NP (PRP you)) (VP (MD can) (VP (VB see) <np a s need>)) (. .))",
    ],
    "has name r need": _converse,
    "has_left_of r s o need": ["(S <np a o need> (VP@relation:r (VBZ has) <np a s need> <its_left_of r>) (. .))"],
    "has_right_of r s o need": ["(S <np a o need> (VP@relation:r (VBZ has) <np a s need> <its_right_of r>) (. .))"],
    "has_above r s o need": ["(S <np a o need> (VP@relation:r (VBZ has) <np a s need> <its_above r>) (. .))"],
    "has_below r s o need": ["(S <np a o need> (VP@relation:r (VBZ has) <np a s need> <its_below r>) (. .))"],
    "has_on_top_of r s o need": [
        "(S <np a o need> (VP@relation:r (VBZ has) <np a s need> <its_on_top_of r>) (. .))",
        "(S <np a o need> (VP@relation:r (VBZ supports) <np a s need>) (. .))",
        "(S <np a o need> (VP@relation:r (VBZ carries) <np a s need>) (. .))",
    ],
    "has_inside r s o need": [
        "(S <np a o need> (VP@relation:r (VBZ has) <np a s need> <its_inside r>) (. .))",
        "(S <np a o need> (VP@relation:r (VBZ contains) <np a s need>) (. .))",
        "(S <np a o need> (VP@relation:r (VBZ surrounds) <np a s need>) (. .))",
        "(S <np a o need> (VP@relation:r (VBZ encloses) <np a s need>) (. .))",
    ],
    "two_step name r s need": [
        "(S <both r need> (: ;) (S <np the s shape> (VP (VBZ is) <relation name the r shape>)) (. .))",
        "(S (NP (EX there)) (VP (VBZ is) <both r need>) (, ,) (S <np the s shape> (VP (VBG being) <position name the r shape>)) (. .))",
        "(S (NP (DT this) <medium>) (VP (VBZ shows) <both r need> (, ,) (PP (IN with) <two_step_with name r s>)) (. .))",
    ],
    "two_step_with name r s": ["(S <np the s shape> <position name the r shape>)"],
    "both r need": lambda scene, r, need: [(coordinated("NP", [Call("np", ("a", (i,), need)) for i in order]),) for order in (r, r[::-1])],
    "together c more": [
        "(NP <content c> (, ,) (PP (IN with) <content more>) (ADVP (RB as) (RB well)))",
        "(NP <content c> (, ,) (CONJP (RB and) (RB also)) <content more>)",
        "(NP (NP (DT a) <medium>) (PP (IN of) <content c>) (, ,) (CONJP (RB together) (IN with)) <content more>)",
        "(S (NP (EX there)) (VP (VBZ is) <content c> (, ,) (CONJP (RB and) (RB also)) <content more>) (. .))",
        "(S (NP (DT this) <medium>) (VP (VBZ shows) <content c> (, ,) (CONJP (RB together) (IN with)) <content more>) (. .))",
        "(S (VP (VB draw) <content c> (, ,) (CONJP (RB and) (RB also)) <content more>) (. .))",
    ],
    "also c": [
        "(S (NP (EX there)) (VP <first c> (ADVP (RB also)) <content c>) (. .))",
        "(S (NP (DT the) <medium>) (ADVP (RB also)) (VP (VBZ shows) <content c>) (. .))",
        "(S <content c> (VP (MD can) (ADVP (RB also)) (VP (VB be) (VP (VBN seen)))) (. .))",
        "(S <content c> (VP <after c> (PP (IN in) (NP (DT the) <medium>)) (ADVP (RB too))) (. .))",
        "(S (NP (PRP you)) (VP (MD can) (ADVP (RB also)) (VP (VB see) <content c>)) (. .))",
    ],
    "np_placed t need": [
        "(NP <np a t need> <place t>)",
        "(NP <unplaced t> <np a t need>)",
    ],
    "placed t need many": [
        "(S <np a t need> (VP <be many> <place t>) (. .))",
        "(S <np a t need> (VP <be many> (VP <set> <place t>)) (. .))",
        "(S <place t> (VP <be many> <np a t need>) (. .))",
        "(S <place t> (, ,) (NP (EX there)) (VP <be many> <np a t need>) (. .))",
        "(S (NP (EX there)) (VP <be many> <np a t need> <place t>) (. .))",
        "(S <place t> (NP (PRP you)) (VP (MD can) (VP (VB see) <np a t need>)) (. .))",
        "(S (NP (EX there)) (VP <unplaced t> <be many> <np a t need>) (. .))",
        "(S <unplaced t> (NP (DT the) <medium>) (VP (VBZ has) <np a t need>) (. .))",
        "(S (NP (EX there)) (VP <be many> (NP <np a t need> <each_placed t>)) (. .))",
        "(S (NP (PRP you)) (VP (MD can) (VP (VB see) (NP <np a t need> <each_placed t>))) (. .))",
    ],
    "all_placed things": [
        "(S (NP (EX there)) (VP <first_be things> <everything things>) (. .))",
        "(S (NP (DT this) <medium>) (VP (VBZ shows) <everything things>) (. .))",
        "(S (PP (IN on) <backdrop>) (VP <first_be things> <everything things>) (. .))",
        "(S (PP (IN on) <backdrop>) (, ,) (NP (PRP you)) (VP (MD can) (VP (VB see) <everything things>)) (. .))",
    ],
    "everything things": _everything,
    "first_be things": _first_be,
    "unplaced t": _unplaced,
    "each_placed t": _each_placed,
    "word": ["(NP (NP (DT the) (NN word)) <quoted>)", "(NP (NP (DT the) (NN text)) <quoted>)", "(NP (NP (DT the) (NN writing)) <quoted>)"],
    "word_coloured": [
        "(NP (NP (DT the) <word_colour JJ> (NN word)) <quoted>)",
        "(NP (NP (DT the) (NN word)) <quoted> (PP (IN in) (NP <word_colour NN>)))",
        "(NP <quoted> (VP (VBN written) (PP (IN in) (NP <word_colour NN>))))",
        "(NP (NP (DT the) (NN text)) <quoted> (PP (IN in) (NP <word_colour JJ> (NNS letters))))",
    ],
    "word_told": [
        "(S (NP (NP (DT the) (NN word)) <quoted>) (VP (VBZ is) (VP <written> (PP (IN in) (NP <word_colour NN>)) <word_place>)) (. .))",
        "(S <word_coloured> (VP (VBZ is) <word_place>) (. .))",
        "(S <word_place> (VP (VBZ is) <word_coloured>) (. .))",
        "(S <word_place> (NP (EX there)) (VP (VBZ is) <word_coloured>) (. .))",
        "(S (NP (DT the) <medium>) (VP (VBZ says) (NP <quoted> (PP (IN in) (NP <word_colour NN>)))) (. .))",
        "(S (NP <quoted>) (VP (VBZ is) (VP <written> (PP (IN in) (NP <word_colour JJ> (NNS letters))))) (. .))",
    ],
    "written": ["(VBN written)", "(VBN drawn)", "(VBN printed)"],
    "quoted": _quoted,
    "word_colour tag": _word_colour,
    "word_place": _word_place,
    "backdrop": [
        "(NP (DT a) <texture> (NN background))",
        "(NP (NP (DT a) (NN background)) (PP (IN with) <pattern>))",
    ],
    "texture": _texture,
    "pattern": _pattern,
    "background_told": [
        "(S (NP (DT the) (NN background)) (VP (VBZ is) (ADJP <texture>)) (. .))",
        "(S (NP (DT the) <medium>) (VP (VBZ has) <backdrop>) (. .))",
        "(S (NP (NN everything)) (VP (VBZ is) (PP (IN on) <backdrop>)) (. .))",
        "(S (NP (DT the) (NN background)) (VP (VBZ shows) <pattern>) (. .))",
        "(S (NP (DT this)) (VP (VBZ is) (VP (VBN drawn) (PP (IN on) <backdrop>))) (. .))",
    ],
}

GRAMMAR = Grammar(RULES)
