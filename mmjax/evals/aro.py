"""ARO (Yuksekgonul et al. 2023): Visual Genome relations and attributions, and the order of words in COCO and Flickr30k captions.

Its code takes the caption of the highest score and the first of several, so a tie is decided by the place of the true caption: the
last of two for relations and attributions, where a tie is wrong; the first of five for order, where it is right.
"""

from collections.abc import Callable, Mapping, Sequence

import numpy as np
from jax.sharding import Mesh
from jaxtyping import Bool, Float

from mmjax.core.config import Group
from mmjax.core.errors import UserError
from mmjax.evals import annotations, compositional
from mmjax.evals.compositional import ARGUMENTS, NEEDS, Case, Picture

__all__ = ["ARGUMENTS", "NEEDS", "attribution", "make", "order", "read", "relation"]

# Relations that the authors' notebook drops, as symmetric, before it takes the mean that is published.
_DROPPED = """
    adjusting, attached to, between, bigger than, biting, boarding, brushing, chewing, cleaning, climbing, close to, coming from, coming out
    of, contain, crossing, dragging, draped over, drinking, drinking from, driving, driving down, driving on, eating from, eating in,
    enclosing, exiting, facing, filled with, floating in, floating on, flying, flying above, flying in, flying over, flying through,
    full of, going down, going into, going through, grazing in, growing in, growing on, guiding, hanging from, hanging in, hanging off,
    hanging over, higher than, holding onto, hugging, in between, jumping off, jumping on, jumping over, kept in, larger than, leading,
    leaning over, leaving, licking, longer than, looking in, looking into, looking out, looking over, looking through, lying next to,
    lying on top of, making, mixed with, mounted on, moving, on the back of, on the edge of, on the front of, on the other side of,
    opening, painted on, parked at, parked beside, parked by, parked in, parked in front of, parked near, parked next to, perched on,
    petting, piled on, playing, playing in, playing on, playing with, pouring, reaching for, reading, reflected on, riding on, running
    in, running on, running through, seen through, sitting behind, sitting beside, sitting by, sitting in front of, sitting near,
    sitting next to, sitting under, skiing down, skiing on, sleeping in, sleeping on, smiling at, sniffing, splashing, sprinkled on,
    stacked on, standing against, standing around, standing behind, standing beside, standing in front of, standing near, standing next
    to, staring at, stuck in, surrounding, swimming in, swinging, talking to, topped with, touching, traveling down, traveling on,
    tying, typing on, underneath, wading in, waiting for, walking across, walking by, walking down, walking next to, walking through,
    working in, working on, worn on, wrapped around, wrapped in, by, of, near, next to, with, beside, on the side of, around"""
DROPPED = frozenset(" ".join(name.split()) for name in _DROPPED.split(","))
FEWEST = 25  # cases a pair of attributes needs to count in the mean


def chosen(similarity: Float[np.ndarray, "N 1 C"], true: int) -> Bool[np.ndarray, "N"]:
    """Whether the first of the nearest captions is caption number `true`."""
    return similarity[:, 0].argmax(-1) == true


def relation(similarity: Float[np.ndarray, "N 1 2"], types: Sequence[str]) -> dict[str, float]:
    """Captions are (false, true). `accuracy` of all cases, `mean_per_relation` as published and `mean_per_relation_all`."""
    right = chosen(similarity, 1)
    by_type = compositional.means(right, types)
    published = [v for t, v in by_type.items() if t not in DROPPED]
    out = {"accuracy": float(right.mean()), "mean_per_relation_all": float(np.mean(list(by_type.values())))}
    return {**out, "mean_per_relation": float(np.mean(published))} if published else out


def attribution(similarity: Float[np.ndarray, "N 1 2"], types: Sequence[str]) -> dict[str, float]:
    """Captions are (false, true). `accuracy` of all cases; `mean_per_pair` of pairs of attributes with 25 cases or more, as published."""
    right = chosen(similarity, 1)
    by_type = compositional.means(right, types, FEWEST)
    out = {"accuracy": float(right.mean())}
    return {**out, "mean_per_pair": float(np.mean(list(by_type.values())))} if by_type else out


def order(similarity: Float[np.ndarray, "N 1 C"], types: Sequence[str]) -> dict[str, float]:
    """The first caption is the true one, the others its shuffles. `precision_at_1`."""
    return {"precision_at_1": float(chosen(similarity, 0).mean())}


def read(path: str) -> tuple[list[Case], compositional.Score]:
    """Cases of a file and the score that goes with them.

    `visual_genome_relation.json` and `visual_genome_attribution.json` as published. For order, a list of {"image", "caption_options"},
    the true caption first: the authors' code makes these with a tagger and random shuffles and publishes no file of them.

    Raises:
      UserError: another form, or cases of several kinds.
    """
    expected = (
        'ARO\'s list of {"image_path", "bbox_x", ..., "true_caption", "false_caption"} with "relation_name" or "attributes", '
        'or of {"image", "caption_options"}'
    )
    found = annotations.entries(path, expected)
    kinds = {"relation_name": (_relation, relation), "attributes": (_attribution, attribution), "caption_options": (_order, order)}
    kind = next((k for k in kinds if k in found[0].value), None)
    if kind is None:
        raise UserError(f"{found[0].where} has none of {', '.join(map(repr, kinds))}; expected {expected}")
    case, score = kinds[kind]
    cases = [case(entry) for entry in found]
    counts = [len(c.captions) for c in cases]
    odd = next((i for i, n in enumerate(counts) if n != counts[0]), None)
    if odd is not None:
        raise UserError(f"{found[odd].where} has {counts[odd]} captions, the first case {counts[0]}; expected equally many")
    return cases, score


def _boxed(entry: annotations.Entry, kind: str) -> Case:
    x, y, w, h = (float(entry.get(f"bbox_{k}", float)) for k in "xywh")
    picture = Picture(entry.get("image_path", str), (x, y, x + w, y + h))
    return Case((picture,), (entry.get("false_caption", str), entry.get("true_caption", str)), kind)


def _relation(entry: annotations.Entry) -> Case:
    return _boxed(entry, entry.get("relation_name", str))


def _attribution(entry: annotations.Entry) -> Case:
    return _boxed(entry, "_".join(entry.texts("attributes")))


def _order(entry: annotations.Entry) -> Case:
    return Case((Picture(entry.get("image", str)),), entry.texts("caption_options"))


def make(predict: Mapping[str, Callable], config: Group, mesh: Mesh, data: Group) -> compositional.Compositional:
    """See `compositional.make`; which of ARO's tests it is, the annotation file tells."""
    if not config["annotations"]:
        raise UserError("aro: annotations is ''; name one of ARO's files, and with images the folder of its pictures")
    cases, score = read(config["annotations"])
    return compositional.make(predict, config, mesh, data, read=lambda path: cases, take=None, score=score)
