"""Writes karlo_pipeline.npz: pictures of diffusers' UnCLIPPipeline, tiny and with given noise, and what its stages hand on.

    pip install -e '.[parity]' && pip install --no-deps diffusers==0.42.1 importlib_metadata
    python tests/golden/karlo_pipeline.py

Weights and noise are made again by tests from their names, so that only what comes out is stored: `tokens`, `text` and `words` (the
captions' embeddings and features, then those of the empty text), `mask`; `prior`, `decoder`, `first`, `last`, what each network says when
it is asked first, of no caption and then of the captions where it is guided; `low`, what the last network is shown; `embedding`, `small`
and `pictures`, what the stages hand on; pictures as NHWC. `configs` is file -> content of the folder. All in float64, the schedulers'
tables too, which the pipeline has in float32. Pictures are small: at time 999 x0 is (x - 0.99999 eps) / 5e-5, and of many numbers some
lie so near 0 that rounding decides which way they are clipped; with these, diffusers in float32 is within 3e-6 of itself in float64.
"""

import json
from pathlib import Path

import numpy as np
import reference
import torch
from karlo import DECODER, SUPER, named
from unets import nhwc
from weights import normal

PROMPTS = ["a red circle!", "two blue stars and one more"]
WIDTH, SMALL, SIDE, TOKENS = 12, 4, 16, 3
STEPS = {"prior": 25, "decoder": 25, "super_res": 7}
SIZES = {"block_out_channels": (16, 32), "layers_per_block": 1, "norm_num_groups": 8}
WORDS = Path(__file__).parent / "tokenizers" / "clip"


