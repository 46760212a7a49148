"""Flamingo's networks: who sees which picture, what it is before training, with and without a cache, and its published sizes.

Against other code they are tested where their weights are read: tests/convert/test_flamingo_weights.py.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mmjax.core import tree
from mmjax.core.errors import UserError
from mmjax.core.sharding import RULES
from mmjax.layers import LayerNorm, Mlp, split_axes, unstack_params
from mmjax.layers.decoder import DecoderAttention
from mmjax.models import flamingo
from mmjax.models.flamingo import check_images
from mmjax.models.gated_xattn import GatedCrossAttention
from mmjax.models.perceiver import FrameEmbedding, MlpResampler, Perceiver
from tests.golden.weights import normal, tensor
from tests.models.torch_layouts import deviation

IMAGE, END, VOCAB = 18, 17, 19  # the last two of them new tokens
# Alayrac et al. 2022, figure 7: `BOS Cute EOC IMG my dog EOC IMG my cat EOC`, and which image each token sees.
WORDS = np.array([[0, 1, END, IMAGE, 3, 4, END, IMAGE, 3, 5, END]], np.int32)
SEES = np.array([[0, 0, 0, 1, 1, 1, 1, 2, 2, 2, 2]])
FIELDS = {
    "vision": {"patch": 8, "width": 12, "depth": 1, "heads": 2, "mlp": 16, "pre_norm": True},
    "resampler": {"form": "flamingo", "width": 12, "depth": 2, "heads": 2, "head_width": 4, "mlp": 16, "latents": 3, "frames": 4},
    "xattn": {"form": "flamingo", "heads": 2, "head_width": 6, "mlp": 24},
    "lm": {"vocab": VOCAB - 2, "length": 16, "width": 16, "depth": 3, "heads": 2, "mlp": 24},
    **{"every": 2, "image_token": IMAGE, "new_tokens": 2, "size": 16},
}
VANILLA = {"form": "vanilla", "heads": 2, "head_width": 6}
PIXELS = jnp.asarray(normal("pixels", (2, 2, 1, 16, 16, 3)))
TWO = jnp.array([2, 2])


def tiny(lm=(), **more):
    return flamingo.build({**FIELDS, "lm": {**FIELDS["lm"], **dict(lm)}, **more})


def drawn(init, *inputs):
    """Parameters as numbers that depend on their paths alone: nothing to compile, no gain is one, no gate closed."""
    shapes = tree.flatten(split_axes(jax.eval_shape(init, jax.random.key(0), *inputs))[0])
    return tree.unflatten({path: jnp.asarray(tensor(path, x.shape)) for path, x in shapes.items()})


MODEL = tiny()


@pytest.fixture(scope="module")
def params():
    return drawn(MODEL.init)


@functools.cache
def logits(model):
    return jax.jit(lambda params, tokens, **how: model(params, tokens, **how))


@pytest.fixture(scope="module")
def rows():
    """Two rows of two images: the worked example, and one with images elsewhere."""
    return jnp.asarray(np.concatenate([WORDS, np.array([[IMAGE, 2, 9, 8, 3, IMAGE, 1, 1, 6, END, 4]], np.int32)]))


@pytest.fixture(scope="module")
def whole(params, rows):
    return logits(MODEL)(params, rows, pixels=PIXELS, images=TWO)


# Who sees what.


def test_masks_are_the_worked_example():
    first, last = MODEL.index(jnp.asarray(WORDS))
    np.testing.assert_array_equal(last, SEES)
    want = np.repeat(SEES[0][:, None] == np.array([1, 2]), 3, axis=1)
    np.testing.assert_array_equal(MODEL.mask(first, last, 2, 6 // 2)[0, 0], want)
    np.testing.assert_array_equal(MODEL.mask(first, last, 2, 3, jnp.array([1]))[0, 0], want & (np.arange(6) < 3))
    previous = tiny(attend="previous")
    np.testing.assert_array_equal(previous.mask(*previous.index(jnp.asarray(WORDS)), 2, 1)[0, 0], SEES[0][:, None] >= np.array([1, 2]))
    np.testing.assert_array_equal(MODEL.index(jnp.asarray(WORDS), None, jnp.array([True]))[1], [[1, 1, 1, 1, 2, 2, 2, 2, 0, 0, 0]])
    ended = tiny(end_token=END)
    np.testing.assert_array_equal(ended.index(jnp.asarray(WORDS))[1], [[0, 0, 0, 1, 1, 1, 1, 2, 2, 2, 2]])
    apart = jnp.asarray(np.array([[0, IMAGE, 1, END, 2, 3, IMAGE, 4]], np.int32))
    np.testing.assert_array_equal(ended.index(apart)[1], [[0, 1, 1, 1, 0, 0, 2, 2]])


def test_a_token_gets_gradient_from_no_image_that_it_does_not_see(params):
    """Exactly none, of the block alone, where text passes nothing on from token to token."""
    own = jax.tree.map(lambda x: x[0], params["xattn"]["blocks"])
    block = lambda media, mask: MODEL.xattn.apply({"params": own}, x, media, mask).sum((0, 2))
    jacobian = jax.jit(jax.jacrev(block))
    x, media = jnp.asarray(normal("x", (1, 11, 16))), jnp.asarray(normal("media", (1, 6, 12)))
    for attend, following in (("last", None), ("last", jnp.array([True])), ("previous", None)):
        model = tiny(attend=attend)
        mask = model.mask(*model.index(jnp.asarray(WORDS), None, following), 2, 3)
        moved = np.abs(jacobian(media, mask)).max((1, 3)) > 0  # [token, visual token]
        np.testing.assert_array_equal(moved, mask[0, 0])


def test_images_reach_what_follows_in_their_document_only(params):
    """Of the whole model, in which text passes on what it saw: nothing before an image, nothing in another document of a packed row."""
    tokens = jnp.asarray(np.array([[1, IMAGE, 3, 4, END, 2, 5, IMAGE, 6, END]], np.int32))
    segments = jnp.asarray(np.array([[1] * 5 + [2] * 5], np.int32))

    @jax.jit
    def moved(direction):
        out = lambda pixels: MODEL(params, tokens, pixels=pixels, segments=segments).sum((0, 2))
        return jax.jvp(out, (PIXELS[:1],), (direction,))[1] != 0

    direction, place = jnp.asarray(normal("direction", PIXELS[:1].shape)), np.arange(10)
    np.testing.assert_array_equal(moved(direction.at[:, 1].set(0.0)), (place >= 1) & (place < 5))
    np.testing.assert_array_equal(moved(direction.at[:, 0].set(0.0)), place >= 7)


def test_text_before_any_image_passes_the_feed_forward_network_only(params, rows, whole):
    """No pixels, no real images among the pixels, and a row before its first image are the same."""
    alone = logits(MODEL)(params, rows)
    assert deviation(alone[0, :3], whole[0, :3]) < 1e-5 and deviation(alone[0, 3:], whole[0, 3:]) > 1e-2
    none = logits(MODEL)(params, rows, pixels=PIXELS, images=jnp.array([0, 1]))
    assert (
        deviation(none[0], alone[0]) < 1e-5 and deviation(none[1, :5], whole[1, :5]) < 1e-5 and deviation(none[1, 5:], whole[1, 5:]) > 1e-2
    )


# What it is before training.


def test_fresh_text_is_the_language_models(params, rows):
    """Compiled, within 1e-6, whatever the other parameters are."""
    gates = jax.jit(lambda key: {n: x for n, x in split_axes(MODEL.init(key))[0]["xattn"]["blocks"].items() if "gate" in n})
    fresh = {**params, "xattn": {"blocks": {**params["xattn"]["blocks"], **gates(jax.random.key(0))}}}
    want = jax.jit(lambda: MODEL.lm.apply(MODEL.language(params), rows))()
    np.testing.assert_allclose(logits(MODEL)(fresh, rows, pixels=PIXELS, images=TWO), want, rtol=0, atol=1e-6)


@pytest.mark.slow
def test_fresh_text_is_the_language_models_to_the_bit(rows):
    """Operation by operation."""
    params = split_axes(MODEL.init(jax.random.key(0)))[0]
    with jax.disable_jit():
        want = MODEL.lm.apply(MODEL.language(params), rows[:1, :5])
        np.testing.assert_array_equal(MODEL(params, rows[:1, :5], pixels=PIXELS[:1]), want)


def test_new_tokens_stand_at_the_end_of_the_language_models_tables(params):
    table = MODEL.language(params)["params"]["token"]["embedding"]
    np.testing.assert_array_equal(table[:-2], params["lm"]["token"]["embedding"])
    np.testing.assert_array_equal(table[-2:], params["new_tokens"]["embedding"])
    untied = tiny(lm={"tied": False})
    shapes, axes = split_axes(jax.eval_shape(untied.init, jax.random.key(0)))
    assert shapes["new_tokens"]["kernel"].shape == (16, 2) and shapes["lm"]["head"]["kernel"].shape == (16, VOCAB - 2)
    assert {axis for names in tree.flatten(axes).values() for axis in names} <= set(RULES)
    assert axes["xattn"]["blocks"]["ffw"]["up"]["kernel"] == ("layers", "embed", "mlp") and axes["xattn"]["blocks"]["gate_attn"] == (
        "layers",
    )


def test_frozen_parts_in_bfloat16():
    model = flamingo.build(FIELDS, jnp.bfloat16)
    shapes, _ = split_axes(jax.eval_shape(functools.partial(model.init, frozen_dtype=jnp.bfloat16), jax.random.key(0)))
    kinds = {name: {str(x.dtype) for x in jax.tree.leaves(part)} for name, part in shapes.items()}
    assert kinds == {name: {"bfloat16" if name in ("vision", "lm") else "float32"} for name in shapes}
    out = jax.eval_shape(lambda p: model(p, jnp.asarray(WORDS), pixels=PIXELS[:1]), shapes)
    assert out.dtype == jnp.float32 and out.shape == (1, 11, VOCAB)


def test_without_gates_the_branches_are_added_whole():
    media, x = jnp.asarray(normal("media", (1, 6, 12))), jnp.asarray(normal("x", (1, 4, 16)))
    gated, bare = (GatedCrossAttention(16, 2, 6, 24, gate=gate) for gate in ("scalar", "none"))
    wide = drawn(gated.init, x, media)["params"] | {"gate_attn": jnp.float32(20), "gate_ffw": jnp.float32(20)}  # whose tanh is 1
    params = {name: p for name, p in wide.items() if not name.startswith("gate")}
    assert params.keys() == drawn(bare.init, x, media)["params"].keys()
    want = jax.jit(gated.apply)({"params": wide}, x, media)
    np.testing.assert_allclose(jax.jit(bare.apply)({"params": params}, x, media), want, atol=1e-6)
    with pytest.raises(UserError, match="gate is 'non'; did you mean 'none'"):
        drawn(GatedCrossAttention(16, 2, 6, 24, gate="non").init, x, media)


# How it is computed.


def test_unrolled_is_scanned(params, rows, whole):
    """Two blocks of cross-attention over three of the language model: the last super-block is the shorter one."""
    assert MODEL.blocks == 2
    model = tiny(lm={"scan": False})
    assert deviation(logits(model)({**params, "lm": unstack_params(params["lm"])}, rows, pixels=PIXELS, images=TWO), whole) < 1e-5


def test_a_cache_gives_what_the_whole_text_gives(params, rows, whole):
    """Prompts of 6 and of 4 tokens, padded on the right with anything, then token by token, an image among them."""

    @jax.jit
    def read(params, tokens, lengths):
        forward, cache = MODEL.begin(params, tokens, 12, PIXELS, TWO)
        first, cache = forward(tokens, jnp.zeros_like(lengths), cache)
        step = lambda c, t: forward(jnp.take_along_axis(rows, lengths[:, None] + t, axis=1), lengths + t, c)[::-1]
        return first, jax.lax.scan(step, cache, jnp.arange(5))[1][:, :, 0]

    lengths = jnp.array([6, 4])
    prompt = rows[:, :6].at[1, 4:].set(IMAGE)
    first, later = read(params, prompt, lengths)
    for row, n in enumerate((6, 4)):
        assert deviation(first[row, :n], whole[row, :n]) < 1e-5
        assert deviation(later[:, row], whole[row, n : n + 5]) < 1e-5


def test_plain_cross_attention_stands_within_a_block(rows):
    """Between its self-attention and its feed-forward network, by their own modules; and with a cache."""
    model = tiny(lm={"depth": 1}, every=1, xattn=VANILLA)
    params = drawn(model.init)
    assert set(params["xattn"]["blocks"]) == {"norm1", "norm_media", "attn"}

    @jax.jit
    def by_hand(params):
        own = jax.tree.map(lambda x: x[0], {"xattn": params["xattn"]["blocks"], "lm": params["lm"]["blocks"]})
        x = model.lm.apply(model.language(params), rows, jnp.arange(11)[None], method="embed")
        norm = lambda name, x: LayerNorm(1e-5).apply({"params": own["lm"][name]}, x)
        x = x + DecoderAttention(2).apply({"params": own["lm"]["attn"]}, norm("norm1", x))[0]
        mask = model.mask(*model.index(rows), 2, 3, TWO)
        x = model.xattn.apply({"params": own["xattn"]}, x, model.media(params, PIXELS), mask)
        x = x + Mlp(24, "gelu_tanh").apply({"params": own["lm"]["mlp"]}, norm("norm2", x))
        return model.head(params, model.lm.apply(model.language(params), x, method="finish"))

    @jax.jit
    def both(params):
        forward, cache = model.begin(params, rows, 11, PIXELS, TWO)
        return model(params, rows, pixels=PIXELS, images=TWO), forward(rows, jnp.zeros(2, jnp.int32), cache)[0]

    want = np.asarray(by_hand(params))
    for got in both(params):
        assert deviation(got, want) < 1e-5


EVERY_WAY = [{"first": 1}, {"attend": "previous"}, {"end_token": END}, {"every": 7}, {"lm": {"remat": "full"}}]


@pytest.mark.slow
@pytest.mark.parametrize("how", [*EVERY_WAY, {"first": 1, "xattn": VANILLA}, {"xattn": VANILLA, "lm": {"remat": "dots"}}])
def test_every_way_cached_and_unrolled(how, rows):
    """Each option with scanned, unrolled and cached agreeing; gradients too under remat."""
    how = {**how, "lm": {"depth": 5, **how.get("lm", {})}}
    model = tiny(**how)
    params = drawn(model.init)
    loss = lambda m: jax.jit(jax.value_and_grad(lambda own, p: (m({**p, "xattn": own}, rows, pixels=PIXELS) ** 2).mean()))
    value, grads = loss(model)(params["xattn"], params)
    other = tiny(**{**how, "lm": {"depth": 5, "scan": False}})
    again, same = loss(other)(params["xattn"], {**params, "lm": unstack_params(params["lm"])})
    assert abs(value - again) < 1e-6 * value
    for path, x in tree.flatten(grads).items():
        assert deviation(tree.flatten(same)[path], np.asarray(x)) < 1e-4, path
    forward, cache = model.begin(params, rows, 11, PIXELS)
    assert deviation(forward(rows, jnp.zeros(2, jnp.int32), cache)[0], logits(model)(params, rows, pixels=PIXELS)) < 1e-5


# Frames, and other resamplers.


def test_times_between_learnt_ones():
    """Ends on ends (Alayrac et al. 2022, appendix B.1.3: 8 frames in training, 30 in testing); one frame has the first."""
    table = normal("times", (4, 6))
    run = lambda frames: FrameEmbedding(4).apply({"params": {"embedding": jnp.asarray(table)}}, jnp.zeros((1, frames, 1, 6)))[0, :, 0]
    at = np.linspace(0, 3, 7)
    np.testing.assert_allclose(run(7), np.stack([np.interp(at, np.arange(4), c) for c in table.T], 1), atol=1e-6)
    np.testing.assert_array_equal(run(4), table)
    np.testing.assert_array_equal(run(1), table[:1])


def test_the_order_of_frames_matters_where_times_are_learnt():
    features = jnp.asarray(normal("video", (1, 3, 4, 12)))
    module = Perceiver(12, 1, 2, 4, 16, latents=3, frames=4)
    params = drawn(module.init, features)["params"]
    run = jax.jit(lambda times: module.apply({"params": {**params, "time": times}}, jnp.concatenate([features, features[:, ::-1]])))
    for times in (params["time"], jax.tree.map(jnp.zeros_like, params["time"])):
        there, back = run(times)
        assert (deviation(back, np.asarray(there)) > 1e-3) == bool(jnp.any(times["embedding"]))


def test_the_ablation_without_latents_keeps_every_feature():
    features = jnp.asarray(normal("video", (2, 3, 4, 10)))
    module = MlpResampler(12, 2, 16)
    params = drawn(module.init, features)["params"]
    run = jax.jit(lambda x: module.apply({"params": params}, x))
    out = run(features)
    assert out.shape == (2, 12, 12)
    changed = np.abs(run(features.at[0, 1, 2].add(1.0)) - out).max(-1) > 0
    assert np.argwhere(changed).tolist() == [[0, 6]]  # frame 1 of 4 features, place 2, by itself


def test_an_nfnet_gives_the_places_of_its_last_stage():
    tower = {"type": "nfnet", "depths": (1, 1, 1, 1), "widths": (16, 16, 16, 12), "group": 2}
    model = tiny(vision=tower, size=64)
    shapes = split_axes(jax.eval_shape(model.vision.init, jax.random.key(0), jnp.zeros((1, 64, 64, 3))))[0]
    pixels = lambda frames: jax.ShapeDtypeStruct((2, 3, frames, 64, 64, 3), jnp.float32)
    features = lambda params, pixels: model.features({"vision": params["params"]}, pixels)
    assert jax.eval_shape(features, shapes, pixels(2)).shape == (6, 2, 4, 12)
    with pytest.raises(UserError, match=r"pixels: shape \(2, 3, 0, 64, 64, 3\): videos of 0 frames"):
        jax.eval_shape(features, shapes, pixels(0))


# Bad input.


@pytest.mark.parametrize(
    ("pixels", "images", "message"),
    [
        ((2, 2, 0, 16, 16, 3), None, r"videos of 0 frames"),
        ((2, 2, 16, 16, 3), None, r"expected \(rows, images, frames, height, width, channels\)"),
        ((3, 2, 1, 16, 16, 3), None, r"3 rows beside 2 rows of tokens"),
        ((2, 3, 1, 16, 16, 3), None, r"row 0: 2 image tokens \(id 18\) and 3 images"),
        ((2, 3, 1, 16, 16, 3), [2, 1], r"row 1: 2 image tokens \(id 18\) and 1 images"),
        ((2, 2, 1, 16, 16, 3), [2, 3], r"row 1: images says 3, but pixels have room for 2 a row"),
        ((2, 2, 1, 16, 16, 3), [2], r"images: shape \(1,\), expected one number for each of 2 rows"),
        (None, None, r"row 0: 2 image tokens \(id 18\) and 0 images"),
    ],
)
def test_pictures_that_do_not_fit_their_text(rows, pixels, images, message):
    with pytest.raises(UserError, match=message):
        check_images(rows, None if pixels is None else np.zeros(pixels, np.float32), images, IMAGE)


def test_messages_name_the_sample_and_text_alone_passes(rows):
    with pytest.raises(UserError, match="doc-7: 2 image tokens"):
        check_images(rows, None, None, IMAGE, ["doc-7", "doc-8"])
    check_images(rows[:, 1:3], None, None, IMAGE)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"first": 2}, "first is 2, expected 0 to 1"),
        ({"every": 9, "first": 6}, "no cross-attention: first is 6, and the language model has 3 blocks"),
        ({"attend": "all"}, "attend is 'all'"),
        ({"xattn": {**VANILLA, "place": "inside"}}, "xattn.place is 'inside'"),
        ({"xattn": VANILLA, "lm": {"residual": "parallel"}}, "xattn.place is 'within', and the language model's branches are parallel"),
        ({"image_token": 19}, "image_token is 19; with new tokens the vocabulary has 0 to 18"),
        ({"xattn": {"form": "flamingos"}}, "xattn.form is 'flamingos'; did you mean 'flamingo'"),
        ({"xattn": {"form": "flamingo"}}, "config.model.xattn has no key 'heads'"),
        ({"resampler": {"type": "perciever"}}, "resampler.type is 'perciever'; did you mean 'perceiver'"),
        ({"variant": "flamingo-4b"}, "variant is 'flamingo-4b'; did you mean"),
    ],
)
def test_fields_that_make_no_model(change, message):
    with pytest.raises(UserError, match=message):
        tiny(**change)


# Published sizes.

RESAMPLER = {"flamingo": 170_035_200, "open_flamingo": 63_019_008, "idefics": 125_961_984}
XATTN = {
    "flamingo-3b": 1_157_898_288,
    "flamingo-9b": 1_803_745_300,
    "flamingo-80b": 8_355_483_672,
    "open_flamingo-3b": 881_000_496,
    "open_flamingo-4b": 897_744_928,
    "open_flamingo-9b": 1_115_815_952,
    "idefics-9b": 1_434_519_568,
    "idefics-80b": 13_925_422_120,
}


def count(module, *widths):
    specs = [jax.ShapeDtypeStruct((1,) * (n - 1) + (width,), jnp.float32) for n, width in widths]
    return tree.count(split_axes(jax.eval_shape(module.init, jax.random.key(0), *specs)["params"])[0])


def test_published_sizes():
    """Of the parts that are new; those of towers are tested with them."""
    models = {name: flamingo.build({"variant": name}) for name in flamingo.VARIANTS}
    seen = {name: m.blocks * count(m.xattn, (3, m.lm.width), (3, m.resampler.width)) for name, m in models.items()}
    assert seen == XATTN
    # Alayrac et al. 2022, table 3, row iv: without gates and dense layers 2.4 billion parameters are left of 3.2.
    m = flamingo.build({"variant": "flamingo-3b", "xattn": {**VANILLA, "heads": 16, "head_width": 128}})
    plain = m.blocks * count(m.xattn, (3, m.lm.width), (3, m.resampler.width))
    assert seen["flamingo-3b"] - plain == 24 * (8 * 2048**2 + 2 * 2048 + 2)
    forms = {name.split("-")[0]: m.resampler for name, m in models.items()}
    assert {form: count(module, (4, module.width)) for form, module in forms.items()} == RESAMPLER


def test_where_the_papers_blocks_stand():
    """Flamingo and IDEFICS before block 0 and every n-th after, OpenFlamingo before those whose number from 1 is a multiple of n."""
    places = {name: range(m.first, m.lm.depth, m.every) for name in XATTN for m in [flamingo.build({"variant": name})]}
    assert list(places["flamingo-80b"])[:3] == [0, 7, 14] and len(places["flamingo-80b"]) == 12
    assert list(places["open_flamingo-9b"]) == [3, 7, 11, 15, 19, 23, 27, 31]
    assert list(places["idefics-80b"]) == list(range(0, 80, 4))


@pytest.mark.slow
@pytest.mark.parametrize(("name", "count"), [("idefics-9b", 8_929_679_632), ("idefics-80b", 79_967_843_624)])
def test_whole_published_sizes(name, count):
    shapes, axes = split_axes(jax.eval_shape(flamingo.build({"variant": name}).init, jax.random.key(0)))
    assert tree.count(shapes) == count
    assert {axis for names in tree.flatten(axes).values() for axis in names} <= set(RULES)
