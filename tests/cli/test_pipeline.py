"""`mmjax sample --pipeline`: what does not fit is refused before anything is computed, notices are given, and every mode draws."""

import contextlib
import dataclasses
import json
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from mmjax.cli import cache, pipeline, pipeline_stage
from mmjax.cli.main import main
from mmjax.cli.pipeline_components import Components
from mmjax.cli.program import assemble
from mmjax.cli.sample_pipeline import Runner
from mmjax.cli.train import slim
from mmjax.core import config as config_lib
from mmjax.core import rng, sharding
from mmjax.core.checkpoint import Checkpoints
from mmjax.data import provenance, store
from mmjax.data import tokenizer as tokenizers
from mmjax.data.provenance import Remembered
from mmjax.data.scenes.builder import TOKENIZER
from mmjax.diffusion import embeddings
from mmjax.tasks import unclip
from tests.data.test_rows_of_captions import META, written
from tests.runs import ROOT
from tests.tasks.test_unclip_chain import CHAIN, PARAMS

CONFIGS = ROOT / "configs" / "unclip"
STAGES = {"prior": "chain.py:prior:smoke", "decoder": "chain.py:decoder:smoke", "up32": "chain.py:upsampler:smoke"}
PROMPT = "a red circle and a blue star"


def made(folder, spec, *words):
    """A workdir with one checkpoint of small random weights; nothing is compiled."""
    folder.mkdir()
    config = config_lib.load(str(CONFIGS / spec), words)
    config_lib.save(config, folder)
    program = assemble(config)
    draw = np.random.default_rng(3)
    fill = lambda x: (
        jnp.asarray(0.02 * draw.normal(size=x.shape), x.dtype) if jnp.issubdtype(x.dtype, jnp.floating) else jnp.zeros(x.shape, x.dtype)
    )
    state = jax.tree.map(fill, program.abstract)
    body, frozen = slim(program, state)
    with contextlib.closing(Checkpoints(folder / "checkpoints", keep_last=2)) as checkpoints:
        checkpoints.save(1, body, frozen=frozen, wait=True)
    return program


@pytest.fixture(scope="module")
def chain(tmp_path_factory):
    """A folder with the runs of all stages and their pipeline's file."""
    root = tmp_path_factory.mktemp("unclip")
    program = made(root / "clip", "clip.py:smoke")
    mark = cache.model_fingerprint(program.config, root / "clip", 1, program.ema_name())
    words = tokenizers.load(TOKENIZER)
    with pytest.MonkeyPatch.context() as m:
        m.setitem(META["model"], "fingerprint", mark)
        draw = np.random.default_rng(5)
        rows = words.encode([PROMPT, "a green square"], 24)
        written(root / "pairs" / "train", [rows] * 40, embedding=draw.normal(size=(40, 16)).astype(np.float32))
    store.write_words(root / "pairs" / "train", "tokens", words)
    for name, spec in STAGES.items():
        made(root / name, spec, f"data.path={root / 'pairs'}")
        provenance.check(root / name, [Remembered("data", str(root / "pairs"), "s", "train", 1, "ff", mark)], 0)
    return root


@pytest.fixture(autouse=True)
def tasks_made_once(monkeypatch, made_tasks={}):  # noqa: B006 (kept from test to test)
    """What a config's task is, is worked out once a config."""
    make = pipeline_stage.make_task

    def once(config):
        key = config.model.to_json() + config.task
        if key not in made_tasks:
            made_tasks[key] = make(config)
        return made_tasks[key]

    monkeypatch.setattr(pipeline_stage, "make_task", once)


def file_of(root, tmp_path, **changes):
    """The pipeline's file with other stages; None leaves one out."""
    body = {"clip": "clip", "prior": "prior", "decoder": "decoder", "upsamplers": ["up32"], **changes}
    plain = lambda x: [plain(y) for y in x] if isinstance(x, list) else str(root / x) if isinstance(x, str) else x
    path = tmp_path / "pipeline.json"
    path.write_text(json.dumps({role: plain(x) for role, x in body.items() if x is not None}))
    return path


def refused(capsys, *words):
    assert main(["sample", *map(str, words)]) == 2
    said = capsys.readouterr().err.splitlines()
    errors = [line for line in said if line.startswith("mmjax: error: ")]
    assert len(errors) == 1 and "Traceback" not in said, said
    return errors[0]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"decoder": None}, "lacks the stage 'decoder'"),
        ({"decodr": "decoder"}, "no stage is called 'decodr'; did you mean 'decoder'?"),
        ({"decoder": "nowhere"}, "does not exist; train it"),
        ({"decoder": "pairs"}, "pairs"),
        ({"decoder": {"path": 3}}, "expected a workdir, or an object with its 'path'"),
        ({"decoder": "prior"}, "a run of task 'diffusion_prior', which does not give embedding_to_image"),
        ({"upsamplers": ["up32", "up32"]}, "upsampler1"),
        ({"prior": None}, "lacks the stage 'prior'; add it, or decode without one: --embedding text"),
    ],
)
def test_files_that_name_no_chain(chain, tmp_path, capsys, changes, message):
    out = tmp_path / "out"
    assert message in refused(capsys, "--pipeline", file_of(chain, tmp_path, **changes), "--prompt", PROMPT, "--out", out)
    assert not out.exists()


