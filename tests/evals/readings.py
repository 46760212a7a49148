"""Readings of the oracle held against the scenes they were read from."""

import dataclasses
import io
import json

import numpy as np
from PIL import Image
from scipy import ndimage

from mmjax.data.scenes import draw
from mmjax.data.scenes.examples import example
from mmjax.data.scenes.question_programs import Ambiguous, answer
from mmjax.data.scenes.sample import sample
from mmjax.evals import oracle

NEAR = 0.02  # of the picture's side


@dataclasses.dataclass
class Tally:
    """Counts over pictures. `right` objects have shape, colour, size and place; `false` things are reported and are not there."""

    objects: int = 0
    right: int = 0
    false: int = 0
    words: int = 0
    words_right: int = 0
    pictures: int = 0
    wrong: list = dataclasses.field(default_factory=list)  # pictures in which anything is, by number

    def add(self, number, scene, reading):
        left, right = list(reading.objects), 0
        for o in scene.objects:
            found = [s for s in left if same(o, s)]
            if found:
                left.remove(found[0])
                right += 1
        said = reading.word.text if reading.word else None
        word_right = scene.word is not None and said == scene.word.text
        false = len(left) + (scene.word is None and said is not None)
        self.pictures += 1
        self.objects += len(scene.objects)
        self.right += right
        self.false += false
        self.words += scene.word is not None
        self.words_right += word_right
        if false or right < len(scene.objects) or (scene.word is not None and not word_right):
            self.wrong.append(number)


def same(o, seen):
    return (o.shape, o.colour, o.size) == (seen.shape, seen.colour, seen.size) and max(abs(o.x - seen.x), abs(o.y - seen.y)) <= NEAR


def fits_size(scene, size):
    """Whether a scene is one that a picture of that size is promised for: no small things at 32, one large thing at 16."""
    if size == 32:
        return len(scene.objects) <= 2 and all(o.size != "small" for o in scene.objects)
    return size != 16 or (len(scene.objects) == 1 and scene.objects[0].size == "large" and scene.word is None)


def scenes(config, split, n, size=64):
    """(number, scene) of the first n that a picture of that size is promised for."""
    found, i = [], 0
    while len(found) < n:
        scene = sample(config, split, i)
        if fits_size(scene, size):
            found.append((i, scene))
        i += 1
    return found


def pictures(numbered, size, blur=0.0, noise=0.0):
    """uint8 [N, size, size, 3] through a Gaussian of `blur` pixels and with noise of standard deviation `noise` (of 1)."""
    out = []
    for i, scene in numbered:
        x = draw.render(scene, size) / 255.0
        x = ndimage.gaussian_filter(x, (blur, blur, 0)) if blur else x
        x = x + np.random.default_rng(i).normal(0, noise, x.shape) if noise else x
        out.append((np.clip(x, 0, 1) * 255 + 0.5).astype(np.uint8))
    return np.stack(out)


def answered(split, n, workers=0):
    """(number, question, answer from the oracle's reading of the 64-pixel picture, the set's answer) of the first n examples of qa."""
    made = [example("qa", split, i, 64) for i in range(n)]
    shown = np.stack([np.asarray(Image.open(io.BytesIO(e["image"])).convert("RGB")) for e in made])
    found = []
    for i, (e, reading) in enumerate(zip(made, oracle.read(shown, workers), strict=True)):
        try:
            said = answer(json.loads(e["program"]), [s.object() for s in reading.objects])
        except Ambiguous as a:  # a thing that was not read, or one too many
            said = f"ambiguous: {a}"
        found.append((i, e["question"], said, e["answer"]))
    return found
