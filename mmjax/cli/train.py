"""`mmjax train`: config or workdir -> trained state, checkpoints, metrics."""

import argparse
import contextlib
import dataclasses
import shlex
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from mmjax import evals
from mmjax.cli import hosts, info
from mmjax.cli.feed import Feed, open_data
from mmjax.cli.program import Program, assemble
from mmjax.convert.source import holds_weights
from mmjax.convert.transfer import load_leaves
from mmjax.core import checkpoint_read, flops, loop, tree
from mmjax.core import config as config_lib
from mmjax.core import state as state_lib
from mmjax.core.checkpoint import Checkpoints
from mmjax.core.device_peaks import utilisation
from mmjax.core.ema import SNAPSHOTS, widths
from mmjax.core.errors import UserError, suggest
from mmjax.core.init_from import match_params
from mmjax.core.metrics import MetricsWriter, memory_in_use
from mmjax.core.progress import Progress
from mmjax.core.state import TrainState
from mmjax.core.types import Params
from mmjax.data import provenance


def main(args: argparse.Namespace) -> int:
    hosts.join(args)
    config = resolve(args.config, args.workdir, args.overrides)
    program = assemble(config)
    if args.dry_run:
        print(dry_run(program))
        return 0
    if not args.workdir:
        raise UserError("mmjax train needs --workdir DIR, where the run is kept (or --dry_run)")
    workdir = Path(args.workdir)
    command = f"mmjax train --workdir {shlex.quote(str(workdir))}"
    try:
        run(program, workdir, command=command, profile=args.profile)
    except loop.Stopped as e:
        print(f"mmjax: {e}", file=sys.stderr)
        return 128 + e.signum
    return 0


def resolve(config_path: str | None, workdir: str | None, overrides: list[str]) -> ConfigDict:
    """The config to run: the given one, or that of the run in the workdir.

    Raises:
      UserError: neither a config nor a run; or the run there was made with another config.
    """
    saved = config_lib.open_workdir(workdir) if workdir and (Path(workdir) / "config.json").is_file() else None
    if config_path:
        config = config_lib.load(config_path, overrides)
    elif saved is not None:
        config = config_lib.override(saved.copy_and_resolve_references(), overrides)
        config.lock()
    elif workdir:
        raise UserError(f"'{workdir}' holds no run yet: name a config, mmjax train --config FILE.py --workdir {workdir}")
    else:
        raise UserError("mmjax train needs --config FILE.py, or --workdir DIR of a run to continue")
    if saved is not None:
        changed = config_lib.differences(saved, config)
        if changed:
            raise UserError(
                f"'{workdir}' holds a run with another config ({'; '.join(changed)}). "
                "Continue it unchanged, or choose another --workdir (and init_from.path to start from its parameters)"
            )
    return config


def dry_run(program: Program) -> str:
    """Compiles the step and describes it; memory is what XLA plans for one device."""
    began = time.perf_counter()
    compiled = program.lower().compile()
    seconds = time.perf_counter() - began
    text = info.render(info.describe(program))
    memory = compiled.memory_analysis()
    if memory is not None:
        total = memory.argument_size_in_bytes + memory.temp_size_in_bytes + memory.output_size_in_bytes - memory.alias_size_in_bytes
        text += (
            f"\ncompiled in {seconds:.1f} s; one device holds {total / 2**20:,.1f} MiB at the step's peak "
            f"({memory.temp_size_in_bytes / 2**20:,.1f} MiB of it activations and workspace)"
        )
    return text


def slim(program: Program, s: TrainState) -> tuple[TrainState, dict[str, Any]]:
    """(the state without its frozen parameters, those): they never change and are saved once."""
    frozen = tree.select(s.params, program.roles.frozen.__contains__)
    return dataclasses.replace(s, params=tree.select(s.params, lambda p: p not in program.roles.frozen)), frozen


def start_state(program: Program, checkpoints: Checkpoints, feed: Feed, say: Callable[[str], None]) -> TrainState:
    """The newest sound checkpoint, else a fresh state, with another run's parameters where the config says so."""
    if checkpoints.steps():
        body, frozen = slim(program, program.abstract)
        say(f"restoring from {checkpoints.directory}")
        restored = checkpoints.restore(body, frozen=frozen)
        say(f"continuing from step {restored.step}")
        return dataclasses.replace(restored.tree, params=tree.merge(restored.tree.params, restored.frozen or {}))
    fresh = program.init()
    if program.task.weights is not None:
        fresh = dataclasses.replace(fresh, params=tree.merge(fresh.params, given_weights(program.task.weights(), fresh.params)))
    if program.task.fit is not None:
        with feed.whole() as batches:
            found = program.task.fit(batches)
        say(f"fitted to the first examples: {', '.join(tree.flatten(found))}")
        fresh = dataclasses.replace(fresh, params=tree.merge(fresh.params, given_weights(found, fresh.params)))
    if program.config.init_from.path:
        params = initialise_from(program, fresh.params, say)
        trained, _ = program.roles.split(params)
        copy = jax.jit(lambda t: jax.tree.map(jnp.copy, t))
        fresh = dataclasses.replace(fresh, params=params, ema={name: copy(trained) for name in fresh.ema})
    return fresh


