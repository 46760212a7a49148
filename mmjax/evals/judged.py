"""The compositional score of generated pictures: the oracle's reading of each against what its prompt requires.

GenEval (Ghosh, Hajishirzi, Schmidt 2023, arXiv 2310.11513) with a reader that knows the whole world of the pictures in place of detectors.
P prompts, k pictures each.
"""

import dataclasses
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Bool, Float64, Shaped

from mmjax.data.scenes.describe import ATTRIBUTES, Description
from mmjax.data.scenes.prompts import phrase
from mmjax.evals import oracle, summary
from mmjax.evals.oracle import Reading
from mmjax.evals.prompt_set import Prompt


@dataclasses.dataclass(frozen=True)
class Judged:
    """What was seen in every picture, and whether it is what was asked for."""

    prompts: tuple[Prompt, ...]
    readings: tuple[tuple[Reading, ...], ...]  # P of k
    met: Bool[np.ndarray, "P k"]

    def of_prompts(self) -> Float64[np.ndarray, "P"]:
        """The share of each prompt's pictures that meet it."""
        return self.met.mean(1)

    def categories(self) -> dict[str, summary.Mean]:
        """Category -> accuracy, in the order in which categories occur; intervals over prompts, whose pictures are alike."""
        return {name: summary.mean(values) for name, values in self._groups().items()}

    def overall(self) -> summary.Mean:
        """GenEval's: the mean over categories, each with the same weight."""
        return summary.mean_of_means(list(self._groups().values()))

    def _groups(self) -> dict[str, Float64[np.ndarray, "n"]]:
        shares, names = self.of_prompts(), np.array([prompt.category for prompt in self.prompts])
        return {name: shares[names == name] for name in dict.fromkeys(prompt.category for prompt in self.prompts)}

    def nothing_seen(self) -> float:
        """The share of pictures in which the oracle recognises nothing at all."""
        return float(np.mean([not r.objects and r.word is None for readings in self.readings for r in readings]))

    def scalars(self) -> dict[str, float]:
        """Accuracies as one flat dict, for a training log: `overall`, one a category, and `nothing_seen`."""
        means = {"overall": self.overall(), **self.categories()}
        return {name.replace(" ", "_"): m.mean for name, m in means.items()} | {"nothing_seen": self.nothing_seen()}

    def table(self) -> str:
        """Per category and overall, in percent."""
        title = f"{len(self.prompts)} prompts, {self.met.shape[1]} picture(s) each; overall is the mean over categories"
        some, nothing = 100 * self.met.any(1).mean(), 100 * self.nothing_seen()
        last = f"some picture is right for {some:.2f} % of prompts; nothing is recognised in {nothing:.2f} % of pictures"
        return "\n".join([title, summary.render({**self.categories(), "overall": self.overall()}), last])

    def plain(self) -> dict[str, Any]:
        """All of it as JSON."""
        rows = zip(self.prompts, self.met.tolist(), self.readings, strict=True)
        return {
            "pictures": self.met.shape[1],
            "overall": dataclasses.asdict(self.overall()),
            "categories": {name: dataclasses.asdict(m) for name, m in self.categories().items()},
            "prompts_with_a_right_picture": float(self.met.any(1).mean()),
            "nothing_seen": self.nothing_seen(),
            "prompts": [
                {"id": p.id, "category": p.category, "prompt": p.text, "met": met, "seen": [seen(r) for r in readings]}
                for p, met, readings in rows
            ],
        }

    def failures(self, most: int) -> list[tuple[int, int]]:
        """(prompt, picture) of pictures that fail: of every category equally many, as far as it has so many."""
        queues: Mapping[str, list[tuple[int, int]]] = {prompt.category: [] for prompt in self.prompts}
        wrong = [np.flatnonzero(~row).tolist() for row in self.met]
        for rank in range(self.met.shape[1]):  # first one picture of every prompt
            for p, prompt in enumerate(self.prompts):
                queues[prompt.category] += [(p, k) for k in wrong[p][rank : rank + 1]]
        out: list[tuple[int, int]] = []
        for rank in range(max(map(len, queues.values()))):
            out += [queue[rank] for queue in queues.values() if rank < len(queue)]
        return sorted(out[:most])


def judge(pictures: Shaped[np.ndarray, "P k S S 3"], prompts: Sequence[Prompt], workers: int = 0) -> Judged:
    """Reads every picture and holds it against its prompt.

    Args:
      pictures: uint8, or floats 0..1, those of prompts[p] in row p.
      workers: processes that read; 0 reads here.
    """
    count, k = pictures.shape[:2]
    if count != len(prompts):
        raise ValueError(f"pictures of {count} prompts for {len(prompts)}")
    flat = oracle.read(pictures.reshape(-1, *pictures.shape[2:]), workers)
    readings = tuple(tuple(flat[p * k : (p + 1) * k]) for p in range(count))
    met = [[meets(prompt, reading) for reading in row] for prompt, row in zip(prompts, readings, strict=True)]
    return Judged(tuple(prompts), readings, np.array(met, bool).reshape(count, k))


def meets(prompt: Prompt, reading: Reading) -> bool:
    """Whether what was read meets what the prompt requires."""
    return prompt.requirement.met([o.object() for o in reading.objects], reading.word and reading.word.text)


def seen(reading: Reading, told: Collection[str] = ATTRIBUTES) -> str:
    """A reading in words: things alike in the attributes that are `told` together, "a small red circle x3"."""
    looks = [Description(**{name: getattr(o, name) for name in told}) for o in reading.objects]
    looks = [dataclasses.replace(d, outline=d.outline or None) for d in looks]  # that a thing is filled goes without saying
    parts = [phrase(d) + (f" x{n}" if n > 1 else "") for d, n in Counter(looks).items()]
    parts += [f'the word "{reading.word.text}"'] if reading.word else []
    return ", ".join(parts) or "nothing"
