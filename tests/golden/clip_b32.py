"""Writes clip_b32.npz: the full ViT-B/32 in transformers, on weights and inputs made from their names.

    pip install -e '.[parity]'
    python tests/golden/clip_b32.py

`images` and `texts` (projected, not normalised), `logits` (images by texts), `tokens`. The reference runs in float64.
"""

import numpy as np
import reference
import torch
from weights import normal

BATCH, SIZE, LENGTH, END = 2, 224, 77, 49407


def inputs() -> tuple[np.ndarray, np.ndarray]:
    """Images [B, H, W, C] and tokens [B, L], whose end stands in the middle of the row and in its last place."""
    tokens = (1e6 * np.abs(normal("tokens", (BATCH, LENGTH)))).astype(np.int32) % END
    tokens[0, 20], tokens[0, 21:], tokens[1, -1] = END, 0, END
    return normal("images", (BATCH, SIZE, SIZE, 3)), tokens


@torch.no_grad()
def main() -> None:
    from transformers import CLIPConfig, CLIPModel

    torch.set_num_threads(1)
    config = CLIPConfig()  # its defaults are those of openai/clip-vit-base-patch32
    assert (config.vision_config.patch_size, config.text_config.hidden_act, config.projection_dim) == (32, "quick_gelu", 512)
    model = CLIPModel(config).eval()
    model.set_attn_implementation("sdpa")  # the eager one has a float32 softmax inside
    shapes = reference.fill(model)
    model.logit_scale.fill_(2.5)
    images, tokens = inputs()
    pixels, ids = torch.from_numpy(images).double().permute(0, 3, 1, 2), torch.from_numpy(tokens).long()
    out = {
        "images": model.visual_projection(model.vision_model(pixels).pooler_output),
        "texts": model.text_projection(model.text_model(ids).pooler_output),
        "logits": model(input_ids=ids, pixel_values=pixels).logits_per_image,
    }
    reference.save(__file__, {"tokens": tokens, **{k: reference.numpy(v) for k, v in out.items()}}, {"B/32": shapes}, ("transformers",))


if __name__ == "__main__":
    main()
