"""Writes idefics.npz: what transformers' IDEFICS computes, on weights and inputs made from their names.

    pip install -e '.[parity]'
    python tests/golden/idefics.py

For the models of FORMS: `FORM/logits`; `shapes` of their tensors and `configs`, their config.json; `tokens` and `seen`, which image a token
sees (-1: none) by the rule of IDEFICS' processor. It runs in float64, but for the variance in its norms and the angles of its positions.
"""

import json

import numpy as np
import reference
import torch
from weights import normal

VOCAB, IMAGE, END = 40, 41, 2
COMMON = {
    **{"vocab_size": VOCAB, "additional_vocab_size": 2, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 4},
    **{"num_attention_heads": 2, "cross_layer_interval": 2, "max_position_embeddings": 32, "use_resampler": True},
    "vision_config": {
        **{"embed_dim": 24, "image_size": 16, "patch_size": 8, "intermediate_size": 40, "num_hidden_layers": 2},
        "num_attention_heads": 2,
    },
}
RESAMPLER = {"use_resampler": True, "resampler_n_latents": 5, "resampler_depth": 2, "resampler_n_heads": 3, "resampler_head_dim": 8}
# As the published models have it, and with every option the other way.
FORMS = {
    "published": {"qk_layer_norms": True, "perceiver_config": {**RESAMPLER, "qk_layer_norms_perceiver": True}, "rms_norm_eps": 1e-5},
    "plain": {"perceiver_config": RESAMPLER, "alpha_type": "vector", "tie_word_embeddings": True},
}


def inputs() -> tuple[np.ndarray, np.ndarray]:
    """int64[2, 12] tokens, two images a row: in the first row two documents; and int64[2, 12], the image that each sees."""
    tokens = 3 + np.abs(normal("tokens", (2, 12)) * 1000).astype(np.int64) % (VOCAB - 3)
    tokens[0, [1, 8]], tokens[0, 5], tokens[1, [2, 7]] = IMAGE, END, IMAGE
    seen = np.full(tokens.shape, -1)
    for row in range(2):
        count, ended = -1, False
        for place, token in enumerate(tokens[row]):
            count, ended = (count + 1, False) if token == IMAGE else (count, ended)
            seen[row, place] = -1 if ended else count
            ended = ended or token == END
    return tokens, seen


def logits(form: str) -> tuple[np.ndarray, dict, dict]:
    """Of a form, with the shapes of its tensors and its config."""
    from transformers import IdeficsConfig, IdeficsForVisionText2Text

    model = IdeficsForVisionText2Text(IdeficsConfig(**COMMON, **FORMS[form])).eval()
    shapes = reference.fill(model)
    if model.config.tie_word_embeddings:  # the same tensors, whose draws came last
        for name in ("model.embed_tokens.weight", "model.embed_tokens.additional_embedding.weight"):
            shapes.pop(name)
    tokens, seen = inputs()
    pixels = torch.from_numpy(normal("pixels", (2, 2, 1, 16, 16, 3))).double()[:, :, 0].permute(0, 1, 4, 2, 3)
    mask = torch.from_numpy(seen)[..., None] == torch.arange(2)
    out = model(input_ids=torch.from_numpy(tokens), pixel_values=pixels, image_attention_mask=mask.long(), use_cache=False)
    return reference.numpy(out.logits), shapes, model.config.to_dict()


def main() -> None:
    torch.set_num_threads(1)
    tokens, seen = inputs()
    arrays, shapes, configs = {"tokens": tokens.astype(np.int32), "seen": seen.astype(np.int32)}, {}, {}
    for form in FORMS:
        arrays[f"{form}/logits"], shapes[form], configs[form] = logits(form)
    reference.save(__file__, {**arrays, "configs": np.array(json.dumps(configs))}, shapes, ("transformers",))


if __name__ == "__main__":
    main()
