"""Curation of image-text pairs by a list of queries (Radford et al. 2021, section 2.2; Xu et al. 2023, "Demystifying CLIP data").

A pair is kept for the queries its text contains, at most about `per_query` pairs a query, which flattens the head of the
distribution and leaves its tail alone. Pairs that match nothing are dropped, and so are repeated images where asked for.

The source is read once, in order; what its texts matched goes to a temporary file that later passes stream. In memory stay one
byte a pair, 8 bytes a matched pair with deduplication, 24 bytes and its text a query, and for the exact form at most
32 bytes x per_query for each query that has more pairs than that. What is kept depends on neither threads nor reading order.
"""

import contextlib
import dataclasses
import hashlib
import itertools
import json
import os
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import IO, Any

import numpy as np
from jaxtyping import Bool, Int32, Int64, UInt64

from mmjax.core.errors import UserError, suggest
from mmjax.data import phash
from mmjax.data.bad import BadSample, place
from mmjax.data.provenance import fingerprint
from mmjax.data.source import Source, first_sound, text_key

_CHUNK = 1024  # records a task
_SHOWN = 20  # queries in the head and in the tail of a report

Say = Callable[[str], None]


@dataclasses.dataclass(frozen=True)
class Plan:
    """What to keep.

    Attributes:
      queries: distinct texts, none empty.
      per_query: t, the most pairs one query brings in.
      form: "exact": each query brings in its t pairs of the smallest hash of (seed, id), or all if it has fewer.
        "probability": MetaCLIP's: each query keeps each of its pairs with probability min(1, t / count), by a hash of (seed, id, query).
        In both a pair stays if any of its queries keeps it, so a head query ends above t where tail queries bring in more of its pairs.
      match: "substring": the query stands anywhere in the text. "words": MetaCLIP's convention: query and text are padded with a space
        on either side, in the text , . ; : ? ! ` get spaces around them and tabs and line ends become spaces.
      ignore_case: compare case-folded; CLIP's and MetaCLIP's matching does not.
      text: key of a record's text or texts (a pair then matches what any of them matches); "" takes the first of `source.TEXT_KEYS` there.
      id: key of what identifies a record when shards are reordered or rewritten; "" identifies it by its place in the source.
      dedup: "none", or a hash of `phash.HASHES`: of matched pairs with the same image only the one of the smallest hash of
        (seed, id) goes on; its own text decides then.
      distance: bits in which hashes of the same image may differ.
    """

    queries: tuple[str, ...]
    per_query: int = 20_000
    form: str = "exact"
    match: str = "substring"
    ignore_case: bool = False
    seed: int = 0
    text: str = ""
    id: str = ""
    dedup: str = "none"
    distance: int = 0

    def __post_init__(self):
        for name, value, known in (
            ("form", self.form, ("exact", "probability")),
            ("match", self.match, ("substring", "words")),
            ("dedup", self.dedup, ("none", *phash.HASHES)),
        ):
            if value not in known:
                raise UserError(f"curation: {name} is {value!r}{suggest(value, known)}")
        if self.per_query < 1 or self.seed < 0 or not 0 <= self.distance <= phash.MAX_DISTANCE:
            raise UserError(
                f"curation: expected per_query >= 1, seed >= 0 and 0 <= distance <= {phash.MAX_DISTANCE}, "
                f"got {self.per_query}, {self.seed}, {self.distance}"
            )
        if not self.queries:
            raise UserError("curation: the list of queries is empty")

    def parameters(self) -> dict[str, Any]:
        """Everything but the queries themselves, of which a hash."""
        own = {f.name: getattr(self, f.name) for f in dataclasses.fields(self) if f.name != "queries"}
        listed = hashlib.sha256("\n".join(self.queries).encode("utf-8", "surrogatepass")).hexdigest()
        return {**own, "queries": len(self.queries), "queries_sha256": listed}


