"""`mmjax convert import | export | check`: weights that others published in, weights out to their libraries, and a proof of both."""

import argparse
import json
import sys
from typing import Any

import numpy as np

from mmjax.convert import models, transfer
from mmjax.convert.tensors import some
from mmjax.core import config
from mmjax.core.errors import UserError


def main(args: argparse.Namespace) -> int:
    if args.overrides:
        raise UserError(f"mmjax convert takes no key=value words, got {args.overrides[0]!r}")
    return {"import": run_import, "export": run_export, "check": run_check}[args.action](args)


def run_import(args: argparse.Namespace) -> int:
    dtype = np.float32 if args.dtype is None else transfer.dtype_of(args.dtype)
    done = transfer.import_to(args.source, args.out, dtype=dtype, **_told(args))
    print(f"{done.parameters:,} parameters of {_name(done.config)} written to '{args.out}': {some(done.files, 4)}")
    print(f"use them: mmjax.from_pretrained({args.out!r}), or mmjax train ... init_from.path={args.out}")
    return 0


def run_export(args: argparse.Namespace) -> int:
    dtype = None if args.dtype is None else transfer.dtype_of(args.dtype)
    done = transfer.export_to(args.source, args.to, args.out, dtype=dtype, **_told(args))
    print(f"{done.parameters:,} parameters of {_name(done.config)} written to '{args.out}': {some(done.files, 4)}")
    for note in done.notes:
        print(f"note: {note}")
    return 0


def run_check(args: argparse.Namespace) -> int:
    done = transfer.check(args.source, **_told(args), say=lambda line: print(line, file=sys.stderr))
    print(f"{_name(done.opened.config)}, layout {done.opened.layout.name}: {done.parameters:,} parameters")
    print(f"{len(done.equal)} of {len(done.equal) + len(done.differ)} tensors come back byte for byte from import and export")
    if done.dropped:
        print(f"{len(done.dropped)} tensors are no part of the model and are dropped: {some(done.dropped, 5)}")
    return 1 if done.differ else 0


def _name(said: dict) -> str:
    return models.family_of(said["model"]).says(said["model"])


def _told(args: argparse.Namespace) -> dict[str, Any]:
    """What the command says of weights beside where they lie.

    Raises:
      UserError: a variant that begins as JSON and is none.
    """
    variant = args.variant
    if variant is not None and variant.lstrip().startswith("{"):
        try:
            variant = config.tuples(json.loads(variant))
        except ValueError as e:
            raise UserError(f"--variant: no JSON: {e}") from None
    return {"act": args.act, "component": args.component, "variant": variant}
