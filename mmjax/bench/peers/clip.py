"""transformers' CLIPModel, trained with PyTorch's AdamW or encoding images. Run by mmjax bench; protocol in bench/peer.py.

spec.json: kind ("train" or "encode"), dtype ("float32" or "bfloat16"), threads, and for training lr, b1, b2, eps, weight_decay.
batch.npz: image float32[B, H, W, C], and for training tokens int32[B, L]. hf/: the weights.
On an accelerator the model is compiled by torch.compile; attention is PyTorch's scaled_dot_product_attention everywhere.
outputs.npz: for training the unit-norm embeddings image and text, loss and second_loss of its first two steps; for encoding image.
"""

import json
import math
import sys

from protocol import serve


def prepare(torch, transformers, folder):
    """The step, warm, and what to say of it; writes outputs.npz."""
    import numpy as np

    spec = json.loads((folder / "spec.json").read_text())
    torch.set_num_threads(spec["threads"])
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = True  # what XLA does for float32 on the same units
    device = "cuda" if torch.cuda.is_available() else "cpu"
    batch = np.load(folder / "batch.npz")
    images = torch.from_numpy(np.ascontiguousarray(batch["image"].transpose(0, 3, 1, 2))).to(device)
    model = transformers.CLIPModel.from_pretrained(folder / "hf", attn_implementation="sdpa", dtype=torch.float32).to(device)
    autocast = lambda: torch.autocast(device, torch.bfloat16, enabled=spec["dtype"] == "bfloat16")
    on_host = lambda x: x.detach().float().cpu().numpy()
    compiled = (lambda f: torch.compile(f)) if device == "cuda" else lambda f: f

    if spec["kind"] == "encode":
        model.eval()
        forward = compiled(lambda pixels: model.visual_projection(model.vision_model(pixel_values=pixels).pooler_output))

        def step():
            with torch.inference_mode(), autocast():
                return forward(images)

        np.savez(folder / "outputs.npz", image=on_host(step()))
    else:
        tokens = torch.from_numpy(batch["tokens"].astype(np.int64)).to(device)
        model.train()
        with torch.no_grad(), autocast():
            out = model(input_ids=tokens, pixel_values=images)
        step = training(torch, compiled(model), model, tokens, images, spec, autocast)
        losses = {name: float(step()) for name in ("loss", "second_loss")}
        np.savez(folder / "outputs.npz", image=on_host(out.image_embeds), text=on_host(out.text_embeds), **losses)
    versions = {m.__name__: m.__version__ for m in (torch, transformers)}
    name = torch.cuda.get_device_name() if device == "cuda" else "cpu"
    return step, {"versions": versions, "device": name, "threads": torch.get_num_threads(), "compiled": device == "cuda"}


def training(torch, forward, model, tokens, images, spec, autocast):
    """One step of symmetric InfoNCE and AdamW."""
    betas = (spec["b1"], spec["b2"])
    optimizer = torch.optim.AdamW(
        model.parameters(), lr=spec["lr"], betas=betas, eps=spec["eps"], weight_decay=spec["weight_decay"], fused=True
    )

    def step():
        optimizer.zero_grad(set_to_none=True)
        with autocast():
            loss = forward(input_ids=tokens, pixel_values=images, return_loss=True).loss
        loss.backward()
        optimizer.step()
        with torch.no_grad():
            model.logit_scale.clamp_(0, math.log(100))
        return loss.detach()

    return step


if __name__ == "__main__":
    sys.exit(serve(("torch", "transformers"), prepare))
