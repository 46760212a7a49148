"""Whether a model makes a bias of its training pictures stronger: P(colour | shape) of what it draws, less that of what it saw.

The measure of Zhao et al. 2017 ("Men also like shopping", section 3), for each pair of shape and colour that the training pictures favour,
and the mean over shapes. As in Hall et al. 2022 the bias is known, on split `biased` of scenes, and the generated pictures are read by the
oracle. Only pictures whose prompt leaves colours open count.
"""

import dataclasses
from collections.abc import Iterable, Mapping, Sequence

import numpy as np
from jaxtyping import Float64

from mmjax.data.scenes.world import COLOURS, SHAPES, Object
from mmjax.evals import summary
from mmjax.evals.judged import Judged

# A pair is favoured from so many times chance on. Zhao et al. take 1; colours that a split holds out make many others a little likelier.
FAVOURED = 2.0
Shares = dict[str, Float64[np.ndarray, "n C"]]  # shape -> for each picture that has it, the share of each colour among its things


@dataclasses.dataclass(frozen=True)
class Pair:
    """P(colour | shape) in training and generated pictures; `amplification` is their difference, its interval over generated pictures."""

    training: float
    generated: float
    amplification: summary.Mean


@dataclasses.dataclass(frozen=True)
class Amplification:
    """(shape, colour) -> what became of it, and the mean over shapes; nothing where nothing is favoured."""

    pairs: Mapping[tuple[str, str], Pair]
    mean: summary.Mean | None


def shares(pictures: Iterable[Sequence[Object]]) -> Shares:
    """Of pictures' objects. A picture counts once for each shape in it, however many things of that shape it shows."""
    found: dict[str, list[Float64[np.ndarray, "C"]]] = {}
    for objects in pictures:
        for shape in {o.shape for o in objects}:
            colours = [COLOURS.index(o.colour) for o in objects if o.shape == shape]
            found.setdefault(shape, []).append(np.bincount(colours, minlength=len(COLOURS)) / len(colours))
    return {shape: np.array(found[shape]) for shape in SHAPES if shape in found}


def of_open_prompts(judged: Judged) -> list[list[Object]]:
    """What was read in the pictures whose prompt names no colour of any thing, and some thing."""
    out = []
    for prompt, readings in zip(judged.prompts, judged.readings, strict=True):
        things = prompt.requirement.things
        if things and all(thing.description.colour is None for thing in things):
            out += [[o.object() for o in reading.objects] for reading in readings]
    return out


def measure(training: Iterable[Sequence[Object]], generated: Iterable[Sequence[Object]], favoured: float = FAVOURED) -> Amplification:
    """Amplification of every pair whose share in training is at least `favoured` times chance, if its shape was generated at all."""
    known, made = shares(training), shares(generated)
    pairs: dict[tuple[str, str], Pair] = {}
    of_shapes: list[Float64[np.ndarray, "n"]] = []
    for shape in (shape for shape in known if shape in made):
        p, columns = known[shape].mean(0), made[shape]
        chosen = np.flatnonzero(p >= favoured / len(COLOURS))
        for c in chosen.tolist():
            difference = summary.mean(columns[:, c] - p[c])
            pairs[shape, COLOURS[c]] = Pair(float(p[c]), float(columns[:, c].mean()), difference)
        if len(chosen):
            of_shapes.append((columns - p)[:, chosen].sum(1))
    return Amplification(pairs, summary.mean_of_means(of_shapes) if of_shapes else None)


def plain(found: Amplification) -> dict:
    """As JSON: {"mean", "pairs": {"red circle": ...}}."""
    pairs = {f"{colour} {shape}": dataclasses.asdict(pair) for (shape, colour), pair in found.pairs.items()}
    return {"mean": found.mean and dataclasses.asdict(found.mean), "pairs": pairs}


def table(found: Amplification) -> str:
    """A line a favoured pair, in percent."""
    if found.mean is None:
        return f"amplification: no colour of a shape is {FAVOURED:g} times as frequent as chance in the training pictures"
    head = f"{'colour given shape':<20}  {'training':>8}  {'generated':>9}  {'difference':>10}  95 % interval"
    row = lambda name, a, b, m: f"{name:<20}  {a:>8}  {b:>9}  {100 * m.mean:+10.2f}  {100 * m.low:+6.2f} - {100 * m.high:+6.2f}"
    lines = [row(f"{c} {s}", f"{100 * p.training:.2f}", f"{100 * p.generated:.2f}", p.amplification) for (s, c), p in found.pairs.items()]
    return "\n".join([head, *lines, row("mean over shapes", "", "", found.mean)])
