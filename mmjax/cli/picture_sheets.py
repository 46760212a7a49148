"""Contact sheets of generated pictures: those that fail their prompt, and those nearest to a training picture."""

from pathlib import Path

import numpy as np

from mmjax.cli import sheet
from mmjax.cli.sheet import Cell
from mmjax.core.errors import UserError
from mmjax.data.image import to_pil
from mmjax.evals.judged import seen
from mmjax.evals.scored import Scored, decoded

SHOWN = 60  # pictures on a sheet


def write(found: Scored, failed: str | Path | None, nearest: str | Path | None) -> None:
    """Writes the sheets whose paths are given.

    Raises:
      UserError: a sheet cannot be written, or nearest pictures are asked for where there was nothing to compare with.
    """
    for path, cells in ((failed, failures), (nearest, copies)):
        if path:
            try:
                sheet.draw(cells(found)).save(path)
            except (OSError, ValueError) as e:  # ValueError: an ending Pillow does not know
                raise UserError(f"contact sheet '{path}' cannot be written: {e}") from e


def failures(found: Scored) -> list[Cell]:
    """Pictures that do not meet their prompt, with the prompt and what the oracle saw, equally many of every category."""
    cells = []
    for p, k in found.judged.failures(SHOWN):
        prompt, reading = found.judged.prompts[p], found.judged.readings[p][k]
        cells.append(Cell((to_pil(found.pictures[p, k]),), f"{prompt.text} / seen: {seen(reading, ('colour', 'shape'))}"))
    return cells or [Cell((), "every picture meets its prompt")]


def copies(found: Scored) -> list[Cell]:
    """Generated pictures, each beside the training picture nearest by pixels, the nearest first; red where as near as the threshold."""
    if found.likeness is None:
        raise UserError("nearest training pictures: there was no source to compare with")
    near, limit, source = found.likeness.nearest["pixels"], found.likeness.memorised["pixels"].threshold, found.likeness.training
    flat = found.pictures.reshape(-1, *found.pictures.shape[2:])
    k, bits = found.pictures.shape[1], found.likeness.nearest["hash"].distances
    cells = []
    for i in np.argsort(near.distances, kind="stable")[:SHOWN].tolist():
        number, distance = int(near.numbers[i]), float(near.distances[i])
        text = f"{found.judged.prompts[i // k].text} / rms {distance:.4f} of #{number}; {bits[i]:.0f} bits of hash to the nearest"
        cells.append(Cell((to_pil(flat[i]), to_pil(decoded(source[number]["image"]))), text, bad=distance <= limit))
    return cells
