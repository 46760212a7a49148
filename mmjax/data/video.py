"""`video`: sequences of frames at a stated rate, out of folders of frames, tars of frames, or animated pictures (GIF, WebP, PNG).

Config (group `data`):
  path: the videos, by glob or braces, local or objects: a folder or a tar is one video, its frames in the order of the numbers in their
    names (frame_2 before frame_10); a file .gif, .webp or .png is one video with times of its own. Relative to `dir` if that is set.
  stored_fps: the rate folders and tars of frames were written at; needed for them.
  fps: the rate of the sequences. Unset: the frames as they are stored.
  frames: the most a sequence holds; unset, all.

A record: `frames` a tuple of encoded bytes, `times` float32[frames] in seconds from the start, `captions` the text of the file of the same
name with .txt beside it (none: an empty tuple). Frame k of a sequence is what was on screen at the time k / fps.
"""

import bisect
import hashlib
import io
import json
import re
from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np

from mmjax.core.errors import UserError
from mmjax.data import files, tar
from mmjax.data.bad import BadSample
from mmjax.data.source import Info, described, option, rooted, within

ANIMATED = ("gif", "webp", "png", "apng")
_PICTURES = ("jpg", "jpeg", "png", "webp", "bmp", "gif")
_UNREAD = ("mp4", "m4v", "mov", "avi", "mkv", "webm", "mpg", "mpeg", "wmv", "flv", "ogv")
_UNSTATED = 100  # milliseconds of a frame that states none, as browsers show it
_FEATURES = {"frames": "tuple of encoded bytes", "times": "float32, seconds", "captions": "tuple of text"}


def open_video(config: Any, split: str) -> "Video":
    """See the module's docstring.

    Raises:
      UserError: no such videos, something that is no video, or a rate that is missing or not positive.
    """
    if not option(config, "path"):
        raise UserError("data.source=video needs data.path, the videos: data.path='/sets/clips/*.gif', or folders or tars of frames")
    rates = {}
    for key in ("fps", "stored_fps", "frames"):
        rates[key] = option(config, key)
        if rates[key] is not None and rates[key] <= 0:
            raise UserError(f"data.{key} must be positive, got {rates[key]}")
    paths = [p for p in files.expand(rooted(config, config.path)) if _extension(p) != "txt"]
    if not paths:
        raise UserError(f"data.path {config.path!r} matches no video, only text files")
    frames = [(p, files.is_dir(p)) for p in paths]
    for path, folder in frames:
        if not folder and _extension(path) not in (*ANIMATED, "tar"):
            raise UserError(f"'{path}' is no video here: expected a folder or tar of frames, or one of {', '.join(ANIMATED)}")
        if (folder or _extension(path) == "tar") and rates["stored_fps"] is None:
            raise UserError(f"'{path}' holds frames without times: say how many a second, data.stored_fps=25")
    sizes = [stat and stat.size for stat in files.stats(paths)]
    if None in sizes and (gone := next((p for (p, d), s in zip(frames, sizes, strict=True) if s is None and not d), None)):
        raise UserError(f"video '{gone}' does not exist")
    marks = [[files.basename(p), None if folder else size] for (p, folder), size in zip(frames, sizes, strict=True)]
    return Video(tuple(frames), split, rates["fps"], rates["stored_fps"], rates["frames"], marks)


def shown(name: str, fps: float, stored_fps: float, most: int) -> list[bytes]:
    """The encoded frames, one at least, of what a person names: a picture, an animated one, a folder or tar of frames, or a list of
    pictures, "a.png,b.png".

    Args:
      fps: frames a second that are given; of a folder, tar or list `stored_fps` says how many there are.
      most: the most that are given, from the start.

    Raises:
      UserError: a video in a form that is not read here.
      BadSample: no frames, or some that cannot be decoded.
      OSError: no such file.
    """
    path = Path(name).expanduser()
    kind, folder = _extension(path.name), path.is_dir()
    if "," in name and not path.exists():
        listed, rate = [Path(part.strip()).expanduser() for part in name.split(",") if part.strip()], Fraction(str(stored_fps))
        if not listed:
            raise BadSample("missing", "no frames")
        starts = [k / rate for k in range(len(listed))]
        return [listed[k].read_bytes() for k in shown_at(starts, len(listed) / rate, Fraction(str(fps)), most)]
    if kind in _UNREAD and not folder:
        raise UserError(f"'{name}': videos of form {kind} are not read; give a {', '.join(ANIMATED)}, or a folder or tar of its frames")
    if not folder and kind != "tar":
        whole = path.read_bytes()
        if kind not in ANIMATED or not _moves(whole):
            return [whole]
    return Video(((str(path), folder),), "", fps, stored_fps, most, []).sequence(str(path), folder)[0]


def _moves(encoded: bytes) -> bool:
    """Whether a picture is an animated one."""
    from PIL import Image

    try:
        return getattr(Image.open(io.BytesIO(encoded), formats=("GIF", "WEBP", "PNG")), "n_frames", 1) > 1
    except (OSError, ValueError, SyntaxError):
        return False


def _extension(path: str) -> str:
    return files.basename(path).rpartition(".")[2].lower()


