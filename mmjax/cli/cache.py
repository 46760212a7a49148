"""`mmjax cache`: predict functions of a trained run over a source, stored as an array_record set that reads as any source."""

import argparse
import collections
import contextlib
import dataclasses
import hashlib
import itertools
import json
import re
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec
from ml_collections import ConfigDict

from mmjax.cli import cache_pairs, hosts
from mmjax.cli.eval import load_params
from mmjax.cli.feed import check_limits
from mmjax.cli.program import Program, assemble
from mmjax.cli.sample import complete
from mmjax.core import checkpoint_read, tree
from mmjax.core import config as config_lib
from mmjax.core.errors import UserError, suggest
from mmjax.core.progress import Progress
from mmjax.core.sharding import local_rows, put_batch
from mmjax.core.types import PREDICT, Params
from mmjax.data import loader, store, transforms
from mmjax.data.bad import KINDS
from mmjax.data.provenance import fingerprint
from mmjax.data.source import Source, open_source, open_tokenizer
from mmjax.data.stream import overlaid
from mmjax.data.tokenizer import Tokenizer
from mmjax.evals import encode
from mmjax.tasks import conditions

SHARD_BYTES = 64 << 20  # about so much goes into a file
VALUE, INDEX = "value", "index"
_INPUTS = {"images": "image", "tokens": "tokens"}  # name of an argument in core.types.PREDICT -> key of a batch
TOKENS = "tokens"
_SPLIT = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]*")


def main(args: argparse.Namespace) -> int:
    hosts.join(args)
    config = config_lib.open_workdir(args.workdir)
    if args.predict == cache_pairs.NAME and "sampler" in config.model:
        config = complete(config, args.workdir)
    config = config_lib.override(config, args.overrides)
    with config.unlocked():
        if args.component is not None:
            config.data = component(config.data, args.component)
        config.data.source = args.source or config.data.source
        config.data.split = args.split or config.data.split
    if len(config.data.mixture) or len(config.data.streams):
        raise UserError(
            "mmjax cache makes a source of a source, and the run's data is several, of which each is cached by itself and may be mixed "
            f"again: name one with --component {'|'.join(_components(config.data))}"
        )
    if not _SPLIT.fullmatch(config.data.split):
        raise UserError(f"--split {config.data.split!r} cannot name a folder; cache a split with a plain name")
    if "://" in args.out:
        raise UserError(f"--out '{args.out}': a cached set is written to a local disk; copy it from there")
    job = prepare(config, args)
    facts = run(job, Path(args.out) / config.data.split)
    if hosts.first():
        print(json.dumps(facts, indent=1))
    return 0


def _components(data: ConfigDict) -> dict[str, Any]:
    """What `--component` may be -> the keys of `data` that it sets."""
    return {str(i): keys for i, (_, keys) in enumerate(data.mixture)} or dict(data.streams.items())


def component(data: ConfigDict, which: str) -> ConfigDict:
    """The group `data` of one component of a mixture (by number) or of one stream (by name).

    Raises:
      UserError: there is no such component.
    """
    parts = _components(data)
    if which not in parts:
        known = suggest(which, parts) if parts else "; the run's data is one source"
        raise UserError(f"--component {which!r}{known}")
    return overlaid(data, parts[which], f"--component {which}", ("mixture",) if len(data.streams) else ())


class Computed(NamedTuple):
    """What is computed of an example.

    Attributes:
      predict: (params, {key of an example: rows}) -> {key of a record: rows}. INDEX is always a key: int32, places in the set.
      keys: of an example, what predict takes beside INDEX.
      keep: keys of a record of the source that are stored beside.
      plan: JSON values that say so.
    """

    predict: Callable[[Params, Mapping[str, Any]], dict[str, Any]]
    transform: Callable
    keys: tuple[str, ...]
    keep: tuple[str, ...]
    plan: dict[str, Any]


@dataclasses.dataclass(frozen=True)
class Job:
    """What is to be done.

    Attributes:
      what: is computed of every record.
      source: gone through `draws` times.
      plan: JSON values that fix what the set will hold; its `model` and `source` go into its meta.json.
      shard_size: records a file, None for about `SHARD_BYTES`.
    """

    program: Program
    what: Computed
    params: Params
    source: Source
    draws: int
    batch_size: int
    plan: dict[str, Any]
    shard_size: int | None


