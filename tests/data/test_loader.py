import dataclasses
import hashlib
import multiprocessing
import os
import pickle
import signal
import subprocess
import sys
import threading
import time

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mmjax.core.errors import UserError
from mmjax.data import transforms
from mmjax.data.loader import batches, check, eval_batches, generator
from mmjax.data.mixture import ByComponent, Concat, MixtureOrder, shares
from mmjax.data.order import Order
from mmjax.data.source import Info

N = 10


class Numbers:
    """Ten records that hold their own number."""

    def __init__(self, n=N, bad=None):
        self.info, self.n, self.bad = Info("numbers", "train", (), (), None, {"i": "int"}), n, bad

    def __len__(self):
        return self.n

    def __getitem__(self, i):
        if i == self.bad:
            raise OSError("disk on fire")
        return {"i": np.int32(i)}


def draw(example, rng):
    return {**example, "x": rng.random(dtype=np.float64), "y": rng.integers(0, 100, 3, np.int32)}


def take(iterator, k):
    with iterator:
        return [next(iterator) for _ in range(k)]


def equal(a, b):
    assert len(a) == len(b)
    for left, right in zip(a, b, strict=True):
        assert left.keys() == right.keys()
        for key in left:
            assert left[key].dtype == right[key].dtype
            np.testing.assert_array_equal(left[key], right[key])


@pytest.fixture(scope="module")
def digits(train_source, words):
    specs = (
        ("decode", {"channels": 1}),
        ("random_crop", {"size": 8, "padding": 1}),
        ("random_affine", {"degrees": 10, "shift": 0.05, "scale": (0.9, 1.1)}),
        ("normalize", {}),
        ("pick_caption", {}),
        ("tokenize", {"length": 16}),
        ("keep", {"keys": ("image", "label", "tokens")}),
    )
    return train_source, transforms.build(specs, words)


def test_each_epoch_is_a_permutation_and_epochs_differ():
    flat = np.concatenate([b["i"] for b in take(batches(Numbers(), draw, batch_size=4, seed=1), 10)])
    epochs = flat.reshape(4, N)
    assert all(sorted(e) == list(range(N)) for e in epochs.tolist())
    assert len({tuple(e) for e in epochs.tolist()}) == 4
    other = np.concatenate([b["i"] for b in take(batches(Numbers(), draw, batch_size=4, seed=2), 10)])
    assert not np.array_equal(flat, other)


def test_draws_are_those_of_seed_and_position():
    (batch,) = take(batches(Numbers(), draw, batch_size=3, seed=7, start=25), 1)
    for row in range(3):
        rng = generator(7, 25 + row)
        assert batch["x"][row] == rng.random()
        assert batch["y"][row].tolist() == rng.integers(0, 100, 3, np.int32).tolist()
    assert generator(7, 25).random() != generator(8, 25).random() != generator(7, 26).random()


def test_batch_size_does_not_change_what_is_drawn():
    small = take(batches(Numbers(), draw, batch_size=3, seed=0), 8)
    large = take(batches(Numbers(), draw, batch_size=12, seed=0), 2)
    for key in ("i", "x", "y"):
        np.testing.assert_array_equal(np.concatenate([b[key] for b in small]), np.concatenate([b[key] for b in large]))


@pytest.mark.parametrize("skip", [1, 5])
def test_starting_later_equals_skipping(digits, skip):
    straight = take(batches(*digits, batch_size=32, seed=3), skip + 2)
    equal(take(batches(*digits, batch_size=32, seed=3, start=32 * skip), 2), straight[skip:])


def test_any_start_and_far_positions():
    flat = np.concatenate([b["x"] for b in take(batches(Numbers(), draw, batch_size=4, seed=0), 5)])
    later = np.concatenate([b["x"] for b in take(batches(Numbers(), draw, batch_size=5, seed=0, start=3), 3)])
    np.testing.assert_array_equal(later, flat[3:18])
    far = 5_000_000_000 * N
    indices = np.concatenate([b["i"] for b in take(batches(Numbers(), draw, batch_size=5, seed=0, start=far), 2)])
    assert sorted(indices.tolist()) == list(range(N))


def test_unshuffled_order():
    flat = np.concatenate([b["i"] for b in take(batches(Numbers(), draw, batch_size=4, seed=1, shuffle=False), 5)])
    assert flat.tolist() == [*range(N), *range(N)]


@pytest.mark.parametrize("split", [([0, 1, 2, 3], [4, 5, 6, 7]), ([0, 2, 4, 6], [1, 3, 5, 7])])
def test_two_hosts_share_the_batch(digits, split):
    whole = take(batches(*digits, batch_size=8, seed=3, start=1293), 3)  # runs over the end of an epoch
    hosts = [take(batches(*digits, batch_size=8, seed=3, start=1293, rows=rows), 3) for rows in split]
    for k, batch in enumerate(whole):
        for rows, host in zip(split, hosts, strict=True):
            equal([host[k]], [{key: value[rows] for key, value in batch.items()}])


