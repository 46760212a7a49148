"""The named cases of `mmjax bench`. A new one is a config, a function that prepares its sides, and a line in `CASES`."""

import contextlib
import dataclasses
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from mmjax import tasks
from mmjax.bench import machine, measure
from mmjax.bench.peer import Peer
from mmjax.cli.program import Program, assemble
from mmjax.cli.train import model_flops
from mmjax.convert import own, transfer, workdir
from mmjax.convert.tensors import Tensor
from mmjax.core import flops, rng, sharding, tree
from mmjax.core.config import base
from mmjax.core.errors import UserError
from mmjax.core.types import Params, Task
from mmjax.data.synthetic import synthetic_batch
from mmjax.models import dit, unet
from mmjax.models import lm as language_model
from mmjax.models.clip import VARIANTS, normalise
from mmjax.objectives.contrastive import TILE, info_nce

PEERS = Path(__file__).resolve().parents[1] / "bench" / "peers"
TOLERANCE = {"float32": 1e-3, "bfloat16": 0.1}  # of the outputs' relative difference: beyond it the sides compute different things


@dataclasses.dataclass
class Prepared:
    """A case, warm.

    Attributes:
      sides: ours first, then what it is compared with.
      facts: for the record: parameters, differences of the outputs, the peer's versions.
      convolves: held to the machine's rate of convolutions too.
      written: tokens a step writes, where that is what it does; 0 elsewhere.
    """

    sides: dict[str, measure.Side]
    work: measure.Work
    facts: dict[str, Any]
    convolves: bool = False
    written: int = 0


StartPeer = Callable[[Path, Path], Peer]  # (script, folder) -> peer, starting
Prepare = Callable[[ConfigDict, contextlib.ExitStack, Path, StartPeer | None], Prepared]


@dataclasses.dataclass(frozen=True)
class Case:
    """What is measured.

    Attributes:
      config: a fresh config, whose keys the command line may set.
      prepare: makes the sides; what is to be closed goes on the stack, files into the folder. Without a peer, ours alone.
      peer: whether it has one in PyTorch.
      accelerator: not run on a CPU unless it is named.
    """

    about: str
    config: Callable[[], ConfigDict]
    prepare: Prepare
    peer: bool = True
    accelerator: bool = False


# --- CLIP ----------------------------------------------------------------------------------------------------------------


def clip_config(name: str, batch_size: int, dtype: str = "float32", scan: bool = False) -> ConfigDict:
    """The published model, and its optimizer without a schedule. Layers are unrolled where that is fast to compile."""
    c = base()
    c.task, c.dtype, c.batch_size = "clip", dtype, batch_size
    c.model = ConfigDict({**VARIANTS[name], "channels": 3})
    for tower in (c.model.image, c.model.text):
        tower.scan, tower.remat, tower.backend = scan, "none", "xla"
    c.optim.lr, c.optim.schedule, c.optim.weight_decay = 5e-4, "constant", 0.2
    c.optim.args = ConfigDict({"b1": 0.9, "b2": 0.98, "eps": 1e-6})
    return c


def prepare_train(config: ConfigDict, stack: contextlib.ExitStack, folder: Path, start: StartPeer | None) -> Prepared:
    """The trainer's own step, its state donated, on one batch again and again."""
    program, batch, params, peer = _clip(config, "train", stack, folder, start)
    device_batch = sharding.put_batch(batch, config.batch_size, program.mesh)
    forward = lambda params, batch: {
        "image": normalise(program.task.predict["encode_image"](params, batch["image"])),
        "text": normalise(program.task.predict["encode_text"](params, batch["tokens"])),
    }
    ours = jax.device_get(jax.jit(forward)(params, device_batch)) if peer else {}
    compiled = program.lower().compile()
    run = _stepping(compiled, program.init(), device_batch)  # the same draws as `params`, which the step may not take the memory of
    for name in ("loss", "second_loss"):  # the second shows that the optimizers, too, do the same
        run(1)
        ours[name] = float(run.loss)
    total = model_flops(config, program)
    work = measure.Work(total, _bytes(compiled, total))
    return _against(peer, folder, run, work, ours, config, {"parameters": tree.count(program.abstract.params)})


def _stepping(compiled: Callable, state: Any, batch: Any) -> Any:
    """A side that trains on one batch, its state donated from step to step; its last loss is its attribute `loss`."""

    def run(steps: int) -> float:
        nonlocal state
        began = time.perf_counter()
        for _ in range(steps):
            state, metrics = compiled(state, batch)
        jax.block_until_ready((state, metrics))
        run.loss = metrics["loss"]
        return time.perf_counter() - began

    return run


