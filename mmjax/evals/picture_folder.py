"""Generated pictures in a folder, each found by the id of its prompt.

    00000/samples/0000.png   as GenEval's generation scripts write them, with 00000/metadata.jsonl if wanted
    00000.png, 00000_1.png   flat: id, and the number of the picture where there are several

PNG, JPEG, WebP, GIF or BMP; a local folder or one of an object store.
"""

import dataclasses
from collections.abc import Iterator, Sequence

import numpy as np
from jaxtyping import UInt8

from mmjax.core.errors import UserError
from mmjax.data import files
from mmjax.data.bad import BadSample
from mmjax.evals import annotations, predictions
from mmjax.evals.prompt_set import Prompt
from mmjax.evals.scored import decoded

ENDINGS = (".png", ".jpg", ".jpeg", ".webp", ".gif", ".bmp")
METADATA, SAMPLES = "metadata.jsonl", "samples"


@dataclasses.dataclass(frozen=True)
class _Found:
    id: str
    number: str
    path: str


def read(folder: str, prompts: Sequence[Prompt], asked: str) -> UInt8[np.ndarray, "P k S S 3"]:
    """The pictures of every prompt, in the order of their numbers. `asked` names the prompts in messages.

    Raises:
      UserError: no such folder; prompts without a picture, or pictures of no prompt; two pictures of one number, or not equally many for
        every prompt; metadata of another prompt; a file that is no picture, or not square, or of another size than the first.
    """
    if not files.is_dir(folder):
        raise UserError(f"folder '{folder}' does not exist; expected one of generated pictures")
    known = {prompt.id: prompt for prompt in prompts}
    found: dict[str, dict[str, str]] = {}
    for one in (*_nested(folder, known), *_flat(folder, known)):
        numbers = found.setdefault(one.id, {})
        if one.number in numbers:
            raise UserError(
                f"'{folder}': '{numbers[one.number]}' and '{one.path}' are both picture {one.number} of id {one.id}; expected one"
            )
        numbers[one.number] = one.path
    predictions.matched({key: "" for key in found}, known, folder, asked)
    count = len(found[prompts[0].id])
    for key in known:
        if len(found[key]) != count:
            raise UserError(
                f"'{folder}' has {len(found[key])} picture(s) for id {key} and {count} for {prompts[0].id}; expected equally many"
            )
    paths = [found[key][number] for key in known for number in sorted(found[key], key=lambda n: (len(n), n))]
    pictures = [_decoded(files.join(folder, path)) for path in paths]
    for path, picture in zip(paths, pictures, strict=True):
        if picture.shape != pictures[0].shape:
            sizes = ["{1} x {0}".format(*p.shape) for p in (picture, pictures[0])]
            raise UserError(f"'{files.join(folder, path)}' is {sizes[0]} pixels, '{paths[0]}' is {sizes[1]}; expected all of one size")
    return np.stack(pictures).reshape(len(known), count, *pictures[0].shape)


def _nested(folder: str, known: dict[str, Prompt]) -> Iterator[_Found]:
    for name, is_folder in files.listdir(folder):
        inner = files.join(folder, name)
        if not is_folder or not files.is_dir(files.join(inner, SAMPLES)):
            continue
        if name in known and any(entry == (METADATA, False) for entry in files.listdir(inner)):
            path = files.join(inner, METADATA)
            text = annotations.entries(path, 'one object with a "prompt"')[0].text("prompt")
            if text != known[name].text:
                raise UserError(f"'{path}' is of prompt {text!r}, but id {name} is {known[name].text!r}; are these the right prompts?")
        for picture, is_folder in files.listdir(files.join(inner, SAMPLES)):
            if not is_folder and picture.lower().endswith(ENDINGS):
                yield _Found(name, _number(picture.rpartition(".")[0]), f"{name}/{SAMPLES}/{picture}")


def _flat(folder: str, known: dict[str, Prompt]) -> Iterator[_Found]:
    for name, is_folder in files.listdir(folder):
        if not is_folder and name.lower().endswith(ENDINGS):
            stem = name.rpartition(".")[0]
            key, _, number = stem.rpartition("_")
            several = stem not in known and number.isdecimal() and key
            yield _Found(key, _number(number), name) if several else _Found(stem, "0", name)


def _number(text: str) -> str:
    """0000 and 0 are the same."""
    return text.lstrip("0") or "0"


def _decoded(path: str) -> UInt8[np.ndarray, "S S 3"]:
    try:
        picture = decoded(files.read(path))
    except BadSample as e:
        raise UserError(f"'{path}' cannot be used as a picture: {e}") from None
    height, width, _ = picture.shape
    if height != width or height < 16:
        raise UserError(f"'{path}' is {width} x {height} pixels; expected a square of at least 16")
    return picture