def test_same_batches_for_any_number_of_workers_and_threads(digits):
    def run(**options):
        return take(batches(*digits, batch_size=64, seed=3, start=5, **options), 5)

    plain = run(threads=0)
    equal(run(threads=1), plain)
    equal(run(threads=3), plain)
    equal(run(workers=2), plain)
    equal(run(workers=3, threads=0, prefetch=1), plain)
    assert multiprocessing.active_children() == []


class Sharded(Numbers):
    def __init__(self):
        super().__init__(600)
        self.info = dataclasses.replace(self.info, groups=(50, 70, 30, 90, 60, 100, 80, 120))


def hashes(source, transform, count, hosts=1, **options):
    """sha256 of every global batch, put together from what each host reads."""
    rows = np.arange(48).reshape(hosts, -1)
    parts = [take(batches(source, transform, batch_size=48, seed=3, rows=r, **options), count) for r in rows]
    out = []
    for k in range(count):
        whole = {key: np.concatenate([part[k][key] for part in parts]) for key in sorted(parts[0][k])}
        out.append(hashlib.sha256(b"".join(f"{key}{v.dtype}{v.shape}".encode() + v.tobytes() for key, v in whole.items())).hexdigest())
    return out


@pytest.fixture(scope="module", params=["one level", pytest.param("two levels", marks=pytest.mark.slow), "mixture"])
def streams(request, digits):
    if request.param == "one level":
        return (*digits, Order(len(digits[0]), 3))
    if request.param == "two levels":
        source = Sharded()
        return source, draw, Order(600, 3, source.info.groups, 3)
    both = Concat((Sharded(), Numbers(37)))
    orders = (Order(600, 1, both.sources[0].info.groups, 3), Order(37, 2))
    return both, ByComponent((draw, draw)), MixtureOrder(shares([0.8, 0.2]), orders)


def test_the_same_batches_whatever_reads_them(streams):
    """0, 2 and 3 workers; 1, 2 and 4 hosts; after a restart in the middle of an epoch; after the number of hosts changed."""
    source, transform, order = streams
    plain = hashes(source, transform, 6, order=order, threads=0)
    assert len(set(plain)) == 6
    assert hashes(source, transform, 6, order=order, workers=2) == plain
    assert hashes(source, transform, 6, order=order, workers=3, threads=1, prefetch=2) == plain
    assert hashes(source, transform, 6, order=order, hosts=2) == plain
    assert hashes(source, transform, 6, order=order, hosts=4) == plain
    for hosts, workers in ((1, 0), (2, 0), (4, 0), (1, 2)):
        assert hashes(source, transform, 3, order=order, start=3 * 48, hosts=hosts, workers=workers) == plain[3:]


def test_threads_read_ahead_of_the_consumer():
    read_by = []

    def watched(example, rng):
        read_by.append(threading.get_ident())
        return example

    with batches(Numbers(), watched, batch_size=20, seed=0, threads=2, prefetch=3) as data:
        until = time.time() + 20
        while len(read_by) < 60 and time.time() < until:
            time.sleep(0.01)
        time.sleep(0.05)
        assert len(read_by) == 60  # three batches before anyone asked, and no more
        next(data)
    assert threading.get_ident() not in read_by


def test_closing_leaves_no_thread():
    before = set(threading.enumerate())  # some of an earlier test may still be finishing

    def mine():
        return [t for t in threading.enumerate() if t.name.startswith("grain") and t not in before]

    data = batches(Numbers(), draw, batch_size=4, seed=0)
    next(data)
    assert mine()
    data.close()
    data.close()
    with pytest.raises(StopIteration):
        next(data)
    dropped = batches(Numbers(), draw, batch_size=4, seed=0)
    del dropped
    until = time.time() + 5
    while mine() and time.time() < until:
        time.sleep(0.02)
    assert not mine()


def boom(example, rng):
    if example["i"] == 6:
        raise ValueError("bad pixel")
    return example


@pytest.mark.parametrize("workers", [0, 2])
def test_an_error_names_source_and_record(workers):
    with (
        pytest.raises(UserError, match=r"source 'numbers' \(train\), record 6: ValueError: bad pixel \(test_loader.py:\d+\)"),
        batches(Numbers(), boom, batch_size=10, seed=0, workers=workers) as data,
    ):
        next(data)
    with pytest.raises(StopIteration):
        next(data)
    assert multiprocessing.active_children() == []


