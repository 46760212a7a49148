import io
import math
import pickle

import numpy as np
import pytest
from ml_collections import ConfigDict
from PIL import Image

from mmjax.core.errors import UserError
from mmjax.data import transforms as T


@pytest.fixture
def rng():
    return np.random.default_rng(0)


def picture(h=6, w=8, c=3, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (h, w, c), np.uint8)


def encoded(image, kind="PNG"):
    buffer = io.BytesIO()
    Image.fromarray(image[..., 0] if image.shape[-1] == 1 else image).save(buffer, kind)
    return buffer.getvalue()


def apply(specs, example, rng, tokenizer=None):
    return T.build(specs, tokenizer)(example, rng)


def test_decode(rng):
    colour, grey = picture(c=3), picture(c=1)
    assert np.array_equal(apply([("decode", {})], {"image": encoded(colour)}, rng)["image"], colour)
    assert np.array_equal(apply([("decode", {"channels": 1})], {"image": encoded(grey)}, rng)["image"], grey)
    assert np.array_equal(apply([("decode", {})], {"image": encoded(grey)}, rng)["image"], np.repeat(grey, 3, -1))
    luma = apply([("decode", {"channels": 1})], {"image": encoded(colour)}, rng)["image"]
    np.testing.assert_allclose(luma[..., 0], colour @ [0.299, 0.587, 0.114], atol=1)
    for kind in ("JPEG", "WEBP"):
        assert apply([("decode", {})], {"image": encoded(colour, kind)}, rng)["image"].shape == colour.shape


def test_resize_is_pillows(rng):
    image = picture(40, 60)
    expected = np.asarray(Image.fromarray(image).resize((5, 7), Image.Resampling.BICUBIC))
    assert np.array_equal(apply([("resize", {"size": (7, 5)})], {"image": image}, rng)["image"], expected)
    flat = apply([("resize", {"size": 4})], {"image": np.tile(np.uint8([[0], [255]]), (20, 30))[..., None]}, rng)["image"]
    assert flat.shape == (4, 4, 1) and abs(int(flat[1, 1, 0]) - 127) < 8  # antialiased: stripes average out


def test_resize_short_side_keeps_the_aspect(rng):
    for (h, w), expected in (((40, 60), (8, 12)), ((60, 40), (12, 8)), ((30, 30), (8, 8)), ((3, 5), (8, 13))):
        spec = [("resize", {"size": 8, "short_side": True})]
        assert apply(spec, {"image": picture(h, w)}, rng)["image"].shape == (*expected, 3)


def test_center_crop(rng):
    image = picture(6, 8)
    assert np.array_equal(apply([("center_crop", {"size": 4})], {"image": image}, rng)["image"], image[1:5, 2:6])
    assert np.array_equal(apply([("center_crop", {"size": (6, 2)})], {"image": image}, rng)["image"], image[:, 3:5])


def test_random_crop_takes_every_window_equally_often(rng):
    image = picture(4, 5, 1)
    padded = np.pad(image, ((1, 1), (1, 1), (0, 0)), constant_values=9)
    windows = {padded[i : i + 4, j : j + 5].tobytes(): 0 for i in range(3) for j in range(3)}
    crop = T.build([("random_crop", {"size": (4, 5), "padding": 1, "fill": 9})])
    for _ in range(900):
        windows[crop({"image": image}, rng)["image"].tobytes()] += 1
    assert len(windows) == 9 and min(windows.values()) > 60  # 100 expected, standard deviation 9.4


def test_random_resized_crop_stays_within_its_bounds(rng):
    crop = T.RandomResizedCrop(8, scale=(0.2, 0.5), ratio=(0.5, 2.0))
    shares = []
    for _ in range(300):
        top, left, h, w = crop._window(40, 60, rng)
        assert min(top, left) >= 0 and top + h <= 40 and left + w <= 60
        shares.append(h * w / 2400)
        assert 0.45 < w / h < 2.2 and 0.18 < shares[-1] < 0.53
    assert abs(np.mean(shares) - 0.35) < 0.02
    image = picture(40, 60)
    whole = apply([("random_resized_crop", {"size": 8, "scale": (1, 1), "ratio": (1.5, 1.5)})], {"image": image}, rng)["image"]
    assert np.array_equal(whole, np.asarray(Image.fromarray(image).resize((8, 8), Image.Resampling.BICUBIC)))
    assert T.RandomResizedCrop(8)._window(10, 1000, rng)[2:] == (10, 13)  # nothing fits: widest within 4/3


def test_flip(rng):
    image = picture()
    assert np.array_equal(apply([("flip", {"p": 1.0})], {"image": image}, rng)["image"], image[:, ::-1])
    assert np.array_equal(apply([("flip", {"p": 0.0})], {"image": image}, rng)["image"], image)


@pytest.mark.parametrize("channels", [1, 3])
def test_affine_by_hand(channels):
    image = picture(8, 8, channels)
    assert np.array_equal(T.affine(image, 0.0, 0.0, 0.0, 1.0, 0), image)

    def close(got, expected):  # Pillow cuts fractions off, and cos(pi / 2) is not quite 0: one grey level
        np.testing.assert_allclose(got.astype(int), expected.astype(int), atol=1)

    close(T.affine(image, math.pi, 0.0, 0.0, 1.0, 0), image[::-1, ::-1])
    close(T.affine(image, math.pi / 2, 0.0, 0.0, 1.0, 0), np.rot90(image))  # anticlockwise
    moved = T.affine(image, 0.0, 2 / 8, 1 / 8, 1.0, 7)
    assert np.array_equal(moved[1:, 2:], image[:-1, :-2]) and (moved[0] == 7).all() and (moved[:, :2] == 7).all()
    # A move after a turn goes along the image's axes, not along the turned ones.
    close(T.affine(image, math.pi / 2, 1 / 8, 0.0, 1.0, 0)[:, 1:], np.rot90(image)[:, :-1])


