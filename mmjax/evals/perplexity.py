"""How well a language model predicts a split's texts: perplexity, and bits a byte, which no tokenizer changes.

N windows of L tokens.
"""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Array, Float, Int, Int32

from mmjax.core.config import Group
from mmjax.core.errors import UserError
from mmjax.core.types import Params
from mmjax.data import transforms
from mmjax.data.bad import BadSample
from mmjax.data.source import Source, open_source, open_tokenizer, texts_of
from mmjax.evals import encode

NEEDS = ("logits", "generate")  # the latter tells logits of tokens from those of classes
ARGUMENTS = ("split", "batch_size", "length")
OPTIONAL = {"text": "", "transforms": (), "stride": 0, "start": None, "end": None, "count": 0}
KEYS = ("caption", "captions", "text", "texts")  # where `text` names none


def make(predict: Mapping[str, Callable], config: Group, mesh: Mesh, data: Group) -> Callable[[Params], dict[str, float]]:
    """Config: `split`, `batch_size` (windows), `length` L; `transforms`, whatever makes the text, by itself the record's own; `text`, its
    key; `stride`, the places by which windows of a text longer than L move, so that every token has at least L - stride before it; 0
    for L, windows side by side; `start` and `end`, whether texts have these tokens, by default as the tokenizer's form has it; `count`, the
    first so many records, 0 for all. A text's first token is not predicted: it has none before it.

    The evaluator gives `perplexity`, the exponential of the mean of -log p over tokens, `bits_per_byte` of the texts as stored,
    `token_accuracy`, `tokens` and `texts`.

    Raises:
      UserError: no tokenizer, or a stride that leaves tokens out.
    """
    source = open_source(data, config["split"])
    tokenizer = open_tokenizer(source, data.get("tokenizer"))
    length, stride = config["length"], config["stride"] or config["length"]
    if tokenizer is None:
        raise UserError(f"perplexity: source '{source.info.name}' has no tokenizer; name one with data.tokenizer")
    if length < 2 or not 1 <= stride <= length:
        raise UserError(f"perplexity: length is {length} and stride {config['stride']}, expected 2 or more, and 0 to length")
    transform = transforms.build(config["transforms"], tokenizer)
    batch_size = encode.pad_to_mesh(config["batch_size"], mesh)
    compiled = encode.compile_over(mesh, lambda params, tokens, counts: sums(predict["logits"](params, tokens), tokens, counts))

    def evaluate(params: Params) -> dict[str, float]:
        rows, size, number = [], 0, 0
        for text in read(source, transform, config["text"], config["count"]):
            ids = tokenizer.encode_plain(text, start=config["start"], end=config["end"])
            rows += windows(ids, length, stride, tokenizer.pad)
            size, number = size + len(text.encode()), number + 1
        if not rows:
            raise UserError(f"perplexity: source '{source.info.name}' ({config['split']}) has no text of two tokens")
        tokens, counts = (np.stack(x) for x in zip(*rows, strict=True))
        found = np.concatenate(list(encode.rows(compiled, params, (tokens, counts), batch_size, mesh))).astype(np.float64)
        nll, right, said = *found.sum(0), float(counts.sum())
        return {
            "perplexity": math.exp(nll / said),
            "bits_per_byte": nll / math.log(2) / max(size, 1),
            "token_accuracy": right / said,
            "tokens": said,
            "texts": float(number),
        }

    return evaluate


def read(source: Source, transform: transforms.Transform, key: str, count: int) -> Iterator[str]:
    """The texts of a source's sound records, in its order.

    Raises:
      UserError: records without a text under `key`.
    """
    for i in range(min(count or len(source), len(source))):
        try:
            record = transform(dict(source[i]), np.random.default_rng(i))
        except BadSample:
            continue
        name = key or next((k for k in KEYS if k in record), "")
        if name not in record:
            raise UserError(f"perplexity: records of '{source.info.name}' have no text {key!r}; they have {', '.join(sorted(record))}")
        yield from (text for text in texts_of(record[name]) if text.strip())


def windows(ids: Sequence[int], length: int, stride: int, pad: int) -> list[tuple[Int32[np.ndarray, "L"], Int32[np.ndarray, "L"]]]:
    """Rows that predict every token of a text but its first, once: (tokens, 1 for those it predicts)."""
    out, scored, begin = [], 1, 0
    while scored < len(ids):
        part = ids[begin : begin + length]
        tokens, counts = np.full(length, pad, np.int32), np.zeros(length, np.int32)
        tokens[: len(part)], counts[scored - begin : len(part)] = part, 1
        out.append((tokens, counts))
        scored = begin + len(part)
        begin += stride if stride < length else length - 1  # the last token of a window is the first of the next, to predict from
    return out


def sums(logits: Float[Array, "B L V"], tokens: Int[Array, "B L"], counts: Int[Array, "B L"]) -> Float[Array, "B 2"]:
    """-log p and right guesses of the tokens that count, summed over a row."""
    log_p = jax.nn.log_softmax(logits[:, :-1].astype(jnp.float32))
    own = jnp.take_along_axis(log_p, tokens[:, 1:, None], axis=2)[..., 0]
    right = logits[:, :-1].argmax(-1) == tokens[:, 1:]
    count = counts[:, 1:]
    return jnp.stack([-(own * count).sum(1), (right * count).sum(1).astype(jnp.float32)], axis=1)
