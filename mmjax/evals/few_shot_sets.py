"""What a few-shot evaluation asks: pictures with captions, questions or classes, out of a source or of published annotation files.

  captions   reference captions; COCO's and Karpathy's files, or a list of {"image_id", "image", "captions"}
  vqa        ten answers; VQA's questions and annotations
  gqa, clevr, qa   one answer; their files, qa a list of {"question_id", "question", "answer", "image", "type"}
  classes    one of the classes; a list of {"id", "image", "text", "label"}, or a source with labels
  prompts    documents that end where `answer` is to stand, with the solved examples in them (scenes' `few_shot`)

Of a source, ids are those of annotations.captions_of and questions_of, so that `mmjax score` finds predictions again.
"""

import dataclasses
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from mmjax.core.config import Group
from mmjax.core.errors import UserError, suggest
from mmjax.data import files
from mmjax.data.bad import BadSample
from mmjax.data.jsonl import read_image
from mmjax.data.source import Info, Source, texts_of
from mmjax.evals import annotations

KINDS = ("captions", "vqa", "gqa", "clevr", "qa", "classes", "prompts")
FILE_KEYS = ("annotations", "questions", "images", "names")


@dataclasses.dataclass(frozen=True)
class Item:
    """One thing that is asked.

    Attributes:
      record: of the gallery, with its picture.
      question: what is asked of it, if anything.
      answers: what is right: references, ten answers, one answer or the name of the class.
      types: name of a typology -> type.
    """

    id: str
    record: int
    question: str
    answers: tuple[str, ...]
    types: Mapping[str, str] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True)
class Asked:
    """`gallery[item.record]` holds the picture: `image`, `images` or `frames`, encoded."""

    items: tuple[Item, ...]
    gallery: Any
    classes: tuple[str, ...]
    where: str


# --- sources ---------------------------------------------------------------------------------------------------------------


def of_source(source: Source, kind: str) -> Asked:
    """The items of a source's sound records.

    Raises:
      UserError: records without what the kind takes, or none at all.
    """
    where = f"source '{source.info.name}' ({source.info.split})"
    if kind == "classes" and not source.info.classes:
        raise UserError(f"few_shot: {where} has no class names")
    items: list[Item] = []
    for i in range(len(source)):
        try:
            record = source[i]
            items += [Item(*one) for one in _FROM_RECORD[kind](i, record, source.info)]
        except BadSample:
            continue
        except KeyError as e:
            key = e.args[0]
            raise UserError(f"few_shot: {where}, record {i} has no {key!r}, which {kind} take{suggest(str(key), record)}") from None
    if not items:
        raise UserError(f"few_shot: {where} has no sound record with {kind}")
    return Asked(tuple(items), source, source.info.classes, where)


_Fields = tuple[str, int, str, tuple[str, ...], Mapping[str, str]]


def _captions(i: int, record: Mapping[str, Any], info: Info) -> Iterator[_Fields]:
    yield str(i), i, "", texts_of(record["captions"]), {}


def _questions(i: int, record: Mapping[str, Any], info: Info) -> Iterator[_Fields]:
    if "questions" not in record:
        yield str(i), i, record["question"], (str(record["answer"]),), {"type": str(record["type"])} if "type" in record else {}
        return
    types = [{"type": str(t)} for t in record.get("types", ())] or [{}] * len(record["questions"])
    for j, (question, answer) in enumerate(zip(record["questions"], record["answers"], strict=True)):
        yield f"{i}:{j}", i, question, (str(answer),), types[j]


def _classes(i: int, record: Mapping[str, Any], info: Info) -> Iterator[_Fields]:
    yield str(i), i, str(record.get("text", "")), (info.classes[int(record["label"])],), {}


def _prompts(i: int, record: Mapping[str, Any], info: Info) -> Iterator[_Fields]:
    if record["answer"]:
        yield str(i), i, "", (str(record["answer"]),), {"form": str(record.get("form", ""))}


_FROM_RECORD: Mapping[str, Callable[[int, Mapping[str, Any], Info], Iterator[_Fields]]] = {
    "captions": _captions,
    **dict.fromkeys(("vqa", "gqa", "clevr", "qa"), _questions),
    "classes": _classes,
    "prompts": _prompts,
}


# --- files -----------------------------------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Folder:
    """Pictures by name below a folder, as records."""

    names: tuple[str, ...]
    root: str

    def __len__(self) -> int:
        return len(self.names)

    def __getitem__(self, i: int) -> dict[str, Any]:
        return {"image": read_image(self.names[i], self.root, absolute=False)}

    def describe(self, i: int) -> str:
        """The picture in words."""
        return f"picture '{self.names[i]}' of '{self.root}'"


