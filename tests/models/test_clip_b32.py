"""The full ViT-B/32, 151 million random parameters, against transformers (tests/golden/clip_b32.py)."""

import jax
import jax.numpy as jnp

from mmjax.models import clip
from tests.golden.weights import normal
from tests.models.torch_layouts import Golden, deviation, linear, norms


def tower(theirs, ours):
    at, to = rf"{theirs}_model\.encoder\.layers\.(\d+)", rf"{ours}/blocks_\1"
    return (
        *norms(rf"{at}\.layer_norm([12])", rf"{to}/norm\2"),
        *linear(rf"{at}\.self_attn\.([qkv]|out)_proj", rf"{to}/attn/\2"),
        *linear(rf"{at}\.mlp\.fc1", f"{to}/mlp/up"),
        *linear(rf"{at}\.mlp\.fc2", f"{to}/mlp/down"),
    )


NAMES = (
    ("logit_scale", "logit_scale", "same"),
    (r"vision_model\.embeddings\.class_embedding", "image/cls", "same"),
    (r"vision_model\.embeddings\.patch_embedding\.weight", "image/patch/kernel", "patch"),
    (r"vision_model\.embeddings\.position_embedding\.weight", "image/pos/embedding", "same"),
    *norms(r"vision_model\.pre_layrnorm", "image/pre_norm"),
    *tower("vision", "image"),
    *norms(r"vision_model\.post_layernorm", "image/norm"),
    (r"text_model\.embeddings\.token_embedding\.weight", "text/token/embedding", "same"),
    (r"text_model\.embeddings\.position_embedding\.weight", "text/pos/embedding", "same"),
    *tower("text", "text"),
    *norms(r"text_model\.final_layer_norm", "text/norm"),
    *linear("visual_projection", "image_proj"),
    *linear("text_projection", "text_proj"),
)


def test_equals_transformers():
    golden = Golden("clip_b32")
    params = golden.params("B/32", NAMES) | {"logit_scale": jnp.float32(2.5)}
    model = clip.build("ViT-B/32")
    images, tokens = jnp.asarray(normal("images", (2, 224, 224, 3))), jnp.asarray(golden["tokens"])

    @jax.jit
    def run(params):
        apply = lambda method, *args: model.apply({"params": params}, *args, method=method)
        features = {"images": apply("encode_image", images), "texts": apply("encode_text", tokens)}
        return features | {"logits": apply("logits", images, tokens)}

    for name, x in run(params).items():
        assert deviation(x, golden[name]) < 1e-5, name
