"""Writes beams.npz: what transformers' generate finds by beam search, and by greedy decoding with its penalties, on a tiny GPT-2.

    pip install -e '.[parity]'
    python tests/golden/beams.py

The model is case "gpt2" of tests/golden/lm.py with logits twice as large, so that texts differ in probability. Of each search in
SEARCHES, `NAME/tokens` int32[B, K, N], new tokens alone, padded, and `NAME/scores` float32[B, K]. Prompts are of unlike lengths, padded
on the left, as transformers wants them. The reference runs in float64.
"""

import json

import lm
import numpy as np
import reference
import torch

PROMPTS = ((5,), (8, 9, 30, 11), (20, 7, 3))
SHARPER = 2.0  # on the last norm, whose output logits are products of
NEW, PAD = 8, 3  # a pad of 0 is taken for none
PLAIN = {"num_beams": 4, "num_return_sequences": 4}
# The first search ends no text, the others many.
SEARCHES = {
    "plain": {**PLAIN, "eos_token_id": 36, "length_penalty": 1.0},
    "short": {**PLAIN, "eos_token_id": [5, 11], "length_penalty": 0.0, "early_stopping": True},
    "long": {**PLAIN, "eos_token_id": 5, "length_penalty": 2.0, "early_stopping": "never"},
    "default": {**PLAIN, "eos_token_id": [5, 11], "length_penalty": 1.0},
    "negative": {**PLAIN, "eos_token_id": [5, 11], "length_penalty": -1.0},
    "penalised": {**PLAIN, "eos_token_id": [5, 11], "length_penalty": 0.6, "repetition_penalty": 1.3, "min_new_tokens": 4},
    "greedy": {"num_beams": 1, "eos_token_id": [5, 11], "repetition_penalty": 1.3, "min_new_tokens": 3},
}


def main() -> None:
    torch.set_num_threads(1)
    model, shapes, config = lm.build("gpt2")
    model.transformer.ln_f.weight.data *= SHARPER
    model.transformer.ln_f.bias.data *= SHARPER
    width = max(map(len, PROMPTS))
    ids = torch.tensor([[PAD] * (width - len(p)) + list(p) for p in PROMPTS])
    mask = torch.tensor([[0] * (width - len(p)) + [1] * len(p) for p in PROMPTS])
    arrays = {}
    for name, how in SEARCHES.items():
        out = model.generate(
            input_ids=ids,
            attention_mask=mask,
            max_new_tokens=NEW,
            pad_token_id=PAD,
            do_sample=False,
            return_dict_in_generate=True,
            output_scores=True,
            **how,
        )
        new = out.sequences[:, width:].numpy().astype(np.int32)
        new = np.pad(new, ((0, 0), (0, NEW - new.shape[1])), constant_values=PAD).reshape(len(PROMPTS), -1, NEW)
        arrays[f"{name}/tokens"] = new
        if how["num_beams"] > 1:
            arrays[f"{name}/scores"] = out.sequences_scores.numpy().astype(np.float32).reshape(len(PROMPTS), -1)
        print(name, new[:, :2].tolist(), arrays.get(f"{name}/scores"))
    arrays["searches"] = np.array(json.dumps(SEARCHES))
    arrays["prompts"] = np.array(json.dumps(PROMPTS))
    arrays["config"] = np.array(json.dumps(config))
    reference.save(__file__, arrays, {"gpt2": shapes}, ("transformers",))


if __name__ == "__main__":
    main()
