"""How straight a flow's ways are: S of Liu et al. 2023, section 2.1, the mean over samples of `diffusion.coupling.straightness`.

0 is a flow that one Euler step follows exactly; S is a squared length over all numbers of a sample, so that only flows of the same pictures
or latents compare. It is measured on the run's own solver, from noise, under the conditions of a split's records and with its guidance.
"""

import math
from collections.abc import Callable, Mapping

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jaxtyping import Array

from mmjax.core import rng
from mmjax.core.config import Group
from mmjax.core.errors import UserError
from mmjax.core.sharding import local_rows, put_batch
from mmjax.core.types import Params
from mmjax.data import transforms
from mmjax.data.loader import eval_batches
from mmjax.data.source import open_source, open_tokenizer
from mmjax.evals import encode

NEEDS = ("straightness",)
ARGUMENTS = ("split", "batch_size", "transforms", "n", "steps", "seed")


def make(predict: Mapping[str, Callable], config: Group, mesh: Mesh, data: Group) -> Callable[[Params], dict[str, float]]:
    """Config: `split`, whose first `n` sound records give the conditions, and its `transforms`, as training's; `steps` of the solver;
    `seed` of the noise, which belongs to a record's number; `batch_size`.

    The evaluator gives `straightness`, the mean over samples, its standard error `straightness_se`, and `n`.

    Raises:
      UserError: fewer than two samples, or than two steps.
    """
    for name in ("n", "steps"):
        if config[name] < 2:
            raise UserError(f"straightness: {name} is {config[name]}, expected at least two")
    count = config["n"]
    source = open_source(data, config["split"])
    transform = transforms.build(config["transforms"], open_tokenizer(source, data.tokenizer))
    key = rng.named(rng.wrap(rng.root(config["seed"])), "straightness")
    size = encode.pad_to_mesh(config["batch_size"], mesh)
    whole = jax.jit(lambda x: x, out_shardings=NamedSharding(mesh, PartitionSpec()))

    def measured(params: Params, batch: Mapping[str, Array], numbers: Array) -> Array:
        return predict["straightness"](params, batch, rng.per_example(key, numbers), steps=config["steps"])

    compiled = encode.compile_over(mesh, measured)

    def evaluate(params: Params) -> dict[str, float]:
        rows, found = local_rows(size, mesh), []
        for i, batch in enumerate(eval_batches(source, transform, batch_size=size, rows=rows)):
            given = {name: x for name, x in batch.items() if not name.startswith("_")}
            given, numbers, mask = put_batch((given, (i * size + rows).astype(np.int32), batch["_mask"]), size, mesh)
            values, mask = np.asarray(compiled(params, given, numbers), np.float64), np.asarray(whole(mask))
            found.extend(values[mask > 0])
            if len(found) >= count:
                break
        values = np.array(found[:count])
        error = float(values.std(ddof=1) / math.sqrt(len(values))) if len(values) > 1 else float("nan")
        return {"straightness": float(values.mean()), "straightness_se": error, "n": float(len(values))}

    return evaluate