def prepare(config: ConfigDict, args: argparse.Namespace) -> Job:
    """Everything a run of the verb needs, checked; weights are read here.

    Raises:
      UserError: a predict function the task does not have or that takes no batch, or whatever is wrong with data and checkpoint.
    """
    program = assemble(config)
    asked = functions(args.predict, program.task.predict, config.task)
    pairs = cache_pairs.check(asked, args)
    source = open_source(config.data, config.data.split)
    tokenizer = open_tokenizer(source, config.data.tokenizer)
    what = of_pairs(program, tokenizer, args) if pairs else of_examples(program, asked, source, tokenizer, args)
    batch_size = encode.pad_to_mesh(config.batch_size, program.mesh)
    step, weights, params = load_params(program, Path(args.workdir), args.step)
    info = source.info
    plan = {
        **what.plan,
        "keep": what.keep,
        "batch_size": batch_size,
        "model": {
            "fingerprint": model_fingerprint(config, args.workdir, step, program.ema_name()),
            "workdir": str(args.workdir),
            "step": step,
            "weights": weights,
            "task": config.task,
        },
        "source": {
            "name": info.name,
            "split": info.split,
            "fingerprint": fingerprint(source),
            "classes": info.classes,
            "prompts": info.prompts,
        },
    }
    draws = args.draws or 1
    return Job(program, what, params, cache_pairs.Repeated(source, draws), draws, batch_size, plan, args.shard_size)


def of_examples(
    program: Program, asked: Mapping[str, str], source: Source, tokenizer: Tokenizer | None, args: argparse.Namespace
) -> Computed:
    """What functions of examples make, of `functions`."""
    config, predict = program.config, program.task.predict
    takes = {out: args.input or input_key(name) for out, name in asked.items()}
    keys = tuple(dict.fromkeys(takes.values()))
    specs = {key: chain(config, key, args) for key in keys}
    transform = _Inputs({key: input_of(key, specs[key], tokenizer, args.captions) for key in keys})
    keep = _words(args.keep)
    given = tuple(key for key in keep if key in keys and key not in source.info.features)  # stored as the functions see it
    run = together({out: (predict[name], takes[out]) for out, name in asked.items()}, given, args.captions)
    alone = lambda found: next(iter(found.values())) if list(asked) == [VALUE] else found
    plan = {
        "predict": alone(asked),
        "input": alone(takes),
        "transforms": specs[keys[0]] if len(keys) == 1 else specs,
        **({"captions": args.captions} if args.captions else {}),
    }
    return Computed(run, transform, keys, tuple(key for key in keep if key not in given), plan)


def of_pairs(program: Program, tokenizer: Tokenizer | None, args: argparse.Namespace) -> Computed:
    """What predict function `pairs` makes, of all that the model is shown."""
    keys, seed = conditions.names(program.task.batch_spec), args.seed or 0
    specs = chain(program.config, "", args, training=True)
    transform = transforms.build((*specs, ("keep", {"keys": keys})), tokenizer, "transforms of mmjax cache")
    predict = cache_pairs.seeded(program.task.predict[cache_pairs.NAME], keys, seed, INDEX)
    plan = {"predict": cache_pairs.NAME, "input": keys, "transforms": specs, "seed": seed, "draws": args.draws or 1}
    return Computed(predict, transform, keys, _words(args.keep), plan)


def _words(given: str) -> tuple[str, ...]:
    return tuple(dict.fromkeys(word for word in given.split(",") if word))


def functions(words: str, table: Mapping[str, Callable], task: str) -> dict[str, str]:
    """Key of a record -> the predict function that fills it, of `NAME` (the key is then VALUE) or `NAME:KEY,NAME:KEY,...`.

    Raises:
      UserError: a function the task does not have, or a key twice.
    """
    out: dict[str, str] = {}
    parts = [word for word in words.split(",") if word]
    for word in parts:
        name, _, key = word.partition(":")
        key = key or (VALUE if len(parts) == 1 else name)
        if name not in table:
            raise UserError(f"--predict {name!r}: task '{task}' has no such function{suggest(name, table)}")
        if key in out or key == INDEX:
            raise UserError(f"--predict {words!r}: the key {key!r} is taken; name another after a colon")
        out[key] = name
    if not out:
        raise UserError(f"--predict {words!r} names no function; task '{task}' has {', '.join(sorted(table))}")
    return out


