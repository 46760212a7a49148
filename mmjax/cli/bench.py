"""`mmjax bench`: named cases against their peers, alternating in one run, held to what this machine can do."""

import argparse
import contextlib
import json
import statistics
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
from ml_collections import ConfigDict

from mmjax.bench import machine, measure
from mmjax.bench.peer import Peer, interpreter
from mmjax.cli.bench_cases import CASES, Case, StartPeer
from mmjax.core import config as config_lib
from mmjax.core import device_peaks
from mmjax.core.errors import UserError, suggest

SIDE = 32  # of the pictures that are convolved
SIZES = {"cpu": (2048, 2**26), "accelerator": (8192, 2**28)}  # side of the matrices, numbers of the streamed array


def main(args: argparse.Namespace) -> int:
    """Prints JSON on standard output and a table on standard error; writes both."""
    if args.list:
        print("\n".join(f"{name:<20}  {case.about}" for name, case in CASES.items()))
        return 0
    names, args.overrides = split_words(args.cases, args.overrides)
    chosen = choose(names)
    if args.rounds < 1:
        raise UserError(f"--rounds is {args.rounds}; expected a positive number")
    configs = {name: configure(name, chosen[name], args.overrides) for name in chosen}
    start = None
    if not args.no_peer and any(case.peer for case in chosen.values()):
        python = interpreter(args.peer_python)
        start = lambda script, folder: Peer(python, script, folder)
    result: dict[str, Any] = {**machine.describe(), "rounds": args.rounds, "cases": {}}
    out = Path(args.out or f"results/bench_{machine.slug(result['hardware'])}.json")
    if out.suffix != ".json":
        raise UserError(f"--out is '{out}'; expected a name that ends in .json")
    out.parent.mkdir(parents=True, exist_ok=True)
    for name, case in chosen.items():
        print(f"{name}: {case.about}", file=sys.stderr)
        result["cases"][name] = {"overrides": list(args.overrides), **run_case(case, configs[name], args.rounds, start)}
        out.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")  # after each, so that a later one's failure loses nothing
        out.with_suffix(".txt").write_text(table(result) + "\n", encoding="utf-8")
    print(json.dumps(result, indent=1))
    print(f"{table(result)}\nwritten to {out} and {out.with_suffix('.txt')}", file=sys.stderr)
    return 0


def split_words(words: Sequence[str], overrides: Sequence[str]) -> tuple[list[str], list[str]]:
    """Names of cases, and key=value words wherever they stood."""
    return [w for w in words if "=" not in w], [w for w in words if "=" in w] + list(overrides)


def choose(names: Sequence[str]) -> dict[str, Case]:
    """The cases named; without a name those that are meant for this kind of device.

    Raises:
      UserError: there is none of that name.
    """
    for name in names:
        if name not in CASES:
            raise UserError(f"there is no benchmark {name!r}{suggest(name, CASES)}")
    here = lambda case: not case.accelerator or jax.default_backend() != "cpu"
    return {name: case for name, case in CASES.items() if (name in names if names else here(case))}


def configure(name: str, case: Case, overrides: Sequence[str]) -> ConfigDict:
    """The case's config with the keys of the command line."""
    config = case.config()
    try:
        config_lib.override(config, overrides)
    except UserError as e:
        raise UserError(f"{name}: {e}") from None
    return config


def run_case(case: Case, config: ConfigDict, rounds: int, start: StartPeer | None) -> dict[str, Any]:
    """Everything measured of a case, as plain data."""
    with contextlib.ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="mmjax-bench-")))
        prepared = case.prepare(config, stack, folder, start if case.peer else None)
        size, numbers = SIZES["cpu" if jax.default_backend() == "cpu" else "accelerator"]
        (product, flops), (copy, nbytes) = measure.matmul(size, config.dtype), measure.stream(numbers)
        sides = {**prepared.sides, "matmul": product, "stream": copy}
        if prepared.convolves:
            sides["convolution"], convolved = measure.convolution(SIDE, config.dtype)
        times = measure.alternate(sides, rounds, say=lambda line: print(line, file=sys.stderr))
    ours, *others = prepared.sides
    seconds = {side: statistics.median(t) for side, t in times.items()}
    rates = {"matmul_flops_per_second": flops / seconds["matmul"], "stream_bytes_per_second": nbytes / seconds["stream"]}
    work, convolving = prepared.work, {}
    if prepared.convolves:
        rates["convolution_flops_per_second"] = convolved / seconds["convolution"]
        ratio = measure.median_ratio([work.flops / convolved * t for t in times["convolution"]], times[ours])
        convolving["share_of_convolution_rate"] = ratio
    roofline = measure.roofline(work, seconds[ours], rates["matmul_flops_per_second"], rates["stream_bytes_per_second"])
    written = {}
    if prepared.written:
        written["tokens_per_second"] = {side: prepared.written / seconds[side] for side in prepared.sides}
        written["tokens_per_second"]["memory_limit"] = prepared.written / roofline["traffic_seconds"]
    used = device_peaks.utilisation(work.flops, seconds[ours], jax.devices()[:1], config.dtype)
    return {
        "dtype": config.dtype,
        **prepared.facts,
        "seconds": {side: {"median": seconds[side], "min": min(times[side]), "rounds": times[side]} for side in prepared.sides},
        "speed_against": {other: measure.median_ratio(times[other], times[ours]) for other in others},
        "flops_per_second": work.flops / seconds[ours],
        "machine": rates,
        # Round by round as well: a product of flops takes its time in the same conditions.
        "share_of_matmul_rate": measure.median_ratio([work.flops / flops * t for t in times["matmul"]], times[ours]),
        **convolving,
        **({} if used is None else {"mfu": used}),
        **written,
        "roofline": roofline,
    }


