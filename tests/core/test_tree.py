import pytest

from mmjax.core import tree
from mmjax.core.errors import UserError

NESTED = {"b": {"y": 1, "x": {"z": 2}}, "a": 3}


def test_flatten_round_trip_in_jax_order():
    flat = tree.flatten(NESTED)
    assert flat == {"a": 3, "b/x/z": 2, "b/y": 1} and list(flat) == ["a", "b/x/z", "b/y"]
    assert tree.unflatten(flat) == NESTED


def test_select_and_merge_are_inverse():
    one, rest = tree.select(NESTED, lambda p: p.startswith("b/x")), tree.select(NESTED, lambda p: not p.startswith("b/x"))
    assert one == {"b": {"x": {"z": 2}}} and tree.merge(rest, one) == NESTED
    assert tree.merge(NESTED, {"a": 5})["a"] == 5


def test_first_match_takes_the_first_rule():
    assert tree.first_match(["k/bias", "k/w"], ((".*bias", 0), (".*", 1)), "rules") == {"k/bias": 0, "k/w": 1}


def test_a_rule_may_decide_a_path_outside_and_such_a_path_needs_no_rule():
    rules = ((".*bias", 0), ("k/.*", 1))
    assert tree.first_match(["k/w"], rules, "rules", among=["k/bias", "other"]) == {"k/w": 1}
    with pytest.raises(UserError, match="rule 0"):
        tree.first_match(["k/w"], rules, "rules", among=["other"])


@pytest.mark.parametrize(
    "rules, message",
    [
        (((".*bias", 0),), r"no rule covers parameter 'k/w'.*add a last rule"),
        (((".*bais", 0), (".*", 1)), r"rule 0 '.\*bais' decides no parameter"),
        (((".*", 1), (".*bias", 0)), r"rule 1 '.\*bias' decides no parameter"),
        (((".*bias", 0), ("k", 1), (".*", 2)), r"rule 1 'k' decides"),
    ],
)
def test_first_match_covers_everything_and_wastes_no_rule(rules, message):
    with pytest.raises(UserError, match=message):
        tree.first_match(["k/bias", "k/w"], rules, "optim.lr_rules")
