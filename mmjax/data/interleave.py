"""Rows of a model that reads text with pictures in it: out of documents, pairs of picture and text, questions, videos.

A row is built of chunks, each some pictures and the text that follows them, in one of three published layouts:

  flamingo      <BOS>text<EOC><image>text<EOC><image>text<EOC><EOS>: the end of a chunk before every picture that follows text, and at
                the end (Alayrac et al. 2022, section 2.4 and appendix A.3.1)
  openflamingo  the same without the first of these before a picture (Awadalla et al. 2023; its train/data.py)
  idefics       <fake><image><fake>text</s>: no ends of chunks, a picture between two tokens that pictures side by side share

L tokens a row, N pictures, F frames a picture.
"""

import dataclasses
import itertools
import json
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Bool, Float32, Int, Int32

from mmjax.core.errors import UserError, suggest
from mmjax.data.bad import BadSample
from mmjax.data.source import texts_of
from mmjax.data.tokenizer import Tokenizer

IMAGE, CHUNK = "<image>", "<|endofchunk|>"
_FAKE = "<fake_token_around_image>"


@dataclasses.dataclass(frozen=True)
class Layout:
    """How pictures and ends of chunks are written down. `tokens` stand for a picture, `IMAGE` among them is what carries it."""

    tokens: tuple[str, ...] = (IMAGE,)
    chunk: str | None = CHUNK
    before_first: bool = True  # whether a chunk without a picture ends before the first picture


LAYOUTS: Mapping[str, Layout] = {
    "flamingo": Layout(),
    "openflamingo": Layout(before_first=False),
    "idefics": Layout((_FAKE, IMAGE, _FAKE), None),
}
FORMS = ("document", "pair", "question")
LABELS = ("chunks", "text", "answers")


def special(layout: str) -> tuple[str, ...]:
    """The tokens a layout adds to a vocabulary, in the order of OpenFlamingo's and IDEFICS's own.

    Raises:
      UserError: no such layout.
    """
    if layout not in LAYOUTS:
        raise UserError(f"layout is {layout!r}{suggest(layout, LAYOUTS)}")
    one = LAYOUTS[layout]
    return (*([one.chunk] if one.chunk else []), *dict.fromkeys(one.tokens))


@dataclasses.dataclass(frozen=True)
class Marks:
    """A tokenizer and the ids of a layout in it; `tokenizer` has them (`Tokenizer.extended`)."""

    tokenizer: Tokenizer
    image: tuple[int, ...]  # of one picture
    media: int  # the one among them that carries it
    chunk: int | None
    start: int | None
    end: int | None
    before_first: bool


def marks(tokenizer: Tokenizer, layout: str, first: int | None = None) -> Marks:
    """Of a layout; `first` as of `Tokenizer.extended`. Raises: UserError: no such layout, or a `first` within the vocabulary."""
    tokenizer = tokenizer.extended(special(layout), first)
    one = LAYOUTS[layout]
    ids = tuple(tokenizer.find(token) for token in one.tokens)
    chunk = tokenizer.find(one.chunk) if one.chunk else None
    return Marks(tokenizer, ids, ids[one.tokens.index(IMAGE)], chunk, tokenizer.start, tokenizer.end, one.before_first)


# --- rows -----------------------------------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Chunk:
    """So many pictures, and the text after them.

    Attributes:
      asked: text before `text` that is given rather than to be said.
      after: text behind the end of this chunk, which then follows at once; None where it comes with the next picture.
    """

    pictures: int
    text: str
    asked: str = ""
    after: str | None = None


@dataclasses.dataclass(frozen=True)
class Row:
    """A sequence of any length.

    Attributes:
      ids: the tokens.
      picture: the number of the picture that a token stands for, -1 for text.
      said: False for what was given (`Chunk.asked`).
    """

    ids: Int32[np.ndarray, "T"]
    picture: Int32[np.ndarray, "T"]
    said: Bool[np.ndarray, "T"]

    def __len__(self) -> int:
        return len(self.ids)

    def __getitem__(self, rows: slice | np.ndarray) -> "Row":
        return Row(self.ids[rows], self.picture[rows], self.said[rows])


def split_ids(tokenizer: Tokenizer, asked: str, text: str) -> tuple[list[int], list[int]]:
    """The ids of `asked + text`, in two: a tokenizer may join what stands on both sides, so a shared token is of the second."""
    whole, first = tokenizer.encode_plain(asked + text), tokenizer.encode_plain(asked) if asked else []
    at = next((i for i, (a, b) in enumerate(zip(first, whole, strict=False)) if a != b), min(len(first), len(whole)))
    return whole[:at], whole[at:]


