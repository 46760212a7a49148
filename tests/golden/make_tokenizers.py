"""Makes the small vocabularies in tests/golden/tokenizers, and the ids that the reference implementations give for hard strings.

Run by hand, in an environment with torch, transformers, open_clip_torch, sentencepiece, protobuf and ftfy:

    python tests/golden/make_tokenizers.py

The vocabularies are made where the folder is missing, the ids always. For every form, `ids.json` holds the ids of every string of
`strings.json` without special tokens ("plain") and as rows of 24 with special tokens, cut and padded ("rows"), as the reference makes
them. For SentencePiece models the reference is sentencepiece itself; "differs" lists the strings on which transformers does not
agree with it, and the rows are those of transformers for the others.
"""

import gzip
import importlib.metadata
import importlib.util
import itertools
import json
import shutil
import tempfile
from pathlib import Path

import sentencepiece
import tokenizers
from tokenizers import Regex, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import BertTokenizer, CLIPTokenizer, LlamaTokenizer, PreTrainedTokenizerFast, SiglipTokenizer, T5Tokenizer

HERE = Path(__file__).parent / "tokenizers"
LENGTH = 24
START, END = "<|startoftext|>", "<|endoftext|>"

TEXT = """A small dog runs along the beach while two children throw a red ball into the waves.
The photograph shows an old wooden house with a blue door, three windows and a garden full of flowers.
It's raining, so they've moved the tables inside; we'll eat when everyone's here, and I'd rather you didn't wait.
She said: "Don't forget the keys!" He hadn't. They couldn't have known, he's sure, that you're late.
In 1987 about 12,500 people lived here, and by 2024 there were 31,900 of them: 155 % more than before.
A black cat sleeps on a grey sofa next to a lamp. A close-up of a bowl of tomato soup with bread and butter.
Visit https://www.example.org/photos?id=42&size=large or write to someone@example.com for the full list (free of charge).
The train to the mountains leaves at 7:45 from platform 9, stops in five towns and arrives a little before noon.
Painting of a ship in a storm, oil on canvas, dark clouds, heavy sea, lightning over the horizon, in the style of an old master.
Un café très serré, une crème brûlée et des œufs à la coque: voilà le petit déjeuner de l'été à Besançon.
Der große Bär läuft über die schneebedeckte Straße, während die Vögel südwärts fliegen. Übermäßig schön!
El niño pequeño juega en el jardín con su hermana mayor; mañana volverán a la montaña. ¿Cuándo? ¡Ahora!
Маленькая собака бежит по берегу моря, а дети играют в мяч. Старый деревянный дом с синей дверью.
Η μικρή γάτα κοιμάται στον ήλιο. Ο δρόμος προς τη θάλασσα είναι μακρύς. ΟΔΟΣ ΚΑΙ ΦΩΣ.
小さな犬が海岸を走っています。古い木の家と青いドア。東京の夜、雨の道。
一只小狗在海滩上奔跑。山上的老房子有一扇蓝色的门。今天天气很好，我们去公园吧。
작은 개가 해변을 달리고 있습니다. 파란 문이 있는 오래된 집.
كلب صغير يركض على الشاطئ. بيت قديم له باب أزرق. שלום לכולם, בית ישן עם דלת כחולה.
एक छोटा कुत्ता समुद्र तट पर दौड़ रहा है। नीले दरवाज़े वाला पुराना घर।
😀 🙂 ❤️ 🐶 👍 🏖️ the emoji of a dog, a thumb and a beach; hearts and smiles everywhere 😀😀 ❤️.
def area(width, height):
    return width * height  # square metres, rounded to 0.01
"""