def test_other_errors():
    with pytest.raises(UserError, match=r"record 3: OSError: disk on fire"):
        take(batches(Numbers(bad=3), draw, batch_size=10, seed=0), 1)
    with pytest.raises(UserError, match="'name' is no array but str; .*'keep'"):
        take(batches(Numbers(), lambda e, r: {"name": "x"}, batch_size=2, seed=0), 1)
    with pytest.raises(UserError, match=r"'image' has different shapes in one batch, \[\(\d,\), \(\d,\)"):
        take(batches(Numbers(), lambda e, r: {"image": np.zeros(e["i"])}, batch_size=4, seed=0), 1)
    with pytest.raises(UserError, match="is empty"):
        batches(Numbers(0), draw, batch_size=2, seed=0)
    for options, message in (
        ({"batch_size": 0}, "batch_size must be at least 1"),
        ({"batch_size": 2, "start": -1}, "start must be at least 0"),
        ({"batch_size": 2, "rows": [2]}, r"rows are numbers in 0\.\.1"),
        ({"batch_size": 2, "prefetch": 0}, "prefetch"),
    ):
        with pytest.raises(UserError, match=message):
            batches(Numbers(), draw, **{"seed": 0, **options})


def test_a_killed_run_leaves_no_worker(tmp_path):
    script = tmp_path / "run.py"
    script.write_text(
        "import multiprocessing, sys, time\n"
        f"sys.path[:0] = {[os.path.dirname(__file__), os.getcwd()]!r}\n"
        "from test_loader import Numbers, draw\n"
        "from mmjax.data.loader import batches\n"
        "if __name__ == '__main__':\n"
        "    data = batches(Numbers(), draw, batch_size=4, seed=0, workers=2)\n"
        "    next(data); next(data)\n"
        "    print(*(p.pid for p in multiprocessing.active_children()), flush=True)\n"
        "    time.sleep(60)\n"
    )
    run = subprocess.Popen([sys.executable, str(script)], stdout=subprocess.PIPE, text=True)
    pids = [int(p) for p in run.stdout.readline().split()]
    assert len(pids) == 2
    os.kill(run.pid, signal.SIGKILL)
    run.wait()
    until = time.time() + 10
    while any(alive(p) for p in pids) and time.time() < until:
        time.sleep(0.05)
    assert not any(alive(p) for p in pids)


def alive(pid):
    try:
        with open(f"/proc/{pid}/stat") as f:
            return f.read().rsplit(")", 1)[1].split()[0] != "Z"
    except FileNotFoundError:
        return False


def test_eval_is_one_pass_in_order_with_a_mask():
    def run(**options):
        with eval_batches(Numbers(), draw, batch_size=4, **options) as data:
            return list(data)

    out = run()
    assert [b["i"].tolist() for b in out] == [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9, 9, 9]]
    assert [b["_mask"].tolist() for b in out] == [[1] * 4, [1] * 4, [1, 1, 0, 0]] and out[0]["_mask"].dtype == np.float32
    equal(run(), out)
    left, right = run(rows=[0, 1]), run(rows=[2, 3])
    equal([{k: np.concatenate([a[k], b[k]]) for k in a} for a, b in zip(left, right, strict=True)], out)
    assert len(list(eval_batches(Numbers(8), draw, batch_size=4))) == 2
    assert next(eval_batches(Numbers(), draw, batch_size=40))["_mask"].sum() == 10


def test_check():
    spec = {"image": jax.ShapeDtypeStruct((8, 4, 4, 1), jnp.float32), "text": {"tokens": jax.ShapeDtypeStruct((8, 16), jnp.int32)}}
    image, tokens = np.zeros((8, 4, 4, 1), np.float32), np.zeros((8, 16), np.int32)

    def batch(**changes):
        return {"image": image, "text": {"tokens": tokens}, "_mask": np.ones(8), **changes}

    check(batch(), spec, "s")
    check({"image": image[:4], "text": {"tokens": tokens[:4]}}, spec, "s")  # one of two hosts
    for changes, message in (
        ({"image": image[:, :3]}, r"source 's': 'image' is float32\[8, 3, 4, 1\], the task expects float32\[8, 4, 4, 1\]"),
        ({"image": image.astype(np.uint8)}, r"'image' is uint8\[8, 4, 4, 1\]"),
        ({"image": image[:5]}, r"float32\[5, 4, 4, 1\]"),
        ({"image": image[..., 0]}, r"float32\[8, 4, 4\]"),
        ({"text": {"token": tokens}}, r"has no 'text/tokens', which the task expects as int32\[8, 16\]; did you mean 'text/token'\?"),
        ({"label": np.zeros(8)}, "expects no 'label'; .*'keep'"),
    ):
        with pytest.raises(UserError, match=message):
            check(batch(**changes), spec, "s")


def test_digits_pipeline_pickles(digits):
    assert len(pickle.dumps(digits[1])) < 100_000
