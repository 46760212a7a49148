"""Makes tokenizer.json, the one tokenizer of every config of `scenes`: `python -m mmjax.data.scenes.vocabulary`.

One for all, so that what was trained on one config reads every other.
"""

import itertools
from collections.abc import Iterator

from mmjax.data import tokenizer
from mmjax.data.scenes.builder import TOKENIZER
from mmjax.data.scenes.examples import CONFIGS, example
from mmjax.data.scenes.words import WORDS

VOCAB_SIZE = 1024
EXAMPLES = 400  # of every config but REPEATED
REPEATED = ("few", "clear")  # say nothing that "objects" does not
_TEXTS = ("captions", "question", "answer", "questions", "answers", "instruction", "program", "texts")


def texts(examples: int) -> Iterator[str]:
    """What the first examples of every config say, and every word that may be drawn."""
    for name, kind in CONFIGS.items():
        if name in REPEATED:
            continue
        for index in range(examples):
            made = example(name, kind.splits[0], index, 16)
            for key in _TEXTS:
                value = made.get(key, ())
                yield from (value,) if isinstance(value, str) else value
    yield from WORDS


def main() -> None:
    tokenizer.train(itertools.chain(texts(EXAMPLES)), VOCAB_SIZE).save(TOKENIZER)


if __name__ == "__main__":
    main()
