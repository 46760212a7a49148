"""`mmjax chat`: a language model goes on from what is typed, and from pictures between the words where it sees them; its text appears
while it is written."""

import argparse
import dataclasses
import re
import sys
import time
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np
from jaxtyping import Float32, Int

from mmjax.convert.pretrained import Pretrained, from_pretrained
from mmjax.convert.transfer import dtype_of
from mmjax.core.errors import UserError
from mmjax.data import interleave, transforms, video
from mmjax.data.bad import BadSample
from mmjax.data.interleave import Chunk, Marks
from mmjax.data.tokenizer import Tokenizer

PLACE = re.compile(r"<image:([^<>]+)>")
ROUNDING = 32  # prompts are filled up to multiples of it, lest every length be compiled
CONTEXT = 8  # tokens before the answer by which its first ones are spelt: some tokenizers write a space only between words
HELP = "/new begins anew, /quit ends; anything else is gone on from. Pictures and videos: <image:FILE> between the words."
LAYOUTS = {"open_flamingo": "openflamingo", "idefics": "idefics"}  # of a checkpoint, by its layout or family


def main(args: argparse.Namespace) -> int:
    if (args.workdir is None) == (args.model is None):
        raise UserError("mmjax chat needs --workdir, a run's, or --model, a folder of published weights; one of them")
    where = args.workdir if args.model is None else args.model
    speaker = Speaker(from_pretrained(where, dtype=None if args.dtype is None else dtype_of(args.dtype)), str(where), args)
    if args.prompt is not None:
        speaker.answer(args.prompt)
        return 0
    print(f"{where}: {HELP}", file=sys.stderr)
    return converse(speaker, sys.stdin)


def converse(speaker: "Speaker", lines: Any) -> int:
    """Answers line by line. What cannot be answered is said, and left out of what follows."""
    while True:
        if lines.isatty():
            print("> ", end="", flush=True)
        line = lines.readline()
        if not line or line.strip() == "/quit":
            return 0
        if line.strip() == "/new":
            speaker.forget()
        elif line.strip():
            try:
                speaker.answer(line.rstrip("\n"))
            except UserError as e:
                print(f"mmjax: {e}", file=sys.stderr)


