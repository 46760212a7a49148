"""From config group `data` to packs and length groups of text: how sequences are measured at preparation and read again in a run.

`mmjax data pack` measures every record's text with the run's tokenizer and stores an index (`packing.py`) that says which key of the
record it was, with which special tokens, and whose ids; `data.packing` or `data.length_groups` name it, and a run refuses one that was
made with another tokenizer or for another set.
"""

import dataclasses
import hashlib
import json
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
from jaxtyping import Int64

from mmjax.core.errors import UserError
from mmjax.data import packing
from mmjax.data.bad import BadSample
from mmjax.data.packing import Grouped, Index, Packed, Together
from mmjax.data.source import Source, rooted, texts_of
from mmjax.data.tokenizer import Tokenizer

_CHUNK = 4096  # records measured between two words of progress
_PROBE = "A photo of 2 d\u00f6gs, running \u2014 \u72ac\U0001f415!"  # its ids tell one tokenizer from another


@dataclasses.dataclass(frozen=True)
class TextIds:
    """A record -> the ids of its text `key`, nothing cut or padded; none of a blank one. Several texts are joined by line breaks.

    `start` and `end` as in `Tokenizer.encode`. Raises BadSample where the text is none.
    """

    tokenizer: Tokenizer
    key: str
    start: bool | None = None
    end: bool | None = None

    def __call__(self, record: Mapping[str, Any]) -> list[int]:
        text = "\n".join(texts_of(record[self.key]))
        return self.tokenizer.encode_plain(text, start=self.start, end=self.end) if text.strip() else []

    def about(self) -> dict[str, Any]:
        """What an index stores of it, as JSON values."""
        t = self.tokenizer
        marks = [t.vocab_size, t.start, t.end, t.pad, t.encode_plain(_PROBE, start=None, end=None)]
        mark = hashlib.sha256(json.dumps(marks).encode()).hexdigest()[:16]
        return {"text": self.key, "start": self.start, "end": self.end, "tokenizer": mark}


def measure(
    source: Source, tokens: TextIds, *, threads: int = 2, progress: Callable[[int], None] = lambda done: None
) -> Int64[np.ndarray, "N"]:
    """Ids in the text of every record, 0 for one that cannot be used; the same for any number of threads."""

    def length(i: int) -> int:
        try:
            return len(tokens(source[i]))
        except BadSample:
            return 0

    out = np.zeros(len(source), np.int64)
    with ThreadPoolExecutor(max(threads, 1)) as pool:
        for begin in range(0, len(out), _CHUNK):
            rows = range(begin, min(begin + _CHUNK, len(out)))
            out[rows.start : rows.stop] = list(pool.map(length, rows))
            progress(rows.stop)
    return out


def open_packed(data: Any, source: Source, tokenizer: Tokenizer | None, together: bool = False) -> Packed | Together:
    """The packs `data.packing` of a source, as rows of tokens, or with their records `together` as they are.

    Raises UserError as `packing.load`, or for another tokenizer.
    """
    index, tokens = _open(data.packing, "packs", data, source, tokenizer)
    return Together(source, index) if together else Packed(source, index, tokens, tokens.tokenizer.pad)


def open_grouped(data: Any, source: Source, tokenizer: Tokenizer | None) -> Grouped:
    """A source in the order of its length groups `data.length_groups`. Raises UserError as `packing.load`, or for another tokenizer."""
    return Grouped(source, _open(data.length_groups, "length_groups", data, source, tokenizer)[0])


def _open(folder: str, kind: str, data: Any, source: Source, tokenizer: Tokenizer | None) -> tuple[Index, TextIds]:
    index = packing.load(rooted(data, folder), source, kind)
    if tokenizer is None:
        raise UserError(f"index '{folder}' was measured with a tokenizer, and source {source.info.name!r} has none; set data.tokenizer")
    held = index.about
    if "tokenizer" not in held:
        raise UserError(f"index '{folder}' does not say how its sequences were measured; build it again: mmjax data pack --out {folder}")
    tokens = TextIds(tokenizer, held["text"], held["start"], held["end"])
    if tokens.about()["tokenizer"] != held["tokenizer"]:
        raise UserError(
            f"index '{folder}' was measured with another tokenizer than the run's (data.tokenizer); build it again: "
            f"mmjax data pack --out {folder}"
        )
    return index, tokens
