"""Few-shot evaluation of a model that reads text with pictures in it: captions, questions, classes, with 0 to 32 solved examples before
each (Alayrac et al. 2022, section 3.1 and appendices A.2, B.1.5).

Answers are open, written by a beam search, or closed, the likeliest of a list. Prompts of 0 shots hold two examples without pictures.
B rows, P tokens of a prompt, N pictures, F frames, A answers.
"""

import contextlib
import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Bool, Float, Int

from mmjax.core.config import Group
from mmjax.core.errors import UserError, suggest
from mmjax.core.progress import Progress
from mmjax.core.types import Params
from mmjax.data import interleave
from mmjax.data import tokenizer as tokenizers
from mmjax.data.bad import BadSample
from mmjax.data.interleave import Marks, Pictures
from mmjax.data.source import open_source, open_tokenizer
from mmjax.evals import captions as caption_scores
from mmjax.evals import compositional, encode, few_shot_sets, qa_exact, vqa
from mmjax.evals import features as judges
from mmjax.evals import few_shot_prompts as prompts
from mmjax.evals.few_shot_sets import Asked, Item

NEEDS = ("generate", "log_likelihood")
ARGUMENTS = ("split", "support", "task", "shots", "batch_size", "length", "size", "picture")
OPTIONAL = {
    "files": {},
    "support_files": {},
    "classes": (),
    "closed": None,
    "retrieval": "random",
    "encoder": "",
    "support_size": 2048,
    "permutations": 1,
    "style": "flamingo",
    "template": "",
    "layout": "flamingo",
    "first": None,
    "text_only": 2,
    "frames": 1,
    "fps": 1.0,
    "max_new_tokens": None,
    "beams": 3,
    "length_penalty": None,
    "pictures": "own",
    "count": 0,
    "seed": 0,
}
SEEN = ("own", "shuffled", "none")
RETRIEVALS = ("random", "rices")
_SPARE = 8  # examples more than are shown, for those whose picture is bad
_BUCKET = 32  # prompts are padded to a multiple of it: few programs are compiled
_KEPT = 512  # pictures of examples that stay decoded


@dataclasses.dataclass(frozen=True)
class Found:
    """Of one number of shots: what was answered to each item, in the form `mmjax score` reads, and the scores."""

    predictions: list[dict[str, str]]
    scores: dict[str, float]


@dataclasses.dataclass(frozen=True)
class Said:
    """An answer; of a closed one `margin`, by how much the last of the list is likelier than the first."""

    text: str
    margin: float = 0.0


