"""Configs: every key the trainer reads with its default, loading a config file, overrides, and `config.json`.

A config file is a Python file with `get_config(arg=None) -> ConfigDict` that starts from `base()`, fills in the
task's own groups and returns it. It is run only when the user names it on a command line; a workdir holds JSON.
"""

import ast
import dataclasses
import importlib.util
import inspect
import json
import os
import re
import subprocess
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict
from ml_collections.config_dict import placeholder

from mmjax.core.errors import UserError, suggest
from mmjax.version import __version__

Group = ConfigDict | Mapping[str, Any]  # a group of a config, or a plain dict in its place

FORMAT = 1  # of config.json; a reader refuses a newer one

# Groups whose keys are another's to name: the optimizer's, the schedule's, the averages', the records'.
OPEN = ("optim.args", "optim.schedule_args", "ema", "data.features")

# Keys that may differ between a saved run and the command that continues it: none changes what a step computes. Of those that say
# where a set lies, it is by its fingerprint that a run knows it (data/provenance.py).
_PLACES = ("data.dir", "data.path", "data.index", "data.images", "data.subset", "data.packing", "data.length_groups")
_READING = ("data.workers", "data.threads", "data.prefetch", "data.max_bad", "data.accept_changed")
MAY_CHANGE = ("steps", "mesh", "evals", "checkpoint", "log", *_PLACES, *_READING)


