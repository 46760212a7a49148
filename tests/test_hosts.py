"""Two processes joined over loopback train, save, restore and cache, and give what one process gives."""

import json
import socket

import numpy as np
import pytest

from mmjax.data import store
from tests.runs import SMOKE, arrays, finish, metric_lines, start
from tests.sets import write_jsonl

CLASSIFY = SMOKE.replace("clip/", "classification/")


def free_port() -> int:
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


def together(words, processes=2):
    """`mmjax WORDS` on so many processes with four devices in all: (exit status, output) of each."""
    port = free_port()
    join = lambda i: ["--coordinator", f"127.0.0.1:{port}", "--num_processes", str(processes), "--process_id", str(i)]
    running = [start(*words, *(join(i) if processes > 1 else []), devices=4 // processes) for i in range(processes)]
    return [finish(p) for p in running]


def train(workdir, *overrides, processes=2, config=SMOKE):
    """Trains on `processes` processes; their outputs."""
    words = ["train", "--config", config, "--workdir", str(workdir), "mesh.data=2", "mesh.fsdp=2", *overrides]
    done = together(words, processes)
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


@pytest.mark.slow
def test_bad_samples_are_summed_over_hosts_and_too_many_end_all_of_them(tmp_path):
    path = write_jsonl(tmp_path / "set", 100, broken=range(0, 100, 4))
    words = ["data.source=jsonl", f"data.path={path}", "checkpoint.best=none", "log.every=1", "evals.validation.every=1000"]
    train(tmp_path / "one", *words, processes=1, config=CLASSIFY)
    outputs = train(tmp_path / "two", *words, config=CLASSIFY)
    lines = [[{k: v for k, v in line.items() if k.startswith("bad")} for line in metric_lines(tmp_path / w)] for w in ("one", "two")]
    assert lines[0] == lines[1] and sum(line.get("bad_samples_undecodable", 0) for line in lines[1]) > 8
    assert all("is bad (undecodable" in output for output in outputs)  # each names what it read
    # A quarter is bad, of which a tenth may be: known after 1,000 examples of both together, on both at once, and in the same words.
    many = ["train", "--config", CLASSIFY, "--workdir", str(tmp_path / "many"), *words, "mesh.data=4"]
    done = together([*many, "log.every=5", "steps=200", "checkpoint.every=1000", "data.max_bad=0.1"])
    errors = [[line for line in output.splitlines() if line.startswith("mmjax: error")] for _, output in done]
    assert [code for code, _ in done] == [2, 2] and errors[0] == errors[1] and len(errors[0]) == 1, done
    assert "on all hosts: " in errors[0][0] and "undecodable), more than data.max_bad=0.1" in errors[0][0]
    read = int(errors[0][0].split("of the last ")[1].split()[0])
    assert 1008 < read < 1500  # 63 batches of 16, and what was replaced


@pytest.mark.slow
def test_hosts_that_see_different_sets_are_told(tmp_path):
    words = ["train", "--config", CLASSIFY, "--workdir", str(tmp_path / "run"), "data.source=jsonl", "evals.validation.every=1000"]
    paths = [write_jsonl(tmp_path / str(i), 40 + i) for i in range(2)]
    port = free_port()
    join = lambda i: ["--coordinator", f"127.0.0.1:{port}", "--num_processes", "2", "--process_id", str(i)]
    running = [start(*words, "checkpoint.best=none", f"data.path={paths[i]}", *join(i), devices=2) for i in range(2)]
    for code, output in [finish(p) for p in running]:
        assert code == 2 and "several hosts: process 1 has other data" in output, output


@pytest.mark.slow
def test_two_processes_cache_what_one_does_and_go_on_where_they_were_stopped(tmp_path):
    train(tmp_path / "run", "steps=2", "optim.warmup=1", processes=1)
    words = ["cache", "--workdir", str(tmp_path / "run"), "--predict", "encode_image", "--split", "validation", "--keep", "label"]
    words += ["--shard_size", "48", "mesh.data=2", "mesh.fsdp=2"]
    cache = lambda out, processes: together([*words, "--out", str(tmp_path / out)], processes)
    assert [code for code, _ in cache("one", 1)] == [0]
    done = cache("two", 2)
    assert [code for code, _ in done] == [0, 0], done
    assert '"records": 140' in done[0][1] and '"records"' not in done[1][1]  # one of them speaks, and writes
    sets = [store.Cached(tmp_path / out / "validation") for out in ("one", "two")]
    same = lambda: [np.testing.assert_allclose(sets[0][i]["value"], sets[1][i]["value"], atol=2e-6) for i in range(140)]
    same()
    assert [sets[1][i]["label"] for i in range(140)] == [sets[0][i]["label"] for i in range(140)]
    # As a kill leaves it: the last file is not there, the folder has no name yet.
    folder = tmp_path / "two" / "validation"
    partial = folder.rename(folder.with_name("validation.partial"))
    meta = json.loads((partial / "meta.json").read_text())
    plan = {k: meta[k] for k in ("predict", "input", "transforms", "keep", "batch_size", "model", "source")}
    (partial / "plan.json").write_text(json.dumps({**plan, "count": 140, "per_shard": 48}))
    shards = sorted(partial.glob("*.array_record"))
    for shard in shards:
        shard.with_suffix(".json").write_text("{}")
    before = [shard.read_bytes() for shard in shards]
    shards[-1].unlink()
    done = cache("two", 2)
    assert [code for code, _ in done] == [0, 0] and '"computed": 44' in done[0][1], done
    assert [path.read_bytes() for path in sorted(folder.glob("*.array_record"))] == before