_family = "\U0001f468\u200d\U0001f469\u200d\U0001f467\u200d\U0001f466"
STRINGS = [
    "",
    " ",
    "a",
    "A photo of a dog.",
    "a small dog runs along the beach",
    "THE PHOTOGRAPH SHOWS AN OLD WOODEN HOUSE",
    "  leading and trailing spaces   ",
    "many     spaces  between   words",
    "tabs\tand\nnew\nlines\r\nand\x0bvertical\x0cfeeds",
    "\n\n\n",
    "no-break\u00a0space, thin\u2009space, ideographic\u3000space, nel\u0085line\u2028sep\u2029para\u1680ogham",
    "zero\u200bwidth joiners\u200dand\ufeffmarks\u2060here",
    "it's, they've, we'll, I'd, can't, you're, I'm, IT'S, DON'T",
    "'s 't ''ll 'ſ 'quoted' rock'n'roll",
    "curly ‘single’ and “double” quotes, it’s – dashes — and … dots",
    "café naïve façade Œuvre Straße",
    "cafe\u0301 nai\u0308ve combining: a\u0300 c\u0327 o\u0302\u0303 q\u0301\u0323",
    "\u00c5 A\u030a \u212b \ufb01 \ufb02 \ufb00 \u01c4 \u01c5 \u00df \u1e9e",
    "\u0130stanbul \u0131\u011e Kelvin \u212a \u2126 \u212b",
    "ΟΔΟΣ ΦΩΣ Σίσυφος ΣΑΣ.",
    "Маленькая собака бежит по берегу",
    "小さな犬が海岸を走っています。",
    "一只小狗在海滩上奔跑，abc今天def。",
    "ｆｕｌｌ ｗｉｄｔｈ １２３ ｶﾀｶﾅ ㈱ ① ½ ²",
    "작은 개가 해변을 달리고 있습니다",
    "\u1100\u1161\u11a8\u1112\u1161\u11ab\u1100\u1173\u11af (decomposed hangul)",
    "كلب صغير يركض على الشاطئ",
    "שלום לכולם \u200fabc\u200e \u202ereversed\u202c \u05de\u05b7\u05d9\u05b4\u05dd",
    "नीले दरवाज़े वाला पुराना घर",
    "ภาษาไทยไม่มีช่องว่าง",
    "𝒻𝒶𝓃𝒸𝓎 𝔐𝔞𝔱𝔥 𝟙𝟚𝟛 𐍈 𠀀𪛖",
    "😀 🙂 \u2764\ufe0f \u2764 🐶👍",
    f"{_family} 👍🏽 \U0001f3f3\ufe0f\u200d\U0001f308 🇫🇷🇩🇪 1\ufe0f\u20e3",
    "&amp; &lt;b&gt; &quot;x&quot; &#39;y&#39; &nbsp; &eacute;",
    "&amp;amp; &amp;lt;b&amp;gt; &amp;quot;twice&amp;quot; &amp;#39; &amp;eacute;",
    "&#x1F600; &#0; &#x1c; &notanentity; &copy &ampere AT&T",
    "<i>&amp;amp; &amp;lt;x&amp;gt; &amp;amp;amp;</i> &amp;amp;amp;quot;",
    "<b>bold</b> <!-- comment --> <br/>",
    "\x00null \x01\x02 control \x1b[31mred\x1b[0m \x7f del \x1c\x1d\x1e\x1f seps \x80\x9f",
    "\u00c3\u00a9t\u00c3\u00a9 \u00e2\u20ac\u0153mojibake\u00e2\u20ac\u009d sch&ouml;n l&#8217;\u00c3\u00a9t\u00c3\u00a9",
    "0 1 12 123 1234 12345 3.14159 1,000,000 0x1F 1e-10 ٣٤ ४५ ⅷ",
    "in 1987 about 12,500 people; 155 % more",
    "https://www.example.org/photos?id=42&size=large#top someone@example.com",
    "C:\\path\\file.txt /usr/local/bin ~/x_y-z",
    "def area(width, height):\n    return width * height  # comment\n",
    "!!! ??? ... --- ___ *** ((())) [[]] {{}} ~~~ ``` ||| <<< >>>",
    "!@#$%^&*()_+-=[]{}|;':\",./<>?`~",
    "€ £ ¥ ₹ © ® ™ § ¶ † ‰ № ∞ ≠ ≈ → ⇒ ∀ ∃ √",
    "<|endoftext|>",
    "<|startoftext|> a dog <|endoftext|> a cat",
    "a dog.<|endoftext|> cat<|EndOfText|>dog <|endoftext|><|endoftext|>!",
    "[CLS] a dog [SEP] a cat [PAD] [MASK] [UNK] [cls]",
    "<s> a dog </s> a cat <pad> <unk> <bos> <eos> <extra_id_0>",
    "a dog</s>a cat<s>",
    "<|begin_of_text|>a dog<|end_of_text|> <|eot_id|>",
    "▁under ▁ score▁ <0x41> <0xE2>",
    "the cat\u00adsoft-hyphen co\u00adoperate",
    "unbelievablyextraordinarilylongwordwithoutanyspacesatall" * 3,
    "x" * 250,
    "aaaaaaaabbbbbbbbaaaaaaaa hahahahaha nananana",
    "ends with space ",
    "?",
    "\U0010ffff \uffff \ufffd \ue000 private",
    "ÀÈÌÒÙ ÂÊÎÔÛ ÄËÏÖÜ ÃÑÕ ÇŞ ŁØĐ",
    " ".join(["a small dog runs along the beach, it's 12 o'clock 😀"] * 12),
]  # fmt: skip


