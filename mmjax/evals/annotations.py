"""Annotation files in the forms their makers publish, read into a few plain records, with errors that name file and place.

  captions   COCO `captions_*.json`; Karpathy's `dataset_*.json`; or a list, or JSON lines, of {"image_id", "captions"}
  vqa        VQA v1 and v2 `*_annotations.json` (OK-VQA's too)
  gqa        GQA `*_questions.json`, questions by id
  clevr      CLEVR `CLEVR_*_questions.json`
  qa         a list, or JSON lines, of {"question_id", "answer", "type"}
  winoground, sugarcrepe, aro: in the modules of these names, through the same functions

Captions and questions of a source (our scenes, say) are read by the same names from its records.

Ids are kept as text: COCO writes numbers, GQA strings, and predictions either.
"""

import dataclasses
import json
from collections.abc import Iterator, Mapping
from typing import Any

from mmjax.core.errors import UserError, suggest
from mmjax.data import files
from mmjax.data.bad import BadSample
from mmjax.data.source import Source, texts_of

_KINDS = {str: "text", int: "a whole number", float: "a number", list: "a list [...]", dict: "an object {...}"}


@dataclasses.dataclass(frozen=True)
class Entry:
    """One object of a file, with where it stands, so that whoever finds it wrong can say so."""

    value: Mapping[str, Any]
    where: str  # "'file.json', annotations[3]"

    def get(self, key: str, kind: type) -> Any:
        """`value[key]`, which is to be of a type. Raises UserError."""
        if key not in self.value:
            raise UserError(f"{self.where} has no {key!r}{suggest(key, self.value)}")
        value = self.value[key]
        if not isinstance(value, (int, float) if kind is float else kind) or isinstance(value, bool):
            raise UserError(f"{self.where}: {key!r} is {_short(value)}, expected {_KINDS[kind]}")
        return value

    def id(self, *keys: str) -> str:
        """An id, under the first of these names that is there: a whole number or text, as text. Raises UserError."""
        key = next((k for k in keys if k in self.value), keys[0])
        if key not in self.value:
            raise UserError(f"{self.where} has no {key!r}{suggest(key, self.value)}")
        value = self.value[key]
        if isinstance(value, bool) or not isinstance(value, int | str):
            raise UserError(f"{self.where}: {key!r} is {_short(value)}, expected a whole number or text")
        return str(value)

    def text(self, *keys: str) -> str:
        """Text under the first of these names that is there. Raises UserError."""
        return self.get(next((k for k in keys if k in self.value), keys[0]), str)

    def entries(self, key: str) -> list["Entry"]:
        """The objects of a list. Raises UserError."""
        return _entries(self.get(key, list), f"{self.where}{'' if self.where.endswith(chr(39)) else '.'}", key)

    def texts(self, key: str) -> tuple[str, ...]:
        """The texts of a list, at least one. Raises UserError."""
        found = self.get(key, list)
        if not found or not all(isinstance(text, str) for text in found):
            raise UserError(f"{self.where}: {key!r} is {_short(found)}, expected a list of texts, at least one")
        return tuple(found)


def _short(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False, default=repr)
    return text if len(text) <= 60 else f"{text[:57]}..."


def _entries(values: list[Any], where: str, key: str = "") -> list[Entry]:
    out = []
    for i, value in enumerate(values):
        place = f"{where}, {key}[{i}]" if key else f"{where}, entry {i}"
        if not isinstance(value, dict):
            raise UserError(f"{place} is {_short(value)}, expected an object {{...}}")
        out.append(Entry(value, place))
    return out


def read(path: str) -> Any:
    """What a JSON file holds; of JSON lines the list of what the lines hold, blank ones left out. Local or an object of a store.

    A file is JSON lines if its name ends in .jsonl, or if it is no JSON as a whole and begins with a line that is an object.

    Raises:
      UserError: no such file, not UTF-8, or no JSON; with line and column.
    """
    files.stat(path, "file")
    try:
        text = files.read(path).decode("utf-8-sig")
    except UnicodeDecodeError as e:
        raise UserError(f"'{path}' is not UTF-8 at byte {e.start}; expected a JSON file") from None
    except OSError as e:
        raise UserError(f"'{path}' cannot be read: {e}") from e
    lines = [(number, line) for number, line in enumerate(text.split("\n"), 1) if line.strip()]
    if not lines:
        raise UserError(f"'{path}' is empty; expected JSON")
    try:
        return [json.loads(lines[0][1])] if path.endswith(".jsonl") and len(lines) == 1 else json.loads(text)
    except (ValueError, RecursionError) as whole:
        if not path.endswith(".jsonl") and not _is_object(lines[0][1]):
            raise UserError(f"'{path}' is no JSON: {whole}") from None
    out = []
    for number, line in lines:
        try:
            out.append(json.loads(line))
        except (ValueError, RecursionError) as e:
            raise UserError(f"'{path}', line {number} is no JSON: {e}") from None
    return out


def _is_object(line: str) -> bool:
    try:
        return isinstance(json.loads(line), dict)
    except (ValueError, RecursionError):
        return False