def base() -> ConfigDict:
    """Every key the trainer reads. Groups left empty here (`model`, `evals`) belong to the task and the evaluators."""
    c = ConfigDict()
    c.task = ""  # a key of mmjax.tasks.TASKS
    c.seed = 0  # initialisation, data order, augmentation and dropout all follow from it
    c.steps = 1000  # optimizer steps in the whole run
    c.batch_size = 256  # examples a step, over all devices and hosts
    c.accumulate = 1  # microbatches a step
    c.dtype = "float32"  # compute: float32 or bfloat16; parameters are always float32
    c.model = ConfigDict()  # keyword arguments of the task's model

    c.data = ConfigDict()
    c.data.source = ""  # a key of mmjax.data.SOURCES
    c.data.dir = placeholder(str)  # where prepared sets lie; default $MMJAX_DATA or ~/.cache/mmjax/data
    c.data.path = placeholder(str)  # the set: a folder (tfds), files by glob or braces, "{00000..00099}.tar" (the others); below dir
    c.data.split = "train"
    c.data.subset = placeholder(str)  # a kept index of `mmjax data curate`; of split `data.split` only its records are read
    # Indexes of `mmjax data pack`, folders; text alone: several sequences a row, or records of like length together in a batch.
    c.data.packing = placeholder(str)
    c.data.length_groups = placeholder(str)
    c.data.expect_fingerprint = placeholder(str)  # cached: of the model that must have made the set
    c.data.accept_changed = placeholder(str)  # go on with sets that changed since the run began; the error about them says with what
    # key of a record -> what of the set fills it, "/" into nested ones: {"image": "image", "captions": "captions/text"}
    c.data.features = ConfigDict()
    c.data.features.unlock()
    c.data.index = placeholder(str)  # shards: file of the index; default below dir's default, built on first use
    c.data.images = placeholder(str)  # jsonl, documents: folder (documents: or tar shards) of the images; default: beside the jsonl
    c.data.absolute = False  # jsonl: allow absolute paths and URLs as images
    c.data.classes = placeholder(str)  # tfds, jsonl: file of class names, one a line in the order of the labels
    c.data.prompts = ()  # tfds, jsonl: zero-shot templates with {} for the class name
    c.data.fps = placeholder(float)  # video: frames a second of the sequences; default: as stored
    c.data.stored_fps = placeholder(float)  # video: frames a second that folders and tars of frames were written at
    c.data.frames = placeholder(int)  # video: frames a sequence at most
    c.data.scenes = ConfigDict()  # scenes: what is prepared, see docs/scenes.md
    c.data.scenes.config = "objects"  # a key of mmjax.data.scenes.examples.CONFIGS
    c.data.scenes.pixels = 64  # 16, 32, 64, 128 or 256
    c.data.scenes.train = 20_000  # examples of split train
    c.data.scenes.evaluation = 1_000  # of each other split
    # A tokenizer of any form that data/tokenizer.py reads, file or folder; default: the one stored beside the set.
    c.data.tokenizer = placeholder(str)
    c.data.transforms = ()  # (("name", {arguments}), ...), names in mmjax.data.transforms.TRANSFORMS
    c.data.window = 16  # shards of a large source that are shuffled together; 0 = all of it at once
    # ((weight, {keys of data that differ}), ...): several sources in one stream, each with its exact share and its own epochs.
    c.data.mixture = ()
    # name -> {keys of data that differ}: one stream for each part of a task's nested batch.
    c.data.streams = ConfigDict()
    c.data.streams.unlock()
    # A record that cannot be used is replaced and counted; in training so is an image beyond these limits.
    c.data.max_aspect = placeholder(float)  # its longer side over its shorter one
    c.data.min_side = placeholder(int)  # pixels of its shorter side
    c.data.max_bad = 0.1  # the most of the last 1,000 records that may be bad before the run stops
    c.data.workers = 0  # loader processes; 0 = threads of this process. The batches are the same for any number
    c.data.threads = 2  # loader threads in a process
    c.data.prefetch = 4  # batches made ahead of the step

    c.optim = ConfigDict()
    c.optim.name = "adamw"  # adamw | adafactor | lion | sgd | muon
    c.optim.args = ConfigDict()  # the optimizer's own keyword arguments, as optax names them: {"b1": 0.9, "b2": 0.98}
    c.optim.args.unlock()
    c.optim.lr = 1e-3  # peak
    c.optim.schedule = "cosine"  # constant | linear | cosine | rsqrt | wsd | piecewise
    c.optim.schedule_args = (
        ConfigDict()
    )  # linear, cosine, wsd: end_factor; wsd: decay_steps; rsqrt: timescale; piecewise: boundaries ((step, factor), ...)
    c.optim.schedule_args.unlock()
    c.optim.warmup = 0  # steps of linear warm-up from 0
    c.optim.weight_decay = 0.0  # decoupled, times the learning rate
    # First-match rules over parameter paths (regex, full match). Each list must cover every trained parameter and
    # each rule must decide at least one.
    c.optim.wd_rules = ((".*", 1.0),)  # factor on weight_decay
    # A factor may also be a tuple with one number a layer, where the pattern matches parameters of a stack of layers only.
    c.optim.lr_rules = ((".*", 1.0),)  # factor on lr
    c.optim.layer_decay = placeholder(float)  # lr of layer i of n times layer_decay ** (n - i); see core/layerwise.py
    # What of a stack's siblings comes before it: under layer_decay, lr times layer_decay ** (n + 1).
    c.optim.embed_pattern = "(.*/)?(cls|pos(?!t)|patch|embed|token|pre_norm)[^/]*(/.*)?"
    c.optim.freeze = ()  # patterns of parameters that are not trained: no gradient, no optimizer state
    c.optim.clip_norm = placeholder(float)  # global gradient norm
    c.optim.agc = placeholder(float)  # adaptive gradient clipping (NFNet): most a unit's gradient norm may be of its weight norm
    c.optim.agc_rules = ((".*", True),)  # which parameters agc clips; read only with agc set
    # (("name", regex of parameters, {keys of optim that differ}), ...): each has its own optimizer, clipping and learning rate, the first
    # match decides, and what none takes follows the keys above. The rules of other keys go over all parameters together.
    c.optim.groups = ()
    c.optim.muon_rules = ()  # matrices Muon takes, Adam takes the rest; empty: those of the stacks of layers

    c.lora = ConfigDict()
    c.lora.rules = ()  # patterns of kernels that get a low-rank adapter; then everything else is frozen, but `train`
    c.lora.train = ()  # patterns of parameters trained in full beside the adapters
    c.lora.rank = 8
    c.lora.alpha = 16.0  # the adapter is scaled by alpha / rank

    # name -> decay, e.g. {"ema": 0.999}, or {"half_life": examples, "ramp": share} or {"power": std}, see core/ema.py; evaluations use
    # the first. Empty: none
    c.ema = ConfigDict()
    c.ema.unlock()
    c.nonfinite_limit = 10  # so many steps in a row with a non-finite loss or gradient stop the run

    c.mesh = ConfigDict()  # sizes of the device mesh; one may be -1 (fills)
    c.mesh.data = -1  # batch
    c.mesh.fsdp = 1  # batch, parameters and optimizer state
    c.mesh.tensor = 1  # heads, feed-forward and vocabulary
    c.sharding = ConfigDict()
    c.sharding.table = ()  # ((logical axis, mesh axes), ...) replacing entries of core.sharding.RULES
    # First-match rules over parameter paths: "logical" follows the table, "replicate" does not shard.
    c.sharding.rules = ((".*", "logical"),)

    c.init_from = ConfigDict()  # start from another run's parameters, or from published weights
    c.init_from.path = placeholder(str)  # its workdir; or a folder or file that mmjax.from_pretrained reads
    c.init_from.step = placeholder(int)  # default: its newest checkpoint
    c.init_from.ema = placeholder(str)  # take this EMA's weights rather than the raw ones
    c.init_from.rename = ()  # ((regex, replacement), ...) on the source's paths
    c.init_from.skip = ()  # target paths left at their initial value, and source paths left out

    c.checkpoint = ConfigDict()
    c.checkpoint.every = 500  # steps; the last step is always saved
    c.checkpoint.keep_last = 2
    c.checkpoint.keep_every = placeholder(int)  # also keep every checkpoint whose step is a multiple of this
    # Steps between snapshots of the averages of type power, all of which are kept, for mmjax eval|sample --ema_std; default: `every`.
    c.checkpoint.snapshot_every = placeholder(int)
    c.checkpoint.best = placeholder(str)  # also keep the best by this evaluation metric, e.g. "zero_shot/accuracy"
    c.checkpoint.best_mode = "max"  # max | min

    c.log = ConfigDict()
    c.log.every = 10  # steps
    c.log.tensorboard = True
    c.log.progress = True  # the progress bar, where the output is a terminal

    # name -> {type: a key of mmjax.evals.EVALS, every: steps, split: ..., the evaluator's own arguments}
    c.evals = ConfigDict()
    c.evals.unlock()
    return c