def input_of(key: str, specs: Sequence[Any], tokenizer: Tokenizer | None, captions: int) -> Callable:
    """The transform that makes one input; of texts, where `captions` are asked for, so many rows of tokens.

    Raises:
      UserError: captions of what is no text.
    """
    chain = transforms.build((*specs, ("keep", {"keys": (key,)})), tokenizer, "transforms of mmjax cache")
    if not captions or key != TOKENS:
        return chain
    rows = [step for step in chain.steps if isinstance(step, transforms.Tokenize) and step.target == key]
    if captions < 1 or len(rows) != 1:
        raise UserError(f"--captions {captions}: expected at least 1, and transforms that tokenize a caption")
    return transforms.TokenizeAll(rows[0], captions)


@dataclasses.dataclass(frozen=True)
class _Inputs:
    """Each input by its own transform."""

    parts: Mapping[str, Callable]

    def __call__(self, example: Mapping[str, Any], rng: np.random.Generator) -> dict[str, Any]:
        return {key: part(example, rng)[key] for key, part in self.parts.items()}


def together(parts: Mapping[str, tuple[Callable, str]], given: Sequence[str], captions: int) -> Callable:
    """One function of all: key -> (predict function, its input), and the inputs `given` as they are. Of `captions` rows of tokens an
    example, each has its own result."""

    def rows(fn: Callable, key: str) -> Callable:
        def each(params: Params, x: Any) -> Any:
            out = fn(params, x.reshape(-1, *x.shape[2:]))
            return jax.tree.map(lambda y: y.reshape(*x.shape[:2], *y.shape[1:]), out)

        return each if captions and key == TOKENS else fn

    run = {out: (rows(fn, key), key) for out, (fn, key) in parts.items()}
    return lambda params, x: {**{out: fn(params, x[key]) for out, (fn, key) in run.items()}, **{key: x[key] for key in given}}


def input_key(predict: str) -> str:
    """The key of a batch that a predict function takes, by its signature in `core.types.PREDICT`.

    Raises:
      UserError: it takes no batch of examples, or more than one.
    """
    signature = re.sub(r"\[.*?\]", "", PREDICT[predict].split(" -> ")[0])
    arguments = [words.split()[0] for words in signature.strip("()").split(", ")[1:]]
    if not arguments:
        raise UserError(f"--predict {predict!r} takes no examples, there is nothing to cache; its signature: {PREDICT[predict]}")
    if len(arguments) > 1:
        raise UserError(f"--predict {predict!r} takes more than an example, it cannot be cached; its signature: {PREDICT[predict]}")
    (argument,) = arguments
    return _INPUTS.get(argument, argument)


def chain(config: ConfigDict, key: str, args: argparse.Namespace, training: bool = False) -> tuple[Any, ...]:
    """The transforms that make the input, without the 'keep' steps: those asked for, else with `training` those of training, else none
    that draws at random.

    That is `data.transforms` where the command line sets it; --transforms: "train" (one random draw a record, the same every time) or
    the name of an evaluation; else for texts the first caption and the tokenizer of training, for anything else the transforms of
    the first evaluation that has some.

    Raises:
      UserError: no such evaluation, or none at all.
    """
    own, held = config.data.transforms, {n: g.transforms for n, g in config.evals.items() if "transforms" in g}
    if args.transforms and args.transforms not in ("train", *held):
        raise UserError(f"--transforms {args.transforms!r}{suggest(args.transforms, ('train', *held))}")
    texts = [s for s in own if s[0] == "tokenize" and s[1].get("target", "tokens") == key]
    if any(word.startswith("data.transforms=") for word in args.overrides) or (args.transforms or ("train" if training else "")) == "train":
        specs = own
    elif args.transforms:
        specs = held[args.transforms]
    elif texts:
        specs = [("pick_caption", {"index": 0}) for s in own if s[0] == "pick_caption"] + texts
    elif held:
        specs = next(iter(held.values()))
    else:
        raise UserError("the run has no evaluation whose transforms to use; give --transforms train, or data.transforms='((...),)'")
    return tuple(s for s in specs if s[0] != "keep")


def model_fingerprint(config: ConfigDict, workdir: str | Path, step: int, average: str | None) -> str:
    """16 hex digits of a model: its config and the checksums of the weights that evaluations use. Moving a run changes nothing."""
    directory = checkpoint_read.absolute(workdir) / "checkpoints"

    def checksums() -> dict[str, str]:
        manifest = checkpoint_read.read_manifest(directory / str(step))
        frozen = checkpoint_read.frozen_manifest(directory, manifest)["arrays"] if manifest["frozen"] else {}
        found = {path: a["checksum"] for path, a in frozen.items()}
        for below in ("params/", *([f"ema/{average}/"] if average else [])):
            found |= {p.removeprefix(below): a["checksum"] for p, a in manifest["arrays"].items() if p.startswith(below)}
        return found

    made = {k: config[k].to_dict() if isinstance(config[k], ConfigDict) else config[k] for k in ("task", "model", "dtype", "lora")}
    body = {"config": made, "arrays": checkpoint_read.on_first(checksums)}
    return hashlib.sha256(json.dumps(body, sort_keys=True).encode()).hexdigest()[:16]


