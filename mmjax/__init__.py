"""mmjax: multimodal generative models in JAX. Importing the package imports neither jax nor flax."""

from typing import TYPE_CHECKING, Any

from mmjax.version import __version__

if TYPE_CHECKING:
    from mmjax.convert.pretrained import from_pretrained

__all__ = ["__version__", "from_pretrained"]


def __getattr__(name: str) -> Any:
    """`from_pretrained` is fetched when it is first asked for."""
    if name == "from_pretrained":
        from mmjax.convert.pretrained import from_pretrained

        return from_pretrained
    raise AttributeError(f"module 'mmjax' has no attribute {name!r}")
