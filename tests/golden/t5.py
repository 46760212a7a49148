"""Writes t5.npz: what transformers' T5EncoderModel computes, on weights and inputs made from their names.

    pip install -e '.[parity]'
    python tests/golden/t5.py

`tokens`, `mask`; `buckets`, those of relative positions -300 to 300; for the feed-forward networks of FORMS, as `FORM/...`:
`sequence` and, of the loss sum(sequence * normal("cotangent")), the norm of every parameter's gradient, `grad_norm/TENSOR`. The
reference runs in float64, but for the variance in its norms, which it takes in float32.
"""

import numpy as np
import reference
import torch
from weights import normal

# Neither the heads side by side nor anything else is as wide as the model.
SIZES = {"d_model": 24, "d_kv": 16, "num_heads": 3, "d_ff": 40, "num_layers": 3, "vocab_size": 60}
FORMS = {"relu": "relu", "gated": "gated-gelu"}
BATCH, LENGTH = 3, 150  # past the distance of 128, from which on all share a bucket


def inputs() -> dict[str, np.ndarray]:
    """Texts of 150, 141 and 3 tokens, padded with 0."""
    tokens = 1 + (1000 * np.abs(normal("tokens", (BATCH, LENGTH)))).astype(np.int32) % (SIZES["vocab_size"] - 1)
    tokens[1, 141:], tokens[2, 3:] = 0, 0
    return {"tokens": tokens, "mask": tokens > 0}


def outputs(form: str) -> tuple[dict[str, np.ndarray], dict[str, list[int]]]:
    """Arrays, and shapes of the weights."""
    from transformers import T5Config, T5EncoderModel

    model = T5EncoderModel(T5Config(**SIZES, feed_forward_proj=FORMS[form])).eval()
    assert (model.config.layer_norm_epsilon, model.config.relative_attention_num_buckets) == (1e-6, 32)
    shapes = reference.fill(model)
    shapes.pop("shared.weight", None)  # the same tensor as encoder.embed_tokens.weight, whose draw came last
    given = {k: torch.from_numpy(v).long() for k, v in inputs().items()}
    out = model(input_ids=given["tokens"], attention_mask=given["mask"]).last_hidden_state
    (out * torch.from_numpy(normal("cotangent", tuple(out.shape))).double()).sum().backward()
    grads = {k.replace("shared.weight", "encoder.embed_tokens.weight"): p.grad for k, p in model.named_parameters()}
    return {"sequence": reference.numpy(out)} | {f"grad_norm/{k}": reference.numpy(g.norm()) for k, g in grads.items()}, shapes


def buckets() -> np.ndarray:
    """int32[601]."""
    from transformers.models.t5.modeling_t5 import T5Attention

    return T5Attention._relative_position_bucket(torch.arange(-300, 301)).numpy().astype(np.int32)


def main() -> None:
    torch.set_num_threads(1)
    arrays, shapes = {**inputs(), "buckets": buckets()}, {}
    for form in FORMS:
        values, shapes[form] = outputs(form)
        arrays |= {f"{form}/{k}": v for k, v in values.items()}
    reference.save(__file__, arrays, shapes, ("transformers",))


if __name__ == "__main__":
    main()
