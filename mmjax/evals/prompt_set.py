"""The prompts of the score of generated pictures: those stored beside this file, or a file of one's own.

GenEval's categories, text rendering, and `unseen`, which names what the splits of scenes hold out; no other category does. The stored
ones are of scenes that were drawn, so each can be met. `python -m mmjax.evals.prompt_set` writes them anew.
"""

import dataclasses
import itertools
import json
from collections.abc import Iterator
from pathlib import Path

from mmjax.core.errors import UserError
from mmjax.data.scenes import splits
from mmjax.data.scenes.prompts import CATEGORIES, Requirement, parse, prompt
from mmjax.data.scenes.sample import sample
from mmjax.data.scenes.world import RELATIONS, SHAPES
from mmjax.evals import annotations

STORED = Path(__file__).with_name("prompts.jsonl")
UNSEEN = "unseen"
COUNT = 48  # prompts a category
CARRIERS = ("", "a picture of ", "an image of ", "a drawing of ")  # there are but eight single objects: each in four wordings
MOST = 6  # things to count
# Prompts of `unseen` in the form of each category.
UNSEEN_FORMS = {"colours": len(splits.HELD_OUT_PAIRS), "attribute binding": 16, "position": 16, "text rendering": 8}
_CONFIG = {"counting": "counting", "position": "relations", "text rendering": "text"}  # whose scenes are asked for; else `objects`


@dataclasses.dataclass(frozen=True)
class Prompt:
    """One prompt, with what it requires of a picture."""

    id: str
    text: str
    category: str
    requirement: Requirement


def load(path: str = "") -> tuple[Prompt, ...]:
    """The stored prompts, or those of a file: a list, or JSON lines, of {"prompt"}, perhaps with "category" (GenEval's "tag") and "id".

    Without an id a prompt has its number in five digits, as GenEval numbers its folders.

    Raises:
      UserError: no such file, an id twice, or a prompt outside the grammar, with its place and the word.
    """
    out: dict[str, Prompt] = {}
    for i, entry in enumerate(annotations.entries(path or str(STORED), 'a list of {"prompt", "category"}')):
        text = entry.get("prompt", str)
        key = entry.id("id") if "id" in entry.value else f"{i:05d}"
        if key in out:
            raise UserError(f"{entry.where}: a second prompt with id {key}; expected one each")
        try:
            requirement = parse(text)
        except UserError as e:
            raise UserError(f"{entry.where}: {e}") from None
        named = any(name in entry.value for name in ("category", "tag"))
        out[key] = Prompt(key, text, entry.text("category", "tag") if named else "all", requirement)
    return tuple(out.values())


def names_held_out(requirement: Requirement) -> bool:
    """Whether it asks for what never occurs in train: a pair of shape and colour, a relation between two shapes, or a word."""
    looks = [things.description for things in requirement.things]
    return (
        any((d.shape, d.colour) in splits.HELD_OUT_PAIRS for d in looks)
        or any((r.name, looks[r.subject].shape, looks[r.object].shape) in splits.HELD_OUT_RELATIONS for r in requirement.relations)
        or (requirement.word is not None and splits.is_held_out_word(requirement.word))
    )


def make() -> list[dict[str, str]]:
    """What the stored file holds, made anew: the same every time."""
    chosen = [(category, text) for category in CATEGORIES for text in _chosen(category, "validation", COUNT)]
    chosen += [(UNSEEN, text) for form, count in UNSEEN_FORMS.items() for text in _chosen(form, UNSEEN, count)]
    return [{"id": f"{i:05d}", "category": category, "prompt": text} for i, (category, text) in enumerate(chosen)]


def _chosen(category: str, split: str, count: int) -> list[str]:
    """Prompts of a category, all different."""
    if category == "single object":
        return [carrier + text for text in sorted(itertools.islice(_texts(category, split), len(SHAPES))) for carrier in CARRIERS]
    if category == "position":  # every relation in turn
        each = [_texts(category, split, relation) for relation in RELATIONS]
        return [next(texts) for texts in itertools.islice(itertools.cycle(each), count)]
    return list(itertools.islice(_texts(category, split), count))


def _texts(category: str, split: str, relation: str = "") -> Iterator[str]:
    """Different prompts of a category for the scenes of a split, one after another, without end."""
    seen: set[str] = set()
    for index in itertools.count():
        scene = sample(_CONFIG.get(category, "objects"), split, index)
        if (category in ("two objects", "attribute binding") and len(scene.objects) < 2) or (
            relation and scene.relations[0].name != relation
        ):
            continue
        text = prompt(scene, category)
        requirement = parse(text)
        if text not in seen and _is_fair(category, requirement) and names_held_out(requirement) == (split == UNSEEN):
            seen.add(text)
            yield text


def _is_fair(category: str, requirement: Requirement) -> bool:
    """Two things differ in shape, and in colour where colours are to be bound to them; no more are to be counted than MOST."""
    looks = [things.description for things in requirement.things]
    if len(looks) == 2:
        return looks[0].shape != looks[1].shape and (category != "attribute binding" or looks[0].colour != looks[1].colour)
    return all(things.count <= MOST for things in requirement.things)


def main() -> None:
    STORED.write_text("".join(json.dumps(one) + "\n" for one in make()))


if __name__ == "__main__":
    main()
