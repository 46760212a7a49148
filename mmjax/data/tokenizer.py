"""Tokenizers: one interface over every form they are published in (`load`), and a small BPE trained on a set's own captions (`train`).

What `train` learns follows CLIP's conventions (Radford et al. 2021, section 2.4). Text is lower-cased and its whitespace collapsed.
Ids are laid out as in CLIP's vocabulary: 256 bytes, the same 256 at the end of a word, the merges in the order they were learnt,
the start token, the end token. So the end token is the largest id, which is how CLIP finds it, and padding is id 0.
"""

import dataclasses
import functools
import json
import os
import tempfile
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
import tokenizers
from etils import epath
from jaxtyping import Int, Int32
from tokenizers import Regex, models, normalizers, pre_tokenizers, trainers

from mmjax.core.errors import UserError
from mmjax.data import tokenizer_formats as formats
from mmjax.data.tokenizer_engines import BYTES, END, FORMS, START, WORD_END, Extended, Library
from mmjax.data.tokenizer_formats import CLIP_PIECES, Published

CONVENTIONS = ("openai", "transformers")
# By which a folder is known to hold a tokenizer, in the order in which one that holds several is read.
FILES = ("tokenizer.json", "vocab.json", "vocab.txt", "spiece.model", "tokenizer.model", "bpe_simple_vocab_16e6.txt.gz")
_CACHED = 2048  # characters; a longer text is not worth the memory


