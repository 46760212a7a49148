"""metrics.jsonl survives kills, full disks and resumption without losing, doubling or changing a line."""

import json
import os
import resource
import signal
import struct
import subprocess
import sys
import textwrap
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mmjax.core import metrics
from mmjax.core.errors import UserError
from mmjax.core.metrics import MetricsWriter


def lines(workdir):
    return (workdir / "metrics.jsonl").read_bytes()


def writer(workdir, resume_step=None, tensorboard=False, **kwargs):
    return MetricsWriter(workdir, tensorboard=tensorboard, resume_step=resume_step, **kwargs)


def fill(workdir, steps, resume_step=None):
    out = writer(workdir, resume_step)
    for step in steps:
        out.write(step, {"loss": np.float32(1 / step), "zero_shot": {"accuracy": step / 7}})
    out.close()


def strict(text):
    """Parses JSON as other languages do: NaN and Infinity are no numbers."""

    def refuse(name):
        raise AssertionError(f"{name} is not JSON")

    return json.loads(text, parse_constant=refuse)


def test_a_line_is_step_then_names_in_order():
    line = metrics.format_line(3, {"loss": 0.5, "a": {"z": 1, "b": jnp.float32(2)}, "ok": True})
    assert line == '{"step": 3, "a/b": 2.0, "a/z": 1, "loss": 0.5, "ok": true}\n'


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64, jnp.bfloat16])
def test_floats_are_lossless(dtype):
    rng = np.random.default_rng(0)
    values = np.concatenate([rng.standard_normal(50), 10.0 ** rng.uniform(-30, 30, 50) if dtype != np.float16 else rng.random(50)]).astype(
        dtype
    )
    line = strict(metrics.format_line(0, {f"m{i:03d}": v for i, v in enumerate(values)}))
    again = np.array([line[f"m{i:03d}"] for i in range(len(values))]).astype(dtype)
    np.testing.assert_array_equal(again.view(np.uint8), values.view(np.uint8))


def test_float32_is_short_whether_from_numpy_or_a_device():
    assert '"a": 0.1}' in metrics.format_line(0, {"a": np.float32(0.1)})
    assert metrics.format_line(0, {"a": jnp.float32(0.1)}) == metrics.format_line(0, {"a": np.float32(0.1)})
    assert '"a": 0.10000000149011612}' in metrics.format_line(0, {"a": float(np.float32(0.1))})


def test_what_is_not_finite_is_valid_json_and_comes_back(tmp_path):
    out = writer(tmp_path)
    out.write(1, {"a": float("nan"), "b": np.float32("inf"), "c": -jnp.inf})
    out.close()
    assert strict(lines(tmp_path)) == {"step": 1, "a": "NaN", "b": "Infinity", "c": "-Infinity"}
    back = metrics.read(tmp_path)[0]
    assert np.isnan(back["a"]) and back["b"] == np.inf and back["c"] == -np.inf


@pytest.mark.parametrize("value", [np.zeros(2), "text", 1j, None])
def test_what_is_no_scalar_is_refused_by_name(value):
    with pytest.raises(ValueError, match="'bad'"):
        metrics.format_line(0, {"bad": value})


def test_strip_timing():
    line = {"step": 1, "loss": 2.0, **dict.fromkeys(metrics.TIMING, 1.0), "zero_shot/seconds": 3.0, "zero_shot/accuracy": 0.5}
    assert metrics.strip_timing(line) == {"step": 1, "loss": 2.0, "zero_shot/accuracy": 0.5}


def test_resuming_keeps_earlier_lines_byte_for_byte(tmp_path):
    odd = b'{ "step":2,"loss" : 1.50,  "note":"\xc3\xa9" }\n'  # not as we would write it
    (tmp_path / "metrics.jsonl").write_bytes(odd + b'{"step": 4, "loss": 1}\n{"step": 5, "loss": 1}\n{"step": 4, "eval": 1}\n')
    writer(tmp_path, resume_step=4).close()
    assert lines(tmp_path) == odd + b'{"step": 4, "loss": 1}\n{"step": 4, "eval": 1}\n'


@pytest.mark.parametrize("torn_at", range(1, 55, 3))
def test_a_killed_and_resumed_run_leaves_the_lines_of_an_uninterrupted_one(tmp_path, torn_at):
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    whole.mkdir(), killed.mkdir()
    fill(whole, range(1, 9))
    fill(killed, range(1, 7))  # a checkpoint at step 4, killed while writing step 6
    content = lines(killed)
    start = content.rindex(b'{"step": 6')
    (killed / "metrics.jsonl").write_bytes(content[: start + torn_at])
    fill(killed, range(5, 9), resume_step=4)
    assert lines(killed) == lines(whole)


def test_a_last_line_that_lacks_only_its_newline_is_kept(tmp_path):
    fill(tmp_path, range(1, 5))
    content = lines(tmp_path)
    (tmp_path / "metrics.jsonl").write_bytes(content[:-1])
    writer(tmp_path, resume_step=4).close()
    assert lines(tmp_path) == content


def test_resuming_rewrites_nothing_if_nothing_is_dropped(tmp_path):
    fill(tmp_path, range(1, 5))
    before = os.stat(tmp_path / "metrics.jsonl")
    writer(tmp_path, resume_step=4).close()
    after = os.stat(tmp_path / "metrics.jsonl")
    assert (before.st_ino, before.st_mtime_ns) == (after.st_ino, after.st_mtime_ns)
    assert [p.name for p in tmp_path.iterdir()] == ["metrics.jsonl"]


