"""The evaluator of generated pictures on models that are known, and the comparison with training pictures."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from ml_collections import ConfigDict

from mmjax import evals
from mmjax.core import config as config_lib
from mmjax.core import sharding
from mmjax.core.errors import UserError
from mmjax.data.bad import BadSample
from mmjax.data.scenes.examples import png
from mmjax.data.scenes.world import Scene
from mmjax.data.source import Info, open_source, open_tokenizer
from mmjax.evals import artist, generated, scored
from tests.evals import drawn
from tests.evals.drawn import picture, thing

LENGTH = 16
TEXTS = ("a red circle", "a circle", "a blue star")
GROUP = {"type": "generated", "every": 1, "split": "validation", "batch_size": 4, "length": LENGTH, "samples": 2, "seed": 0, "workers": 0}


@pytest.fixture(scope="module")
def data():
    return config_lib.override(config_lib.base(), ["data.source=digits_captions"]).data


@pytest.fixture(scope="module")
def file(tmp_path_factory):
    path = tmp_path_factory.mktemp("prompts") / "p.json"
    path.write_text(json.dumps([{"prompt": text, "category": f"kind {i % 2}"} for i, text in enumerate(TEXTS)]))
    return str(path)


def drawing(data, pictures):
    """Draws pictures[p] for prompt p, with a little light of the key's own in the last pixel's blue."""
    tokens = jnp.asarray(open_tokenizer(open_source(data, "validation")).encode(list(TEXTS), LENGTH))
    known = jnp.asarray(np.stack(pictures) / np.float32(255))

    def text_to_image(params, ids, keys):
        shown = known[(ids[:, None] == tokens[None]).all(-1).argmax(1)]
        return shown.at[:, -1, -1, 2].set(jax.vmap(jax.random.uniform)(keys)) * params["light"]

    return {"text_to_image": text_to_image}


PICTURES = [picture(thing("circle", "red")), picture(thing("circle", "blue")), picture(thing("circle", "red"))]
LIGHT = {"light": jnp.float32(1)}


def make(data, file, sizes, **keys):
    mesh = sharding.make_mesh(sizes, jax.devices()[: int(np.prod(list(sizes.values())))])
    return evals.make("g", drawing(data, PICTURES), ConfigDict({**GROUP, "prompts": file, "training": "", **keys}), mesh, data)


def test_scores_and_keys(data, file):
    evaluate = make(data, file, {"data": 1})
    got = evaluate(LIGHT)
    assert {k: got[k] for k in ("overall", "kind_0", "kind_1", "nothing_seen")} == {
        "overall": 0.75,
        "kind_0": 0.5,  # the circle is there, the blue star is not
        "kind_1": 1.0,
        "nothing_seen": 0.0,
    }
    assert got["bits_size"] == 0 and got["bits_colour"] == 0
    one = evaluate.pictures(LIGHT)
    assert one.shape == (3, 2, 64, 64, 3) and len(np.unique(one[:, :, -1, -1, 2])) == 6  # every picture has a key of its own
    other = make(data, file, {"data": 2, "fsdp": 2, "tensor": 2}, batch_size=3).pictures(LIGHT)
    np.testing.assert_array_equal(one, other)
    assert (make(data, file, {"data": 1}, seed=1).pictures(LIGHT) != one).any()
    assert evaluate({"light": jnp.float32(jnp.nan)})["nothing_seen"] == 1.0


class Records:
    """A source of scenes at hand; the second record is damaged."""

    def __init__(self, split, scenes):
        self.info, self.scenes = Info("records", split, (), (), None, {}), scenes

    def __len__(self):
        return len(self.scenes) + 1

    def __getitem__(self, i):
        if i == 1:
            raise BadSample("other", "damaged")
        shown = self.scenes[max(i - 1, 0)]
        return {"image": png(picture(*shown)), "scene": json.dumps(Scene(tuple(shown)).json())}


PLACES = [(x, y) for x in (0.2, 0.35, 0.65, 0.8) for y in (0.2, 0.4, 0.6, 0.8)]
TRAINING = Records("train", [[thing("circle", "red" if i % 8 else "blue", *at)] for i, at in enumerate(PLACES)])
VALIDATION = Records("validation", [[thing("cross", "pink", *at)] for at in PLACES[:6]])


def test_comparison_with_training():
    """Prompts for circles that leave the colour open; one of the pictures is a copy of record 5, the others lie elsewhere."""
    prompts = drawn.prompts(("c", "a circle"), ("c", "a picture of a circle"))
    shown = [TRAINING.scenes[4], *[[thing("circle", "red", x, 0.5)] for x in (0.3, 0.5, 0.7)]]
    pictures = np.stack([picture(*s) for s in shown]).reshape(2, 2, 64, 64, 3)
    found = scored.score(pictures, prompts, 0, TRAINING, VALIDATION)
    near = found.likeness.nearest["pixels"]
    assert near.numbers[0] == 5 and near.distances[0] == 0 and (near.distances[1:] > 0).all()
    assert found.likeness.memorised["pixels"].share >= 1 / 4
    pair = found.likeness.amplification.pairs["circle", "red"]
    assert pair.training == 14 / 16 and pair.generated == 1.0
    assert found.diversity["colour"].bits == 0 and found.diversity["colour"].training > 0.2 and found.diversity["place"].bits > 0.8
    scalars = found.scalars()
    assert scalars["diversity_colour"] == 0 and scalars["amplification"] == pytest.approx(2 / 16) and scalars["overall"] == 1
    assert scalars["memorised_pixels"] == found.likeness.memorised["pixels"].share
    plain = json.loads(json.dumps(found.plain()))
    assert plain["memorisation"]["pixels"]["share"] == scalars["memorised_pixels"] and plain["amplification"]["pairs"]["red circle"]
    assert "entropy in bits" in found.table() and "nearest training picture" in found.table() and "red circle" in found.table()


def test_evaluator_compares(data, file, monkeypatch):
    sources = {"train": TRAINING, "validation": VALIDATION}
    monkeypatch.setattr(generated, "open_source", lambda data, split: sources[split])
    monkeypatch.setattr(artist, "open_tokenizer", lambda *a: open_tokenizer(open_source(data, "validation")))
    got = make(data, file, {"data": 1}, training="train")(LIGHT)
    assert {"memorised_pixels", "memorised_hash", "amplification", "diversity_place"} <= set(got)


def test_other_sizes_are_refused():
    small = np.zeros((1, 1, 32, 32, 3), np.uint8)
    with pytest.raises(UserError, match=r"source 'records' \(validation\), record 0 is 64 x 64 pixels, generated pictures are 32 x 32"):
        scored.score(small, drawn.prompts(("c", "a circle")), 0, TRAINING, VALIDATION)


@pytest.mark.parametrize(
    "keys, message",
    [
        ({"samples": 0}, "samples is 0, expected at least one"),
        ({"prompts": "/nowhere/p.json"}, "'/nowhere/p.json' does not exist"),
        ({"sample": 1}, "unknown key 'sample'; did you mean 'samples'"),
    ],
)
def test_bad_groups(data, file, keys, message):
    with pytest.raises(UserError, match=message):
        make(data, file, {"data": 1}, **keys)
