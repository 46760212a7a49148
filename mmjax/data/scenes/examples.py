"""What an example of each config holds: `example(config, split, index, pixels)`, the same on any machine and in any order.

Pictures are PNG bytes; scene graphs, parses and programs are JSON. Every scene can be rebuilt from its graph with `world.scene`.
"""

import dataclasses
import functools
import io
import json
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from PIL import Image

from mmjax.core.errors import UserError, suggest
from mmjax.data.scenes import draw, edits, interleaved, pairs, paragraphs, splits, video, video_language
from mmjax.data.scenes import program as drawing
from mmjax.data.scenes.captions import CONFIGS as PICTURES
from mmjax.data.scenes.captions import captions
from mmjax.data.scenes.dialogue import dialogue
from mmjax.data.scenes.grammar import Sentence
from mmjax.data.scenes.pair_captions import hard_negative_captions, swap_captions
from mmjax.data.scenes.questions import ask, plan
from mmjax.data.scenes.sample import generator, sample
from mmjax.data.scenes.world import Scene

TURNS = 4  # of a dialogue
VIDEO_QUESTIONS = 3
_MIXED = ("objects", "relations")  # whose scenes the configs of language take, in turns
_RESERVED = 4096  # scenes kept for each question that waits for one with its answer

Example = dict[str, Any]


@dataclasses.dataclass(frozen=True)
class Kind:
    """How a config's examples are made, and feature -> image | images | text | texts | integers. `splits`: those it has."""

    make: Callable[[str, int, Callable[[Scene], bytes]], Example]
    features: Mapping[str, str]
    splits: tuple[str, ...] = splits.SPLITS


def example(config: str, split: str, index: int, pixels: int) -> Example:
    """Example `index` of a split.

    Raises:
      UserError: no such config, split or picture size.
    """
    kind = CONFIGS.get(config)
    if kind is None:
        raise UserError(f"scenes have no config {config!r}{suggest(config, CONFIGS)}")
    if split not in kind.splits:
        raise UserError(f"scenes/{config} has no split {split!r}{suggest(split, kind.splits)}")
    if pixels not in draw.IMAGE_SIZES:
        raise UserError(f"scenes are drawn at {', '.join(map(str, draw.IMAGE_SIZES))} pixels, not {pixels}")
    return kind.make(split, index, lambda scene: png(draw.render(scene, pixels)))


def png(picture: np.ndarray) -> bytes:
    """PNG bytes of a picture uint8[H, W, 3]."""
    buffer = io.BytesIO()
    Image.fromarray(picture).save(buffer, "PNG", compress_level=6)
    return buffer.getvalue()


def compact(value: Any) -> str:
    """JSON without spaces."""
    return json.dumps(value, separators=(",", ":"))


def _graph(*scenes: Scene) -> str:
    return compact([s.json() for s in scenes] if len(scenes) != 1 else scenes[0].json())


def _parses(*said: Sentence) -> str:
    return compact([one.json() for one in said])


def _rng(config: str, split: str, index: int) -> np.random.Generator:
    return generator("scenes", "language", config, split, index=index)


def _mixed(split: str, index: int) -> tuple[str, Scene]:
    """Scene `index` of a stream in which configs take turns."""
    config = _MIXED[index % len(_MIXED)]
    return config, sample(config, split, index)


def _picture(config: str, split: str, index: int, render: Callable[[Scene], bytes]) -> Example:
    scene = sample(config, split, index)
    said = captions(scene, config, _rng(config, split, index))
    return {
        "image": render(scene),
        "captions": [one.text for one in said.values()],
        "parses": _parses(*said.values()),
        "scene": _graph(scene),
    }


def _swaps(split: str, index: int, render: Callable[[Scene], bytes]) -> Example:
    scenes = pairs.swap(index)
    said = swap_captions(*scenes, _rng("swaps", split, index))
    return {
        "images": [render(s) for s in scenes],
        "captions": [one.text for one in said],
        "parses": _parses(*said),
        "scenes": _graph(*scenes),
    }


def _hard_negatives(split: str, index: int, render: Callable[[Scene], bytes]) -> Example:
    scene, changed, kind = pairs.hard_negative(index)
    said = hard_negative_captions(scene, changed, kind, _rng("hard_negatives", split, index))
    return {
        "image": render(scene),
        "captions": [one.text for one in said],
        "type": kind,
        "parses": _parses(*said),
        "scenes": _graph(scene, changed),
    }


def _qa(split: str, index: int, render: Callable[[Scene], bytes]) -> Example:
    """The question's type and answer are drawn first, then scenes until one has such a question: so answers are balanced."""
    rng = _rng("qa", split, index)
    planned = plan(rng)
    for k in range(_RESERVED):
        _, scene = _mixed(split, index * _RESERVED + k)
        if one := ask(scene, planned, rng):
            break
    else:
        raise AssertionError(f"none of {_RESERVED} scenes has a question of {planned}")
    return {
        "image": render(scene),
        "question": one.text,
        "answer": one.answer,
        "type": one.type,
        "program": compact(one.program),
        "parses": _parses(one.sentence),
        "scene": _graph(scene),
    }