def prepare_encode(config: ConfigDict, stack: contextlib.ExitStack, folder: Path, start: StartPeer | None) -> Prepared:
    """`predict["encode_image"]` jitted, on one batch again and again."""
    program, batch, params, peer = _clip(config, "encode", stack, folder, start)
    images = jnp.asarray(batch["image"])
    encode = jax.jit(program.task.predict["encode_image"])
    compiled = encode.lower(params, images).compile()
    total = flops.count(encode, params, images).matmul_flops
    ours = {"image": np.asarray(compiled(params, images))}
    used = tree.select(params, lambda path: path.startswith("image"))
    work = measure.Work(total, _bytes(compiled, total))
    return _against(peer, folder, measure.timed(compiled, params, images), work, ours, config, {"parameters": tree.count(used)})


def _clip(
    config: ConfigDict, kind: str, stack: contextlib.ExitStack, folder: Path, start: StartPeer | None
) -> tuple[Program, dict[str, np.ndarray], Params, Peer | None]:
    """The program, a batch, parameters, and the peer that is loading the same two."""
    program = assemble(config, sharding.make_mesh({"data": 1, "fsdp": 1, "tensor": 1}, jax.devices()[:1]))  # as many as the peer uses
    batch = _batch(program)
    params = program.init().params
    if start is None:
        return program, batch, params, None
    fields = dict(model=config.model.to_dict(), task="clip")
    own.write(folder / "own", fields, _tensors(params))
    transfer.export_to(folder / "own", "hf", folder / "hf")
    np.savez(folder / "batch.npz", **batch)
    optim = {"lr": config.optim.lr, "weight_decay": config.optim.weight_decay, **config.optim.args}
    spec = {"kind": kind, "dtype": config.dtype, "threads": machine.cores(), **optim}
    (folder / "spec.json").write_text(json.dumps(spec))
    return program, batch, params, stack.enter_context(start(PEERS / "clip.py", folder))


def _batch(program: Program) -> dict[str, np.ndarray]:
    """Random pixels, and texts of random tokens and lengths that end in the end token, the largest."""
    batch = synthetic_batch(program.task.batch_spec, seed=0, cursor=0)
    (count, length), vocab = batch["tokens"].shape, program.task.limits["tokens"]
    r = np.random.default_rng(0)
    ends = r.integers(1, length, count)
    places = np.arange(length)[None, :]
    drawn = np.where(places < ends[:, None], r.integers(1, vocab - 1, (count, length)), 0)
    batch["tokens"] = np.where(places == ends[:, None], vocab - 1, drawn).astype(np.int32)
    return batch


def _against(
    peer: Peer | None, folder: Path, ours: measure.Side, work: measure.Work, outputs: dict, config: ConfigDict, facts: dict
) -> Prepared:
    """Ours and the peer's side, once their outputs were compared.

    Raises:
      UserError: they are not the same computation.
    """
    facts = {"batch_size": config.batch_size, **facts}
    if peer is None:
        return Prepared({"mmjax": ours}, work, facts)
    facts["peer"] = {k: v for k, v in peer.wait_ready().about.items() if k != "ready"}
    with np.load(folder / "outputs.npz") as theirs:
        both = {k: (np.asarray(v, np.float64), theirs[k].astype(np.float64)) for k, v in outputs.items()}
    facts["differences"] = {k: float(abs(a - b).max() / abs(b).max()) for k, (a, b) in both.items()}
    for name, x in facts["differences"].items():
        if name != "second_loss" and not x <= TOLERANCE[config.dtype]:  # Adam divides by |g|, which magnifies rounding
            raise UserError(f"outputs '{name}' of mmjax and its peer differ by {x:.2g} of the largest: they are not the same computation")
    return Prepared({"mmjax": ours, "peer": peer.run}, work, facts)


def _bytes(compiled: Any, total: int) -> float | None:
    """What the executable's operations read and write by XLA's count; None where its count visits loops once, or has no products."""
    found = compiled.cost_analysis() or {}
    return found.get("bytes accessed") if found.get("flops", 0) >= 0.9 * total else None


# --- diffusion -----------------------------------------------------------------------------------------------------------


DIT = {"type": "dit", "freq_shift": 1, "eps": 1e-5}  # what diffusers computes: its times are spread otherwise than DiT's own