def test_stages_that_do_not_meet(chain, tmp_path, capsys):
    out = ("--prompt", PROMPT, "--out", tmp_path / "out")
    said = refused(capsys, "--pipeline", file_of(chain, tmp_path, upsamplers=["up32", "up32"]), *out)
    assert "enlarges pictures of 16 pixels to 32" in said and "draws 32" in said
    other = tmp_path / "prior"
    shutil.copytree(chain / "prior", other)
    body = json.loads((other / "data.json").read_text())
    body["sets"][0]["model"] = "0123456789abcdef"
    (other / "data.json").write_text(json.dumps(body))
    said = refused(capsys, "--pipeline", file_of(chain, tmp_path, prior=str(other)), *out)
    assert "embeddings of another CLIP (fingerprint 0123456789abcdef, the set at" in said and "at step 1 is" in said
    (other / "data.json").unlink()
    assert "nothing says whose they were" in refused(capsys, "--pipeline", file_of(chain, tmp_path, prior=str(other)), *out)
    shutil.rmtree(other / "checkpoints")
    assert "has no checkpoint yet" in refused(capsys, "--pipeline", file_of(chain, tmp_path, prior=str(other)), *out)


def test_flags_and_pictures_that_do_not_fit(chain, tmp_path, capsys):
    Image.new("RGB", (48, 32)).save(tmp_path / "wide.png")
    base = ("--pipeline", file_of(chain, tmp_path), "--out", tmp_path / "out")
    assert "48 x 32 pixels, the pipeline's pictures are 32 x 32" in refused(capsys, *base, "--variations-of", tmp_path / "wide.png")
    assert "cannot be read as a picture" in refused(capsys, *base, "--variations-of", tmp_path / "pipeline.json")
    assert "takes one of --prompt" in refused(capsys, *base)
    assert "got --prompt and --interpolate" in refused(capsys, *base, "--prompt", PROMPT, "--interpolate", "a", "b")
    assert "--eta goes with --variations-of" in refused(capsys, *base, "--prompt", PROMPT, "--eta", "0")
    assert "did you mean 'text'" in refused(capsys, *base, "--prompt", PROMPT, "--embedding", "txt")
    assert "--labels goes with --workdir" in refused(capsys, *base, "--prompt", PROMPT, "--labels", "1")
    assert "--candidates goes with --pipeline" in refused(
        capsys, "--workdir", chain / "decoder", "--candidates", "2", "--out", tmp_path / "o"
    )
    assert "begins with a stage's name; did you mean 'prior'" in refused(capsys, *base, "--prompt", PROMPT, "prio.model.x=1")


def test_components_are_those_of_the_prior(chain, tmp_path, capsys):
    """Of its training set, which must be there and of the same CLIP, or, of an autoregressive one, what it holds."""
    file = file_of(chain, tmp_path)
    Image.new("RGB", (32, 32)).save(tmp_path / "a.png")
    base = ("--pipeline", file, "--out", tmp_path / "out", "--pca-of", tmp_path / "a.png")
    assert "--dims has 99, and there are 16 principal components (of 40 embeddings of the set" in refused(capsys, *base, "--dims", "3,99")
    assert "--num goes with another way to draw" in refused(capsys, *base, "--num", "3")
    assert "--dims goes with --pca-of" in refused(capsys, *base[:4], "--prompt", PROMPT, "--dims", "3")
    gone = refused(capsys, *base, f"prior.data.path={tmp_path / 'nowhere'}")
    assert f"that set, which lay at '{chain / 'pairs'}', cannot be read" in gone and "prior.data.path=DIR" in gone
    opened = pipeline.open_pipeline(file)
    found = Components.of(opened)
    rows = np.stack([found.source[i]["embedding"] for i in range(40)]).astype(np.float64)
    want = embeddings.fit_pca(rows / np.linalg.norm(rows, axis=1, keepdims=True))
    assert found.halves() == [1, 2, 4, 8, 16] and found.kept == 16
    np.testing.assert_allclose(found.load({}).mean, want.mean, atol=1e-6)
    np.testing.assert_allclose(found.load({}).eigenvalues, want.eigenvalues, atol=1e-6)
    config = config_lib.load(str(CONFIGS / "chain.py:ar_prior:smoke"), ())
    stages = {**opened.stages, "prior": dataclasses.replace(opened.stages["prior"], config=config)}
    own = Components.of(dataclasses.replace(opened, stages=stages))
    assert own.kept == 4 and own.unit and own.halves() == [1, 2, 4]
    held = own.load({"prior": {"pca": want._asdict()}})
    np.testing.assert_array_equal(held.directions, want.directions)


