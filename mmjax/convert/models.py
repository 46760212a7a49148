"""A config's `model` as a module: the shapes of its parameters, their logical axes, and the functions of `predict`.

A further family of published models is one entry of FAMILIES, and its layouts entries of `layouts.LAYOUTS`.
"""

from typing import Any

import jax
import jax.numpy as jnp

from mmjax.convert import flamingo, language, networks, prior, towers
from mmjax.convert.family import Family, Fields, Model
from mmjax.core.errors import UserError

FAMILIES: tuple[Family, ...] = (
    *(prior.FAMILY, networks.NETWORK, networks.AUTOENCODER, networks.CLASSIFIER, flamingo.FAMILY, language.FAMILY),
    towers.FAMILY,
)


def family_of(fields: Fields) -> Family:
    """Raises UserError: fields of no family."""
    for family in FAMILIES:
        if any(key in fields for key in family.keys):
            return family
    known = ", ".join(key for family in FAMILIES for key in family.keys)
    raise UserError(f"model has {', '.join(fields) or 'no fields'}; expected one of {known}, which say what it is")


def build(fields: Fields, dtype: Any = jnp.float32, mesh: jax.sharding.Mesh | None = None) -> Model:
    """The model of `fields`.

    Args:
      dtype: of products.
      mesh: on which predict functions compute.

    Raises:
      UserError: fields of no family, an unknown module or field.
    """
    return family_of(fields).build(fields, dtype, mesh)
