"""A grid of runs: every combination of configs and override values, each in a workdir named after its overrides.

    python launch/sweep.py --root runs/lr --config configs/clip/digits.py optim.lr=1e-3,3e-4 seed=0,1,2            prints six commands
    python launch/sweep.py --root runs/lr --config configs/clip/digits.py optim.lr=1e-3,3e-4 seed=0,1,2 --run      runs them in turn
    python launch/sweep.py --root runs/lr --config configs/clip/digits.py optim.lr=1e-3,3e-4 --sbatch | bash       submits them
    python launch/sweep.py --root runs/lr --collect > lr.json                                                      what came out

A comma inside brackets or quotes does not divide: a=(8,8),(16,16) are two values. Given again, --run continues what was interrupted.
"""

import argparse
import itertools
import json
import math
import re
import shlex
import shutil
import signal
import subprocess
import sys
from pathlib import Path


def split_values(text: str) -> list[str]:
    """Divides at the commas that no bracket or quote encloses."""
    values, depth, quote = [""], 0, ""
    for c in text:
        if quote:
            quote = "" if c == quote else quote
        elif c in "'\"":
            quote = c
        elif c in "([{":
            depth += 1
        elif c in ")]}":
            depth -= 1
        if c == "," and not depth and not quote:
            values.append("")
        else:
            values[-1] += c
    if depth or quote:
        raise ValueError(f"'{text}' has an unbalanced bracket or quote")
    if len(values) > 1 and "" in values:
        raise ValueError(f"'{text}' has an empty value between its commas")
    return values


def plain(name: str) -> str:
    """A file name that needs no quoting in a shell."""
    return re.sub(r"[^\w.,=+-]+", "_", name)


def grid(configs: list[str], overrides: list[str], root: str) -> dict[str, list[str]]:
    """workdir -> arguments of `mmjax train`, over the product of configs and override values, the last override varying fastest.

    Raises:
      ValueError: an override not of the form key=value, a key given twice, or two runs that would share a workdir.
    """
    axes: dict[str, list[str]] = {}
    for item in overrides:
        key, eq, text = item.partition("=")
        if not eq or not key:
            raise ValueError(f"'{item}' is not of the form key=value or key=value,value")
        if key in axes:
            raise ValueError(f"'{key}' is given twice; list its values with commas")
        axes[key] = split_values(text)
    leaves = [key.rpartition(".")[2] for key in axes]
    labels = [leaf if leaves.count(leaf) == 1 else key for key, leaf in zip(axes, leaves, strict=True)]
    runs: dict[str, list[str]] = {}
    for config, values in itertools.product(configs, itertools.product(*axes.values())):
        path, _, arg = config.partition(":")
        folder = f"{Path(path).stem}-{arg}" if arg else Path(path).stem
        name = ",".join(map("=".join, zip(labels, values, strict=True))) or "default"
        workdir = f"{root.rstrip('/')}/{plain(folder)}/{plain(name)}"
        if workdir in runs:
            raise ValueError(f"two runs would share the workdir '{workdir}'; sweep them under different roots")
        runs[workdir] = ["--config", config, "--workdir", workdir, *map("=".join, zip(axes, values, strict=True))]
    return runs


def execute(runs: dict[str, list[str]]) -> int:
    """Runs one after another. A failed run is reported and the next one starts; a run stopped by a signal stops the sweep."""
    beside = Path(sys.executable).with_name("mmjax")
    program = shutil.which("mmjax") or (str(beside) if beside.exists() else None)
    if program is None:
        raise ValueError("the command mmjax is not installed here: activate its environment, or run this with that environment's python")
    child, failed = None, []
    # Ctrl-C reaches the run as well, and the run saves before it leaves: wait for it. A SIGTERM is ours alone: hand it on.
    signal.signal(signal.SIGINT, lambda *_: None)
    signal.signal(signal.SIGTERM, lambda *_: child.send_signal(signal.SIGTERM) if child else sys.exit(128 + signal.SIGTERM))
    for i, (workdir, arguments) in enumerate(runs.items(), 1):
        print(f"== run {i} of {len(runs)}: mmjax train {shlex.join(arguments)}", flush=True)
        child = subprocess.Popen([program, "train", *arguments])
        code = child.wait()
        if code < 0 or code >= 128:
            print(f"sweep: stopped in run {i} of {len(runs)}; the same line again continues", file=sys.stderr)
            return code if code > 0 else 128 - code
        if code:
            failed.append(workdir)
    for workdir in failed:
        print(f"sweep: failed: {workdir}", file=sys.stderr)
    return 1 if failed else 0


def collect(root: str) -> list[dict]:
    """For every workdir under `root`: its last step, and of each metric the last value written (null where not finite)."""
    rows = []
    for path in sorted(Path(root).rglob("metrics.jsonl")):
        step, metrics = None, {}
        for number, line in enumerate(path.read_text().splitlines(), 1):
            try:
                values = json.loads(line)
                step = values.pop("step")
            except (ValueError, AttributeError, KeyError, TypeError):
                print(f"{path}:{number}: not a line of metrics, skipped", file=sys.stderr)  # a run now writing ends so
                continue
            metrics |= {k: None if isinstance(v, float) and not math.isfinite(v) else v for k, v in values.items()}
        rows.append({"workdir": str(path.parent), "step": step, "metrics": metrics})
    return rows


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--root", required=True, metavar="DIR", help="the folder that holds the sweep's workdirs")
    parser.add_argument("--config", action="append", default=[], metavar="FILE.py[:ARG]", help="may be given several times")
    what = parser.add_mutually_exclusive_group()
    what.add_argument("--run", action="store_true", help="run them here, one after another, instead of printing them")
    what.add_argument("--sbatch", action="store_true", help="print sbatch lines for launch/slurm.sbatch")
    what.add_argument("--collect", action="store_true", help="print a JSON table of the final metrics under DIR")
    parser.add_argument("overrides", nargs="*", metavar="key=value,value", help="config keys and the values each takes")
    args = parser.parse_intermixed_args(argv)
    try:
        if args.collect:
            print(json.dumps(collect(args.root), indent=1))
            return 0
        if not args.config:
            raise ValueError("name at least one --config FILE.py")
        runs = grid(args.config, args.overrides, args.root)
        if args.run:
            return execute(runs)
    except ValueError as e:
        print(f"sweep: error: {e}", file=sys.stderr)
        return 2
    for arguments in runs.values():
        print("sbatch launch/slurm.sbatch" if args.sbatch else "mmjax train", shlex.join(arguments))
    return 0


if __name__ == "__main__":
    sys.exit(main())
