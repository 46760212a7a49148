"""What `mmjax sample` leaves in its folder: pictures, a grid of them, an animation, and samples.json, written last."""

import json
import math
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float, UInt8
from PIL import Image

from mmjax.core.errors import UserError
from mmjax.data.image import to_pil

SHOWN = 144  # pictures on the grid
HOLD = 12  # times that the last frame is shown
FRAME_MS = 80
MARGIN = 2  # pixels between the grid's pictures


def check_new(out: Path) -> None:
    """Raises UserError unless the folder is new, or empty."""
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise UserError(f"--out '{out}' is there already; choose a new folder")


def levels(x: Float[np.ndarray, "*b"]) -> UInt8[np.ndarray, "*b"]:
    """0..1 as 0..255.

    Raises:
      UserError: values that are no numbers.
    """
    if not np.isfinite(x).all():
        raise UserError("the model drew values that are not finite: its weights are damaged, or the solver's steps are too large for it")
    return np.round(np.clip(x, 0, 1) * 255).astype(np.uint8)


def grid(pictures: UInt8[np.ndarray, "N H W C"]) -> Image.Image:
    """The first pictures side by side; small ones are enlarged, every pixel a square."""
    shown = [to_pil(p) for p in pictures[:SHOWN]]
    scale = max(1, 64 // shown[0].width)
    columns = math.ceil(math.sqrt(len(shown)))
    cell = tuple(scale * side + MARGIN for side in shown[0].size)
    sheet = Image.new("RGB", (columns * cell[0] + MARGIN, math.ceil(len(shown) / columns) * cell[1] + MARGIN), (255, 255, 255))
    for i, picture in enumerate(shown):
        at = (i % columns * cell[0] + MARGIN, i // columns * cell[1] + MARGIN)
        sheet.paste(picture.convert("RGB").resize((cell[0] - MARGIN, cell[1] - MARGIN), Image.Resampling.NEAREST), at)
    return sheet


def write(out: Path, pictures: np.ndarray, way: np.ndarray | None, record: dict[str, Any]) -> None:
    """Pictures, grid.png, path.webp, and last samples.json, without which the folder is not complete.

    Raises:
      UserError: the folder cannot be written.
    """
    try:
        out.mkdir(parents=True, exist_ok=True)
        for entry, picture in zip(record["pictures"], pictures, strict=True):
            to_pil(picture).save(out / entry["file"])
        grid(pictures).save(out / "grid.png")
        if way is not None:
            animate([grid(frame) for frame in way], out / "path.webp")
        (out / "samples.json").write_text(json.dumps(record, indent=1) + "\n")
    except OSError as e:
        raise UserError(f"--out '{out}' cannot be written: {e}") from e
    print(f"pictures: {out}, {out / 'grid.png'}", file=sys.stderr)


def animate(frames: Sequence[Image.Image], path: Path) -> None:
    """One file that plays the frames and rests on the last."""
    frames = [*frames, *[frames[-1]] * HOLD]
    frames[0].save(path, save_all=True, append_images=frames[1:], duration=FRAME_MS, loop=0, lossless=True)