def _load_module(path: Path):
    if not path.is_file():
        folder = path.parent
        near = [p.name for p in folder.glob("*.py")] if folder.is_dir() else []
        raise UserError(f"config file '{path}' does not exist{suggest(path.name, near) if near else ''}")
    spec = importlib.util.spec_from_file_location(f"mmjax_config_{path.stem}", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    if not hasattr(module, "get_config"):
        raise UserError(f"config file '{path}' has no function get_config(arg=None)")
    return module


def load(spec: str, overrides: Iterable[str] = ()) -> ConfigDict:
    """The config of `path.py` or `path.py:arg`, with `key.sub=value` overrides, locked.

    Raises:
      UserError: no such file, no `get_config`, an argument it does not take, a misspelt key or a value of the wrong type.
    """
    path, _, arg = spec.partition(":")
    get_config = _load_module(Path(path)).get_config
    if arg and not inspect.signature(get_config).parameters:
        raise UserError(f"config '{path}' takes no argument, got ':{arg}'")
    config = get_config(arg) if arg else get_config()
    if not isinstance(config, ConfigDict):
        raise UserError(f"get_config of '{path}' returned {type(config).__name__}, expected an ml_collections.ConfigDict")
    _check_known(config, path)
    config.lock()
    return override(config, overrides)


def _check_known(config: ConfigDict, path: str) -> None:
    """A config file may fill open groups but not invent keys elsewhere: what nothing reads would be silently ignored."""
    known = base()
    for key in config:
        if key not in known:
            raise UserError(f"config '{path}' sets unknown key '{key}'{suggest(key, known)}")
        if isinstance(known[key], ConfigDict) and len(known[key]):
            for sub in config[key]:
                if sub not in known[key]:
                    raise UserError(f"config '{path}' sets unknown key '{key}.{sub}'{suggest(sub, known[key])}")


def _parse(text: str) -> Any:
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError):
        return {"true": True, "false": False, "none": None}.get(text.lower(), text)