def row(chunks: Sequence[Chunk], m: Marks, open_end: bool = False) -> Row:
    """Chunks one after the other. With `open_end` the last is not ended: a prompt to go on from."""
    ids: list[int] = [] if m.start is None else [m.start]
    picture, said = [-1] * len(ids), [True] * len(ids)
    pictures, words = 0, False  # so far; whether text stands since the last end of a chunk

    def put(tokens: Sequence[int], number: int = -1, spoken: bool = True) -> None:
        ids.extend(tokens)
        picture.extend([number] * len(tokens))
        said.extend([spoken] * len(tokens))

    for chunk in chunks:
        for _ in range(chunk.pictures):
            if words and m.chunk is not None and (pictures or m.before_first):
                put([m.chunk])
            words = False
            beside = len(m.image) > 1 and ids and ids[-1] == m.image[0]
            put(m.image[1:] if beside else m.image, pictures)
            pictures += 1
        given, spoken = split_ids(m.tokenizer, chunk.asked, chunk.text)
        put(given, spoken=False)
        put(spoken)
        words = words or bool(given or spoken)
        if chunk.after is not None:
            put([*([] if m.chunk is None else [m.chunk]), *m.tokenizer.encode_plain(chunk.after)])
            words = False
    if not open_end:
        put([token for token in (m.chunk, m.end) if token is not None])
    return Row(np.array(ids, np.int32), np.array(picture, np.int32), np.array(said, bool))


def fit(whole: Row, length: int, images: int, start: int = 0) -> Row:
    """The window of at most `length` tokens from `start` on, without the tokens of pictures after its first `images`, which are
    discarded (Flamingo, appendix A.3.1), and with pictures numbered from 0 in it."""
    cut = whole[start : start + length]
    seen = np.unique(cut.picture[cut.picture >= 0])
    if len(seen) > images:
        cut = cut[cut.picture < seen[images]]
    return cut


def labels(ids: Int[np.ndarray, "T"], m: Marks, rule: str) -> Bool[np.ndarray, "T"]:
    """Which tokens a model learns to say.

    Of rule "text" all but those of pictures. "chunks" (OpenFlamingo's for documents): of these, those after the first picture and, once
    a chunk has ended, none until the next picture. The start token is never one. Of rule "answers" those of "text": a row knows further
    what was given.
    """
    out = ~np.isin(ids, m.image)
    if m.start is not None and len(ids) and ids[0] == m.start:
        out[0] = False
    if rule != "chunks":
        return out
    seen = np.cumsum(ids == m.media)
    if m.chunk is None:
        return out & (seen > 0)
    ended = np.cumsum(ids == m.chunk)
    before = ended - (ids == m.chunk)  # ends before a token
    at_picture = np.maximum.accumulate(np.where(ids == m.media, ended, -1))  # ends before its picture
    return out & (seen > 0) & (before == at_picture)


def spelt(ids: Int[np.ndarray, "T"], m: Marks) -> str:
    """A sequence in words, with the layout's tokens and those of start and end by their names."""
    layout = next(one for one in LAYOUTS.values() if len(one.tokens) == len(m.image))
    names = {m.start: "<start>", m.end: "<end>", m.chunk: CHUNK, **dict(zip(m.image, layout.tokens, strict=True))}
    words: list[str] = []
    for marked, run in itertools.groupby(ids.tolist(), key=names.__contains__):
        tokens = list(run)
        words += [names[token] for token in tokens] if marked else [m.tokenizer.decode(tokens)]
    return " ".join(words)


# --- records --------------------------------------------------------------------------------------------------------------


def clip(count: int, times: Sequence[float] | np.ndarray, fps: float, frames: int, rng: np.random.Generator | None) -> list[int]:
    """Which of `count` stored frames, shown from `times` on (seconds, ascending), a clip of `frames` at `fps` a second shows.

    It begins anywhere that leaves it whole (at 0 without `rng`); after the end of a video that is too short its last frame stays.

    Raises:
      BadSample: a video without frames.
    """
    if count < 1:
        raise BadSample("missing", "a video of 0 frames")
    times = np.asarray(times, np.float64) - float(times[0])
    duration = times[-1] + (times[-1] / (count - 1) if count > 1 else 0.0)
    there = max(1, int(np.floor(duration * fps + 1e-6)))
    first = 0 if rng is None or there <= frames else int(rng.integers(there - frames + 1))
    asked = (first + np.arange(frames)) / fps
    return np.clip(np.searchsorted(times, asked + 1e-6, side="right") - 1, 0, count - 1).tolist()


def times_of(record: Mapping[str, Any]) -> Sequence[float] | np.ndarray:
    """When the frames of a record were on screen, in seconds: `times`, or by its `fps` (a number, or JSON of one)."""
    if "times" in record:
        return record["times"]
    if "fps" not in record:
        raise BadSample("missing", "a video with neither times nor fps")
    return np.arange(len(record["frames"])) / float(json.loads(record["fps"]) if isinstance(record["fps"], str) else record["fps"])


