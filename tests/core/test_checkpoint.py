import dataclasses
import json
import os
import random
import re
import shutil
import signal
import socket
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec, SingleDeviceSharding

from mmjax.core import checkpoint, manifest
from mmjax.core.checkpoint import Checkpoints
from mmjax.core.checkpoint_read import contents, paths_of, read_params
from mmjax.core.errors import UserError

P = PartitionSpec


def make_mesh(*sizes):
    return jax.make_mesh(sizes, ("data", "fsdp", "tensor"), axis_types=(AxisType.Auto,) * 3)


def spec_of(x):
    """Splits what can be split, so that restoring on another mesh moves every element."""
    if x.ndim == 2 and x.shape[0] % 8 == 0 and x.shape[1] % 4 == 0:
        return P(("data", "fsdp"), "tensor")
    return P("fsdp") if x.ndim and x.shape[0] and x.shape[0] % 4 == 0 else P()


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class State:
    step: jax.Array
    cursor: jax.Array
    params: dict
    opt_state: tuple
    ema: dict


def host_state(seed=0):
    rng = np.random.default_rng(seed)
    params = {
        "tower": {"w": rng.normal(size=(16, 8)).astype(np.float32), "b": rng.normal(size=(8,)).astype(jnp.bfloat16)},
        "flags": np.array([True, False, True]),
        "codes": rng.integers(0, 2**32, (5,), dtype=np.uint32),
        "small": rng.integers(-128, 128, (3, 3), dtype=np.int8),
        "scale": np.float32(np.nan),
        "none": np.zeros((0, 4), np.float32),
    }
    floats = {"tower": params["tower"]}
    opt_state = optax.chain(optax.clip_by_global_norm(1.0), optax.adam(1e-3)).init(jax.tree.map(jnp.asarray, floats))
    cursor = np.array([7, 0], np.uint32)
    return State(np.int32(3), cursor, params, jax.tree.map(np.asarray, opt_state), {"slow": floats})


def place(tree, mesh=None):
    def sharding(x):
        return SingleDeviceSharding(jax.devices()[0]) if mesh is None else NamedSharding(mesh, spec_of(x))

    return jax.tree.map(lambda x: jax.device_put(x, sharding(x)), tree)


def abstract(tree):
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), tree)


def assert_bits_equal(a, b):
    a, b = paths_of(a), paths_of(b)
    assert list(a) == list(b)
    for path in a:
        x, y = np.asarray(a[path]), np.asarray(b[path])
        assert (x.shape, x.dtype, x.tobytes()) == (y.shape, y.dtype, y.tobytes()), path


@pytest.fixture(scope="module")
def mesh():
    return make_mesh(2, 2, 2)


@pytest.fixture(scope="module")
def state(mesh):
    return place(host_state(), mesh)


def small(seed=0):
    return place({"w": np.random.default_rng(seed).normal(size=(8, 4)).astype(np.float32), "step": np.int32(seed)})


def save_steps(directory, *steps, metric=None, **options):
    """Saves `small(step)` at each step and closes; lines logged are returned."""
    lines = []
    with Checkpoints(directory, log=lines.append, **{"keep_last": 10, **options}) as c:
        for s in steps:
            c.save(s, small(s), meta={"metrics": metric(s)} if metric else {}, wait=True)
    return lines