def entries(path: str, expected: str) -> list[Entry]:
    """The objects of a file that is a list of them. `expected` says in words what the list should be. Raises UserError."""
    value = read(path)
    if not isinstance(value, list):
        raise UserError(f"'{path}' holds {_outline(value)}, expected {expected}")
    if not value:
        raise UserError(f"'{path}' is an empty list, expected {expected}")
    return _entries(value, f"'{path}'")


def document(path: str, key: str, expected: str) -> Entry:
    """A file that is one object with `key`. Raises UserError."""
    value = read(path)
    if not isinstance(value, dict) or key not in value:
        raise UserError(f"'{path}' holds {_outline(value)}, expected {expected}")
    return Entry(value, f"'{path}'")


def _outline(value: Any) -> str:
    if isinstance(value, dict):
        keys = list(value)
        return f"an object with the keys {', '.join(map(repr, keys[:6]))}{', ...' if len(keys) > 6 else ''}" if keys else "an empty object"
    return f"a list of {len(value)}" if isinstance(value, list) else _short(value)


# --- captions ---------------------------------------------------------------------------------------------------------

_CAPTION_FORMS = (
    'COCO\'s {"annotations": [{"image_id", "caption"}, ...]}, Karpathy\'s {"images": [{"sentences": [{"raw"}]}]}, '
    'or a list of {"image_id", "captions": [...]}'
)


def read_captions(path: str, split: str | None = None) -> dict[str, tuple[str, ...]]:
    """Reference captions by image id, one or more an image. `split` chooses from Karpathy's file ("test"), which holds them all.

    Raises:
      UserError: another form, or an image without a caption.
    """
    value = read(path)
    karpathy = isinstance(value, dict) and "annotations" not in value and "images" in value
    if split and not karpathy:
        raise UserError(f'\'{path}\' has no splits; only Karpathy\'s files, with "images" and "sentences", hold several')
    if karpathy:
        pairs = list(_karpathy(Entry(value, f"'{path}'"), split))
    elif isinstance(value, dict) and "annotations" in value:
        pairs = list(_coco(Entry(value, f"'{path}'")))
    elif isinstance(value, list) and value:
        pairs = [(entry.id("image_id"), text) for entry in _entries(value, f"'{path}'") for text in entry.texts("captions")]
    else:
        raise UserError(f"'{path}' holds {_outline(value)}, expected {_CAPTION_FORMS}")
    out: dict[str, list[str]] = {}
    for image, text in pairs:
        out.setdefault(image, []).append(text)
    if not out:
        raise UserError(f"'{path}' holds no caption{f' of split {split!r}' if split else ''}")
    return {image: tuple(texts) for image, texts in out.items()}


def picture_names(path: str) -> dict[str, str]:
    """Where a caption file says so: image id -> the file of the picture.

    COCO's "file_name"; Karpathy's "filepath" and "filename"; of a list "image". Raises UserError as `read`.
    """
    value = read(path)
    rows = value.get("images", []) if isinstance(value, dict) else value
    out = {}
    for entry in _entries(rows, f"'{path}'", "images"):
        name = entry.value.get("file_name") or entry.value.get("filename") or entry.value.get("image")
        if isinstance(name, str):
            folder = entry.value.get("filepath")
            out[entry.id("id", "cocoid", "imgid", "image_id")] = f"{folder}/{name}" if folder else name
    return out


def _coco(root: Entry) -> Iterator[tuple[str, str]]:
    found = root.entries("annotations")
    captioned = set()
    for entry in found:
        image = entry.id("image_id")
        captioned.add(image)
        yield image, entry.get("caption", str)
    for entry in root.entries("images") if "images" in root.value else ():
        if entry.id("id") not in captioned:
            raise UserError(f"{entry.where}: image {entry.id('id')} has no caption among the annotations")


def _karpathy(root: Entry, split: str | None) -> Iterator[tuple[str, str]]:
    images = root.entries("images")
    splits = {entry.text("split") for entry in images if "split" in entry.value}
    if split is None and len(splits) > 1:
        raise UserError(f"{root.where} holds the splits {', '.join(sorted(splits))}; choose one with --split")
    if split is not None and split not in splits:
        raise UserError(f"{root.where} has no split {split!r}{suggest(split, splits)}")
    for entry in images:
        if split is None or entry.value.get("split") == split:
            for sentence in entry.entries("sentences"):
                yield entry.id("cocoid", "imgid"), sentence.get("raw", str)


# --- questions ---------------------------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Question:
    """A question with its answers (VQA has ten, the others one), and of what type it is: name of a typology -> type."""

    answers: tuple[str, ...]
    types: Mapping[str, str]


def read_vqa(path: str) -> dict[str, Question]:
    """VQA's annotations by question id. Raises UserError: another form, no answers, or an id twice."""
    out: dict[str, Question] = {}
    root = document(path, "annotations", 'VQA\'s {"annotations": [{"question_id", "answers": [{"answer"}, ...]}, ...]}')
    for entry in root.entries("annotations"):
        answers = tuple(answer.get("answer", str) for answer in entry.entries("answers"))
        if len(answers) < 2:
            raise UserError(f"{entry.where}: {len(answers)} answers, expected ten, or two at the least: each is judged by the others")
        types = {key: entry.get(key, str) for key in ("answer_type", "question_type") if key in entry.value}
        _add(out, entry.id("question_id"), Question(answers, types), entry)
    return out


