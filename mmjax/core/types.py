"""The contract between a system and everything that trains, evaluates or samples it."""

import dataclasses
import re
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import jax

Array = jax.Array
Key = jax.Array  # a typed PRNG key, jax.random.key(...)
PyTree = Any
Params = Mapping[str, Any]  # nested dict of arrays
Batch = Mapping[str, Any]  # nested dict of arrays, leading axis = examples
Step = Array  # int32 scalar, the number of optimizer steps taken so far
Aux = dict[str, Any]
Metrics = dict[str, Array]

# Every name a task may put in `Task.predict`, with its signature. Evaluators, samplers, converters and
# the cache rely on the name alone, so the table is closed: a new name is added here, with its shapes.
PREDICT: dict[str, str] = {
    "encode_image": "(params, images float[B, H, W, C]) -> float32[B, E], in the space of texts where there is one, of any length",
    "encode_text": "(params, tokens int32[B, L]) -> float32[B, E], in the space of images where there is one, of any length",
    "token_features": "(params, tokens int32[B, L]) -> float32[B, L, D], the text tower's states of every token",
    "token_mask": "(params, tokens int32[B, L]) -> bool[B, L], those of the text, not its padding",
    "image_features": "(params, images float[B, H, W, C]) -> float32[B, D], for a linear probe: the image tower before its projection",
    "logit_scale": "(params) -> float32[], the factor on cosine similarities",
    # Of what writes text, beside it: "(params, tokens int32[B, L], *, positions=None, segments=None, ...) -> float32[B, L, V], of the token
    # after each". Where it sees pictures it and the next two also take `pixels` float[B, images, frames, H, W, 3] and `images` int32[B],
    # how many of them are real.
    "logits": "(params, images float[B, H, W, C]) -> float32[B, K], unnormalised log-probabilities of K classes",
    "generate": "(params, tokens int32[B, P], key, *, max_new_tokens, lengths=None int32[B], ...) -> decoding.Generated, what follows",
    "log_likelihood": "(params, tokens int32[B, P], answers int32[B, A, N], answer_lengths int32[B, A], *, lengths=None) -> float32[B, A]",
    "unrolled": "(params) -> params for many calls of generate and log_likelihood: layers one by one, not copied in every call",
    "classify": "(params, x float[B, H, W, C], t float[B]) -> float32[B, K], logits of noisy pictures at their times on the path",
    "score": "(params, images float[B, H, W, C], tokens int32[N, L]) -> float32[B, N], log-probability of every text given every image",
    "text_to_image": "(params, tokens int32[B, L], keys key[B]) -> float32[B, H, W, 3] in 0..1, a picture a row, drawn from its key alone",
    "class_to_image": "(params, labels int32[B], keys key[B]) -> float32[B, H, W, C] in 0..1, each drawn from its key alone",
    "features_to_image": "(params, context float[B, S, M], keys key[B]) -> float32[B, H, W, C] in 0..1, each drawn from its key alone",
    "image_embedding": "(params, words int32[B, L] or float[B, S, M] or None, text float[B, E], keys key[B]) -> float32[B, E], of a "
    "picture that the caption, its embedding `text`, may have; each drawn from its key alone",
    "embedding_to_image": "(params, embedding float[B, E] or None, words int32[B, L] or float[B, S, M] or None, keys key[B], *, "
    "noise=None, sampler=None) -> float32[B, H, W, C] in 0..1: a picture's embedding, a caption, or both",
    "invert": "(params, images float[B, H, W, C] in 0..1, embedding, words=None) -> float32[B, h, w, c], `noise` of embedding_to_image",
    "upsample": "(params, images float[B, h, w, C] in 0..1, keys key[B]) -> float32[B, H, W, C] in 0..1",
    "sample": "(params, keys key[B]) -> float32[B, H, W, C] in 0..1, each drawn from its key alone",
    "pairs": "(params, batch, keys key[B]) -> {noise, sample: float32[B, h, w, c]} and the conditions, `batch`, as training's batches hold "
    "them: a teacher's standard normal noise and what its sampler makes of it, as the network sees pictures; each drawn from its key alone",
    "straightness": "(params, batch, keys key[B], *, steps) -> float32[B], how far the way of such a pair is from a straight line, 0",
    "network": "(params, x float[B, H, W, C], t float[B], *, context=None, labels=None) -> float32[B, H, W, O], as the network has it",
    "bits_per_dimension": "(params, images float[B, H, W, C] in -1..1, labels int32[B] or None, keys key[B]) -> float32[B]",
    "encode": "(params, images float[B, H, W, C]) -> float32[B, h, w, 2 Z], mean and log-variance of latents, unscaled",
    "decode": "(params, z float[B, h, w, Z]) -> float32[B, H, W, C], of latents that are not scaled",
}


