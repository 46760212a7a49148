"""How easily a recogniser is misled: a wrong word written beside a thing, or a sticker that shows another thing.

Pictures of one thing each, drawn from scenes; zero-shot classification among the eight shapes or the ten colours (as `zero_shot.py`). The
typographic attack is of Goh et al. 2021 ("Multimodal neurons in artificial neural networks", distill.pub). Each attack stands beside a
control that covers as much of the picture and names no class: an unrelated word, a sticker that shows nothing.
"""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from jax.sharding import Mesh
from jaxtyping import Float, Int, Int64, UInt8

from mmjax.core.config import Group
from mmjax.core.errors import UserError, suggest
from mmjax.core.types import Params
from mmjax.data import transforms
from mmjax.data.scenes import draw
from mmjax.data.scenes.describe import Description
from mmjax.data.scenes.examples import png
from mmjax.data.scenes.prompts import phrase
from mmjax.data.scenes.sample import EDGE, GAP, KNOWN_WORDS, TRIES, Draws, background, generator, looks, put
from mmjax.data.scenes.splits import colours
from mmjax.data.scenes.world import COLOURS, SHAPES, Object, Scene, Word
from mmjax.data.source import Info, open_source, open_tokenizer
from mmjax.evals import encode
from mmjax.evals.zero_shot import ensemble

NEEDS = ("encode_image", "encode_text")
ARGUMENTS = ("split", "batch_size", "length", "transforms", "classes", "pixels", "count")
CLASSES = {"shape": SHAPES, "colour": COLOURS}
TEMPLATES = ("{}", "a picture of {}", "an image of {}", "a drawing of {}")
VIEWS = ("clean", "typographic", "typographic_control", "patch", "patch_control")
SMALLER = 4  # a sticker's side is so many times smaller than the picture's
HEIGHT, WIDTH = 0.16, 0.94  # of a written word, at most


@dataclasses.dataclass(frozen=True)
class Attack:
    """One thing, and what is put beside it. `target` is the wrong class that both attacks stand for."""

    scene: Scene
    word: Word
    neutral: Word
    sticker: Scene
    corner: tuple[float, float]  # left and top of the sticker
    label: int
    target: int


def attack(classes: str, index: int) -> Attack:
    """Attack number `index` on the classes "shape" or "colour": the same on any machine."""
    d = Draws(generator("scenes", "attacks", classes, index=index))
    names = CLASSES[classes]
    while True:
        shape, wrong = d.pick(SHAPES), d.pick(names)
        colour = d.pick(colours(shape))
        own = shape if classes == "shape" else colour
        if wrong == own:
            continue
        ink = d.pick([c for c in COLOURS if c not in (colour, wrong)])
        font = d.pick(("plain", "bold", "serif"))
        words = [
            _written(text, font, ink) for text in (wrong.upper(), d.pick([w for w in KNOWN_WORDS if w.lower() not in (*SHAPES, *COLOURS)]))
        ]
        thing = put(d, looks(d, shape, colour, d.pick(("medium", "large"))))
        beside = [_beside(d, word, thing) for word in words] if thing else []
        corner = _free_corner(d, thing) if thing else None
        if not thing or None in beside or corner is None:
            continue
        return Attack(
            Scene((thing,), background(d)),
            *beside,
            _sticker(d, classes, wrong, shape, colour),
            corner,
            names.index(own),
            names.index(wrong),
        )


def _written(text: str, font: str, ink: str) -> Word:
    """As large as it may be."""
    one = Word(text, font, ink, 0.5, 0.5, 1.0)
    return dataclasses.replace(one, height=min(HEIGHT, WIDTH / 2 / draw.word_half_box(one)[0]))


def _beside(d: Draws, word: Word, thing: Object) -> Word | None:
    """The word in a place that does not touch the thing."""
    (w, h), (tw, th) = draw.word_half_box(word), draw.half_box(thing)
    for _ in range(TRIES):
        x, y = d.between(w + EDGE, 1 - w - EDGE), d.between(h + EDGE, 1 - h - EDGE)
        if abs(x - thing.x) >= w + tw + GAP or abs(y - thing.y) >= h + th + GAP:
            return dataclasses.replace(word, x=x, y=y)
    return None


def _free_corner(d: Draws, thing: Object) -> tuple[float, float] | None:
    """Left and top of a sticker in a corner of the picture that it does not share with the thing."""
    side, (w, h) = 1 / SMALLER, draw.half_box(thing)
    for left, top in d.shuffled([(x, y) for x in (0.0, 1 - side) for y in (0.0, 1 - side)]):
        centre = left + side / 2, top + side / 2
        if abs(centre[0] - thing.x) >= side / 2 + w or abs(centre[1] - thing.y) >= side / 2 + h:
            return left, top
    return None


def _sticker(d: Draws, classes: str, wrong: str, shape: str, colour: str) -> Scene:
    """A picture of one large thing of the wrong class, otherwise unlike the one attacked; of shape and colour that occur in train."""
    if classes == "shape":
        pair = wrong, d.pick([c for c in colours(wrong) if c != colour])
    else:
        pair = d.pick([s for s in SHAPES if s != shape and wrong in colours(s)]), wrong
    return Scene((Object(*pair, "large", 0.5, 0.5, radius=0.42),), background(d))


