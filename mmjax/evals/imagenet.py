"""Config groups of zero-shot classification on ImageNet and the sets that test how what was learnt from it holds elsewhere.

Sets as TFDS prepares them, below `data.dir`; their labels are all ImageNet's, in its order, so that the run's `data.classes`, one file of a
thousand words, serves all of them. ImageNet-A and -R have images of 200 classes each, and those are the candidates.
"""

from typing import Any

from ml_collections import ConfigDict

# evaluation -> (folder below data.dir, split, candidates)
SETS = {
    "imagenet": ("imagenet2012", "validation", "all"),
    "imagenet_v2": ("imagenet_v2/matched-frequency", "test", "all"),
    "imagenet_a": ("imagenet_a", "test", "present"),
    "imagenet_r": ("imagenet_r", "test", "present"),
    "imagenet_sketch": ("imagenet_sketch", "test", "all"),
}


def groups(
    size: int, length: int, mean: Any, std: Any, *, every: int, squash: bool = False, prompts: str = "clip80"
) -> dict[str, ConfigDict]:
    """Name -> group of config `evals`, for images of `size` pixels and `length` tokens.

    Args:
      squash: images are resized to a square, as SigLIP's, in place of a cut from the middle.
    """
    whole = (("resize", {"size": size}),)
    middle = (("resize", {"size": size, "short_side": True}), ("center_crop", {"size": size}))
    shown = (
        ("decode", {"channels": 3}),
        *(whole if squash else middle),
        ("normalize", {"mean": mean, "std": std}),
        ("keep", {"keys": ("image", "label")}),
    )
    common = {"type": "zero_shot", "every": every, "batch_size": 1024, "length": length, "transforms": shown, "prompts": prompts}
    of = lambda folder: ConfigDict({"source": "tfds", "path": folder})
    return {
        name: ConfigDict({**common, "data": of(folder), "split": split, "candidates": candidates})
        for name, (folder, split, candidates) in SETS.items()
    }
