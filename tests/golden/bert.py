"""Writes bert.npz: what transformers' BertModel computes, on weights and inputs made from their names.

    pip install -e '.[parity]'
    python tests/golden/bert.py

`tokens`, `segments`, `mask`; for the activations of ACTIVATIONS, as `ACT/...`: `sequence`, `pooled` and, of the loss
sum(sequence * normal("cotangent")) + sum(pooled), the norm of every parameter's gradient, `grad_norm/TENSOR`. The reference runs
in float64.
"""

import numpy as np
import reference
import torch
from weights import normal

SIZES = {
    "hidden_size": 32,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "intermediate_size": 72,
    "vocab_size": 60,
    "max_position_embeddings": 20,
}
ACTIVATIONS = {"gelu": "gelu", "gelu_tanh": "gelu_pytorch_tanh"}
BATCH, LENGTH = 4, 17


def inputs() -> dict[str, np.ndarray]:
    """Texts of 17, 1, 9 and 12 tokens, padded with 0; some have a second segment. The last one's padding comes first."""
    tokens = 1 + (1000 * np.abs(normal("tokens", (BATCH, LENGTH)))).astype(np.int32) % (SIZES["vocab_size"] - 1)
    tokens[1, 1:], tokens[2, 9:], tokens[3, :5] = 0, 0, 0
    segments = np.zeros_like(tokens)
    segments[0, 6:], segments[3, 11:] = 1, 1
    return {"tokens": tokens, "segments": segments, "mask": tokens > 0}


def outputs(act: str) -> tuple[dict[str, np.ndarray], dict[str, list[int]]]:
    """Arrays, and shapes of the weights."""
    from transformers import BertConfig, BertModel

    model = BertModel(BertConfig(**SIZES, hidden_act=ACTIVATIONS[act])).eval()
    model.set_attn_implementation("sdpa")
    assert model.config.layer_norm_eps == 1e-12
    model.embeddings.word_embeddings.padding_idx = None  # which would take the padding's gradient away
    shapes = reference.fill(model)
    given = {k: torch.from_numpy(v).long() for k, v in inputs().items()}
    out = model(input_ids=given["tokens"], token_type_ids=given["segments"], attention_mask=given["mask"])
    cotangent = torch.from_numpy(normal("cotangent", tuple(out.last_hidden_state.shape))).double()
    ((out.last_hidden_state * cotangent).sum() + out.pooler_output.sum()).backward()
    arrays = {"sequence": reference.numpy(out.last_hidden_state), "pooled": reference.numpy(out.pooler_output)}
    return arrays | {f"grad_norm/{k}": reference.numpy(p.grad.norm()) for k, p in model.named_parameters()}, shapes


def main() -> None:
    torch.set_num_threads(1)
    arrays, shapes = inputs(), {}
    for act in ACTIVATIONS:
        values, shapes[act] = outputs(act)
        arrays |= {f"{act}/{k}": v for k, v in values.items()}
    reference.save(__file__, arrays, shapes, ("transformers",))


if __name__ == "__main__":
    main()
