"""Winoground, SugarCrepe and ARO: the rules on matrices worked by hand, ties above all, and the evaluators on a model that is known."""

import io
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from ml_collections import ConfigDict
from PIL import Image

from mmjax import evals
from mmjax.core import config as config_lib
from mmjax.core import sharding
from mmjax.core.errors import UserError
from mmjax.data.source import open_source, open_tokenizer
from mmjax.evals import aro, compositional, sugarcrepe, winoground
from tests.evals.test_annotations import Records

LENGTH = 16
SHOWN = (("decode", {"channels": 3}), ("resize", {"size": 8}), ("normalize", {"mean": 0.0, "std": 1.0}), ("keep", {"keys": ("image",)}))
COMMON = {"every": 1, "split": "validation", "batch_size": 4, "length": LENGTH, "transforms": SHOWN, "annotations": "", "images": ""}
COLOURS = {"red": (255, 0, 0), "green": (0, 255, 0), "blue": (0, 0, 255), "white": (255, 255, 255)}


def test_winoground_rules():
    matrices = np.array(
        [
            [[0.9, 0.1], [0.2, 0.8]],  # all right
            [[0.6, 0.5], [0.7, 0.8]],  # each picture prefers its caption; caption 0 prefers picture 1
            [[0.6, 0.7], [0.5, 0.8]],  # each caption prefers its picture; picture 0 prefers caption 1
            [[0.5, 0.5], [0.1, 0.8]],  # a tie of captions: no text point; the pictures are right
            [[0.5, 0.1], [0.5, 0.8]],  # a tie of pictures: no image point
        ]
    )
    got = winoground.score(matrices, ["object", "object", "relation", "", ""])
    assert got == pytest.approx({"text": 3 / 5, "image": 3 / 5, "group": 1 / 5, "group_object": 1 / 2, "group_relation": 0})


def test_sugarcrepe_rules():
    matrices = np.array([[[0.6, 0.5]], [[0.5, 0.5]], [[0.4, 0.5]], [[0.6, 0.1]]])  # a tie is wrong
    got = sugarcrepe.score(matrices, ["add_att", "add_att", "add_att", "swap_obj"])
    assert got == pytest.approx({"accuracy": 1 / 2, "mean_per_type": 2 / 3, "add_att": 1 / 3, "swap_obj": 1})


def test_aro_rules():
    pairs = np.array([[[0.4, 0.6]], [[0.5, 0.5]], [[0.4, 0.6]]])  # (false, true): a tie is wrong
    got = aro.relation(pairs, ["on", "on", "near"])
    assert got == pytest.approx({"accuracy": 2 / 3, "mean_per_relation_all": 3 / 4, "mean_per_relation": 1 / 2})  # "near" is not published
    many = np.concatenate([np.repeat(pairs[:1], 20, 0), np.repeat(pairs[1:2], 5, 0), np.repeat(pairs[:1], 24, 0)])
    got = aro.attribution(many, ["old_red"] * 25 + ["new_red"] * 24)
    assert got == pytest.approx({"accuracy": 44 / 49, "mean_per_pair": 20 / 25})  # 24 cases do not count
    five = np.array([[[0.5, 0.5, 0.1, 0.5, 0.2]], [[0.5, 0.6, 0.1, 0.2, 0.1]]])  # the true one first: a tie is right
    assert aro.order(five, ["", ""]) == {"precision_at_1": 0.5}
    assert len(aro.DROPPED) == 157 and {"parked in front of", "by", "of"} < aro.DROPPED and "in front of" not in aro.DROPPED


@pytest.fixture(scope="module")
def data():
    return config_lib.override(config_lib.base(), ["data.source=digits_captions"]).data


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    root = tmp_path_factory.mktemp("pictures")
    for name, colour in COLOURS.items():
        Image.new("RGB", (12, 10), colour).save(root / f"{name}.png")
    halves = Image.new("RGB", (12, 10), COLOURS["red"])
    halves.paste(COLOURS["blue"], (6, 0, 12, 10))
    halves.save(root / "halves.png")
    return root


@pytest.fixture(scope="module")
def predict(data):
    """Pictures are their mean colour; captions the colour they name, times its place in the list: nothing is of unit norm."""
    tokenizer = open_tokenizer(open_source(data, "validation"))
    words = [f"{prefix}{name}{suffix}" for name in COLOURS for prefix in ("", "a ", "the ") for suffix in ("", " one")]
    tokens = jnp.asarray(tokenizer.encode(words, LENGTH))
    assert len(np.unique(tokens, axis=0)) == len(words)
    table = jnp.asarray([(i + 1) * np.array(COLOURS[name], np.float32) for i, name in enumerate(COLOURS) for _ in range(6)])
    return {
        "encode_image": lambda params, images: 3 * images.mean((1, 2)),
        "encode_text": lambda params, ids: table[(ids[:, None] == tokens[None]).all(-1).argmax(1)],
    }


def mesh():
    return sharding.make_mesh({"data": 2, "fsdp": 2, "tensor": 2}, jax.devices()[:8])


