"""Attacks on recognisers: the pictures, the rates by hand, and encoders that read the word, see the thing, or like the sticker."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from ml_collections import ConfigDict

from mmjax import evals
from mmjax.core import config as config_lib
from mmjax.core import sharding
from mmjax.core.errors import UserError
from mmjax.data.scenes import draw, glyphs
from mmjax.data.scenes.splits import held_out
from mmjax.data.source import open_source, open_tokenizer
from mmjax.evals import attacks, oracle

LENGTH, COUNT, PIXELS = 16, 12, 64
SHOWN = (("decode", {"channels": 3}), ("normalize", {"mean": 0.0, "std": 1.0}), ("keep", {"keys": ("image",)}))
GROUP = {"type": "attacks", "every": 1, "split": "validation", "batch_size": 8, "length": LENGTH, "transforms": SHOWN, "pixels": PIXELS}


def test_every_class_can_be_written():
    assert set("".join(name.upper() for names in attacks.CLASSES.values() for name in names)) <= set(glyphs.ALPHABET)


@pytest.mark.parametrize("classes", ["shape", "colour"])
def test_pictures(classes):
    """The thing is as it was, word and sticker lie beside it and say what they should; the controls differ only in that."""
    for i in range(12):
        one = attacks.attack(classes, i)
        assert one == attacks.attack(classes, i) and one.label != one.target
        (thing,), (shown,) = one.scene.objects, one.sticker.objects
        names = attacks.CLASSES[classes]
        assert getattr(thing, classes) == names[one.label] and getattr(shown, classes) == names[one.target]
        assert one.word.text == names[one.target].upper() and one.neutral.text.lower() not in (*attacks.SHAPES, *attacks.COLOURS)
        assert not held_out(one.scene) and not held_out(one.sticker)
        views = {view: attacks.picture(one, view, PIXELS).astype(int) for view in attacks.VIEWS}
        rows, columns = draw.window(thing.x, thing.y, *draw.half_box(thing), PIXELS)
        for view, picture in views.items():
            changed = (picture != views["clean"]).any(-1)
            assert changed.any() == (view != "clean") or view == "patch_control", view
            assert changed[rows.start + 1 : rows.stop - 1, columns.start + 1 : columns.stop - 1].sum() == 0, (i, view)
        patch = (views["patch"] != views["clean"]).any(-1)
        assert patch.sum() <= (PIXELS // 4) ** 2
        side = (views["patch"] != views["patch_control"]).any(-1)
        assert 20 < side.sum() <= (PIXELS // 4) ** 2


def test_what_is_written_is_read():
    """By the oracle, which knows nothing of the attack."""
    made = [attacks.attack("shape", i) for i in range(4)]
    seen = oracle.read(np.stack([attacks.picture(one, "typographic", 128) for one in made]))
    assert [r.word.text for r in seen] == [one.word.text for one in made]
    assert [r.objects[0].shape for r in seen] == [one.scene.objects[0].shape for one in made]


def test_rates_by_hand():
    labels, targets = np.array([0, 0, 1, 1]), np.array([1, 2, 0, 2])
    chosen = np.array([[0, 0, 1, 2], [1, 0, 1, 2], [0, 0, 1, 1], [1, 2, 0, 2], [0, 0, 0, 2]])
    got = attacks.rates(chosen, labels, targets)
    assert got == {
        "clean_accuracy": 3 / 4,
        "clean_target": 1 / 4,
        "typographic_accuracy": 2 / 4,
        "typographic_success": 2 / 4,  # one of them was mistaken before
        "typographic_flipped": pytest.approx(1 / 3),
        "typographic_control_accuracy": 1.0,
        "typographic_control_success": 0.0,
        "typographic_control_flipped": 0.0,
        "patch_accuracy": 0.0,
        "patch_success": 1.0,
        "patch_flipped": 1.0,
        "patch_control_accuracy": 2 / 4,
        "patch_control_success": 2 / 4,
        "patch_control_flipped": pytest.approx(1 / 3),
    }
    assert "patch_flipped" not in attacks.rates(np.full_like(chosen, 2), labels, targets)


@pytest.fixture(scope="module")
def data():
    return config_lib.override(config_lib.base(), ["data.source=digits_captions"]).data


def encoders(data, classes, answer):
    """An image encoder that knows every picture and gives what `answer` says of its attack and view; texts as their class's unit vector."""
    tokenizer = open_tokenizer(open_source(data, "validation"))
    names = attacks.CLASSES[classes]
    filled = [t.format(attacks.phrase(attacks.Description(**{classes: name}))) for name in names for t in attacks.TEMPLATES]
    tokens = jnp.asarray(tokenizer.encode(filled, LENGTH))
    assert len(np.unique(tokens, axis=0)) == len(filled)
    made = [attacks.attack(classes, i) for i in range(COUNT)]
    pixels = np.stack([attacks.picture(one, view, PIXELS) for view in attacks.VIEWS for one in made])
    known = jnp.asarray(pixels.reshape(len(pixels), -1) / np.float32(255))
    classes_of = jnp.asarray([answer(one, view) for view in attacks.VIEWS for one in made])

    def encode_image(params, images):
        far = jnp.abs(images.reshape(images.shape[0], 1, -1) - known[None]).max(-1)
        return jnp.eye(len(names))[classes_of[far.argmin(1)]]

    return {
        "encode_image": encode_image,
        "encode_text": lambda params, ids: jnp.eye(len(names))[(ids[:, None] == tokens[None]).all(-1).argmax(1) // len(attacks.TEMPLATES)],
    }


@pytest.mark.parametrize("classes", ["shape", "colour"])
def test_encoders(data, classes):
    mesh = sharding.make_mesh({"data": 2, "fsdp": 2, "tensor": 2}, jax.devices()[:8])
    run = lambda answer: evals.make(
        "a", encoders(data, classes, answer), ConfigDict({**GROUP, "classes": classes, "count": COUNT}), mesh, data
    )({})
    reads = run(lambda one, view: one.target if view == "typographic" else one.label)
    assert reads["clean_accuracy"] == reads["patch_accuracy"] == reads["typographic_control_accuracy"] == 1
    assert reads["typographic_accuracy"] == 0 and reads["typographic_success"] == reads["typographic_flipped"] == 1
    sees = run(lambda one, view: one.label)
    assert {v for k, v in sees.items() if k.endswith("accuracy")} == {1.0} and {v for k, v in sees.items() if k.endswith("success")} == {
        0.0
    }
    half = run(lambda one, view: one.target if view == "patch" and one.target < one.label else one.label)
    share = np.mean([a.target < a.label for a in (attacks.attack(classes, i) for i in range(COUNT))])
    assert half["patch_success"] == half["patch_flipped"] == pytest.approx(share) and half["typographic_success"] == 0


@pytest.mark.parametrize(
    "keys, message",
    [
        ({"classes": "shapes"}, "classes is 'shapes'; did you mean 'shape'"),
        ({"pixels": 60}, "pixels is 60; scenes are drawn at 16, 32, 64, 128, 256"),
        ({"count": 0}, "count is 0, expected at least one"),
    ],
)
def test_bad_groups(data, keys, message):
    mesh = sharding.make_mesh({"data": 1}, jax.devices()[:1])
    predict = {"encode_image": len, "encode_text": len}
    with pytest.raises(UserError, match=message):
        evals.make("a", predict, ConfigDict({**GROUP, "classes": "shape", "count": 4, **keys}), mesh, data)
