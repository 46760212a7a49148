"""mmjax.evals.zero_shot and templates: sets of prompts, candidates, another set than the run's."""

import hashlib

import jax.numpy as jnp
import numpy as np
import pytest
from ml_collections import ConfigDict

from mmjax import evals
from mmjax.core import config as config_lib
from mmjax.core import sharding
from mmjax.core.errors import UserError
from mmjax.data.source import Info
from mmjax.evals import templates, zero_shot
from tests.evals.test_evals import COMMON, knowing


@pytest.fixture(scope="module")
def data():
    return config_lib.override(config_lib.base(), ["data.source=digits_captions"]).data


def test_clips_eighty_are_the_published_ones():
    """The sum is that of the published list, sorted, one a line."""
    eighty = templates.SETS["clip80"]
    assert len(set(eighty)) == 80 and set(templates.SETS["clip7"]) < set(eighty) and len(set(templates.SETS["clip7"])) == 7
    digest = hashlib.sha256("\n".join(sorted(eighty)).encode()).hexdigest()
    assert digest == "a8a4822f2921936e2ef07cf2e7a5df69be9532aab2f3f4880156bb03563e2467"


def of(data, predict=None, **keys):
    group = ConfigDict({"type": "zero_shot", **COMMON, **keys})
    return evals.make("z", predict or knowing(data), group, sharding.make_mesh({"data": 8}), data)


def test_prompts_by_name(data):
    got = of(data, prompts="clip80")
    assert len(got.tokens) == 800 and got.texts_of_classes()[80].count("one") and not np.array_equal(got.tokens[0], got.tokens[1])
    assert len(of(data, prompts="clip7").tokens) == 70
    source = of(data)
    assert source.templates == source.source.info.prompts
    assert np.array_equal(of(data, prompts="source").tokens, source.tokens)
    with pytest.raises(UserError, match=r"prompts is 'clip08'; did you mean 'clip80'\?"):
        of(data, prompts="clip08")


def test_candidates_from_a_file(data, tmp_path):
    listed = tmp_path / "candidates.txt"
    names = of(data).source.info.classes
    listed.write_text("\n".join(names[k] for k in (3, 5, 7)) + "\n")
    got = of(data, knowing(data, wrong=(5,)), candidates=str(listed))({})
    assert got.pop("other_classes") == 7 * 14
    assert got["mean_per_class"] == pytest.approx(2 / 3) and "accuracy_top5" not in got  # of three candidates
    images, labels, places = of(data, candidates=str(listed)).images({})
    assert set(labels) == {3, 5, 7} and len(images) == len(places) == 42
    listed.write_text("three\nfourr\n")
    with pytest.raises(UserError, match=r"lists 'fourr', no class of source 'digits_captions'; did you mean 'four'\?"):
        of(data, candidates=str(listed))
    with pytest.raises(UserError, match="candidates is 'none', neither 'all' nor 'present' nor a file that can be read"):
        of(data, candidates="none")


def test_candidates_by_what_the_set_calls_its_classes(tmp_path):
    info = Info("s", "test", ("crane", "drake", "crane"), ("a {}",), None, {}, ids=("n02012849", "n01847000", "n03126707"))
    listed = tmp_path / "ids.txt"
    listed.write_text("n03126707\nn01847000\n")
    assert zero_shot.candidates(str(listed), info)(np.zeros(3, int)).tolist() == [False, True, True]
    assert zero_shot.candidates("present", info)(np.array([2, 2, 0])).tolist() == [True, False, True]
    assert zero_shot.candidates("all", info)(np.array([2])).all()


def test_a_class_that_is_no_candidate_is_never_answered(data):
    """The split's images are of all ten classes but one, which every image is nearest to."""
    evaluate = of(data, candidates="present")
    assert evaluate({}) == {"accuracy": 1.0, "accuracy_top5": 1.0, "mean_per_class": 1.0}
    predict = knowing(data)
    drawn = {**predict, "encode_image": lambda p, x: predict["encode_image"](p, x) * 0 + jnp.eye(10)[9][None]}
    with_nine = of(data, drawn)
    without = of(data, drawn)
    object.__setattr__(without, "candidates", lambda labels: np.arange(10) != 9)
    assert with_nine({})["accuracy"] == pytest.approx(0.1)
    got = without({})
    assert got["accuracy"] == 0.0 and got["other_classes"] == 14  # nine equal cosines are no answer


def test_an_evaluation_may_look_at_another_set(data):
    other = data.copy_and_resolve_references()
    other.source = "nowhere"
    group = ConfigDict({"type": "zero_shot", **COMMON, "data": {"source": "digits_captions"}})
    mesh = sharding.make_mesh({"data": 8})
    assert evals.make("z", knowing(data), group, mesh, other)({})["accuracy"] == 1.0
    with pytest.raises(UserError, match=r"config.evals.z.data has unknown key 'sorce'; did you mean 'source'\?"):
        evals.make("z", knowing(data), ConfigDict({**group.to_dict(), "data": {"sorce": "x"}}), mesh, other)
