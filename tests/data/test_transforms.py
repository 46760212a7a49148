import io
import math
import pickle

import numpy as np
import pytest
from ml_collections import ConfigDict
from PIL import Image

from mmjax.core.errors import UserError
from mmjax.data import transforms as T
from mmjax.data.bad import BadSample


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
    with pytest.raises(BadSample, match="small: .*does not fit"):
        apply([("random_crop", {"size": 9})], {"image": picture(8, 8)}, rng)
    with pytest.raises(UserError, match="has no argument 'tokenizer'"):
        T.build([("tokenize", {"tokenizer": 1, "length": 4})], words)


@pytest.mark.parametrize("method", ["nearest", "box", "bilinear", "hamming", "bicubic", "lanczos"])
@pytest.mark.parametrize("size", [(7, 5), (13, 90)])
def test_every_resize_method_is_pillows(rng, method, size):
    for image in (picture(23, 37), picture(23, 37, 1)):
        pil = Image.fromarray(image[..., 0] if image.shape[-1] == 1 else image)
        expected = np.asarray(pil.resize(size[::-1], Image.Resampling[method.upper()])).reshape(*size, -1)
        assert np.array_equal(apply([("resize", {"size": size, "method": method})], {"image": image}, rng)["image"], expected)
    with pytest.raises(UserError, match="unknown method 'bicubi'; did you mean 'bicubic'"):
        T.build([("resize", {"size": 4, "method": "bicubi"})])


def test_pad_to_square(rng):
    image = picture(3, 6)
    out = apply([("pad_to_square", {"fill": (1, 2, 3)})], {"image": image}, rng)["image"]
    assert out.shape == (6, 6, 3) and np.array_equal(out[1:4], image)
    assert (out[[0, 4, 5]] == [1, 2, 3]).all()
    tall = apply([("pad_to_square", {})], {"image": picture(5, 2, 1)}, rng)["image"]
    assert tall.shape == (5, 5, 1) and np.array_equal(tall[:, 1:3], picture(5, 2, 1)) and not tall[:, [0, 3, 4]].any()
    assert np.array_equal(apply([("pad_to_square", {})], {"image": picture(4, 4)}, rng)["image"], picture(4, 4))
    with pytest.raises(UserError, match="fill is one number or 3"):
        apply([("pad_to_square", {"fill": (1, 2)})], {"image": image}, rng)


LUMA = np.array([0.299, 0.587, 0.114])


class Fixed(np.random.Generator):
    """A generator whose permutation and uniform draws are given."""

    def __new__(cls, order, draws):
        return super().__new__(cls, np.random.PCG64(0))

    def __init__(self, order, draws):
        super().__init__(np.random.PCG64(0))
        self.order, self.draws = order, draws

    def permutation(self, n):
        return np.array(self.order)

    def random(self, n):
        return np.array(self.draws)


def jitter(image, spec, order=(0, 1, 2, 3), draws=(1.0, 1.0, 1.0, 1.0)):
    return T.ColorJitter(**spec)({"image": image}, Fixed(order, draws))["image"].astype(float)


def test_color_jitter_by_formula():
    image = picture(9, 7)
    x, luma = image.astype(float), np.round(image @ LUMA)[..., None]
    mean = np.floor(luma.mean() + 0.5)
    close = lambda got, expected: np.testing.assert_allclose(got, np.clip(expected, 0, 255), atol=1.01)
    close(jitter(image, {"brightness": 0.4}), 1.4 * x)
    close(jitter(image, {"brightness": 0.4}, draws=(0.0,) * 4), 0.6 * x)
    close(jitter(image, {"brightness": 2}, draws=(0.0,) * 4), 0 * x)  # not below zero
    close(jitter(image, {"contrast": 0.5}), mean + 1.5 * (x - mean))
    close(jitter(image, {"saturation": 0.5}, draws=(0.5,) * 4), x)
    np.testing.assert_allclose(jitter(image, {"saturation": 0.5}, draws=(0.0,) * 4), luma + 0.5 * (x - luma), atol=1.6)
    # Half a turn of the hue: red to cyan, and greys stay.
    half = jitter(np.uint8([[[200, 0, 0], [0, 0, 250], [77, 77, 77]]]), {"hue": 0.5}, draws=(0, 0, 0, 1.0))
    np.testing.assert_allclose(half, [[[0, 200, 200], [250, 250, 0], [77, 77, 77]]], atol=8)
    third = jitter(np.uint8([[[200, 0, 0]]]), {"hue": 1 / 3}, draws=(0, 0, 0, 1.0))
    np.testing.assert_allclose(third, [[[0, 200, 0]]], atol=8)
    assert np.array_equal(jitter(picture(c=1), {"hue": 0.5, "saturation": 1.0}), picture(c=1))


