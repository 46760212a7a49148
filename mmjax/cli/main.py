"""`mmjax VERB`: the command line. A verb's module is imported when it runs, so that --help answers at once."""

import argparse
import errno
import importlib
import sys
from collections.abc import Sequence

from mmjax.core.errors import UserError
from mmjax.version import __version__

OVERRIDES = "config keys to set, e.g. steps=200 optim.lr=3e-4 model.image.depth=6"

EXAMPLES = """\
examples:
  mmjax train --config configs/clip/digits.py --workdir runs/digits           train; the same line again continues
  mmjax train --config configs/clip/digits.py:smoke --workdir /tmp/x steps=4  a tiny run, with one key overridden
  mmjax train --config configs/clip/digits.py --dry_run                       compile, print parameters and memory, stop
  mmjax eval --workdir runs/digits --report                                   evaluate, write runs/digits/report.html
  mmjax info --config configs/clip/vit_b32.py --devices 64 mesh.fsdp=8        what a run would hold, on machines not at hand
"""


def _distributed(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group(
        "several hosts", "the same command on every host; on Cloud TPU and SLURM --distributed finds the rest"
    )
    group.add_argument("--distributed", action="store_true", help="join the other processes through jax.distributed")
    group.add_argument("--coordinator", metavar="HOST:PORT", help="address of process 0, where the platform does not tell")
    group.add_argument("--num_processes", type=int, metavar="N")
    group.add_argument("--process_id", type=int, metavar="I")


def _span(text: str) -> tuple[int, int]:
    try:
        first, last = (int(x) for x in text.split(":"))
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is not of the form A:B, two step numbers") from None
    if not 1 <= first <= last:
        raise argparse.ArgumentTypeError(f"{text!r}: expected 1 <= A <= B")
    return first, last


def parser() -> argparse.ArgumentParser:
    """The whole command line."""
    top = argparse.ArgumentParser(
        prog="mmjax",
        description="Train and evaluate multimodal models in JAX.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    top.add_argument("--version", action="version", version=f"mmjax {__version__}")
    verbs = top.add_subparsers(dest="verb", required=True, metavar="VERB")

    train = verbs.add_parser(
        "train",
        help="train a model, or continue a run",
        description="Train the system a config describes; continue if the workdir holds a run.",
    )
    train.add_argument("--config", metavar="FILE.py[:ARG]", help="config file; not needed to continue a run")
    train.add_argument("--workdir", metavar="DIR", help="where the run lives: config.json, metrics.jsonl, checkpoints/")
    train.add_argument(
        "--dry_run", action="store_true", help="compile one step, print parameters, FLOPs, memory and sharding, and stop; writes nothing"
    )
    train.add_argument("--profile", metavar="A:B", type=_span, help="write a trace of steps A to B to DIR/profile")
    train.add_argument("overrides", nargs="*", metavar="key=value", help=OVERRIDES)
    _distributed(train)

    evaluate = verbs.add_parser(
        "eval", help="evaluate a run", description="Run the evaluations of a run's config on a checkpoint and print them as JSON."
    )
    evaluate.add_argument("--workdir", required=True, metavar="DIR", help="a run's workdir")
    evaluate.add_argument("--step", type=int, help="which checkpoint; default the newest")
    evaluate.add_argument("--split", help="evaluate on this split instead of the config's, e.g. test")
    evaluate.add_argument(
        "--report", action="store_true", help="write DIR/report.html: curves, accuracy, confusion matrix, pictures with captions"
    )
    evaluate.add_argument("overrides", nargs="*", metavar="key=value", help="config keys to set, e.g. data.dir=/sets mesh.data=1")
    _distributed(evaluate)

    info = verbs.add_parser(
        "info", help="parameters, FLOPs, memory and sharding of a config", description="Print what a run would hold, allocating nothing."
    )
    source = info.add_mutually_exclusive_group(required=True)
    source.add_argument("--config", metavar="FILE.py[:ARG]")
    source.add_argument("--workdir", metavar="DIR")
    info.add_argument("--devices", type=int, default=1, metavar="N", help="plan for so many devices; default 1")
    info.add_argument("--json", action="store_true", help="machine-readable")
    info.add_argument("overrides", nargs="*", metavar="key=value", help=OVERRIDES)
    return top


def parse(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """The arguments, with `key=value` words wherever they stand among the flags."""
    top = parser()
    args, rest = top.parse_known_args(argv)
    strange = [word for word in rest if word.startswith("-") or "=" not in word]
    if strange:
        top.error(f"unknown argument {strange[0]!r} for mmjax {args.verb}; see mmjax {args.verb} --help")
    args.overrides += rest
    return args


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point. 0 done, 2 bad input, 128 + n ended by signal n with the state saved."""
    args = parse(argv)
    try:
        return importlib.import_module(f"mmjax.cli.{args.verb}").main(args)
    except UserError as e:
        print(f"mmjax: error: {e}", file=sys.stderr)
        return 2
    except OSError as e:
        if e.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES):
            raise
        where = f" '{e.filename}'" if e.filename else ""
        print(
            f"mmjax: error: cannot write{where}: {e.strerror}; make room or choose another folder; what was saved before is intact",
            file=sys.stderr,
        )
        return 2
    except KeyboardInterrupt:
        print("mmjax: interrupted; what was saved before is intact", file=sys.stderr)
        return 130


if __name__ == "__main__":
    sys.exit(main())
