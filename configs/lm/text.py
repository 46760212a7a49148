"""Language models of text at published sizes: GPT-2's, OPT's, LLaMA's and Chinchilla's, on documents in jsonl or TFDS.

    mmjax data pack --form packs --size 1024 --out packs data.source=jsonl data.path=docs.jsonl data.tokenizer=tokenizers/gpt2
    mmjax train --config configs/lm/text.py --workdir runs/gpt2 data.path=docs.jsonl data.packing=packs data.tokenizer=tokenizers/gpt2
    mmjax train --config configs/lm/text.py:gpt2-xl --workdir runs/gpt2_xl mesh.fsdp=8 data.path=docs.jsonl data.packing=packs ...
    mmjax info --config configs/lm/text.py:llama-7b --devices 64 mesh.fsdp=64

The argument is a variant of mmjax.models.lm, default gpt2. A document is a row's segment: rows are filled by an index made once, and
documents of one row do not see each other. `data.source=tfds data.path=...` reads TFDS sets; `data.features={'text': ...}` says what of
a record is the text, and the same must be said to `data pack`. Perplexity is of `evals.perplexity.data.path`, validation.jsonl.

The recipe is GPT-3's (Brown et al. 2020, table 2.1 and appendix B): AdamW (0.9, 0.95, eps 1e-8), weight decay 0.1 of matrices, clip 1,
cosine to a tenth, half a million tokens a step, and the peak learning rate of the size nearest by parameters. 300,000 steps are its
1.6e11 tokens; 20 tokens a parameter (Hoffmann et al. 2022) are steps=5000 for gpt2. To expect, as published: GPT-2 small, trained on
WebText, has perplexity 29.4 on WikiText-2 and 37.5 on WikiText-103 without training there (Radford et al. 2019, table 3, by their
detokenisers). Not run at these sizes here.
"""

from ml_collections import ConfigDict

from mmjax.core.config import base
from mmjax.core.errors import UserError, suggest
from mmjax.models.lm import VARIANTS

TOKENS = 2**19  # a step
RATES = ((0.25e9, 6e-4), (0.6e9, 3e-4), (1.0e9, 2.5e-4), (2.0e9, 2e-4), (5.0e9, 1.6e-4), (10e9, 1.2e-4), (30e9, 1e-4), (1e12, 0.6e-4))


def get_config(arg: str | None = None) -> ConfigDict:
    """`arg`: a name of models.lm.VARIANTS, default gpt2."""
    name = arg or "gpt2"
    if name not in VARIANTS:
        raise UserError(f"config argument {name!r}{suggest(name, VARIANTS)}")
    fields = VARIANTS[name]
    length = min(fields["length"], 2048)
    c = base()
    c.task, c.dtype = "language_model", "bfloat16"
    c.steps, c.batch_size = 300_000, TOKENS // length
    lm = {"variant": name, "dropout": 0.0, "scan": True, "remat": "full", "backend": "xla"}
    c.model = ConfigDict({"lm": lm, "length": length, "packed": True, "loss_mask": False, "end": None, "z_loss": 0.0, "chunk": 256})

    c.data.source = "jsonl"
    c.data.features = ConfigDict({"text": "text"})
    c.data.workers = 4
    c.optim.lr = next(rate for most, rate in RATES if size(fields) <= most)
    c.optim.args = ConfigDict({"b1": 0.9, "b2": 0.95, "eps": 1e-8})
    c.optim.schedule, c.optim.schedule_args = "cosine", ConfigDict({"end_factor": 0.1})
    c.optim.warmup = 715  # 375 million tokens
    c.optim.weight_decay = 0.1
    c.optim.wd_rules = ((".*(scale|bias|embedding)", 0.0), (".*", 1.0))
    c.optim.clip_norm = 1.0
    c.checkpoint.every = 5000
    common = {"type": "perplexity", "split": "validation", "every": 5000, "batch_size": 64, "data": {"path": "validation.jsonl"}}
    c.evals.perplexity = ConfigDict({**common, "length": length, "stride": length // 2, "count": 2000})
    return c


def size(fields: dict) -> float:
    """Parameters, roughly: of the blocks and the token table."""
    return 12 * fields["depth"] * fields["width"] ** 2 + fields["vocab"] * fields["width"]