def override(config: ConfigDict, overrides: Iterable[str]) -> ConfigDict:
    """Applies `key.sub=value` strings; values are Python literals, anything else is a string. Returns `config`.

    `none` unsets an optional key (one whose default is None). The groups of `OPEN` take new keys, or a dict as a whole.

    Raises:
      UserError: not of that form, a key that is not there (with the closest one that is), or a value of another type.
    """
    for item in overrides:
        key, eq, text = item.partition("=")
        if not eq:
            raise UserError(f"override '{item}' is not of the form key=value, for example optim.lr=3e-4")
        *parents, leaf = key.split(".")
        node, seen = config, ""
        for parent in parents:
            if not isinstance(node, ConfigDict) or parent not in node:
                raise UserError(f"override '{item}': no config group '{seen}{parent}'{suggest(parent, _groups(node))}")
            node, seen = node[parent], f"{seen}{parent}."
        if not isinstance(node, ConfigDict):
            raise UserError(f"override '{item}': '{seen.rstrip('.')}' is a {type(node).__name__}, not a group of keys")
        if leaf not in node and seen.rstrip(".") not in OPEN:
            raise UserError(f"override '{item}': no config key '{key}'{suggest(leaf, node)}")
        with node.unlocked():
            _assign(node, leaf, key, text, item)
    return config


def _assign(node: ConfigDict, leaf: str, key: str, text: str, item: str) -> None:
    """One override: `text` as a value of the type the key has."""
    value = _parse(text)
    if leaf not in node:
        node[leaf] = value
        return
    if isinstance(node[leaf], ConfigDict):
        if key not in OPEN or not isinstance(value, dict):
            raise UserError(f"override '{item}': '{key}' is a group; set one of its keys: {', '.join(sorted(node[leaf])) or 'it is empty'}")
        node[leaf] = ConfigDict(value)
        return
    kind = node.get_ref(leaf).get_type()
    if value is None and not _optional(key, node[leaf]) and kind is not str:
        raise UserError(f"override '{item}': '{key}' takes {kind.__name__} and cannot be unset")
    if kind is str and not (value is None and _optional(key, node[leaf])):
        value = value if isinstance(value, str) else text  # a string key takes the text as it stands: data.split=2024, remat=none
    if kind is bool and not isinstance(value, bool):
        raise UserError(f"override '{item}': '{key}' takes true or false, got {text!r}")
    try:
        node[leaf] = value
    except TypeError:
        raise UserError(f"override '{item}': '{key}' takes {kind.__name__}, got {text!r} ({type(value).__name__})") from None


def _optional(key: str, value: Any) -> bool:
    """Whether None is a value of the key: it is the default, or, of a key `base` does not know, what stands there."""
    node: Any = base()
    for part in key.split("."):
        if not isinstance(node, ConfigDict) or part not in node:
            return value is None
        node = node[part]
    return node is None


def _groups(node: Any) -> list[str]:
    return [k for k in node if isinstance(node[k], ConfigDict)] if isinstance(node, ConfigDict) else []


def get(config: Group, key: str, where: str) -> Any:
    """`config[key]`, or a `UserError` that says which group lacks it."""
    if key not in config:
        raise UserError(f"{where} has no key '{key}'{suggest(key, config)}")
    return config[key]


def with_variant(config: Group, variants: Mapping[str, Group], where: str) -> dict[str, Any]:
    """A group's fields over those of the published model that its `variant` names, if it names one.

    Raises:
      UserError: there is none of that name.
    """
    fields = dict(config.items())
    name = fields.pop("variant", None)
    if name is not None and name not in variants:
        raise UserError(f"{where}.variant is {name!r}{suggest(str(name), variants)}")
    return {**(variants[name] if name is not None else {}), **fields}


def kwargs_for(cls: type, config: Group, where: str) -> dict[str, Any]:
    """The entries of a config group as keyword arguments of a dataclass or linen module.

    Raises:
      UserError: a key that is no field of `cls`.
    """
    fields = {f.name for f in dataclasses.fields(cls)} - {"parent", "name"}
    for key in config:
        if key not in fields:
            raise UserError(f"{where}: {cls.__name__} has no field '{key}'{suggest(key, fields)}")
    return dict(config)


# --- config.json ---------------------------------------------------------------------------------------------------


def tuples(x: Any) -> Any:
    """JSON knows lists only; every sequence in a config is a tuple."""
    if isinstance(x, list):
        return tuple(tuples(v) for v in x)
    if isinstance(x, dict):
        return {k: tuples(v) for k, v in x.items()}
    return x


