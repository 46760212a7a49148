import jax
import jax.numpy as jnp
import pytest

from mmjax.core.errors import UserError
from mmjax.core.init_from import match_params


def arrays(**shapes):
    return {k.replace("__", "/"): jax.ShapeDtypeStruct(v, jnp.float32) for k, v in shapes.items()}


SOURCE = arrays(old__a__w=(3, 2), old__b__w=(2,), head=(5,))
TARGET = arrays(new__a__w=(3, 2), new__b__w=(2,), head=(5,))


def test_the_same_paths_map_to_themselves():
    assert match_params(SOURCE, SOURCE) == {p: p for p in SOURCE}


def test_rename_uses_groups_and_the_first_rule_that_matches():
    got = match_params(SOURCE, TARGET, rename=[(r"old/(a|b)/(.*)", r"new/\1/\2")])
    assert got == {"new/a/w": "old/a/w", "new/b/w": "old/b/w", "head": "head"}
    swapped = match_params(SOURCE, arrays(x=(3, 2), y__b__w=(2,), head=(5,)), rename=[("old/a/w", "x"), (r"old/(.*)", r"y/\1")])
    assert swapped == {"x": "old/a/w", "y/b/w": "old/b/w", "head": "head"}


def test_skip_leaves_targets_at_their_initial_value_and_sources_out():
    assert match_params(arrays(a=(2,), extra=(1,)), arrays(a=(2,), fresh=(9,)), skip=["extra", "fresh"]) == {"a": "a"}
    # A target that is skipped also takes the source that would have filled it, whatever its shape.
    assert match_params(arrays(a=(2,), old=(1,)), arrays(a=(2,), head=(9,)), rename=[("old", "head")], skip=["head"]) == {"a": "a"}


def test_all_that_does_not_match_is_listed_on_both_sides():
    source, target = arrays(both=(3, 2), here=(4,), there=(1,)), arrays(both=(2, 3), gone=(4,), there=(1,))
    with pytest.raises(UserError) as e:
        match_params(source, target)
    message = str(e.value)
    assert "\n" not in message
    assert "1 in the source only: here" in message
    assert "1 in the target only: gone float32[4]" in message
    assert "both float32[2,3] from both float32[3,2]" in message
    assert "there" not in message.replace("both", "")


def test_floats_may_change_precision_but_not_become_integers():
    half, whole = {"a": jax.ShapeDtypeStruct((2,), jnp.bfloat16)}, {"a": jax.ShapeDtypeStruct((2,), jnp.int32)}
    assert match_params(half, arrays(a=(2,))) == {"a": "a"}
    with pytest.raises(UserError, match="of another shape or dtype"):
        match_params(whole, arrays(a=(2,)))


@pytest.mark.parametrize(
    ("rules", "expected"),
    [
        ({"rename": [("typo/.*", "x")]}, "'typo/.*' matches nothing"),
        ({"rename": [("old/.*", "x"), ("old/a/w", "y")]}, "'old/a/w' matches nothing"),
        ({"skip": ["typo"]}, "'typo' matches nothing"),
        ({"rename": [("old/(", "x")]}, "is no regular expression"),
        ({"rename": [("old/a/w", r"\2")]}, "does not fit"),
        ({"rename": [("old/.*", "new/a/w")]}, "old/a/w and old/b/w both become new/a/w"),
    ],
)
def test_rules_that_cannot_be_meant_are_refused(rules, expected):
    with pytest.raises(UserError) as e:
        match_params(SOURCE, TARGET, **rules)
    assert expected in str(e.value)
