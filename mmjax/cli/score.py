"""`mmjax score`: predicted captions or answers against an annotation file or a source, and generated pictures against their prompts."""

import argparse
import dataclasses
import json
import os
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from ml_collections import ConfigDict

from mmjax.core import config as config_lib
from mmjax.core.errors import UserError
from mmjax.data.source import Source, open_source
from mmjax.evals import annotations, captions, picture_folder, predictions, prompt_set, qa_exact, scored, summary, vqa

_READ = {"vqa": annotations.read_vqa, "gqa": annotations.read_gqa, "clevr": annotations.read_clevr, "qa": annotations.read_qa}


def main(args: argparse.Namespace) -> int:
    out = Path(args.out) if args.out else None
    if out and not out.parent.is_dir():
        raise UserError(f"--out '{out}': folder '{out.parent}' does not exist; create it")
    if (args.kind == "generated") == bool(args.predictions):
        needed = "--pictures DIR, not --predictions" if args.predictions else "--predictions FILE"
        raise UserError(f"mmjax score {args.kind} needs {needed}")
    facts, table = {"captions": score_captions, "generated": score_pictures}.get(args.kind, score_answers)(args)
    print(table)
    if out:
        temporary = out.with_name(f".{out.name}.{os.getpid()}")
        temporary.write_text(json.dumps(facts, indent=1) + "\n")
        os.replace(temporary, out)
        print(f"scores: {out}", file=sys.stderr)
    return 0


def score_captions(args: argparse.Namespace) -> tuple[dict[str, Any], str]:
    """BLEU, ROUGE-L, CIDEr-D and CIDEr: as plain data, and as a table in the unit of published ones."""
    source = _source(args)
    references = annotations.captions_of(source) if source else annotations.read_captions(args.annotations, args.split)
    predicted = predictions.read(args.predictions, predictions.CAPTION)
    references = _of_those_asked(references, predicted, args)
    texts = predictions.matched(predicted, references, args.predictions, _asked(args))
    corpus, each = captions.score(list(references.values()), texts)
    intervals = {name: summary.bootstrap(values) for name, values in each.items()}
    lines = [f"{len(texts)} images; times 100; intervals of 95 % over images"]
    for name, label in captions.LABELS.items():
        interval = "{:7.2f} - {:.2f}".format(*(100 * np.array(intervals[name]))) if name in intervals else ""
        lines.append(f"  {label:<8} {100 * corpus[name]:7.2f}  {interval}".rstrip())
    lines.append("CIDEr-D is what COCO tables call CIDEr")
    scores = {**corpus, "intervals": intervals}
    return {**_about(args, len(texts)), "scores": scores}, "\n".join(lines)


def score_answers(args: argparse.Namespace) -> tuple[dict[str, Any], str]:
    """Accuracy overall and by every typology of the questions: the official one for VQA, exact match for the others."""
    source = _source(args)
    if args.split and not source:
        raise UserError(f"--split is for sources and Karpathy's caption files; '{args.annotations}' has no splits")
    questions = annotations.questions_of(source) if source else _READ[args.kind](args.annotations)
    predicted = predictions.read(args.predictions, predictions.ANSWER)
    questions = _of_those_asked(questions, predicted, args)
    texts = predictions.matched(predicted, questions, args.predictions, _asked(args))
    pairs = list(zip(texts, questions.values(), strict=True))
    if args.kind == "vqa":
        values = np.array([vqa.accuracy(text, question.answers) for text, question in pairs])
    else:
        values = np.array([qa_exact.exact(text, question.answers[0]) for text, question in pairs])
    overall = {"accuracy": summary.mean(values)}
    typologies = summary.by_typologies(values, [question.types for _, question in pairs])
    return {**_about(args, len(texts)), "scores": _plain(overall), "by": _plain(typologies)}, summary.render(overall, typologies)


def score_pictures(args: argparse.Namespace) -> tuple[dict[str, Any], str]:
    """The compositional score; with a source, likeness to its pictures. Writes the sheets that are asked for."""
    from mmjax.cli import picture_sheets

    if not args.pictures:
        raise UserError("mmjax score generated needs --pictures DIR")
    if args.nearest and not (args.config or args.overrides):
        raise UserError("--nearest shows training pictures: name their source with --config FILE.py, or data.source=... data.split=...")
    prompts = prompt_set.load(args.prompts or "")
    pictures = picture_folder.read(args.pictures, prompts, f"'{args.prompts}'" if args.prompts else "the stored prompts")
    data = _data(args) if args.config or args.overrides else None
    sources = (open_source(data, args.split), open_source(data, args.held_out)) if data else (None, None)
    found = scored.score(pictures, prompts, args.workers, *sources)
    picture_sheets.write(found, args.sheet, args.nearest)
    about = {"kind": args.kind, "pictures": args.pictures, "prompts": args.prompts, "split": args.split, "count": len(prompts)}
    return {**about, "scores": found.plain()}, found.table()


def _source(args: argparse.Namespace) -> Source | None:
    """The source that config keys name, or None where there is an annotation file."""
    named = bool(args.config or args.overrides)
    if named == bool(args.annotations):
        raise UserError(
            f"mmjax score {args.kind} needs --annotations FILE, or a source (--config FILE.py, or data.source=... data.split=...), not both"
        )
    if not named:
        return None
    if args.kind not in ("captions", "qa"):
        raise UserError(f"mmjax score {args.kind} reads an annotation file; questions of a source are scored by mmjax score qa")
    return open_source(_data(args), args.split)


def _data(args: argparse.Namespace) -> ConfigDict:
    """Config group `data` of the source that is named; `args.split` becomes its split."""
    config: ConfigDict = config_lib.load(args.config) if args.config else config_lib.base().lock()
    config_lib.override(config, args.overrides)
    if not config.data.source:
        raise UserError("mmjax score: data.source is not set; name one with data.source=...")
    args.split = args.split or config.data.split
    return config.data


def _of_those_asked(wanted: Mapping[str, Any], predicted: Mapping[str, str], args: argparse.Namespace) -> dict[str, Any]:
    """What predictions are held to: all, or with `--predicted_only` of the ids that they have. The scores say how many these are."""
    return {key: value for key, value in wanted.items() if key in predicted or not args.predicted_only}


def _asked(args: argparse.Namespace) -> str:
    return f"'{args.annotations}'" if args.annotations else f"the source's split {args.split!r}"


def _about(args: argparse.Namespace, count: int) -> dict[str, Any]:
    return {"kind": args.kind, "predictions": args.predictions, "annotations": args.annotations, "split": args.split, "count": count}


def _plain(tree: Mapping[str, Any]) -> dict[str, Any]:
    return {k: dataclasses.asdict(v) if isinstance(v, summary.Mean) else _plain(v) for k, v in tree.items()}
