"""mmjax: multimodal generative models in JAX. Importing the package imports neither jax nor flax."""

from mmjax.version import __version__

__all__ = ["__version__"]
