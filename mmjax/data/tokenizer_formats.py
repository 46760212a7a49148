"""Readers of the files that tokenizers are published as. Each gives a `Published`: an engine that turns text into ids, and what
the format puts around them. Files are parsed, never executed.

Hugging Face's tokenizer.json (byte-level BPE, WordPiece, Unigram), CLIP's vocab.json + merges.txt and bpe_simple_vocab_16e6.txt.gz,
BERT's vocab.txt, and SentencePiece models.
"""

import dataclasses
import gzip
import json
import re
import zlib
from collections.abc import Mapping, Sequence
from typing import Any

import tokenizers
from etils import epath
from tokenizers import AddedToken, Regex, decoders, models, normalizers, pre_tokenizers

from mmjax.core.errors import UserError
from mmjax.data.tokenizer_engines import BYTES, END, FORMS, START, WORD_END, Engine, Library, OpenAI, SentencePiece, clean_siglip

CLIP_MERGES = 49_152 - 256 - 2  # what CLIP takes of the 262,144 merges in its file

CLIP_PIECES = r"'s|'t|'re|'ve|'m|'ll|'d|\p{L}+|\p{N}|[^\s\p{L}\p{N}]+"  # contractions, words, single digits, runs of signs
# OpenAI folds case here, which lower-casing has not done to the long s.
_FOLDED_PIECES = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|\p{L}+|\p{N}|[^\s\p{L}\p{N}]+"

# What a tokenizer.json calls its tokens when no tokenizer_config.json beside it says which is which.
_STARTS = ("[CLS]", "<s>", "<bos>", "<|begin_of_text|>", "<|startoftext|>")
_ENDS = ("[SEP]", "</s>", "<eos>", "<|end_of_text|>", "<|endoftext|>")
_PADS = ("[PAD]", "<pad>")

# Their ids are not those of the SentencePiece file: fairseq moved them by one or more, Pegasus by 103.
_SHIFTED = r"(XLMRoberta|Camembert|MBart|MBart50|Nllb|Barthez|XGLM|M2M100|Pegasus|Speech2Text)Tokenizer(Fast)?"


@dataclasses.dataclass(frozen=True)
class Published:
    """A tokenizer as its file describes it.

    Attributes:
      prefix, suffix: the special tokens the format puts before and after a text.
      start, end: ids of the start and end tokens, None where there is none; they may exist without being in prefix or suffix.
      pad: id of the padding token.
      ours: trained by mmjax, so that a tokenizer.json holds all of it.
    """

    engine: Engine
    prefix: tuple[int, ...]
    suffix: tuple[int, ...]
    start: int | None
    end: int | None
    pad: int
    ours: bool = False


def read(path: epath.Path, what: str = "tokenizer") -> bytes:
    """The content of a file. Raises: UserError if it cannot be read."""
    try:
        return path.read_bytes()
    except Exception as e:  # object stores raise kinds of their own
        raise UserError(f"{what} {str(path)!r} cannot be read: {e}") from e


def _text(content: bytes, path: epath.Path) -> str:
    try:
        return content.decode("utf-8")
    except UnicodeDecodeError as e:
        raise UserError(f"tokenizer {str(path)!r} is damaged or no tokenizer: it is not UTF-8 text ({e}); expected {FORMS}") from e


# --- what lies beside a file ---------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class _Facts:
    """tokenizer_config.json over special_tokens_map.json, either of which may be missing."""

    folder: epath.Path
    values: Mapping[str, Any]

    def token(self, engine: Engine, *keys: str) -> int | None:
        """The id of the first of the keys (`bos_token`, ...) that names a token. Raises: UserError if the vocabulary lacks it."""
        for key in keys:
            value = self.values.get(key)
            name = value.get("content") if isinstance(value, dict) else value
            if not isinstance(name, str) or not name:
                continue
            found = engine.find(name)
            if found is None:
                raise UserError(
                    f"tokenizer_config.json or special_tokens_map.json in {str(self.folder)!r} names {key} {name!r}, "
                    "which the vocabulary beside it lacks; the files are not of one tokenizer"
                )
            return found
        return None

    def added(self) -> dict[str, int]:
        """Token -> id of those that the configuration adds to the vocabulary."""
        listed = self.values.get("added_tokens_decoder") or {}
        try:
            return {token["content"]: int(i) for i, token in listed.items()}
        except (AttributeError, KeyError, TypeError, ValueError) as e:
            raise UserError(f"'{self.folder / 'tokenizer_config.json'}': added_tokens_decoder is not a map of ids to tokens") from e


