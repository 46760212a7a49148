"""The evaluators of drawn pictures, with a network that judges by the mean of each quarter of a picture."""

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from ml_collections import ConfigDict
from PIL import Image

import mmjax
from mmjax.convert.pretrained import Pretrained
from mmjax.core import rng, sharding
from mmjax.core.errors import UserError
from mmjax.data import tokenizer as tokenizers
from mmjax.data.source import open_source
from mmjax.evals import clip_score, features, fid, frechet
from mmjax.evals.inception_score import inception_score
from mmjax.evals.kid import kid
from mmjax.evals.precision_recall import precision_recall
from tests.sets import jsonl_data

COUNT, N, SEED = 40, 24, 3
SHOWN = (("decode", {"channels": 1}), ("keep", {"keys": ("image", "label")}))
METRICS = ("frechet", "kid", "precision_recall", "inception_score")


def quarters(x):
    """Features, and twice as many numbers that stand for logits."""
    x = x.mean(-1).reshape(x.shape[0], 2, 4, 2, 4).mean((2, 4)).reshape(x.shape[0], 4)
    return np.concatenate([x, 5 * x, -x], 1) if isinstance(x, np.ndarray) else jnp.concatenate([x, 5 * x, -x], 1)


@pytest.fixture(autouse=True)
def judge(monkeypatch):
    """The gain is the judge's only parameter."""
    make = lambda gain: features.Features(
        "frechet_quarters", "quarters", "means of quarters", 4, 8, {"gain": jnp.float32(gain)}, lambda p, x: p["gain"] * quarters(x)
    )
    monkeypatch.setitem(features.TYPES, "quarters", (make, {"gain": 1.0}))


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return jsonl_data(tmp_path_factory.mktemp("fid"), COUNT, broken=(5,))


def mesh(**sizes):
    return sharding.make_mesh(sizes or {"data": 8})


def draw(params, labels, keys):
    """Noise around a class's grey."""
    noise = jax.vmap(lambda key: jax.random.uniform(key, (8, 8, 1)))(keys)
    return params["spread"] * noise + (labels / 10).reshape(-1, 1, 1, 1)


PREDICT = {"class_to_image": draw, "sample": lambda params, keys: draw(params, jnp.zeros(keys.shape[0]), keys)}
PARAMS = {"spread": jnp.float32(0.5)}
GROUP = {"split": "train", "batch_size": 16, "transforms": SHOWN, "draw": "class_to_image", "n": N, "seed": SEED, "reference": ""}
GROUP |= {"metrics": METRICS, "features": {"type": "quarters"}, **fid.OPTIONAL, "subsets": 4, "subset_size": 10, "splits": 2}


def make(data, mesh_=None, **changes):
    return fid.make(PREDICT, ConfigDict({**GROUP, **changes}), mesh_ or mesh(), data)


def real(data):
    """Pictures 0..1 and labels of the set's sound records."""
    out = [(np.asarray(Image.open(f"{data.path.rpartition('/')[0]}/images/{i:05d}.png")) / 255, i % 10) for i in range(COUNT) if i != 5]
    return np.stack([x for x, _ in out])[..., None], np.array([label for _, label in out])


def test_scores_are_those_of_the_pictures(data):
    pictures, labels = real(data)
    key = rng.named(rng.wrap(rng.root(SEED)), "fid")
    drawn = draw(PARAMS, jnp.asarray(labels[np.arange(N) % len(labels)]), rng.per_example(key, jnp.arange(N)))
    drawn = quarters(np.round(np.clip(np.asarray(drawn), 0, 1) * 255) / 255)
    seen = quarters(pictures)[:, :4]
    order = np.random.default_rng(SEED).permutation(N)
    want = {"frechet_quarters": frechet.distance(frechet.of(seen), frechet.of(drawn[:, :4]))}
    want |= dict(zip(("kid_quarters", "kid_std_quarters"), kid(drawn[:, :4], seen, 4, 10, SEED), strict=True))
    want |= {f"{k}_quarters": v for k, v in precision_recall(seen, drawn[:, :4]).items()}
    names = ("inception_score_quarters", "inception_score_std_quarters")
    want |= dict(zip(names, inception_score(drawn[order, 4:], 2), strict=True))
    want |= {"n": N, "reference_n": COUNT - 1, "seed": SEED}
    evaluate = make(data)
    assert evaluate(PARAMS) == pytest.approx(want, rel=1e-4, abs=1e-6)
    assert evaluate.told().startswith(f"{N} pictures, seed {SEED}, against '") and evaluate.told().endswith("features of means of quarters")