def run(predict, data, folder, kind, value, name="annotations.json"):
    path = folder / name
    path.write_text(json.dumps(value))
    group = ConfigDict({"type": kind, **COMMON, "annotations": str(path), "images": str(folder)})
    return evals.make("e", predict, group, mesh(), data)({})


def test_winoground_from_files(predict, data, folder):
    right = {"image_0": "red", "image_1": "blue", "caption_0": "red", "caption_1": "a blue", "collapsed_tag": "Both"}
    wrong = {**right, "caption_0": "blue one", "caption_1": "red one"}
    got = run(predict, data, folder, "winoground", [right, wrong])
    assert got == {"text": 0.5, "image": 0.5, "group": 0.5, "group_both": 0.5}


def test_equal_captions_tie(predict, data, folder):
    """Three wordings of one embedding's direction: white ties exactly, and each benchmark has its own rule for that."""
    case = {"filename": "white.png", "caption": "red", "negative_caption": "the red"}
    assert run(predict, data, folder, "sugarcrepe", {"0": case}, "swap_obj.json")["accuracy"] == 0.0
    shuffled = [{"image": "white.png", "caption_options": ["red", "the red", "red one"]}]
    assert run(predict, data, folder, "aro", shuffled) == {"precision_at_1": 1.0}


def test_lengths_of_embeddings_do_not_count(predict, data, folder):
    """White's vector is the longest by far: its inner product with red is the largest, its cosine is not."""
    case = {"filename": "red.png", "caption": "red", "negative_caption": "white"}
    assert run(predict, data, folder, "sugarcrepe", {"0": case}, "swap_att.json")["accuracy"] == 1.0
    pair = {"image_0": "red", "image_1": "white", "caption_0": "red", "caption_1": "white"}
    assert run(predict, data, folder, "winoground", [pair]) == {"text": 1.0, "image": 1.0, "group": 1.0}


def test_a_missing_picture_costs_its_cases_only(predict, data, folder):
    cases = {str(i): {"filename": f, "caption": "a red", "negative_caption": "a blue"} for i, f in enumerate(("red.png", "gone.png"))}
    got = run(predict, data, folder, "sugarcrepe", cases, "replace_att.json")
    assert got == {"accuracy": 1.0, "mean_per_type": 1.0, "replace_att": 1.0, "bad_samples": 1.0}
    with pytest.raises(UserError):
        run(predict, data, folder, "sugarcrepe", {"0": cases["1"]}, "replace_att.json")


def test_aro_looks_into_the_box(predict, data, folder):
    box = {"image_path": "halves.png", "bbox_y": 0, "bbox_w": 6, "bbox_h": 10, "relation_name": "on"}
    left = {**box, "bbox_x": 0, "true_caption": "red", "false_caption": "blue"}
    right = {**box, "bbox_x": 6, "true_caption": "blue", "false_caption": "red"}
    assert run(predict, data, folder, "aro", [left, right])["accuracy"] == 1.0
    assert run(predict, data, folder, "aro", [left, {**right, "bbox_x": 0}])["accuracy"] == 0.5


def png(name):
    buffer = io.BytesIO()
    Image.new("RGB", (12, 10), COLOURS[name]).save(buffer, "PNG")
    return buffer.getvalue()


def test_from_a_source(predict, data, monkeypatch):
    config = config_lib.override(config_lib.base(), ["data.source=digits_captions"]).data
    config.tokenizer = str(open_source(data, "validation").info.tokenizer)
    swaps = Records({"images": (png("red"), png("blue")), "captions": ("red", "blue"), "type": "colour"}, None)
    monkeypatch.setattr(compositional, "open_source", lambda *a: swaps)
    got = evals.make("e", predict, ConfigDict({"type": "winoground", **COMMON}), mesh(), config)({})
    assert got == {"text": 1.0, "image": 1.0, "group": 1.0, "group_colour": 1.0}
    negatives = Records({"image": png("red"), "captions": ("red", "blue"), "type": "replace_att"})
    monkeypatch.setattr(compositional, "open_source", lambda *a: negatives)
    got = evals.make("e", predict, ConfigDict({"type": "sugarcrepe", **COMMON}), mesh(), config)({})
    assert got["replace_att"] == 1.0
    with pytest.raises(UserError, match=r"source 'records' \(test\), record 0 has no 'images'; did you mean 'image'\?"):
        evals.make("e", predict, ConfigDict({"type": "winoground", **COMMON}), mesh(), config)


@pytest.mark.parametrize(
    "kind, keys, message",
    [
        ("winoground", {"annotations": "x.json"}, "annotations is 'x.json' and images ''; set both, or neither"),
        ("sugarcrepe", {"annotations": "x.json", "images": "/nowhere/at all"}, "images: folder '/nowhere/at all' does not exist"),
        ("aro", {}, "annotations is ''; name one of ARO's files"),
        ("aro", {"annotation": ""}, "unknown key 'annotation'; did you mean 'annotations'"),
    ],
)
def test_bad_groups(predict, data, kind, keys, message):
    with pytest.raises(UserError, match=message):
        evals.make("e", predict, ConfigDict({"type": kind, **COMMON, **keys}), mesh(), data)
