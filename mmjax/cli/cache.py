"""`mmjax cache`: a predict function of a trained run over a source, stored as an array_record set that reads as any source."""

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
from typing import Any

import jax
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec
from ml_collections import ConfigDict

from mmjax.cli import hosts
from mmjax.cli.eval import load_params
from mmjax.cli.feed import check_limits
from mmjax.cli.program import Program, assemble
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
from mmjax.evals import encode

SHARD_BYTES = 64 << 20  # about so much goes into a file
VALUE, INDEX = "value", "index"
_INPUTS = {"images": "image", "tokens": "tokens"}  # name of an argument in core.types.PREDICT -> key of a batch
_SPLIT = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]*")


def main(args: argparse.Namespace) -> int:
    hosts.join(args)
    config = config_lib.override(config_lib.open_workdir(args.workdir), args.overrides)
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


@dataclasses.dataclass(frozen=True)
class Job:
    """What is to be computed.

    Attributes:
      key: of the example that the predict function takes.
      keep: keys of a record that are stored beside the value.
      plan: JSON values that fix what the set will hold; its `model` and `source` go into its meta.json.
      shard_size: records a file, None for about `SHARD_BYTES`.
    """

    program: Program
    predict: Callable
    params: Params
    source: Source
    transform: Callable
    key: str
    keep: tuple[str, ...]
    batch_size: int
    plan: dict[str, Any]
    shard_size: int | None


def prepare(config: ConfigDict, args: argparse.Namespace) -> Job:
    """Everything a run of the verb needs, checked; weights are read here.

    Raises:
      UserError: a predict function the task does not have or that takes no batch, or whatever is wrong with data and checkpoint.
    """
    program = assemble(config)
    table = program.task.predict
    if args.predict not in table:
        raise UserError(f"--predict {args.predict!r}: task '{config.task}' has no such function{suggest(args.predict, table)}")
    key = args.input or input_key(args.predict)
    source = open_source(config.data, config.data.split)
    specs = chain(config, key, args)
    tokenizer = open_tokenizer(source, config.data.tokenizer)
    transform = transforms.build((*specs, ("keep", {"keys": (key,)})), tokenizer, "transforms of mmjax cache")
    batch_size = encode.pad_to_mesh(config.batch_size, program.mesh)
    step, weights, params = load_params(program, Path(args.workdir), args.step)
    info, keep = source.info, tuple(dict.fromkeys(word for word in args.keep.split(",") if word))
    plan = {
        "predict": args.predict,
        "input": key,
        "transforms": specs,
        "keep": keep,
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
    return Job(program, table[args.predict], params, source, transform, key, keep, batch_size, plan, args.shard_size)


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


def chain(config: ConfigDict, key: str, args: argparse.Namespace) -> tuple[Any, ...]:
    """The transforms that make the input, without the 'keep' steps: those asked for, else none that draws at random.

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
    if any(word.startswith("data.transforms=") for word in args.overrides) or args.transforms == "train":
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
    with contextlib.closing(loader.eval_batches(job.source, job.transform, **_reads(job), threads=0, prefetch=1, say=_silent)) as probe:
        batch = next(iter(probe))
    x = batch[job.key]
    spec = job.program.task.batch_spec.get(job.key)
    if spec is not None:
        loader.check({job.key: x}, {job.key: jax.ShapeDtypeStruct((job.batch_size, *spec.shape[1:]), spec.dtype)}, job.source.info.name)
    out = jax.eval_shape(job.predict, job.params, jax.ShapeDtypeStruct((job.batch_size, *x.shape[1:]), x.dtype))
    words = {}
    for name, value in _flat(out).items():
        if not value.shape or value.shape[0] != job.batch_size:
            raise UserError(f"--predict {job.plan['predict']!r} gives {value.shape}, no row an example; it cannot be cached")
        shape, dtype = value.shape[1:], np.dtype(value.dtype)
        words[name] = (f"{dtype.name}[{', '.join(map(str, shape))}]", int(np.prod(shape)) * dtype.itemsize)
    held = job.source.info.features
    for key in job.keep:
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
    return tree.flatten({VALUE: out})


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
    mesh, limits = job.program.mesh, {k: v for k, v in job.program.task.limits.items() if k == job.key}
    fn = encode.compile_over(mesh, job.predict)
    whole = jax.jit(lambda x: x, out_shardings=NamedSharding(mesh, PartitionSpec()))
    data = job.program.config.data
    options = {"workers": data.workers, "threads": data.threads, "prefetch": data.prefetch, "say": say}
    waiting: collections.deque = collections.deque()
    with contextlib.closing(loader.eval_batches(job.source, job.transform, start=start, **_reads(job), **options)) as batches:
        for at, batch in zip(range(count), batches, strict=False):
            check_limits(batch, limits, job.source.info.name)
            put = lambda x: put_batch(x, job.batch_size, mesh)
            made = fn(job.params, put(batch[job.key]))
            marks = batch["_mask"], batch["_bad"]  # of this process's rows
            waiting.append((start + at * job.batch_size, made, marks if jax.process_count() == 1 else whole(tuple(map(put, marks)))))
            if len(waiting) > 1:
                yield _records(job, *waiting.popleft())
        while waiting:
            yield _records(job, *waiting.popleft())


def _records(job: Job, first: int, made: Any, marks: Any) -> list[dict[str, Any]]:
    values, (mask, bad) = {k: np.asarray(v) for k, v in _flat(made).items()}, jax.device_get(marks)
    out = []
    for row in range(min(job.batch_size, len(job.source) - first)):
        if mask[row] == 0:
            out.append({store.BAD: KINDS[int(bad[row].argmax())], INDEX: np.int64(first + row)})
            continue
        kept = _kept(job, first + row) if job.keep and hosts.first() else {}
        out.append({**{key: value[row] for key, value in values.items()}, **kept, INDEX: np.int64(first + row)})
    return out


def _kept(job: Job, i: int) -> dict[str, Any]:
    record = job.source[i]
    for key in job.keep:
        if key not in record:
            raise UserError(f"--keep {key!r}: record {i} of source '{job.source.info.name}' has no such key{suggest(key, record)}")
    return {key: record[key] for key in job.keep}
