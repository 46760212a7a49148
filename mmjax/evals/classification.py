"""Top-1 accuracy of a classifier's logits over a split."""

from collections.abc import Callable, Mapping

from jax.sharding import Mesh

from mmjax.core.config import Group
from mmjax.core.types import Params
from mmjax.data import transforms
from mmjax.data.source import open_source
from mmjax.evals import encode
from mmjax.evals.accuracy import accuracies

NEEDS = ("logits",)
ARGUMENTS = ("split", "batch_size", "transforms")


def make(predict: Mapping[str, Callable], config: Group, mesh: Mesh, data: Group) -> Callable[[Params], dict[str, float]]:
    """Config: `split`, `batch_size`, `transforms`. The returned evaluator gives `accuracy.accuracies` of the logits."""
    source = open_source(data, config["split"])
    transform = transforms.build(config["transforms"], None)
    batch_size = encode.pad_to_mesh(config["batch_size"], mesh)
    logits = encode.compile_over(mesh, predict["logits"])

    def evaluate(params: Params) -> dict[str, float]:
        scores, labels, places = encode.split(logits, params, source, transform, ("image", "label"), batch_size, mesh)
        return {**accuracies(scores, labels), **encode.left_out(source, places)}

    return evaluate
