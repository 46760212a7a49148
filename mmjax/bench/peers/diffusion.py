"""diffusers' UNet2DModel or DiTTransformer2DModel, trained with PyTorch's AdamW to predict noise. Run by mmjax bench; protocol in
bench/peer.py.

spec.json: dtype ("float32" or "bfloat16"), threads, lr, b1, b2, eps, weight_decay.
batch.npz: image float32[B, H, W, C], t int64[B], and labels int32[B] where the network takes them. hf/: the weights.
On an accelerator the network is compiled by torch.compile.
outputs.npz: network [B, H, W, O], what it gives for image and t.
"""

import json
import sys

from protocol import serve


def prepare(torch, diffusers, folder):
    """The step, warm, and what to say of it; writes outputs.npz."""
    import numpy as np

    spec = json.loads((folder / "spec.json").read_text())
    torch.set_num_threads(spec["threads"])
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = True  # what XLA does for float32 on the same units
    device = "cuda" if torch.cuda.is_available() else "cpu"
    batch = np.load(folder / "batch.npz")
    x0 = torch.from_numpy(np.ascontiguousarray(batch["image"].transpose(0, 3, 1, 2))).to(device)
    labels = torch.from_numpy(batch["labels"].astype(np.int64)).to(device) if "labels" in batch else None
    name = json.loads((folder / "hf" / "config.json").read_text())["_class_name"]
    model = getattr(diffusers, name).from_pretrained(folder / "hf").to(device)
    given = {} if labels is None else {"class_labels": labels}
    autocast = lambda: torch.autocast(device, torch.bfloat16, enabled=spec["dtype"] == "bfloat16")
    model.eval()
    with torch.no_grad(), autocast():
        out = model(x0, torch.from_numpy(batch["t"]).to(device), **given).sample
    np.savez(folder / "outputs.npz", network=out.float().cpu().numpy().transpose(0, 2, 3, 1))
    model.train()
    forward = torch.compile(model) if device == "cuda" else model
    alpha_bar = torch.cumprod(1 - torch.linspace(1e-4, 0.02, 1000, dtype=torch.float64), 0).float().to(device)
    betas = (spec["b1"], spec["b2"])
    optimizer = torch.optim.AdamW(
        model.parameters(), lr=spec["lr"], betas=betas, eps=spec["eps"], weight_decay=spec["weight_decay"], fused=True
    )

    def step():
        optimizer.zero_grad(set_to_none=True)
        t = torch.randint(0, 1000, (len(x0),), device=device)
        noise, level = torch.randn_like(x0), alpha_bar[t][:, None, None, None]
        with autocast():
            out = forward(level.sqrt() * x0 + (1 - level).sqrt() * noise, t, **given).sample[:, : x0.shape[1]]
            loss = torch.nn.functional.mse_loss(out.float(), noise)
        loss.backward()
        optimizer.step()
        return loss.detach()

    step()
    versions = {m.__name__: m.__version__ for m in (torch, diffusers)}
    where = torch.cuda.get_device_name() if device == "cuda" else "cpu"
    return step, {"versions": versions, "device": where, "threads": torch.get_num_threads(), "compiled": device == "cuda"}


if __name__ == "__main__":
    sys.exit(serve(("torch", "diffusers"), prepare))
