"""The grammar of questions."""

from typing import Any

from mmjax.data.scenes.describe import NOUN_PHRASES, Description, plural
from mmjax.data.scenes.grammar import Leaf, Rule, Tree


def _noun(context: Any, many: str, targets: tuple[int, ...], description: Description) -> list[tuple[Tree, ...]]:
    """As in captions, but for "shape" and "figure", which would be odd beside a question of shape."""
    slot = ("shape", targets) if description.shape else None
    nouns = (description.shape,) if description.shape else ("thing", "object")
    return [(Leaf("NN", noun, slot) if many == "one" else Leaf("NNS", plural(noun), slot),) for noun in nouns]


def _open(context: Any, description: Description) -> list[tuple[Tree, ...]]:
    """A condition: the description states nothing."""
    return [] if description.stated else [()]


def _asking(attribute: str, *more: str) -> list[str]:
    """Forms that ask for an attribute of the thing `<it t d>`."""
    return [
        f"(SBARQ (WHNP (WDT what) (NN {attribute})) (SQ (VBZ is) <it t d>) (. ?))",
        f"(SBARQ (WHNP (WP what)) (SQ (VBZ is) (NP (NP (DT the) (NN {attribute})) (PP (IN of) <it t d>))) (. ?))",
        f"(SBARQ (WHNP (WDT which) (NN {attribute})) (SQ (VBZ does) <it t d> (VP (VB have))) (. ?))",
        f"(S <it t d> (VP (VBZ has) (WHNP (WDT what) (NN {attribute}))) (. ?))",
        f"(SBARQ (WHPP (IN of) (WHNP (WDT what) (NN {attribute}))) (SQ (VBZ is) <it t d>) (. ?))",
        *more,
    ]


_MANY = "(WHNP (WRB how) (JJ many) <described none many t d>)"
_EITHER = "(NP <described none many t d> (CC or) <described none many u e>)"
_A, _B = "<described none many t d>", "<described none many u e>"

