"""Whether pictures are of what was asked for: the share of them that a classifier puts into the class they were drawn for.

N pictures are drawn, each with a number that gives its key; K classes of the judge. What the judge makes of real pictures is told beside
it: no share means more than that.
"""

import dataclasses
from collections.abc import Callable, Mapping

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jaxtyping import Array, Int, Num

from mmjax.core import rng
from mmjax.core.config import Group
from mmjax.core.errors import UserError, suggest
from mmjax.core.types import Params
from mmjax.data import transforms
from mmjax.data.source import Source, open_source, open_tokenizer
from mmjax.evals import encode
from mmjax.evals.features import Features, as_pictures, levels, open_features

NEEDS = ()  # one of DRAWS
ARGUMENTS = ("split", "batch_size", "transforms", "draw", "n", "seed", "judge")
DRAWS = {"class_to_image": "label", "text_to_image": "tokens"}  # the predict function -> what it is given of an example


@dataclasses.dataclass(frozen=True)
class Agreement:
    """Draws and has it judged."""

    drawn: Callable  # ({drawn, judge}: params, conditions, numbers) -> class of each picture
    judged: Callable  # (the judge's, pictures uint8) -> class of each
    judge: Features
    source: Source
    transform: Callable
    condition: str
    n: int
    seed: int
    batch_size: int
    mesh: Mesh

    def __call__(self, params: Params) -> dict[str, float]:
        """`agreement`, its mean over classes and the worst class's; `judge_accuracy` on the split's own pictures; `n`."""
        judge = jax.device_put(self.judge.params, NamedSharding(self.mesh, PartitionSpec()))
        found, labels, _ = encode.split(self.judged, judge, self.source, self.transform, ("image", "label"), self.batch_size, self.mesh)
        given = labels if self.condition == "label" else self._conditions()
        taken = np.random.default_rng(self.seed).permutation(len(labels))[np.arange(self.n) % len(labels)]
        numbers = np.arange(self.n, dtype=np.int32)
        both = {"drawn": params, "judge": judge}
        got = np.concatenate(list(encode.rows(self.drawn, both, (given[taken], numbers), self.batch_size, self.mesh)))
        return {
            **scores(got, labels[taken]),
            "judge_accuracy": float((found == labels).mean()),
            "n": float(self.n),
            "seed": float(self.seed),
        }

    def _conditions(self) -> Num[np.ndarray, "M ..."]:
        """What pictures are drawn of, of every record."""
        first = encode.compile_over(self.mesh, lambda params, x: x)
        return encode.split(first, {}, self.source, self.transform, (self.condition, "_mask"), self.batch_size, self.mesh)[0]

    def told(self) -> str:
        """What the score is of, in a line."""
        return f"{self.n} pictures, seed {self.seed}, of '{self.source.info.name}' ({self.source.info.split}); judged by {self.judge.told}"


def scores(got: Int[np.ndarray, "N"], asked: Int[np.ndarray, "N"]) -> dict[str, float]:
    """Shares of all pictures, over classes, and of the worst class."""
    by_class = [float((got[asked == k] == k).mean()) for k in np.unique(asked)]
    return {"agreement": float((got == asked).mean()), "mean_per_class": float(np.mean(by_class)), "worst_class": min(by_class)}


def make(predict: Mapping[str, Callable], config: Group, mesh: Mesh, data: Group) -> Agreement:
    """Config: `draw`, one of DRAWS; `n` pictures, and the `seed` of their keys; `split`, whose records' `label`s (and `tokens`) are drawn
    of, and its `transforms`, that end in uint8 images; `judge`, a classifier as `features.open_features` opens it; `batch_size`.

    Raises:
      UserError: an unknown value, a predict function the task does not have, or a judge that is no classifier.
    """
    name = config["draw"]
    if name not in DRAWS:
        raise UserError(f"agreement: draw is {name!r}{suggest(str(name), DRAWS)}")
    if name not in predict:
        raise UserError(f"agreement: draw is '{name}', and this task has the predict functions {', '.join(sorted(predict))}")
    if config["n"] < 1:
        raise UserError(f"agreement: n is {config['n']}, expected at least one picture")
    judge = open_features(config["judge"], "agreement: judge")
    if not judge.classes:
        raise UserError(f"agreement: the judge, {judge.told}, puts nothing into classes; take a run of task classification")
    source = open_source(data, config["split"])
    key = rng.named(rng.wrap(rng.root(config["seed"])), "agreement")
    classes = lambda params, pictures: judge.function(params, pictures)[:, judge.size :].argmax(-1)

    def drawn(both: Params, conditions: Array, numbers: Array) -> Array:
        pictures = predict[name](both["drawn"], conditions, rng.per_example(key, numbers))
        return classes(both["judge"], as_pictures(levels(pictures)))

    return Agreement(
        drawn=encode.compile_over(mesh, drawn),
        judged=encode.compile_over(mesh, lambda params, images: classes(params, as_pictures(images))),
        judge=judge,
        source=source,
        transform=transforms.build(config["transforms"], open_tokenizer(source, data.tokenizer)),
        condition=DRAWS[name],
        n=config["n"],
        seed=config["seed"],
        batch_size=encode.pad_to_mesh(config["batch_size"], mesh),
        mesh=mesh,
    )
