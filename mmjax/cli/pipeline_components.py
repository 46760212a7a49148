"""Principal components of the embeddings that a pipeline's prior was trained on: the autoregressive prior's own, or of its set."""

import contextlib
import dataclasses
from typing import Any

import jax.numpy as jnp
import numpy as np

from mmjax.cli.pipeline import Pipeline
from mmjax.core.errors import UserError
from mmjax.core.types import Params
from mmjax.data import provenance
from mmjax.data.bad import BadSample
from mmjax.data.source import Source, open_source
from mmjax.diffusion import embeddings
from mmjax.diffusion.embeddings import PCA

EXAMPLES = 100_000  # of a set, at most


@dataclasses.dataclass(frozen=True)
class Components:
    """Where components are to be had; nothing is read before `load`.

    Attributes:
      kept: how many there are.
      unit: they are of embeddings brought to length 1.
      whose: for messages.
      source: the set that they are fitted on; None for those in an autoregressive prior.
    """

    kept: int
    unit: bool
    whose: str
    source: Source | None = None

    @classmethod
    def of(cls, pipeline: Pipeline) -> "Components":
        """Of the prior, or where a pipeline has none of the decoder.

        Raises:
          UserError: published weights, a set that is gone or that another CLIP made.
        """
        role = "prior" if "prior" in pipeline.stages else "decoder"
        stage = pipeline.stages[role]
        model = stage.config.model
        if stage.config.task == "ar_prior":
            return cls(model.prior.codes, model.get("unit", True), f"of {role} '{stage.path}'")
        where = f"--pca-of: principal components are those of the embeddings that {role} '{stage.path}' was trained on"
        if stage.published:
            raise UserError(f"{where}, and published weights come without")
        place = next(iter(provenance.models(stage.path).values()))
        try:
            source = open_source(stage.config.data, stage.config.data.split)
        except UserError as e:
            raise UserError(
                f"{where}, and that set, which lay at '{place}', cannot be read: {e}; name its place: {role}.data.path=DIR"
            ) from None
        clip = pipeline.stages["clip"]
        if source.info.model != clip.fingerprint:
            raise UserError(f"{where}, and the set at '{place}' is by now another model's ({source.info.model}), not that of '{clip.path}'")
        unit = role == "prior" and model.get("unit", True)
        return cls(clip.config.model.embed, unit, f"of {min(len(source), EXAMPLES):,} embeddings of the set at '{place}'", source)

    def read(self, x: Any) -> Any:
        """Embeddings [B, E] as the components are of them."""
        return embeddings.unit(jnp.asarray(x)) if self.unit else x

    def halves(self) -> list[int]:
        """1, and so on by doubling up to all."""
        return sorted({max(1, self.kept >> i) for i in range(self.kept.bit_length())})

    def load(self, params: Params) -> PCA:
        """The components; `params` by role."""
        if self.source is None:
            return PCA(**{name: np.asarray(x, np.float64) for name, x in params["prior"]["pca"].items()})
        rows = []
        for i in range(min(len(self.source), EXAMPLES)):
            with contextlib.suppress(BadSample):
                rows.append(np.asarray(self.source[i]["embedding"], np.float64))
        return embeddings.fit_pca(np.asarray(self.read(np.stack(rows)), np.float64))
