"""transformers' generate of a causal language model, greedily. Run by mmjax bench; protocol in bench/peer.py.

spec.json: dtype ("float32" or "bfloat16"), threads, new (tokens to write). batch.npz: tokens int32[B, P]. hf/: the weights.
Attention is PyTorch's scaled_dot_product_attention, the cache is the default one.
outputs.npz: tokens int32[B, new], and logits [B, V] after the prompts.
"""

import json
import sys

from protocol import serve


def prepare(torch, transformers, folder):
    """The step, warm, and what to say of it; writes outputs.npz."""
    import numpy as np

    spec = json.loads((folder / "spec.json").read_text())
    torch.set_num_threads(spec["threads"])
    torch.backends.cuda.matmul.allow_tf32 = True  # what XLA does for float32 on the same units
    device = "cuda" if torch.cuda.is_available() else "cpu"
    tokens = torch.from_numpy(np.load(folder / "batch.npz")["tokens"].astype(np.int64)).to(device)
    dtype = getattr(torch, spec["dtype"])
    model = transformers.AutoModelForCausalLM.from_pretrained(folder / "hf", attn_implementation="sdpa", dtype=dtype).to(device).eval()
    model.generation_config.eos_token_id = None  # nothing ends a text
    mask = torch.ones_like(tokens)

    def step():
        with torch.inference_mode():
            out = model.generate(input_ids=tokens, attention_mask=mask, max_new_tokens=spec["new"], do_sample=False, pad_token_id=0)
        return out[:, tokens.shape[1] :]

    with torch.inference_mode():
        logits = model(tokens).logits[:, -1].float().cpu().numpy()
    np.savez(folder / "outputs.npz", tokens=step().cpu().numpy().astype(np.int32), logits=logits)
    versions = {m.__name__: m.__version__ for m in (torch, transformers)}
    name = torch.cuda.get_device_name() if device == "cuda" else "cpu"
    return step, {"versions": versions, "device": name, "threads": torch.get_num_threads(), "compiled": False}


if __name__ == "__main__":
    sys.exit(serve(("torch", "transformers"), prepare))
