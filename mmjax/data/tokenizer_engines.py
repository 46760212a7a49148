"""What turns text into ids: engines over the `tokenizers` and `sentencepiece` libraries, with the cleaning that CLIP and SigLIP put
before them. Readers of files make them (tokenizer_formats.py)."""

import functools
import html
import re
import string
import unicodedata
from collections.abc import Callable, Mapping, Sequence
from typing import Protocol, runtime_checkable

import tokenizers

from mmjax.core.errors import UserError

START, END, WORD_END = "<|startoftext|>", "<|endoftext|>", "</w>"  # CLIP's
FORMS = (
    "tokenizer.json (Hugging Face, or trained by mmjax), vocab.json + merges.txt (CLIP), bpe_simple_vocab_16e6.txt.gz (OpenAI's CLIP), "
    "vocab.txt (BERT), or a SentencePiece *.model such as spiece.model or tokenizer.model"
)
_CLIP_SPECIAL = re.compile("|".join(map(re.escape, (START, END))))


@runtime_checkable
class Engine(Protocol):
    """Text to ids without special tokens, and back. Picklable, deterministic, safe to share between threads."""

    size: int  # the largest id + 1

    def ids(self, text: str) -> list[int]: ...

    def batch(self, texts: Sequence[str]) -> list[list[int]]: ...

    def decode(self, ids: Sequence[int]) -> str: ...

    def find(self, token: str) -> int | None: ...