def read_queries(path: str | os.PathLike) -> tuple[str, ...]:
    """The queries of a file, one a line, or of a .json list (as MetaCLIP publishes its metadata); repeated and blank ones once and never.

    Raises:
      UserError: the file cannot be read or holds something else.
    """
    path = Path(path)
    try:
        content = path.read_text(encoding="utf-8")
        lines = json.loads(content) if path.suffix == ".json" else content.splitlines()
    except (OSError, ValueError) as e:
        raise UserError(f"queries '{path}' cannot be read: {e}; expected UTF-8 text, one query a line, or a JSON list of strings") from e
    if not isinstance(lines, list) or not all(isinstance(line, str) for line in lines):
        raise UserError(f"queries '{path}': expected a JSON list of strings")
    queries = tuple(dict.fromkeys(q for line in lines if (q := line.strip())))
    if not queries:
        raise UserError(f"queries '{path}' holds no query")
    return queries


# --- matching ---------------------------------------------------------------------------------------------------------------

_WORDS = str.maketrans({**{sign: f" {sign} " for sign in ",.;:?!`"}, **dict.fromkeys("\t\n\r", " ")})


def matcher(plan: Plan) -> Callable[[str], set[int]]:
    """text -> numbers of the queries it contains, all of them found in one pass (A. Aho and M. Corasick 1975).

    Raises:
      UserError: pyahocorasick is not installed, or case folding makes two queries one.
    """
    try:
        import ahocorasick
    except ImportError:
        raise UserError("curation needs the package pyahocorasick: pip install 'mmjax[curation]'") from None
    fold = str.casefold if plan.ignore_case else str
    words = plan.match == "words"
    automaton = ahocorasick.Automaton()
    for i, query in enumerate(plan.queries):
        form = f" {fold(query)} " if words else fold(query)
        if not query:
            raise UserError(f"curation: query number {i} is empty")
        if form in automaton:
            first = plan.queries[automaton.get(form)]
            raise UserError(f"curation: queries {first!r} and {query!r} are the same{' but for case' * plan.ignore_case}; drop one")
        automaton.add_word(form, i)
    automaton.make_automaton()

    def find(text: str) -> set[int]:
        text = fold(text)
        if words:
            text = f" {text} ".translate(_WORDS)
        return {i for _, i in automaton.iter(text)}

    return find


# --- keyed hashes -----------------------------------------------------------------------------------------------------------


def _mix(x: UInt64[np.ndarray, "*n"]) -> UInt64[np.ndarray, "*n"]:
    """A bijection of 64-bit words that looks random (the finalizer of SplitMix64)."""
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))


def keyed(seed: int, ids: UInt64[np.ndarray, "*n"]) -> UInt64[np.ndarray, "*n"]:
    """Hashes of (seed, id), uniform over 64-bit words; of one seed, different ids have different hashes."""
    key = np.random.SeedSequence(seed).generate_state(2, np.uint64)
    return _mix(_mix(ids * np.uint64(0x9E3779B97F4A7C15) + key[0]) ^ key[1])


def _text_hash(text: str | bytes) -> int:
    data = text.encode("utf-8", "surrogatepass") if isinstance(text, str) else text
    return int.from_bytes(hashlib.blake2b(data, digest_size=8).digest(), "little")


# --- reading the source -----------------------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class _Part:
    """What a run of records matched; R matched records, M matches."""

    rows: Int64[np.ndarray, "R"]  # places in the source
    ids: UInt64[np.ndarray, "R"]
    found: Int32[np.ndarray, "R"]  # queries a record matched, at least one
    queries: Int32[np.ndarray, "M"]
    images: UInt64[np.ndarray, "I"]  # I = R with deduplication, else 0
    unreadable: Int64[np.ndarray, "U"]  # places of records that could not be read, or decoded where that was needed


def _text_key(source: Source, plan: Plan) -> str:
    """Which key of a record holds the text, by the first sound one."""
    there, where = first_sound(source), f"curation: records of source {source.info.name!r}"
    for wanted in (*([plan.id] if plan.id else []), *(["image"] if plan.dedup != "none" else [])):
        if wanted not in there:
            raise UserError(f"{where} have no {wanted!r}{suggest(wanted, there)}")
    return text_key(there, plan.text, where)


def _texts(value: Any, place: str) -> Sequence[str]:
    if isinstance(value, str):
        return (value,)
    if isinstance(value, Sequence) and all(isinstance(text, str) for text in value):
        return value
    raise UserError(f"curation: {place} is {type(value).__name__}, expected text or several texts")


