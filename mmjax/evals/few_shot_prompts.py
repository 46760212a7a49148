"""How a question is put with some solved examples before it, which examples, and what is read from what comes back.

Flamingo (Alayrac et al. 2022, section 3.1 and appendix A.2) and OpenFlamingo (Awadalla et al. 2023, section 3.4; its eval folder).
"""

import dataclasses
import itertools
import math
import re
from collections.abc import Mapping, Sequence

import numpy as np
from jaxtyping import Float, Int64

from mmjax.core.errors import UserError, suggest
from mmjax.data.interleave import Chunk
from mmjax.evals.few_shot_sets import Item


@dataclasses.dataclass(frozen=True)
class Style:
    """Templates with {answer}, and {question} where one is asked.

    Attributes:
      captions, questions, classes: by what is asked.
      statements: of classes whose pictures have a text (Hateful Memes).
      after: what stands between the end of an example and the next; of classes nothing.
      per_token: whether answers are ranked by log-probability a token.
    """

    captions: str
    questions: str
    classes: str
    statements: str
    after: str
    per_token: bool

    def template(self, kind: str, item: Item) -> str:
        if kind == "classes":
            return self.statements if item.question else self.classes
        return self.captions if kind == "captions" else self.questions


STYLES: Mapping[str, Style] = {
    "flamingo": Style(
        "Output: {answer}",
        "Question: {question} Answer: {answer}",
        "Output: {answer}",
        "is an image with: '{question}' written on it. Is it hateful? Answer: {answer}",
        "",
        False,
    ),
    "openflamingo": Style(
        "Output:{answer}",
        "Question:{question} Short answer:{answer}",
        "Output:{answer}",
        "is an image with: '{question}' written on it. Is it hateful? Answer:{answer}",
        "\n",
        True,
    ),
}


def style(name: str, template: str) -> Style:
    """The style of a name; with `template`, everything is asked by that.

    Raises:
      UserError: no such style, or a template without {answer}.
    """
    if name not in STYLES:
        raise UserError(f"few_shot: style is {name!r}{suggest(name, STYLES)}")
    if template and "{answer}" not in template:
        raise UserError(f"few_shot: template is {template!r}, which has no {{answer}}")
    one = STYLES[name]
    return dataclasses.replace(one, captions=template, questions=template, classes=template, statements=template) if template else one


def chunk(item: Item, kind: str, how: Style, pictures: int, answer: str | None) -> Chunk:
    """An example with its answer, or with None a question to be answered, whose template ends before the space that begins answers."""
    before, _, behind = how.template(kind, item).partition("{answer}")
    asked = before.replace("{question}", item.question)
    if answer is None:
        return Chunk(pictures, "", asked.rstrip())
    return Chunk(pictures, answer + behind, asked, after="" if kind == "classes" else how.after)


def answer_text(item: Item, kind: str, how: Style, answer: str) -> tuple[str, str]:
    """(what stands before an answer as `chunk` asks for it, the answer with the space between them)."""
    if kind == "prompts":
        return "", " " + answer
    before = how.template(kind, item).partition("{answer}")[0].replace("{question}", item.question)
    return before.rstrip(), before[len(before.rstrip()) :] + answer


# --- which examples ----------------------------------------------------------------------------------------------------


def random_examples(wanted: int, seed: int, query: int, among: Int64[np.ndarray, "S"]) -> Int64[np.ndarray, "n"]:
    """`wanted` of the examples `among` for one query: always the same for (seed, query), and the last n of n + m are those of n."""
    rng = np.random.Generator(np.random.Philox(key=np.array([seed, query], np.uint64)))
    return among[rng.permutation(len(among))[:wanted][::-1]]


def nearest_examples(query: Float[np.ndarray, "E"], examples: Float[np.ndarray, "S E"], wanted: int) -> Int64[np.ndarray, "n"]:
    """RICES (Yang et al. 2022; Flamingo, appendix A.2): the examples of the largest cosine with the query, the largest last.

    Args:
      query, examples: of length 1.
    """
    return np.argsort(-(examples @ query), kind="stable")[:wanted][::-1].astype(np.int64)


def permutations(count: int, wanted: int, seed: int, query: int) -> list[tuple[int, ...]]:
    """At most `wanted` different orders of `count` examples, the given one first; all of them where there are no more."""
    wanted = min(wanted, math.factorial(min(count, 12)))
    if count <= 4:
        orders = list(itertools.permutations(range(count)))
        rng = np.random.Generator(np.random.Philox(key=np.array([seed, query], np.uint64)))
        return [orders[0], *(orders[1 + k] for k in rng.permutation(len(orders) - 1)[: wanted - 1])]
    rng = np.random.Generator(np.random.Philox(key=np.array([seed, query], np.uint64)))
    out = {tuple(range(count)): None}
    while len(out) < wanted:
        out[tuple(rng.permutation(count).tolist())] = None
    return list(out)


# --- what is read from an answer -----------------------------------------------------------------------------------------


def cleaned(text: str, kind: str) -> str:
    """A caption without a further "Output" and without quotation marks; an answer up to what would be another question or a further
    answer after a comma, as OpenFlamingo's evaluation cuts them."""
    if kind == "captions":
        return re.split("Output", text, maxsplit=1)[0].replace('"', "").strip()
    if kind in ("vqa", "gqa", "clevr", "qa"):
        text = re.split("Question|Answer|Short", text, maxsplit=1)[0]
        return re.split(", ", text, maxsplit=1)[0].strip()
    return text.strip()


def shuffled(items: Sequence[Item]) -> list[int]:
    """For every item the record of another, of a picture that is not its own where there is one: how well guesses do."""
    records = [item.record for item in items]
    out = []
    for i, record in enumerate(records):
        others = (records[(i + k) % len(records)] for k in range(1, len(records)))
        out.append(next((other for other in others if other != record), record))
    return out