def run(job: Job, folder: Path) -> dict[str, Any]:
    """Computes what is missing of the set in `folder` and returns facts about it; called on every host, the first one writes."""
    features = describe(job)
    per_shard = shard_size(job, features)
    writers: list[store.Writer] = []

    def begin() -> list[int]:
        writers.append(store.Writer(folder, job.plan, len(job.source), per_shard))
        return writers[0].missing

    missing = checkpoint_read.on_first(begin)
    total = -(-len(job.source) // job.batch_size)
    done = total - sum(_batches(job, k, per_shard) for k in missing)
    began, first = time.perf_counter(), hosts.first()
    progress = Progress(total, batch_size=job.batch_size, enabled=first, unit="batch")
    with contextlib.closing(progress):
        progress.start(done)
        if done and first:
            progress.say(f"'{folder}': {done} of {total} batches are there already")
        for k, records in _shards(job, missing, per_shard, lambda n: progress.update(done + n), progress.say if first else _silent):
            if first:
                writers[0].write(k, records)
            else:
                collections.deque(records, maxlen=0)
    seconds = time.perf_counter() - began
    if first:
        tokenizer = job.source.info.tokenizer
        meta = {**job.plan, "features": {key: words for key, (words, _) in features.items()}}
        writers[0].finish(meta, tokenizer if tokenizer is not None and Path(tokenizer).is_file() else None)
        words = open_tokenizer(job.source, job.program.config.data.tokenizer)
        if TOKENS in meta["features"] and words is not None:
            store.write_words(folder, TOKENS, words)
    computed = sum(len(range(k * per_shard, min((k + 1) * per_shard, len(job.source)))) for k in missing)
    return {
        "set": str(folder),
        "records": len(job.source),
        "fingerprint": job.plan["model"]["fingerprint"],
        "features": {key: words for key, (words, _) in features.items()},
        "computed": computed,
        "seconds": round(seconds, 2),
        "examples_per_second": round(computed / max(seconds, 1e-9), 1),
    }


def _silent(message: str) -> None:
    pass


def _batches(job: Job, k: int, per_shard: int) -> int:
    """Batches in shard k."""
    return -(-(min((k + 1) * per_shard, len(job.source)) - k * per_shard) // job.batch_size)


def _reads(job: Job) -> dict[str, Any]:
    return {"batch_size": job.batch_size, "rows": local_rows(job.batch_size, job.program.mesh)}


def describe(job: Job) -> dict[str, tuple[str, int]]:
    """key -> (what a record of the set holds, in words; its bytes, 0 where they vary). Reads the first batch and holds it against the
    model.

    Raises:
      UserError: the input is not what the task expects, or a key to keep is not in the records.
    """
    reading = loader.eval_batches(job.source, job.what.transform, **_reads(job), threads=0, prefetch=1, say=_silent)
    with contextlib.closing(reading) as probe:
        batch = next(iter(probe))
    inputs = {key: batch[key] for key in job.what.keys}
    rows = lambda key, x: x.reshape(-1, x.shape[-1]) if key == TOKENS else x  # of every caption
    for key, x in inputs.items():
        spec = job.program.task.batch_spec.get(key)
        if spec is not None:
            x = rows(key, x)
            loader.check({key: x}, {key: jax.ShapeDtypeStruct((len(x), *spec.shape[1:]), spec.dtype)}, job.source.info.name)
    whole = {key: jax.ShapeDtypeStruct((job.batch_size, *x.shape[1:]), x.dtype) for key, x in inputs.items()}
    out = jax.eval_shape(job.what.predict, job.params, {**whole, INDEX: jax.ShapeDtypeStruct((job.batch_size,), np.int32)})
    words = {}
    for name, value in _flat(out).items():
        if not value.shape or value.shape[0] != job.batch_size:
            raise UserError(f"--predict {job.plan['predict']!r}: {name} is {value.shape}, no row an example; it cannot be cached")
        shape, dtype = value.shape[1:], np.dtype(value.dtype)
        words[name] = (f"{dtype.name}[{', '.join(map(str, shape))}]", int(np.prod(shape)) * dtype.itemsize)
    held = job.source.info.features
    for key in job.what.keep:
        if key in words or key == INDEX:
            raise UserError(f"--keep {key!r}: a cached record has a {key!r} of its own")
        if held and key not in held:
            raise UserError(f"--keep {key!r}: records of source '{job.source.info.name}' have no such key{suggest(key, held)}")
        words[key] = (held.get(key, ""), 0)
    return {**words, INDEX: ("int64[], the record's place in the source it was made from", 8)}


def shard_size(job: Job, features: Mapping[str, tuple[str, int]]) -> int:
    """Records a file: whole batches, so that a resumed set is made of the same batches."""
    wanted = job.shard_size or SHARD_BYTES // sum(size for _, size in features.values())
    return max(1, wanted // job.batch_size) * job.batch_size


def _flat(out: Any) -> dict[str, Any]:
    return tree.flatten(out)


def _shards(
    job: Job, missing: Sequence[int], per_shard: int, progress: Callable[[int], None], say: Callable[[str], None]
) -> Iterator[tuple[int, Iterator[dict[str, Any]]]]:
    """(shard, its records) of the missing shards, read ahead over each unbroken run of them."""
    finished = 0
    for _, group in itertools.groupby(enumerate(missing), lambda pair: pair[1] - pair[0]):
        shards = [k for _, k in group]
        count = sum(_batches(job, k, per_shard) for k in shards)
        with contextlib.closing(computed(job, shards[0] * per_shard, count, say)) as batches:
            for k in shards:
                here = _batches(job, k, per_shard)

                def records(here: int = here, base: int = finished, batches: Iterator = batches) -> Iterator[dict[str, Any]]:
                    for n, batch in enumerate(itertools.islice(batches, here)):
                        yield from batch
                        progress(base + n + 1)

                yield k, records()
                finished += here


def computed(job: Job, start: int, count: int, say: Callable[[str], None]) -> Iterator[list[dict[str, Any]]]:
    """The records of `count` batches from record `start` on; the device computes a batch while the one before is written."""
    mesh, limits = job.program.mesh, {k: v for k, v in job.program.task.limits.items() if k in job.what.keys}
    fn, mine = encode.compile_over(mesh, job.what.predict), local_rows(job.batch_size, mesh)
    whole = jax.jit(lambda x: x, out_shardings=NamedSharding(mesh, PartitionSpec()))
    data = job.program.config.data
    options = {"workers": data.workers, "threads": data.threads, "prefetch": data.prefetch, "say": say}
    waiting: collections.deque = collections.deque()
    with contextlib.closing(loader.eval_batches(job.source, job.what.transform, start=start, **_reads(job), **options)) as batches:
        for at, batch in zip(range(count), batches, strict=False):
            check_limits(batch, limits, job.source.info.name)
            put = lambda x: put_batch(x, job.batch_size, mesh)
            first = start + at * job.batch_size
            places = (first + mine).astype(np.int32)
            made = fn(job.params, {**{key: put(batch[key]) for key in job.what.keys}, INDEX: put(places)})
            marks = batch["_mask"], batch["_bad"]  # of this process's rows
            waiting.append((first, made, marks if jax.process_count() == 1 else whole(tuple(map(put, marks)))))
            if len(waiting) > 1:
                yield _records(job, *waiting.popleft())
        while waiting:
            yield _records(job, *waiting.popleft())


def _records(job: Job, first: int, made: Any, marks: Any) -> list[dict[str, Any]]:
    values, (mask, bad) = {k: np.asarray(v) for k, v in _flat(made).items()}, jax.device_get(marks)
    out, once = [], len(job.source) // job.draws
    for row in range(min(job.batch_size, len(job.source) - first)):
        place = {INDEX: np.int64((first + row) % once)}
        if mask[row] == 0:
            out.append({store.BAD: KINDS[int(bad[row].argmax())], **place})
            continue
        kept = _kept(job, first + row) if job.what.keep and hosts.first() else {}
        out.append({**{key: value[row] for key, value in values.items()}, **kept, **place})
    return out


def _kept(job: Job, i: int) -> dict[str, Any]:
    record = job.source[i]
    for key in job.what.keep:
        if key not in record:
            raise UserError(f"--keep {key!r}: record {i} of source '{job.source.info.name}' has no such key{suggest(key, record)}")
    return {key: record[key] for key in job.what.keep}
