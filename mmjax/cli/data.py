"""`mmjax data build-index | curate | pack | show`: preparing a source and looking at it."""

import argparse
import contextlib
import dataclasses
import json
import os
import sys
from pathlib import Path

from ml_collections import ConfigDict

from mmjax.core import config as config_lib
from mmjax.core.errors import UserError, suggest
from mmjax.core.progress import Progress
from mmjax.data.source import Source, first_sound, open_source, open_tokenizer, text_key


def main(args: argparse.Namespace) -> int:
    return {"build-index": build_index, "curate": curate, "pack": pack, "show": show}[args.action](args)


def build_index(args: argparse.Namespace) -> int:
    from mmjax.data import shard_index

    if args.overrides:
        raise UserError(f"mmjax data build-index takes no config keys, got '{args.overrides[0]}'")
    index = shard_index.build_index(args.shards, args.out, captions=not args.images_only, workers=args.workers)
    facts = {"index": str(args.out), "samples": len(index.records), "shards": len(index.shards), "left_out": index.left_out}
    print(json.dumps(facts, indent=1))
    return 0


def configure(args: argparse.Namespace) -> ConfigDict:
    """The config that --config names, or the defaults, with the overrides and --split."""
    config = config_lib.load(args.config) if args.config else config_lib.base().lock()
    config_lib.override(config, args.overrides)
    if args.split:
        config.data.split = args.split
    if not config.data.source and not len(config.data.mixture) and not len(config.data.streams):
        raise UserError(
            f"mmjax data {args.action} needs a source: --config FILE.py, or data.source=shards data.path='{{00000..00099}}.tar'"
        )
    return config


def curate(args: argparse.Namespace) -> int:
    from mmjax.data import curate as curation
    from mmjax.data import subset

    data = configure(args).data
    if len(data.mixture) or len(data.streams) or data.subset:
        raise UserError(
            "mmjax data curate reads one whole source; leave out data.mixture, data.streams and data.subset, and curate each by itself"
        )
    keys = ("per_query", "form", "match", "ignore_case", "seed", "text", "id", "dedup", "distance")
    plan = curation.Plan(curation.read_queries(args.queries), **{key: getattr(args, key) for key in keys})
    subset.check_out(args.out, args.overwrite)
    source = open_source(data, data.split)
    progress = Progress(len(source), batch_size=1, unit="pair")
    with contextlib.closing(progress):
        progress.start()
        result = curation.curate(
            source,
            plan,
            reader=_reader(data, source, plan),
            threads=data.threads,
            spill_dir=Path(args.out).parent,
            progress=progress.update,
        )
    table = curation.render(result.report)
    path = subset.save(result.kept, result.report, table, args.out, overwrite=args.overwrite)
    print(table, end="")
    print(f"kept index: {path}; train on it with data.subset={path}", file=sys.stderr)
    return 0


def _reader(data: ConfigDict, source: Source, plan) -> Source | None:
    """Tar shards give their texts without the images, where only texts matter."""
    if data.source != "shards" or plan.dedup != "none":
        return None
    group = data.copy_and_resolve_references()
    with group.unlocked():
        wanted = {key: value for key, value in source.info.features.items() if key != "image"}
        named = dict(data.features) or {"captions": "caption"}
        group.features = ConfigDict({key: named[key] for key in wanted})
    return open_source(group, data.split)


def pack(args: argparse.Namespace) -> int:
    from mmjax.data import packing, text_lengths

    data = configure(args).data
    if len(data.mixture) or len(data.streams):
        raise UserError("mmjax data pack reads one source; leave out data.mixture and data.streams, and pack each by itself")
    if args.form not in packing.KINDS:
        raise UserError(f"--form {args.form!r}{suggest(args.form, packing.KINDS)}")
    packing.check_out(args.out)
    source = open_source(data, data.split)
    tokenizer = open_tokenizer(source, data.tokenizer)
    if tokenizer is None:
        raise UserError(f"mmjax data pack counts tokens, and source {source.info.name!r} has no tokenizer; set data.tokenizer")
    key = text_key(first_sound(source), args.text, f"mmjax data pack: records of source {source.info.name!r}")
    tokens = text_lengths.TextIds(tokenizer, key, False if args.no_start else None, False if args.no_end else None)
    progress = Progress(len(source), batch_size=1, unit="record")
    with contextlib.closing(progress):
        progress.start()
        lengths = text_lengths.measure(source, tokens, threads=data.threads, progress=progress.update)
    make = {"packs": packing.pack, "length_groups": packing.group_by_length}[args.form]
    made = make(lengths, args.size, **({"window": args.window} if args.window else {}))
    index = dataclasses.replace(made, about={**made.about, **tokens.about()})
    packing.save(index, args.out, source)
    facts = {"index": str(args.out), args.form: len(index), "size": index.size, "records": len(source), "tokens": int(lengths.sum())}
    print(json.dumps({**facts, **index.about}, indent=1))
    setting = "data.packing" if args.form == "packs" else "data.length_groups"
    print(f"train on it with {setting}={args.out}", file=sys.stderr)
    return 0


def show(args: argparse.Namespace) -> int:
    from mmjax.cli import page, sheet

    if not 1 <= args.count <= 1000:
        raise UserError(f"--count is {args.count}, expected 1 to 1000")
    made_by = {".html": page, ".png": sheet, ".jpg": sheet, ".jpeg": sheet, ".webp": sheet}.get(Path(args.out).suffix.lower())
    if made_by is None:
        raise UserError(f"--out '{args.out}': expected a name that ends in .html, .png, .jpg or .webp")
    if not os.path.isdir(os.path.dirname(args.out) or "."):
        raise UserError(f"--out '{args.out}': folder '{os.path.dirname(args.out)}' does not exist; create it")
    config = configure(args)
    facts = made_by.write(config, args.out, args.count, transformed=not args.raw)
    print(json.dumps({"written": args.out, **facts}, indent=1))
    return 0
