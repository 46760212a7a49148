"""Byte-level BPE with CLIP's conventions (Radford et al. 2021, section 2.4), trained on a set's own captions.

Text is lower-cased and its whitespace collapsed. Ids are laid out as in CLIP's vocabulary: 256 bytes, the same 256 at the end of
a word, the merges in the order they were learnt, the start token, the end token. So the end token is the largest id, which is
how CLIP finds it, and padding is id 0.
"""

import functools
import json
import os
import tempfile
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
import tokenizers
from jaxtyping import Int, Int32
from tokenizers import Regex, models, normalizers, pre_tokenizers, trainers

from mmjax.core.errors import UserError

START, END, WORD_END = "<|startoftext|>", "<|endoftext|>", "</w>"
PAD = 0
_PIECES = r"'s|'t|'re|'ve|'m|'ll|'d|\p{L}+|\p{N}|[^\s\p{L}\p{N}]+"  # contractions, words, single digits, runs of signs


def _byte_characters() -> dict[str, int]:
    """One printable character a byte, in the order of CLIP's vocabulary: printable bytes stand for themselves and come first."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [b for b in range(256) if b not in printable]
    return {chr(b): b for b in printable} | {chr(256 + i): b for i, b in enumerate(others)}


_BYTES = _byte_characters()


class Tokenizer:
    """Text to ids and back. Picklable, safe to share between threads.

    Attributes:
      vocab_size: number of ids; the end token is `vocab_size - 1`.
      start, end, pad: ids of the start, end and padding tokens.
    """

    def __init__(self, serialized: str, where: str = "tokenizer"):
        """`serialized` is the content of a tokenizer.json.

        Raises:
          UserError: it cannot be read or has no start token or no end token with the largest id; `where` names it.
        """
        try:
            self._core = tokenizers.Tokenizer.from_str(serialized)
        except Exception as e:  # the library raises bare Exception
            raise UserError(f"{where}: not a tokenizer.json ({e})") from e
        self._core.no_padding()
        self._core.no_truncation()
        # Text that spells out a special token is text: a caption must not be able to end itself.
        self._core.encode_special_tokens = True
        self.vocab_size = self._core.get_vocab_size()
        self.pad = PAD
        start, end = self._core.token_to_id(START), self._core.token_to_id(END)
        if start is None or end != self.vocab_size - 1:
            last = self.vocab_size - 1
            raise UserError(f"{where}: expected tokens {START} and {END}, the latter with the largest id {last}; got {start}, {end}")
        self.start, self.end = start, end
        # Captions repeat (templates, many captions an image, every epoch), and a look-up costs a twentieth of an encoding.
        self._cached = functools.lru_cache(maxsize=4096)(self._ids)

    def __reduce__(self):
        return Tokenizer, (self._core.to_str(),)

    def _ids(self, text: str) -> tuple[int, ...]:
        return tuple(self._core.encode(text, add_special_tokens=False).ids)

    def encode(self, texts: str | Sequence[str], length: int) -> Int32[np.ndarray, "N L"]:
        """Start token, text, end token, padding, in `length` ids; a text too long is cut and its last id is the end token."""
        if length < 2:
            raise UserError(f"tokenizer: length {length} leaves no room for the start and the end token")
        texts = [texts] if isinstance(texts, str) else texts
        out = np.full((len(texts), length), self.pad, np.int32)
        for row, text in zip(out, texts, strict=True):
            ids = (self.start, *self._cached(text)[: length - 2], self.end)
            row[: len(ids)] = ids
        return out

    def decode(self, ids: Int[np.ndarray, "L"] | Sequence[int]) -> str:
        """The text of one row, up to its end token. What `encode` cleaned away (case, spacing around signs) is gone."""
        out = bytearray()
        for i in (int(i) for i in ids):
            if i == self.end:
                break
            if i == self.start:
                continue
            token = self._core.id_to_token(i)
            if token is None:
                raise UserError(f"tokenizer: id {i} is outside the vocabulary of {self.vocab_size}")
            out += bytes(_BYTES[c] for c in token.removesuffix(WORD_END))
            out += b" " if token.endswith(WORD_END) else b""
        return out.decode("utf-8", errors="replace").strip()

    def save(self, path: str | os.PathLike) -> None:
        """Writes tokenizer.json, whole or not at all."""
        path = Path(path)
        handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
        try:
            with os.fdopen(handle, "w", encoding="utf-8") as f:
                f.write(json.dumps(json.loads(self._core.to_str()), ensure_ascii=False, indent=1) + "\n")
            os.chmod(temporary, 0o644)
            os.replace(temporary, path)
        except BaseException:
            os.unlink(temporary)
            raise


def load(path: str | os.PathLike) -> Tokenizer:
    """Reads a tokenizer.json written by `Tokenizer.save`.

    Raises:
      UserError: no such file, or not such a tokenizer.
    """
    try:
        text = Path(path).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as e:
        raise UserError(f"tokenizer {str(path)!r} cannot be read: {e}") from e
    return Tokenizer(text, where=f"tokenizer {str(path)!r}")


def train(texts: Iterable[str], vocab_size: int) -> Tokenizer:
    """Learns the merges of at most `vocab_size` ids; fewer if the texts run out of pairs. The same texts give the same file.

    Raises:
      UserError: `vocab_size` below 514, which bytes and the two special tokens take.
    """
    single = [*_BYTES, *(c + WORD_END for c in _BYTES)]
    if vocab_size < len(single) + 2:
        raise UserError(f"tokenizer: vocab_size {vocab_size} is too small; bytes and special tokens alone take {len(single) + 2}")
    learner = _assemble({token: i for i, token in enumerate(single)}, [])
    # Ties between pairs go by id, and the library gives ids to word-final characters in an order that changes from run to run:
    # named as special tokens they get their final ids beforehand, and training is deterministic.
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size - 2, special_tokens=single, initial_alphabet=list(_BYTES), end_of_word_suffix=WORD_END, show_progress=False
    )
    learner.train_from_iterator(texts, trainer)
    merges = [tuple(pair) for pair in json.loads(learner.to_str())["model"]["merges"]]
    tokens = [*single, *("".join(pair) for pair in merges), START, END]
    core = _assemble({token: i for i, token in enumerate(tokens)}, merges)
    core.add_special_tokens([START, END])
    return Tokenizer(core.to_str())


def _assemble(vocab: dict[str, int], merges: list[tuple[str, str]]) -> tokenizers.Tokenizer:
    core = tokenizers.Tokenizer(models.BPE(vocab=vocab, merges=merges, end_of_word_suffix=WORD_END))
    core.normalizer = normalizers.Sequence(
        [normalizers.NFC(), normalizers.Replace(Regex(r"\s+"), " "), normalizers.Strip(), normalizers.Lowercase()]
    )
    core.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(_PIECES), behavior="removed", invert=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    return core
