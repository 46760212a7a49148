"""`mmjax info`: parameters by module, FLOPs of a step, memory and the place of every parameter, allocating nothing."""

import argparse
import json
from collections import defaultdict
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np

from mmjax.cli.program import Program, assemble
from mmjax.core import config as config_lib
from mmjax.core import flops, sharding, tree


def describe(program: Program) -> dict[str, Any]:
    """Everything `mmjax info` prints, as plain data; bytes are of one device."""
    params = tree.flatten(program.abstract.params)
    cost = flops.count(program.train_step, _shapes(program.abstract), program.batch)
    role = lambda p: next(r for r in ("trained", "frozen", "state") if p in getattr(program.roles, r))
    kinds = {r: sum(tree.count(params[p]) for p in getattr(program.roles, r)) for r in ("trained", "frozen", "state")}
    trained = [params[p] for p in program.roles.trained]
    return {
        "parameters": tree.count(program.abstract.params),
        **{f"parameters_{k}": v for k, v in kinds.items()},
        "by_module": _by_module(program.abstract.params),
        "flops_per_step": cost.flops,
        "flops_per_step_matmul": cost.matmul_flops,
        "flops_per_example": cost.flops / program.config.batch_size,
        "flops_caveats": cost.caveats,
        "mesh": dict(program.mesh.shape),
        "memory_bytes": {
            "parameters": _device_bytes(program.abstract.params),
            "optimizer": _device_bytes(program.abstract.opt_state),
            "ema": _device_bytes(program.abstract.ema),
            "gradients": _device_bytes(trained),
            "batch": _device_bytes(program.batch),
        },
        "sharding": {
            path: {"shape": list(x.shape), "axes": list(axes), "partition": _partition(x), "role": role(path)}
            for (path, x), axes in zip(params.items(), tree.flatten(program.task.axes).values(), strict=True)
        },
    }


def _shapes(t: Any) -> Any:
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), t)


def _by_module(params: Mapping[str, Any], depth: int = 2) -> dict[str, int]:
    out: dict[str, int] = defaultdict(int)
    for path, x in tree.flatten(params).items():
        parts = path.split("/")
        out["/".join(parts[:depth] if len(parts) > depth else parts[:-1] or parts)] += tree.count(x)
    return dict(sorted(out.items()))


def _device_bytes(t: Any) -> int:
    return sum(int(np.prod(x.sharding.shard_shape(x.shape))) * np.dtype(x.dtype).itemsize for x in jax.tree.leaves(t))


def _partition(x: jax.ShapeDtypeStruct) -> list[str | None]:
    spec = [*x.sharding.spec, *[None] * (len(x.shape) - len(x.sharding.spec))]
    return [None if s is None else s if isinstance(s, str) else "+".join(s) for s in spec]


def render(facts: Mapping[str, Any]) -> str:
    """The description as text."""
    mb = lambda n: f"{n / 2**20:,.1f} MiB"
    lines = [f"parameters  {facts['parameters']:,}"]
    lines += [f"  {kind:<9} {facts[f'parameters_{kind}']:,}" for kind in ("trained", "frozen", "state") if facts[f"parameters_{kind}"]]
    width = max(len(name) for name in facts["by_module"])
    lines += ["by module", *(f"  {name:<{width}}  {n:>15,}" for name, n in facts["by_module"].items())]
    lines += [
        f"FLOPs a step  {facts['flops_per_step']:.4g}  (matrix products and convolutions {facts['flops_per_step_matmul']:.4g}), "
        f"an example {facts['flops_per_example']:.4g}",
        *(f"  note: {c}" for c in facts["flops_caveats"]),
    ]
    mesh = " x ".join(f"{a}={n}" for a, n in facts["mesh"].items())
    memory = facts["memory_bytes"]
    lines += [f"mesh {mesh}; memory of one device, activations not counted", *(f"  {k:<11} {mb(v):>14}" for k, v in memory.items())]
    lines += [f"  {'total':<11} {mb(sum(memory.values())):>14}", "sharding"]
    width = max(len(path) for path in facts["sharding"])
    for path, s in facts["sharding"].items():
        dims = ", ".join(f"{n}" if p is None else f"{n}/{p}" for n, p in zip(s["shape"], s["partition"], strict=True))
        lines.append(f"  {path:<{width}}  [{dims}]" + ("" if s["role"] == "trained" else f"  {s['role']}"))
    return "\n".join(lines)


def main(args: argparse.Namespace) -> int:
    config = config_lib.load(args.config) if args.config else config_lib.open_workdir(args.workdir)
    config_lib.override(config, args.overrides)
    facts = describe(assemble(config, sharding.abstract_mesh(dict(config.mesh), args.devices)))
    print(json.dumps(facts, indent=1) if args.json else render(facts))
    return 0