def read_qa(path: str) -> dict[str, Question]:
    """A list, or JSON lines, of {"question_id", "answer"} with a "type" if there is one: questions of one's own. Raises UserError."""
    out: dict[str, Question] = {}
    for entry in entries(path, 'a list of {"question_id", "answer", "type"}'):
        types = {"type": entry.text("type")} if "type" in entry.value else {}
        _add(out, entry.id("question_id"), Question((entry.text("answer"),), types), entry)
    return out


def read_gqa(path: str) -> dict[str, Question]:
    """GQA's questions by id, with their structural, semantic and detailed types. Raises UserError: another form."""
    value = read(path)
    if not isinstance(value, dict) or not all(isinstance(question, dict) for question in value.values()) or not value:
        raise UserError(f'\'{path}\' holds {_outline(value)}, expected GQA\'s {{question id: {{"question", "answer", "types"}}, ...}}')
    out = {}
    for key, question in value.items():
        entry = Entry(question, f"'{path}', question {key!r}")
        types = entry.get("types", dict)
        wrong = next((k for k, v in types.items() if v is not None and not isinstance(v, str)), None)
        if wrong is not None:
            raise UserError(f"{entry.where}: type {wrong!r} is {_short(types[wrong])}, expected text")
        if types.get("structural"):
            types = {"form": "open" if types["structural"] == "query" else "binary", **types}
        out[key] = Question((entry.get("answer", str),), {k: v for k, v in types.items() if v is not None})
    return out


# The last function of a CLEVR program -> the question type of Johnson et al. 2017, figure 3.
_CLEVR = {
    "exist": "exist",
    "count": "count",
    **dict.fromkeys(("equal_integer", "less_than", "greater_than"), "compare_integer"),
    **{f"query_{a}": "query_attribute" for a in ("size", "color", "material", "shape")},
    **{f"equal_{a}": "compare_attribute" for a in ("size", "color", "material", "shape")},
}


def read_clevr(path: str) -> dict[str, Question]:
    """CLEVR's questions by index: `type` by the program's last function (five types), `function` itself, and `family` where given.

    Raises:
      UserError: another form, a question without an answer (the test split has none) or without program and family.
    """
    out: dict[str, Question] = {}
    root = document(path, "questions", 'CLEVR\'s {"questions": [{"question_index", "answer", "program"}, ...]}')
    for i, entry in enumerate(root.entries("questions")):
        types = {}
        if entry.value.get("program"):
            last = entry.entries("program")[-1]
            function = last.text("function", "type")
            if function not in _CLEVR:
                raise UserError(f"{last.where}: no CLEVR question ends in the function {function!r}{suggest(function, _CLEVR)}")
            types |= {"type": _CLEVR[function], "function": function}
        if "question_family_index" in entry.value:
            types["family"] = entry.id("question_family_index")
        if not types:
            raise UserError(f"{entry.where} has neither 'program' nor 'question_family_index', so its type is unknown")
        key = entry.id("question_index") if "question_index" in entry.value else str(i)
        _add(out, key, Question((entry.get("answer", str),), types), entry)
    return out


def _add(out: dict[str, Question], key: str, question: Question, entry: Entry) -> None:
    if key in out:
        raise UserError(f"{entry.where}: question {key} is there already")
    out[key] = question


# --- a source's own ----------------------------------------------------------------------------------------------------


def captions_of(source: Source) -> dict[str, tuple[str, ...]]:
    """The `captions` of a source's records; an image's id is the number of its record. Bad records are left out.

    Raises:
      UserError: records without captions.
    """
    return {str(i): texts_of(record["captions"]) for i, record in _records(source, "captions")}


def questions_of(source: Source) -> dict[str, Question]:
    """The questions of a source's records: `answer` and, if there, `type`, with the record's number as id; or several a record, in
    `answers` and `types`, with ids "record:number". Bad records are left out.

    Raises:
      UserError: records without answers.
    """
    several = "answers" in source.info.features
    key, kind = ("answers", "types") if several else ("answer", "type")
    out = {}
    for i, record in _records(source, key):
        answers = list(record[key]) if several else [record[key]]
        types = [*(record.get(kind, ()) if several else [record[kind]] if kind in record else ())]
        for j, answer in enumerate(answers):
            out[f"{i}:{j}" if several else str(i)] = Question((str(answer),), {"type": str(types[j])} if types else {})
    return out


def _records(source: Source, key: str) -> Iterator[tuple[int, Mapping[str, Any]]]:
    for i in range(len(source)):
        try:
            record = source[i]
        except BadSample:
            continue
        if key not in record:
            raise UserError(f"source '{source.info.name}' ({source.info.split}), record {i} has no {key!r}{suggest(key, record)}")
        yield i, record