def diffusion_config(network: dict[str, Any], size: int, channels: int, batch_size: int, dtype: str = "float32") -> ConfigDict:
    """Noise predicted on DDPM's linear schedule, the plain squared error."""
    c = base()
    c.task, c.dtype, c.batch_size = "diffusion", dtype, batch_size
    model = {"size": size, "channels": channels, "network": network, "path": {"name": "discrete", "betas": "linear"}, "prediction": "eps"}
    if network["type"] == "dit":
        model |= {"labels": True, "variance": "learned_range"}  # which the plain loss leaves alone, as it does the peer's
    c.model = ConfigDict({**model, "sampler": {}})
    c.optim.lr, c.optim.schedule, c.optim.weight_decay = 2e-4, "constant", 0.0
    c.optim.args = ConfigDict({"b1": 0.9, "b2": 0.999, "eps": 1e-8})
    return c


def prepare_diffusion(config: ConfigDict, stack: contextlib.ExitStack, folder: Path, start: StartPeer | None) -> Prepared:
    """The trainer's own step, its state donated, on one batch again and again; times and noise are drawn anew, by the peer too."""
    program = assemble(config, sharding.make_mesh({"data": 1, "fsdp": 1, "tensor": 1}, jax.devices()[:1]))
    batch = synthetic_batch(program.task.batch_spec, seed=0, cursor=0)
    labels = {"labels": batch["label"] % program.task.limits["label"]} if "label" in batch else {}
    batch |= {"label": labels["labels"]} if labels else {}
    t = np.linspace(0, 999, config.batch_size).astype(np.int64)
    params, peer = _stirred(program.init().params), None
    if start is not None:
        part = workdir.parts_of(config, "a benchmark")["network"]
        own.write(folder / "own", {"model": part.model, **part.further}, _tensors(params))
        transfer.export_to(folder / "own", "hf", folder / "hf")
        np.savez(folder / "batch.npz", image=batch["image"], t=t, **labels)
        optim = {"lr": config.optim.lr, "weight_decay": config.optim.weight_decay, **config.optim.args}
        (folder / "spec.json").write_text(json.dumps({"dtype": config.dtype, "threads": machine.cores(), **optim}))
        peer = stack.enter_context(start(PEERS / "diffusion.py", folder))
    outputs = {}
    if peer is not None:
        forward = jax.jit(program.task.predict["network"])
        outputs["network"] = jax.device_get(forward(params, jnp.asarray(batch["image"]), jnp.asarray(t, jnp.float32), **labels))
    compiled = program.lower().compile()
    device_batch = sharding.put_batch(batch, config.batch_size, program.mesh)
    run = _stepping(compiled, program.init(), device_batch)
    run(1)
    total = model_flops(config, program)
    work = measure.Work(total, _bytes(compiled, total))
    made = _against(peer, folder, run, work, outputs, config, {"parameters": tree.count(program.abstract.params)})
    return dataclasses.replace(made, convolves=config.model.network.type == "unet")


def sampler_config() -> ConfigDict:
    """DDPM's U-Net, drawn from by DDIM in 50 steps."""
    c = diffusion_config({"type": "unet", **unet.VARIANTS["ddpm-cifar10"]}, 32, 3, 4)
    c.model.sampler = ConfigDict({"solver": "ddim", "steps": 50, "clip": "static"})
    return c


def prepare_sampler(config: ConfigDict, stack: contextlib.ExitStack, folder: Path, start: StartPeer | None) -> Prepared:
    """`predict["sample"]` jitted, against its network jitted and called as often, each call waiting for nothing."""
    program = assemble(config, sharding.make_mesh({"data": 1, "fsdp": 1, "tensor": 1}, jax.devices()[:1]))
    params, steps, predict = program.init().params, int(config.model.sampler.steps), program.task.predict
    if "sample" not in predict:
        raise UserError("this case draws from a model without a condition; leave model.labels, model.text and model.context out")
    keys = jax.random.split(jax.random.key(0), config.batch_size)
    x, t = jnp.zeros((config.batch_size, *program.task.batch_spec["image"].shape[1:])), jnp.zeros(config.batch_size)
    draw = jax.jit(predict["sample"]).lower(params, keys).compile()
    forward = jax.jit(predict["network"]).lower(params, x, t).compile()
    network = flops.count(predict["network"], params, x, t).matmul_flops

    def forwards(count: int) -> float:
        began = time.perf_counter()
        for _ in range(count * steps):
            out = forward(params, x, t)
        jax.block_until_ready(out)
        return time.perf_counter() - began

    found = np.asarray(draw(params, keys))
    if not np.isfinite(found).all():
        raise UserError("the sampler drew values that are not finite")
    facts = {"batch_size": config.batch_size, "steps": steps, "parameters": tree.count(program.abstract.params)}
    sides = {"sampler": measure.timed(draw, params, keys), "forwards": forwards}
    return Prepared(sides, measure.Work(steps * network, None), facts, convolves=config.model.network.type == "unet")