class Tokenizer:
    """Text to ids and back. Deterministic, picklable, safe to share between threads.

    Attributes:
      vocab_size: the largest id + 1, which is what an embedding needs.
      start, end: ids of the start and end tokens; None where the tokenizer has none.
      pad: id of the padding token. It may be an ordinary token's (CLIP's 0) or the end token's: a mask comes from `end`, not from it.
    """

    def __init__(self, published: Published):
        self._published, self._engine = published, published.engine
        self.vocab_size = self._engine.size
        self.start, self.end, self.pad = published.start, published.end, published.pad
        # Captions repeat (templates, many captions an image, every epoch), and a look-up costs a twentieth of an encoding.
        self._cached = functools.lru_cache(maxsize=4096)(self._ids)

    def __reduce__(self):
        return Tokenizer, (self._published,)

    def _ids(self, text: str) -> tuple[int, ...]:
        return tuple(self._engine.ids(text))

    def encode(
        self,
        texts: str | Sequence[str],
        length: int,
        *,
        start: bool | None = None,
        end: bool | None = None,
        pad: int | None = None,
    ) -> Int32[np.ndarray, "N L"]:
        """Start token, text, end token, padding, in `length` ids. A text too long is cut at its end, and the end token is kept.

        `start` and `end`: whether to add the tokens; None does what the tokenizer's own format does (CLIP and BERT add both, T5 and
        SigLIP the end token, LLaMA the start token). `pad`: an id in place of the tokenizer's own.

        Raises:
          UserError: a `length` without room for the special tokens, a special token asked for that the tokenizer has not, or a `pad`
            outside the vocabulary.
        """
        prefix = self._around("start", start, self._published.prefix, self.start)
        suffix = self._around("end", end, self._published.suffix, self.end)
        room = length - len(prefix) - len(suffix)
        if room < 0 or length < 1:
            raise UserError(
                f"tokenizer: length {length} leaves no room for its special tokens, {len(prefix)} before and {len(suffix)} after"
            )
        texts = [texts] if isinstance(texts, str) else list(texts)
        if pad is not None and not 0 <= pad < self.vocab_size:
            raise UserError(f"tokenizer: pad {pad} is outside the vocabulary of {self.vocab_size}")
        out = np.full((len(texts), length), self.pad if pad is None else pad, np.int32)
        # One text, as in a loader, goes without the library's thread pool: it is no faster, and it must not be used before a fork.
        for row, text in zip(out, self._engine.batch(texts) if len(texts) > 1 else map(self._one, texts), strict=True):
            ids = (*prefix, *text[:room], *suffix)
            row[: len(ids)] = ids
        return out

    def _around(self, name: str, wanted: bool | None, usual: tuple[int, ...], token: int | None) -> tuple[int, ...]:
        if wanted is None or (wanted and usual):
            return usual
        if not wanted:
            return ()
        if token is None:
            raise UserError(f"tokenizer: {name}=True, but it has no {name} token")
        return (token,)

    def _one(self, text: str) -> Sequence[int]:
        return self._cached(text) if len(text) <= _CACHED else self._ids(text)

    def encode_plain(self, text: str, *, start: bool | None = False, end: bool | None = False) -> list[int]:
        """The ids of the text, nothing cut and no padding; special tokens only where asked for, as in `encode`."""
        prefix = self._around("start", start, self._published.prefix, self.start)
        return [*prefix, *self._one(text), *self._around("end", end, self._published.suffix, self.end)]

    def decode(self, ids: Int[np.ndarray, "L"] | Sequence[int]) -> str:
        """The text of one row, up to its end token. What `encode` cleaned away (case, spacing around signs) is gone."""
        ids = [int(i) for i in ids]
        ids = ids[1:] if ids and ids[0] == self.start else ids  # first, as for some models start and end are one token
        ids = ids[: ids.index(self.end)] if self.end in ids else ids
        outside = next((i for i in ids if not 0 <= i < self.vocab_size), None)
        if outside is not None:
            raise UserError(f"tokenizer: id {outside} is outside the vocabulary of {self.vocab_size}")
        return self._engine.decode(ids)

    def find(self, token: str) -> int | None:
        """The id of a token by its spelling; None where there is none."""
        return self._engine.find(token)

    def extended(self, tokens: Sequence[str], first: int | None = None) -> "Tokenizer":
        """With special tokens: those it has already keep their ids, the others get the next ones, in this order.

        Text that spells one out stays text. `first`: the id of the first new one, where a model's table has more rows than the
        tokenizer has tokens (MPT's).

        Raises:
          UserError: a `first` within the vocabulary.
        """
        new = [token for token in dict.fromkeys(tokens) if self.find(token) is None]
        first = self.vocab_size if first is None else first
        if first < self.vocab_size:
            raise UserError(f"tokenizer: new tokens from id {first} on, and the vocabulary of {self.vocab_size} has that one")
        return Tokenizer(dataclasses.replace(self._published, engine=Extended(self._engine, new, first), ours=False)) if new else self

    def save(self, path: str | os.PathLike) -> None:
        """Writes the tokenizer.json of a tokenizer made by `train`, whole or not at all.

        Raises:
          UserError: a tokenizer read from another form, of which a tokenizer.json would hold a part; its files are to be copied.
        """
        if not self._published.ours:
            raise UserError("tokenizer: only one trained by mmjax is saved as tokenizer.json; of a published one, copy the files")
        path = Path(path)
        handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
        try:
            with os.fdopen(handle, "w", encoding="utf-8") as f:
                f.write(json.dumps(json.loads(self._engine.core.to_str()), ensure_ascii=False, indent=1) + "\n")
            os.chmod(temporary, 0o644)
            os.replace(temporary, path)
        except BaseException:
            os.unlink(temporary)
            raise


def load(path: str | os.PathLike, *, pad: int | None = None, parse_special: bool | None = None, convention: str | None = None) -> Tokenizer:
    """Reads a tokenizer: a file, or a folder with one, in any of these forms.

    - tokenizer.json: written by `Tokenizer.save`, or Hugging Face's; tokenizer_config.json and special_tokens_map.json beside it
      say which tokens are start, end and padding.
    - vocab.json + merges.txt: CLIP's as transformers writes it. bpe_simple_vocab_16e6.txt.gz: OpenAI's.
    - vocab.txt: BERT's WordPiece.
    - spiece.model, tokenizer.model, *.model: SentencePiece, unigram or BPE. Whether there is a dummy prefix is the file's to say;
      transformers' `legacy` and text searched for added tokens are not imitated. With `"tokenizer_class": "SiglipTokenizer"` beside
      it, text is cleaned and padded as SigLIP does.

    A folder that holds several is read in this order. `gs://` and such paths work as local ones do.

    Args:
      pad: the padding id, where it is not to be the form's own. CLIP: OpenAI and open_clip pad with 0, transformers with the end
        token; SigLIP's is 1.
      parse_special: whether text that spells out a special token becomes that token. None: as the form's reference does, which is yes
        for all but SentencePiece models (which never do) and for our own.
      convention: for CLIP's two forms, whose cleaning and padding: "openai" (ftfy, HTML entities, whitespace, lower case; 0) or
        "transformers" (NFC, whitespace, lower case; end token). None: the one that publishes the form.

    Raises:
      UserError: no such file, a form that is not known, or a damaged file.
    """
    if convention not in (None, *CONVENTIONS):
        raise UserError(f"tokenizer: convention is {convention!r}, expected one of {', '.join(CONVENTIONS)}")
    published = _read(epath.Path(path), parse_special, convention)
    if pad is not None:
        if not 0 <= pad < published.engine.size:
            raise UserError(f"tokenizer {str(path)!r}: pad {pad} is outside the vocabulary of {published.engine.size}")
        published = dataclasses.replace(published, pad=pad)
    return Tokenizer(published)