def _look(source: Source, plan: Plan, key: str, find: Callable[[str], set[int]], rows: range) -> _Part:
    """Reads records `rows`."""
    matched, ids, found, queries, images, unreadable = [], [], [], [], [], []
    for i in rows:
        try:
            record = source[i]
        except BadSample:
            unreadable.append(i)
            continue
        here: set[int] = set()
        for text in _texts(record[key], f"{key!r} of record {i}"):
            here |= find(text)
        if not here:
            continue
        if plan.dedup != "none":
            try:
                images.append(phash.hash_image(record["image"], plan.dedup))
            except BadSample:
                unreadable.append(i)
                continue
        matched.append(i)
        ids.append(_identity(record[plan.id], plan.id) if plan.id else i)
        found.append(len(here))
        queries += sorted(here)
    as_array = lambda values, dtype: np.array(values, dtype)
    return _Part(
        as_array(matched, np.int64),
        as_array(ids, np.uint64),
        as_array(found, np.int32),
        as_array(queries, np.int32),
        as_array(images, np.uint64),
        as_array(unreadable, np.int64),
    )


def _identity(value: Any, key: str) -> int:
    if isinstance(value, str | bytes):
        return _text_hash(value)
    if isinstance(value, int | np.integer) and value >= 0:
        return int(value)
    raise UserError(f"curation: {key!r} does not identify a record: expected text, bytes or a number from 0, got {value!r}")


def _parts(source: Source, plan: Plan, key: str, threads: int, progress: Callable[[int], None]) -> Iterator[_Part]:
    """The whole source, in order; `progress` is told how many records are done."""
    find, n = matcher(plan), len(source)
    tasks = (range(start, min(start + _CHUNK, n)) for start in range(0, n, _CHUNK))
    look = lambda rows: (rows.stop, _look(source, plan, key, find, rows))
    with contextlib.ExitStack() as stack:
        if threads:
            pool = stack.enter_context(ThreadPoolExecutor(threads))
            waiting = [pool.submit(look, rows) for rows in itertools.islice(tasks, 2 * threads)]
            while waiting:
                stop, part = waiting.pop(0).result()
                waiting += [pool.submit(look, rows) for rows in itertools.islice(tasks, 1)]
                yield part
                progress(stop)
        else:
            for stop, part in map(look, tasks):
                yield part
                progress(stop)


# --- choosing ---------------------------------------------------------------------------------------------------------------


class _Spill:
    """Matches on disk, in the order of the source: written once, read as often as needed."""

    def __init__(self, file: IO[bytes]):
        self._file, self.parts, self.matched = file, 0, 0

    def add(self, part: _Part) -> None:
        for array in (part.rows, part.ids, part.found, part.queries):
            np.save(self._file, array, allow_pickle=False)
        self.parts, self.matched = self.parts + 1, self.matched + len(part.rows)

    def __call__(self, keep: Bool[np.ndarray, "R"] | None = None) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
        """(rows [R], ids [R], matches [M, 2]: place among those rows and query) of the records that `keep` marks."""
        self._file.seek(0)
        done = 0
        for _ in range(self.parts):
            rows, ids, found, queries = (np.load(self._file, allow_pickle=False) for _ in range(4))
            owner = np.repeat(np.arange(len(rows)), found)
            if keep is not None:
                stay = keep[done : done + len(rows)]
                done += len(rows)
                queries, owner = queries[stay[owner]], (np.cumsum(stay) - 1)[owner[stay[owner]]]
                rows, ids = rows[stay], ids[stay]
            yield rows, ids, np.stack([owner, queries], axis=1)


class _Smallest:
    """The `limit` smallest hashes of a query with their rows; equal hashes by row."""

    def __init__(self, limit: int):
        self._limit, self._n = limit, 0
        self._hashes, self._rows = np.empty(16, np.uint64), np.empty(16, np.int64)
        self.bound = np.iinfo(np.uint64).max  # no larger hash can be among them

    def add(self, hashes: UInt64[np.ndarray, "n"], rows: Int64[np.ndarray, "n"]) -> None:
        few = hashes <= self.bound
        hashes, rows = hashes[few], rows[few]
        if self._n + len(hashes) > 2 * self._limit:
            self._cut()
        need = self._n + len(hashes)
        if need > len(self._hashes):
            room = max(need, min(2 * len(self._hashes), 2 * self._limit))
            self._hashes, self._rows = np.resize(self._hashes, room), np.resize(self._rows, room)
        self._hashes[self._n : need], self._rows[self._n : need] = hashes, rows
        self._n = need

    def rows(self) -> Int64[np.ndarray, "m"]:
        self._cut()
        return self._rows[: self._n]

    def _cut(self) -> None:
        if self._n >= self._limit:
            first = np.lexsort((self._rows[: self._n], self._hashes[: self._n]))[: self._limit]
            self._hashes[: self._limit], self._rows[: self._limit] = self._hashes[first], self._rows[first]
            self._n, self.bound = self._limit, self._hashes[self._limit - 1]


