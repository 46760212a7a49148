"""FID's Inception against pytorch-fid's (tests/golden/inception.py), its ways of resizing, and its parameters."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mmjax.convert import inception as convert
from mmjax.convert import safetensors
from mmjax.core import tree
from mmjax.core.errors import UserError
from mmjax.models import inception
from mmjax.models.inception import Inception, prepare
from tests.convert.by_rules import assert_comes_back
from tests.golden.weights import normal, tensors
from tests.models.torch_layouts import Golden, deviation

pytestmark = pytest.mark.slow  # minutes of compilation in all

CLOSE = 1e-5
GOLDEN = Golden("inception")
PICTURES = 1 / (1 + np.exp(-normal("pictures", (2, 40, 56, 3)).astype(np.float64)))


@pytest.fixture(scope="module")
def loaded(tmp_path_factory):
    path = tmp_path_factory.mktemp("inception") / "weights.safetensors"
    safetensors.write(path, tensors(GOLDEN.shapes["inception"]))
    return convert.load(path)


def test_features_and_logits(loaded):
    params, run = loaded
    features, logits = jax.jit(run)(params, jnp.asarray(PICTURES, jnp.float32))
    assert features.shape == (2, inception.FEATURES) and logits.shape == (2, inception.CLASSES)
    assert deviation(features, GOLDEN["features"]) < CLOSE and deviation(logits, GOLDEN["logits"]) < CLOSE


def test_resize_as_pytorch_fid():
    got = prepare(jnp.asarray(PICTURES, jnp.float32))[:, ::37, ::37]
    assert deviation(got, GOLDEN["resized"]) < 1e-6


def test_the_other_resizes():
    """A ramp: TensorFlow 1 puts pixel i at i * old / new, the others at (i + 1/2) * old / new - 1/2; "clean" averages what it skips."""
    ramp = jnp.broadcast_to(jnp.arange(8.0)[None, None, :, None] / 10, (1, 8, 8, 3))
    levels = lambda how, side: np.asarray((prepare(ramp, how, side)[0, 0, :, 0] + 1) / 2)
    at = np.arange(16) / 2
    np.testing.assert_allclose(levels("tf1", 16) * 256 / 255, np.minimum(at, 7) / 10, atol=1e-6)
    np.testing.assert_allclose(levels("pytorch", 16), np.clip(at - 0.25, 0, 7) / 10, atol=1e-6)
    alternating = jnp.broadcast_to((jnp.arange(8) % 2)[None, None, :, None].astype(jnp.float32), (1, 8, 8, 3))
    assert np.ptp(np.asarray(prepare(alternating, "clean", 2))) < 0.2
    assert np.ptp(np.asarray(prepare(alternating, "tf1", 4))) == 0  # every second pixel is not looked at
    with pytest.raises(UserError, match="^resize of pictures for Inception is 'torch'; did you mean 'pytorch'"):
        prepare(ramp, "torch")


def test_weights_come_back(loaded):
    named = tensors(GOLDEN.shapes["inception"])
    used = {name: x for name, x in named.items() if name != "fc.bias"}
    assert_comes_back(convert.rules(used), used, loaded[0])


def test_count():
    """The 23,834,568 of Inception v3 without its second head, 8 classes more, and no bias of the logits."""
    shapes = convert.shapes(Inception())
    trained = {k: v for k, v in shapes.items() if not k.endswith(("/mean", "/var"))}
    assert tree.count(tree.unflatten(trained)) == 23_834_568 + 8 * 2049 - 1008
    bare = {k: v for k, v in trained.items() if not k.startswith("fc/")}
    assert tree.count(tree.unflatten(bare)) == 23_834_568 - 2_049_000


def test_mean_at_an_edge_is_of_what_lies_inside_and_the_last_block_has_a_maximum():
    x = jnp.ones((1, 3, 3, 1)).at[0, 0, 0, 0].set(5.0)
    np.testing.assert_allclose(inception.mean3(x)[0, :, :, 0], [[2, 10 / 6, 1], [10 / 6, 13 / 9, 1], [1, 1, 1]], rtol=1e-6)
    assert inception.BLOCKS["Mixed_7b"][-1][0] is inception.mean3 and inception.BLOCKS["Mixed_7c"][-1][0] is inception.max3


def test_wrong_weights_and_small_pictures(tmp_path):
    safetensors.write(tmp_path / "a.safetensors", {"fc.weight": np.zeros((1000, 2048), np.float32)})
    with pytest.raises(UserError, match="missing: Conv2d_1a_3x3.conv.weight.*1 misshapen: fc.weight"):
        convert.load(tmp_path / "a.safetensors")
    with pytest.raises(UserError, match="^Inception takes pictures of 75 pixels or more, got 64 x 64"):
        jax.eval_shape(lambda: Inception().init(jax.random.key(0), jnp.zeros((1, 64, 64, 3))))