def to_dict(config: ConfigDict) -> dict[str, Any]:
    """Plain nested dict, tuples kept."""
    return {k: to_dict(v) if isinstance(v, ConfigDict) else v for k, v in config.items()}


def commit() -> str | None:
    """The git commit of the source tree mmjax runs from, with "+" if it has uncommitted changes; None outside git."""
    root = Path(__file__).resolve().parents[2]
    try:
        run = lambda *a: subprocess.run(["git", "-C", str(root), *a], capture_output=True, text=True, timeout=10, check=True).stdout.strip()
        if Path(run("rev-parse", "--show-toplevel")).resolve() != root:
            return None
        return run("rev-parse", "HEAD") + ("+" if run("status", "--porcelain", "--untracked-files=no") else "")
    except (OSError, subprocess.SubprocessError):
        return None


def save(config: ConfigDict, workdir: Path) -> None:
    """Writes `workdir/config.json`, atomically."""
    record = {"format": FORMAT, "version": __version__, "commit": commit(), "config": to_dict(config)}
    path = Path(workdir) / "config.json"
    tmp = path.with_suffix(f".json.tmp{os.getpid()}")
    with open(tmp, "w") as f:
        json.dump(record, f, indent=1, sort_keys=True)
        f.write("\n")
        f.flush()
        os.fsync(f.fileno())
    os.replace(tmp, path)


def open_workdir(workdir: str | Path) -> ConfigDict:
    """The locked config of a run, from its `config.json`; keys that did not exist when it was written get today's default.

    Raises:
      UserError: no such workdir, a damaged file, or one written by a newer format.
    """
    path = Path(workdir) / "config.json"
    if not path.is_file():
        raise UserError(
            f"'{workdir}' is no workdir of a run: it has no config.json; start one with mmjax train --config C --workdir {workdir}"
        )
    try:
        record = json.loads(path.read_text())
        saved, written = record["config"], record["format"]
    except (ValueError, KeyError, TypeError) as e:
        raise UserError(f"'{path}' is damaged ({e}); restore it, or start the run again with --config") from None
    if written > FORMAT:
        raise UserError(
            f"'{path}' was written by mmjax {record.get('version')} (format {written}); this is {__version__} (format {FORMAT}): upgrade"
        )
    config = base()
    _overlay(config, tuples(saved), str(path))
    config.lock()
    return config


def _overlay(config: ConfigDict, saved: Mapping[str, Any], path: str) -> None:
    locked = config.is_locked
    config.unlock()
    for key, value in saved.items():
        if isinstance(value, dict) and isinstance(config.get(key), ConfigDict):
            _overlay(config[key], value, path)
        else:
            try:
                config[key] = value
            except TypeError as e:
                raise UserError(f"'{path}': key '{key}' has the wrong type: {e}") from None
    if locked:
        config.lock()


def differences(saved: ConfigDict, given: ConfigDict) -> list[str]:
    """Human-readable `key: saved -> given` for keys that differ and may not (`MAY_CHANGE`)."""
    a, b = _leaves(saved), _leaves(given)
    out = []
    for key in sorted(set(a) | set(b)):
        if _fixed(key, a.get(key)) != _fixed(key, b.get(key)):
            out.append(f"{key}: {a.get(key, 'absent')!r} -> {b.get(key, 'absent')!r}")
    return out


def _fixed(key: str, value: Any) -> Any:
    """What of a key's value may not change: nothing of those of `MAY_CHANGE`, a stream's and a mixture's among them."""
    key = re.sub(r"^data\.streams\.[^.]+\.", "data.", key)
    if key == "data.mixture" and isinstance(value, tuple):
        return [_fixed("data.mixture", part) for part in value]
    if key == "data.mixture" and isinstance(value, dict):  # a component's keys
        return {k: kept for k, v in value.items() if (kept := _fixed(f"data.{k}", v)) is not None}
    return None if any(re.match(rf"{re.escape(p)}(\.|$)", key) for p in MAY_CHANGE) else value


def _leaves(config: Group, prefix: str = "") -> dict[str, Any]:
    out: dict[str, Any] = {}
    for key, value in to_dict(config).items() if isinstance(config, ConfigDict) else config.items():
        if isinstance(value, dict):
            out.update(_leaves(value, f"{prefix}{key}."))
        else:
            out[f"{prefix}{key}"] = tuples(json.loads(json.dumps(value)))
    return out
