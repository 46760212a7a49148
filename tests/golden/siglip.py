"""Writes siglip.npz: what transformers' SiglipModel computes, on weights and inputs made from their names.

    pip install -e '.[parity]'
    python tests/golden/siglip.py

For the activations of ACTIVATIONS, as `ACT/...`: `sequence` (the text tower's tokens after the last norm), `texts` and `images`
(projected, not normalised), `logits` (images by texts), `loss`, and the norm of every parameter's gradient, `grad_norm/TENSOR`.
The loss is the model's own. The reference runs in float64.
"""

import numpy as np
import reference
import torch
from weights import normal

TOWER = {"hidden_size": 32, "num_attention_heads": 4, "intermediate_size": 72, "layer_norm_eps": 1e-6}
VISION = {**TOWER, "num_hidden_layers": 2, "image_size": 28, "patch_size": 8}
TEXT = {**TOWER, "num_hidden_layers": 3, "vocab_size": 60, "max_position_embeddings": 9, "projection_size": 32}
ACTIVATIONS = {"gelu_tanh": "gelu_pytorch_tanh", "gelu": "gelu"}
BATCH = 4


def inputs() -> tuple[np.ndarray, np.ndarray]:
    """Images [B, H, W, C] and tokens [B, L], padded with the end token's id, 1, as SigLIP's tokenizer does; the last text fills its row."""
    tokens = 2 + (1000 * np.abs(normal("tokens", (BATCH, TEXT["max_position_embeddings"])))).astype(np.int32) % (TEXT["vocab_size"] - 2)
    for row, length in enumerate((0, 3, 8)):
        tokens[row, length:] = 1
    size = VISION["image_size"]
    return normal("images", (BATCH, size, size, 3)), tokens


def outputs(act: str) -> tuple[dict[str, np.ndarray], dict[str, list[int]]]:
    """Arrays, and shapes of the weights."""
    from transformers import SiglipConfig, SiglipModel

    config = SiglipConfig(text_config={**TEXT, "hidden_act": ACTIVATIONS[act]}, vision_config={**VISION, "hidden_act": ACTIVATIONS[act]})
    model = SiglipModel(config).eval()
    model.set_attn_implementation("sdpa")  # the eager one has a float32 softmax inside
    shapes = reference.fill(model)
    images, tokens = inputs()
    pixels = torch.from_numpy(images).double().permute(0, 3, 1, 2)
    out = model(input_ids=torch.from_numpy(tokens).long(), pixel_values=pixels, return_loss=True)
    out.loss.backward()
    values = {
        "sequence": out.text_model_output.last_hidden_state,
        "texts": out.text_model_output.pooler_output,
        "images": out.vision_model_output.pooler_output,
        "logits": out.logits_per_image,
        "loss": out.loss,
    }
    arrays = {k: reference.numpy(v) for k, v in values.items()}
    return arrays | {f"grad_norm/{k}": reference.numpy(p.grad.norm()) for k, p in model.named_parameters()}, shapes


def main() -> None:
    torch.set_num_threads(1)
    arrays, shapes = {}, {}
    for act in ACTIVATIONS:
        values, shapes[act] = outputs(act)
        arrays |= {f"{act}/{k}": v for k, v in values.items()}
    _, arrays["tokens"] = inputs()
    reference.save(__file__, arrays, shapes, ("transformers",))


if __name__ == "__main__":
    main()