RULES: dict[str, Rule] = {
    **NOUN_PHRASES,
    "noun many t d": _noun,
    "open d": _open,
    "attribute name": lambda context, name: [(Leaf("NN", name),)],
    "it t d": ["<described the one t d>"],
    "exist t d": [
        "(SQ (VBZ is) (NP (EX there)) <described a one t d> (. ?))",
        "(SQ (VBP are) (NP (EX there)) <described any many t d> (. ?))",
        "(SQ (VBZ does) (NP (DT the) <medium>) (VP (VB show) <described a one t d>) (. ?))",
        "(SQ (MD can) (NP (PRP you)) (VP (VB see) <described a one t d>) (. ?))",
        "(SQ (VBP are) <described any many t d> (VP (VBN shown)) (. ?))",
        "(SQ (VBZ is) <described a one t d> (PP (IN in) (NP (DT the) <medium>)) (. ?))",
    ],
    "count t d": [
        f"(SBARQ {_MANY} (SQ (VBP are) (NP (EX there))) (. ?))",
        f"(SBARQ {_MANY} (SQ (MD can) (NP (PRP you)) (VP (VB see))) (. ?))",
        f"(SBARQ {_MANY} (SQ (VBP are) (PP (IN in) (NP (DT the) <medium>))) (. ?))",
        f"(SBARQ {_MANY} (SQ (VBZ does) (NP (DT the) <medium>) (VP (VB show))) (. ?))",
        f"(SBARQ (WHNP (WP what)) (SQ (VBZ is) (NP (NP (DT the) (NN number)) (PP (IN of) {_A}))) (. ?))",
    ],
    "count_either t d u e": [
        f"(SBARQ (WHNP (WRB how) (JJ many) {_EITHER}) (SQ (VBP are) (NP (EX there))) (. ?))",
        f"(SBARQ (WHNP (WRB how) (JJ many) {_EITHER}) (SQ (MD can) (NP (PRP you)) (VP (VB see))) (. ?))",
        f"(SBARQ (WHNP (WRB how) (JJ many) (NNS things)) (SQ (VBP are) {_EITHER}) (. ?))",
    ],
    "query_colour t d": _asking("colour"),
    "query_shape t d": _asking("shape"),
    "query_size t d": _asking(
        "size",
        "(SBARQ (WHADJP (WRB how) (JJ big)) (SQ (VBZ is) <it t d>) (. ?))",
        "(SBARQ (WHADJP (WRB how) (JJ large)) (SQ (VBZ is) <it t d>) (. ?))",
    ),
    "more t d u e": [
        f"(SQ (VBP are) (NP (EX there)) (NP (NP (JJR more) {_A}) (PP (IN than) {_B})) (. ?))",
        f"(SQ (VBZ does) (NP (DT the) <medium>) (VP (VB show) (NP (NP (JJR more) {_A}) (PP (IN than) {_B}))) (. ?))",
        "(SQ (VBZ is) <number t d> (ADJP (JJR greater) (PP (IN than) <number u e>)) (. ?))",
        f"(SQ (MD can) (NP (PRP you)) (VP (VB see) (NP (NP (JJR more) {_A}) (PP (IN than) {_B}))) (. ?))",
    ],
    "fewer t d u e": [
        f"(SQ (VBP are) (NP (EX there)) (NP (NP (JJR fewer) {_A}) (PP (IN than) {_B})) (. ?))",
        f"(SQ (VBZ does) (NP (DT the) <medium>) (VP (VB show) (NP (NP (JJR fewer) {_A}) (PP (IN than) {_B}))) (. ?))",
        "(SQ (VBZ is) <number t d> (ADJP (JJR smaller) (PP (IN than) <number u e>)) (. ?))",
        f"(SQ (MD can) (NP (PRP you)) (VP (VB see) (NP (NP (JJR fewer) {_A}) (PP (IN than) {_B}))) (. ?))",
    ],
    "equal t d u e": [
        f"(SQ (VBP are) (NP (EX there)) (NP (NP (RB as) (JJ many) {_A}) (PP (IN as) {_B})) (. ?))",
        f"(SQ (VBZ does) (NP (DT the) <medium>) (VP (VB show) (NP (NP (RB as) (JJ many) {_A}) (PP (IN as) {_B}))) (. ?))",
        "(SQ (VBZ is) <number t d> (NP (NP (DT the) (JJ same)) (PP (IN as) <number u e>)) (. ?))",
        "(SQ (VBZ is) <number t d> (ADJP (JJ equal) (PP (TO to) <number u e>)) (. ?))",
    ],
    "number t d": [f"(NP (NP (DT the) (NN number)) (PP (IN of) {_A}))"],
    "stands name r s d e": [
        *["(SQ (VBZ is) <described the one s d> <relation name the r e> (. ?))"] * 2,
        "(SQ (VBZ is) <described the one s d> (VP <set> <position name the r e>) (. ?))",
        "(SQ (MD can) <described the one s d> (VP (VB be) (VP (VBN seen) <position name the r e>)) (. ?))",
        "(SQ (VBZ is) (NP (PRP it)) (ADJP (JJ true) (SBAR (IN that) <it_stands name r s d e>)) (. ?))",
        "(SQ (VBZ does) <described the one s d> (VP (VB appear) <position name the r e>) (. ?))",
    ],
    "it_stands name r s d e": ["(S <described the one s d> (VP (VBZ is) <relation name the r e>))"],
    "relate_count name r s d": [
        "(SBARQ (WHNP (WRB how) (JJ many) (NNS things)) (SQ (VBP are) <relation name the r d>) (. ?))",
        "(SBARQ (WHNP (WRB how) (JJ many) (NNS objects)) (SQ (VBP are) (NP (EX there)) <position name the r d>) (. ?))",
        "(SBARQ (WHNP (WRB how) (JJ many) (NNS objects)) (SQ (VBP are) (VP <set> <position name the r d>)) (. ?))",
        "(SBARQ (WHNP (WRB how) (JJ many) (NNS things)) (SQ (MD can) (NP (PRP you)) (VP (VB see) <position name the r d>)) (. ?))",
    ],
    "relate_query asked name r s kind d": [
        "(SBARQ (WHNP (WDT what) <attribute asked>) (SQ (VBZ is) <related_one name r s kind d>) (. ?))",
        "(SBARQ (WHNP (WP what)) (SQ (VBZ is) (NP (NP (DT the) <attribute asked>) (PP (IN of) <related_one name r s kind d>))) (. ?))",
        "(SBARQ (WHNP (WDT which) <attribute asked>) (SQ (VBZ does) <related_one name r s kind d> (VP (VB have))) (. ?))",
        "(S <related_one name r s kind d> (VP (VBZ has) (WHNP (WDT what) <attribute asked>)) (. ?))",
        "(SBARQ <open kind> <shape_only asked> (WHNP (WDT what) (NN shape)) (SQ (VBZ is) <relation name the r d>) (. ?))",
        "(SBARQ <open kind> <shape_only asked> (WHNP (WDT which) (NN shape)) (SQ (VBZ is) (VP <set> <position name the r d>)) (. ?))",
    ],
    "shape_only asked": lambda context, asked: [()] if asked == "shape" else [],
    "related_one name r s kind d": [
        "(NP <described the one s kind> <relation name the r d>)",
        "(NP <described the one s kind> (SBAR (WHNP (WDT that)) (S (VP (VBZ is) <relation name the r d>))))",
        "(NP <described the one s kind> (VP <set> <position name the r d>))",
    ],
    "alike name t d u e": [
        "(SQ (VBZ is) <it t d> (NP (NP (DT the) (JJ same) <attribute name>) (PP (IN as) <it u e>)) (. ?))",
        "(SQ (VBP do) (NP <it t d> (CC and) <it u e>) (VP (VB have) (NP (DT the) (JJ same) <attribute name>)) (. ?))",
        "(SQ (VBP are) (NP <it t d> (CC and) <it u e>) (PP (IN of) (NP (DT the) (JJ same) <attribute name>)) (. ?))",
        "(SQ (VBZ does) <it t d> (VP (VB have) (NP (NP (DT the) (JJ same) <attribute name>) (PP (IN as) <it u e>))) (. ?))",
    ],
    "same_exist name t d": [
        "(SQ (VBZ is) (NP (EX there)) (NP (NP (NN anything) (RB else)) (PP (IN of) <same name t d>)) (. ?))",
        "(SQ (VBZ does) (NP (NN anything) (RB else)) (VP (VB have) <same name t d>) (. ?))",
        "(SQ (VBZ is) (NP (EX there)) (NP (NP (DT another) (NN thing)) (SBAR (WHNP (WDT that)) (S (VP (VBZ has) <same name t d>)))) (. ?))",
    ],
    "same_query asked name t d": [
        "(SBARQ (WHNP (WDT what) <attribute asked>) (SQ (VBZ is) <other_one name t d>) (. ?))",
        "(SBARQ (WHNP (WP what)) (SQ (VBZ is) (NP (NP (DT the) <attribute asked>) (PP (IN of) <other_one name t d>))) (. ?))",
        "(SBARQ (WHNP (WDT which) <attribute asked>) (SQ (VBZ does) <other_one name t d> (VP (VB have))) (. ?))",
    ],
    "other_one name t d": [
        "(NP (NP (DT the) (JJ other) (NN thing)) (PP (IN of) <same name t d>))",
        "(NP (NP (DT the) (JJ other) (NN object)) (PP (IN with) <same name t d>))",
        "(NP (NP (DT the) (JJ other) (NN thing)) (SBAR (WHNP (WDT that)) (S (VP (VBZ has) <same name t d>))))",
    ],
    "same name t d": ["(NP (NP (DT the) (JJ same) <attribute name>) (PP (IN as) <it t d>))"],
    "set": ["(VBN placed)", "(VBN positioned)", "(VBN located)", "(VBN drawn)"],
}