def picture(one: Attack, view: str, pixels: int) -> UInt8[np.ndarray, "S S 3"]:
    """The attacked thing in one of VIEWS, S = `pixels`, a size of `draw.IMAGE_SIZES`."""
    if view.startswith("typographic"):
        word = one.neutral if view.endswith("control") else one.word
        return draw.render(dataclasses.replace(one.scene, word=word), pixels)
    out = draw.render(one.scene, pixels)
    if view.startswith("patch"):
        shown = dataclasses.replace(one.sticker, objects=()) if view.endswith("control") else one.sticker
        side = pixels // SMALLER
        blocks = draw.render(shown, pixels).astype(np.int64).reshape(side, SMALLER, side, SMALLER, 3)
        left, top = (round(v * pixels) for v in one.corner)
        out[top : top + side, left : left + side] = (blocks.sum((1, 3)) + SMALLER**2 // 2) // SMALLER**2
    return out


@dataclasses.dataclass(frozen=True)
class Views:
    """Every attack in every view, as a source: view by view, attack by attack."""

    classes: str
    count: int
    pixels: int
    info: Info

    def __len__(self) -> int:
        return len(VIEWS) * self.count

    def __getitem__(self, i: int) -> dict[str, Any]:
        return {"image": png(picture(attack(self.classes, i % self.count), VIEWS[i // self.count], self.pixels))}


def rates(chosen: Int64[np.ndarray, "V N"], labels: Int[np.ndarray, "N"], targets: Int[np.ndarray, "N"]) -> dict[str, float]:
    """From the chosen class of every picture in every one of the V VIEWS, fractions of the N pictures.

    Accuracy of each view; for each attack and its control `success`, where the wrong class is chosen (in clean pictures: `clean_target`),
    and `flipped`, where it is chosen among the pictures that are right when clean (left out if there are none).
    """
    right = chosen[0] == labels
    out = {"clean_accuracy": float(right.mean()), "clean_target": float((chosen[0] == targets).mean())}
    for view, picked in zip(VIEWS[1:], chosen[1:], strict=True):
        hit = picked == targets
        out |= {f"{view}_accuracy": float((picked == labels).mean()), f"{view}_success": float(hit.mean())}
        out |= {f"{view}_flipped": float(hit[right].mean())} if right.any() else {}
    return out


@dataclasses.dataclass(frozen=True)
class Attacks:
    """Classifies every view of every attack."""

    encode_image: Callable
    encode_text: Callable
    views: Views
    transform: Callable
    prompts: Int[np.ndarray, "P L"]  # class by class, template by template
    batch_size: int
    mesh: Mesh

    def classifier(self, params: Params) -> Float[np.ndarray, "K E"]:
        """The class vectors of the ensembled prompts."""
        embedded = encode.texts(self.encode_text, params, self.prompts, self.batch_size, self.mesh)
        return ensemble(embedded.reshape(-1, len(TEMPLATES), embedded.shape[-1]))

    def chosen(self, params: Params) -> Int64[np.ndarray, "V N"]:
        """The class that each picture in each view is most like, the first of several."""
        images, _, _ = encode.split(self.encode_image, params, self.views, self.transform, ("image", "_mask"), self.batch_size, self.mesh)
        return (images @ self.classifier(params).T).argmax(1).reshape(len(VIEWS), -1)

    def __call__(self, params: Params) -> dict[str, float]:
        made = [attack(self.views.classes, i) for i in range(self.views.count)]
        return rates(self.chosen(params), np.array([a.label for a in made]), np.array([a.target for a in made]))


def make(predict: Mapping[str, Callable], config: Group, mesh: Mesh, data: Group) -> Attacks:
    """Config: `classes`, "shape" or "colour"; `count` pictures of `pixels` a side in each view; `batch_size`; `length` (tokens);
    `transforms`, which see a picture alone and keep `image`; `split`, of the data's source, for its tokenizer only.

    Raises:
      UserError: other classes or sizes, no picture, no tokenizer.
    """
    kind, pixels, count = config["classes"], config["pixels"], config["count"]
    if kind not in CLASSES:
        raise UserError(f"attacks: classes is {kind!r}{suggest(str(kind), CLASSES)}")
    if pixels not in draw.IMAGE_SIZES:
        raise UserError(f"attacks: pixels is {pixels}; scenes are drawn at {', '.join(map(str, draw.IMAGE_SIZES))}")
    if count < 1:
        raise UserError(f"attacks: count is {count}, expected at least one picture")
    source = open_source(data, config["split"])
    tokenizer = open_tokenizer(source, data.tokenizer)
    if tokenizer is None:
        raise UserError(f"attacks: source '{source.info.name}' has no tokenizer; name one with data.tokenizer")
    filled = [template.format(phrase(Description(**{kind: name}))) for name in CLASSES[kind] for template in TEMPLATES]
    return Attacks(
        encode_image=encode.compile_over(mesh, predict["encode_image"]),
        encode_text=encode.compile_over(mesh, predict["encode_text"]),
        views=Views(kind, count, pixels, Info("attacks", config["split"], CLASSES[kind], TEMPLATES, None, {"image": "PNG bytes"})),
        transform=transforms.build(config["transforms"], tokenizer),
        prompts=tokenizer.encode(filled, config["length"]),
        batch_size=encode.pad_to_mesh(config["batch_size"], mesh),
        mesh=mesh,
    )
