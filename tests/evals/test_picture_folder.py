"""Folders of generated pictures: GenEval's layout and a flat one give the same, and one line says what is wrong with a folder."""

import json

import numpy as np
import pytest
from PIL import Image

from mmjax.core.errors import UserError
from mmjax.evals import picture_folder
from tests.evals import drawn

PROMPTS = drawn.prompts(("all", "a circle"), ("all", "a star"))
PICTURES = np.random.default_rng(0).integers(0, 256, (2, 2, 16, 16, 3), dtype=np.uint8)


def save(path, picture):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(picture).save(path)


@pytest.fixture
def nested(tmp_path):
    for p, prompt in enumerate(PROMPTS):
        for k in range(2):
            save(tmp_path / prompt.id / "samples" / f"{k:04d}.png", PICTURES[p, k])
        (tmp_path / prompt.id / "metadata.jsonl").write_text(json.dumps({"prompt": prompt.text, "tag": "x", "include": []}))
        save(tmp_path / prompt.id / "grid.png", PICTURES[0, 0])
    return tmp_path


def read(folder):
    return picture_folder.read(str(folder), PROMPTS, "the prompts")


def test_both_layouts(nested, tmp_path_factory):
    np.testing.assert_array_equal(read(nested), PICTURES)
    flat = tmp_path_factory.mktemp("flat")
    for p, prompt in enumerate(PROMPTS):
        save(flat / f"{prompt.id}.png", PICTURES[p, 0])
        save(flat / f"{prompt.id}_1.PNG", PICTURES[p, 1])
    (flat / "notes.txt").write_text("not a picture")
    np.testing.assert_array_equal(read(flat), PICTURES)


def test_numbers_are_counted_not_spelt(tmp_path):
    for p, prompt in enumerate(PROMPTS):
        for k, number in enumerate((2, 10)):
            save(tmp_path / f"{prompt.id}_{number}.png", PICTURES[p, k])
    np.testing.assert_array_equal(read(tmp_path), PICTURES)


def missing(folder):
    for file in (folder / "00001" / "samples").iterdir():
        file.unlink()


def doubled(folder):
    save(folder / "00000_1.png", PICTURES[0, 0])


def uneven(folder):
    (folder / "00001" / "samples" / "0001.png").unlink()


def strange(folder):
    save(folder / "00007.png", PICTURES[0, 0])


def unnumbered(folder):
    save(folder / "00000_grid.png", PICTURES[0, 0])


def other_prompt(folder):
    (folder / "00001" / "metadata.jsonl").write_text('{"prompt": "a heart"}')


def oblong(folder):
    save(folder / "00000" / "samples" / "0000.png", PICTURES[0, 0, :, :12])


def larger(folder):
    save(folder / "00001" / "samples" / "0000.png", PICTURES[0, 0].repeat(2, 0).repeat(2, 1))


def damaged(folder):
    (folder / "00001" / "samples" / "0000.png").write_bytes(b"no picture")


@pytest.mark.parametrize(
    "spoil, message",
    [
        (missing, r"has no prediction for 1 \(00001\) of the 2 ids of the prompts"),
        (doubled, "'00000/samples/0001.png' and '00000_1.png' are both picture 1 of id 00000; expected one"),
        (uneven, r"has 1 picture\(s\) for id 00001 and 2 for 00000; expected equally many"),
        (strange, r"has predictions for 1 \(00007\) that the prompts does not have"),
        (unnumbered, r"has predictions for 1 \(00000_grid\) that"),
        (other_prompt, "metadata.jsonl' is of prompt 'a heart', but id 00001 is 'a star'"),
        (oblong, "0000.png' is 12 x 16 pixels; expected a square of at least 16"),
        (larger, "0000.png' is 32 x 32 pixels, '00000/samples/0000.png' is 16 x 16; expected all of one size"),
        (damaged, "0000.png' cannot be used as a picture: undecodable"),
    ],
    ids=lambda x: getattr(x, "__name__", ""),
)
def test_one_line_for_bad_folders(nested, spoil, message):
    spoil(nested)
    with pytest.raises(UserError, match=message) as e:
        read(nested)
    assert "\n" not in str(e.value)


def test_no_folder(tmp_path):
    with pytest.raises(UserError, match="gone' does not exist"):
        read(tmp_path / "gone")
