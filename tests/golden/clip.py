"""Writes clip.npz: what transformers' CLIPModel and torch compute, for tests that then need neither.

    pip install -e '.[parity]'
    python tests/golden/clip.py

The file holds, in float32: `params/...` (a small random CLIP, by transformers' names), `images`, `tokens`; for each
activation `ACT` of ("quick_gelu", "gelu") `ACT/{images,texts,logits,loss}` and `ACT/grad_norm/...` (the norm of the loss's
gradient, for every parameter); the gradients of `GRADIENTS` themselves as `quick_gelu/grad/...`; and `loss/...`, the contrastive
loss alone on a larger batch. The reference runs in float64, so what a test sees is the error of mmjax's float32. Running it again
gives the same arrays, and with the same zlib the same bytes.
"""

from pathlib import Path

import numpy as np
import torch
from torch.nn import functional as F
from transformers import CLIPConfig, CLIPModel

SIZE, PATCH, CHANNELS = 24, 8, 3
VOCAB, LENGTH, EMBED = 99, 12, 16
IMAGE = {"width": 32, "depth": 2, "heads": 4, "mlp": 64}
TEXT = {"width": 24, "depth": 2, "heads": 3, "mlp": 48}
ACTIVATIONS = ("quick_gelu", "gelu")
GRADIENTS = (
    "logit_scale",
    "visual_projection.weight",
    "text_projection.weight",
    "vision_model.embeddings.patch_embedding.weight",
    "vision_model.embeddings.class_embedding",
    "vision_model.embeddings.position_embedding.weight",
    "vision_model.pre_layrnorm.weight",
    "vision_model.encoder.layers.0.self_attn.q_proj.weight",
    "vision_model.encoder.layers.1.mlp.fc1.bias",
    "text_model.embeddings.token_embedding.weight",
    "text_model.embeddings.position_embedding.weight",
    "text_model.encoder.layers.1.self_attn.k_proj.weight",
    "text_model.encoder.layers.0.layer_norm2.bias",
    "text_model.final_layer_norm.weight",
)


def build(act: str) -> CLIPModel:
    """The reference, in float64. No weight keeps a trivial value: biases are not zero, norm gains not one. Independent of `act`."""
    tower = lambda t: {
        "hidden_size": t["width"],
        "num_hidden_layers": t["depth"],
        "num_attention_heads": t["heads"],
        "intermediate_size": t["mlp"],
        "hidden_act": act,
        "layer_norm_eps": 1e-5,
        "attention_dropout": 0.0,
    }
    # eos_token_id 2 is the published configs' value, and means: pool where the id is largest.
    text = {**tower(TEXT), "vocab_size": VOCAB, "max_position_embeddings": LENGTH, "eos_token_id": 2, "bos_token_id": 0, "pad_token_id": 1}
    vision = {**tower(IMAGE), "image_size": SIZE, "patch_size": PATCH, "num_channels": CHANNELS}
    config = CLIPConfig(text_config=text, vision_config=vision, projection_dim=EMBED, logit_scale_init_value=2.6592)
    config._attn_implementation = "sdpa"  # the eager one has a float32 softmax inside
    model = CLIPModel(config).double().eval()
    assert model.text_model.eos_token_id == 2
    assert model.text_model.config._attn_implementation == model.vision_model.config._attn_implementation == "sdpa"
    rng = np.random.default_rng(0)
    with torch.no_grad():
        for name, p in sorted(model.named_parameters()):
            gain = p.ndim == 1 and name.endswith("weight")
            table = name.endswith("embedding.weight") and p.ndim == 2
            std = 0.3 if table or p.ndim < 2 else p[0].numel() ** -0.5
            # Through float32, so that the file holds the reference's weights and not their neighbours.
            value = np.asarray((1.0 if gain else 0.0) + std * rng.standard_normal(p.shape), np.float32)
            p.copy_(torch.from_numpy(value))
        model.logit_scale.fill_(float(np.float32(2.2)))
    return model


def inputs() -> tuple[np.ndarray, np.ndarray]:
    """Images [B, H, W, C] and tokens [B, L]; the end token, VOCAB - 1, stands in another place in every row, before assorted padding."""
    rng = np.random.default_rng(1)
    b = 6
    images = rng.standard_normal((b, SIZE, SIZE, CHANNELS)).astype(np.float32)
    tokens = rng.integers(0, VOCAB - 1, (b, LENGTH)).astype(np.int32)
    ends = [LENGTH - 1, 1, 5, 8, 3, 6]
    for row, end in enumerate(ends):
        tokens[row, end] = VOCAB - 1
        if row % 2:
            tokens[row, end + 1 :] = 0
    return images, tokens


def reference(model: CLIPModel, images: np.ndarray, tokens: np.ndarray) -> dict[str, np.ndarray]:
    """Outputs and gradients of the model's own loss."""
    pixels = torch.from_numpy(images).double().permute(0, 3, 1, 2)
    out = model(input_ids=torch.from_numpy(tokens).long(), pixel_values=pixels, return_loss=True)
    out.loss.backward()
    numpy = lambda t: t.detach().numpy().astype(np.float32)
    grads = {name: numpy(p.grad) for name, p in model.named_parameters()}
    norms = {f"grad_norm/{k}": np.float32(np.linalg.norm(v.astype(np.float64))) for k, v in grads.items()}
    values = {"images": out.image_embeds, "texts": out.text_embeds, "logits": out.logits_per_image, "loss": out.loss}
    return {**{k: numpy(v) for k, v in values.items()}, **{f"grad/{k}": grads[k] for k in GRADIENTS}, **norms}


def contrastive(pairs: int = 64, width: int = 16) -> dict[str, np.ndarray]:
    """The global-batch loss of Radford et al. 2021, figure 3, by torch's cross_entropy, and its gradients; the scale is CLIP's largest."""
    rng = np.random.default_rng(2)
    unit = lambda x: (x / np.linalg.norm(x, axis=1, keepdims=True)).astype(np.float32)
    images = unit(rng.standard_normal((pairs, width)))
    texts = unit(images + 0.25 * rng.standard_normal((pairs, width)))
    log_scale = np.asarray(np.log(100.0), np.float32)
    leaves = [torch.from_numpy(x).double().requires_grad_() for x in (images, texts, log_scale)]
    logits = leaves[2].exp() * leaves[0] @ leaves[1].T
    labels = torch.arange(pairs)
    loss = (F.cross_entropy(logits, labels) + F.cross_entropy(logits.T, labels)) / 2
    loss.backward()
    out = {"images": images, "texts": texts, "log_scale": log_scale, "loss": loss.detach().numpy()}
    out |= {f"grad/{k}": t.grad.numpy() for k, t in zip(("images", "texts", "log_scale"), leaves, strict=True)}
    return {k: v.astype(np.float32) for k, v in out.items()}


def main() -> None:
    torch.set_num_threads(1)
    images, tokens = inputs()
    out: dict[str, np.ndarray] = {"images": images, "tokens": tokens}
    for act in ACTIVATIONS:
        model = build(act)
        out |= {f"params/{name}": p.detach().numpy().astype(np.float32) for name, p in model.named_parameters()}
        values = reference(model, images, tokens)
        out |= {f"{act}/{k}": v for k, v in values.items() if act == ACTIVATIONS[0] or not k.startswith("grad/")}
    out |= {f"loss/{k}": v for k, v in contrastive().items()}
    path = Path(__file__).with_suffix(".npz")
    np.savez_compressed(path, **out)
    print(f"{path.name}: {len(out)} arrays, {path.stat().st_size / 1000:.0f} kB")


if __name__ == "__main__":
    main()