def initialise_from(program: Program, params: Params, say: Callable[[str], None]) -> Params:
    """`params` with the values that another run's checkpoint or published weights have for them, by config group `init_from`.

    Raises:
      UserError: no such checkpoint, or parameters left over on either side.
    """
    c = program.config.init_from
    source, origin = _init_source(c)
    target = tree.flatten(params)
    pairs = match_params(source, target, c.rename, c.skip)

    say(f"{len(pairs)} of {len(target)} parameters start from {origin} of '{c.path}'")
    return tree.unflatten({path: _place(source[pairs[path]], x) if path in pairs else x for path, x in target.items()})


def given_weights(given: Params, params: Params) -> Params:
    """What a task reads from files, in the places of the parameters it stands for."""
    like = tree.flatten(params)
    return tree.unflatten({path: _place(np.asarray(x), like[path]) for path, x in tree.flatten(given).items()})


def _place(host: Any, like: jax.Array | jax.ShapeDtypeStruct) -> jax.Array:
    return jax.make_array_from_callback(like.shape, like.sharding, lambda index: host[index].astype(like.dtype))


def _init_source(c: ConfigDict) -> tuple[dict[str, Any], str]:
    """Path -> what an index takes a part of, and what it is: the parameters of a run, else of what `mmjax.from_pretrained` reads."""
    if not holds_weights(c.path):
        trees = ("params", f"ema/{c.ema}") if c.ema else ("params",)
        found, nested = checkpoint_read.read_params(Path(c.path) / "checkpoints", trees, c.step)
        return {path: np.asarray(x) for path, x in tree.flatten(nested).items()}, f"step {found}"
    for key in ("step", "ema"):
        if c[key] is not None:
            raise UserError(f"init_from.{key}={c[key]!r}: '{c.path}' holds published weights, which have no steps and no averages")
    opened, leaves = load_leaves(c.path)
    return leaves, f"the weights, layout {opened.layout.name},"


def model_flops(config: ConfigDict, program: Program) -> int:
    """Matrix-product FLOPs of a step without what rematerialisation repeats, for model-FLOPs utilisation."""
    plain = config.copy_and_resolve_references()
    plain.unlock()
    _set_everywhere(plain.model, "remat", "none")
    step = assemble(plain, program.mesh).train_step
    shapes = lambda t: jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), t)
    return flops.count(step, shapes(program.abstract), shapes(program.batch)).matmul_flops


def _set_everywhere(group: ConfigDict, key: str, value: Any) -> None:
    for name in group:
        if isinstance(group[name], ConfigDict):
            _set_everywhere(group[name], key, value)
        elif name == key:
            group[name] = value


def make_rates(program: Program) -> Callable[[int, float, float], dict[str, float]]:
    """(steps, seconds, of which waiting for data) -> throughput metrics; all of them listed in metrics.TIMING."""
    work = model_flops(program.config, program)
    devices = list(program.mesh.devices.flat)

    def rates(steps: int, seconds: float, waited: float) -> dict[str, float]:
        each = seconds / max(steps, 1)
        out = {
            "step_seconds": each,
            "examples_per_second": program.config.batch_size / each,
            "data_wait_seconds": waited / max(steps, 1),
            "flops_per_second": work / each,
            "memory_bytes": float(memory_in_use()),
        }
        used = utilisation(work, each, devices, program.config.dtype)
        return out if used is None else {**out, "mfu": used}

    return rates


def recorders(program: Program, writer: MetricsWriter, checkpoints: Checkpoints, feed: Feed) -> tuple[Callable, Callable]:
    """(log, save) of the loop. A checkpoint carries the evaluations of its own step, which is what `checkpoint.best` compares."""
    measured: dict[str, float] = {}
    measured_at = -1

    def log(step: int, scalars: Mapping[str, Any]) -> None:
        nonlocal measured, measured_at
        if "loss" in scalars:  # a line of training, not of evaluations
            scalars = {**scalars, **feed.bad(step)}
        results = {k: v for k, v in scalars.items() if "/" in k}
        measured = {**(measured if step == measured_at else {}), **results}
        measured_at = step
        writer.write(step, scalars)

    def save(step: int, state: TrainState, wait: bool) -> None:
        body, frozen = slim(program, state)
        checkpoints.save(step, body, frozen=frozen, meta={"metrics": measured if step == measured_at else {}}, wait=wait)

    return log, save