def _read(path: epath.Path, parse: bool | None, convention: str | None) -> Published:
    if path.is_dir():
        return _read_folder(path, parse, convention)
    name = path.name
    head = formats.read(path)[:64]
    if name in ("vocab.json", "merges.txt"):
        return formats.clip_pair(path.parent, convention, parse)
    if head.startswith(b"\x1f\x8b") or name.startswith("bpe_simple_vocab"):
        return formats.clip_merges(path, convention, parse)
    if name.endswith(".json") or head.lstrip().startswith(b"{"):
        return formats.tokenizer_json(path, parse)
    if name.endswith((".model", ".spm")):
        return formats.sentencepiece(path)
    if name.endswith(".txt"):
        return formats.bert(path, parse)
    raise UserError(f"tokenizer {str(path)!r}: not a form known by its name; expected {FORMS}")


def _read_folder(folder: epath.Path, parse: bool | None, convention: str | None) -> Published:
    names = sorted(p.name for p in folder.iterdir())
    # CLIP's merges under a convention of its own are not what a tokenizer.json beside them holds.
    order = ("vocab.json", *FILES) if convention and "merges.txt" in names else FILES
    first = next((name for name in order if name in names), None)
    models = [name for name in names if name.endswith(".model")]
    if first is None and len(models) != 1:
        raise UserError(f"tokenizer: folder {str(folder)!r} holds none; expected {FORMS}")
    return _read(folder / (first or models[0]), parse, convention)


def train(texts: Iterable[str], vocab_size: int) -> Tokenizer:
    """Learns the merges of at most `vocab_size` ids; fewer if the texts run out of pairs. The same texts give the same file.

    Raises:
      UserError: `vocab_size` below 514, which bytes and the two special tokens take.
    """
    single = [*BYTES, *(c + WORD_END for c in BYTES)]
    if vocab_size < len(single) + 2:
        raise UserError(f"tokenizer: vocab_size {vocab_size} is too small; bytes and special tokens alone take {len(single) + 2}")
    learner = _assemble({token: i for i, token in enumerate(single)}, [])
    # Ties between pairs go by id, and the library gives ids to word-final characters in an order that changes from run to run:
    # named as special tokens they get their final ids beforehand, and training is deterministic.
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size - 2,
        special_tokens=single,
        initial_alphabet=list(BYTES),
        end_of_word_suffix=WORD_END,
        show_progress=False,
    )
    learner.train_from_iterator(texts, trainer)
    merges = [tuple(pair) for pair in json.loads(learner.to_str())["model"]["merges"]]
    tokens = [*single, *("".join(pair) for pair in merges), START, END]
    core = _assemble({token: i for i, token in enumerate(tokens)}, merges)
    core.add_special_tokens([START, END])
    return Tokenizer(formats.own(Library(core.to_str(), parse=False)))


def _assemble(vocab: dict[str, int], merges: list[tuple[str, str]]) -> tokenizers.Tokenizer:
    core = tokenizers.Tokenizer(models.BPE(vocab=vocab, merges=merges, end_of_word_suffix=WORD_END))
    core.normalizer = normalizers.Sequence(
        [normalizers.NFC(), normalizers.Replace(Regex(r"\s+"), " "), normalizers.Strip(), normalizers.Lowercase()]
    )
    core.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(CLIP_PIECES), behavior="removed", invert=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    return core