def test_color_jitter_order_matters_and_follows_the_generator():
    image = picture(9, 7)
    spec = {"brightness": 0.8, "contrast": 0.8, "saturation": 0.8, "hue": 0.2}
    assert not np.array_equal(jitter(image, spec, (0, 1, 2, 3)), jitter(image, spec, (3, 2, 1, 0)))
    # Brightness clips at white first, contrast works on what is left; the other way round differs as the formulas say.
    bright = np.clip(1.8 * image.astype(float), 0, 255)
    mean = np.floor(np.round(bright @ LUMA).mean() + 0.5)
    np.testing.assert_allclose(
        jitter(image, {"brightness": 0.8, "contrast": 0.8}, (0, 1, 2, 3)), np.clip(mean + 1.8 * (bright - mean), 0, 255), atol=3
    )
    draws = [T.ColorJitter(**spec)({"image": image}, np.random.default_rng(s))["image"] for s in (1, 1, 2)]
    assert np.array_equal(draws[0], draws[1]) and not np.array_equal(draws[0], draws[2])
    # What comes after does not depend on which of the four are on.
    a, b = np.random.default_rng(0), np.random.default_rng(0)
    T.ColorJitter()({"image": image}, a), T.ColorJitter(**spec)({"image": image}, b)
    assert a.random() == b.random()
    with pytest.raises(UserError, match="hue 0 to 0.5"):
        T.build([("color_jitter", {"hue": 0.6})])


def saved(pil, kind="PNG", **options):
    buffer = io.BytesIO()
    pil.save(buffer, kind, **options)
    return buffer.getvalue()


def decoded(data, **options):
    return T.Decode(**options)({"image": data}, np.random.default_rng(0))["image"]


def test_decode_of_modes():
    colour = picture(5, 4)
    alpha = np.uint8([[0, 255, 128, 255]] * 5)
    rgba = saved(Image.fromarray(np.dstack([colour, alpha])))
    assert np.array_equal(decoded(rgba), colour)  # transparency is dropped
    over = decoded(rgba, background=255).astype(float)
    a = alpha[..., None] / 255
    np.testing.assert_allclose(over, colour * a + 255 * (1 - a), atol=1)
    assert (decoded(rgba, background=7)[:, 0] == 7).all()
    palette = Image.fromarray(colour).quantize(16)
    assert np.array_equal(decoded(saved(palette)), np.asarray(palette.convert("RGB")))
    assert np.array_equal(decoded(saved(palette, transparency=3)), np.asarray(palette.convert("RGB")))
    cmyk = Image.fromarray(colour).convert("CMYK")
    assert np.array_equal(
        decoded(saved(cmyk, "JPEG", quality=100)), np.asarray(Image.open(io.BytesIO(saved(cmyk, "JPEG", quality=100))).convert("RGB"))
    )
    bits = Image.fromarray(colour[..., 0] > 100)
    assert np.array_equal(decoded(saved(bits), channels=1)[..., 0], np.where(colour[..., 0] > 100, 255, 0))
    grey_alpha = Image.fromarray(np.dstack([colour[..., 0], alpha]), "LA")
    assert np.array_equal(decoded(saved(grey_alpha), channels=1)[..., 0], colour[..., 0])


def test_decode_of_sixteen_bits():
    wide = np.uint16([[0, 128, 129, 257, 32768, 65407, 65408, 65535]])
    out = decoded(saved(Image.fromarray(wide)), channels=1)
    assert out[0, :, 0].tolist() == np.round(wide[0] / 65535 * 255).astype(int).tolist()
    assert decoded(saved(Image.fromarray(wide))).shape == (1, 8, 3)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_decode_turns_upright(orientation):
    from PIL import ImageOps

    image = Image.fromarray(np.kron(picture(2, 3), np.ones((16, 16, 1), np.uint8)))
    exif = Image.Exif()
    exif[0x0112] = orientation
    data = saved(image, "JPEG", quality=95, exif=exif)
    stored = Image.open(io.BytesIO(data))
    assert np.array_equal(decoded(data), np.asarray(ImageOps.exif_transpose(stored)))
    assert np.array_equal(decoded(data, upright=False), np.asarray(stored))
    if orientation == 6:  # by hand: the stored picture's left column becomes the top row
        assert np.array_equal(decoded(data)[0], np.asarray(stored)[::-1, 0])