def test_a_failed_rewrite_leaves_the_old_file(tmp_path, monkeypatch):
    fill(tmp_path, range(1, 5))
    content = lines(tmp_path)

    def fail(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(UserError, match="No space left"):
        writer(tmp_path, resume_step=2)
    assert lines(tmp_path) == content
    assert [p.name for p in tmp_path.iterdir()] == ["metrics.jsonl"]


def test_damaged_lines_in_the_middle_are_dropped_with_a_notice(tmp_path):
    fill(tmp_path, range(1, 4))
    first, second, third, _ = lines(tmp_path).split(b"\n")
    (tmp_path / "metrics.jsonl").write_bytes(b"\n".join([first, second[:9] + b"\0\0", third, b""]))
    with pytest.raises(UserError, match="line 2 is damaged"):
        metrics.read(tmp_path)
    said = []
    writer(tmp_path, resume_step=3, say=said.append).close()
    assert lines(tmp_path) == first + b"\n" + third + b"\n"
    assert len(said) == 1 and "1 damaged" in said[0]


def test_a_fresh_start_drops_what_was_there(tmp_path):
    fill(tmp_path, range(1, 5))
    fill(tmp_path, [1])
    assert [line["step"] for line in metrics.read(tmp_path)] == [1]


def test_sigkill_loses_no_written_line(tmp_path):
    program = f"""
        import os, signal
        from mmjax.core.metrics import MetricsWriter
        out = MetricsWriter({str(tmp_path)!r}, tensorboard=False, resume_step=0)
        for step in range(1, 101):
            out.write(step, {{"loss": 1 / step}})
        os.kill(os.getpid(), signal.SIGKILL)
    """
    done = subprocess.run([sys.executable, "-c", textwrap.dedent(program)], env={**os.environ, "JAX_PLATFORMS": "cpu"})
    assert done.returncode == -signal.SIGKILL
    assert [line["step"] for line in metrics.read(tmp_path)] == list(range(1, 101))


def test_read_leaves_out_a_torn_line_and_names_a_missing_file(tmp_path):
    fill(tmp_path, range(1, 4))
    (tmp_path / "metrics.jsonl").write_bytes(lines(tmp_path)[:-5])
    assert [line["step"] for line in metrics.read(tmp_path / "metrics.jsonl")] == [1, 2]
    with pytest.raises(UserError, match="nowhere"):
        metrics.read(tmp_path / "nowhere.jsonl")


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full")
def test_full_disk(tmp_path):
    (tmp_path / "metrics.jsonl").symlink_to("/dev/full")
    out = writer(tmp_path)
    with pytest.raises(UserError, match=r"metrics\.jsonl.*No space left on device"):
        out.write(1, {"loss": 1.0})
    out.close()


def test_a_line_the_disk_has_no_room_for_leaves_the_file_whole(tmp_path):
    out = writer(tmp_path)
    out.write(1, {"loss": 1.0})
    before = lines(tmp_path)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (len(before) + 9, hard))  # nine bytes of the next line fit
        with pytest.raises(UserError, match="cannot write"):
            out.write(2, {"loss": 2.0})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        signal.signal(signal.SIGXFSZ, handler)
    assert lines(tmp_path) == before
    out.write(2, {"loss": 2.0})
    out.close()
    assert [line["step"] for line in metrics.read(tmp_path)] == [1, 2]


def test_other_hosts_write_nothing(tmp_path):
    out = writer(tmp_path, tensorboard=True, is_writer=False)
    out.write(1, {"loss": 1.0})
    out.flush()
    out.close()
    assert not list(tmp_path.iterdir())


def test_closing_twice_is_harmless(tmp_path):
    out = writer(tmp_path)
    out.close()
    out.close()


def records(path):
    """The records of an event file, read by the format's own rule: length, checksum, bytes, checksum."""
    content, out = path.read_bytes(), []
    while content:
        (n,) = struct.unpack("<Q", content[:8])
        out.append(content[12 : 12 + n])
        content = content[16 + n :]
    return out


def test_tensorboard(tmp_path):
    event_pb2 = pytest.importorskip("tensorboardX.proto.event_pb2")
    for resume_step, steps in ((None, (1, 2, 3)), (2, (3,))):
        out = writer(tmp_path, resume_step, tensorboard=True)
        for step in steps:
            out.write(step, {"loss": np.float32(0.1) * step, "bad": float("nan")})
        out.close()
    files = sorted((tmp_path / "tensorboard").iterdir(), key=lambda p: p.name.rsplit(".", 1)[-1])
    assert len(files) == 2 and all("tfevents" in f.name for f in files)
    first, second = ([event_pb2.Event.FromString(r) for r in records(f)] for f in files)
    assert first[0].file_version == "brain.Event:2"
    assert [e.step for e in first[2:]] == [1, 2, 3]
    assert {v.tag for v in first[2].summary.value} == {"loss", "bad"}
    assert next(v.simple_value for v in first[2].summary.value if v.tag == "loss") == np.float32(0.1)
    # TensorBoard hides, in earlier files, whatever is at or after the step of a START.
    assert second[1].session_log.status == event_pb2.SessionLog.START and second[1].step == 3
    assert [e.step for e in second[2:]] == [3]


def test_without_tensorboardx_one_notice_and_the_lines(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "tensorboardX.event_file_writer", None)
    said = []
    out = writer(tmp_path, tensorboard=True, say=said.append)
    out.write(1, {"loss": 1.0})
    out.close()
    assert len(said) == 1 and "pip install mmjax[tensorboard]" in said[0]
    assert metrics.read(tmp_path) == [{"step": 1, "loss": 1.0}]


def test_memory_in_use_counts_what_is_held():
    before = metrics.memory_in_use()
    held = np.ones(64 * 2**20, np.uint8)
    assert metrics.memory_in_use() - before > 32 * 2**20 or jax.default_backend() != "cpu"
    del held