@dataclasses.dataclass(frozen=True)
class Pictures:
    """Encoded pictures -> float32[N, F, size, size, 3].

    Attributes:
      size: pixels a side.
      steps: the transforms every picture goes through, ending in that size and `normalize`. Frames of one video draw alike.
      fps, frames: of videos; 1 frame for still pictures.
    """

    size: int
    steps: Sequence[Any]
    frames: int = 1
    fps: float | int = 1.0

    def __post_init__(self):
        from mmjax.data import transforms

        if self.size < 1 or self.frames < 1 or self.fps <= 0:
            raise ValueError(f"size and frames are at least 1 and fps is positive, got {self.size}, {self.frames}, {self.fps}")
        object.__setattr__(self, "chain", transforms.build(self.steps, where="picture"))

    def still(self, encoded: bytes, rng: np.random.Generator) -> Float32[np.ndarray, "S S 3"]:
        image = self.chain({"image": encoded}, rng)["image"]
        if image.shape != (self.size, self.size, 3) or image.dtype != np.float32:
            raise UserError(
                f"interleave: a picture is {image.dtype}{list(image.shape)} after the transforms of `picture`, expected "
                f"float32[{self.size}, {self.size}, 3]: end them with a resize or crop to {self.size} and 'normalize'"
            )
        return image

    def __call__(self, shown: Sequence[Sequence[bytes]], images: int, rng: np.random.Generator) -> Float32[np.ndarray, "N F S S 3"]:
        """`shown`: the frames of each picture; `images`: how many there are places for."""
        out = np.zeros((images, self.frames, self.size, self.size, 3), np.float32)
        for place, frames in zip(out, shown, strict=False):
            if len(frames) != self.frames:
                raise UserError(f"interleave: frames is {self.frames}, and a picture of the record has {len(frames)}")
            seed = int(rng.integers(1 << 62)) if len(frames) > 1 else None
            for k, encoded in enumerate(frames):
                place[k] = self.still(encoded, rng if seed is None else np.random.default_rng(seed))
        return out

    def shown(self, record: Mapping[str, Any], rng: np.random.Generator | None) -> list[list[bytes]]:
        """The frames of each picture of a record: its `image`, its `images`, or a clip of its `frames`."""
        if "frames" in record:
            chosen = clip(len(record["frames"]), times_of(record) if len(record["frames"]) else (), self.fps, self.frames, rng)
            return [[record["frames"][k] for k in chosen]]
        if "images" in record:
            return [[one] for one in record["images"]]
        if record.get("image") is None:
            raise BadSample("missing", "no image")
        return [[record["image"]]]