# --- vocabularies --------------------------------------------------------------------------------------------------


def byte_characters():
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    rest = [b for b in range(256) if b not in printable]
    return [*map(chr, printable), *(chr(256 + i) for i in range(len(rest)))]


def clip_merges(count=500):
    """BPE over lower-cased words, word ends marked, by counting: the most frequent pair, the first in alphabet among equals."""
    import regex

    table = dict(zip([*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)], byte_characters(), strict=False))
    table |= {b: chr(256 + i) for i, b in enumerate(b for b in range(256) if b not in table)}
    words = {}
    for word in regex.findall(r"'s|'t|'re|'ve|'m|'ll|'d|\p{L}+|\p{N}|[^\s\p{L}\p{N}]+", TEXT.lower()):
        symbols = [table[b] for b in word.encode()]
        key = (*symbols[:-1], symbols[-1] + "</w>")
        words[key] = words.get(key, 0) + 1
    merges = []
    while len(merges) < count:
        pairs = {}
        for word, n in words.items():
            for pair in itertools.pairwise(word):
                pairs[pair] = pairs.get(pair, 0) + n
        best = min(pairs, key=lambda p: (-pairs[p], p))
        merges.append(best)
        merged = {}
        for word, n in words.items():
            out, i = [], 0
            while i < len(word):
                step = 2 if word[i : i + 2] == best else 1
                out.append("".join(word[i : i + step]))
                i += step
            merged[tuple(out)] = merged.get(tuple(out), 0) + n
        words = merged
    return merges


def make_clip():
    merges = [" ".join(m) for m in clip_merges()]
    folder = HERE / "clip"
    folder.mkdir()
    single = byte_characters()
    tokens = [*single, *(c + "</w>" for c in single), *(m.replace(" ", "") for m in merges), START, END]
    vocab = {token: i for i, token in enumerate(tokens)}
    (folder / "vocab.json").write_text(json.dumps(vocab, ensure_ascii=False))
    (folder / "merges.txt").write_text("\n".join(["#version: 0.2", *merges]) + "\n")
    header = '"bpe_simple_vocab_16e6.txt#version: 0.2'
    packed = gzip.compress("\n".join([header, *merges]).encode(), mtime=0)  # no line end: the reference reads one as a merge
    (HERE / "bpe_simple_vocab_16e6.txt.gz").write_bytes(packed)