def test_affine_zooms_about_the_centre():
    image = np.zeros((9, 9, 1), np.uint8)
    image[3:6, 3:6] = 200
    assert (T.affine(image, 0.0, 0.0, 0.0, 3.0, 0)[1:8, 1:8] == 200).all()
    small = T.affine(image, 0.0, 0.0, 0.0, 1 / 3, 0)
    assert small[4, 4] == 200 and small.sum() == 200


def test_random_affine_follows_the_generator(rng):
    image, specs = picture(8, 8, 1), [("random_affine", {"degrees": 10, "shift": 0.1, "scale": (0.9, 1.1)})]
    draws = [apply(specs, {"image": image}, np.random.default_rng(s))["image"] for s in (1, 1, 2)]
    assert np.array_equal(draws[0], draws[1]) and not np.array_equal(draws[0], draws[2])
    assert np.array_equal(apply([("random_affine", {})], {"image": image}, rng)["image"], image)


def test_normalize(rng):
    image = np.uint8([[[0, 51, 255]]])
    out = apply([("normalize", {"mean": (0.5, 0.2, 0.0), "std": (0.5, 0.1, 2.0)})], {"image": image}, rng)["image"]
    assert out.dtype == np.float32
    np.testing.assert_allclose(out, [[[-1.0, 0.0, 0.5]]], atol=1e-6)
    assert apply([("normalize", {"mean": 0, "std": 1})], {"image": image}, rng)["image"].max() == 1
    with pytest.raises(UserError, match="uint8"):
        apply([("normalize", {}), ("normalize", {})], {"image": image}, rng)


def test_captions_and_tokens(rng, words):
    example = {"captions": ("the digit one", "a one"), "label": 1}
    seen = {apply([("pick_caption", {})], example, rng)["caption"] for _ in range(30)}
    assert seen == set(example["captions"])
    specs = [
        ("pick_caption", {"index": 1}),
        ("tokenize", {"length": 6}),
        ("keep", {"keys": ("tokens", "label")}),
        ("rename", {"keys": {"label": "y"}}),
    ]
    out = apply(specs, example, rng, words)
    assert set(out) == {"tokens", "y"} and out["tokens"].tolist() == words.encode("a one", 6)[0].tolist()


def test_inputs_are_left_alone(rng, words):
    image = picture(8, 8, 1)
    example = {"image": encoded(image), "captions": ("a one",)}
    before = dict(example)
    specs = (
        ("decode", {"channels": 1}),
        ("random_crop", {"size": 8, "padding": 1}),
        ("flip", {"p": 1.0}),
        ("normalize", {}),
        ("pick_caption", {}),
    )
    apply(specs, example, rng)
    assert example == before


def test_build_takes_what_configs_hold_and_pickles(words):
    specs = (("decode", {"channels": 1}), ("random_affine", {"degrees": 10}), ("pick_caption", {}), ("tokenize", {"length": 8}))
    config = ConfigDict({"transforms": specs})
    chain = T.build(config.transforms, words)
    assert T.build([list(s) for s in specs], words).names == chain.names  # as JSON gives them back
    copy = pickle.loads(pickle.dumps(chain))
    example = {"image": encoded(picture(8, 8, 1)), "captions": ("a one", "a two")}
    one, other = (c(example, np.random.default_rng(3)) for c in (chain, copy))
    assert np.array_equal(one["image"], other["image"]) and np.array_equal(one["tokens"], other["tokens"])


@pytest.mark.parametrize(
    ("specs", "message"),
    [
        ([("decod", {})], r"data\.transforms\[0\]: unknown transform 'decod'; did you mean 'decode'\?"),
        (
            [("flip", {}), ("decode", {"chanels": 1})],
            r"data\.transforms\[1\]: 'decode' has no argument 'chanels'; did you mean 'channels'\?",
        ),
        ([("decode", {"channels": 4})], "channels must be 1 or 3, got 4"),
        ([("decode", {"channels": "1"})], "channels is of type int, got '1'"),
        ([("flip", {"p": True})], r"p is of type int \| float, got True"),
        ([("random_crop", {})], "'random_crop' needs the argument 'size'"),
        ([("random_crop", {"size": 0})], "size is one positive integer"),
        ([("resize", {"size": (8, 8, 8)})], "size is one positive integer"),
        ([("random_affine", {"scale": (0, 1)})], "scale is"),
        ([("tokenize", {"length": 16})], "needs a tokenizer"),
        ([("tokenize", {"tokenizer": 1, "length": 16})], "needs a tokenizer"),
        (["decode"], "expected .*got 'decode'"),
        ([("decode",)], "expected"),
    ],
)
def test_bad_specs(specs, message):
    with pytest.raises(UserError, match=message):
        T.build(specs)


def test_bad_examples(rng, words):
    with pytest.raises(UserError, match="'tokenize': the example has no 'caption'; did you mean 'captions'"):
        apply([("tokenize", {"length": 4})], {"captions": ("a",)}, rng, words)
    with pytest.raises(UserError, match="does not fit"):
        apply([("random_crop", {"size": 9})], {"image": picture(8, 8)}, rng)
    with pytest.raises(UserError, match="has no argument 'tokenizer'"):
        T.build([("tokenize", {"tokenizer": 1, "length": 4})], words)