def _facts(folder: epath.Path) -> _Facts:
    values: dict[str, Any] = {}
    for name in ("special_tokens_map.json", "tokenizer_config.json"):
        if (folder / name).exists():
            values |= {key: value for key, value in _json(folder / name).items() if value is not None}
    return _Facts(folder, values)


def _json(path: epath.Path) -> dict[str, Any]:
    try:
        content = json.loads(_text(read(path), path))
    except ValueError as e:
        raise UserError(f"tokenizer {str(path)!r} is damaged: not JSON ({e})") from e
    if not isinstance(content, dict):
        raise UserError(f"tokenizer {str(path)!r} is damaged: expected a JSON object, got {type(content).__name__}")
    return content


# --- readers -------------------------------------------------------------------------------------------------------


def own(library: Library, where: str = "tokenizer") -> Published:
    """A tokenizer that mmjax trained: CLIP's conventions, padding 0.

    Raises:
      UserError: it has no start token, or no end token with the largest id; `where` names it.
    """
    start, end, last = library.find(START), library.find(END), library.size - 1
    if start is None or end != last:
        raise UserError(f"{where}: expected tokens {START} and {END}, the latter with the largest id {last}; got {start}, {end}")
    return Published(library, (start,), (end,), start, end, pad=0, ours=True)


def tokenizer_json(path: epath.Path, parse: bool | None) -> Published:
    """Any tokenizer.json. Special tokens are those of its post-processor, or of `add_bos_token` and `add_eos_token` beside it."""
    where = f"tokenizer {str(path)!r}"
    serialized, facts = _text(read(path), path), _facts(path.parent)
    library = Library(serialized, parse is not False, where)
    if library.word_end == WORD_END and library.core.post_processor is None and not facts.values:
        # Of ours, text that spells out a special token is text: a caption must not be able to end itself.
        return own(Library(serialized, bool(parse), where), where)
    if facts.values.get("tokenizer_class") == "Siglip2Tokenizer":  # trained on lower case; Gemma's file does not say so
        stored = library.core.normalizer
        library.core.normalizer = normalizers.Sequence([normalizers.Lowercase(), *([stored] if stored else [])])
    bos = facts.token(library, "bos_token", "cls_token")
    eos = facts.token(library, "eos_token", "sep_token")
    if library.core.post_processor is None or {"add_bos_token", "add_eos_token"} & facts.values.keys():
        prefix = (bos,) if bos is not None and facts.values.get("add_bos_token") else ()
        suffix = (eos,) if eos is not None and facts.values.get("add_eos_token") else ()
    else:
        prefix, suffix = _template(library.core)
    start = prefix[0] if prefix else bos if bos is not None else _first(library, _STARTS)
    end = suffix[-1] if suffix else eos if eos is not None else _first(library, _ENDS)
    pad = facts.token(library, "pad_token")
    if pad is None and (stored := json.loads(serialized).get("padding")):
        pad = stored.get("pad_id")
    pad = _first(library, _PADS) if pad is None else pad
    return Published(library, prefix, suffix, start, end, (end or 0) if pad is None else pad)


def _template(core: tokenizers.Tokenizer) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """What the post-processor puts before and after a text, read off an example."""
    example = core.encode("a")
    inside = [i for i, sequence in enumerate(example.sequence_ids) if sequence is not None]
    if not inside:
        return (), tuple(example.ids)
    return tuple(example.ids[: inside[0]]), tuple(example.ids[inside[-1] + 1 :])


