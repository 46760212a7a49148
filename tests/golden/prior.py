"""Writes prior.npz: what the diffusion prior computes in diffusers (PriorTransformer) and in the original (Karlo), at a tiny width.

    pip install -e '.[parity]' && pip install --no-deps diffusers==0.42.1 importlib_metadata
    python tests/golden/prior.py KARLO

The argument is a clone of kakaobrain/karlo, which is run and not copied. Weights and inputs are made again by tests from their names. Per
form ("diffusers", "original") `FORM/out`; of diffusers also `scaled`, the same brought back by clip_mean and clip_std, and `config`,
its config.json; of the original the names and shapes of what `torch.save` holds, behind "model.", and karlo_stats.th, mean
and deviation of embeddings as Karlo has them beside it. diffusers is given a mask, for without
one its attention is not even causal.

    python tests/golden/prior.py --load FOLDER

Loads the folder that `mmjax convert export --to hf` wrote of a prior.
"""

import json
import sys
from pathlib import Path

import numpy as np
import reference
import torch
from weights import normal

WIDTH, HEADS, DEPTH, WORDS, EMBEDDING = 32, 4, 3, 5, 12
TIMES = (3.0, 977.0)
MASK = [[1, 1, 1, 0, 0], [1, 1, 1, 1, 1]]


def inputs() -> tuple[torch.Tensor, ...]:
    """Noised image embedding, times, text embedding, words."""
    array = lambda name, *shape: torch.from_numpy(normal(name, shape)).double()
    return array("x", 2, EMBEDDING), torch.tensor(TIMES).double(), array("text", 2, EMBEDDING), array("words", 2, WORDS, EMBEDDING)


def ours() -> torch.nn.Module:
    from diffusers import PriorTransformer

    sizes = {"num_attention_heads": HEADS, "attention_head_dim": WIDTH // HEADS, "num_layers": DEPTH}
    return PriorTransformer(**sizes, embedding_dim=EMBEDDING, num_embeddings=WORDS)


def statistics() -> None:
    array = lambda name: torch.from_numpy(normal(name, (EMBEDDING,)))
    torch.save((array("clip_mean"), array("clip_std").abs()), Path(__file__).parent / "karlo_stats.th")


@torch.no_grad()
def main(karlo: str) -> None:
    statistics()
    out, shapes = {}, {}
    x, t, text, words = inputs()
    mask = torch.tensor(MASK).bool()
    model = ours().eval()
    shapes["diffusers"] = reference.fill(model)
    model.clip_std.abs_()
    said = model(x, t, text, words, mask).predicted_image_embedding
    out["diffusers/out"], out["diffusers/scaled"] = reference.numpy(said), reference.numpy(model.post_process_latents(said))
    config = {k: v for k, v in json.loads(model.to_json_string()).items() if k != "_name_or_path"}
    out["config"] = np.array(json.dumps(config))

    sys.path.insert(0, karlo)
    from karlo.modules.xf import PriorTransformer

    outer = torch.nn.Module()
    outer.model = PriorTransformer(WORDS, WIDTH, DEPTH, HEADS, True, EMBEDDING)
    shapes["original"] = reference.fill(outer)
    outer.float()
    length = WORDS + 4
    causal = torch.full((length, length), float("-inf")).triu_(1)[None]
    told = {"text_emb": text.float(), "text_enc": words.float(), "mask": mask, "causal_mask": causal}
    out["original/out"] = reference.numpy(outer.model(x.float(), t.float(), **told))
    print({name: float(np.abs(x).max()) for name, x in out.items() if name != "config"})
    reference.save(__file__, out, shapes, ("diffusers",))


def load(folder: str) -> None:
    """It loads in diffusers with all of its tensors."""
    model = ours()
    loaded, report = type(model).from_pretrained(folder, output_loading_info=True)
    assert not any(report[k] for k in ("missing_keys", "unexpected_keys", "mismatched_keys")), report
    plain = lambda config: {k: v for k, v in dict(config).items() if not k.startswith("_")}
    mine, theirs = plain(loaded.config), plain(model.config)
    print("loads; settings written otherwise:", {k: (theirs[k], mine[k]) for k in theirs if theirs[k] != mine[k]})


if __name__ == "__main__":
    torch.set_num_threads(1)
    load(sys.argv[2]) if sys.argv[1] == "--load" else main(str(Path(sys.argv[1]).resolve()))