# --- as text -------------------------------------------------------------------------------------------------------------


def table(result: Mapping[str, Any]) -> str:
    """The record as text: a line a case, then its roofline."""
    versions = " ".join(f"{k} {v}" for k, v in result["versions"].items())
    lines = [f"{result['hardware']}; {result['date']}; load {result['load_average']}; {result['rounds']} rounds", versions]
    head = f"{'case':<20} {'dtype':<9} {'seconds':>9} {'against':>8} {'seconds':>9} {'speed':>7} {'GFLOP/s':>9} {'of matmul':>9} {'MFU':>6}"
    lines += ["", head]
    for name, case in result["cases"].items():
        ours, *others = case["seconds"]
        against = others[0] if others else ""
        theirs = f"{case['seconds'][against]['median']:>9.4g} {case['speed_against'][against]:>6.2f}x" if others else f"{'':>9} {'':>7}"
        mfu = f"{case['mfu']:>6.1%}" if "mfu" in case else f"{'':>6}"
        lines.append(
            f"{name:<20} {case['dtype']:<9} {case['seconds'][ours]['median']:>9.4g} {against:>8} {theirs} "
            f"{case['flops_per_second'] / 1e9:>9.1f} {case['share_of_matmul_rate']:>9.1%} {mfu}".rstrip()
        )
    for name, case in result["cases"].items():
        lines += ["", f"{name}: {roofline_line(case)}"]
        if "share_of_convolution_rate" in case:
            rate = case["machine"]["convolution_flops_per_second"]
            share = case["share_of_convolution_rate"]
            lines.append(f"  forward convolutions run at {rate / 1e9:.4g} GFLOP/s here; the step at {share:.0%} of that")
        if "tokens_per_second" in case:
            rates = dict(case["tokens_per_second"])
            limit = rates.pop("memory_limit")
            told = ", ".join(f"{side} {rate:.4g}" for side, rate in rates.items())
            lines.append(f"  tokens a second: {told}; {limit:.4g} if parameters and cache were read once a token at the stream's rate")
        if "differences" in case:
            lines.append("  largest relative differences: " + ", ".join(f"{k} {v:.1e}" for k, v in case["differences"].items()))
        if "peer" in case:
            lines.append("  peer: " + ", ".join(f"{k} {v}" for k, v in case["peer"]["versions"].items()))
    return "\n".join(lines)


def roofline_line(case: Mapping[str, Any]) -> str:
    """What bounds the step, and what its time would be at the machine's own rates."""
    r, rates = case["roofline"], case["machine"]
    seconds = next(iter(case["seconds"].values()))["median"]
    speeds = f"{rates['matmul_flops_per_second'] / 1e9:.4g} GFLOP/s, {rates['stream_bytes_per_second'] / 1e9:.4g} GB/s"
    line = f"{r['flops'] / 1e9:.4g} GFLOP a step; this machine does {speeds} (ridge {r['ridge']:.3g} FLOP a byte); products alone "
    line += f"{r['products_seconds']:.4g} s of {seconds:.4g} s"
    if r["bytes"]:
        line += f"; {r['bytes'] / 1e9:.4g} GB read and written, {r['traffic_seconds']:.4g} s; {r['intensity']:.3g} FLOP a byte: bound by "
        line += r["bound"]
    return line + f"; at {r['share_of_floor']:.0%} of the roofline"