def _first(engine: Engine, names: Sequence[str]) -> int | None:
    return next((i for i in map(engine.find, names) if i is not None), None)


def clip_pair(folder: epath.Path, convention: str | None, parse: bool | None) -> Published:
    """CLIP's vocab.json + merges.txt. `convention` "transformers" (the default, as only that library writes these files) normalises
    to NFC, collapses whitespace and lower-cases, and pads with the end token; "openai" cleans as `clean_clip` and pads with 0."""
    vocab = _json(folder / "vocab.json")
    place = folder / "merges.txt"
    if not place.exists():
        raise UserError(f"tokenizer {str(folder)!r} has vocab.json without the merges.txt that belongs to it")
    lines = _text(read(place), place).split("\n")
    if set(map(repr, vocab.values())) != set(map(str, range(len(vocab)))):
        raise UserError(f"tokenizer '{folder / 'vocab.json'}' is damaged: expected a map of tokens to ids 0 to {len(vocab) - 1}")
    if START not in vocab or END not in vocab or "a" + WORD_END not in vocab:
        raise UserError(
            f"tokenizer '{folder / 'vocab.json'}' is not CLIP's (no {START}, {END} or word ends); of other byte-level BPE "
            "tokenizers (GPT-2, RoBERTa, Qwen) give the tokenizer.json"
        )
    merges = _merges([line for line in lines if not line.startswith("#version")], place)
    made = {a + b for a, b in merges}
    lacking = {token for merge in merges for token in merge} | made
    unmade = {token for token in vocab if len(token.removesuffix(WORD_END)) > 1} - made - {START, END}
    if not lacking <= vocab.keys() or unmade:
        example = min(unmade or lacking - vocab.keys())
        raise UserError(
            f"tokenizer {str(folder)!r}: vocab.json and merges.txt do not belong together, or one is cut: {example!r} is in one only"
        )
    return _clip(vocab, merges, convention or "transformers", parse)


def clip_merges(path: epath.Path, convention: str | None, parse: bool | None) -> Published:
    """OpenAI's bpe_simple_vocab_16e6.txt.gz, or unpacked: a header line and merges. Ids: 256 bytes, 256 bytes that end a word, the
    first 48,894 merges, start, end: 49,408. Cleaned as `clean_clip`, padding 0; or as transformers does, see `clip_pair`."""
    content = read(path)
    if content[:2] == b"\x1f\x8b":
        try:
            content = gzip.decompress(content)
        except (OSError, EOFError, zlib.error) as e:
            raise UserError(f"tokenizer {str(path)!r} is damaged: {e}") from e
    merges = _merges(_text(content, path).split("\n")[1 : CLIP_MERGES + 1], path)
    tokens = [*BYTES, *(c + WORD_END for c in BYTES), *(a + b for a, b in merges), START, END]
    return _clip({token: i for i, token in enumerate(tokens)}, merges, convention or "openai", parse)


def _merges(lines: Sequence[str], path: epath.Path) -> list[tuple[str, str]]:
    merges = [tuple(line.split()) for line in lines if line.strip()]
    bad = next((m for m in merges if len(m) != 2), None)
    if bad is not None or not merges:
        got = repr(" ".join(bad)[:80]) if bad else "no line"
        raise UserError(f"tokenizer {str(path)!r} is damaged or holds no merges: expected two tokens a line, got {got}")
    return merges


def _clip(vocab: dict[str, int], merges: list[tuple[str, str]], convention: str, parse: bool | None) -> Published:
    openai = convention == "openai"
    core = tokenizers.Tokenizer(models.BPE(vocab=vocab, merges=merges, end_of_word_suffix=WORD_END, unk_token=END))
    if not openai:
        core.normalizer = normalizers.Sequence([normalizers.NFC(), normalizers.Replace(Regex(r"\s+"), " "), normalizers.Lowercase()])
    core.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(_FOLDED_PIECES if openai else CLIP_PIECES), behavior="removed", invert=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    core.add_special_tokens([START, END])
    parse = parse is not False
    library = Library(core.to_str(), parse and not openai)
    start, end = vocab[START], vocab[END]
    return Published(OpenAI(library, parse) if openai else library, (start,), (end,), start, end, 0 if openai else end)


