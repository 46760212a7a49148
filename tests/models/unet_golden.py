"""tests/golden/unets.npz and the parameters its references had, brought into ours by the rules of mmjax/convert/unet.py."""

import json
from collections.abc import Callable
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from mmjax.convert.rules import Rule, export, leaves
from mmjax.convert.tensors import Tensor, of_array
from mmjax.core import tree
from mmjax.layers import split_axes
from tests.golden.weights import normal, tensors

TIMES = jnp.asarray([3.0, 977.0])
NOISE = jnp.asarray([-0.7, 0.6])
LABELS = jnp.asarray([4, 1])
CLASSES, WORDS, CONTEXT, SIDE = 5, 7, 12, 16
# max |difference| / max |wanted|; measured 3e-7 to 2e-6.
TOLERANCE = 1e-5
_FILTERS = {2: (1, 1), 4: (1, 3, 3, 1)}

with np.load(Path(__file__).parents[1] / "golden" / "unets.npz") as f:
    GOLDEN = {k: f[k] for k in f.files}
SHAPES = json.loads(str(GOLDEN["shapes"]))


def image(name: str, channels: int, side: int = SIDE) -> jax.Array:
    return jnp.asarray(normal(name, (2, side, side, channels)))


def sources(name: str) -> dict[str, Tensor]:
    """The reference's tensors."""
    shapes, out = SHAPES[name], {}
    out = tensors({k: v for k, v in shapes.items() if not k.endswith("resample_filter")})
    for key in shapes.keys() - out.keys():
        taps = np.asarray(_FILTERS[shapes[key][-1]], np.float32)
        out[key] = np.outer(taps, taps).reshape(shapes[key]) / taps.sum() ** 2
    return {key: of_array(x) for key, x in out.items()}


def abstract(model, *inputs, **named) -> dict:
    """Parameters' shapes as a plain tree."""
    return split_axes(jax.eval_shape(model.init, jax.random.key(0), *inputs, **named)["params"])[0]


def converted(name: str, make: Callable[[dict[str, Tensor]], list[Rule]], shapes: dict) -> dict:
    """The reference's parameters as ours; and back, which must give its tensors bit for bit."""
    found = sources(name)
    rules = make(found)
    flat = {path: np.asarray(leaf) for path, leaf in leaves(rules, found, tree.flatten(shapes), name).items()}
    back = export(rules, flat)
    assert back.keys() == found.keys()
    for key, x in back.items():
        np.testing.assert_array_equal(x.read(), found[key].read(), err_msg=key)
    return tree.unflatten({path: jnp.asarray(x) for path, x in flat.items()})


def count(params: dict, frozen: tuple[str, ...] = ()) -> int:
    """Trainable numbers."""
    return sum(int(np.prod(x.shape)) for path, x in tree.flatten(params).items() if not tree.matches(path, frozen))


def deviation(got, want) -> float:
    """max |difference| / max |wanted|."""
    return float(np.abs(np.asarray(got, np.float64) - want).max() / np.abs(want).max())
