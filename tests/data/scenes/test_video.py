"""Videos: what moves does so within its time, everything stays in the picture and apart, and no frame alone tells."""

import pytest

from mmjax.data.scenes import video
from mmjax.data.scenes.sample import fits
from mmjax.data.scenes.splits import held_out
from mmjax.data.scenes.video_language import Motion
from mmjax.data.scenes.world import MOTIONS, Object

VIDEOS = [video.video("train", i) for i in range(60)]


def test_all_motions_occur_and_nothing_touches_or_leaves():
    assert {m.kind for v in VIDEOS for m in v.motions} == set(MOTIONS)
    for v in VIDEOS:
        assert len(v.frames) == video.FRAMES
        for k, frame in enumerate(v.frames):
            assert not held_out(frame)
            everything = video.at(v.scene.objects, v.motions, k, seen=False)
            assert all(fits(o, everything[:i]) for i, o in enumerate(everything))


def test_still_before_and_after():
    for v in VIDEOS:
        for m in v.motions:
            states = [video.at(v.scene.objects, [m], k)[0:] for k in range(video.FRAMES)]
            assert all(s == states[0] for s in states[: m.start])
            assert all(s == states[m.end] for s in states[m.end :])
            assert states[0] != states[-1] or m.kind in ("blinks", "orbits")
            assert any(s != states[0] for s in states)


# Of an object at (0.5, 0.5): what is known of it at the last frame and half way, by hand.
@pytest.mark.parametrize(
    ("kind", "half", "last"),
    [
        ("moves left", {"x": 0.35}, {"x": 0.2}),
        ("moves right", {"x": 0.65}, {"x": 0.8}),
        ("moves up", {"y": 0.35}, {"y": 0.2}),
        ("moves down", {"y": 0.65}, {"y": 0.8}),
        ("grows", {"radius": 0.14 * 1.3}, {"radius": 0.14 * 1.6}),
        ("shrinks", {"radius": 0.14 * (1 - 0.375 / 2)}, {"radius": 0.14 / 1.6}),
        ("turns", {"angle": 90.0}, {"angle": 180.0}),
        ("orbits", {"x": 0.26, "y": 0.5}, {"x": 0.5, "y": 0.5}),
    ],
)
def test_by_hand(kind, half, last):
    o = Object("star", "red", "medium", 0.5, 0.5)
    motion = Motion(0, kind, 2, 8)
    for frame, expected in ((0, {"x": 0.5, "y": 0.5, "angle": 0.0}), (5, half), (8, last), (11, last)):
        (found,) = video.at([o], [motion], frame)
        for name, value in expected.items():
            assert getattr(found, name) == pytest.approx(value, abs=2e-5)


@pytest.mark.parametrize(
    ("kind", "start", "end", "seen"),
    [("appears", 4, 4, "000011111111"), ("disappears", 4, 4, "111100000000"), ("blinks", 3, 7, "111101011111")],
)
def test_coming_and_going(kind, start, end, seen):
    o = Object("star", "red", "medium", 0.5, 0.5)
    assert "".join(str(len(video.at([o], [Motion(0, kind, start, end)], k))) for k in range(12)) == seen