def shown_at(starts: Sequence[Fraction], duration: Fraction, fps: Fraction, most: int | None) -> list[int]:
    """Which stored frame is on screen at the times 0, 1 / fps, 2 / fps, ... before `duration`; `starts` ascend from 0. In exact numbers."""
    count = -(-(duration * fps).numerator // (duration * fps).denominator)
    count = max(1, count if most is None else min(count, most))
    return [bisect.bisect_right(starts, k / fps) - 1 for k in range(count)]


class Video:
    """A `Source` of frame sequences."""

    def __init__(
        self,
        videos: tuple[tuple[str, bool], ...],
        split: str,
        fps: float | int | None,
        stored_fps: float | int | None,
        frames: int | None,
        marks: list[Any],
    ):
        """Args: videos: (path, whether it is a folder). marks: what the fingerprint is made of."""
        self._videos, self._read, self._marks = videos, files.Reader(), marks
        self._fps, self._stored, self._most = fps, stored_fps, frames
        name = files.basename(files.parent(videos[0][0])) or "video"
        marks = [marks, fps, stored_fps, frames]
        self.info = Info(name, split, (), (), None, _FEATURES, fingerprint=hashlib.sha256(json.dumps(marks).encode()).hexdigest()[:16])

    def __reduce__(self):
        return Video, (self._videos, self.info.split, self._fps, self._stored, self._most, self._marks)

    def __len__(self) -> int:
        return len(self._videos)

    def describe(self, i: int) -> str:
        return described(self.info, i, f"'{self._videos[i][0]}'")

    def __getitem__(self, i: int) -> dict[str, Any]:
        """Raises: BadSample: a video without frames, or one that cannot be decoded. UserError: one that has gone, or a damaged tar."""
        within(self, i)
        path, folder = self._videos[i]
        try:
            frames, times = self.sequence(path, folder)
        except FileNotFoundError as e:
            raise UserError(f"video '{path}' has gone since the set was opened ({e}); restore it and continue the run") from e
        return {"frames": tuple(frames), "times": np.array([float(t) for t in times], np.float32), "captions": _caption(path)}

    def sequence(self, path: str, folder: bool) -> tuple[list[bytes], list[Fraction]]:
        """The frames of a video and their times."""
        return self._stills(path, folder) if folder or _extension(path) == "tar" else self._animated(path)

    def _chosen(self, starts: Sequence[Fraction], duration: Fraction) -> tuple[list[int], list[Fraction]]:
        """(stored frame, time) of each frame of the sequence."""
        if self._fps is None:
            chosen = list(range(len(starts)))[: self._most]
            return chosen, [starts[k] for k in chosen]
        fps = Fraction(str(self._fps))
        chosen = shown_at(starts, duration, fps, self._most)
        return chosen, [k / fps for k in range(len(chosen))]

    def _stills(self, path: str, folder: bool) -> tuple[list[bytes], list[Fraction]]:
        found = _in_folder(path) if folder else _in_tar(self._read, path)
        if not found:
            raise BadSample("missing", "no frames")
        stored = Fraction(str(self._stored))
        chosen, times = self._chosen([k / stored for k in range(len(found))], len(found) / stored)
        read = {}
        for k in set(chosen):
            name, offset, size = found[k]
            read[k] = files.read(name) if offset is None else self._read(path, offset, size)
        return [read[k] for k in chosen], times

    def _animated(self, path: str) -> tuple[list[bytes], list[Fraction]]:
        from PIL import Image

        try:
            picture = Image.open(io.BytesIO(files.read(path)), formats=("GIF", "WEBP", "PNG"))
            count = getattr(picture, "n_frames", 1)
            starts, at = [], Fraction(0)
            shown: list[bytes] = []
            for k in range(count):
                picture.seek(k)
                starts.append(at)
                shown.append(_png(picture))
                at += Fraction(str(picture.info.get("duration") or _UNSTATED)) / 1000
        except FileNotFoundError:
            raise
        except (OSError, ValueError, SyntaxError, EOFError, Image.DecompressionBombError) as e:
            raise BadSample("undecodable", f"{type(e).__name__}: {' '.join(str(e).split())[:120]}") from e
        chosen, times = self._chosen(starts, at)
        return [shown[k] for k in chosen], times


def _png(picture: Any) -> bytes:
    """The frame on screen, without loss and quickly packed."""
    out = io.BytesIO()
    picture.convert("RGBA" if "A" in picture.getbands() or "transparency" in picture.info else "RGB").save(out, "PNG", compress_level=1)
    return out.getvalue()


def _in_folder(path: str) -> list[tuple[str, None, int]]:
    names = [name for name, folder in files.listdir(path) if not folder and not name.startswith(".") and _extension(name) in _PICTURES]
    return [(files.join(path, name), None, 0) for name in sorted(names, key=_numbered)]


def _in_tar(reader: files.Reader, path: str) -> list[tuple[str, int, int]]:
    size = files.stat(path, "video").size
    found = tar.scan(lambda offset, n: reader(path, offset, n), size, path, files.is_remote(path))
    pictures = [m for m in found if _extension(m.name) in _PICTURES and not files.basename(m.name).startswith(".")]
    return [(m.name, m.offset, m.size) for m in sorted(pictures, key=lambda m: _numbered(m.name))]


def _numbered(name: str) -> list[Any]:
    """The order people mean: runs of digits by value."""
    return [(1, int(part), part) if part.isdigit() else (0, 0, part) for part in re.findall(r"[0-9]+|[^0-9]+", name)]


def _caption(path: str) -> tuple[str, ...]:
    beside = f"{path.rstrip('/').removesuffix(f'.{_extension(path)}') if '.' in files.basename(path) else path.rstrip('/')}.txt"
    try:
        return (files.read(beside).decode(),)
    except FileNotFoundError:
        return ()
    except UnicodeDecodeError as e:
        raise BadSample("bad_text", f"not UTF-8 at byte {e.start}") from e