def make_bert(name, lower):
    core = tokenizers.Tokenizer(models.WordPiece(unk_token="[UNK]"))
    core.normalizer = normalizers.BertNormalizer(lowercase=lower)
    core.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    special = ["[PAD]", "[unused0]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    trainer = trainers.WordPieceTrainer(vocab_size=700, special_tokens=special, limit_alphabet=180, show_progress=False)
    core.train_from_iterator(TEXT.splitlines(), trainer)
    vocab = core.get_vocab()
    folder = HERE / name
    folder.mkdir()
    (folder / "vocab.txt").write_text("".join(f"{token}\n" for token in sorted(vocab, key=vocab.get)))
    if not lower:
        (folder / "tokenizer_config.json").write_text(json.dumps({"do_lower_case": False, "tokenizer_class": "BertTokenizer"}) + "\n")


def make_sentencepiece(name, file, **options):
    folder = HERE / name
    folder.mkdir()
    with tempfile.TemporaryDirectory() as d:
        (Path(d) / "text").write_text(TEXT)
        rules = Path(d) / "rules.tsv"  # sentencepiece's own take 240 KB in every model: a few that show the mechanism
        few = {0x3000: " ", 0xA0: " ", 0x2009: " ", 9: " ", 10: " ", 13: " ", 0xFB01: "fi", 0xFB02: "fl", 0xAD: "", 0x200B: "", 0x212B: "Å"}
        few |= {0xFF01 + i: chr(0x21 + i) for i in range(94)}
        rules.write_text("".join(f"{a:X}\t{' '.join(f'{ord(c):X}' for c in b)}\n" for a, b in few.items()))
        if options.pop("rules", False):
            options["normalization_rule_tsv"] = str(rules)
        sentencepiece.SentencePieceTrainer.Train(
            input=f"{d}/text", model_prefix=f"{d}/m", num_threads=1, minloglevel=2, max_sentence_length=10_000, **options
        )
        shutil.copy(f"{d}/m.model", folder / file)


def make_byte_level():
    """As Llama 3's: byte-level BPE, numbers in groups of three, a start token by template."""
    core = tokenizers.Tokenizer(models.BPE(ignore_merges=True))
    pattern = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
    core.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Split(Regex(pattern), behavior="isolated"), pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)]
    )
    core.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(vocab_size=900, initial_alphabet=byte_characters(), show_progress=False)
    core.train_from_iterator(TEXT.splitlines(keepends=True), trainer)
    special = ["<|begin_of_text|>", "<|end_of_text|>", "<|eot_id|>", "<|finetune_right_pad_id|>"]
    core.add_special_tokens(special)
    bos = core.token_to_id(special[0])
    template = processors.TemplateProcessing(single=f"{special[0]} $A", pair=f"{special[0]} $A $B:1", special_tokens=[(special[0], bos)])
    core.post_processor = processors.Sequence([processors.ByteLevel(trim_offsets=False), template])
    folder = HERE / "byte_level"
    folder.mkdir()
    core.save(str(folder / "tokenizer.json"), pretty=False)
    config = {
        "bos_token": {"content": special[0], "special": True, "__type": "AddedToken", "lstrip": False, "rstrip": False,
                      "normalized": False, "single_word": False},
        "eos_token": special[1], "pad_token": special[3], "tokenizer_class": "PreTrainedTokenizerFast", "model_max_length": 131072,
    }  # fmt: skip
    (folder / "tokenizer_config.json").write_text(json.dumps(config) + "\n")


# --- references ----------------------------------------------------------------------------------------------------


def openai(path):
    """open_clip's copy of OpenAI's tokenizer, with the names that OpenAI gives the two special tokens."""
    # The one file, so that a torchvision that does not go with torch is no obstacle.
    file = Path(importlib.util.find_spec("open_clip").submodule_search_locations[0], "tokenizer.py")
    spec = importlib.util.spec_from_file_location("open_clip_tokenizer", file)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    t = module.SimpleTokenizer(str(path))
    for new, old in ((START, "<start_of_text>"), (END, "<end_of_text>")):
        t.encoder[new] = t.encoder.pop(old)
        t.cache = {k: v for k, v in t.cache.items() if k != old} | {new: new}
    import regex

    special = r"<\|startoftext\|>|<\|endoftext\|>"
    t.pat = regex.compile(special + r"|'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+", regex.IGNORECASE)
    return {"plain": [t.encode(s) for s in STRINGS], "rows": t(STRINGS, LENGTH).tolist()}


def hugging_face(t, rows=True):
    t.padding_side = t.truncation_side = "right"
    out = {"plain": [t.encode(s, add_special_tokens=False) for s in STRINGS]}
    if rows:
        out["rows"] = t(STRINGS, max_length=LENGTH, padding="max_length", truncation=True)["input_ids"]
    return out


def spm(path, clean=str):
    t = sentencepiece.SentencePieceProcessor(model_file=str(path))
    return {"plain": [t.encode(clean(s)) for s in STRINGS]}


def differing(a, b):
    return [i for i, (x, y) in enumerate(zip(a["plain"], b["plain"], strict=True)) if x != y]