def test_prompts_that_are_cut_or_new_are_told(chain, tmp_path):
    opened = pipeline.open_pipeline(file_of(chain, tmp_path))
    rows, said = opened.tokens([PROMPT, "a zebra", "a red circle and " * 9])
    assert rows.shape == (3, 24) and len(said) == 2
    assert "'a zebra': never seen in training: zebra" in said[0] and "pairs/train" in said[0]
    assert "is 36 tokens and the context holds 22: the last 14 are cut off" in said[1]
    assert opened.size == 32 and opened.chain.judged == 1 and opened.chain.words == "tokens" and opened.chain.prior_words == ""


def test_stage_by_stage_is_the_whole_chain():
    mesh = sharding.make_mesh({"data": 8, "fsdp": 1, "tensor": 1})
    runner = Runner(CHAIN, PARAMS, mesh, batch_size=8, seed=5)
    tokens = np.array([[1, 2, 0], [3, 4, 5], [6, 0, 0]], np.int32)
    keys = rng.per_example(rng.named(rng.wrap(rng.root(5)), "sample"), jnp.arange(3))
    for count in (1, 3):
        got = runner.texts_to_images(tokens, count=count)
        np.testing.assert_allclose(got, unclip.text_to_image(CHAIN, PARAMS, jnp.asarray(tokens), keys, count=count), atol=1e-5)
    assert set(runner.seconds) == {"prior", "decoder", "upsampler0", "upsampler1", "reranking"}
    assert (
        runner.seconds["upsampler1"]["rows"] == 6 and runner.seconds["upsampler0"]["rows"] == 3 + 9
    )  # the others are not enlarged further


def test_published_weights_are_a_stage_too(chain, tmp_path, capsys):
    assert main(["convert", "import", str(chain / "prior"), "--out", str(tmp_path / "weights")]) == 0
    capsys.readouterr()
    own, other = (pipeline.open_pipeline(file_of(chain, tmp_path, prior=p)).stages["prior"] for p in ("prior", str(tmp_path / "weights")))
    assert "prior 'weights' does not say whose" in capsys.readouterr().err.replace(f"{tmp_path}/", "")
    assert other.published and (other.words, other.told) == (own.words, own.told)
    want, got = own.load()[2], other.load()[2]
    jax.tree.map(np.testing.assert_array_equal, dict(want), dict(got))


def test_clip_is_shown_what_it_was_trained_on(chain):
    config = config_lib.open_workdir(chain / "clip")
    x = pipeline.prepare(config)(jnp.full((1, 16, 16, 3), 0.75))
    assert x.shape == (1, 32, 32, 3)
    np.testing.assert_allclose(x, 0.5, atol=1e-5)  # in -1..1


@pytest.mark.slow  # every stage is compiled
def test_every_mode_draws(chain, tmp_path, capsys):
    file = file_of(chain, tmp_path)
    draw = lambda name, *words: main(
        ["sample", "--pipeline", str(file), "--out", str(tmp_path / name), "--batch_size", "8", *map(str, words)]
    )
    assert draw("prompts", "--prompt", PROMPT, "--num", "2", "--candidates", "2") == 0
    record = json.loads((tmp_path / "prompts" / "samples.json").read_text())
    assert set(record["seconds"]) == {"prior", "decoder", "upsampler0", "reranking"} and record["pictures"][1]["prompt"] == PROMPT
    first = tmp_path / "prompts" / "00000.png"
    assert np.asarray(Image.open(first)).shape == (32, 32, 3)
    second = tmp_path / "prompts" / "00001.png"
    assert (
        draw("text", "--prompt", PROMPT, "--embedding", "text") == 0 and draw("nothing", "--prompt", PROMPT, "--embedding", "nothing") == 0
    )
    assert draw("variations", "--variations-of", first, "--num", "2", "--eta", "0.5") == 0
    assert draw("between", "--interpolate", first, second, "--num", "3") == 0
    assert draw("fixed", "--interpolate", first, second, "--num", "3", "--noise", "fixed") == 0
    assert draw("components", "--pca-of", first, "--dims", "0,4,16") == 0
    told = json.loads((tmp_path / "components" / "samples.json").read_text())["pictures"]
    assert [one["dims"] for one in told] == [0, 4, 16] and "40 embeddings" in told[0]["components"]
    assert draw("diff", "--text-diff", first, "a red star", "a blue star", "--num", "2") == 0
    capsys.readouterr()
    assert main(["eval", "--pipeline", str(file), "--prompts", "2", "--report", "--batch_size", "8"]) == 0
    scores = json.loads(capsys.readouterr().out)["scores"]
    assert {"one object: colour", "two objects: bound"} <= set(scores) and "Interpolation" in (tmp_path / "report.html").read_text()
    assert main(["eval", "--pipeline", str(file), "--prompts", "2", "--embedding", "image", "--batch_size", "8"]) == 0
