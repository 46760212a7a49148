"""Pictures that are known, drawn as a model that understands would draw them."""

from mmjax.data.scenes import draw
from mmjax.data.scenes.prompts import parse
from mmjax.data.scenes.world import Background, Object, Scene, Word
from mmjax.evals.prompt_set import Prompt

SIZE = 64


def prompts(*pairs):
    """Of (category, text)."""
    return tuple(Prompt(f"{i:05d}", text, category, parse(text)) for i, (category, text) in enumerate(pairs))


def thing(shape, colour, x=0.5, y=0.5, size="medium", **more):
    return Object(shape, colour, size, x, y, **more)


def picture(*things, word=None):
    return draw.render(Scene(things, Background(), word=Word(word, "plain", "blue", 0.5, 0.5, 0.2) if word else None), SIZE)
