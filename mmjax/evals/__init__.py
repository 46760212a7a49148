"""Evaluators over predict functions: `EVALS[type].make(predict, config, mesh, data) -> Callable[[Params], dict[str, float]]`.

A group `evals.<name>` may hold `data`, the keys of the config's `data` that differ for it: a run on pairs is then judged on ImageNet.
"""

from collections.abc import Callable, Mapping
from types import ModuleType
from typing import Any

from mmjax.core.config import Group
from mmjax.core.errors import UserError, suggest
from mmjax.data.stream import overlaid
from mmjax.evals import (
    agreement,
    aro,
    attacks,
    attributes,
    classification,
    clip_score,
    few_shot,
    fid,
    generated,
    likelihood,
    linear_probe,
    perplexity,
    prompt_scores,
    reconstruction,
    retrieval,
    straightness,
    sugarcrepe,
    winoground,
    zero_shot,
)

# type -> module with `make`, the predict functions it NEEDS, the ARGUMENTS its config group takes, and those it may take (OPTIONAL, with
# their defaults).
EVALS: dict[str, ModuleType] = {
    "agreement": agreement,
    "aro": aro,
    "attacks": attacks,
    "attributes": attributes,
    "classification": classification,
    "clip_score": clip_score,
    "few_shot": few_shot,
    "fid": fid,
    "generated": generated,
    "likelihood": likelihood,
    "linear_probe": linear_probe,
    "perplexity": perplexity,
    "prompt_scores": prompt_scores,
    "reconstruction": reconstruction,
    "retrieval": retrieval,
    "straightness": straightness,
    "sugarcrepe": sugarcrepe,
    "winoground": winoground,
    "zero_shot": zero_shot,
}


def make(name: str, predict: Mapping[str, Callable], config: Group, mesh: Any, data: Group) -> Callable:
    """The evaluator of config group `evals.<name>`.

    Args:
      predict: the task's predict functions.
      config: the group: `type`, `every`, `split` and the evaluator's own arguments.
      data: config group `data`: where the source lies.

    Raises:
      UserError: an unknown type, a key it lacks or does not take, or a predict function the task does not have.
    """
    where = f"config.evals.{name}"
    kind = config.get("type")
    if kind not in EVALS:
        raise UserError(f"{where}.type is {kind!r}{suggest(str(kind), EVALS)}")
    module = EVALS[kind]
    for needed in module.NEEDS:
        if needed not in predict:
            raise UserError(
                f"{where}: a {kind} evaluation needs the predict function '{needed}', this task has {', '.join(sorted(predict))}"
            )
    optional = getattr(module, "OPTIONAL", {})
    known = {"type", "every", "data", *module.ARGUMENTS, *optional}
    for key in config:
        if key not in known:
            raise UserError(f"{where} has an unknown key '{key}'{suggest(key, known)}")
    for key in module.ARGUMENTS:
        if key not in config:
            raise UserError(f"{where} lacks the key '{key}'; a {kind} evaluation takes {', '.join(module.ARGUMENTS)}")
    if config.get("data"):
        data = overlaid(data, config["data"], f"{where}.data")
    return module.make(predict, {**optional, **config}, mesh, data)
