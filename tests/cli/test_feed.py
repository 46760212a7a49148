"""What feeds the loop: bad records in a run's metrics, and several loaders for a task whose batch has parts."""

import collections
import dataclasses
import json
import shutil
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mmjax.cli.feed import open_data, owned
from mmjax.cli.main import main
from mmjax.cli.program import assemble
from mmjax.core import config as config_lib
from mmjax.core import metrics, sharding
from mmjax.core.errors import UserError
from mmjax.data import loader, stream
from mmjax.data import source as source_module
from mmjax.data.bad import BadSample
from mmjax.data.order import Order
from tests.runs import SMOKE, arrays, metric_lines

CLASSIFY = SMOKE.replace("clip/", "classification/")
ONLY = (("decode", {"channels": 1}), ("normalize", {"mean": 0.3, "std": 0.35}), ("keep", {"keys": ("image",)}))
WORDS = ["evals.validation.every=4", "checkpoint.best=none", "log.every=1"]


class Faulty:
    """A source of which every fifth record is bad."""

    def __init__(self, source):
        self.source, self.info = source, source.info

    def __len__(self):
        return len(self.source)

    def __getitem__(self, i):
        if i % 5 == 0:
            raise BadSample(("missing", "truncated")[i % 2], "made so")
        return self.source[i]


@pytest.fixture
def faulty(monkeypatch):
    loader._Watch.named.clear()
    good = source_module.SOURCES["digits_captions"]
    monkeypatch.setitem(source_module.SOURCES, "digits_captions", lambda *a: Faulty(good(*a)))


def test_a_run_counts_its_bad_records_and_resumes_exactly(faulty, tmp_path, capsys):
    workdir = tmp_path / "run"
    assert main(["train", "--config", CLASSIFY, "--workdir", str(workdir), *WORDS]) == 0
    printed = capsys.readouterr().err
    assert "record " in printed and "is bad (missing: made so); replaced" in printed and "left out" in printed
    lines = metric_lines(workdir)
    training = [line for line in lines if "loss" in line]
    assert len(training) == 4 and sum(line["bad_samples"] for line in training) > 4
    order = Order(1297, 0)
    for step, line in enumerate(training):  # by hand, from the order alone
        failed = 0
        for p in range(16 * step, 16 * step + 16):
            record, attempt = int(order(np.array([p]))[0]), 0
            while record % 5 == 0:
                attempt, failed = attempt + 1, failed + 1
                record = order.replacement(p, attempt)
        assert line["bad_samples"] == failed
        assert line["bad_samples"] == line.get("bad_samples_missing", 0) + line.get("bad_samples_truncated", 0)
    evaluated = next(line for line in lines if "validation/accuracy" in line)
    assert evaluated["validation/bad_samples"] == 28  # of 140
    # Again from step 2 on: what is in the metrics follows from the step, not from how the run went.
    shutil.rmtree(workdir / "checkpoints" / "4")
    assert main(["train", "--workdir", str(workdir), "data.workers=2"]) == 0
    assert metric_lines(workdir) == lines


def test_too_many_bad_records_end_a_run_with_one_line(faulty, tmp_path, capsys):
    words = [*WORDS, "steps=80", "log.every=100", "data.max_bad=0.05", "checkpoint.every=1000", "evals.validation.every=1000"]
    assert main(["train", "--config", CLASSIFY, "--workdir", str(tmp_path / "run"), *words]) == 2
    error = [line for line in capsys.readouterr().err.splitlines() if "mmjax: error" in line]
    assert len(error) == 1 and "records read are bad" in error[0] and "data.max_bad=0.05" in error[0]


def test_sound_runs_log_zero(tmp_path):
    assert main(["train", "--config", CLASSIFY, "--workdir", str(tmp_path / "run"), *WORDS, "steps=1", "optim.warmup=0"]) == 0
    (line,) = [line for line in metrics.read(tmp_path / "run") if "loss" in line]
    assert line["bad_samples"] == 0 and not [k for k in line if k.startswith("bad_samples_")]
    assert arrays(tmp_path / "run")


def nested(streams, pairs=16, docs=8):
    """A program whose task takes two parts of different sizes."""
    config = config_lib.load(CLASSIFY, ["mesh.data=4", "mesh.fsdp=2"])
    config.unlock()
    config.data.streams = streams
    config.lock()
    program = assemble(config)
    image = lambda n: jax.ShapeDtypeStruct((n, 8, 8, 1), jnp.float32)
    label = lambda n: jax.ShapeDtypeStruct((n,), jnp.int32)
    spec = {"pairs": {"image": image(pairs), "label": label(pairs)}, "docs": {"image": image(docs)}}
    task = dataclasses.replace(program.task, batch_spec=spec, limits={"pairs/label": 10})
    return dataclasses.replace(program, task=task)


