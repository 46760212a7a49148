"""Predicted texts: read from a file, and matched against the ids that an annotation file asks for.

A file is a list of objects, or one object a line, in the forms evaluation servers take: [{"image_id", "caption"}] for captions,
[{"question_id", "answer"}] for questions; GQA's [{"questionId", "prediction"}] and CLEVR's "question_index" as well.
"""

from collections.abc import Iterable, Mapping, Sequence

from mmjax.core.errors import UserError
from mmjax.evals import annotations

CAPTION = (("image_id",), ("caption",))
ANSWER = (("question_id", "questionId", "question_index"), ("answer", "prediction"))


def read(path: str, keys: tuple[Sequence[str], Sequence[str]]) -> dict[str, str]:
    """id -> text, in the file's order. `keys`: the names the id may have, and those the text may have (`CAPTION`, `ANSWER`).

    Raises:
      UserError: no such file, no list of such objects, or two predictions for one id, with both places.
    """
    ids, texts = keys
    out: dict[str, str] = {}
    places: dict[str, str] = {}
    for entry in annotations.entries(path, f'a list of {{"{ids[0]}", "{texts[0]}"}}'):
        key = entry.id(*ids)
        if key in out:
            first = places[key].rsplit(", ", 1)[-1]
            raise UserError(f"{entry.where}: a second prediction for {ids[0]} {key}, the other is {first}; expected one each")
        out[key], places[key] = entry.text(*texts), entry.where
    return out


def matched(predicted: Mapping[str, str], wanted: Iterable[str], path: str, asked: str) -> list[str]:
    """The predictions for the ids `wanted`, in their order. `path` and `asked` name the two files in messages.

    Raises:
      UserError: ids without a prediction, or predictions for ids that nobody asked for.
    """
    wanted = list(wanted)
    missing = [key for key in wanted if key not in predicted]
    if missing:
        lacking = f"{_some(missing)} of the {len(wanted)} ids of {asked}"
        raise UserError(f"'{path}' has no prediction for {lacking}; expected one for each, or --predicted_only")
    known = set(wanted)
    strange = [key for key in predicted if key not in known]
    if strange:
        raise UserError(f"'{path}' has predictions for {_some(strange)} that {asked} does not have; is it of the same split?")
    return [predicted[key] for key in wanted]


def _some(ids: Sequence[str]) -> str:
    return f"{len(ids)} ({', '.join(ids[:3])}{', ...' if len(ids) > 3 else ''})"
