"""Two processes joined over loopback train, save and restore, and give the losses of one process."""

import socket

import numpy as np
import pytest

from tests.runs import SMOKE, arrays, finish, metric_lines, start


def free_port() -> int:
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


def train(workdir, *overrides, processes=2):
    """Trains on `processes` processes with four devices in all; their outputs."""
    port, words = free_port(), ["train", "--config", SMOKE, "--workdir", str(workdir), "mesh.data=2", "mesh.fsdp=2", *overrides]
    join = lambda i: ["--coordinator", f"127.0.0.1:{port}", "--num_processes", str(processes), "--process_id", str(i)]
    running = [start(*words, *(join(i) if processes > 1 else []), devices=4 // processes) for i in range(processes)]
    done = [finish(p) for p in running]
    assert [code for code, _ in done] == [0] * processes, "\n".join(out for _, out in done)
    return [out for _, out in done]


@pytest.mark.slow
def test_two_processes_give_the_losses_of_one_and_resume(tmp_path):
    train(tmp_path / "one", processes=1)
    outputs = train(tmp_path / "two")
    assert "step 4/4" in outputs[0] and "step 4/4" not in outputs[1]  # one of them speaks
    one, two = metric_lines(tmp_path / "one"), metric_lines(tmp_path / "two")
    assert [line["step"] for line in one] == [line["step"] for line in two]
    for a, b in zip(one, two, strict=True):
        assert a.keys() == b.keys()
        np.testing.assert_allclose(list(a.values()), list(b.values()), rtol=1e-5, err_msg=str(a))
    # Stop after step 2, on both; then go on, on both: the same bits as without the stop.
    checkpoints = tmp_path / "two" / "checkpoints"
    straight = arrays(tmp_path / "two")
    (checkpoints / "4").rename(tmp_path / "taken_away")
    assert "continuing from step 2" in train(tmp_path / "two")[0]
    assert arrays(tmp_path / "two") == straight