def models() -> dict[str, torch.nn.Module]:
    from diffusers import PriorTransformer, UNet2DConditionModel, UNet2DModel
    from diffusers.pipelines.deprecated.unclip.text_proj import UnCLIPTextProjModel
    from transformers import CLIPTextConfig, CLIPTextModelWithProjection

    vocab = len(json.loads((WORDS / "vocab.json").read_text()))
    text = {"hidden_size": WIDTH, "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2, "projection_dim": WIDTH}
    projection = {"clip_embeddings_dim": WIDTH, "cross_attention_dim": WIDTH, "time_embed_dim": 64}
    return {
        # As Karlo's folder has it: 2 stands for the largest token.
        "text_encoder": CLIPTextModelWithProjection(CLIPTextConfig(**text, vocab_size=vocab, eos_token_id=2)).eval(),
        "prior": PriorTransformer(num_attention_heads=2, attention_head_dim=8, num_layers=2, embedding_dim=WIDTH, num_embeddings=77).eval(),
        "decoder": UNet2DConditionModel(**SIZES, **{**DECODER, "sample_size": SMALL}).eval(),
        "text_proj": UnCLIPTextProjModel(clip_extra_context_tokens=TOKENS, **projection).eval(),
        "super_res_first": UNet2DModel(sample_size=SIDE, **SIZES, **SUPER).eval(),
        "super_res_last": UNet2DModel(sample_size=SIDE, **SIZES, **SUPER).eval(),
    }


def schedulers() -> dict:
    """With the settings of Karlo's folder."""
    from diffusers import UnCLIPScheduler

    fixed, learned = {"variance_type": "fixed_small_log"}, {"variance_type": "learned_range"}
    made = {
        "prior_scheduler": UnCLIPScheduler(**fixed, prediction_type="sample", clip_sample_range=5.0),
        "decoder_scheduler": UnCLIPScheduler(**learned),
        "super_res_scheduler": UnCLIPScheduler(**fixed),
    }
    for scheduler in made.values():
        scheduler.variance_type = scheduler.config.variance_type
        level = lambda t: np.cos((t + 0.008) / 1.008 * np.pi / 2) ** 2
        scheduler.betas = torch.from_numpy(np.minimum(1 - level(np.arange(1, 1001) / 1000) / level(np.arange(1000) / 1000), 0.999))
        scheduler.alphas = 1 - scheduler.betas
        scheduler.alphas_cumprod = scheduler.alphas.cumprod(0)
    return made


def noise(name: str, shape: tuple[int, ...]) -> torch.Tensor:
    """NCHW of what tests draw as NHWC."""
    drawn = normal(name, (shape[0], *shape[2:], shape[1]) if len(shape) == 4 else shape)
    return torch.from_numpy(np.moveaxis(drawn, -1, 1) if len(shape) == 4 else drawn).double()


def named_noise(seen: dict[str, int]):
    """Of a stage, which the shape tells, and a step."""
    stages = {(WIDTH,): "prior", (3, SMALL, SMALL): "decoder", (3, SIDE, SIDE): "super_res"}

    def draw(shape, **_):
        stage = stages[tuple(shape[1:])]
        seen[stage] = seen.get(stage, -1) + 1
        return noise(f"{stage}/noise/{seen[stage]}", tuple(shape))

    return draw


@torch.no_grad()
def main() -> None:
    from diffusers import UnCLIPPipeline
    from diffusers.schedulers import scheduling_unclip
    from transformers import CLIPTokenizer

    made, shapes, out, seen = models(), {}, {}, {}
    for name, model in made.items():
        named(name, model, shapes.setdefault(name, {}))
    made["prior"].clip_std.abs_()
    tokenizer = CLIPTokenizer.from_pretrained(WORDS, model_max_length=77)
    pipe = UnCLIPPipeline(**made, tokenizer=tokenizer, **schedulers())
    pipe.set_progress_bar_config(disable=True)
    scheduling_unclip.randn_tensor = named_noise(seen)

    def first(name, pick):
        def hook(module, args, kwargs, said):
            if name not in out:
                out[name] = pick(said)
                if name == "last":
                    out["low"] = nhwc(kwargs["sample"])

        return hook

    for name, model, pick in (
        ("prior", "prior", lambda said: reference.numpy(said.predicted_image_embedding)),
        *(
            (name, model, lambda said: nhwc(said.sample))
            for name, model in (("decoder", "decoder"), ("first", "super_res_first"), ("last", "super_res_last"))
        ),
    ):
        made[model].register_forward_hook(first(name, pick), with_kwargs=True)
    handed = made["text_proj"].register_forward_pre_hook(
        lambda module, args, kwargs: out.update(embedding=reference.numpy(kwargs["image_embeddings"])), with_kwargs=True
    )
    step = pipe.decoder_scheduler.step

    def keep(*args, **kwargs):
        said = step(*args, **kwargs)
        out["small"] = nhwc(said.prev_sample.clamp(-1, 1))
        return said

    pipe.decoder_scheduler.step = keep
    count = len(PROMPTS)
    starts = {"prior": (count, WIDTH), "decoder": (count, 3, SMALL, SMALL), "super_res": (count, 3, SIDE, SIDE)}
    given = {f"{name}_latents": noise(f"{name}/start", shape) for name, shape in starts.items()}
    asked = {f"{name}_num_inference_steps": n for name, n in STEPS.items()}
    out["pictures"] = pipe(PROMPTS, **given, **asked, output_type="np").images
    handed.remove()
    texts = tokenizer([*PROMPTS, ""], padding="max_length", max_length=77, truncation=True, return_tensors="pt")
    said = made["text_encoder"](texts.input_ids)
    out |= {"tokens": texts.input_ids.numpy().astype(np.int32), "mask": texts.attention_mask.bool().numpy()}
    out |= {"text": reference.numpy(said.text_embeds), "words": reference.numpy(said.last_hidden_state)}
    assert seen == {"prior": 23, "decoder": 23, "super_res": 5}, seen  # none after the last look
    configs = {
        f"{name}/config.json": json.loads(model.config.to_json_string() if name == "text_encoder" else model.to_json_string())
        for name, model in made.items()
    }
    configs |= {f"{name}/scheduler_config.json": json.loads(x.to_json_string()) for name, x in schedulers().items()}
    parts = {name: [type(x).__module__.partition(".")[0], type(x).__name__] for name, x in (*made.items(), *schedulers().items())}
    configs["model_index.json"] = {"_class_name": "UnCLIPPipeline", **parts, "tokenizer": ["transformers", "CLIPTokenizer"]}
    out["configs"] = np.array(json.dumps(configs))
    print({name: float(np.abs(x).max()) for name, x in out.items() if x.dtype.kind == "f"})
    reference.save(__file__, out, shapes, ("diffusers", "transformers"))


if __name__ == "__main__":
    torch.set_num_threads(1)
    main()
