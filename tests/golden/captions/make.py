"""Writes reference.json: what pycocoevalcap 1.2 (the COCO caption evaluation) makes of strings.json and of random captions.

    pip install pycocoevalcap==1.2 pycocotools   # and a Java runtime, 8 or newer, for its tokenizer
    python tests/golden/captions/make.py

`tokens`: string -> its tokens between spaces, punctuation dropped. `scores`: a set worked by hand and three in random words, with the
scores of the corpus and image by image. The tokenizer reads all captions as one text and looks past the end of each, so every string
is followed by a caption "x", which changes nothing before it. Running this again gives the same file.
"""

import contextlib
import importlib.metadata
import io
import json
import os
import random
import sys
from pathlib import Path

from pycocoevalcap.bleu.bleu import Bleu
from pycocoevalcap.cider.cider import Cider
from pycocoevalcap.rouge.rouge import Rouge
from pycocoevalcap.tokenizer.ptbtokenizer import PTBTokenizer

os.environ["JAVA_TOOL_OPTIONS"] = "-Dfile.encoding=UTF-8"  # else it reads in the encoding of the locale
HERE = Path(__file__).parent
# The sets: words of the vocabulary, images. Few words make repeated n-grams, which clipping is about; one image has no CIDEr.
SETS = ((4, 6), (25, 12), (10, 1))
FIXED = {
    "references": [
        ["a cat on the mat", "the cat is on a mat"],
        ["a dog runs", "the dog is running"],
        ["two birds fly", "birds are flying in the sky"],
    ],
    "hypotheses": ["a cat on a mat", "a dog running", "two birds flying in the sky"],
}


def tokens() -> dict[str, str]:
    strings = json.loads((HERE / "strings.json").read_text())
    captions = {}
    for i, string in enumerate(strings):
        captions[2 * i], captions[2 * i + 1] = [{"caption": string}], [{"caption": "x"}]
    found = PTBTokenizer().tokenize(captions)
    assert all(found[2 * i + 1] == ["x"] for i in range(len(strings)))
    return {string: " ".join(found[2 * i][0].split()) for i, string in enumerate(strings)}


def draw(vocabulary: int, images: int, rng: random.Random) -> dict[str, list]:
    words = [f"w{i}" for i in range(vocabulary)]
    caption = lambda: " ".join(rng.choice(words) for _ in range(rng.randint(1, 9)))
    references = [[caption() for _ in range(rng.randint(1, 5))] for _ in range(images)]
    return {"references": references, "hypotheses": [caption() if i != 2 else "" for i in range(images)]}


def score(data: dict[str, list]) -> dict[str, list]:
    references = dict(enumerate(data["references"]))
    hypotheses = {i: [text] for i, text in enumerate(data["hypotheses"])}
    with contextlib.redirect_stdout(io.StringIO()):
        bleu, _ = Bleu(4).compute_score(references, hypotheses, verbose=0)
    rouge, cider = (scorer.compute_score(references, hypotheses)[1] for scorer in (Rouge(), Cider()))
    return {**data, "bleu": list(map(float, bleu)), "rouge_l": rouge.tolist(), "cider_d": cider.tolist()}


def main() -> None:
    assert "mmjax" not in sys.modules
    rng = random.Random(0)
    sets = [FIXED, *(draw(*size, rng) for size in SETS)]
    made = {
        "pycocoevalcap": importlib.metadata.version("pycocoevalcap"),
        "tokens": tokens(),
        "scores": [score(data) for data in sets],
    }
    path = HERE / "reference.json"
    path.write_text(json.dumps(made, ensure_ascii=False, indent=0) + "\n")
    print(f"{path.name}: {len(made['tokens'])} strings, {path.stat().st_size / 1000:.0f} kB")


if __name__ == "__main__":
    main()
