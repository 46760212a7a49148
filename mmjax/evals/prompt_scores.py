"""Zero-shot classification by how likely a model of captions finds each class's prompts.

N images, K classes, T prompts a class.
"""

from collections.abc import Callable, Mapping

import jax.numpy as jnp
from jax.sharding import Mesh

from mmjax.core.config import Group
from mmjax.core.errors import UserError
from mmjax.core.types import Params
from mmjax.data import transforms
from mmjax.data.source import open_source, open_tokenizer
from mmjax.evals import encode
from mmjax.evals.accuracy import accuracies

NEEDS = ("score",)
ARGUMENTS = ("split", "batch_size", "length", "transforms")


def make(predict: Mapping[str, Callable], config: Group, mesh: Mesh, data: Group) -> Callable[[Params], dict[str, float]]:
    """Config: `split`, `batch_size`, `length` (tokens), `transforms`. An image's score for a class is the mean over the class's prompts of
    their log-probabilities; the returned evaluator gives `accuracy.accuracies` of them.

    Raises:
      UserError: the source has no class names, prompts or tokenizer.
    """
    source = open_source(data, config["split"])
    info, tokenizer = source.info, open_tokenizer(source, data.tokenizer)
    if not info.classes or not info.prompts or tokenizer is None:
        raise UserError(f"prompt_scores: source '{info.name}' needs class names, prompts and a tokenizer, one of which it lacks")
    prompts = tokenizer.encode([p.format(name) for name in info.classes for p in info.prompts], config["length"])
    transform = transforms.build(config["transforms"], tokenizer)
    batch_size = encode.pad_to_mesh(config["batch_size"], mesh)
    score = encode.compile_over(mesh, lambda params, images: predict["score"](params, images, jnp.asarray(prompts)))

    def evaluate(params: Params) -> dict[str, float]:
        scores, labels, places = encode.split(score, params, source, transform, ("image", "label"), batch_size, mesh)
        by_class = scores.reshape(len(scores), len(info.classes), -1).mean(2)
        return {**accuracies(by_class, labels), **encode.left_out(source, places)}

    return evaluate