def snapshots(program: Program, workdir: Path, stack: contextlib.ExitStack, say: Callable[[str], None]) -> tuple[int, Callable] | None:
    """The loop's hook that stores every average of type power, so that others can be made of them; None where there is none.

    One that is there already stays: it was written by this very run before it was killed.
    """
    c, names = program.config, widths(program.config.ema)
    if not names:
        return None
    every = c.checkpoint.every if c.checkpoint.snapshot_every is None else c.checkpoint.snapshot_every
    if every < 1:
        raise UserError(f"checkpoint.snapshot_every is {every}; expected a number of steps, at least 1")
    store = stack.enter_context(Checkpoints(workdir / SNAPSHOTS, keep_every=1, label=SNAPSHOTS, log=say))

    def snapshot(step: int, state: TrainState) -> None:
        if step not in store.steps():
            store.save(step, {"ema": {name: state.ema[name] for name in names}})

    return every, snapshot


def run(program: Program, workdir: Path, *, command: str, profile: tuple[int, int] | None = None) -> TrainState:
    """Trains to the config's last step, from the newest checkpoint if there is one, and returns the final state."""
    c, first = program.config, hosts.first()
    check_schedule(c)
    batches = open_data(program)
    evaluate = {n: (g.every, evals.make(n, program.task.predict, g, program.mesh, c.data)) for n, g in c.evals.items()}
    if first:
        make_workdir(workdir)
    with contextlib.ExitStack() as stack:
        progress = stack.enter_context(contextlib.closing(Progress(c.steps, batch_size=c.batch_size, enabled=c.log.progress and first)))
        say = progress.say if first else lambda message: None
        keep = {k: c.checkpoint[k] for k in ("keep_last", "keep_every", "best", "best_mode")}
        checkpoints = stack.enter_context(Checkpoints(workdir / "checkpoints", **keep, log=say))
        state = start_state(program, checkpoints, batches, say)
        start = int(state.step)
        if start >= c.steps:
            say(f"'{workdir}' is trained to step {start} already; raise steps (now {c.steps}) to go on")
            return state
        hosts.agree(provenance.digest(batches.sets), "data")
        if notice := checkpoint_read.on_first(lambda: provenance.check(workdir, batches.sets, start, c.data.accept_changed)):
            say(notice)
        if first:
            config_lib.save(c, workdir)
        writer = MetricsWriter(workdir, tensorboard=c.log.tensorboard, resume_step=start, is_writer=first, say=say)
        log, save = recorders(program, stack.enter_context(contextlib.closing(writer)), checkpoints, batches)
        batches.say = say if first else None
        say(f"compiling the step for {program.mesh.devices.size} x {program.mesh.devices.flat[0].device_kind}")
        step = program.lower().compile()
        progress.start(start)
        hooks = loop.Hooks(
            log=log,
            flush=writer.flush,
            save=save,
            evaluate=evaluate,
            eval_params=lambda s: state_lib.eval_params(s, program.ema_name()),
            say=say,
            progress=progress.update,
            continue_with=command,
            snapshot=snapshots(program, workdir, stack, say),
        )
        return loop.run(
            state,
            step,
            batches,
            hooks,
            steps=c.steps,
            batch_size=c.batch_size,
            log_every=c.log.every,
            save_every=c.checkpoint.every,
            nonfinite_limit=c.nonfinite_limit,
            rates=make_rates(program),
            profile=(*profile, str(workdir / "profile")) if profile else None,
        )


def check_schedule(c: ConfigDict) -> None:
    """How often to log, save and evaluate, and whether the best checkpoint can be known.

    Raises:
      UserError: a frequency below 1, or `checkpoint.best` names no evaluation, or one that is not run when a checkpoint is saved.
    """
    for key, value in (
        ("log.every", c.log.every),
        ("checkpoint.every", c.checkpoint.every),
        *((f"evals.{n}.every", g.get("every")) for n, g in c.evals.items()),
    ):
        if not isinstance(value, int) or value < 1:
            raise UserError(f"{key} is {value!r}; expected a number of steps, at least 1")
    if c.checkpoint.best:
        name = c.checkpoint.best.partition("/")[0]
        if name not in c.evals:
            raise UserError(f"checkpoint.best is '{c.checkpoint.best}', expected EVALUATION/METRIC{suggest(name, c.evals)}")
        if c.checkpoint.every % c.evals[name].every:
            raise UserError(
                f"checkpoint.best='{c.checkpoint.best}' needs evals.{name} at every save: "
                f"checkpoint.every={c.checkpoint.every} is no multiple of evals.{name}.every={c.evals[name].every}"
            )


def make_workdir(workdir: Path) -> None:
    """Creates the folder of a run.

    Raises:
      UserError: it cannot be created or written.
    """
    try:
        workdir.mkdir(parents=True, exist_ok=True)
    except OSError as e:
        raise UserError(f"cannot create workdir '{workdir}': {e.strerror}; choose another --workdir") from None