def _count(parts: Iterator, queries: int, kept: Bool[np.ndarray, "N"] | None = None) -> Int64[np.ndarray, "Q"]:
    """Pairs a query matches, of those that `kept` marks."""
    counts = np.zeros(queries, np.int64)
    for rows, _, matches in parts:
        which = matches[:, 1] if kept is None else matches[kept[rows[matches[:, 0]]], 1]
        np.add.at(counts, which, 1)
    return counts


def _exact(parts: Iterator, plan: Plan, counts: Int64[np.ndarray, "Q"], pairs: int) -> Bool[np.ndarray, "N"]:
    kept = np.zeros(pairs, bool)
    full = counts > plan.per_query
    head = {int(q): _Smallest(plan.per_query) for q in np.flatnonzero(full)}
    for rows, ids, matches in parts:
        crowded = full[matches[:, 1]]
        kept[rows[matches[~crowded, 0]]] = True
        owner, query = matches[crowded].T
        order = np.argsort(query, kind="stable")
        owner, query = owner[order], query[order]
        hashes, places = keyed(plan.seed, ids)[owner], rows[owner]
        starts = np.flatnonzero(np.diff(query, prepend=-1))
        for start, stop in itertools.pairwise([*starts.tolist(), len(query)]):
            head[int(query[start])].add(hashes[start:stop], places[start:stop])
    for smallest in head.values():
        kept[smallest.rows()] = True
    return kept


def _probability(parts: Iterator, plan: Plan, counts: Int64[np.ndarray, "Q"], pairs: int) -> Bool[np.ndarray, "N"]:
    kept = np.zeros(pairs, bool)
    chance = np.minimum(1.0, plan.per_query / np.maximum(counts, 1))
    salt = np.array([_text_hash(query) for query in plan.queries], np.uint64)  # by text, so that the list's order is immaterial
    for rows, ids, matches in parts:
        owner, query = matches.T
        draw = _mix(keyed(plan.seed, ids)[owner] ^ _mix(salt[query]))
        lucky = (draw >> np.uint64(11)) * 2.0**-53 < chance[query]
        kept[rows[owner[lucky]]] = True
    return kept


_FORMS = {"exact": _exact, "probability": _probability}


@dataclasses.dataclass(frozen=True)
class Curated:
    """A result: the places kept, ascending, and the report of `curate`."""

    kept: Int64[np.ndarray, "K"]
    report: dict[str, Any]


def curate(
    source: Source,
    plan: Plan,
    *,
    reader: Source | None = None,
    threads: int = 2,
    spill_dir: str | os.PathLike | None = None,
    progress: Callable[[int], None] = lambda done: None,
) -> Curated:
    """Which pairs of a source to keep, and counts before and after.

    Args:
      reader: a view of the same records with less in them, to read in place of `source`: without images, say, where only texts matter.
      threads: that read and decode; 0 reads in the caller's. The result is the same for any number.
      spill_dir: where the temporary file of matches lies (12 bytes a matched pair and 4 a match, without a name); default the system's.
      progress: called with the number of records read so far.

    Raises:
      UserError: an empty source, a key that records lack, or no query that matches anything.
    """
    pairs = len(source)
    if not pairs:
        raise UserError(f"curation: source {source.info.name!r} ({source.info.split}) is empty")
    reader = source if reader is None else reader
    if len(reader) != pairs:
        raise ValueError(f"the reader has {len(reader)} records, the source {pairs}")
    key, images, unreadable = _text_key(reader, plan), [], []
    with tempfile.TemporaryFile(dir=spill_dir) as file:
        spill, ids = _Spill(file), []
        for part in _parts(reader, plan, key, threads, progress):
            spill.add(part)
            unreadable += part.unreadable.tolist()
            if plan.dedup != "none":
                images.append(part.images)
                ids.append(part.ids)
        if not spill.matched:
            raise UserError(
                f"curation: none of the {pairs:,} texts of source {source.info.name!r} ({source.info.split}), {len(unreadable):,} of them "
                "unreadable, contains a query; see match and ignore_case"
            )
        stay = None
        if images:
            stay = ~phash.repeated(np.concatenate(images), keyed(plan.seed, np.concatenate(ids)), plan.distance)
        before = _count(spill(), len(plan.queries))
        counts = before if stay is None else _count(spill(stay), len(plan.queries))
        kept = _FORMS[plan.form](spill(stay), plan, counts, pairs)
        after = _count(spill(stay), len(plan.queries), kept)
    numbers = {
        "pairs": pairs,
        "unreadable": len(unreadable),
        "matched": spill.matched,
        "duplicates": 0 if stay is None else int((~stay).sum()),
        "kept": int(kept.sum()),
    }
    report = _report(source, plan, numbers, before, counts, after)
    return Curated(np.flatnonzero(kept), {**report, "unreadable_first": [place(source, i) for i in unreadable[:_SHOWN]]})