def test_batch_size_and_mesh_change_nothing(data):
    one = make(data, metrics=("frechet",))(PARAMS)
    other = make(data, mesh(data=2, fsdp=2, tensor=2), metrics=("frechet",), batch_size=5)(PARAMS)
    assert one == pytest.approx(other, rel=1e-4)
    assert make(data, metrics=("frechet",), seed=4)(PARAMS)["frechet_quarters"] != one["frechet_quarters"]


def test_statistics_of_a_file(data, tmp_path):
    path = str(tmp_path / "a.npz")
    want = make(data, metrics=("frechet",), write=path)(PARAMS)
    statistics, kept = frechet.of(quarters(real(data)[0])[:, :4]), frechet.read(path)
    np.testing.assert_allclose(kept.mean, statistics.mean, rtol=1e-5)
    np.testing.assert_allclose(kept.covariance, statistics.covariance, rtol=1e-4, atol=1e-8)
    assert kept.count == statistics.count and [f.name for f in tmp_path.iterdir()] == ["a.npz"]
    assert make(data, metrics=("frechet",), reference=path)(PARAMS) == pytest.approx(want, rel=1e-4)
    shown = (("decode", {"channels": 1}), ("keep", {"keys": ("image",)}))
    unconditional = make(data, metrics=("frechet",), draw="sample", reference=path, transforms=shown)
    assert unconditional(PARAMS)["reference_n"] == COUNT - 1 and path in unconditional.told()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"draw": "samples"}, "^fid: draw is 'samples'; did you mean 'sample'"),
        ({"draw": "text_to_image"}, "^fid: draw is 'text_to_image', and this task has the predict functions class_to_image, sample"),
        ({"metrics": ("fid",)}, "^fid: metrics has 'fid'; did you mean 'kid'"),
        ({"reference": "a.npz"}, "^fid: kid needs real pictures, and 'a.npz' is statistics alone"),
        ({"reference": "a.npz", "write": "b.npz", "metrics": ("frechet",)}, "^fid: write is 'b.npz', and 'a.npz' stands for"),
        ({"write": "none/b.npz"}, "^fid: write is 'none/b.npz', and there is no such folder"),
        ({"n": 1}, "^fid: n is 1"),
        ({"subset_size": 25}, "^fid: subset_size is 25, and n 24"),
        ({"features": {"type": "inception"}}, "^fid: features lacks 'weights'"),
        ({"features": {"type": "inceptoin", "weights": "a"}}, "^fid: features.type is 'inceptoin'; did you mean 'inception'"),
        ({"features": {"type": "quarters", "gian": 1}}, "^fid: features has an unknown key 'gian'; did you mean 'gain'"),
    ],
)
def test_bad_configs(data, changes, message):
    with pytest.raises(UserError, match=message):
        make(data, **changes)


def test_statistics_of_another_network_are_refused_at_configuration(data, tmp_path):
    frechet.write(tmp_path / "a.npz", frechet.of(np.eye(5)))
    with pytest.raises(UserError, match="are of 5 features, the network that judges has 4"):
        make(data, metrics=("frechet",), reference=str(tmp_path / "a.npz"))


def test_what_pictures_hold_no_number_is_black():
    got = features.levels(jnp.asarray([[[[jnp.nan]], [[2.0]], [[0.4999]], [[-1.0]]]]))
    assert got.reshape(-1).tolist() == [0, 255, 127, 0]


# --- CLIP ----------------------------------------------------------------------------------------------------------------


def test_clip_score_by_hand():
    images, texts = np.array([[3.0, 4.0], [1.0, 0.0], [0.0, 2.0]]), np.array([[2.0, 0.0], [-1.0, 0.0], [0.0, 1.0]])
    got = clip_score.clip_score(images, texts)
    assert got == pytest.approx({"clip_score": 100 * 1.6 / 3, "clip_cosine": 0.6 / 3})


