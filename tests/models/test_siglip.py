"""SigLIP, both towers and what joins them, against transformers' SiglipModel (tests/golden/siglip.py)."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mmjax.core import rng
from mmjax.layers import unstack_params
from mmjax.models import clip
from tests.golden.weights import normal
from tests.models.torch_layouts import SIGLIP, Golden, deviation, grad_norms, linear, norms

GOLDEN = Golden("siglip")
TOKENS = jnp.asarray(GOLDEN["tokens"])
IMAGES = jnp.asarray(normal("images", (4, 28, 28, 3)))
ACTIVATIONS = ("gelu_tanh", "gelu")
TOWER = {"width": 32, "heads": 4, "mlp": 72, "eps": 1e-6}

AT, OURS = r"text_model\.encoder\.layers\.(\d+)", r"text/blocks_\1"
NAMES = (
    (r"logit_(scale|bias)", r"logit_\1", "scalar"),
    (r"text_model\.embeddings\.token_embedding\.weight", "text/token/embedding", "same"),
    (r"text_model\.embeddings\.position_embedding\.weight", "text/pos/embedding", "same"),
    *norms(rf"{AT}\.layer_norm([12])", rf"{OURS}/norm\2"),
    *linear(rf"{AT}\.self_attn\.([qkv]|out)_proj", rf"{OURS}/attn/\2"),
    *linear(rf"{AT}\.mlp\.fc1", f"{OURS}/mlp/up"),
    *linear(rf"{AT}\.mlp\.fc2", f"{OURS}/mlp/down"),
    *norms(r"text_model\.final_layer_norm", "text/norm"),
    *linear(r"text_model\.head", "text_proj"),
    *((pattern, f"image/{target}", layout) for pattern, target, layout in SIGLIP),
)
CLOSE = 1e-5  # of the largest entry


def tiny(act, **how):
    """With the options that make CLIP SigLIP taken from a published size, so that they are tested too."""
    published = clip.VARIANTS["SigLIP-B/16-224"]
    image = {**published["image"], **TOWER, **how, "act": act, "patch": 8, "depth": 2}
    text = {**published["text"], **TOWER, **how, "act": act, "vocab": 60, "length": 9, "depth": 3}
    return clip.build({**published, "embed": 32, "image": image, "text": text})


@pytest.fixture(scope="module")
def params():
    return GOLDEN.params("gelu", NAMES)


@pytest.mark.parametrize("act", ACTIVATIONS)
def test_equals_transformers(params, act):
    """Outputs, the sigmoid loss of Zhai et al. 2023, algorithm 1, and its gradient by every parameter."""
    model = tiny(act)

    def loss(params):
        apply = lambda *args, method=None: model.apply({"params": params}, *args, method=method)
        images, texts, log_scale, bias = apply(IMAGES, TOKENS)
        logits = jnp.exp(log_scale) * images @ texts.T + bias
        loss = -jax.nn.log_sigmoid(logits * (2 * jnp.eye(4) - 1)).sum() / 4
        out = {"texts": apply(TOKENS, method="encode_text"), "images": apply(IMAGES, method="encode_image"), "loss": loss}
        return loss, {**out, "logits": apply(IMAGES, TOKENS, method="logits")}

    grads, got = jax.jit(jax.grad(loss, has_aux=True))(params)
    for name, x in got.items():
        assert deviation(x, GOLDEN[f"{act}/{name}"]) < CLOSE, name
    wanted = GOLDEN.under(f"{act}/grad_norm/")
    # Keys' biases have no gradient but rounding; what the pooling joins them with has.
    for name, norm in grad_norms(unstack_params(grads), wanted, NAMES).items():
        np.testing.assert_allclose(norm, wanted[name], rtol=5e-5, atol=1e-5 if name.endswith("k_proj.bias") else 0, err_msg=name)


def test_every_token_equals_transformers(params):
    text = tiny("gelu").text
    got = jax.jit(lambda t: text.apply({"params": params["text"]}, t, method="sequence"))(TOKENS)
    assert deviation(got, GOLDEN["gelu/sequence"]) < CLOSE


def test_the_activations_are_told_apart():
    """Else the test above would pass with either."""
    for output in ("texts", "images"):
        assert deviation(GOLDEN[f"gelu/{output}"], GOLDEN[f"gelu_tanh/{output}"]) > 10 * CLOSE


def test_the_starting_point_is_the_published_one():
    """t' = ln 10, b = -10 (section 3.2)."""
    start = jax.jit(lambda key: tiny("gelu").init(key, IMAGES[:1], TOKENS[:1])["params"])(jax.random.key(0))
    assert float(start["logit_scale"].value) == pytest.approx(np.log(10), abs=1e-6)
    assert float(start["logit_bias"].value) == -10


def test_dropout_reaches_both_towers(params):
    keys = rng.per_example(jax.random.key(0), jnp.arange(4))
    run = jax.jit(lambda keys: tiny("gelu", dropout=0.3).apply({"params": params}, IMAGES, TOKENS, keys))
    for a, b in zip(run(None)[:2], run(keys)[:2], strict=True):
        assert (jnp.abs(a - b).max(1) > 1e-3).all()
