"""Documents of pictures and texts in sequence, by number, and few-shot prompts in the same form.

Picture j stands before texts[positions[j]], as in the source `documents`.
"""

import dataclasses
from collections.abc import Callable, Mapping

import numpy as np

from mmjax.core.errors import UserError, suggest
from mmjax.data.scenes import edits
from mmjax.data.scenes.captions import ordinary
from mmjax.data.scenes.describe import number, plural
from mmjax.data.scenes.paragraphs import paragraph
from mmjax.data.scenes.questions import ask, plan, questions
from mmjax.data.scenes.sample import Draws, generator, sample
from mmjax.data.scenes.world import SHAPES, Scene

PICTURES = (2, 5)  # fewest and most of a document
CONFIGS = ("objects", "relations", "counting")  # whose scenes documents show


@dataclasses.dataclass(frozen=True)
class Document:
    """`form` says what it is; `answer` is what a prompt, which ends where it would stand, asks for."""

    form: str
    texts: tuple[str, ...]
    scenes: tuple[Scene, ...]
    positions: tuple[int, ...]
    answer: str = ""


def document(split: str, index: int) -> Document:
    """Number `index` of a split; the forms take turns.

    captions    every picture followed by its caption
    questions   every picture followed by a question and its answer
    story       a paragraph on every picture, and at the end how many show some shape
    edits       a picture, an instruction, the picture after it; once or twice
    """
    rng = generator("scenes", "interleaved", split, index=index)
    form = tuple(_FORMS)[index % len(_FORMS)]
    return _FORMS[form](split, index, rng)


def few_shot(task: str, shots: int, split: str, index: int) -> Document:
    """A prompt: `shots` pictures from train with what is wanted of each, and one of the split, of which it is left out.

    Args:
      task: "caption", "question" or "count".

    Raises:
      UserError: no such task, or a negative number of shots.
    """
    if task not in _TASKS:
        raise UserError(f"few-shot task {task!r}{suggest(task, _TASKS)}")
    if shots < 0:
        raise UserError(f"a few-shot prompt of {shots} shots; expected 0 or more")
    rng = generator("scenes", "few_shot", task, split, index=index)
    first = int(rng.random() * 2**40)
    asked = [_TASKS[task]("train", first + k, rng) for k in range(shots)] + [_TASKS[task](split, index, rng)]
    texts = [f"{before}{answer}" for _, before, answer in asked[:-1]] + [asked[-1][1].rstrip()]
    return Document(f"{task}, {shots} shots", tuple(texts), tuple(s for s, _, _ in asked), tuple(range(shots + 1)), asked[-1][2])


def _scenes(split: str, index: int, d: Draws, most: int = PICTURES[1]) -> list[Scene]:
    """Several of one config, no two documents sharing any."""
    config = d.pick(CONFIGS)
    return [sample(config, split, index * PICTURES[1] + k) for k in range(d.pick(range(PICTURES[0], most + 1)))]


def _captions(split: str, index: int, rng: np.random.Generator) -> Document:
    scenes = _scenes(split, index, Draws(rng))
    texts = tuple(ordinary(scene, "objects", rng).text for scene in scenes)
    return Document("captions", texts, tuple(scenes), tuple(range(len(scenes))))


def _questions(split: str, index: int, rng: np.random.Generator) -> Document:
    scenes, texts = [], []
    for scene in _scenes(split, index, Draws(rng)):
        for one in questions(scene, rng, 1):
            scenes.append(scene)
            texts.append(f"Question: {one.text} Answer: {one.answer}")
    return Document("questions", tuple(texts), tuple(scenes), tuple(range(len(scenes))))


def _story(split: str, index: int, rng: np.random.Generator) -> Document:
    d = Draws(rng)
    scenes = _scenes(split, index, d, most=4)
    texts = [paragraph(scene, rng).text for scene in scenes]
    return Document("story", (*texts, _how_many(scenes, d)), tuple(scenes), tuple(range(len(scenes))))


def _how_many(scenes: list[Scene], d: Draws) -> str:
    """What the pictures have in common: true of all of them together, and of no single one."""
    shape = d.pick(sorted({o.shape for scene in scenes for o in scene.objects}) if d.chance(0.75) else SHAPES)
    n = sum(any(o.shape == shape for o in scene.objects) for scene in scenes)
    if n == 0:
        return f"None of these pictures shows any {plural(shape)}."
    if n == len(scenes):
        return f"All of these pictures show at least one {shape}."
    how_many = number(n)[0].capitalize()
    return f"{how_many} of these {number(len(scenes))[0]} pictures {'shows' if n == 1 else 'show'} at least one {shape}."


def _edits(split: str, index: int, rng: np.random.Generator) -> Document:
    """One or two edits: before | instruction | after, and the next."""
    d = Draws(rng)
    made = [edits.edited(split, index * PICTURES[1] + k) for k in range(d.pick((1, 2)))]
    scenes = tuple(s for e in made for s in (e.before, e.after))
    return Document(
        "edits", tuple(e.instruction.text for e in made), scenes, tuple(k + after for k in range(len(made)) for after in (0, 1))
    )


_FORMS: Mapping[str, Callable[[str, int, np.random.Generator], Document]] = {
    "captions": _captions,
    "questions": _questions,
    "story": _story,
    "edits": _edits,
}

# What a prompt asks of one picture: (scene, text before the answer, answer).
Asked = tuple[Scene, str, str]


def _ask_caption(split: str, index: int, rng: np.random.Generator) -> Asked:
    scene = sample("objects", split, index)
    return scene, "A picture of: ", ordinary(scene, "objects", rng).text


def _ask_question(split: str, index: int, rng: np.random.Generator) -> Asked:
    """The question is planned before the scene is drawn, so that answers are balanced."""
    planned, k = plan(rng), 0
    while True:
        scene = sample(CONFIGS[k % 2], split, index * 1000 + k)
        if one := ask(scene, planned, rng):
            return scene, f"Question: {one.text} Answer: ", one.answer
        k += 1


def _ask_count(split: str, index: int, rng: np.random.Generator) -> Asked:
    scene = sample("counting", split, index)
    first = scene.objects[0]
    same = sum(o.shape == first.shape and o.colour == first.colour for o in scene.objects)
    return scene, f"How many {first.colour} {plural(first.shape)} are there? ", str(same)


_TASKS: Mapping[str, Callable[[str, int, np.random.Generator], Asked]] = {
    "caption": _ask_caption,
    "question": _ask_question,
    "count": _ask_count,
}