def _dialogue(split: str, index: int, render: Callable[[Scene], bytes]) -> Example:
    _, scene = _mixed(split, index)
    turns = dialogue(scene, _rng("dialogue", split, index), TURNS)
    return {
        "image": render(scene),
        "questions": [t.text for t in turns],
        "answers": [t.answer for t in turns],
        "programs": compact([t.program for t in turns]),
        "parses": _parses(*(t.sentence for t in turns)),
        "scene": _graph(scene),
    }


def _paragraphs(split: str, index: int, render: Callable[[Scene], bytes]) -> Example:
    _, scene = _mixed(split, index)
    said = paragraphs.paragraph(scene, _rng("paragraphs", split, index))
    return {"image": render(scene), "captions": [said.text], "parses": _parses(said), "scene": _graph(scene)}


def _program(split: str, index: int, render: Callable[[Scene], bytes]) -> Example:
    config, scene = _mixed(split, index)
    said = captions(scene, config, _rng("program", split, index))
    return {
        "image": render(scene),
        "program": drawing.program(scene),
        "captions": [one.text for one in said.values()],
        "scene": _graph(scene),
    }


def _edit(split: str, index: int, render: Callable[[Scene], bytes]) -> Example:
    one = edits.edited(split, index)
    return {
        "image": render(one.before),
        "target": render(one.after),
        "instruction": one.instruction.text,
        "type": one.change.kind,
        "edit": compact(one.change.json()),
        "parses": _parses(one.instruction),
        "scenes": _graph(one.before, one.after),
    }


def _video(split: str, index: int, render: Callable[[Scene], bytes]) -> Example:
    one, rng = video.video(split, index), _rng("video", split, index)
    said = video_language.caption(one.scene, one.motions, rng)
    asked = video_language.questions(one.scene, one.motions, rng, VIDEO_QUESTIONS)
    return {
        "frames": [render(s) for s in one.frames],
        "captions": [said.text],
        "questions": [q.text for q in asked],
        "answers": [q.answer for q in asked],
        "types": [q.type for q in asked],
        "parses": _parses(said, *(q.sentence for q in asked)),
        "motions": compact([dataclasses.asdict(m) for m in one.motions]),
        "scene": _graph(one.scene),
        "fps": compact(video.FPS),
    }


def _interleaved(split: str, index: int, render: Callable[[Scene], bytes]) -> Example:
    return _document(interleaved.document(split, index), render)


def _few_shot(split: str, index: int, render: Callable[[Scene], bytes]) -> Example:
    """Tasks and numbers of shots (0, 4, 8) take turns."""
    tasks, shots = ("caption", "question", "count"), (0, 4, 8)
    return _document(interleaved.few_shot(tasks[index % 3], shots[index // 3 % 3], split, index), render)


def _document(one: interleaved.Document, render: Callable[[Scene], bytes]) -> Example:
    return {
        "texts": list(one.texts),
        "images": [render(s) for s in one.scenes],
        "positions": list(one.positions),
        "form": one.form,
        "answer": one.answer,
        "scenes": compact([s.json() for s in one.scenes]),
    }


_CAPTIONED = {"image": "image", "captions": "texts", "parses": "text", "scene": "text"}
_DOCUMENT = {"texts": "texts", "images": "images", "positions": "integers", "form": "text", "answer": "text", "scenes": "text"}
CONFIGS: Mapping[str, Kind] = {
    **{name: Kind(functools.partial(_picture, name), _CAPTIONED) for name in PICTURES},
    "qa": Kind(
        _qa,
        {"image": "image", **dict.fromkeys(("question", "answer", "type", "program", "parses", "scene"), "text")},
        ("train", "validation", "unseen"),
    ),
    "dialogue": Kind(
        _dialogue,
        {"image": "image", "questions": "texts", "answers": "texts", "programs": "text", "parses": "text", "scene": "text"},
    ),
    "paragraphs": Kind(_paragraphs, _CAPTIONED),
    "program": Kind(_program, {"image": "image", "program": "text", "captions": "texts", "scene": "text"}),
    "edit": Kind(
        _edit,
        {"image": "image", "target": "image", **dict.fromkeys(("instruction", "type", "edit", "parses", "scenes"), "text")},
    ),
    "video": Kind(
        _video,
        {
            "frames": "images",
            **dict.fromkeys(("captions", "questions", "answers", "types"), "texts"),
            **dict.fromkeys(("parses", "motions", "scene", "fps"), "text"),
        },
    ),
    "interleaved": Kind(_interleaved, _DOCUMENT),
    "few_shot": Kind(_few_shot, _DOCUMENT, ("validation", "unseen")),
    "swaps": Kind(_swaps, {"images": "images", "captions": "texts", "parses": "text", "scenes": "text"}, ("swaps",)),
    "hard_negatives": Kind(
        _hard_negatives,
        {"image": "image", "captions": "texts", "type": "text", "parses": "text", "scenes": "text"},
        ("hard_negatives",),
    ),
}
