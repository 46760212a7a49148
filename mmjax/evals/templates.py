"""Sets of prompts for zero-shot classification, by name."""

from collections.abc import Mapping

from mmjax.core.errors import UserError, suggest
from mmjax.data.tfds_sets import CLIP_SEVEN

_BOTH = ("a", "the")
_QUALITIES = (
    *("bad", "good", "bright", "dark", "blurry", "cropped", "pixelated", "close-up"),
    *("low resolution", "black and white", "jpeg corrupted"),
)
_TRAITS = ("clean", "dirty", "large", "small", "cool", "nice", "weird", "hard to see")
_WORKS = ("drawing", "painting", "sketch", "doodle", "sculpture", "tattoo", "rendering", "rendition")
_MATERIALS = ("plastic", "toy", "plushie", "embroidered", "origami", "cartoon")

# The eighty of CLIP's authors for ImageNet (Radford et al. 2021, section 3.1.4), put together from what they are made of. Their order
# means nothing: they are averaged.
_EIGHTY = (
    *(f"a {quality} photo of {article} {{}}." for quality in _QUALITIES for article in _BOTH),
    *(f"a photo of {article} {trait} {{}}." for trait in _TRAITS for article in _BOTH),
    *(f"a photo of {word} {{}}." for word in (*_BOTH, "my", "one", "many")),
    *(f"a {work} of {article} {{}}." for work in _WORKS for article in _BOTH),
    *(f"{work} of {article} {{}}." for work in ("art", "graffiti", "itap") for article in _BOTH),
    "itap of my {}.",
    *(f"{article} {material} {{}}." for material in _MATERIALS for article in _BOTH),
    *(f"{article} {{}} in a video game." for article in _BOTH),
)

SETS: Mapping[str, tuple[str, ...]] = {"clip80": _EIGHTY, "clip7": CLIP_SEVEN}
SOURCE = "source"


def choose(name: str, own: tuple[str, ...]) -> tuple[str, ...]:
    """The templates of a name: those of `SETS`, or "source" for `own`, the source's.

    Raises:
      UserError: another name.
    """
    if name == SOURCE:
        return own
    if name not in SETS:
        raise UserError(f"prompts is {name!r}{suggest(str(name), (SOURCE, *SETS))}")
    return SETS[name]
