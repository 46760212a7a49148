"""Every config's examples: they hold what their features say, and every text, answer and target follows from the stored scene graph."""

import io
import json

import numpy as np
import pytest
from PIL import Image

from mmjax.core.errors import UserError
from mmjax.data.scenes import draw, edit_language, world
from mmjax.data.scenes import program as drawing
from mmjax.data.scenes.examples import CONFIGS, example
from mmjax.data.scenes.question_programs import answer
from mmjax.data.scenes.splits import held_out

PIXELS = 32
CASES = [(config, split) for config, kind in CONFIGS.items() for split in kind.splits]
KINDS = {"image": bytes, "images": list, "text": str, "texts": list, "integers": list}


def picture(png: bytes) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(png)))


def programs(value):
    """JSON has no tuples."""
    return tuple(programs(v) for v in value) if isinstance(value, list) else value


@pytest.fixture(scope="module", params=CASES, ids="/".join)
def made(request):
    config, split = request.param
    return config, split, [example(config, split, i, PIXELS) for i in range(12)]


def test_features_and_pictures(made):
    config, split, examples = made
    for one in examples:
        assert {name: type(value) for name, value in one.items()} == {n: KINDS[k] for n, k in CONFIGS[config].features.items()}
        for name, kind in CONFIGS[config].features.items():
            for png in {"image": [one[name]], "images": one[name]}.get(kind, ()):
                assert picture(png).shape == (PIXELS, PIXELS, 3)
            if kind in ("text", "texts") and name not in ("answer", "scene", "scenes"):
                assert one[name] and all(one[name])
    assert example(config, split, 7, PIXELS) == examples[7]  # in any order
    assert len({json.dumps([v for v in one.values() if isinstance(v, str)]) for one in examples}) == len(examples)


def test_scene_graphs_draw_the_pictures_and_keep_to_their_split(made):
    config, split, examples = made
    for one in examples:
        graphs = json.loads(one.get("scene") or one["scenes"])
        scenes = [world.scene(g) for g in (graphs if isinstance(graphs, list) else [graphs])]
        if config == "hard_negatives":
            pictures, drawn = [one["image"]], scenes[:1]
        elif config == "edit":
            pictures, drawn = [one["image"], one["target"]], scenes
        elif config == "video":
            pictures, drawn = [], []
        else:
            pictures, drawn = one["images"] if "images" in one else [one["image"]], scenes
        assert len(pictures) == len(drawn)
        for png, scene in zip(pictures, drawn, strict=True):
            np.testing.assert_array_equal(picture(png), draw.render(scene, PIXELS))
        if split == "unseen" and config not in ("few_shot", "interleaved"):
            assert held_out(scenes[-1])
        if split in ("train", "validation", "biased", "swaps", "hard_negatives"):
            assert not any(map(held_out, scenes))


def test_answers_follow_from_the_scene(made):
    config, _, examples = made
    for one in examples:
        if config == "qa":
            objects = world.scene(json.loads(one["scene"])).objects
            assert answer(programs(json.loads(one["program"])), objects) == one["answer"]
        if config == "dialogue":
            objects = world.scene(json.loads(one["scene"])).objects
            assert [answer(programs(p), objects) for p in json.loads(one["programs"])] == one["answers"]


def test_programs_and_edits_make_what_is_stored(made):
    config, _, examples = made
    for one in examples:
        if config == "program":
            assert drawing.execute(drawing.parse(one["program"])) == world.scene(json.loads(one["scene"]))
        if config == "edit":
            before, after = (world.scene(g) for g in json.loads(one["scenes"]))
            assert edit_language.apply(edit_language.edit(json.loads(one["edit"])), before) == after
            assert not np.array_equal(picture(one["image"]), picture(one["target"]))


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("object", "train", 0, 32), "'object'; did you mean 'objects'"),
        (("objects", "swap", 0, 32), "no split 'swap'"),
        (("swaps", "train", 0, 32), "no split 'train'"),
        (("objects", "train", 0, 48), "not 48"),
    ],
)
def test_what_there_is_none_of(arguments, says):
    with pytest.raises(UserError, match=says):
        example(*arguments)