def test_several_loaders_feed_one_step():
    program = nested({"pairs": {}, "docs": {"split": "test", "transforms": ONLY}})
    feed = open_data(program)
    made = feed(0)
    first, second = next(made), next(made)
    made.close()
    shapes = jax.tree.map(lambda x: x.shape, first)
    assert shapes == {"pairs": {"image": (16, 8, 8, 1), "label": (16,)}, "docs": {"image": (8, 8, 8, 1)}}
    assert len(first["docs"]["image"].sharding.device_set) == 8
    # The cursor counts the examples of both parts, as the train step does: 24 a step, of which docs goes on by 8 and pairs by 16.
    again = feed(24)
    resumed = next(again)
    again.close()
    jax.tree.map(lambda a, b: np.testing.assert_array_equal(np.asarray(a), np.asarray(b)), resumed, second)
    assert feed.bad(1) == {"bad_samples": 0}
    assert not np.array_equal(np.asarray(first["pairs"]["image"][:8]), np.asarray(first["docs"]["image"]))


def test_each_stream_stands_where_the_cursor_says():
    """Whatever the parts are called and however they are sized; and a stream's batches are those of its own loader alone."""
    program = nested({"pairs": {}, "docs": {"split": "test", "transforms": ONLY}}, pairs=8, docs=24)
    feed = open_data(program)
    streams = stream.open_streams(program.config.data, program.config.seed)
    for steps in (0, 3):
        made = feed(steps * 32)
        batch = next(made)
        made.close()
        for name, size in (("pairs", 8), ("docs", 24)):
            s = streams[name]
            options = {"batch_size": size, "seed": s.seed, "order": s.order, "start": steps * size}
            with loader.batches(s.source, s.transform, **options) as alone:
                np.testing.assert_array_equal(np.asarray(batch[name]["image"]), next(alone)["image"])
    assert [s.key for s in feed.sets] == ["data.streams.docs", "data.streams.pairs"]


def test_length_groups_must_go_into_the_batches(monkeypatch):
    real = stream.open_streams
    grouped = lambda n: lambda *a: {"": dataclasses.replace(real(*a)[""], order=Order(1290, 0, block=n))}
    program = assemble(config_lib.load(CLASSIFY))
    monkeypatch.setattr("mmjax.cli.feed.open_streams", grouped(2))
    open_data(program)
    monkeypatch.setattr("mmjax.cli.feed.open_streams", grouped(6))
    with pytest.raises(UserError, match="groups of 6 records, which do not go into batches of 16; build it again .* --size 16"):
        open_data(program)


@pytest.mark.parametrize(
    ("streams", "message"),
    [
        ({}, "the task's batch has the parts docs, pairs: set data.streams"),
        (
            {"pairs": {}, "doc": {}},
            r"data\.streams: at 'doc', the task expects as streams the parts of its batch: docs, pairs; did you mean 'docs'",
        ),
        ({"pairs": {}, "docs": {"splt": "test"}}, r"data\.streams\.docs has unknown key 'splt'; did you mean 'split'"),
        ({"pairs": {}, "docs": {}}, "the task expects no 'label'"),
    ],
)
def test_streams_that_do_not_fit(streams, message):
    with pytest.raises(UserError, match=message):
        open_data(nested(streams))


def test_streams_for_a_task_that_has_none():
    program = nested({"pairs": {}})
    flat = dataclasses.replace(program, task=dataclasses.replace(program.task, batch_spec=program.task.batch_spec["pairs"]))
    with pytest.raises(UserError, match="expects as streams none: its batch is one stream"):
        open_data(flat)


def test_a_part_must_split_over_the_mesh():
    with pytest.raises(UserError, match="batch_size 12 does not split over 8 devices"):
        open_data(nested({"pairs": {}, "docs": {"transforms": ONLY}}, pairs=12))


def test_a_row_that_several_processes_hold_is_counted_once(monkeypatch):
    mesh = sharding.make_mesh({"data": 2, "fsdp": 1, "tensor": 4})
    assert owned(8, mesh).all()
    # As if the devices of one column belonged to two processes: the rows are the first one's.
    device = collections.namedtuple("Device", "place process_index")
    first, second = (slice(0, 4),), (slice(4, 8),)
    places = {device(0, 0): first, device(1, 1): first, device(2, 1): second}
    monkeypatch.setattr("mmjax.cli.feed.batch_sharding", lambda mesh: SimpleNamespace(devices_indices_map=lambda shape: places))
    monkeypatch.setattr("mmjax.cli.feed.local_rows", lambda size, mesh: np.arange(8))
    assert owned(8, mesh).tolist() == [True] * 4 + [False] * 4


def test_config_json_gives_mixtures_and_streams_back(tmp_path):
    config = config_lib.load(CLASSIFY)
    config.unlock()
    config.data.mixture = ((0.7, {"split": "train"}), (0.3, {"split": "test", "transforms": (("decode", {"channels": 1}),)}))
    config.data.streams = {"pairs": {"split": "test"}}
    config.lock()
    config_lib.save(config, tmp_path)
    back = config_lib.open_workdir(tmp_path)
    assert config_lib.differences(back, config) == [] and back.data.mixture == config.data.mixture
    assert json.loads((tmp_path / "config.json").read_text())["config"]["data"]["window"] == 16
