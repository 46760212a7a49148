"""The contact sheet of `mmjax data show`: the first examples of a run, as they are stored and as the model gets them."""

import dataclasses
import io
import textwrap
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from jaxtyping import Num
from ml_collections import ConfigDict
from PIL import Image, ImageDraw, ImageFont

from mmjax.core.errors import UserError
from mmjax.data import loader
from mmjax.data.bad import BadSample, place
from mmjax.data.image import FORMATS, decoding
from mmjax.data.interleave import Interleave
from mmjax.data.source import Source, open_tokenizer
from mmjax.data.stream import Stream, open_streams
from mmjax.data.tokenizer import Tokenizer
from mmjax.data.transforms import Normalize

PICTURE, MARGIN, LINE, LINES, FONT = 160, 8, 15, 4, 12  # pixels; lines of text below a cell
_FRAMES = 4  # shown of a video or a document


@dataclasses.dataclass(frozen=True)
class Cell:
    """Pictures side by side, what stands below them, and whether something was wrong."""

    pictures: tuple[Image.Image, ...]
    text: str
    bad: bool = False


def write(config: ConfigDict, path: str | Path, count: int, *, transformed: bool = True) -> dict[str, Any]:
    """Writes the sheet and returns facts about what is on it.

    Args:
      config: a whole config; its `data` and `seed` are read.
      count: examples of each stream, from the beginning of a run.
      transformed: also what `data.transforms` make of an image, and the text its tokens spell.

    Raises:
      UserError: what opening the source raises, or the file cannot be written.
    """
    cells, found = [], {}
    for name, stream in open_streams(config.data, config.seed).items():
        tokenizer = open_tokenizer(stream.source, config.data.tokenizer) if transformed else None
        began = time.perf_counter()
        made = [cell(stream, position, tokenizer, transformed) for position in range(min(count, len(stream.source)))]
        cells += made
        found[name or "data"] = facts(stream.source, len(made), sum(c.bad for c in made), time.perf_counter() - began)
    try:
        draw(cells).save(path)
    except OSError as e:
        raise UserError(f"contact sheet '{path}' cannot be written: {e}") from e
    return found if len(found) > 1 else next(iter(found.values()))


def facts(source: Source, shown: int, bad: int, seconds: float) -> dict[str, Any]:
    """What is printed of a source that is shown; how much of it lies on disk where the source knows."""
    info = source.info
    out = {"source": info.name, "split": info.split, "records": len(source), "shown": shown, "bad": bad}
    if info.files:
        out |= {"files": info.files, "MiB": round(info.bytes / 2**20, 1)}
    return out | {"examples_a_second": round(shown / max(seconds, 1e-9))}


def cell(stream: Stream, position: int, tokenizer: Tokenizer | None, transformed: bool) -> Cell:
    """The example at a position of the stream, as a run draws it."""
    record_number = int(stream.order(np.array([position], np.int64))[0])
    where = f"#{record_number}"
    try:
        record = stream.source[record_number]
        shown, text = stored(record), words(record, stream.source.info.classes)
    except BadSample as e:
        return Cell((), f"{place(stream.source, record_number)}: {e}", bad=True)
    if transformed:
        try:
            example = stream.transform(record, loader.generator(stream.seed, position))
        except BadSample as e:
            return Cell(tuple(shown), f"{where} {e}", bad=True)
        shown += after(example, normalising(stream.transform, record))
        if tokenizer is not None and np.ndim(example.get("tokens")) == 1:
            text = spelling(stream.transform, record, tokenizer)(example)
    return Cell(tuple(shown), f"{where} {text}")


def stored(record: Mapping[str, Any], most: int = _FRAMES) -> list[Image.Image]:
    """The pictures of a record as they are stored, of several in one place `most`.

    Raises:
      BadSample: bytes that are no picture.
    """
    found = []
    for value in record.values():
        encoded = (
            [value] if isinstance(value, bytes) else [v for v in value if isinstance(v, bytes)] if isinstance(value, tuple | list) else []
        )
        for data in _some(encoded, most):
            with decoding(data):
                found.append(Image.open(io.BytesIO(data), formats=FORMATS).convert("RGB"))
    return found


def words(record: Mapping[str, Any], classes: tuple[str, ...]) -> str:
    """The texts and the label of a record."""
    parts = []
    if "label" in record:
        label = int(record["label"])
        parts.append(f"[{classes[label] if 0 <= label < len(classes) else label}]")
    for key, value in record.items():
        texts = [value] if isinstance(value, str) else [v for v in value if isinstance(v, str)] if isinstance(value, tuple | list) else []
        if texts and key != "key":
            parts.append(texts[0] + (f" (+{len(texts) - 1})" if len(texts) > 1 else ""))
    return " ".join(parts)


