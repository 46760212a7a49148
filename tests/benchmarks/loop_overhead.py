"""What the training loop costs: steps a second of `core.loop.run` against the bare jitted step, on the same batches in memory.

    python tests/benchmarks/loop_overhead.py [--rounds 7] [--steps 60] [key=value ...]

Both take the same compiled step and the same batches, which lie on the device; the loop also logs to metrics.jsonl and event files and
draws the progress. The two alternate, round by round, and the ratio is the median over rounds, so a machine whose speed drifts
does little harm. Prints JSON.
"""

import argparse
import dataclasses
import itertools
import json
import platform
import statistics
import sys
import tempfile
import time
from pathlib import Path

import jax

from mmjax.cli.program import assemble
from mmjax.cli.train import make_rates, open_data
from mmjax.core import config as config_lib
from mmjax.core import loop
from mmjax.core.metrics import MetricsWriter
from mmjax.core.progress import Progress

CONFIG = Path(__file__).resolve().parents[2] / "configs" / "clip" / "digits.py"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--steps", type=int, default=60, help="steps a round")
    parser.add_argument("overrides", nargs="*", metavar="key=value")
    args = parser.parse_args()

    program = assemble(config_lib.load(str(CONFIG), args.overrides))
    c = program.config
    feed = open_data(program)(0)
    held = list(itertools.islice(feed, 8))
    feed.close()
    step = program.lower().compile()

    def batches(cursor: int):
        yield from itertools.cycle(held)

    def bare() -> float:
        state = program.init()
        state, metrics = step(state, held[0])
        jax.block_until_ready(metrics)
        began = time.perf_counter()
        for batch in itertools.islice(batches(0), args.steps):
            state, metrics = step(state, batch)
        jax.block_until_ready((state, metrics))
        return time.perf_counter() - began

    def looped(workdir: str) -> float:
        state = program.init()
        state, _ = step(state, held[0])
        state = dataclasses.replace(state, step=state.step * 0)
        jax.block_until_ready(state)
        progress = Progress(args.steps, batch_size=c.batch_size)
        progress.start(0)
        writer = MetricsWriter(workdir, tensorboard=True, resume_step=None)
        ended = []

        def save(at, state, wait):  # the last thing the loop does; not timed, for it is no part of a step
            jax.block_until_ready(state)
            ended.append(time.perf_counter())

        hooks = loop.Hooks(writer.write, writer.flush, save, {}, lambda s: s.params, progress.say, progress.update, "")
        began = time.perf_counter()
        loop.run(
            state,
            step,
            batches,
            hooks,
            steps=args.steps,
            batch_size=c.batch_size,
            log_every=c.log.every,
            save_every=10**9,
            nonfinite_limit=c.nonfinite_limit,
            rates=rates,
        )
        progress.close()
        writer.close()
        return ended[0] - began

    rates = make_rates(program)
    times = []
    with tempfile.TemporaryDirectory() as workdir:
        for number in range(args.rounds + 1):
            pair = (bare(), looped(workdir))
            if number:  # the first round warms up
                times.append(pair)
            print(f"round {number}: bare {args.steps / pair[0]:.2f} steps/s, loop {args.steps / pair[1]:.2f}", file=sys.stderr)
    ratios = [a / b for a, b in times]
    result = {
        "steps_per_second_bare": args.steps / statistics.median(a for a, _ in times),
        "steps_per_second_loop": args.steps / statistics.median(b for _, b in times),
        "ratio_median": statistics.median(ratios),
        "ratio_min": min(ratios),
        "ratio_max": max(ratios),
        "device": f"{jax.device_count()} x {jax.devices()[0].device_kind}",
        "machine": platform.machine(),
        "jax": jax.__version__,
    }
    print(json.dumps(result, indent=1))


if __name__ == "__main__":
    main()
