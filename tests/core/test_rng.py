import jax
import jax.numpy as jnp
import numpy as np

from mmjax.core import rng


def test_keys_are_functions_of_names_and_indices_alone():
    key = rng.wrap(rng.root(5))
    data = lambda k: np.asarray(jax.random.key_data(k))
    assert (data(rng.named(key, "init")) == data(rng.named(key, "init"))).all()
    assert (data(rng.named(key, "init")) != data(rng.named(key, "data"))).any()
    whole = data(rng.per_example(key, jnp.arange(8)))
    np.testing.assert_array_equal(whole[3:5], data(rng.per_example(key, jnp.array([3, 4]))))
    assert len({tuple(k) for k in whole}) == 8
    np.testing.assert_array_equal(
        data(rng.fold(rng.per_example(key, jnp.arange(8)), 2))[5], data(jax.random.fold_in(jax.random.fold_in(key, 5), 2))
    )


def test_the_generator_is_threefry_whatever_the_default():
    with jax.default_prng_impl("rbg"):
        words = rng.root(5)
        drawn = jax.random.uniform(rng.wrap(words), (3,))
    np.testing.assert_array_equal(words, jax.random.key_data(jax.random.key(5, impl="threefry2x32")))
    np.testing.assert_array_equal(drawn, jax.random.uniform(rng.wrap(words), (3,)))