def after(example: Mapping[str, Any], normalize: Normalize | None) -> list[Image.Image]:
    """The pictures of a transformed example: arrays [H, W, C], or [T, H, W, C], of which a few."""
    found = []
    for value in example.values():
        if isinstance(value, np.ndarray) and value.ndim == 5:  # [N, F, H, W, C], of which `images` are real
            value = value[: int(example.get("images", len(value)))].reshape(-1, *value.shape[2:])
        if isinstance(value, np.ndarray) and value.ndim in (3, 4) and value.shape[-1] in (1, 3):
            found += [visible(frame, normalize) for frame in _some(list(value) if value.ndim == 4 else [value])]
    return found


def visible(image: Num[np.ndarray, "H W C"], normalize: Normalize | None) -> Image.Image:
    """An array as a picture: normalisation undone where it is known, else stretched to the whole range."""
    if image.dtype != np.uint8:
        if normalize is not None:
            image = (image * np.float32(normalize.std) + np.float32(normalize.mean)) * 255
        else:
            low, high = float(image.min()), float(image.max())
            image = (image - low) * (255 / max(high - low, 1e-9))
        image = np.clip(np.round(image), 0, 255).astype(np.uint8)
    return Image.fromarray(image[..., 0] if image.shape[-1] == 1 else image).convert("RGB")


def _some(items: list, most: int = _FRAMES) -> list:
    return [items[i] for i in sorted({round(x) for x in np.linspace(0, len(items) - 1, min(most, len(items)))})] if items else []


def _steps(transform: Any, record: Mapping[str, Any]) -> tuple[Any, ...]:
    """The steps that a record goes through, those of its pictures among them."""
    if hasattr(transform, "transforms"):  # a mixture: each component's own
        transform = transform.transforms[record["_component"]]
    steps = getattr(transform, "steps", ())
    return (*steps, *(inner for step in steps if isinstance(step, Interleave) for inner in step.pictures.chain.steps))


def normalising(transform: Any, record: Mapping[str, Any]) -> Normalize | None:
    """The normalisation among the steps that a record goes through."""
    return next((step for step in _steps(transform, record) if isinstance(step, Normalize)), None)


def spelling(transform: Any, record: Mapping[str, Any], tokenizer: Tokenizer) -> Callable[[Mapping[str, Any]], str]:
    """What reads the tokens of an example: of a row with pictures, with the marks of these."""
    plain = lambda example: tokenizer.decode(example["tokens"])
    return next((step.spelt for step in _steps(transform, record) if isinstance(step, Interleave)), plain)


def draw(cells: list[Cell]) -> Image.Image:
    """Cells in a grid about as wide as high, each with its text below."""
    across = max([len(c.pictures) for c in cells] + [1])
    width, height = across * (PICTURE + MARGIN) + MARGIN, PICTURE + LINES * LINE + 2 * MARGIN
    columns = max(1, min(len(cells), round((len(cells) * height / width) ** 0.5)))
    rows = -(-len(cells) // columns)
    out = Image.new("RGB", (columns * width, rows * height), "white")
    pen = ImageDraw.Draw(out)
    font = ImageFont.truetype(str(Path(matplotlib.get_data_path()) / "fonts" / "ttf" / "DejaVuSans.ttf"), FONT)
    letters = max(10, int((width - MARGIN) / pen.textlength("n", font=font)))
    for i, c in enumerate(cells):
        x, y = i % columns * width + MARGIN, i // columns * height + MARGIN
        for j, picture in enumerate(c.pictures):
            out.paste(_fitted(picture), (x + j * (PICTURE + MARGIN), y))
        if c.bad:
            pen.rectangle((x, y, x + width - 2 * MARGIN, y + PICTURE), outline="red", width=2)
        lines = textwrap.wrap(c.text, letters, max_lines=LINES, placeholder=" ...")
        pen.multiline_text((x, y + PICTURE + 2), "\n".join(lines), fill="red" if c.bad else "black", font=font, spacing=LINE - FONT)
    return out


def _fitted(picture: Image.Image) -> Image.Image:
    """The picture within a square of `PICTURE`; pixels of a small one stay visible as such."""
    scale = PICTURE / max(picture.size)
    size = tuple(max(1, round(side * scale)) for side in picture.size)
    return picture.resize(size, Image.Resampling.NEAREST if scale > 1 else Image.Resampling.BICUBIC)
