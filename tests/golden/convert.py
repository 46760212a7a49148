"""Writes convert.npz and checkpoints/: what published implementations compute, and small files that they write themselves.

    pip install -e '.[parity]' timm
    python tests/golden/convert.py

convert.npz has what a library computes in float64, for each case as far as the model has it: `CASE/image`, `CASE/text`, `CASE/logits`,
`CASE/tokens`, of pixels and ids from `inputs`, which are there as `ids...`; and `shapes`, by case the names and shapes of its tensors,
whose values come from weights.py, and `configs`, what is to lie beside them. checkpoints/ has files and folders made by torch.save,
torch.jit.save and save_pretrained, with outputs under their names.
"""

import io
import json
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import reference
import torch
from reference import numpy
from weights import normal, tensors

reference.without_torchvision()

import open_clip  # noqa: E402
import timm  # noqa: E402
import transformers as hf  # noqa: E402

FOLDER = Path(__file__).parent / "checkpoints"
SIZE, PATCH, VOCAB, LENGTH, EMBED = 16, 8, 40, 8, 12
SHAPES: dict[str, dict[str, list[int]]] = {}
CONFIGS: dict[str, Any] = {}
OUT: dict[str, np.ndarray] = {}


def inputs(size: int, vocab: int, length: int, images: int = 2, texts: int = 3) -> tuple[torch.Tensor, torch.Tensor]:
    """Pixels NHWC and ids, whose largest, vocab - 1, ends each row at another place; 1 and more, as 0 is padding."""
    pixels = normal(f"pixels{size}", (images, size, size, 3))
    ids = 1 + np.abs(normal(f"ids{vocab}", (texts, length)) * vocab).astype(np.int64) % (vocab - 2)
    for row, end in enumerate((length - 1, length // 2, length - 2)[:texts]):
        ids[row, end] = vocab - 1
        ids[row, end + 1 :] = 0
    return torch.from_numpy(pixels).double(), torch.from_numpy(ids)


def store(case: str, **values: torch.Tensor) -> None:
    for name, value in values.items():
        OUT[f"{case}/{name}"] = numpy(value)


def pair(case: str, image: torch.Tensor, text: torch.Tensor, scale: torch.Tensor, bias: Any = 0.0) -> None:
    unit = lambda x: x / x.norm(dim=-1, keepdim=True)
    store(case, image=image, text=text, logits=scale.double().exp() * unit(image) @ unit(text).T + bias)


# --- OpenCLIP, whose names are OpenAI's -------------------------------------------------------------------------------------

TEXT = {"context_length": LENGTH, "vocab_size": VOCAB, "width": 128, "heads": 2, "layers": 2}
VIT = {"image_size": SIZE, "layers": 2, "width": 128, "patch_size": PATCH}
RESNET = {"image_size": 64, "layers": [1, 2, 3, 1], "width": 8}
SIGLIP = {"no_causal_mask": True, "proj_bias": True, "pool_type": "last", "norm_kwargs": {"eps": 1e-6}}
OPENCLIP = {
    "openai_vit": {"embed_dim": EMBED, "quick_gelu": True, "vision_cfg": VIT, "text_cfg": TEXT},
    "openai_resnet": {"embed_dim": EMBED, "quick_gelu": True, "vision_cfg": RESNET, "text_cfg": TEXT},
    "openclip_gelu": {
        "embed_dim": EMBED,
        "vision_cfg": {**VIT, "head_width": 32, "width": 96, "mlp_ratio": 4.3637},
        "text_cfg": {**TEXT, "width": 64, "heads": 4, "layers": 1},
    },
    "openclip_custom_text": {"embed_dim": EMBED, "custom_text": True, "vision_cfg": VIT, "text_cfg": TEXT},
    "openclip_siglip": {
        "embed_dim": 32,
        "init_logit_bias": -10,
        "custom_text": True,
        "vision_cfg": {"image_size": SIZE, "timm_model_name": "vit_base_patch16_siglip_224", "timm_pool": "map", "timm_proj": "none"},
        "text_cfg": {**TEXT, **SIGLIP, "width": 32, "heads": 4, "act_kwargs": {"approximate": "tanh"}},
    },
}
TIMM = {"embed_dim": 32, "depth": 2, "num_heads": 4, "mlp_ratio": 2.0, "patch_size": PATCH, "img_size": SIZE}


def openclip(case: str) -> torch.nn.Module:
    config = dict(OPENCLIP[case])
    kind = open_clip.CustomTextCLIP if config.pop("custom_text", False) else open_clip.CLIP
    if case == "openclip_siglip":
        # A small one in the place of the tower that the name stands for.
        create = timm.create_model
        timm.create_model = lambda name, **how: create(name, num_classes=0, class_token=False, global_pool="map", **TIMM)
        model = kind(**config)
        timm.create_model = create
    else:
        model = kind(**config)
    SHAPES[case], CONFIGS[case] = reference.fill(model.eval()), {"open_clip_config.json": {"model_cfg": OPENCLIP[case]}}
    pixels, ids = inputs(config["vision_cfg"]["image_size"], VOCAB, LENGTH)
    image, text = model.encode_image(pixels.permute(0, 3, 1, 2)), model.encode_text(ids)
    pair(case, image, text, model.logit_scale, getattr(model, "logit_bias", None) if case == "openclip_siglip" else 0.0)
    return model


# --- files that PyTorch writes ----------------------------------------------------------------------------------------------


class Whole(torch.nn.Module):
    """As OpenAI's archives: the model's parameters and three numbers, in one TorchScript module."""

    def __init__(self, clip: torch.nn.Module):
        super().__init__()
        for name, child in clip.named_children():
            setattr(self, name, child)
        for name, p in clip.named_parameters(recurse=False):
            setattr(self, name, p)
        for name, value in (("input_resolution", SIZE), ("context_length", LENGTH), ("vocab_size", VOCAB)):
            self.register_buffer(name, torch.tensor(value))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.logit_scale.exp() * x * self.text_projection.sum() * self.positional_embedding.sum()


def torch_files() -> None:
    """A TorchScript archive and a state dict in half precision; a reference computes with the rounded weights."""
    small = {"embed_dim": EMBED, "quick_gelu": True, "vision_cfg": {**VIT, "width": 16, "head_width": 16, "layers": 1}}
    model = open_clip.CLIP(**small, text_cfg={**TEXT, "width": 16, "heads": 1, "layers": 1})
    reference.fill(model.eval())
    model.half()
    torch.save(model.state_dict(), FOLDER / "openai_state_dict.pt")
    torch.save({"epoch": 3, "state_dict": {f"module.{k}": v for k, v in model.state_dict().items()}}, FOLDER / "openclip_training.pt")
    with torch.no_grad():
        traced = torch.jit.trace(Whole(model).float(), torch.ones(1), check_trace=False).half()
    written = io.BytesIO()
    torch.jit.save(traced, written)
    with zipfile.ZipFile(written) as old, zipfile.ZipFile(FOLDER / "openai_jit.pt", "w") as new:
        for info in old.infolist():
            if not info.filename.endswith(".debug_pkl"):  # paths of the machine
                new.writestr(info, old.read(info))
    torch.save(model.state_dict(), FOLDER / "legacy.pt", _use_new_zipfile_serialization=False)
    model.half().double()
    pixels, ids = inputs(SIZE, VOCAB, LENGTH)
    pair("torch", model.encode_image(pixels.permute(0, 3, 1, 2)), model.encode_text(ids), model.logit_scale)


# --- Hugging Face -----------------------------------------------------------------------------------------------------------

TOWER = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "attention_dropout": 0.0}
HF_TEXT = {**TOWER, "vocab_size": VOCAB, "max_position_embeddings": LENGTH, "bos_token_id": 1, "pad_token_id": 0, "eos_token_id": VOCAB - 1}
HF_VISION = {**TOWER, "image_size": SIZE, "patch_size": PATCH}


def build(kind: type, config: Any) -> torch.nn.Module:
    config._attn_implementation = "sdpa"  # the eager one has a float32 softmax inside
    model = kind(config)
    reference.fill(model.eval())
    return model


def save(name: str, model: torch.nn.Module) -> None:
    model.float().save_pretrained(FOLDER / name)
    for extra in (FOLDER / name).glob("generation_config.json"):
        extra.unlink()
    model.double()


def hf_pair(name: str, model: torch.nn.Module) -> None:
    save(name, model)
    pixels, ids = inputs(SIZE, VOCAB, LENGTH)
    out = model(input_ids=ids, pixel_values=pixels.permute(0, 3, 1, 2))
    features = lambda x: x if isinstance(x, torch.Tensor) else x.pooler_output
    image, text = features(model.get_image_features(pixels.permute(0, 3, 1, 2))), features(model.get_text_features(ids))
    store(name, image=image, text=text, logits=out.logits_per_image)


def huggingface() -> None:
    pixels, ids = inputs(SIZE, VOCAB, LENGTH)
    clip = lambda act: hf.CLIPConfig(
        text_config={**HF_TEXT, "hidden_act": act}, vision_config={**HF_VISION, "hidden_act": act}, projection_dim=EMBED
    )
    hf_pair("hf_clip", build(hf.CLIPModel, clip("gelu")))
    for name, kind in (("hf_clip_text", hf.CLIPTextModel), ("hf_clip_text_projection", hf.CLIPTextModelWithProjection)):
        model = build(kind, hf.CLIPTextConfig(**HF_TEXT, projection_dim=EMBED, hidden_act="quick_gelu"))
        save(name, model)
        out = model(input_ids=ids)
        text = out.text_embeds if "text_embeds" in out else out.pooler_output
        store(name, text=text, tokens=out.last_hidden_state)
    for name, kind in (("hf_clip_vision", hf.CLIPVisionModel), ("hf_clip_vision_projection", hf.CLIPVisionModelWithProjection)):
        model = build(kind, hf.CLIPVisionConfig(**HF_VISION, projection_dim=EMBED, hidden_act="quick_gelu"))
        save(name, model)
        out = model(pixel_values=pixels.permute(0, 3, 1, 2))
        store(name, image=out.image_embeds if "image_embeds" in out else out.pooler_output)
    model = build(hf.SiglipModel, hf.SiglipConfig(text_config=HF_TEXT, vision_config=HF_VISION))
    hf_pair("hf_siglip", model)
    model = build(hf.SiglipTextModel, hf.SiglipTextConfig(**HF_TEXT))
    save("hf_siglip_text", model)
    store("hf_siglip_text", text=model(input_ids=ids).pooler_output)
    model = build(hf.SiglipVisionModel, hf.SiglipVisionConfig(**HF_VISION))
    save("hf_siglip_vision", model)
    store("hf_siglip_vision", image=model(pixel_values=pixels.permute(0, 3, 1, 2)).pooler_output)
    model = build(hf.BertModel, hf.BertConfig(**{**HF_TEXT, "max_position_embeddings": 16, "attention_probs_dropout_prob": 0.0}))
    save("hf_bert", model)
    out = model(input_ids=ids, attention_mask=(ids != 0).long())
    store("hf_bert", text=out.pooler_output, tokens=out.last_hidden_state)
    size = {"vocab_size": VOCAB, "d_model": 16, "d_kv": 4, "d_ff": 32, "num_layers": 2, "num_heads": 2, "relative_attention_num_buckets": 8}
    for name, how in (("hf_t5", "relu"), ("hf_t5_v1_1", "gated-gelu")):
        model = build(hf.T5EncoderModel, hf.T5Config(**size, feed_forward_proj=how, relative_attention_max_distance=16))
        save(name, model)
        store(name, tokens=model(input_ids=ids, attention_mask=(ids != 0).long()).last_hidden_state)


def big_vision() -> None:
    """No JAX here: the same model is Hugging Face's SigLIP, whose weights are big_vision's transposed."""
    w, heads, hidden, side = 16, 2, 32, SIZE // PATCH
    SHAPES["big_vision"] = {}
    back: dict[str, Any] = {}  # Hugging Face's name -> value of big_vision's

    def make(name: str, shape: tuple[int, ...]) -> torch.Tensor:
        SHAPES["big_vision"][f"params/{name}"] = list(shape)
        return torch.from_numpy(tensors({f"params/{name}": shape})[f"params/{name}"])

    def norm(ours: str, theirs: str) -> None:
        back[f"{theirs}.weight"], back[f"{theirs}.bias"] = make(f"{ours}/scale", (w,)), make(f"{ours}/bias", (w,))

    def dense(ours: str, theirs: str, i: int, o: int) -> None:
        back[f"{theirs}.weight"], back[f"{theirs}.bias"] = make(f"{ours}/kernel", (i, o)).T, make(f"{ours}/bias", (o,))

    def attention(ours: str) -> dict[str, tuple[torch.Tensor, torch.Tensor]]:
        out = {}
        for name in ("query", "key", "value"):
            kernel = make(f"{ours}/{name}/kernel", (w, heads, w // heads)).reshape(w, w).T
            out[name] = kernel, make(f"{ours}/{name}/bias", (heads, w // heads)).reshape(w)
        out["out"] = make(f"{ours}/out/kernel", (heads, w // heads, w)).reshape(w, w).T, make(f"{ours}/out/bias", (w,))
        return out

    def encoder(ours: str, theirs: str, last: str) -> None:
        for i in range(2):
            at, to = f"{ours}/encoderblock_{i}", f"{theirs}.encoder.layers.{i}"
            norm(f"{at}/LayerNorm_0", f"{to}.layer_norm1")
            for name, (kernel, bias) in attention(f"{at}/MultiHeadDotProductAttention_0").items():
                short = {"query": "q_proj", "key": "k_proj", "value": "v_proj", "out": "out_proj"}[name]
                back[f"{to}.self_attn.{short}.weight"], back[f"{to}.self_attn.{short}.bias"] = kernel, bias
            norm(f"{at}/LayerNorm_1", f"{to}.layer_norm2")
            dense(f"{at}/MlpBlock_0/Dense_0", f"{to}.mlp.fc1", w, hidden)
            dense(f"{at}/MlpBlock_0/Dense_1", f"{to}.mlp.fc2", hidden, w)
        norm(f"{ours}/encoder_norm", f"{theirs}.{last}")

    v, t = "vision_model", "text_model"
    back[f"{v}.embeddings.patch_embedding.weight"] = make("img/embedding/kernel", (PATCH, PATCH, 3, w)).permute(3, 2, 0, 1)
    back[f"{v}.embeddings.patch_embedding.bias"] = make("img/embedding/bias", (w,))
    back[f"{v}.embeddings.position_embedding.weight"] = make("img/pos_embedding", (1, side * side, w))[0]
    encoder("img/Transformer", v, "post_layernorm")
    back[f"{v}.head.probe"] = make("img/MAPHead_0/probe", (1, 1, w))
    parts = attention("img/MAPHead_0/MultiHeadDotProductAttention_0")
    back[f"{v}.head.attention.in_proj_weight"] = torch.cat([parts[n][0] for n in ("query", "key", "value")])
    back[f"{v}.head.attention.in_proj_bias"] = torch.cat([parts[n][1] for n in ("query", "key", "value")])
    back[f"{v}.head.attention.out_proj.weight"], back[f"{v}.head.attention.out_proj.bias"] = parts["out"]
    norm("img/MAPHead_0/LayerNorm_0", f"{v}.head.layernorm")
    dense("img/MAPHead_0/MlpBlock_0/Dense_0", f"{v}.head.mlp.fc1", w, hidden)
    dense("img/MAPHead_0/MlpBlock_0/Dense_1", f"{v}.head.mlp.fc2", hidden, w)
    back[f"{t}.embeddings.token_embedding.weight"] = make("txt/Embed_0/embedding", (VOCAB, w))
    back[f"{t}.embeddings.position_embedding.weight"] = make("txt/pos_embedding", (1, LENGTH, w))[0]
    encoder("txt/Encoder_0", t, "final_layer_norm")
    dense("txt/head", f"{t}.head", w, w)
    back["logit_scale"], back["logit_bias"] = make("t", (1,)), make("b", (1,))
    config = hf.SiglipConfig(text_config=HF_TEXT, vision_config=HF_VISION)
    config._attn_implementation = "sdpa"
    model = hf.SiglipModel(config)
    model.load_state_dict({name: x.contiguous() for name, x in back.items()})
    model.double().eval()
    pixels, ids = inputs(SIZE, VOCAB, LENGTH)
    features = lambda x: x if isinstance(x, torch.Tensor) else x.pooler_output
    image, text = features(model.get_image_features(pixels.permute(0, 3, 1, 2))), features(model.get_text_features(ids))
    out = model(input_ids=ids, pixel_values=pixels.permute(0, 3, 1, 2))
    store("big_vision", image=image, text=text, logits=out.logits_per_image)


def main() -> None:
    torch.set_num_threads(1)
    FOLDER.mkdir(exist_ok=True)
    with torch.no_grad():
        for case in OPENCLIP:
            openclip(case)
        torch_files()
        huggingface()
        big_vision()
    OUT[f"ids{VOCAB}"] = inputs(SIZE, VOCAB, LENGTH)[1].numpy().astype(np.int32)
    reference.save(__file__, {**OUT, "configs": np.array(json.dumps(CONFIGS))}, SHAPES, ("transformers", "open_clip_torch", "timm"))


if __name__ == "__main__":
    main()