def bert(path: epath.Path, parse: bool | None) -> Published:
    """BERT's vocab.txt, a token a line: WordPiece. Text is lower-cased and stripped of accents where `do_lower_case` beside it says
    so; where nothing does, if no token has a capital."""
    lines = _text(read(path), path).replace("\r\n", "\n").split("\n")
    vocab = {token: i for i, token in enumerate(lines[:-1] if lines[-1] == "" else lines)}
    values = _facts(path.parent).values
    names = {key: values.get(key, default) for key, default in _BERT.items()}
    names = {key: name["content"] if isinstance(name, dict) else name for key, name in names.items()}
    lacking = [name for key, name in names.items() if name not in vocab and key != "mask_token"]
    if lacking:
        raise UserError(f"tokenizer {str(path)!r} is not BERT's vocab.txt: it lacks {', '.join(lacking)}; expected one token a line")
    lower = values.get("do_lower_case")
    if lower is None:
        lower = not any(re.search("[A-Z]", token) for token in vocab if not (token.startswith("[") and token.endswith("]")))
    core = tokenizers.Tokenizer(models.WordPiece(vocab, unk_token=names["unk_token"], max_input_chars_per_word=100))
    core.normalizer = normalizers.BertNormalizer(
        clean_text=True,
        handle_chinese_chars=values.get("tokenize_chinese_chars", True),
        strip_accents=values.get("strip_accents"),  # None: as `lowercase`
        lowercase=lower,
    )
    core.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    core.decoder = decoders.WordPiece(prefix="##")
    core.add_special_tokens([AddedToken(name, special=True, normalized=False) for name in names.values() if name in vocab])
    start, end, pad = (vocab[names[key]] for key in ("cls_token", "sep_token", "pad_token"))
    return Published(Library(core.to_str(), parse is not False), (start,), (end,), start, end, pad)


_BERT = {"pad_token": "[PAD]", "unk_token": "[UNK]", "cls_token": "[CLS]", "sep_token": "[SEP]", "mask_token": "[MASK]"}


def sentencepiece(path: epath.Path) -> Published:
    """A SentencePiece model. Where no tokenizer_config.json beside it says otherwise, a text gets the start token if the model has one
    (LLaMA, Gemma), else the end token (T5, SigLIP); padding is the model's, else the end token.
    """
    where = f"tokenizer {str(path)!r}"
    facts = _facts(path.parent)
    kind = str(facts.values.get("tokenizer_class", ""))
    if path.name == "sentencepiece.bpe.model" or re.fullmatch(_SHIFTED, kind):
        raise UserError(
            f"{where}: {kind or 'XLM-RoBERTa and its kin'} moves the ids of this file by rules of its own; give its tokenizer.json"
        )
    siglip = kind.startswith("SiglipTokenizer")
    engine = SentencePiece(read(path), clean_siglip if siglip else None, facts.added(), where)
    known = lambda i: i if i >= 0 else None
    ids = (known(engine.core.bos_id()), known(engine.core.eos_id()), known(engine.core.pad_id()))
    named = (facts.token(engine, key) for key in ("bos_token", "eos_token", "pad_token"))
    start, end, pad = (stored if name is None else name for name, stored in zip(named, ids, strict=True))
    prefix = (start,) if start is not None and facts.values.get("add_bos_token", not siglip) else ()
    suffix = (end,) if end is not None and facts.values.get("add_eos_token", siglip or start is None) else ()
    if siglip and "pad_token" not in facts.values:
        pad = end
    return Published(engine, prefix, suffix, start, end, (end or 0) if pad is None else pad)
