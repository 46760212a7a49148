"""Random keys as pure functions of names and indices. Keys are threefry: its draws do not depend on sharding."""

import zlib

import jax
from jaxtyping import Array, Int, Key, UInt32


def root(seed: int) -> UInt32[Array, "2"]:
    """Key data of the run's root key; raw words, so that a checkpoint holds plain integers."""
    return jax.random.key_data(jax.random.key(seed, impl="threefry2x32"))


def wrap(data: UInt32[Array, "2"]) -> Key[Array, ""]:
    """The typed key of `root`'s words."""
    return jax.random.wrap_key_data(data, impl="threefry2x32")


def named(key: Key[Array, ""], name: str) -> Key[Array, ""]:
    """An independent key for a named use."""
    return jax.random.fold_in(key, zlib.crc32(name.encode()))


def per_example(key: Key[Array, ""], index: Int[Array, "B"]) -> Key[Array, "B"]:
    """One key an example. `index` is the example's place in the global batch (`batch["_index"]`)."""
    return jax.vmap(jax.random.fold_in, in_axes=(None, 0))(key, index)


def fold(keys: Key[Array, "B"], data: Int[Array, ""] | int) -> Key[Array, "B"]:
    """Folds one number (a layer index, say) into every key."""
    return jax.vmap(jax.random.fold_in, in_axes=(0, None))(keys, data)
