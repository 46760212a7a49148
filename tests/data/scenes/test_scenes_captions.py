"""Captions and paragraphs, read back by the independent parser (tests/scene_parser.py) and held against the scene graph."""

import dataclasses
import json
import re
from collections import Counter, defaultdict

import numpy as np
import pytest

from mmjax.core.errors import UserError
from mmjax.data.scenes import pairs
from mmjax.data.scenes.captions import CONFIGS, GRAMMAR, captions
from mmjax.data.scenes.pair_captions import hard_negative_captions, swap_captions
from mmjax.data.scenes.paragraphs import GRAMMAR as PARAGRAPH_GRAMMAR
from mmjax.data.scenes.paragraphs import LEAST, MOST, paragraph
from mmjax.data.scenes.sample import sample
from mmjax.data.scenes.world import COLOURS, SIZES
from tests.scene_parser import claims, false_claims

N, EACH = 60, 4  # scenes a config, and times each is captioned
PENN = re.compile(r"CC|CD|DT|EX|IN|JJR?|MD|NNS?|PRP[$]?|RBR?|TO|VB[DGNPZ]?|WDT|WP|WRB|[.,:]|``|''")


def rng(seed):
    return np.random.default_rng(seed)


def graph_of(scene):
    """The scene graph as it is stored."""
    return json.loads(json.dumps(scene.json()))


def tell(n, each, split="train"):
    """(config, scene, level, caption) of n scenes a config, paragraphs too."""
    for config in CONFIGS:
        for k in range(n):
            scene = sample(config, split, k)
            for again in range(each):
                seed = k * each + again
                said = captions(scene, config, rng(seed)) | {"paragraph": paragraph(scene, rng(seed))}
                yield from ((config, scene, level, caption) for level, caption in said.items())


@pytest.fixture(scope="module")
def told():
    return list(tell(N, EACH))


def test_everything_claimed_is_true(told):
    for _, scene, _, caption in told:
        assert false_claims(caption.text, graph_of(scene)) == [], caption.text


@pytest.mark.slow
@pytest.mark.parametrize("split", ["validation", "biased", "unseen"])
def test_everything_claimed_is_true_in_every_split(split):
    for _, scene, _, caption in tell(150, 1, split):
        assert false_claims(caption.text, graph_of(scene)) == [], caption.text


def test_every_template_is_used(told):
    used = {rule for *_, caption in told for rule in caption.rules}
    every = {*GRAMMAR.alternatives, *PARAGRAPH_GRAMMAR.alternatives}
    print(f"{len(used & every)} of {len(every)} alternatives used")
    assert every <= used


def test_there_are_many_forms_and_few_words(told):
    forms, vocabulary = defaultdict(set), set()
    for _, _, level, caption in told:
        forms[level].add(caption.template)
        vocabulary |= {w.lower() for w, t in zip(caption.words, caption.tags, strict=True) if w.isalpha() and w.upper() != w}
    print({level: len(some) for level, some in forms.items()}, len(vocabulary))
    assert len(forms["short"]) > 250 and len(forms["ordinary"]) > 600 and len(forms["detailed"]) > 800
    assert len(vocabulary) < 200


def test_a_changed_graph_is_noticed(told):
    """The parser is not blind: a caption that names colours, shapes or places is false of a scene in which those have changed."""
    noticed = Counter()
    for _, scene, level, caption in told:
        if level != "ordinary" or not scene.objects:
            continue
        graph = graph_of(scene)
        one = graph["objects"][0]
        one["colour"] = COLOURS[(COLOURS.index(one["colour"]) + 1) % len(COLOURS)]
        noticed["colour", bool(false_claims(caption.text, graph))] += 1
        graph = graph_of(scene)
        del graph["objects"][-1]
        noticed["removed", bool(false_claims(caption.text, graph))] += 1
        if scene.relations:
            graph = graph_of(scene)
            for o in graph["objects"]:  # turned by half a turn, every relation of side is another's
                o["x"], o["y"] = 1 - o["x"], 1 - o["y"]
            turned = scene.relations[0].name != "inside"
            noticed["turned", bool(false_claims(caption.text, graph)) or not turned] += 1
    assert all(seen for _, seen in noticed), noticed
    assert min(noticed.values()) >= EACH * N // 2


