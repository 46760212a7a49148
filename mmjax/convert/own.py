"""mmjax's own folder of weights: params.safetensors, whose names are paths of parameters, and config.json."""

import json
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from mmjax.convert import models, safetensors
from mmjax.convert.layout import Layout, Model
from mmjax.convert.rules import Rule, identity
from mmjax.convert.source import Source
from mmjax.convert.tensors import Tensor
from mmjax.core.config import tuples
from mmjax.core.errors import UserError

FORMAT = 1


def describe(source: Source) -> dict[str, Any]:
    """What `write` was given."""
    record = source.jsons.get("config.json")
    if not isinstance(record, dict) or not isinstance(record.get("model"), dict) or "mmjax" not in record:
        raise UserError(f"{source.folder}: parameters of mmjax without the config.json that was written with them")
    if record["mmjax"] != FORMAT:
        raise UserError(f"{source.folder}: written in format {record['mmjax']}, this mmjax reads format {FORMAT}: upgrade")
    return tuples({key: value for key, value in record.items() if key != "mmjax"})


def rules(model: Model, names: Collection[str]) -> list[Rule]:
    """Every name is a path."""
    return [Rule(name, name, identity) for name in names]


def write(folder: Path, config: Mapping[str, Any], params: Mapping[str, Tensor]) -> list[str]:
    """Writes the folder's two files, or more where params are large; returns their names."""
    folder.mkdir(parents=True, exist_ok=True)
    files = safetensors.write_set(folder, "params", params)
    (folder / "config.json").write_text(json.dumps({"mmjax": FORMAT, **config}, indent=1) + "\n", encoding="utf-8")
    return [*files, "config.json"]


_ROOTS = "|".join(root for family in models.FAMILIES for root in family.roots)
OWN = Layout("mmjax", "", (rf"({_ROOTS})/.*",), describe, rules)
