"""Writes open_flamingo.npz: what OpenFlamingo's modules compute, on weights and inputs made from their names.

    pip install -e '.[parity]' einops einops-exts
    git clone https://github.com/mlfoundations/open_flamingo && git -C open_flamingo checkout 655f693
    python tests/golden/open_flamingo.py open_flamingo

`resampler` and `block`, of its two modules alone, `block_all` of one whose tokens look at all images before. `LM/logits`: the whole
model on a tiny CLIP and a tiny MPT or GPT-NeoX of transformers, its cross-attention before every second block; the vision tower gives the
patches of its last block, before the last norm, as OpenCLIP did up to release 2.22. `shapes` has what its training script would write,
under `LM/checkpoint`, and the language model's and CLIP's own tensors, `LM/lm` and `clip`; `configs` the last two's config.json. All runs
in float64.
"""

import json
import sys
from pathlib import Path

import numpy as np
import reference
import torch
from weights import normal, tensor

CLIP = {
    **{"hidden_size": 24, "intermediate_size": 40, "num_hidden_layers": 2, "num_attention_heads": 2, "image_size": 16, "patch_size": 8},
    "hidden_act": "quick_gelu",
}
VOCAB, NEW = 40, 2  # of the language model; and `<|endofchunk|>`, `<image>`
LMS = {
    "mpt": {"d_model": 32, "n_heads": 2, "n_layers": 5, "max_seq_len": 32, "vocab_size": VOCAB},
    "gpt_neox": {
        **{"hidden_size": 32, "num_attention_heads": 2, "num_hidden_layers": 4, "intermediate_size": 48, "vocab_size": VOCAB},
        **{"max_position_embeddings": 32, "rotary_pct": 1.0, "use_parallel_residual": False, "hidden_act": "gelu"},
    },
}
EVERY, IMAGE = 2, VOCAB + 1
SIZES = {"dim": 24, "depth": 2, "dim_head": 8, "heads": 3, "num_latents": 5}


def tokens() -> np.ndarray:
    """int64[2, 11]: text, and two images at other places in each row."""
    out = np.abs(normal("tokens", (2, 11)) * 1000).astype(np.int64) % VOCAB
    out[0, [3, 7]], out[1, [0, 5]] = IMAGE, IMAGE
    return out


def modules() -> tuple[dict, dict]:
    """The resampler, and the gated block on its own."""
    from src.helpers import GatedCrossAttentionBlock, PerceiverResampler

    resampler = PerceiverResampler(**SIZES, max_num_frames=3, ff_mult=2)
    block = GatedCrossAttentionBlock(dim=32, dim_visual=24, dim_head=8, heads=3, ff_mult=2)
    every = GatedCrossAttentionBlock(dim=32, dim_visual=24, dim_head=8, heads=3, ff_mult=2, only_attend_immediate_media=False)
    shapes = {"resampler": reference.fill(resampler), "block": reference.fill(block)}
    reference.fill(every)
    double = lambda name, shape: torch.from_numpy(normal(name, shape)).double()
    places = torch.from_numpy(tokens() == IMAGE)
    x, media = double("x", (2, 11, 32)), double("media", (2, 2, 5, 24))
    seen = resampler(double("features", (2, 2, 3, 4, 24)))
    out = {"resampler": seen, "block": block(x, media, places), "block_all": every(x, media, places)}
    return {name: reference.numpy(value) for name, value in out.items()}, shapes


class Tower(torch.nn.Module):
    """What Flamingo takes for its vision encoder: `visual` gives a pair of which the second are features."""

    def __init__(self, clip: torch.nn.Module):
        super().__init__()
        self.clip = clip

    @property
    def visual(self):
        return self

    def forward(self, pixels):
        return None, self.clip(pixels, output_hidden_states=True).hidden_states[-1][:, 1:]


def whole(kind: str) -> tuple[np.ndarray, dict, dict]:
    """Logits, shapes and configs of a Flamingo on one language model."""
    import transformers
    from src.flamingo import Flamingo
    from src.flamingo_lm import FlamingoLMMixin
    from src.utils import extend_instance

    config, model = {"mpt": ("MptConfig", "MptForCausalLM"), "gpt_neox": ("GPTNeoXConfig", "GPTNeoXForCausalLM")}[kind]
    attn = {"attn_config": transformers.models.mpt.configuration_mpt.MptAttentionConfig()} if kind == "mpt" else {}
    lm = getattr(transformers, model)(getattr(transformers, config)(**LMS[kind], **attn))
    own = {name: list(x.shape) for name, x in lm.state_dict().items() if kind != "mpt" or name != "lm_head.weight"}  # it is tied
    own_config = lm.config.to_dict()
    extend_instance(lm, FlamingoLMMixin)
    lm.set_decoder_layers_attr_name({"mpt": "transformer.blocks", "gpt_neox": "gpt_neox.layers"}[kind])
    lm.resize_token_embeddings(VOCAB + NEW)
    clip = transformers.CLIPVisionModel(transformers.CLIPVisionConfig(**CLIP))
    flamingo = Flamingo(Tower(clip), lm, VOCAB, IMAGE, vis_dim=CLIP["hidden_size"], cross_attn_every_n_layers=EVERY).eval()
    state = fill(flamingo, own)
    pixels = torch.from_numpy(normal("pixels", (2, 2, 1, 16, 16, 3))).double().permute(0, 1, 2, 5, 3, 4)
    given = torch.from_numpy(tokens())
    logits = flamingo(pixels, given, attention_mask=torch.ones_like(given)).logits
    sources = {f"{kind}/checkpoint": state, f"{kind}/lm": own, "clip": {n: list(x.shape) for n, x in clip.state_dict().items()}}
    return reference.numpy(logits), sources, {f"{kind}/lm": own_config, "clip": clip.config.to_dict()}


def fill(flamingo: torch.nn.Module, own: dict) -> dict[str, list[int]]:
    """Weights by the names that each has in its own file: of the checkpoint, of CLIP, of the language model. Returns the first's shapes."""
    flamingo.double()
    shapes = {}
    for name, x in flamingo.state_dict(keep_vars=True).items():
        inner = name.removeprefix("lang_encoder.").replace(".decoder_layer.", ".")
        if name.startswith("vision_encoder."):
            key = name.removeprefix("vision_encoder.clip.")
        elif name.startswith(("lang_encoder.old_decoder_blocks", "lang_encoder.gated_cross_attn_layers")):
            continue  # other names of the same tensors
        elif name == "lang_encoder.lm_head.weight":  # tied, or what older releases of transformers called embed_out
            if "lm_head.weight" not in own:
                continue
            key = "lang_encoder.embed_out.weight"
            shapes[key] = list(x.shape)
        elif name.startswith("perceiver.") or "gated_cross_attn_layer." in name or "embed" in name or ".wte." in name:
            key, shapes[name] = name, list(x.shape)
        elif inner in own:
            key = inner
        else:
            raise KeyError(name)
        x.data.copy_(torch.from_numpy(tensor(key, tuple(x.shape))))
    return shapes


def main() -> None:
    torch.set_num_threads(1)
    arrays, shapes = modules()
    configs = {}
    for kind in LMS:
        logits, sources, config = whole(kind)
        arrays[f"{kind}/logits"] = logits
        shapes |= sources
        configs |= config
    arrays |= {"tokens": tokens().astype(np.int32), "configs": np.array(json.dumps(configs))}
    reference.save(__file__, arrays, shapes, ("transformers", "einops"))


if __name__ == "__main__":
    sys.path.insert(0, str(Path(sys.argv[1]) / "open_flamingo"))  # as package `src`: the outer one imports what is not needed
    main()