def _report(
    source: Source, plan: Plan, numbers: dict[str, int], before: np.ndarray, counts: np.ndarray, after: np.ndarray
) -> dict[str, Any]:
    """`before`: pairs a query matched; `counts`: without duplicates; `after`: of those kept."""
    order = np.lexsort((np.arange(len(before)), -before))
    there = order[before[order] > 0]
    line = lambda q: {"query": plan.queries[q], "matched": int(before[q]), "distinct": int(counts[q]), "kept": int(after[q])}
    top = len(str(before.max()))
    edges = np.array([0, *(10**k for k in range(top + 1))])
    spread = lambda c: np.histogram(c, edges)[0].tolist()
    return {
        "source": {"name": source.info.name, "split": source.info.split, "fingerprint": fingerprint(source)},
        "parameters": plan.parameters(),
        **numbers,
        "queries_matched": int((before > 0).sum()),
        "queries_over_limit": int((counts > plan.per_query).sum()),
        "matches": {"matched": int(before.sum()), "distinct": int(counts.sum()), "kept": int(after.sum())},
        "histogram": {
            "pairs_from": edges[:-1].tolist(),
            "queries_before": spread(before),
            "queries_after": spread(after),
        },
        "head": [line(q) for q in there[:_SHOWN].tolist()],
        "tail": [line(q) for q in there[_SHOWN:][-_SHOWN:].tolist()],
    }


def render(report: Mapping[str, Any]) -> str:
    """The report as a table to read."""
    p, n = report["parameters"], report["pairs"]
    share = lambda key: f"{report[key]:>15,}  {100 * report[key] / n:6.2f} %"
    source = report["source"]
    lines = [
        f"source      {source['name']} ({source['split']}), fingerprint {source['fingerprint']}",
        f"queries     {p['queries']:,}: {report['queries_matched']:,} found, {report['queries_over_limit']:,} more often than the limit",
        f"form        {p['form']}, at most {p['per_query']:,} pairs a query, seed {p['seed']}; match {p['match']}"
        + (", ignoring case" if p["ignore_case"] else ""),
        f"duplicates  {p['dedup']}" + (f", {p['distance']} bits or fewer apart" if p["dedup"] != "none" else ""),
        "",
        *(f"{key:<11}{share(key)}" for key in ("pairs", "unreadable", "matched", "duplicates", "kept")),
        "",
        "pairs a query       queries before    after",
    ]
    spread = report["histogram"]
    names = ["none", *(f"{low:,} to {10 * low - 1:,}" if low > 1 else "1 to 9" for low in spread["pairs_from"][1:])]
    lines += [f"{name:<24}{a:>10,}{b:>9,}" for name, a, b in zip(names, spread["queries_before"], spread["queries_after"], strict=True)]
    lines += [f"unreadable: {where}" for where in report["unreadable_first"]]
    for title in ("head", "tail"):
        if report[title]:
            lines += ["", f"{title:<40}     matched    distinct        kept"]
            lines += [f"{q['query'][:38]!r:<40}{q['matched']:>12,}{q['distinct']:>12,}{q['kept']:>12,}" for q in report[title]]
    return "\n".join(lines) + "\n"
