"""mmjax.data.video: which frame is on screen when, out of folders, tars and animated pictures."""

import io
import pickle
import tarfile
from fractions import Fraction
from types import SimpleNamespace

import fsspec
import numpy as np
import pytest
from PIL import Image

from mmjax.core.errors import UserError
from mmjax.data.bad import BadSample
from mmjax.data.source import Source, open_source
from mmjax.data.video import shown_at


def config(path, **keys):
    return SimpleNamespace(source="video", dir=None, path=str(path), **keys)


def grey(k):
    return Image.new("L", (4, 4), 20 * k)


def still(k):
    out = io.BytesIO()
    grey(k).save(out, "PNG")
    return out.getvalue()


def levels(record):
    return [round(np.asarray(Image.open(io.BytesIO(f)).convert("L"))[0, 0] / 20) for f in record["frames"]]


@pytest.fixture
def clips(tmp_path):
    """A folder and a tar of 12 frames, numbered without leading zeros, and a GIF with times of its own."""
    (tmp_path / "a").mkdir()
    for k in range(12):
        (tmp_path / "a" / f"frame_{k}.png").write_bytes(still(k))
    (tmp_path / "a" / "notes.md").write_text("no frame")
    (tmp_path / "a.txt").write_text("twelve greys")
    with tarfile.open(tmp_path / "b.tar", "w") as t:
        for k in reversed(range(12)):
            info = tarfile.TarInfo(f"clip/{k}.png")
            info.size = len(still(k))
            t.addfile(info, io.BytesIO(still(k)))
    frames = [grey(k) for k in range(4)]
    frames[0].save(tmp_path / "c.gif", save_all=True, append_images=frames[1:], duration=[100, 300, 100, 500], loop=0)
    return tmp_path


@pytest.mark.parametrize("name", ["a", "b.tar"])
def test_frames_at_a_rate(clips, name):
    of = lambda **keys: open_source(config(clips / name, stored_fps=12.0, **keys), "train")
    source = of()
    assert isinstance(source, Source) and levels(source[0]) == list(range(12))
    assert np.allclose(source[0]["times"], np.arange(12) / 12) and source[0]["times"].dtype == np.float32
    assert levels(of(fps=4.0)[0]) == [0, 3, 6, 9] and of(fps=4.0)[0]["times"].tolist() == [0, 0.25, 0.5, 0.75]
    assert levels(of(fps=24.0, frames=5)[0]) == [0, 0, 1, 1, 2] and levels(of(frames=3)[0]) == [0, 1, 2]
    assert levels(of(fps=5.0)[0]) == [0, 2, 4, 7, 9]  # floor(12 k / 5)
    assert source[0]["frames"][10] == still(10)  # untouched bytes
    assert source[0]["captions"] == (("twelve greys",) if name == "a" else ())
    assert pickle.loads(pickle.dumps(of(fps=4.0)))[0]["frames"] == of(fps=4.0)[0]["frames"]


def test_an_animated_picture_keeps_its_own_time(clips):
    source = open_source(config(clips / "c.gif"), "train")
    assert levels(source[0]) == [0, 1, 2, 3] and np.allclose(source[0]["times"], [0, 0.1, 0.4, 0.5])
    source = open_source(config(clips / "c.gif", fps=10.0), "train")
    assert levels(source[0]) == [0, 1, 1, 1, 2, 3, 3, 3, 3, 3] and np.allclose(source[0]["times"], np.arange(10) / 10)


@pytest.mark.parametrize("kind", ["webp", "png"])
def test_other_animated_pictures(tmp_path, kind):
    frames = [Image.new("RGB", (4, 4), (60 * k, 0, 0)) for k in range(3)]
    frames[0].save(tmp_path / f"x.{kind}", save_all=True, append_images=frames[1:], duration=200, lossless=True)
    record = open_source(config(tmp_path / f"x.{kind}", fps=5.0), "train")[0]
    assert [np.asarray(Image.open(io.BytesIO(f)))[0, 0, 0] for f in record["frames"]] == [0, 60, 120]


def test_exact_at_rates_no_float_holds():
    """3 of every 10 frames: position floor(10 k / 3) for a thousand k, where 1 / 0.3 in floats slips."""
    starts = [Fraction(k, 10) for k in range(10_000)]
    assert shown_at(starts, Fraction(1000), Fraction(3), None) == [10 * k // 3 for k in range(3000)]
    assert shown_at([Fraction(0)], Fraction(1, 100), Fraction(1), None) == [0]  # never empty


def test_a_store(clips):
    memory = fsspec.filesystem("memory")
    for k in range(12):
        memory.pipe_file(f"/clips/a/{k}.png", still(k))
    memory.pipe_file("/clips/b.tar", (clips / "b.tar").read_bytes())
    memory.pipe_file("/clips/c.gif", (clips / "c.gif").read_bytes())
    source = open_source(config("memory://clips/*", stored_fps=12.0, fps=4.0), "train")
    assert [levels(source[i]) for i in range(3)] == [[0, 3, 6, 9], [0, 3, 6, 9], [0, 1, 3, 3]]
    memory.rm("/clips", recursive=True)


def test_bad_videos(clips):
    (clips / "empty").mkdir()
    (clips / "d.gif").write_bytes((clips / "c.gif").read_bytes()[:40])
    with pytest.raises(BadSample, match="no frames"):
        open_source(config(clips / "empty", stored_fps=1.0), "train")[0]
    with pytest.raises(BadSample, match="undecodable"):
        open_source(config(clips / "d.gif"), "train")[0]
    source = open_source(config(clips / "{a,b.tar,c.gif}", stored_fps=12.0), "train")
    assert len(source) == 3 and "c.gif'" in source.describe(2)
    (clips / "c.gif").unlink()
    with pytest.raises(UserError, match=r"video '.*c\.gif' has gone"):
        source[2]


@pytest.mark.parametrize(
    ("name", "keys", "message"),
    [
        ("a", {}, r"holds frames without times: say how many a second, data\.stored_fps=25"),
        ("b.tar", {}, r"data\.stored_fps"),
        ("c.gif", {"fps": 0.0}, r"data\.fps must be positive"),
        ("c.gif", {"frames": -1}, r"data\.frames must be positive"),
        ("none.gif", {}, r"video '.*none\.gif' does not exist"),
        ("none*", {}, "no file matches"),
        ("a/notes.md", {}, "is no video here"),
        ("a.txt", {}, "only text files"),
    ],
)
def test_what_cannot_be_opened(clips, name, keys, message):
    with pytest.raises(UserError, match=message):
        open_source(config(clips / name, **keys), "train")


def test_the_fingerprint_follows_the_set(clips):
    of = lambda **keys: open_source(config(clips / "*.gif", **keys), "train").info.fingerprint
    before = of()
    assert of(fps=2.0) != before
    (clips / "e.gif").write_bytes((clips / "c.gif").read_bytes())
    assert of() != before
