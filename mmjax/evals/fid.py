"""Drawn pictures against real ones in a network's features: Frechet distance (FID), KID, precision and recall; and the Inception score.

N pictures are drawn, each with a number that gives its key, so that batch size and mesh change nothing. What a score depends on is told
with it: how many pictures, the seed, the network and its resize, and whose statistics it is held against.
N drawn, M real pictures, D features, K classes of the network that judges.
"""

import dataclasses
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jaxtyping import Array, Float, Num

from mmjax.core import rng
from mmjax.core.config import Group
from mmjax.core.errors import UserError, suggest
from mmjax.core.types import Params
from mmjax.data import transforms
from mmjax.data.source import Source, open_source, open_tokenizer
from mmjax.evals import encode, frechet
from mmjax.evals.features import Features, as_pictures, levels, open_features
from mmjax.evals.frechet import Statistics
from mmjax.evals.inception_score import inception_score
from mmjax.evals.kid import kid
from mmjax.evals.precision_recall import precision_recall

NEEDS = ()  # which, `draw` says
ARGUMENTS = ("split", "batch_size", "transforms", "draw", "n", "seed", "features", "reference", "metrics")
OPTIONAL = {"subsets": 100, "subset_size": 1000, "neighbour": 3, "splits": 10, "write": ""}

# Predict functions that draw pictures of 0..1, a picture a key -> what else they take of an example of the split, after its transforms.
DRAWS = {"sample": None, "class_to_image": "label", "text_to_image": "tokens", "features_to_image": "context"}
METRICS = ("frechet", "kid", "precision_recall", "inception_score")
FROM_FEATURES = ("kid", "precision_recall")  # of real pictures; statistics are not enough


@dataclasses.dataclass(frozen=True)
class Fid:
    """Draws, judges and compares."""

    drawn: Callable  # ({drawn, judge}: params, conditions, numbers) -> features and logits
    judged: Callable  # (the judge's, pictures uint8) -> features and logits
    features: Features
    source: Source
    transform: Callable
    condition: str | None
    reference: Statistics | None  # of a file
    reference_path: str
    n: int
    seed: int
    metrics: tuple[str, ...]
    options: Mapping[str, Any]
    batch_size: int
    mesh: Mesh

    def __call__(self, params: Params) -> dict[str, float]:
        """Scores, their names as `told` says, with `n`, `reference_n` and `seed`."""
        judge = jax.device_put(self.features.params, NamedSharding(self.mesh, PartitionSpec()))
        real, conditions = self._real(judge)
        size = self.features.size
        drawn = self._drawn(params, judge, conditions)
        reference = frechet.of(real) if self.reference is None else self.reference
        if self.options["write"] and jax.process_index() == 0:
            frechet.write(self.options["write"], reference)
        order = np.random.default_rng(self.seed).permutation(self.n)  # conditions come in an order
        scores = self.compare(drawn[:, :size], drawn[order, size:], real, reference)
        return {**scores, "n": float(self.n), "reference_n": float(reference.count), "seed": float(self.seed)}

    def _real(self, judge: Any) -> tuple[Float[np.ndarray, "M D"], Num[np.ndarray, "_ ..."]]:
        """Features of the split's pictures, none where a file stands for them; and what its pictures are drawn of."""
        if self.reference is not None and self.condition is None:
            return np.zeros((0, self.features.size), np.float32), np.zeros(1, np.int32)
        judged = self.judged if self.reference is None else lambda _, images: jnp.zeros((images.shape[0], self.features.size))
        keys = ("image", self.condition or "_mask")
        found, conditions, _ = encode.split(judged, judge, self.source, self.transform, keys, self.batch_size, self.mesh)
        return found[:, : self.features.size], conditions

    def _drawn(self, params: Params, judge: Any, conditions: Num[np.ndarray, "_ ..."]) -> Float[np.ndarray, "N F"]:
        """Features and logits of N pictures, the conditions taken in turn."""
        numbers = np.arange(self.n, dtype=np.int32)
        arrays = (conditions[numbers % len(conditions)], numbers)
        return np.concatenate(list(encode.rows(self.drawn, {"drawn": params, "judge": judge}, arrays, self.batch_size, self.mesh)))

    def compare(
        self,
        drawn: Float[np.ndarray, "N D"],
        logits: Float[np.ndarray, "N K"],
        real: Float[np.ndarray, "M D"],
        reference: Statistics,
    ) -> dict[str, float]:
        """The metrics asked for."""
        out, label = {}, self.features.label
        if "frechet" in self.metrics:
            out[self.features.frechet] = frechet.distance(frechet.of(drawn), reference)
        if "kid" in self.metrics:
            mean, std = kid(drawn, real, self.options["subsets"], self.options["subset_size"], self.seed)
            out |= {f"kid_{label}": mean, f"kid_std_{label}": std}
        if "precision_recall" in self.metrics:
            out |= {f"{k}_{label}": v for k, v in precision_recall(real, drawn, self.options["neighbour"]).items()}
        if "inception_score" in self.metrics:
            mean, std = inception_score(logits, self.options["splits"])
            out |= {f"inception_score_{label}": mean, f"inception_score_std_{label}": std}
        return out

    def told(self) -> str:
        """What the scores are of, in a line."""
        against = f"statistics '{self.reference_path}'" if self.reference else f"'{self.source.info.name}' ({self.source.info.split})"
        return f"{self.n} pictures, seed {self.seed}, against {against}; features of {self.features.told}"


