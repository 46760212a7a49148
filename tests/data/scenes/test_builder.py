"""`scenes` as a prepared set: the same bytes however it is made, read back through the source, refused where there is no such thing."""

import hashlib
import io

import numpy as np
import pytest
from PIL import Image

from mmjax.core import config as config_lib
from mmjax.core.errors import UserError
from mmjax.data import tokenizer
from mmjax.data.scenes import builder, vocabulary
from mmjax.data.scenes.examples import example
from mmjax.data.source import open_source, open_tokenizer


def digests(folder) -> dict[str, str]:
    return {p.name: hashlib.sha256(p.read_bytes()).hexdigest() for p in sorted(folder.iterdir())}


def data(tmp_path, **scenes):
    config = config_lib.base()
    config.data.source, config.data.dir = "scenes", str(tmp_path)
    config.data.scenes.update({"pixels": 16, "train": 120, "evaluation": 4, **scenes})
    return config.data


@pytest.mark.slow  # processes that start
def test_same_bytes_with_any_number_of_processes(tmp_path):
    made = builder.Settings("relations", 32, 130, 60)
    whole = [digests(builder.prepare(tmp_path / str(workers), made, workers=workers)) for workers in (0, 1, 3)]
    assert whole[0] == whole[1] == whole[2]
    assert len(whole[0]) == 7  # four splits, two files of TFDS, the tokenizer


@pytest.mark.parametrize("config", ["objects", "video", "few_shot"])
def test_read_back_as_a_source(tmp_path, config, capsys):
    group = data(tmp_path, config=config, train=6)
    source = open_source(group, "unseen")
    assert len(source) == 4
    told = "texts" if config == "few_shot" else "captions"
    records = {source[i][told]: source[i] for i in range(4)}
    for index in range(4):
        made = example(config, "unseen", index, 16)
        for name, value in made.items():
            kept = records[tuple(made[told])][name]
            assert list(kept) == value if isinstance(value, list) else kept == value, name
    said = capsys.readouterr().err
    assert "prepared" in said and "examples a second" in said and "MiB in" in said
    open_source(group, "validation")
    assert "prepar" not in capsys.readouterr().err  # once


def test_pairs_are_splits_of_every_config(tmp_path):
    for split, pictures in (("swaps", "images"), ("hard_negatives", "image")):
        one, other = (open_source(data(tmp_path, config=config), split) for config in ("objects", "relations"))
        assert one[3] == other[3] and len(one[3]["captions"]) == 2 and pictures in one[3]


def test_sixteen_pixels_are_colour_pngs(tmp_path):
    record = open_source(data(tmp_path, train=3), "train")[0]
    assert np.asarray(Image.open(io.BytesIO(record["image"]))).shape == (16, 16, 3)


def test_the_tokenizer_reads_every_config(tmp_path):
    core = open_tokenizer(open_source(data(tmp_path, train=3), "train"))
    for config in ("objects", "qa", "edit", "interleaved"):
        made = example(config, "validation", 3, 16)
        for text in [v for k in ("captions", "question", "instruction", "texts") for v in np.atleast_1d(made.get(k, []))]:
            assert core.decode(core.encode([str(text)], 256)[0]).replace(" ", "") == str(text).lower().replace(" ", "")


@pytest.mark.slow
def test_the_tokenizer_is_what_its_script_makes(tmp_path):
    made = tmp_path / "tokenizer.json"
    tokenizer.train(vocabulary.texts(vocabulary.EXAMPLES), vocabulary.VOCAB_SIZE).save(made)
    assert made.read_bytes() == builder.TOKENIZER.read_bytes()


@pytest.mark.parametrize(
    ("keys", "split", "says"),
    [
        ({"config": "object"}, "train", "data.scenes.config: scenes have no config 'object'; did you mean 'objects'"),
        ({}, "trian", "scenes/objects has no split 'trian'; did you mean 'train'"),
        ({"config": "qa"}, "biased", "scenes/qa has no split 'biased'"),
        ({"pixels": 48}, "train", "data.scenes.pixels is 48; scenes are drawn at 16, 32, 64, 128, 256"),
        ({"train": 0}, "train", "data.scenes.train is 0"),
    ],
)
def test_what_there_is_none_of(tmp_path, keys, split, says):
    with pytest.raises(UserError, match=says):
        open_source(data(tmp_path, **keys), split)
    assert not list(tmp_path.iterdir())