CLIP = Path(__file__).parents[1] / "golden" / "checkpoints" / "hf_clip"


def test_features_of_a_checkpoint():
    """What its image tower makes of the squashed and normalised pictures; never called FID."""
    found = features.open_features({"type": "checkpoint", "path": str(CLIP)}, "fid: features")
    assert (found.frechet, found.label, found.classes) == ("frechet_clip_features", "clip_features", 0) and "is no FID" in found.told
    pictures = jnp.asarray(np.random.default_rng(0).random((2, 20, 12, 3)), jnp.float32)
    got = found.function(found.params, pictures)
    assert got.shape == (2, found.size)
    clip = mmjax.from_pretrained(CLIP)
    how = clip.config["preprocess"]
    seen = jax.image.resize(pictures, (2, how["size"], how["size"], 3), "bicubic")
    mean, std = (np.asarray(how[k], np.float32)[None, None, None] for k in ("mean", "std"))
    np.testing.assert_allclose(got, clip.predict["encode_image"](clip.params, (seen - mean) / std), rtol=1e-4, atol=1e-5)
    with pytest.raises(UserError, match="has no function 'encode_imgae'; did you mean 'encode_image'"):
        features.open_features({"type": "checkpoint", "path": str(CLIP), "function": "encode_imgae"}, "fid: features")


def test_clip_scores_of_what_is_drawn(data, tmp_path, monkeypatch):
    """A judge that sees a picture's mean and a text's first token, with a tokenizer of its own."""
    tokens = tokenizers.train(["picture of many things"] * 9, 600)
    tokens.save(tmp_path / "tokenizer.json")
    group = data.copy_and_resolve_references()
    group.tokenizer = str(tmp_path / "tokenizer.json")
    both = lambda a, b: jnp.stack([a.astype(jnp.float32), b * jnp.ones_like(a, jnp.float32)], 1)
    predict = {"encode_image": lambda p, x: both(p["gain"] * x.mean((1, 2, 3)), 1.0), "encode_text": lambda p, t: both(t[:, 1], 100.0)}
    model = {"text": {"length": 6, "vocab": 600}, "channels": 3}
    config = {"model": model, "preprocess": {"size": 4, "method": "bilinear", "mean": (0.0,) * 3, "std": (1.0,) * 3}}
    judge = Pretrained(config, {"gain": jnp.float32(2.0)}, tokens, predict)
    monkeypatch.setattr(clip_score, "from_pretrained", lambda path: judge)
    asked = {"split": "train", "batch_size": 16, "length": 8, "n": 10, "seed": 1, "judge": "there"}
    grey = lambda params, tokens, keys: jnp.full((tokens.shape[0], 8, 8, 3), 0.2) * params["spread"]
    evaluate = clip_score.make({"text_to_image": grey}, ConfigDict(asked), mesh(), group)
    first = tokens.encode(clip_score.captions(open_source(data, "train"), 10), 6)[:, 1]
    level = np.round(0.1 * 255) / 255
    images = np.tile([[2 * level, 1.0]], (10, 1))
    want = clip_score.clip_score(images, np.stack([first, np.full(10, 100.0)], 1))
    assert evaluate(PARAMS) == pytest.approx({**want, "n": 10, "seed": 1}, rel=1e-4)
    assert evaluate.told() == "10 pictures, a caption each, seed 1; judged by the CLIP of 'there'"
    model["text"]["vocab"] = 50
    with pytest.raises(UserError, match="^clip_score: the tokenizer of 'there' gives token .*, and its CLIP has 50"):
        clip_score.make({"text_to_image": grey}, ConfigDict(asked), mesh(), group)


def test_captions_of_sound_records_from_the_start_again(data):
    source = open_source(data, "train")
    got = clip_score.captions(source, COUNT + 5)
    assert len(got) == COUNT + 5 and len(set(got)) == COUNT and got[COUNT:] == got[:5]  # a record whose picture is bad has a caption still