@dataclasses.dataclass(frozen=True)
class FewShot:
    """The evaluator; `found` is also what `mmjax eval` writes down."""

    kind: str
    queries: Asked
    support: Asked
    items: tuple[int, ...]  # of the queries
    shots: tuple[int, ...]
    marks: Marks
    style: prompts.Style
    show: Pictures
    write: Callable  # (params, tokens, lengths, pixels, images) -> lengths and tokens, int32[B, 1 + N]
    rank: Callable | None  # of closed answers: (params, tokens, lengths, pixels, images, answers, their lengths) -> float32[B, A]
    answers: tuple[str, ...]  # closed ones
    unrolled: Callable  # params -> params as `write` and `rank` read them
    features: Callable | None  # of RICES: params, records -> float32[N, E]
    config: Mapping[str, Any]
    mesh: Mesh
    drawn: dict = dataclasses.field(default_factory=dict)  # decoded pictures of examples

    def __call__(self, params: Params) -> dict[str, float]:
        """The scores, with the number of shots behind their names (`accuracy_4`, `cider_d_32`), but of prompts that have their own."""
        return self.scalars(self.found(params))

    def scalars(self, found: Mapping[int, Found]) -> dict[str, float]:
        """The scores of `found` under these names."""
        name = lambda score, shots: score if self.kind == "prompts" else f"{score}_{shots}"
        return {name(score, shots): value for shots, one in found.items() for score, value in one.scores.items()}

    def found(self, params: Params) -> dict[int, Found]:
        """By number of shots."""
        chosen = self._chosen(params)
        params = self.unrolled(params)  # once, not in every batch
        total = len(self.shots) * len(self.items)
        out, done = {}, 0
        with contextlib.closing(Progress(total, batch_size=1, unit="question")) as progress:
            progress.start()
            for shots in self.shots:
                said: dict[int, Said] = {}
                for i, one in self._answers(params, shots, chosen):
                    said[i] = one
                    progress.update(done + len(said))
                done += len(self.items)
                out[shots] = self._score(said)
        return out

    # --- prompts

    def _chosen(self, params: Params) -> Callable[[int, int], Int[np.ndarray, "n"]]:
        """(number of an item, how many are wanted) -> examples, with some to spare, the last the nearest."""
        c, count = self.config, len(self.support.items)
        if c["retrieval"] == "random" or not count:
            among = np.sort(np.random.default_rng(c["seed"]).permutation(count)[: c["support_size"] or count]).astype(np.int64)
            return lambda i, n: prompts.random_examples(n, c["seed"], i, among)
        ours = self.features(params, self.support)
        asked = self.features(params, self.queries, sorted({self.queries.items[i].record for i in self.items}))
        rows = {record: k for k, record in enumerate(asked[0])}
        places = {record: k for k, record in enumerate(ours[0])}
        sound = np.array([j for j, item in enumerate(self.support.items) if item.record in places], np.int64)
        examples = ours[1][[places[self.support.items[j].record] for j in sound]]

        def nearest(i: int, n: int) -> Int[np.ndarray, "n"]:
            record = self.queries.items[i].record
            return sound[prompts.nearest_examples(asked[1][rows[record]], examples, n)] if record in rows else sound[:n]

        return nearest

    def _prompt(self, i: int, record: int, shots: int, examples: Sequence[int], order: Sequence[int]) -> tuple[np.ndarray, list[Any]]:
        """Tokens, and the pictures [F, S, S, 3] that stand in them. Raises BadSample if the item's own picture is bad."""
        item, kind = self.queries.items[i], self.kind
        seen = self.config["pictures"] != "none"
        if kind == "prompts":
            return self._own_prompt(item, record, seen)
        solved = [self.support.items[examples[k]] for k in order]
        with_picture = int(bool(shots) and seen)
        chunks = [prompts.chunk(one, kind, self.style, with_picture, one.answers[0]) for one in solved]
        chunks.append(prompts.chunk(item, kind, self.style, int(seen), None))
        shown = [self._example(one) for one in solved] if with_picture else []
        if seen:
            shown += self._pictures(self.queries.gallery[record])
        return interleave.row(chunks, self.marks, open_end=True).ids, shown

    def _own_prompt(self, item: Item, record: int, seen: bool) -> tuple[np.ndarray, list[Any]]:
        own = self.queries.gallery[item.record]
        chunks = interleave.document_chunks(list(own["texts"]), [int(p) for p in own["positions"]])
        if not seen:
            chunks = [dataclasses.replace(one, pictures=0) for one in chunks]
        *solved, last = chunks
        chunks = [*(dataclasses.replace(one, after="") for one in solved), dataclasses.replace(last, text=last.text.rstrip())]
        shown = self._pictures(own) if seen else []
        if seen and record != item.record:  # the last picture, which is asked about, is another's
            shown[-1] = self._pictures(self.queries.gallery[record])[-1]
        return interleave.row(chunks, self.marks, open_end=True).ids, shown

    def _pictures(self, record: Mapping[str, Any]) -> list[Float[np.ndarray, "F S S 3"]]:
        rng = np.random.default_rng(0)
        frames = self.show.shown(record, None)
        return list(self.show(frames, len(frames), rng))

    def _example(self, item: Item) -> Float[np.ndarray, "F S S 3"]:
        if item.record not in self.drawn:
            if len(self.drawn) >= _KEPT:
                self.drawn.pop(next(iter(self.drawn)))
            (self.drawn[item.record],) = self._pictures(self.support.gallery[item.record])
        return self.drawn[item.record]

    def _sound(self, examples: Int[np.ndarray, "n"], wanted: int, shown: bool) -> list[int]:
        """The last `wanted` of the examples whose pictures can be read."""
        out: list[int] = []
        for j in reversed(examples.tolist()):
            if len(out) == wanted:
                break
            with contextlib.suppress(BadSample):
                if shown:
                    self._example(self.support.items[j])
                out.insert(0, j)
        return out

    # --- answers

    def _answers(self, params: Params, shots: int, chosen: Callable) -> Iterator[tuple[int, Said]]:
        """(number of an item, its answer); of items whose picture is bad nothing."""
        c, size = self.config, self.config["batch_size"]
        records = prompts.shuffled([self.queries.items[i] for i in self.items])
        wanted = 0 if self.kind == "prompts" else shots or c["text_only"]
        waiting: list[tuple[int, list]] = []
        for i, other in zip(self.items, records, strict=True):
            record = other if c["pictures"] == "shuffled" else self.queries.items[i].record
            examples = self._sound(chosen(i, wanted + _SPARE), wanted, bool(shots) and c["pictures"] != "none") if wanted else []
            orders = prompts.permutations(len(examples), c["permutations"], c["seed"], i)
            with contextlib.suppress(BadSample):
                waiting.append((i, [self._prompt(i, record, shots, examples, order) for order in orders]))
            if len(waiting) == size:
                yield from self._batch(params, waiting, size)
                waiting = []
        if waiting:
            yield from self._batch(params, waiting, size)

    def _batch(self, params: Params, waiting: list[tuple[int, list]], size: int) -> list[tuple[int, Said]]:
        """Answers of some items; the scores of closed ones are averaged over orders of examples."""
        numbers = [i for i, _ in waiting]
        if self.rank is None:
            written = self._run(self.write, params, numbers, [made[0] for _, made in waiting], size)
            texts = [self.marks.tokenizer.decode(row[1 : 1 + row[0]]) for row in written]
            return [(i, Said(prompts.cleaned(text, self.kind))) for i, text in zip(numbers, texts, strict=True)]
        most = max(len(made) for _, made in waiting)
        answers, lengths = self._closed(numbers)
        scores = np.zeros((len(numbers), len(self.answers)))
        for k in range(most):  # a row with fewer orders is asked its first again, and its score then left alone
            given = [made[min(k, len(made) - 1)] for _, made in waiting]
            found = self._run(self.rank, params, numbers, given, size, answers, lengths)
            fresh = np.array([[k < len(made)] for _, made in waiting])
            scores += np.where(fresh, found / np.maximum(lengths, 1) if self.style.per_token else found, 0.0)
        return [(i, Said(self.answers[int(row.argmax())], float(row[-1] - row[0]))) for i, row in zip(numbers, scores, strict=True)]

    def _closed(self, numbers: Sequence[int]) -> tuple[Int[np.ndarray, "b A N"], Int[np.ndarray, "b A"]]:
        """The ids of every answer after each item's prompt."""
        after: dict[str, list[list[int]]] = {}  # by question: of classes there is one for all
        for i in numbers:
            item = self.queries.items[i]
            if item.question not in after:
                texts = [prompts.answer_text(item, self.kind, self.style, answer) for answer in self.answers]
                after[item.question] = [interleave.split_ids(self.marks.tokenizer, *text)[1] for text in texts]
        rows = [after[self.queries.items[i].question] for i in numbers]
        width = max(len(ids) for row in rows for ids in row)
        out = np.zeros((len(rows), len(self.answers), width), np.int32)
        for row, given in zip(out, rows, strict=True):
            for place, ids in zip(row, given, strict=True):
                place[: len(ids)] = ids
        return out, np.array([[len(ids) for ids in row] for row in rows], np.int32)

    def _run(self, fn: Callable, params: Params, numbers: Sequence[int], given: list, size: int, *more: np.ndarray) -> np.ndarray:
        """`fn` of some prompts, padded to one shape."""
        longest = max(len(ids) for ids, _ in given)
        if longest > self.config["length"]:
            i = numbers[int(np.argmax([len(ids) for ids, _ in given]))]
            raise UserError(
                f"few_shot: the prompt of {self.queries.where}, id {self.queries.items[i].id}, has {longest} tokens, and length is "
                f"{self.config['length']}: raise it, or take fewer shots"
            )
        width = min(-(-longest // _BUCKET) * _BUCKET, self.config["length"])
        places = max(1, *(len(shown) for _, shown in given))
        tokens = np.full((len(given), width), self.marks.tokenizer.pad, np.int32)
        pixels = np.zeros((len(given), places, self.show.frames, self.show.size, self.show.size, 3), np.float32)
        for k, (ids, shown) in enumerate(given):
            tokens[k, : len(ids)] = ids
            for j, picture in enumerate(shown):
                pixels[k, j] = picture
        counts = [np.array([len(x) for x in each], np.int32) for each in zip(*given, strict=True)]
        arrays = (tokens, counts[0], pixels, counts[1], *more)
        return np.concatenate(list(encode.rows(fn, params, arrays, size, self.mesh)))

    def _score(self, said: Mapping[int, Said]) -> Found:
        """Official VQA accuracy of ten answers, exact match of one (and of two classes the area under the ROC curve, as is usual for
        Hateful Memes), the COCO scores of captions."""
        items, texts = [self.queries.items[i] for i in said], [one.text for one in said.values()]
        if not items:
            raise UserError(f"few_shot: no picture of {self.queries.where} can be read")
        left_out = {"bad_samples": float(len(self.items) - len(items))} if len(items) < len(self.items) else {}
        if self.kind == "captions":
            corpus, _ = caption_scores.score([list(item.answers) for item in items], texts)
            made = [{"image_id": item.id, "caption": text} for item, text in zip(items, texts, strict=True)]
            return Found(made, {**corpus, **left_out})
        right = vqa.accuracy if self.kind == "vqa" else lambda text, answers: qa_exact.exact(text, answers[0])
        made = [{"question_id": item.id, "answer": text} for item, text in zip(items, texts, strict=True)]
        values = np.array([right(text, item.answers) for item, text in zip(items, texts, strict=True)])
        scores = {"accuracy": float(values.mean())}
        if self.kind == "classes" and len(self.answers) == 2:
            second = np.array([item.answers[0] == self.answers[1] for item in items])
            scores["roc_auc"] = roc_auc(np.array([one.margin for one in said.values()]), second)
        forms = compositional.means(values, [item.types.get("form", "") for item in items])
        return Found(made, {**scores, **{f"accuracy/{name}": value for name, value in forms.items()}, **left_out})


def roc_auc(scores: Float[np.ndarray, "N"], positive: Bool[np.ndarray, "N"]) -> float:
    """How often a positive has a higher score than a negative, equal ones half; nan where there are none of either."""
    order = np.sort(scores[~positive])
    below = np.searchsorted(order, scores[positive], "left") + np.searchsorted(order, scores[positive], "right")
    return float(below.mean() / 2 / len(order)) if len(order) and len(below) else float("nan")


# --- from a config -----------------------------------------------------------------------------------------------------------


def make(predict: Mapping[str, Callable], config: Group, mesh: Mesh, data: Group) -> FewShot:
    """Config:

    task: a kind of few_shot_sets.KINDS. `split` and `support`: splits of the source with what is asked and with the examples; or
      `files` and `support_files`, the keys of few_shot_sets.of_files (`split` and `support` are then Karpathy's).
    shots: numbers of examples. `retrieval`: "random", of `support_size` of them (0: all), or "rices", by the features of `encoder`, a
      checkpoint with encode_image; "" for the run's own image_features. `seed` draws.
    style: a key of few_shot_prompts.STYLES; `template` in its place. `layout`, `first`: as of transform interleave. `text_only`: examples
      without their pictures in prompts of 0 shots, 2 as published.
    closed: answers are ranked: True for `classes`, or the answers among the examples where there are none; None: as `task` is "classes".
      `permutations`: orders of the examples over which their scores are averaged.
    max_new_tokens (None: 20 of captions, 10 of questions), `beams`, `length_penalty` (None: 0): of open ones.
    batch_size, `length` (the most tokens of a prompt), `size`, `picture`, `frames`, `fps`: of pictures, as transform interleave has them.
    pictures: "own"; "shuffled", another item's, or "none", to see what is guessed (a model of text alone takes that).
    count: so many items, drawn; 0 for all.

    Raises:
      UserError: a value that is none of these, a source or file without what the task takes, no tokenizer.
    """
    c = {**OPTIONAL, **{key: config[key] for key in config}}
    _check(c)
    queries, support, source = _sets(c, data)
    given = tokenizers.load(data.tokenizer) if data.tokenizer else source and open_tokenizer(source)
    if given is None:
        raise UserError("few_shot: there is no tokenizer beside the set; name one with data.tokenizer")
    marks = interleave.marks(given, c["layout"], c["first"])
    how = prompts.style(c["style"], c["template"])
    closed = c["task"] == "classes" if c["closed"] is None else c["closed"]
    answers = queries.classes if c["task"] == "classes" else tuple(c["classes"])
    if closed and not answers:
        answers = tuple(sorted({item.answers[0] for item in support.items}))
    try:
        show = Pictures(c["size"], c["picture"], c["frames"], c["fps"])
    except ValueError as e:
        raise UserError(f"few_shot: {e}") from e
    batch_size = encode.pad_to_mesh(c["batch_size"], mesh)
    order = np.random.default_rng(c["seed"]).permutation(len(queries.items))
    chosen = np.sort(order[: c["count"] or len(order)]).tolist()
    return FewShot(
        kind=c["task"],
        queries=queries,
        support=support,
        items=tuple(chosen),
        shots=tuple(c["shots"]),
        marks=marks,
        style=how,
        show=show,
        write=encode.compile_over(mesh, _writer(predict, c, marks)),
        rank=encode.compile_over(mesh, _ranker(predict, c)) if closed else None,
        answers=answers,
        unrolled=predict.get("unrolled", lambda params: params),
        features=_features(predict, c, show, batch_size, mesh) if c["retrieval"] == "rices" else None,
        config={**c, "batch_size": batch_size},
        mesh=mesh,
    )


def _check(c: Mapping[str, Any]) -> None:
    for key, known in (("task", few_shot_sets.KINDS), ("retrieval", RETRIEVALS), ("pictures", SEEN)):
        if c[key] not in known:
            raise UserError(f"few_shot: {key} is {c[key]!r}{suggest(str(c[key]), known)}")
    if not c["shots"] or any(isinstance(s, bool) or not isinstance(s, int) or s < 0 for s in c["shots"]):
        raise UserError(f"few_shot: shots is {c['shots']!r}, expected numbers of examples such as (0, 4, 8)")
    if c["task"] == "prompts" and (tuple(c["shots"]) != (0,) or c["permutations"] != 1):
        raise UserError("few_shot: prompts have their own examples; shots is (0,) and permutations 1")
    if c["permutations"] < 1 or (c["permutations"] > 1 and c["task"] != "classes" and not c["closed"]):
        raise UserError(f"few_shot: permutations is {c['permutations']}; scores are averaged over orders of closed answers only")
    if c["task"] == "captions" and c["closed"]:
        raise UserError("few_shot: captions are written, not chosen from a list; leave out closed")


def _sets(c: Mapping[str, Any], data: Group) -> tuple[Asked, Asked, Any]:
    """(what is asked, the examples, the source that was opened, if one was)."""
    source, kind, classes = None, c["task"], tuple(c["classes"])
    out = []
    for files, split in (("files", "split"), ("support_files", "support")):
        if len(c[files]):
            out.append(few_shot_sets.of_files(c[files], kind, c[split] or None, classes))
        elif kind == "prompts" and files == "support_files":
            out.append(out[0])  # their examples are in them
        elif files == "support_files" and not _shows_examples(c):
            out.append(dataclasses.replace(out[0], items=(), where="no examples"))  # to read a whole split for nothing takes long
        else:
            source = open_source(data, c[split])
            out.append(few_shot_sets.of_source(source, kind))
    if max(c["shots"]) > len(out[1].items):
        raise UserError(f"few_shot: {max(c['shots'])} shots, and {out[1].where} has {len(out[1].items)} examples")
    return out[0], out[1], source


def _shows_examples(c: Mapping[str, Any]) -> bool:
    """Whether anything is taken from the examples: what stands in prompts, or the answers to choose from."""
    return bool(max(c["shots"]) or (0 in c["shots"] and c["text_only"]) or (c["closed"] and not len(c["classes"])))


def _writer(predict: Mapping[str, Callable], c: Mapping[str, Any], marks: Marks) -> Callable:
    stops = [token for token in (marks.chunk, marks.end) if token is not None]
    most = c["max_new_tokens"] or (20 if c["task"] == "captions" else 10)
    penalty = 0.0 if c["length_penalty"] is None else float(c["length_penalty"])
    how = {"max_new_tokens": most, "beams": c["beams"], "length_penalty": penalty, "stop": tuple((s,) for s in stops)}

    def write(params, tokens, lengths, pixels, images):
        shown = {} if c["pictures"] == "none" else {"pixels": pixels, "images": images}
        made = predict["generate"](params, tokens, jax.random.key(0), lengths=lengths, **shown, **how)
        return jnp.concatenate([made.lengths[:, None], made.tokens], axis=1)

    return write


def _ranker(predict: Mapping[str, Callable], c: Mapping[str, Any]) -> Callable:
    def rank(params, tokens, lengths, pixels, images, answers, answer_lengths):
        shown = {} if c["pictures"] == "none" else {"pixels": pixels, "images": images}
        return predict["log_likelihood"](params, tokens, answers, answer_lengths, lengths=lengths, **shown)

    return rank


def _features(predict: Mapping[str, Callable], c: Mapping[str, Any], show: Pictures, batch_size: int, mesh: Mesh) -> Callable:
    """`(params, asked, records=None) -> (sound records, their unit-length features)`; of a video the mean of its frames'."""
    if c["encoder"]:
        judge = judges.open_features({"type": "checkpoint", "path": c["encoder"]}, "few_shot.encoder")
        picture = (("decode", {"channels": 3}), ("resize", {"size": 224}), ("normalize", {"mean": 0.0, "std": 1.0}))
        shown = Pictures(224, picture, c["frames"], c["fps"])
        fn = encode.compile_over(mesh, lambda params, x: judge.function(judge.params, x))
    elif "image_features" not in predict:
        raise UserError("few_shot: retrieval is 'rices', and the model has no image_features; name a checkpoint as encoder")
    else:
        shown, fn = show, encode.compile_over(mesh, predict["image_features"])

    def features(params: Params, asked: Asked, records: Sequence[int] | None = None) -> tuple[list[int], Float[np.ndarray, "n E"]]:
        wanted = sorted({item.record for item in asked.items}) if records is None else records
        sound, parts = [], []
        for begin in range(0, len(wanted), batch_size):
            chunk = []
            for record in wanted[begin : begin + batch_size]:
                with contextlib.suppress(BadSample):
                    frames = shown.shown(asked.gallery[record], None)[-1:]
                    chunk.append(shown(frames, 1, np.random.default_rng(0))[0])
                    sound.append(record)
            if chunk:
                flat = np.concatenate(chunk)
                found = np.concatenate(list(encode.rows(fn, params, (flat,), batch_size, mesh)))
                parts.append(found.reshape(len(chunk), shown.frames, -1).mean(1))
        if not parts:
            raise UserError(f"few_shot: no picture of {asked.where} can be read")
        return sound, encode.unit(np.concatenate(parts).astype(np.float32))

    return features