def test_levels_say_what_they_promise(told):
    for config, scene, level, caption in told:
        kinds = {slot.kind for slot in caption.slots}
        said = claims(caption.text)
        if level == "ordinary":
            coloured = {
                i for kind, phrase, *_ in said if kind == "count" and "colour" in phrase.attributes for i in phrase.fits(graph_of(scene))
            }
            assert coloured == set(range(len(scene.objects))), caption.text
            assert ("relation" in kinds) == bool(scene.relations)
        if level == "detailed":
            sized = {
                i for kind, phrase, *_ in said if kind == "count" and "size" in phrase.attributes for i in phrase.fits(graph_of(scene))
            }
            assert sized == set(range(len(scene.objects))) and "background" in kinds
            assert ("outline" in kinds) or not any(o.outline for o in scene.objects)
        if config == "text":
            assert ("word" in kinds) and any(w == scene.word.text for w in caption.words)
        if level == "paragraph":
            assert LEAST <= caption.text.count(".") <= MOST, caption.text


def _told(attribute, said, scene):
    """The objects of which the claims name the attribute."""
    phrases = [claim[1] for claim in said if claim[0] == "count"]
    return {i for phrase in phrases if attribute in phrase.attributes for i in phrase.fits(graph_of(scene))}


def test_trees_tags_and_slots_fit_the_words(told):
    for _, scene, _, caption in told:
        assert re.findall(r"\((\S+) ([^()\s]+)\)", caption.tree) == list(zip(caption.tags, caption.words, strict=True))
        assert caption.tree.count("(") == caption.tree.count(")") and all(PENN.fullmatch(tag) for tag in caption.tags)
        assert "".join(caption.words) == caption.text.replace(" ", "")
        for slot in caption.slots:
            words = [w.lower() for w in caption.words[slot.start : slot.stop]]
            for i in slot.objects:
                if slot.kind == "colour":
                    assert words == [scene.objects[i].colour]
                if slot.kind == "shape":
                    assert words[0].startswith(scene.objects[i].shape)
            if slot.kind == "count":
                assert len(words) == 1 and len(slot.objects) >= 1
            if slot.kind == "word":
                assert caption.words[slot.start] == scene.word.text
            if slot.kind == "relation":
                assert len(slot.objects) == 2


def test_captions_are_a_function_of_scene_and_generator():
    scene = sample("relations", "train", 7)
    assert captions(scene, "relations", rng(1)) == captions(scene, "relations", rng(1))
    assert len({captions(scene, "relations", rng(k))["ordinary"].text for k in range(40)}) > 30
    with pytest.raises(UserError, match="config 'object'; did you mean 'objects'"):
        captions(scene, "object", rng(0))


def test_swaps_have_the_same_words_and_another_truth():
    for k in range(60):
        one, other = pairs.swap(k)
        a, b = swap_captions(one, other, rng(k))
        bare = [sorted("a" if w == "an" else w for w in c.text.lower().strip(".").replace(",", "").split()) for c in (a, b)]
        assert bare[0] == bare[1] and a.text != b.text
        assert not false_claims(a.text, graph_of(one)) and not false_claims(b.text, graph_of(other))
        assert false_claims(a.text, graph_of(other)) and false_claims(b.text, graph_of(one))


def test_hard_negatives_are_false_by_their_change_alone():
    for k in range(105):
        scene, changed, kind = pairs.hard_negative(k)
        true, false = hard_negative_captions(scene, changed, kind, rng(k))
        assert not false_claims(true.text, graph_of(scene)), true.text
        assert not false_claims(false.text, graph_of(changed)), false.text
        assert false_claims(false.text, graph_of(scene)), (kind, false.text)
        before, after = len(true.words), len(false.words)
        assert {"add": after > before, "swap": after == before}.get(kind[:-4], True)
        new = [s.kind for s in false.slots if not any(t.kind == s.kind and t.objects == s.objects for t in true.slots)]
        if kind == "add_att":
            assert set(new) <= {"size", "outline"} and new
        if kind == "replace_rel":
            assert [w for w in true.words if w.lower() in COLOURS] == [w for w in false.words if w.lower() in COLOURS]


def test_scenes_that_do_not_differ_so_have_no_pair_of_captions():
    scene, changed, _ = pairs.hard_negative(2)
    with pytest.raises(ValueError, match="no captions tell these scenes apart"):
        swap_captions(scene, scene, rng(0))
    with pytest.raises(ValueError, match="no captions tell these scenes apart"):
        hard_negative_captions(scene, dataclasses.replace(scene, background=changed.background), "replace_att", rng(0))


def test_sizes_have_words(told):
    assert {o.size for _, scene, *_ in told for o in scene.objects} == set(SIZES)