def siglip(folder):
    shutil.copy(HERE / "unigram" / "spiece.model", folder)
    Path(folder, "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "SiglipTokenizer", "pad_token": "</s>"}))
    return SiglipTokenizer.from_pretrained(folder)


def make_all():
    HERE.mkdir()
    make_clip()
    make_bert("bert_uncased", True)
    make_bert("bert_cased", False)
    t5 = {"pad_id": 0, "eos_id": 1, "unk_id": 2, "bos_id": -1, "character_coverage": 0.98}
    make_sentencepiece("unigram", "spiece.model", model_type="unigram", vocab_size=420, rules=True, **t5)
    llama = {"unk_id": 0, "bos_id": 1, "eos_id": 2, "pad_id": -1, "normalization_rule_name": "identity", "remove_extra_whitespaces": False}
    bpe = {
        "model_type": "bpe",
        "byte_fallback": True,
        "split_digits": True,
        "allow_whitespace_only_pieces": True,
        "character_coverage": 0.98,
    }
    make_sentencepiece("llama", "tokenizer.model", vocab_size=800, **llama, **bpe)
    gemma = {**llama, "pad_id": 0, "eos_id": 1, "bos_id": 2, "unk_id": 3, "add_dummy_prefix": False}
    symbols = {"user_defined_symbols": ["<mask>", "<start_of_turn>", "\n", "\n\n", "  "]}
    make_sentencepiece("gemma", "tokenizer.model", vocab_size=800, **gemma, **bpe, **symbols)
    make_sentencepiece("unigram_bytes", "spiece.model", model_type="unigram", vocab_size=660, rules=True, **{**t5, "byte_fallback": True})
    make_byte_level()
    clip = CLIPTokenizer.from_pretrained(HERE / "clip")
    with tempfile.TemporaryDirectory() as d:
        clip.save_pretrained(d)
        (HERE / "clip_json").mkdir()
        content = json.loads(Path(d, "tokenizer.json").read_text())
        (HERE / "clip_json" / "tokenizer.json").write_text(json.dumps(content, ensure_ascii=False))
        config = json.loads(Path(d, "tokenizer_config.json").read_text())
        (HERE / "clip_json" / "tokenizer_config.json").write_text(json.dumps(config, indent=1) + "\n")


def main():
    if not HERE.exists():  # training WordPiece gives another vocabulary every time, so what is there is kept
        make_all()
    (HERE / "strings.json").write_text(json.dumps(STRINGS, indent=0) + "\n")
    out = {
        "openai": openai(HERE / "bpe_simple_vocab_16e6.txt.gz"),
        "clip": hugging_face(CLIPTokenizer.from_pretrained(HERE / "clip")),
        "clip_json": hugging_face(CLIPTokenizer.from_pretrained(HERE / "clip_json")),
        "bert_uncased": hugging_face(BertTokenizer.from_pretrained(HERE / "bert_uncased")),
        "bert_cased": hugging_face(BertTokenizer.from_pretrained(HERE / "bert_cased")),
        "byte_level": hugging_face(PreTrainedTokenizerFast.from_pretrained(HERE / "byte_level")),
        "unigram": spm(HERE / "unigram" / "spiece.model"),
        "unigram_bytes": spm(HERE / "unigram_bytes" / "spiece.model"),
        "llama": spm(HERE / "llama" / "tokenizer.model"),
        "gemma": spm(HERE / "gemma" / "tokenizer.model"),
    }
    t5 = T5Tokenizer.from_pretrained(HERE / "unigram", extra_ids=0)
    llama = LlamaTokenizer.from_pretrained(HERE / "llama", add_bos_token=True)  # as LLaMA's tokenizer_config.json has it
    llama.pad_token = llama.eos_token
    with tempfile.TemporaryDirectory() as d:
        t = siglip(d)
        second = {"unigram": hugging_face(t5), "llama": hugging_face(llama), "siglip": hugging_face(t)}
        # SigLIP was trained on sentencepiece's ids of the cleaned text; transformers finds special tokens in it first.
        out["siglip"] = spm(HERE / "unigram" / "spiece.model", t.canonicalize_text)
    for name, other in second.items():
        out[name]["differs"] = differing(out[name], other)
        agree = [i for i in range(len(STRINGS)) if i not in out[name]["differs"]]
        out[name]["rows"] = {str(i): other["rows"][i] for i in agree}
        print(f"{name}: transformers differs from sentencepiece on {[STRINGS[i] for i in out[name]['differs']]}")
    packages = ("open_clip_torch", "ftfy", "sentencepiece", "tokenizers", "transformers")
    out = {"length": LENGTH, "versions": {p: importlib.metadata.version(p) for p in packages}, "forms": out}
    (HERE / "ids.json").write_text(json.dumps(out, separators=(",", ":")) + "\n")
    print(f"{len(STRINGS)} strings, {sum(p.stat().st_size for p in HERE.rglob('*') if p.is_file()) >> 10} KB")


if __name__ == "__main__":
    main()