def test_bad_images_say_what_they_are(rng, words):
    good = saved(Image.fromarray(picture(40, 60)))
    jpeg = saved(Image.fromarray(picture(40, 60)), "JPEG")
    broken = bytearray(good)
    broken[len(good) // 2] ^= 255
    huge = bytearray(saved(Image.new("L", (1, 1))))
    huge[16:24] = (40_000).to_bytes(4, "big") * 2
    import struct
    import zlib

    huge[29:33] = struct.pack(">I", zlib.crc32(bytes(huge[12:29])))
    cases = (
        (b"", {}, "empty_file"),
        (None, {}, "missing"),
        (b"<html>404</html>", {}, "undecodable"),
        (good[:30], {}, ("truncated", "undecodable")),
        (jpeg[: len(jpeg) // 2], {}, "truncated"),
        (good[: len(good) // 2], {}, "truncated"),
        (bytes(broken), {}, "undecodable"),
        (bytes(huge), {}, "bomb"),
        (saved(Image.fromarray(picture(10, 61))), {"max_aspect": 6}, "aspect"),
        (saved(Image.fromarray(picture(61, 10))), {"max_aspect": 6.0}, "aspect"),
        (saved(Image.fromarray(picture(40, 63))), {"min_side": 41}, "small"),
    )
    for data, options, kind in cases:
        with pytest.raises(BadSample) as e:
            decoded(data, **options)
        assert e.value.kind in kind, (kind, str(e.value))
        assert "\n" not in str(e.value) and len(str(e.value)) < 250
    assert decoded(saved(Image.fromarray(picture(10, 60))), max_aspect=6, min_side=10).shape == (10, 60, 3)
    for value, kind in (("", "empty_text"), (" \n\t", "empty_text"), (b"caf\xe9", "bad_text"), (None, "missing")):
        with pytest.raises(BadSample) as e:
            T.Tokenize(words, 8)({"caption": value}, rng)
        assert e.value.kind == kind
    assert T.Tokenize(words, 8, allow_empty=True)({"caption": ""}, rng)["tokens"].shape == (8,)
    assert np.array_equal(T.Tokenize(words, 8)({"caption": b"a one"}, rng)["tokens"], words.encode("a one", 8)[0])
    with pytest.raises(BadSample, match="missing: no caption"):
        T.PickCaption()({"captions": ()}, np.random.default_rng(0))


def test_limits_reach_decode():
    limits = {"max_aspect": 3.0, "min_side": None}
    assert T.build([("decode", {})], limits=limits).steps[0].max_aspect == 3.0
    assert T.build([("decode", {"max_aspect": 9})], limits=limits).steps[0].max_aspect == 9
    with pytest.raises(UserError, match="max_aspect is a ratio of at least 1"):
        T.build([("decode", {})], limits={"max_aspect": 0.5})


def test_normalize_is_the_formula_bit_for_bit(rng):
    image = picture(7, 5)[:, ::-1]
    mean, std = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
    expected = (image * np.float32(1 / 255) - np.float32(mean)) / np.float32(std)
    assert np.array_equal(T.Normalize(mean, std)({"image": image}, rng)["image"], expected)
    assert T.Normalize(0.5, 0.5)({"image": picture(c=1)}, rng)["image"].shape == (6, 8, 1)


def test_normalising_is_left_for_the_batch_where_nobody_sees_the_difference(words):
    normalize = ("normalize", {"mean": (0.1, 0.2, 0.3)})
    for specs, deferrable in (
        ([("decode", {}), normalize], True),
        ([("decode", {}), normalize, ("pick_caption", {}), ("tokenize", {"length": 4}), ("keep", {"keys": ("image", "tokens")})], True),
        ([("decode", {}), normalize, ("keep", {"keys": ("label",)})], False),
        ([("decode", {}), normalize, ("rename", {"keys": {"image": "x"}})], False),
        ([("decode", {}), normalize, ("tokenize", {"length": 4, "target": "image"})], False),
        ([("decode", {})], False),
    ):
        chain = T.build(specs, words)
        rest, step = chain.deferred()
        assert (step is not None) == deferrable and rest.names == tuple(n for n in chain.names if n != "normalize" or not deferrable)
    images = np.stack([picture(seed=s) for s in range(3)])
    whole = T.Normalize((0.1, 0.2, 0.3)).batch(images)
    for image, out in zip(images, whole, strict=True):
        assert np.array_equal(T.Normalize((0.1, 0.2, 0.3))({"image": image}, np.random.default_rng(0))["image"], out)
