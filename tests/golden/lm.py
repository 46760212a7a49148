"""Writes lm.npz: what transformers' language models compute, on weights and tokens made from their names.

    pip install -e '.[parity]'
    python tests/golden/lm.py

`tokens`, of which row 1 is row 0 from its second token on; for each case `CASE/logits` of the tokens, `CASE/step` of row 0 read from a
cache after its first 5 tokens, and for GRADIENTS `CASE/grad_norm/TENSOR`, of the loss sum(logits * normal("cotangent")). `shapes` has the
tensors that `save_pretrained` writes, `configs` each model's config.json. The reference runs in float64, but for what it takes in float32
always: rotations, and the variance in RMS norms.
"""

import json
from typing import Any

import numpy as np
import reference
import torch
import transformers as hf
from weights import normal, tensors

VOCAB, BATCH, LENGTH = 37, 2, 9
TIED = ("lm_head.weight",)
SIZES = {"hidden_size": 24, "num_hidden_layers": 2, "num_attention_heads": 6, "intermediate_size": 40, "vocab_size": VOCAB}
ROPE = {**SIZES, "max_position_embeddings": 32}
GPT2 = {"n_embd": 24, "n_layer": 2, "n_head": 6, "n_positions": 32, "vocab_size": VOCAB, "bos_token_id": 1, "eos_token_id": 2}
OPT = {k: v for k, v in ROPE.items() if k != "intermediate_size"} | {"ffn_dim": 40}
MPT = {"d_model": 24, "n_heads": 6, "n_layers": 2, "max_seq_len": 32, "vocab_size": VOCAB}

# Six heads are no power of two, four key heads and a head width that is not width / heads are nobody's default.
CASES: dict[str, tuple[type, type, dict[str, Any]]] = {
    "gpt2": (hf.GPT2Config, hf.GPT2LMHeadModel, GPT2),
    "opt": (hf.OPTConfig, hf.OPTForCausalLM, OPT),
    "opt_350m": (hf.OPTConfig, hf.OPTForCausalLM, {**OPT, "do_layer_norm_before": False, "word_embed_proj_dim": 12}),
    "mpt": (hf.MptConfig, hf.MptForCausalLM, {**MPT, "attn_config": {"clip_qkv": 1.5, "softmax_scale": 0.3}}),
    "mpt_1b": (hf.MptConfig, hf.MptForCausalLM, {**MPT, "n_heads": 4}),
    "llama": (hf.LlamaConfig, hf.LlamaForCausalLM, {**ROPE, "num_key_value_heads": 2}),
    "llama_long": (
        hf.LlamaConfig,
        hf.LlamaForCausalLM,
        {
            **{**ROPE, "tie_word_embeddings": True, "attention_bias": True, "mlp_bias": True},
            "rope_parameters": {"rope_type": "linear", "factor": 4.0, "rope_theta": 500.0},
        },
    ),
    "gemma": (hf.GemmaConfig, hf.GemmaForCausalLM, {**ROPE, "num_key_value_heads": 1, "head_dim": 10}),
    "neox": (hf.GPTNeoXConfig, hf.GPTNeoXForCausalLM, {**ROPE, "rotary_pct": 0.5}),
    "neox_serial": (
        hf.GPTNeoXConfig,
        hf.GPTNeoXForCausalLM,
        {**ROPE, "rotary_pct": 1.0, "use_parallel_residual": False, "num_attention_heads": 4},
    ),
}
GRADIENTS = ("gemma",)


def tokens() -> torch.Tensor:
    ids = np.abs(normal("tokens", (LENGTH + 1,)) * 1000).astype(np.int64) % VOCAB
    return torch.from_numpy(np.stack([ids[:-1], ids[1:]]))


def mosaic(name: str) -> str:
    """Under which MPT-1B's own code has a tensor of MPT's."""
    for new, old in (("norm_1", "ln_1"), ("norm_2", "ln_2"), ("norm_f", "ln_f"), ("ffn.up_proj", "mlp.mlp_up")):
        name = name.replace(new, old)
    return name.replace("ffn.down_proj", "mlp.mlp_down")


def norm_queries_and_keys(model: torch.nn.Module, shapes: dict[str, list[int]]) -> None:
    """MPT-1B's layer norms without bias over all heads of `Wqkv`'s first two thirds, which transformers' class lacks."""
    for i, block in enumerate(model.transformer.blocks):
        names = [f"transformer.blocks.{i}.attn.{part}_ln.weight" for part in "qk"]
        shapes |= {name: [24] for name in names}
        gains = [torch.from_numpy(x).double() for x in tensors({name: (24,) for name in names}).values()]

        def normed(module, given, out, gains=gains):
            q, k, v = out.chunk(3, dim=-1)
            q, k = (torch.nn.functional.layer_norm(x, (24,), gain, None, 1e-5) for x, gain in zip((q, k), gains, strict=True))
            return torch.cat([q, k, v], dim=-1)

        block.attn.Wqkv.register_forward_hook(normed)


def build(case: str) -> tuple[torch.nn.Module, dict[str, list[int]], dict[str, Any]]:
    """A model with weights from their names, the shapes of what is saved of it, and its config.json."""
    kind, cls, given = CASES[case]
    config = kind(**given)
    config._attn_implementation = "eager" if "mpt" in case else "sdpa"  # the eager one of the others has a float32 softmax inside
    model = cls(config).double().eval()
    state = {name: x for name, x in model.state_dict().items() if not (config.tie_word_embeddings and name in TIED)}
    rename = mosaic if case == "mpt_1b" else lambda name: name.replace("lm_head", "embed_out") if "neox" in case else name
    shapes = {rename(name): list(x.shape) for name, x in state.items()}
    values = tensors(shapes)
    with torch.no_grad():
        for name, x in state.items():
            x.copy_(torch.from_numpy(values[rename(name)]))
    stored = json.loads(config.to_json_string(use_diff=False))
    if case == "mpt_1b":
        norm_queries_and_keys(model, shapes)
        stored = {"model_type": "mosaic_gpt", "mlp_ratio": 4, "alibi": True, "attn_qk_ln": True, "no_bias": True, "attn_impl": "triton"}
        stored |= {**MPT, "n_heads": 4, "low_precision_layernorm": True, "attn_clip_qkv": None, "init_std": 0.02}
    return model, shapes, stored


def outputs(case: str) -> tuple[dict[str, np.ndarray], dict[str, list[int]], dict[str, Any]]:
    model, shapes, config = build(case)
    ids, out = tokens(), {}
    logits = model(input_ids=ids).logits
    out["logits"] = reference.numpy(logits)
    with torch.no_grad():
        past = model(input_ids=ids[:1, :5], use_cache=True).past_key_values
        out["step"] = reference.numpy(model(input_ids=ids[:1, 5:6], past_key_values=past, use_cache=True).logits[:, -1])
    if case in GRADIENTS:
        (logits * torch.from_numpy(normal("cotangent", tuple(logits.shape))).double()).sum().backward()
        out |= {f"grad_norm/{name}": reference.numpy(p.grad.norm()) for name, p in model.named_parameters()}
    return {f"{case}/{name}": x for name, x in out.items()}, shapes, config


def main() -> None:
    torch.set_num_threads(1)
    arrays, shapes, configs = {"tokens": tokens().numpy().astype(np.int32)}, {}, {}
    for case in CASES:
        found, shapes[case], configs[case] = outputs(case)
        arrays |= found
    reference.save(__file__, {**arrays, "configs": np.array(json.dumps(configs))}, shapes, ("transformers",))


if __name__ == "__main__":
    main()