@dataclasses.dataclass(frozen=True)
class Interleave:
    """A record -> `tokens` int32[L], `loss_mask` float32[L] (1 where a token is to be said), `segments` int32[L] (1, 2, ... of the
    records of a row, 0 after them), `pixels` float32[N, F, size, size, 3] (zeros where there are fewer) and `images` int32, how many.

    Attributes:
      length, images: L and N.
      picture, size, frames, fps: fields of `Pictures`.
      form: "document" (`texts`, `images`, `positions`), "pair" (a picture or video with `captions`) or "question" (one with `question` and
        `answer`, or several in `questions` and `answers`, one of which is drawn).
      layout: a key of LAYOUTS.
      first: the id of the first token that a layout adds, where it is not the one after the tokenizer's last.
      labels: a rule of `labels`; unset, "chunks" for documents and "text" for the others, as OpenFlamingo has it.
      template: of form "question".
      prompt: of form "pair": what stands before the caption, "Output: " in prompts.
      space: how probable a space before the text of a pair is, against tokenizers for which " cat" and "cat" differ.
      window: a random window of a longer document, or its beginning.
      random: draws (captions, windows, clips) at random; without, the first of each, for evaluation.
    """

    tokenizer: Tokenizer
    length: int
    size: int
    picture: Sequence[Any]
    images: int = 1
    frames: int = 1
    fps: float | int = 1.0
    form: str = "document"
    layout: str = "flamingo"
    first: int | None = None
    labels: str | None = None
    template: str = "Question: {question} Answer: {answer}"
    prompt: str = ""
    space: float | int = 0.0
    window: bool = True
    random: bool = True

    def __post_init__(self):
        for name, value, known in (("form", self.form, FORMS), ("labels", self.labels or "text", LABELS)):
            if value not in known:
                raise ValueError(f"{name} is {value!r}{suggest(value, known)}")
        if self.length < 2 or self.images < 1 or not 0 <= self.space <= 1:
            raise ValueError(f"length is at least 2, images 1 and space 0 to 1, got {self.length}, {self.images}, {self.space}")
        if self.form == "question" and not all(part in self.template for part in ("{question}", "{answer}")):
            raise ValueError(f"template needs {{question}} and {{answer}}, got {self.template!r}")
        try:
            object.__setattr__(self, "marks", marks(self.tokenizer, self.layout, self.first))
        except UserError as e:
            raise ValueError(str(e)) from e
        object.__setattr__(self, "pictures", Pictures(self.size, self.picture, self.frames, self.fps))

    def __call__(self, example: Mapping[str, Any], rng: np.random.Generator) -> Mapping[str, Any]:
        """Records that are packed into one row come as `records`; those for whose pictures there is no room are left out."""
        records = example.get("records", (example,))
        out = {key: np.zeros(self.length, np.int32) for key in ("tokens", "segments")}
        out["tokens"][:] = self.marks.tokenizer.pad
        loss_mask = np.zeros(self.length, np.float32)
        shown: list[list[bytes]] = []
        at = 0
        for number, record in enumerate(records, 1):
            whole, frames = self._row(record, rng)
            room, packed = self.length - at, len(records) > 1
            if packed and (room < 2 or len(shown) + len(frames) > self.images):
                continue
            start = int(rng.integers(len(whole) - room + 1)) if self.window and self.random and not packed and len(whole) > room else 0
            part = fit(whole, room, self.images - len(shown), start)
            here = slice(at, at + len(part))
            out["tokens"][here], out["segments"][here] = part.ids, number
            learnt = labels(part.ids, self.marks, self.labels or ("chunks" if self.form == "document" else "text"))
            loss_mask[here] = learnt & part.said if self.labels == "answers" else learnt
            shown += [frames[k] for k in dict.fromkeys(part.picture[part.ids == self.marks.media].tolist())]
            at += len(part)
        pixels = self.pictures(shown, self.images, rng)
        return {**out, "loss_mask": loss_mask, "pixels": pixels, "images": np.int32(len(shown))}

    def spelt(self, example: Mapping[str, Any]) -> str:
        """A row that was made in words, with the marks of pictures, ends of chunks and ends of texts."""
        return spelt(example["tokens"][example["segments"] > 0], self.marks)

    def _row(self, record: Mapping[str, Any], rng: np.random.Generator) -> tuple[Row, list[list[bytes]]]:
        """The whole of a record, and the frames of its pictures."""
        frames = self.pictures.shown(record, rng if self.random else None)
        chunks = {"document": self._document, "pair": self._pair, "question": self._question}[self.form](record, rng)
        named = sum(chunk.pictures for chunk in chunks)
        if named != len(frames):
            raise BadSample("other", f"{named} places for pictures, and {len(frames)} pictures")
        return row(chunks, self.marks), frames

    def _document(self, record: Mapping[str, Any], rng: np.random.Generator) -> list[Chunk]:
        texts, positions = list(record["texts"]), [int(p) for p in record["positions"]]
        return document_chunks(texts, positions)

    def _pair(self, record: Mapping[str, Any], rng: np.random.Generator) -> list[Chunk]:
        captions = texts_of(record["captions"] if "captions" in record else record.get("caption"))
        if not captions:
            raise BadSample("missing", "no caption")
        text = captions[int(rng.integers(len(captions))) if self.random else 0]
        if not text.strip():
            raise BadSample("empty_text", f"caption is {text!r}")
        space = " " if self.space and self.random and rng.random() < self.space else ""
        return [Chunk(1, space + text if not self.prompt else text, self.prompt and space + self.prompt)]

    def _question(self, record: Mapping[str, Any], rng: np.random.Generator) -> list[Chunk]:
        several = "questions" in record
        questions = list(record["questions"]) if several else [record["question"]]
        answers = list(record["answers"]) if several else [record["answer"]]
        if not questions or len(questions) != len(answers):
            raise BadSample("missing", f"{len(questions)} questions and {len(answers)} answers")
        k = int(rng.integers(len(questions))) if self.random else 0
        asked, _, after = self.template.partition("{answer}")
        return [Chunk(1, answers[k] + after, asked.replace("{question}", questions[k]))]


def document_chunks(texts: Sequence[str], positions: Sequence[int]) -> list[Chunk]:
    """Of a document whose picture j stands before texts[positions[j]]: texts between two pictures are joined by a space.

    Raises:
      BadSample: positions that do not ascend within the texts.
    """
    if list(positions) != sorted(positions) or any(not 0 <= p <= len(texts) for p in positions):
        raise BadSample("other", f"pictures at {list(positions)} of {len(texts)} texts")
    edges = sorted({0, *positions})
    spans = zip(edges, [*edges[1:], len(texts)], strict=True)
    return [Chunk(positions.count(begin), " ".join(texts[begin:end])) for begin, end in spans if begin < end or begin in positions]