class Speaker:
    """A model, what was said so far, and how it goes on."""

    def __init__(self, model: Pretrained, where: str, args: argparse.Namespace, out: Any = None):
        if "generate" not in model.predict:
            raise UserError(f"'{where}' writes no text: it has {', '.join(sorted(model.predict))}")
        if model.tokenizer is None:
            raise UserError(
                f"'{where}' has no tokenizer beside it; put its files ({'tokenizer.json'}, or its author's form) into the folder"
            )
        self._config, self._generate, self._out = model.config, model.predict["generate"], out or sys.stdout
        self._params = model.predict.get("unrolled", lambda params: params)(model.params)  # once, not in every answer
        self.marks = _marks(model, where) if "resampler" in model.config["model"] else None
        self.tokenizer = self.marks.tokenizer if self.marks else model.tokenizer
        self._see = _eye(model) if self.marks else None
        self._rate = _rate(args)
        self._key, self._beams = jax.random.key(args.seed), args.beams
        self._ends = _ends(model, self.tokenizer)
        own = [tuple(self.tokenizer.encode_plain(text)) for text in args.stop or ()]
        stop = tuple(
            dict.fromkeys([*((i,) for i in self._ends), *([(self.marks.chunk,)] if self.marks and self.marks.chunk else []), *own])
        )
        self._stream = Stream(self.tokenizer, stop, self._out)
        how = ("max_new_tokens", "temperature", "top_k", "top_p", "repetition_penalty", "min_new_tokens", "beams", "length_penalty")
        self._how = {**{name: getattr(args, name) for name in how}, "stop": stop, "pad": self.tokenizer.pad}
        self._how |= {} if args.beams > 1 else {"on_token": self._stream}
        self.forget()

    def forget(self) -> None:
        """Begins anew."""
        self._said: list[Chunk] = []
        self._pictures: list[Float32[np.ndarray, "F S S 3"]] = []
        self._turn = 0

    def answer(self, text: str) -> str:
        """Goes on from all that was said and `text`, aloud.

        Raises:
          UserError: a picture that cannot be read or is not looked at, or more than the context holds. Nothing is remembered then.
        """
        chunks, files = parts(text)
        if files and self._see is None:
            raise UserError(f"this model sees no pictures; leave out <image:{files[0]}>")
        said, shown = [*self._said, *chunks], [*self._pictures, *(_picture(self._see, name, self._rate) for name in files)]
        ids = self._ids(said)
        self._stream.begin(ids)
        tokens, length, ended = self._write(ids, shown)
        answer = self._stream.finish(tokens[:length].tolist())
        rate = self._stream.rate()
        notes = ([] if rate is None else [f"{rate:.3g} a second"]) + ([] if ended else ["cut off at --max_new_tokens"])
        print(f"({', '.join([f'{length} tokens', *notes])})", file=sys.stderr)
        self._turn += 1
        if ended and int(tokens[length]) in self._ends:
            self._said, self._pictures = [], []  # the text is at its end
        else:
            last = said[-1]
            self._said, self._pictures = (
                [*said[:-1], dataclasses.replace(last, text=last.text + answer, after="" if ended else None)],
                shown,
            )
        return answer

    def _ids(self, said: Sequence[Chunk]) -> list[int]:
        """Tokens of what was said."""
        if self.marks:
            return interleave.row(said, self.marks, open_end=True).ids.tolist()
        return self.tokenizer.encode_plain("\n".join(chunk.text for chunk in said), start=None)

    def _write(self, ids: list[int], shown: list[np.ndarray]) -> tuple[Int[np.ndarray, "N"], int, bool]:
        """New tokens, how many of them are text, and whether that is at an end."""
        width = -(-max(len(ids), 1) // ROUNDING) * ROUNDING
        context = self._config["model"]["lm"].get("length")
        width = min(width, max(context - self._how["max_new_tokens"], len(ids))) if context else width
        tokens = np.full((1, width), self.tokenizer.pad, np.int32)
        tokens[0, : len(ids)] = ids
        given: dict[str, Any] = {"lengths": np.array([len(ids)])}
        if shown:
            room, frames = 1 << (len(shown) - 1).bit_length(), max(len(x) for x in shown)
            pixels = np.zeros((1, room, frames, *shown[0].shape[1:]), np.float32)
            for place, x in zip(pixels[0], shown, strict=False):
                place[:] = x[np.minimum(np.arange(frames), len(x) - 1)]  # the last frame of what is shorter stays, as in interleave.clip
            given |= {"pixels": pixels, "images": np.array([len(shown)])}
        key = jax.random.fold_in(self._key, self._turn)
        got = jax.device_get(self._generate(self._params, tokens, key, **given, **self._how))
        jax.effects_barrier()
        return got.tokens[0], int(got.lengths[0]), bool(got.ended[0])


def parts(text: str) -> tuple[list[Chunk], list[str]]:
    """ "before <image:a.png>after" as chunks, a picture in front of each but perhaps the first, and the files of the pictures."""
    words = PLACE.split(text)
    first = [Chunk(0, words[0])] if words[0].strip() or len(words) == 1 else []
    return [*first, *(Chunk(1, after) for after in words[2::2])], [name.strip() for name in words[1::2]]


class Stream:
    """Prints a text while its tokens come, in whole characters; nothing of what may become a stop."""

    def __init__(self, tokenizer: Tokenizer, stop: Sequence[tuple[int, ...]], out: Any):
        self._tokenizer, self._stop, self._out = tokenizer, stop, out
        self.begin([])

    def begin(self, prompt: Sequence[int]) -> None:
        """Forgets the last text."""
        special = {self._tokenizer.start, self._tokenizer.end}
        tail = list(prompt[-CONTEXT:])
        cut = max((i + 1 for i, token in enumerate(tail) if token in special), default=0)
        self._before = tail[cut:]
        self._waiting: dict[int, int] = {}
        self._ids: list[int] = []
        self._times: list[float] = []
        self._shown = ""

    def rate(self) -> float | None:
        """Tokens a second after the first, which waits for compilation; None of fewer than two."""
        return (len(self._times) - 1) / max(self._times[-1] - self._times[0], 1e-9) if len(self._times) > 1 else None

    def __call__(self, t: Any, tokens: Any, ended: Any) -> None:
        """`Options.on_token`; takes steps in any order."""
        self._waiting[int(t)] = int(tokens[0])
        self._times.append(time.perf_counter())
        while len(self._ids) in self._waiting:
            self._ids.append(self._waiting.pop(len(self._ids)))
            self._show(self._ids[: len(self._ids) - self._held()])

    def finish(self, ids: Sequence[int]) -> str:
        """Prints what is left of a text that is complete, and gives it all."""
        self._show(ids, whole=True)
        print(file=self._out, flush=True)
        return self._shown

    def _held(self) -> int:
        """The most tokens at the end that begin a stop, or are one."""
        ids = self._ids
        lengths = (n for s in self._stop for n in range(1, min(len(s), len(ids)) + 1) if tuple(ids[-n:]) == s[:n])
        return max(lengths, default=0)

    def _show(self, ids: Sequence[int], whole: bool = False) -> None:
        text = self._spelt(ids)
        if not whole and text.endswith("\ufffd"):  # a character of which some bytes are yet to come
            return
        print(text[len(self._shown) :], end="", file=self._out, flush=True)
        self._shown = text

    def _spelt(self, ids: Sequence[int]) -> str:
        """The text of new tokens, spelt as they are after the prompt."""
        decode = self._tokenizer.decode
        before, after = decode(self._before), decode([*self._before, *ids])
        return after[len(before) :] if after.startswith(before) else decode(ids)


def _ends(model: Pretrained, tokenizer: Tokenizer) -> list[int]:
    """Tokens that end a text, by the tokenizer and by the weights' config."""
    said = model.config.get("special", {}).get("eos")
    found = [tokenizer.end, *(said if isinstance(said, list | tuple) else [said])]
    return [int(i) for i in dict.fromkeys(found) if i is not None]


def _marks(model: Pretrained, where: str) -> Marks:
    """How pictures are written down.

    Raises:
      UserError: the tokenizer writes them otherwise than the model reads them.
    """
    config = model.config
    layout = config.get("written") or next((LAYOUTS[k] for k in (config["layout"], config["family"]) if k in LAYOUTS), "flamingo")
    marks = interleave.marks(model.tokenizer, layout)
    if marks.media != config["model"]["image_token"]:
        wanted = config["model"]["image_token"]
        raise UserError(f"'{where}': its tokenizer gives pictures the id {marks.media}, the model looks for them at id {wanted}")
    return marks


def _eye(model: Pretrained) -> Callable:
    """The transform of a picture's bytes to what the model takes."""
    how = model.config.get("preprocess")
    if how is None:
        raise UserError("this checkpoint does not say how its pictures are prepared; put its preprocessor_config.json beside it")
    size = how["size"]
    steps = [("decode", {"channels": model.config["model"].get("channels", 3)})]
    if how["resize"] == "short_side":
        steps += [("resize", {"size": size, "short_side": True, "method": how["method"]}), ("center_crop", {"size": size})]
    else:
        steps += [("resize", {"size": (size, size), "method": how["method"]})]
    return transforms.build((*steps, ("normalize", {"mean": tuple(how["mean"]), "std": tuple(how["std"])})), None)


@dataclasses.dataclass(frozen=True)
class Rate:
    """Of videos: frames a second that are looked at, of those of folders and lists, and the most of them."""

    fps: float
    stored: float
    most: int


def _rate(args: argparse.Namespace) -> Rate:
    """Raises UserError: a number that is not positive."""
    for name in ("fps", "stored_fps", "frames"):
        if not 0 < getattr(args, name) < float("inf"):
            raise UserError(f"--{name} is {getattr(args, name)}, expected more than 0")
    return Rate(args.fps, args.stored_fps, args.frames)


def _picture(see: Callable, name: str, rate: Rate) -> Float32[np.ndarray, "F S S C"]:
    """A file's picture, one frame, or a video's frames.

    Raises:
      UserError: no file, no picture, a video without frames or in a form that is not read.
    """
    try:
        frames = video.shown(name, rate.fps, rate.stored, rate.most)
        return np.stack([see({"image": frame}, np.random.default_rng(0))["image"] for frame in frames])
    except OSError as e:
        raise UserError(f"<image:{name}>: {e.strerror or e}") from None
    except BadSample as e:
        raise UserError(f"<image:{name}> is no picture or video that can be read: {e}") from None