@dataclasses.dataclass(frozen=True)
class Task:
    """A system, as a handful of pure functions.

    Attributes:
      init: `init(key) -> params`, a nested dict of arrays, float32 unless the leaf is no real number.
      axes: the same tree with a tuple of logical axis names (or None) a leaf, one name a dimension.
      loss: `loss(params, batch, key, step) -> (scalar, aux)`. `aux` may hold `"metrics"` (scalars that are
        means over examples), `"state"` (a partial tree of new values for leaves named in `state`) and
        `"weight"` (a scalar: what this batch's mean was divided by, so that unequal microbatches are
        weighted correctly; 1 if absent, and a step of weight 0 is skipped). Noise drawn for an example must come from
        `rng.per_example(key, batch["_index"])`: then it depends on neither accumulation nor mesh. Where the batch has
        parts (`data.streams`), each has an `_index` of its own, and no two examples of a step the same number.
      batch_spec: tree of global `jax.ShapeDtypeStruct`, leading axis = examples.
      limits: batch leaf -> the number its integers must stay below (vocabulary, classes). Indexing past a table's end
        raises nothing on a device, so the host looks at every batch.
      predict: named pure functions; names and signatures in `PREDICT`.
      frozen: path regexes (full match) of leaves that nobody writes.
      state: path regexes (full match) of leaves that only the task writes, through `aux["state"]` or `post_update`.
      post_update: `post_update(params, aux, step) -> params`, after the optimizer; clamps and the like.
      can_accumulate: False where the loss is not a mean over examples.
      weights: `weights() -> params`, a partial tree of host arrays that a fresh run starts from in place of `init`'s: what is read from
        files that nobody can ship. Checkpoints hold them, so that the files are not needed again. None where there are none.
      fit: `fit(batches) -> params`, such a tree that a fresh run makes of its own data before its first step: statistics, principal
        components. `batches` are host batches, every row on every host, in the order of training and without end.
      check: looks at the first batch of a run, host arrays, and raises UserError for what shapes and limits do not tell.
    """

    init: Callable[[Key], Params]
    axes: PyTree
    loss: Callable[[Params, Batch, Key, Step], tuple[Array, Aux]]
    batch_spec: PyTree
    predict: Mapping[str, Callable]
    frozen: tuple[str, ...] = ()
    state: tuple[str, ...] = ()
    post_update: Callable[[Params, Aux, Step], Params] = lambda params, aux, step: params
    can_accumulate: bool = True
    limits: Mapping[str, int] = dataclasses.field(default_factory=dict)
    weights: Callable[[], Params] | None = None
    fit: Callable[[Iterable[Batch]], Params] | None = None
    check: Callable[[Batch], None] | None = None

    def __post_init__(self):
        unknown = sorted(set(self.predict) - set(PREDICT))
        if unknown:
            raise ValueError(f"predict names {unknown} are not in core.types.PREDICT, whose names are {sorted(PREDICT)}")
        for pattern in (*self.frozen, *self.state):
            re.compile(pattern)