def _stirred(params: Params, std: float = 0.02) -> Params:
    """Parameters none of which is 0: DiT starts with an output of zeros, by which nothing can be compared."""
    leaves, treedef = jax.tree.flatten(params)
    keys = jax.random.split(jax.random.key(1), len(leaves))
    return treedef.unflatten([x + std * jax.random.normal(k, x.shape, x.dtype) for k, x in zip(keys, leaves, strict=True)])


# --- decoding ------------------------------------------------------------------------------------------------------------


def decode_config(name: str) -> ConfigDict:
    """A published language model, its layers apart, and prompts of random tokens that are continued greedily."""
    lm = {**language_model.VARIANTS[name], "scan": False}
    return ConfigDict({"model": {"lm": lm}, "batch_size": 8, "prompt": 64, "new": 128, "dtype": "float32"})


def prepare_decode(config: ConfigDict, stack: contextlib.ExitStack, folder: Path, start: StartPeer | None) -> Prepared:
    """`predict["generate"]`, with what it checks, on the same prompts again and again. A step writes `new` tokens in every row."""
    for key in ("batch_size", "prompt", "new"):
        if config[key] < 1:
            raise UserError(f"{key} is {config[key]}; expected a positive number")
    c = base()
    c.task, c.dtype, c.batch_size = "language_model", config.dtype, config.batch_size
    c.model = ConfigDict({**config.model, "length": config.prompt + config.new})
    task = tasks.make(c)
    params = _stirred(jax.jit(task.init)(jax.random.key(0)), 0.05)  # fresh, it would say its last token again and again
    params = jax.tree.map(lambda x: x.astype(config.dtype), params)
    tokens = np.random.default_rng(0).integers(0, config.model.lm.vocab, (config.batch_size, config.prompt)).astype(np.int32)
    peer = None
    if start is not None:
        own.write(folder / "own", {"model": config.model.to_dict()}, _tensors(params))
        transfer.export_to(folder / "own", "hf", folder / "hf")
        np.savez(folder / "batch.npz", tokens=tokens)
        (folder / "spec.json").write_text(json.dumps({"dtype": config.dtype, "threads": machine.cores(), "new": config.new}))
        peer = stack.enter_context(start(PEERS / "language_model.py", folder))
    write = lambda: task.predict["generate"](params, tokens, jax.random.key(0), max_new_tokens=config.new)
    ours = np.asarray(write().tokens)
    outputs = {} if peer is None else {"logits": jax.jit(lambda p: task.predict["logits"](p, tokens)[:, -1])(params)}
    made = _against(peer, folder, measure.timed(write), _decoding_work(task, params, config), outputs, config, {"new": config.new})
    made.facts["parameters"] = tree.count(params)
    if peer is not None:
        with np.load(folder / "outputs.npz") as theirs:
            made.facts["same_tokens"] = same_tokens(ours, theirs["tokens"], exact=config.dtype == "float32")
    return dataclasses.replace(made, written=ours.size)


def same_tokens(ours: np.ndarray, theirs: np.ndarray, exact: bool) -> float:
    """The share of tokens that are the same.

    Raises:
      UserError: not all, where they must be: rounding alone decides nothing in float32.
    """
    same = ours == theirs
    if exact and not same.all():
        row, place = np.argwhere(~same)[0]
        raise UserError(f"mmjax and its peer wrote other tokens, first new token {place} of row {row}: they are not the same computation")
    return float(same.mean())


def _decoding_work(task: Task, params: Params, config: ConfigDict) -> measure.Work:
    """Of the prompts without their logits and of every new token, which sees all slots; of bytes, that the parameters and the whole cache
    are read once a token."""
    model, rows, slots = language_model.build(config.model.lm, config.dtype), config.batch_size, config.prompt + config.new
    whole = lambda n: flops.count(task.predict["logits"], params, jax.ShapeDtypeStruct((rows, n), jnp.int32)).matmul_flops
    keys = jax.eval_shape(lambda: model.init_cache(rows, slots))
    attended = sum(2 * x.size for x in jax.tree.leaves(keys)) // slots * (slots - 1) * model.heads // (model.kv_heads or model.heads)
    total = whole(config.prompt) - 2 * rows * config.prompt * model.width * model.vocab + config.new * (whole(1) + attended)
    read, cache = (sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(t)) for t in (params, keys))
    return measure.Work(total, float((config.new + 1) * read + config.new * cache))


def _tensors(params: Params) -> dict[str, Tensor]:
    return {path: Tensor(x.shape, np.dtype(x.dtype), lambda x=x: np.asarray(x)) for path, x in tree.flatten(params).items()}