def make(predict: Mapping[str, Callable], config: Group, mesh: Mesh, data: Group) -> Fid:
    """Config: `draw`, the predict function that draws, one of DRAWS; `n` pictures, and the `seed` of their keys; `batch_size`; `split`, of
    real pictures, whose `transforms` end in uint8 images and the condition (`label`, `tokens` or `context`); `features`, the network, as
    `features.open_features`; `reference`, a `.npz` of statistics, or "" for those of the split; `metrics`, of METRICS; `subsets` and
    `subset_size` of KID, `neighbour` of precision and recall, `splits` of the Inception score; `write`, a `.npz` into which the statistics
    of the split's pictures go, for `reference` of later runs.

    Raises:
      UserError: an unknown value, a predict function the task does not have, a metric that what is given does not suffice for, or
        statistics of another number of features.
    """
    _check(predict, config)
    features = open_features(config["features"], "fid: features")
    if "inception_score" in config["metrics"] and not features.classes:
        raise UserError(f"fid: an inception_score needs logits, which the features '{features.label}' are without; leave it out of metrics")
    source, draw = open_source(data, config["split"]), predict[config["draw"]]
    condition = DRAWS[config["draw"]]
    key = rng.named(rng.wrap(rng.root(config["seed"])), "fid")

    def drawn(both: Params, conditions: Array, numbers: Array) -> Array:
        given = () if condition is None else (conditions,)
        pictures = draw(both["drawn"], *given, rng.per_example(key, numbers))
        return features.function(both["judge"], as_pictures(levels(pictures)))

    return Fid(
        drawn=encode.compile_over(mesh, drawn),
        judged=encode.compile_over(mesh, lambda judge, images: features.function(judge, as_pictures(images))),
        features=features,
        source=source,
        transform=transforms.build(config["transforms"], open_tokenizer(source, data.tokenizer)),
        condition=condition,
        reference=frechet.read(config["reference"], features.size) if config["reference"] else None,
        reference_path=config["reference"],
        n=config["n"],
        seed=config["seed"],
        metrics=tuple(config["metrics"]),
        options={name: config[name] for name in OPTIONAL},
        batch_size=encode.pad_to_mesh(config["batch_size"], mesh),
        mesh=mesh,
    )


def _check(predict: Mapping[str, Callable], config: Group) -> None:
    if config["draw"] not in DRAWS:
        raise UserError(f"fid: draw is {config['draw']!r}{suggest(str(config['draw']), DRAWS)}")
    if config["draw"] not in predict:
        raise UserError(f"fid: draw is '{config['draw']}', and this task has the predict functions {', '.join(sorted(predict))}")
    for metric in config["metrics"]:
        if metric not in METRICS:
            raise UserError(f"fid: metrics has {metric!r}{suggest(str(metric), METRICS)}")
        if metric in FROM_FEATURES and config["reference"]:
            raise UserError(f"fid: {metric} needs real pictures, and '{config['reference']}' is statistics alone; set reference to \"\"")
    if config["reference"] and config["write"]:
        raise UserError(f"fid: write is '{config['write']}', and '{config['reference']}' stands for the split's pictures; leave one out")
    if config["write"] and not Path(config["write"]).absolute().parent.is_dir():
        raise UserError(f"fid: write is '{config['write']}', and there is no such folder; make it first")
    if config["n"] < 2:
        raise UserError(f"fid: n is {config['n']}, expected at least two pictures")
    if "kid" in config["metrics"] and config["subset_size"] > config["n"]:
        raise UserError(
            f"fid: subset_size is {config['subset_size']}, and n {config['n']}; draw more pictures, or make KID's subsets smaller"
        )