def byte_characters() -> dict[str, int]:
    """One printable character a byte, in the order of CLIP's vocabulary: printable bytes stand for themselves and come first."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [b for b in range(256) if b not in printable]
    return {chr(b): b for b in printable} | {chr(256 + i): b for i, b in enumerate(others)}


BYTES = byte_characters()


def _whole(text: str) -> str:
    """Half of a surrogate pair, which JSON can carry, is no character and cannot be encoded: it becomes U+FFFD."""
    return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")


class Library:
    """An engine over the `tokenizers` library.

    `parse`: text that spells out a special token becomes that token. Otherwise it is text like any other.
    """

    def __init__(self, serialized: str, parse: bool, where: str = "tokenizer"):
        """`serialized` is the content of a tokenizer.json.

        Raises:
          UserError: it is not one; `where` names it.
        """
        try:
            self.core = tokenizers.Tokenizer.from_str(serialized)
            vocab = self.core.get_vocab()
        except (KeyboardInterrupt, SystemExit):
            raise
        except BaseException as e:  # the library raises bare Exception, and panics, which are no Exception
            raise UserError(f"{where}: not a tokenizer.json ({e}); expected {FORMS}") from e
        if not vocab:
            raise UserError(f"{where}: not a tokenizer.json (its vocabulary is empty); expected {FORMS}")
        self.parse = parse
        self.core.no_padding()
        self.core.no_truncation()
        self.core.encode_special_tokens = not parse
        if getattr(self.core.model, "dropout", None):
            self.core.model.dropout = None  # BPE dropout would make ids random
        self.size = max(vocab.values()) + 1
        self._special = {i for i, token in self.core.get_added_tokens_decoder().items() if token.special}
        self.word_end = getattr(self.core.model, "end_of_word_suffix", None)

    def __reduce__(self):
        return Library, (self.core.to_str(), self.parse)

    def ids(self, text: str) -> list[int]:
        try:
            return self.core.encode(text, add_special_tokens=False).ids
        except TypeError:  # what the library makes of a lone surrogate
            return self.core.encode(_whole(text), add_special_tokens=False).ids

    def batch(self, texts: Sequence[str]) -> list[list[int]]:
        try:
            encoded = self.core.encode_batch_fast(texts, add_special_tokens=False)
        except TypeError:
            encoded = self.core.encode_batch_fast([_whole(text) for text in texts], add_special_tokens=False)
        return [e.ids for e in encoded]

    def decode(self, ids: Sequence[int]) -> str:
        if self.word_end != WORD_END:
            return self.core.decode(ids, skip_special_tokens=True)
        out = bytearray()  # CLIP's: the library leaves the marks of word ends in
        for token in (self.core.id_to_token(i) for i in ids if i not in self._special):
            out += bytes(BYTES[c] for c in token.removesuffix(WORD_END))
            out += b" " if token.endswith(WORD_END) else b""
        return out.decode("utf-8", errors="replace").strip()

    def find(self, token: str) -> int | None:
        return self.core.token_to_id(token)


class Extended:
    """An engine with special tokens behind its own: they have ids from `first` on, stand for no text, and text is not searched for them."""

    def __init__(self, engine: Engine, tokens: Sequence[str], first: int):
        self._engine, self._tokens, self._first = engine, tuple(tokens), first
        self.ids, self.batch = engine.ids, engine.batch
        self.size = first + len(self._tokens)

    def __reduce__(self):
        return Extended, (self._engine, self._tokens, self._first)

    def decode(self, ids: Sequence[int]) -> str:
        return self._engine.decode([i for i in ids if i < self._engine.size])

    def find(self, token: str) -> int | None:
        known = self._engine.find(token)
        return self._first + self._tokens.index(token) if known is None and token in self._tokens else known


def clean_clip(text: str) -> str:
    """CLIP's cleaning: mojibake, ligatures, curly quotes and control characters repaired by ftfy, HTML entities unescaped twice
    (web captions are often escaped twice), whitespace collapsed, lower case."""
    if not (text.isascii() and text.isprintable() and "&" not in text):  # or else there is nothing to repair, as in most captions
        text = html.unescape(html.unescape(_ftfy()(_whole(text))))
    return " ".join(text.split()).lower()


@functools.cache
def _ftfy() -> Callable[[str], str]:
    try:
        from ftfy import fix_text
    except ImportError as e:  # going on without it would give other ids, silently
        raise UserError("OpenAI's CLIP tokenizer cleans its text with ftfy, which is not installed; pip install 'ftfy>=6.1,<7'") from e
    return fix_text


class OpenAI:
    """CLIP's published text handling around its BPE.

    `parse`: as in the published code, text that spells out the start or end token becomes it, unless a sign stands before it
    (the published expression then takes the sign and the token's `<|` as one piece).
    """

    def __init__(self, library: Library, parse: bool):
        _ftfy()
        self._library, self._parse = library, parse
        self.size, self.decode, self.find = library.size, library.decode, library.find

    def __reduce__(self):
        return OpenAI, (self._library, self._parse)

    def ids(self, text: str) -> list[int]:
        return self._pieces(clean_clip(text))

    def batch(self, texts: Sequence[str]) -> list[list[int]]:
        cleaned = [clean_clip(text) for text in texts]
        if self._parse and any(_CLIP_SPECIAL.search(text) for text in cleaned):
            return [self._pieces(text) for text in cleaned]
        return self._library.batch(cleaned)

    def _pieces(self, text: str) -> list[int]:
        out, at = [], 0
        for match in _CLIP_SPECIAL.finditer(text) if self._parse else ():
            begin = match.start()
            before = text[begin - 1] if begin > at else " "
            if before == " " or unicodedata.category(before)[0] in "LN":
                out += [*self._library.ids(text[at:begin]), self.find(match[0])]
                at = match.end()
        return out + self._library.ids(text[at:])


def clean_siglip(text: str) -> str:
    """SigLIP's canonical form: lower case, ASCII punctuation removed, whitespace collapsed."""
    return " ".join(text.lower().translate(str.maketrans("", "", string.punctuation)).split())


class SentencePiece:
    """An engine over a SentencePiece model: normalisation, dummy prefix and byte fallback are as the model file says.

    Text that spells out a control symbol such as </s> is text. `added` are tokens beyond the model's own pieces (T5's
    <extra_id_0>): they have ids, but text is not searched for them.
    """

    def __init__(self, proto: bytes, clean: Callable[[str], str] | None, added: Mapping[str, int], where: str = "tokenizer"):
        """Raises: UserError if `proto` is no SentencePiece model; `where` names it."""
        from sentencepiece import SentencePieceProcessor

        self._proto, self._clean, self._added = proto, clean, dict(added)
        self.core = SentencePieceProcessor()
        try:
            self.core.LoadFromSerializedProto(proto)
            self._own = self.core.get_piece_size()
            self.core.id_to_piece(list(range(self._own)))  # are they UTF-8?
        except (RuntimeError, OSError, UnicodeDecodeError) as e:
            raise UserError(f"{where}: not a SentencePiece model, or damaged ({e}); expected {FORMS}") from e
        if not _has_normalizer(proto):  # one cut between two pieces would load, and give other ids
            raise UserError(f"{where}: damaged: the file ends before its normalisation rules; fetch it again")
        self.size = max(self._own, *(i + 1 for i in self._added.values()), 0)

    def __reduce__(self):
        return SentencePiece, (self._proto, self._clean, self._added)

    def _prepared(self, text: str) -> str:
        text = self._clean(text) if self._clean else text
        try:
            text.encode("utf-8")
        except UnicodeEncodeError:
            return _whole(text)
        return text

    def ids(self, text: str) -> list[int]:
        return self.core.encode(self._prepared(text))

    def batch(self, texts: Sequence[str]) -> list[list[int]]:
        return self.core.encode([self._prepared(text) for text in texts])

    def decode(self, ids: Sequence[int]) -> str:
        return self.core.decode([i for i in ids if i < self._own])

    def find(self, token: str) -> int | None:
        i = self.core.piece_to_id(token)
        if i != self.core.unk_id() or token == self.core.id_to_piece(i):
            return i
        return self._added.get(token)


def _has_normalizer(proto: bytes) -> bool:
    """Whether a ModelProto holds field 3, which comes after all pieces. Every field of it is length-delimited."""
    at = 0
    while at < len(proto):
        field, size, shift = proto[at] >> 3, 0, 0
        at += 1
        while True:
            size |= (proto[at] & 127) << shift
            shift, at = shift + 7, at + 1
            if proto[at - 1] < 128:
                break
        if field == 3:
            return True
        at += size
    return False