def of_files(given: Group, kind: str, split: str | None, classes: tuple[str, ...]) -> Asked:
    """Items of annotation files.

    Args:
      given: `annotations`, and of VQA `questions`, which are files; `images`, the folder of pictures; `names`, how a picture is called
        where the files do not say ("COCO_val2014_{image_id:012d}.jpg").
      split: of Karpathy's captions.
      classes: of kind "classes", in the order of the labels.

    Raises:
      UserError: a key that is missing or unknown, a missing folder, or a file of another form.
    """
    for key in given:
        if key not in FILE_KEYS:
            raise UserError(f"few_shot: files have no key {key!r}{suggest(key, FILE_KEYS)}")
    path, root = given.get("annotations"), given.get("images")
    if not path or not root:
        raise UserError("few_shot: of files both `annotations` and `images` (the folder of pictures) are needed")
    if kind not in _FROM_FILES:
        raise UserError(f"few_shot: {kind} come from a source; of files {', '.join(_FROM_FILES)}")
    if not files.is_dir(root):
        raise UserError(f"few_shot: folder '{root}' does not exist")
    found = _FROM_FILES[kind](path, given, split, classes)
    names = tuple(dict.fromkeys(name for _, name, *_ in found))
    numbers = {name: i for i, name in enumerate(names)}
    items = tuple(Item(key, numbers[name], question, answers, types) for key, name, question, answers, types in found)
    return Asked(items, Folder(names, root), classes, f"'{path}'")


_Found = list[tuple[str, str, str, tuple[str, ...], Mapping[str, str]]]  # id, name of the picture, question, answers, types


def _name(pattern: str | None, image_id: str, where: str) -> str:
    """What a picture is called, by its id."""
    try:
        return (pattern or "{image_id}").format(image_id=int(image_id) if image_id.isdecimal() else image_id)
    except (KeyError, IndexError, ValueError) as e:
        raise UserError(f"few_shot: names is {pattern!r}, which does not make a name of {where}'s image {image_id!r} ({e})") from None


def _file_captions(path: str, given: Group, split: str | None, classes: tuple[str, ...]) -> _Found:
    references = annotations.read_captions(path, split)
    names = annotations.picture_names(path)
    pattern = given.get("names")
    return [
        (key, _name(pattern, key, path) if pattern or key not in names else names[key], "", texts, {}) for key, texts in references.items()
    ]


def _file_vqa(path: str, given: Group, split: str | None, classes: tuple[str, ...]) -> _Found:
    if not given.get("questions"):
        raise UserError("few_shot: vqa needs `questions`, the file with the questions to `annotations`")
    known = annotations.read_vqa(path)
    root = annotations.document(given["questions"], "questions", 'VQA\'s {"questions": [{"question_id", "image_id", "question"}, ...]}')
    subtype = root.value.get("data_subtype")
    pattern = given.get("names") or (f"COCO_{subtype}_{{image_id:012d}}.jpg" if subtype else None)
    out = []
    for entry in root.entries("questions"):
        key = entry.id("question_id")
        if key not in known:
            raise UserError(f"{entry.where}: question {key} has no answers in '{path}'; are both files of one split?")
        out.append((key, _name(pattern, entry.id("image_id"), entry.where), entry.text("question"), known[key].answers, known[key].types))
    return out


def _file_gqa(path: str, given: Group, split: str | None, classes: tuple[str, ...]) -> _Found:
    known, raw = annotations.read_gqa(path), annotations.read(path)
    pattern = given.get("names") or "{image_id}.jpg"
    out = []
    for key, question in known.items():
        entry = annotations.Entry(raw[key], f"'{path}', question {key!r}")
        out.append((key, _name(pattern, entry.id("imageId"), entry.where), entry.text("question"), question.answers, question.types))
    return out


def _file_clevr(path: str, given: Group, split: str | None, classes: tuple[str, ...]) -> _Found:
    entries = annotations.document(path, "questions", "CLEVR's questions").entries("questions")
    known = annotations.read_clevr(path)
    return [
        (key, entry.text("image_filename"), entry.text("question"), question.answers, question.types)
        for (key, question), entry in zip(known.items(), entries, strict=True)
    ]


def _file_qa(path: str, given: Group, split: str | None, classes: tuple[str, ...]) -> _Found:
    known = annotations.read_qa(path)
    entries = annotations.entries(path, 'a list of {"question_id", "question", "answer", "image"}')
    return [
        (key, entry.text("image"), entry.text("question"), question.answers, question.types)
        for (key, question), entry in zip(known.items(), entries, strict=True)
    ]


def _file_classes(path: str, given: Group, split: str | None, classes: tuple[str, ...]) -> _Found:
    if len(classes) < 2:
        raise UserError("few_shot: classes of files need `classes`, their names in the order of the labels, two at the least")
    out = []
    for entry in annotations.entries(path, 'a list of {"id", "image", "text", "label"}'):
        label = entry.get("label", int)
        if not 0 <= label < len(classes):
            raise UserError(f"{entry.where}: label {label}, and there are {len(classes)} classes, 0 to {len(classes) - 1}")
        text = entry.text("text") if "text" in entry.value else ""
        out.append((entry.id("id", "question_id"), entry.text("image", "img"), text, (classes[label],), {}))
    return out


_FROM_FILES: Mapping[str, Callable[[str, Group, str | None, tuple[str, ...]], _Found]] = {
    "captions": _file_captions,
    "vqa": _file_vqa,
    "gqa": _file_gqa,
    "clevr": _file_clevr,
    "qa": _file_qa,
    "classes": _file_classes,
}
