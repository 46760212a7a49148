"""How well pictures fit the texts they are drawn for, by a CLIP's cosine (Hessel et al. 2021).

N pictures, L tokens, E embedding of the CLIP that judges.
"""

import dataclasses
from collections.abc import Callable, Mapping

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jaxtyping import Array, Float, Int

from mmjax.convert.pretrained import Pretrained, from_pretrained
from mmjax.core import rng
from mmjax.core.config import Group
from mmjax.core.errors import UserError
from mmjax.core.types import Params
from mmjax.data.bad import BadSample
from mmjax.data.source import NOTHING, Source, open_source, open_tokenizer, texts_of
from mmjax.evals import encode
from mmjax.evals.features import as_pictures, levels, seen

NEEDS = ("text_to_image",)
ARGUMENTS = ("split", "batch_size", "length", "n", "seed", "judge")

FACTOR = 100.0  # of torchmetrics and of papers on diffusion; Hessel et al. have 2.5


def cosines(images: Float[np.ndarray, "N E"], texts: Float[np.ndarray, "N E"]) -> Float[np.ndarray, "N"]:
    """Of each row with its row."""
    return (encode.unit(np.asarray(images, np.float64)) * encode.unit(np.asarray(texts, np.float64))).sum(-1)


def clip_score(images: Float[np.ndarray, "N E"], texts: Float[np.ndarray, "N E"]) -> dict[str, float]:
    """`clip_score`, the mean of 100 max(cosine, 0), and `clip_cosine`, the mean cosine."""
    found = cosines(images, texts)
    return {"clip_score": float(FACTOR * np.maximum(found, 0).mean()), "clip_cosine": float(found.mean())}


@dataclasses.dataclass(frozen=True)
class ClipScore:
    """Draws a picture for every caption and judges it."""

    drawn: Callable  # ({drawn, judge}: params, tokens, numbers) -> embeddings of pictures
    encode_text: Callable  # of the judge
    judge: Pretrained
    tokens: Int[np.ndarray, "N L"]
    judged_tokens: Int[np.ndarray, "N L2"]
    seed: int
    path: str
    batch_size: int
    mesh: Mesh

    def __call__(self, params: Params) -> dict[str, float]:
        """`clip_score`'s, with `n` and `seed`."""
        judge = jax.device_put(self.judge.params, NamedSharding(self.mesh, PartitionSpec()))
        numbers = np.arange(len(self.tokens), dtype=np.int32)
        images = np.concatenate(
            list(encode.rows(self.drawn, {"drawn": params, "judge": judge}, (self.tokens, numbers), self.batch_size, self.mesh))
        )
        texts = encode.texts(self.encode_text, judge, self.judged_tokens, self.batch_size, self.mesh)
        return {**clip_score(images, texts), "n": float(len(images)), "seed": float(self.seed)}

    def told(self) -> str:
        """What the score is of, in a line."""
        return f"{len(self.tokens)} pictures, a caption each, seed {self.seed}; judged by the CLIP of '{self.path}'"


def captions(source: Source, n: int) -> list[str]:
    """The first caption of the first `n` sound records that have one, from the start again where there are fewer.

    Raises:
      UserError: none has.
    """
    found: list[str] = []
    for i in range(len(source)):
        if len(found) == n:
            break
        try:
            record = source[i]
            texts = texts_of(record.get("captions", record.get("caption", NOTHING)))
        except BadSample:
            continue
        found += [text for text in texts if text.strip()][:1]
    if not found:
        raise UserError(f"clip_score: no record of source '{source.info.name}' ({source.info.split}) has a caption")
    return [found[i % len(found)] for i in range(n)]


def make(predict: Mapping[str, Callable], config: Group, mesh: Mesh, data: Group) -> ClipScore:
    """Config: `n` pictures for captions of `split`, and the `seed` of their keys; `length` (tokens); `batch_size`; `judge`, a CLIP's
    checkpoint for `mmjax.from_pretrained`, with its tokenizer.

    Raises:
      UserError: no captions, no tokenizer, or a judge that is no CLIP.
    """
    source, path = open_source(data, config["split"]), config["judge"]
    tokenizer, judge = open_tokenizer(source, data.tokenizer), from_pretrained(path)
    if tokenizer is None:
        raise UserError(f"clip_score: source '{source.info.name}' has no tokenizer; name one with data.tokenizer")
    if not {"encode_image", "encode_text"} <= set(judge.predict) or judge.tokenizer is None:
        raise UserError(f"clip_score: '{path}' is to hold a CLIP with its tokenizer; it has {', '.join(judge.predict)}")
    if config["n"] < 1:
        raise UserError(f"clip_score: n is {config['n']}, expected at least one picture")
    texts, text = captions(source, config["n"]), judge.config["model"]["text"]
    judged = judge.tokenizer.encode(texts, text["length"])
    if judged.max() >= text["vocab"]:
        raise UserError(f"clip_score: the tokenizer of '{path}' gives token {judged.max()}, and its CLIP has {text['vocab']}")
    key = rng.named(rng.wrap(rng.root(config["seed"])), "clip_score")

    def drawn(both: Params, tokens: Array, numbers: Array) -> Array:
        pictures = levels(predict["text_to_image"](both["drawn"], tokens, rng.per_example(key, numbers)))
        return judge.predict["encode_image"](both["judge"], seen(judge, as_pictures(pictures)))

    return ClipScore(
        drawn=encode.compile_over(mesh, drawn),
        encode_text=encode.compile_over(mesh, lambda params, tokens: judge.predict["encode_text"](params, tokens).astype(jnp.float32)),
        judge=judge,
        tokens=tokenizer.encode(texts, config["length"]),
        judged_tokens=judged,
        seed=config["seed"],
        path=path,
        batch_size=encode.pad_to_mesh(config["batch_size"], mesh),
        mesh=mesh,
    )