# --- the contrastive loss ------------------------------------------------------------------------------------------------


def info_nce_config() -> ConfigDict:
    """8,192 pairs, the width of ViT-B's embedding."""
    return ConfigDict({"pairs": 8192, "width": 512, "tile": TILE, "dtype": "float32"})


def prepare_info_nce(config: ConfigDict, stack: contextlib.ExitStack, folder: Path, start: StartPeer | None) -> Prepared:
    """Loss and gradients of the ring form, which never holds the logits, against the dense form. FLOPs are the dense form's."""
    for key in ("pairs", "width"):
        if config[key] < 1:
            raise UserError(f"{key} is {config[key]}; expected a positive number")
    if config.dtype != "float32":
        raise UserError(f"dtype is {config.dtype!r}; the contrastive loss is computed in 'float32'")
    keys = rng.fold(jax.random.split(jax.random.key(0), 2), 0)
    args = (*(normalise(jax.random.normal(k, (config.pairs, config.width))) for k in keys), jnp.log(jnp.float32(100)))
    grad = lambda form: jax.value_and_grad(lambda *a: info_nce(*a, form=form, tile=config.tile)[0], argnums=(0, 1, 2))
    forms = {form: jax.jit(grad(form)).lower(*args).compile() for form in ("ring", "dense")}
    values = {form: jax.device_get(run(*args)) for form, run in forms.items()}
    leaves = [jax.tree.leaves(values[form]) for form in ("ring", "dense")]
    names = ("loss", "d_images", "d_texts", "d_log_scale")
    differences = {n: float(abs(a - b).max() / abs(b).max()) for n, a, b in zip(names, *leaves, strict=True)}
    total = flops.count(grad("dense"), *args).matmul_flops
    memory = {f: run.memory_analysis().temp_size_in_bytes for f, run in forms.items()}
    facts = {"pairs": config.pairs, "width": config.width, "differences": differences, "temporary_bytes": memory}
    # Roofline of the dense form's traffic: the ring has loops, whose traffic XLA counts once.
    sides = {form: measure.timed(run, *args) for form, run in forms.items()}
    return Prepared(sides, measure.Work(total, None), facts)


CASES = {
    "clip-vit-b32-train": Case(
        "training step of ViT-B/32 CLIP, batch 32, AdamW, against transformers and PyTorch",
        lambda: clip_config("ViT-B/32", 32),
        prepare_train,
    ),
    "clip-vit-l14-train": Case(
        "training step of ViT-L/14 CLIP, batch 64, bfloat16, against PyTorch with compile and flash attention",
        lambda: clip_config("ViT-L/14", 64, "bfloat16", scan=True),
        prepare_train,
        accelerator=True,
    ),
    "clip-vit-b32-encode": Case(
        "ViT-B/32 encoding 32 images, against transformers and PyTorch", lambda: clip_config("ViT-B/32", 32), prepare_encode
    ),
    "ddpm-cifar10-train": Case(
        "training step of DDPM's U-Net for CIFAR-10, batch 16, against diffusers and PyTorch",
        lambda: diffusion_config({"type": "unet", **unet.VARIANTS["ddpm-cifar10"]}, 32, 3, 16),
        prepare_diffusion,
    ),
    "dit-b4-train": Case(
        "training step of DiT-B/4 on latents of 32 x 32 x 4, batch 16, against diffusers and PyTorch",
        lambda: diffusion_config({**DIT, **dit.VARIANTS["DiT-B/4"]}, 32, 4, 16),
        prepare_diffusion,
    ),
    "dit-xl2-train": Case(
        "training step of DiT-XL/2 on latents of 32 x 32 x 4, batch 64, bfloat16, against diffusers and PyTorch with compile",
        lambda: diffusion_config({**DIT, **dit.VARIANTS["DiT-XL/2"]}, 32, 4, 64, "bfloat16"),
        prepare_diffusion,
        accelerator=True,
    ),
    "gpt2-decode": Case(
        "GPT-2 small continuing 8 prompts of 64 tokens by 128 each, greedily, against transformers' generate",
        lambda: decode_config("gpt2"),
        prepare_decode,
    ),
    "sampler": Case(
        "4 pictures of DDPM's U-Net for CIFAR-10 in 50 steps of DDIM: the sampler against 50 bare forward passes",
        sampler_config,
        prepare_sampler,
        peer=False,
    ),
    "info-nce": Case(
        "loss and gradients of 8,192 pairs of width 512: the ring form against the dense form",
        info_nce_config,
        prepare_info_nce,
        peer=False,
    ),
}