def flip(path, bit):
    data = bytearray(path.read_bytes())
    data[bit // 8] ^= 1 << bit % 8
    path.write_bytes(data)


def files_below(directory):
    return sorted(p for p in Path(directory).rglob("*") if p.is_file())


# --- checksums ---


def reference_checksum(x):
    """The definition in `start_checksums`, an element at a time on Python integers."""

    def mix(h):
        h = (h ^ h >> 16) * 0x7FEB352D % 2**32
        h = (h ^ h >> 15) * 0x846CA68B % 2**32
        return h ^ h >> 16

    flat = np.ascontiguousarray(x).reshape(-1)
    words = flat.view(np.uint32) if flat.itemsize == 8 else flat.view(f"uint{8 * flat.itemsize}")
    return f"{sum(mix(int(w) ^ mix(p)) for p, w in enumerate(words)) % 2**32:08x}"


def checksum(x):
    return manifest.finish_checksums(manifest.start_checksums({"x": x}))["x"]


def test_checksums_are_as_defined_on_any_mesh_and_for_any_dtype(mesh):
    host = paths_of(host_state(5))
    expected = {path: reference_checksum(x) for path, x in host.items()}
    assert expected["params/none"] == "00000000"
    for tree in (place(host, mesh), place(host, make_mesh(4, 2, 1)), place(host), host):
        assert manifest.finish_checksums(manifest.start_checksums(tree)) == expected


def test_every_single_bit_flip_and_a_swap_change_an_arrays_checksum():
    x = np.random.default_rng(0).normal(size=(3, 5)).astype(jnp.bfloat16)
    before = checksum(x)
    for bit in range(x.nbytes * 8):
        raw = bytearray(x.tobytes())
        raw[bit // 8] ^= 1 << bit % 8
        assert checksum(np.frombuffer(bytes(raw), x.dtype).reshape(x.shape)) != before
    assert checksum(x[::-1].copy()) != before


# --- round trips ---


def test_what_is_restored_is_what_was_saved_bit_for_bit_on_any_mesh(tmp_path, state):
    with Checkpoints(tmp_path / "c") as c:
        c.save(3, state, meta={"metrics": {"loss": 1.5}})
        c.wait()
    for target in (state, place(host_state(), make_mesh(4, 2, 1)), place(host_state())):
        with Checkpoints(tmp_path / "c") as c:
            got = c.restore(abstract(target))
        assert (got.step, got.meta, got.frozen) == (3, {"metrics": {"loss": 1.5}}, None)
        assert_bits_equal(got.tree, host_state())
        assert isinstance(got.tree, State)
        assert [x.sharding for x in jax.tree.leaves(got.tree)] == [x.sharding for x in jax.tree.leaves(target)]


def test_arrays_may_be_donated_as_soon_as_save_returns(tmp_path, mesh):
    host = {f"w{i}": np.full((256, 128), i, np.float32) for i in range(8)}
    overwrite = jax.jit(lambda t: jax.tree.map(lambda x: x * 0 - 7, t), donate_argnums=0)
    with Checkpoints(tmp_path) as c:
        for step, m in enumerate((mesh, None, mesh, None)):
            tree = jax.tree.map(jnp.copy, place(host, m))  # memory of its own: a view of numpy's cannot be donated
            overwrite(jax.tree.map(jnp.copy, tree))  # compiled before the race
            c.save(step, tree)
            jax.block_until_ready(overwrite(overwrite(tree)))
            assert_bits_equal(c.restore(abstract(place(host, m))).tree, host)


def test_frozen_leaves_are_saved_once_and_shared(tmp_path, mesh):
    frozen, like = place({"base": {"w": np.arange(32.0, dtype=np.float32).reshape(8, 4)}}, mesh), abstract(small())
    with Checkpoints(tmp_path) as c:
        c.save(1, small(1), frozen=frozen, wait=True)
        first = {p: p.stat().st_mtime_ns for p in files_below(tmp_path / "frozen")}
        c.save(2, small(2), frozen=frozen, wait=True)
    with Checkpoints(tmp_path) as c:  # a new process has to compare before it can tell
        c.save(3, small(3), frozen=frozen, wait=True)
        got = c.restore(like, frozen=abstract(frozen))
        assert_bits_equal(got.frozen, frozen)
    assert {p: p.stat().st_mtime_ns for p in files_below(tmp_path / "frozen")} == first
    assert len(files_below(tmp_path / "2" / "state")) < 25
    with Checkpoints(tmp_path) as c, pytest.raises(UserError, match=r"frozen parameters differ .* values: base/w"):
        c.save(4, small(4), frozen=jax.tree.map(lambda x: x + 1, frozen))
    flip(max(files_below(tmp_path / "frozen" / "state"), key=lambda p: p.stat().st_size), 1000)
    with Checkpoints(tmp_path) as c, pytest.raises(UserError, match=r"frozen parameters in .* are damaged: file state/"):
        c.restore(like, frozen=abstract(frozen))
    assert (tmp_path / "3").is_dir()


def test_frozen_leaves_of_a_run_killed_before_its_first_checkpoint_are_replaced(tmp_path):
    frozen = place({"w": np.ones(4, np.float32)})
    with Checkpoints(tmp_path) as c:
        c.save(1, small(), frozen=frozen, wait=True)
    shutil.rmtree(tmp_path / "1")
    other = jax.tree.map(lambda x: x * 2, frozen)
    with Checkpoints(tmp_path) as c:
        c.save(1, small(), frozen=other, wait=True)
        assert_bits_equal(c.restore(abstract(small()), frozen=abstract(other)).frozen, other)


def test_parameters_are_read_without_knowing_the_rest(tmp_path, state, mesh):
    frozen = place({"tower": {"base": np.ones((4,), np.float32)}})
    directory = tmp_path / "c"
    with Checkpoints(directory) as c:
        c.save(3, state, frozen=frozen, meta={"note": "x"}, wait=True)
    held = contents(directory)
    assert (held.step, held.meta, list(held.frozen)) == (3, {"note": "x"}, ["tower/base"])
    assert held.arrays["params/tower/b"] == jax.ShapeDtypeStruct((8,), jnp.bfloat16)
    assert set(held.arrays) == set(paths_of(state))

    host = host_state()
    step, params = read_params(directory)
    assert step == 3 and isinstance(params["tower"]["w"], np.ndarray)
    expected = {**host.params, "tower": {**host.params["tower"], "base": np.ones((4,), np.float32)}}
    assert_bits_equal(params, expected)
    _, ema = read_params(directory, ("params", "ema/slow"), frozen=False, shardings=lambda path, x: NamedSharding(mesh, spec_of(x)))
    assert_bits_equal(ema, host.params)  # the averages are equal at the start
    assert ema["tower"]["w"].sharding.spec == P(("data", "fsdp"), "tensor")
    with pytest.raises(UserError, match=r"has no tree 'parms'; did you mean 'params'"):
        read_params(directory, ("parms",))
    with pytest.raises(UserError, match=r"no checkpoint of step 9 in .*; there are 3"):
        read_params(directory, step=9)
    with pytest.raises(UserError, match="no checkpoint in"):
        read_params(tmp_path / "elsewhere")


# --- damage ---


@pytest.fixture(scope="module")
def pristine(tmp_path_factory, state):
    """Two checkpoints of the state, to copy and damage."""
    directory = tmp_path_factory.mktemp("pristine")
    with Checkpoints(directory) as c:
        for step in (1, 2):
            c.save(step, state, wait=True)
    return directory


def restore_logging(directory, target, **kwargs):
    lines = []
    with Checkpoints(directory, log=lines.append) as c:
        return c.restore(abstract(target), **kwargs), lines


def test_every_one_of_60_flipped_bits_is_noticed(tmp_path, pristine, state):
    rng = random.Random(0)
    names = [p.relative_to(pristine / "2") for p in files_below(pristine / "2")]
    shutil.copytree(pristine, tmp_path / "c")
    with Checkpoints(tmp_path / "c") as c:
        for i in range(60):
            path = tmp_path / "c" / "2" / names[i % len(names)]
            bit = rng.randrange(path.stat().st_size * 8)
            flip(path, bit)
            with pytest.raises(UserError, match=r"checkpoint 2 in .* is damaged: file .*Other steps there: 1; nothing was changed"):
                c.restore(abstract(state), step=2)
            flip(path, bit)
        assert_bits_equal(c.restore(abstract(state), step=2).tree, state)


def test_bits_of_the_manifest_count(tmp_path):
    folder = checkpoint.epath.Path(tmp_path)
    (tmp_path / "a").write_text("x")
    manifest.write(folder, {}, frozen=None, meta={"nan": float("nan"), "lr": 1e-07})
    path = tmp_path / "manifest.json"
    assert manifest.read(folder)["files"] == {"a": [1, 0x8CDC1683]}  # the CRC-32 of "x"
    there = path.read_bytes().index(b"1e-07") * 8  # one bit makes it 1E-07, the same number
    for bit in {*range(0, path.stat().st_size * 8, 17), *range(there, there + 40)}:
        flip(path, bit)
        with pytest.raises(manifest.Damaged):
            manifest.read(folder)
        flip(path, bit)


def damage_largest(how):
    def do(folder):
        path = max(files_below(folder / "state"), key=lambda p: p.stat().st_size)
        how(path)

    return do


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (damage_largest(lambda p: os.truncate(p, p.stat().st_size // 2)), r"file state/.* has \d+ bytes, \d+ were written"),
        (damage_largest(lambda p: p.unlink()), "file state/.* is missing"),
        (lambda d: (d / "state" / "stray").write_text("x"), "file state/stray was not there"),
        (lambda d: (d / "manifest.json").unlink(), "file manifest.json is missing"),
        (lambda d: (d / "manifest.json").write_text("{}"), "file manifest.json cannot be read"),
        (lambda d: shutil.rmtree(d / "state"), "file state/.* is missing"),
    ],
    ids=["truncated", "missing", "extra", "no manifest", "empty manifest", "no state"],
)
def test_a_damaged_checkpoint_is_reported_kept_and_passed_over(tmp_path, pristine, state, damage, said):
    shutil.copytree(pristine, tmp_path / "c")
    damage(tmp_path / "c" / "2")
    got, lines = restore_logging(tmp_path / "c", state)
    assert got.step == 1
    assert_bits_equal(got.tree, state)
    assert len(lines) == 2 and all("\n" not in line for line in lines)
    assert re.search(rf"checkpoint 2 in .* is damaged: {said}.*; trying the one before it, 1", lines[0])
    assert lines[1] == "continuing from checkpoint 1; kept for inspection: 2.damaged"
    assert sorted(p.name for p in (tmp_path / "c").iterdir()) == ["1", "2.damaged"]


def test_an_array_that_was_written_wrongly_is_noticed_though_its_files_are_intact(tmp_path):
    save_steps(tmp_path, 1, 2)
    # Files and manifest agree, but an array is not what was on the devices: as if serialisation had gone wrong.
    folder, body = tmp_path / "2", manifest.read(checkpoint.epath.Path(tmp_path / "2"))
    body["arrays"]["w"]["checksum"] = "12345678"
    manifest.write(checkpoint.epath.Path(folder), body["arrays"], frozen=None, meta={})
    got, lines = restore_logging(tmp_path, small())
    assert got.step == 1
    assert "array w has checksum" in lines[0]


def test_if_every_checkpoint_is_damaged_nothing_is_renamed_and_the_run_does_not_start_anew(tmp_path, pristine, state):
    shutil.copytree(pristine, tmp_path / "c")
    for step in ("1", "2"):
        flip(tmp_path / "c" / step / "manifest.json", 999)
    for _ in range(2):
        with pytest.raises(UserError, match=r"No undamaged checkpoint is left \(damaged: 2, 1\)"):
            restore_logging(tmp_path / "c", state)
        assert sorted(p.name for p in (tmp_path / "c").iterdir()) == ["1", "2"]


def test_reading_passes_over_damage_too_but_touches_nothing(tmp_path, pristine, state):
    shutil.copytree(pristine, tmp_path / "c")
    for path in files_below(tmp_path / "c" / "2" / "state"):
        if path.parent.name == "d":  # data and index; which file holds what is Orbax's affair
            path.write_bytes(bytes(path.stat().st_size))
    lines = []
    step, params = read_params(tmp_path / "c", log=lines.append)
    assert step == 1 and "checkpoint 2 in" in lines[0] and "damaged: file state/" in lines[0]
    assert_bits_equal(params, host_state().params)
    assert (tmp_path / "c" / "2").is_dir()


def test_the_checkpoint_of_another_model_is_no_damage(tmp_path):
    save_steps(tmp_path, 1, 2)
    other = place({"w": np.zeros((8, 5), np.float32), "step": np.float32(0), "v": np.zeros(3, np.int32)})
    with pytest.raises(UserError) as e:
        restore_logging(tmp_path, other)
    message = str(e.value)
    assert "2 of another shape or dtype: step int32[] there, float32[] here; w float32[8,4] there, float32[8,5] here" in message
    assert "1 only here: v int32[3]" in message and "\n" not in message
    with pytest.raises(UserError, match=r"1 only there: w float32\[8,4\]"):
        restore_logging(tmp_path, {"step": place(np.int32(0))})
    assert sorted(p.name for p in tmp_path.iterdir()) == ["1", "2"]


def test_a_format_of_the_future_is_refused_in_words(tmp_path, monkeypatch):
    monkeypatch.setattr(manifest, "FORMAT", 99)
    save_steps(tmp_path, 1)
    monkeypatch.undo()
    with pytest.raises(UserError, match="has format 99, written by mmjax .*; this mmjax reads formats up to 1: upgrade"):
        restore_logging(tmp_path, small())


# --- what is kept ---


def test_retention_keeps_the_last_the_regular_and_the_best(tmp_path):
    accuracy = {1: 0.1, 2: 0.2, 3: 0.9, 4: 0.4, 5: float("nan"), 6: 0.9, 7: 0.3}
    save_steps(tmp_path, *accuracy, keep_last=2, keep_every=4, best="acc", metric=lambda s: {"acc": accuracy[s]})
    assert sorted(p.name for p in tmp_path.iterdir()) == ["3", "4", "6", "7"]  # 3: the earlier of two equally good
    # After a restart, with step 8 worse, the best is still known; with min it is another.
    save_steps(tmp_path, 8, keep_last=1, best="acc", metric=lambda s: {"acc": 0.5})
    assert sorted(p.name for p in tmp_path.iterdir()) == ["3", "8"]
    with Checkpoints(tmp_path, best="acc", best_mode="min") as c:
        assert c.best_step() == 8
    with Checkpoints(tmp_path, best="acc") as c:
        assert c.best_step() == 3
    with Checkpoints(tmp_path, best="other") as c:
        assert c.best_step() is None


def test_retention_neither_counts_nor_deletes_what_it_cannot_read(tmp_path):
    save_steps(tmp_path, 1, 2, 3)
    for step in ("2", "3"):
        flip(tmp_path / step / "manifest.json", 500)
    save_steps(tmp_path, 4, keep_last=2)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["1", "2", "3", "4"]


def test_only_what_is_ours_is_swept_away(tmp_path):
    save_steps(tmp_path, 5)
    strangers = ["notes", "6.partial.txt", "007", "5.damaged", "x.partial", "frozen.bak"]
    for name in [*strangers, "7.partial", "frozen.partial", "4.old"]:
        (tmp_path / name).mkdir()
        (tmp_path / name / "manifest.json").write_text("{}")
    with Checkpoints(tmp_path) as c:
        assert c.steps() == [5]
    assert sorted(p.name for p in tmp_path.iterdir()) == sorted(["5", *strangers])


def test_saving_a_step_twice(tmp_path):
    with Checkpoints(tmp_path) as c:
        assert c.latest() is None
        c.save(1, small(1), wait=True)
        before = (tmp_path / "1").stat().st_mtime_ns
        c.save(1, small(1), wait=True)  # the last step of a run is often a regular one too
        assert (tmp_path / "1").stat().st_mtime_ns == before and c.latest() == 1
    with Checkpoints(tmp_path) as c:
        with pytest.raises(UserError, match="checkpoint 1 exists already"):
            c.save(1, small(2))
        c.restore(abstract(small()))
        c.save(1, small(1))


def test_a_relative_directory_will_do(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    save_steps("runs/a", 1)
    assert contents("runs/a").step == 1 and (tmp_path / "runs" / "a" / "1").is_dir()
    assert_bits_equal(restore_logging("runs/a", small())[0].tree, small(1))


def test_what_cannot_be_saved_is_named(tmp_path):
    with Checkpoints(tmp_path) as c:
        for leaf in (jax.random.key(0), 3.0, np.ones(2), jnp.ones(2, jnp.complex64)):
            with pytest.raises(TypeError, match="cannot save a/b"):
                c.save(1, {"a": {"b": leaf}})
    for bad in ({"keep_last": 0}, {"best_mode": "maximum"}):
        with pytest.raises(UserError):
            Checkpoints(tmp_path, **bad)


# --- writes that fail ---


def test_a_full_disk_is_noticed_before_writing(tmp_path, monkeypatch):
    with Checkpoints(tmp_path) as c:
        c.save(1, small(1), wait=True)
        monkeypatch.setattr(checkpoint, "_free_bytes", lambda _: 5000)
        expected = r"cannot write checkpoint 2 to .*: not enough free space \(needs about 132 B, 5 kB free\); "
        with pytest.raises(UserError, match=expected + r"earlier checkpoints are intact, the newest is 1\..*continues from step 1"):
            c.save(2, small(2))
        monkeypatch.undo()
        c.save(2, small(2), wait=True)
        assert c.steps() == [1, 2]


def test_a_write_that_fails_in_the_background_surfaces_at_the_next_save(tmp_path, monkeypatch):
    def fail(*_, **__):
        raise OSError(28, "No space left on device")

    with Checkpoints(tmp_path) as c:
        c.save(1, small(1), wait=True)
        monkeypatch.setattr(manifest, "write", fail)
        c.save(2, small(2))
        with pytest.raises(UserError, match=r"cannot write checkpoint 2 .*No space left on device.*the newest is 1"):
            c.save(3, small(3))
        assert sorted(p.name for p in tmp_path.iterdir()) == ["1"]
        monkeypatch.undo()
        c.save(3, small(3), wait=True)
        assert_bits_equal(c.restore(abstract(small())).tree, small(3))


CHILD = """
import sys, resource
import jax, numpy as np
from mmjax.core.checkpoint import Checkpoints
from mmjax.core.errors import UserError
directory = sys.argv[1]
def state(step): return {"w": jax.numpy.asarray(np.random.default_rng(step).normal(size=(500, 200)).astype(np.float32))}
"""


def child(script, *args, env=None, **kwargs):
    env = {**os.environ, "XLA_FLAGS": "", "JAX_PLATFORMS": "cpu", **(env or {})}
    return subprocess.Popen([sys.executable, "-c", CHILD + textwrap.dedent(script), *map(str, args)], env=env, text=True, **kwargs)


def test_a_file_size_limit_ends_in_one_message_and_harms_nothing(tmp_path):
    script = """
    c = Checkpoints(directory)
    c.save(1, state(1), wait=True)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
    c.save(2, state(2))
    try:
        c.wait()
    except UserError as e:
        print(e)
    """
    done = child(script, tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    out, err = done.communicate(timeout=120)
    assert out.startswith(f"cannot write checkpoint 2 to {tmp_path}: ") and "File too large" in out and out.count("\n") == 1, out + err
    assert "earlier checkpoints are intact, the newest is 1" in out
    assert "Traceback" not in err, err
    assert sorted(p.name for p in tmp_path.iterdir()) == ["1"]


def test_two_hosts_save_and_agree_on_what_to_restore(tmp_path):
    script = """
    port, rank = sys.argv[2:]
    jax.distributed.initialize(f"localhost:{port}", num_processes=2, process_id=int(rank))
    from jax.sharding import AxisType, NamedSharding, PartitionSpec as P
    from mmjax.core.checkpoint_read import read_params
    mesh = jax.make_mesh((2, 2), ("data", "fsdp"), axis_types=(AxisType.Auto,) * 2)
    def put(x, *spec):
        return jax.make_array_from_callback(x.shape, NamedSharding(mesh, P(*spec)), lambda i: x[i])
    def state(s):
        return {"params": {"w": put(np.arange(32, dtype=np.float32).reshape(8, 4) + s, "data", "fsdp"), "b": put(np.ones(3) * s)}}
    abstract = lambda t: jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), t)
    frozen = {"base": put(np.arange(8, dtype=np.int32), ("data", "fsdp"))}
    with Checkpoints(directory, keep_last=2) as c:
        for s in (1, 2, 3):
            c.save(s, state(s), frozen=frozen)
        c.wait()
        print("steps", c.steps())
    jax.experimental.multihost_utils.sync_global_devices("saved")
    if rank == "0":
        path = f"{directory}/3/manifest.json"
        data = bytearray(open(path, "rb").read())
        data[700] ^= 1
        open(path, "wb").write(data)
    jax.experimental.multihost_utils.sync_global_devices("damaged")
    lines = []
    with Checkpoints(directory, log=lines.append) as c:
        got = c.restore(abstract(state(0)), frozen=abstract(frozen))
        equal = jax.jit(lambda a, b: jax.tree.reduce(lambda x, y: x & y, jax.tree.map(lambda x, y: (x == y).all(), a, b)))
        print("restored", got.step, bool(equal((got.tree, got.frozen), (state(2), frozen))), len(lines))
        try:
            c.restore(abstract({"other": put(np.ones(2))}))
        except UserError as e:
            print("refused", "only here: other" in str(e))
        print("read", float(read_params(directory)[1]["w"][0, 1]))
        c.save(3, state(3), frozen=frozen, wait=True)
        print("steps", c.steps())
    """
    with socket.socket() as s:
        s.bind(("localhost", 0))
        port = s.getsockname()[1]
    env = {"XLA_FLAGS": "--xla_force_host_platform_device_count=2"}
    runs = [child(script, tmp_path, port, rank, env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE) for rank in (0, 1)]
    for run in runs:
        out, err = run.communicate(timeout=180)
        said = [line for line in out.splitlines() if "Gloo" not in line]
        assert said == ["steps [2, 3]", "restored 2 True 2", "refused True", "read 3.0", "steps [2, 3]"], out + err
    assert sorted(p.name for p in tmp_path.iterdir()) == ["2", "3", "3.damaged", "frozen"]


def test_killed_at_any_moment_a_run_leaves_a_set_it_can_continue_from(tmp_path):
    script = """
    c = Checkpoints(directory, keep_last=2)
    step = c.latest() or 0
    while True:
        step += 1
        c.save(step, state(step))
        print(step, flush=True)
    """
    rng, newest, phases = random.Random(1), 0, set()
    like = {"w": jax.ShapeDtypeStruct((500, 200), jnp.float32, sharding=SingleDeviceSharding(jax.devices()[0]))}
    for _ in range(4):
        run = child(script, tmp_path, stdout=subprocess.PIPE)
        run.stdout.readline()
        time.sleep(rng.uniform(0, 0.7))
        run.send_signal(signal.SIGKILL)
        run.wait()
        run.stdout.close()
        phases |= {p.suffix for p in tmp_path.iterdir()}
        lines = []
        with Checkpoints(tmp_path, log=lines.append) as c:
            steps = c.steps()
            assert lines == [] and all(p.name.isdigit() for p in tmp_path.iterdir())
            if not steps:
                assert newest == 0  # killed inside the very first save
                continue
            assert max(steps) >= newest and len(steps) <= 3
            newest = max(steps)
            for step in steps:
                expected = np.random.default_rng(step).normal(size=(500, 200)).astype(np.float32)
                assert_bits_equal(c.restore(like, step=step).tree, {"w": expected})
    assert newest > 1 and ".partial" in phases  # some kill fell inside a save


def test_the_manifest_is_readable_json_with_what_is_promised(tmp_path):
    save_steps(tmp_path, 1, metric=lambda s: {"acc": 0.5})
    body = json.loads((tmp_path / "1" / "manifest.json").read_text())
    assert set(body) == {"format", "mmjax", "arrays", "files", "frozen", "meta", "checksum"}
    assert body["meta"] == {"metrics": {"acc": 0.5}} and body["frozen"] is None
    assert body["arrays"]["w"] == {"shape": [8, 4], "dtype": "float32", "checksum": reference_checksum(np.asarray(small(1)["w"]))}
    for name, (size, _) in body["files"].items():
        assert (tmp_path / "1" / name).stat().st_size == size
