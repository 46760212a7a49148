"""The page of `mmjax data show --out page.html`: the first examples of a run with everything their records hold, complete in itself."""

import base64
import io
import json
import time
from collections.abc import Callable, Mapping
from html import escape
from pathlib import Path
from typing import Any

import numpy as np
from ml_collections import ConfigDict
from PIL import Image

from mmjax.cli import sheet
from mmjax.core.errors import UserError
from mmjax.data import loader
from mmjax.data.bad import BadSample, place
from mmjax.data.source import open_tokenizer
from mmjax.data.stream import Stream, open_streams

SIDE = 192  # pixels of a picture on the page
_MOST_PICTURES = 16  # of one record
_SCENES = ("scene", "scenes")


def write(config: ConfigDict, path: str | Path, count: int, *, transformed: bool = True) -> dict[str, Any]:
    """Writes the page and returns facts about what is on it; arguments and errors as `sheet.write`."""
    sections, facts = [], {}
    for name, stream in open_streams(config.data, config.seed).items():
        tokenizer = open_tokenizer(stream.source, config.data.tokenizer) if transformed else None
        began = time.perf_counter()
        shown = [_example(stream, position, tokenizer, transformed) for position in range(min(count, len(stream.source)))]
        facts[name or "data"] = sheet.facts(stream.source, len(shown), sum(bad for _, bad in shown), time.perf_counter() - began)
        sections.append(_section(name, facts[name or "data"], [cell for cell, _ in shown]))
    try:
        Path(path).write_text(_PAGE.format(title=escape(_title(facts)), body="".join(sections)), encoding="utf-8")
    except OSError as e:
        raise UserError(f"page '{path}' cannot be written: {e}") from e
    return facts if len(facts) > 1 else next(iter(facts.values()))


def _title(facts: Mapping[str, Mapping[str, Any]]) -> str:
    return ", ".join(dict.fromkeys(str(f["source"]) for f in facts.values()))


def _section(name: str, facts: Mapping[str, Any], cells: list[str]) -> str:
    told = ", ".join(value if isinstance(value, str) else f"{key.replace('_', ' ')} {value:,}" for key, value in facts.items())
    heading = f"<h2>{escape(name)}</h2>" if name else ""
    return f"{heading}<p class=facts>{escape(told)}</p><main>{''.join(cells)}</main>"


def _example(stream: Stream, position: int, tokenizer: Any, transformed: bool) -> tuple[str, bool]:
    """One example as an article, and whether something was wrong with it."""
    number = int(stream.order(np.array([position], np.int64))[0])
    try:
        record = stream.source[number]
        parts = [_value(key, value, stream.source.info.classes) for key, value in _ordered(_paired(record))]
    except BadSample as e:
        return _article(f"#{number}", f"<p class=bad>{escape(place(stream.source, number))}: {escape(str(e))}</p>"), True
    if transformed and stream.transform is not None:
        try:
            example = stream.transform(record, loader.generator(stream.seed, position))
        except BadSample as e:
            return _article(f"#{number}", "".join(parts) + f"<p class=bad>{escape(str(e))}</p>"), True
        spell = None if tokenizer is None else sheet.spelling(stream.transform, record, tokenizer)
        parts.append(_as_trained_on(sheet.after(example, sheet.normalising(stream.transform, record)), example, spell))
    return _article(f"#{number}", "".join(parts)), False


def _paired(record: Mapping[str, Any]) -> dict[str, Any]:
    """Questions together with their answers."""
    out = dict(record)
    if isinstance(out.get("questions"), tuple) and isinstance(out.get("answers"), tuple):
        out["questions"] = tuple(f"{q} - {a}" for q, a in zip(out["questions"], out.pop("answers"), strict=False))
    if isinstance(out.get("question"), str) and isinstance(out.get("answer"), str):
        out["question"] = f"{out['question']} - {out.pop('answer')}"
    return out


def _ordered(record: Mapping[str, Any]) -> list[tuple[str, Any]]:
    """Pictures first, then what is said of them, then scenes, then what is folded away."""

    def rank(item: tuple[str, Any]) -> int:
        key, value = item
        if _is_pictures(value):
            return 0
        return 1 if not isinstance(value, str) or _json(value) is None else 2 if key in _SCENES else 3

    return sorted(record.items(), key=rank)


def _is_pictures(value: Any) -> bool:
    return isinstance(value, bytes) or (isinstance(value, tuple) and bool(value) and isinstance(value[0], bytes))


def _article(heading: str, inner: str) -> str:
    return f"<article><h3>{escape(heading)}</h3>{inner}</article>"


def _value(key: str, value: Any, classes: tuple[str, ...]) -> str:
    """One entry of a record: pictures, lines of text, a scene graph, other JSON folded away, numbers."""
    if _is_pictures(value):
        return _pictures(sheet.stored({key: value}, most=_MOST_PICTURES))
    if isinstance(value, str) and (graph := _json(value)) is not None:
        shown = "".join(map(_scene, graph if isinstance(graph, list) else [graph])) if key in _SCENES else ""
        return f"{shown}<details><summary>{escape(key)}</summary><pre>{escape(json.dumps(graph, indent=1))}</pre></details>"
    if key == "label" and classes:
        value = classes[int(value)] if 0 <= int(value) < len(classes) else int(value)
    if isinstance(value, tuple):
        return f"<dl><dt>{escape(key)}</dt>{''.join(f'<dd>{escape(str(v))}</dd>' for v in value)}</dl>"
    if isinstance(value, str) and "\n" in value.strip():
        return f"<dl><dt>{escape(key)}</dt><dd><pre>{escape(value)}</pre></dd></dl>"
    return f"<dl><dt>{escape(key)}</dt><dd>{escape(str(value))}</dd></dl>"


def _json(text: str) -> Any:
    """What the text is as JSON, if it is an object or a list."""
    if text[:1] not in ("{", "["):
        return None
    try:
        return json.loads(text)
    except ValueError:
        return None


def _scene(graph: Any) -> str:
    """The objects of a scene graph as a table, and its relations."""
    if not isinstance(graph, dict) or not isinstance(graph.get("objects"), list):
        return ""
    rows = [
        f"<tr><td>{i}</td><td>{escape(o['size'])}</td><td>{escape(o['colour'])}</td>"
        f"<td>{escape(o['shape'])}{' (outline)' if o['outline'] else ''}</td><td>{o['x']:.2f}, {o['y']:.2f}</td></tr>"
        for i, o in enumerate(graph["objects"])
    ]
    told = [f"{r['subject']} {r['name']} {r['object']}" for r in graph["relations"]]
    told += [f"the word {graph['word']['text']}"] if graph["word"] else []
    return f"<table>{''.join(rows)}</table>" + "".join(f"<p class=relation>{escape(t)}</p>" for t in told)


def _as_trained_on(pictures: list[Image.Image], example: Mapping[str, Any], spell: Callable[[Mapping[str, Any]], str] | None) -> str:
    """What the model is given: pictures after the transforms, and the text its tokens spell."""
    tokens = example.get("tokens")
    text = spell(example) if spell is not None and np.ndim(tokens) == 1 else ""
    if not pictures and not text:
        return ""
    return f"<div class=after><h4>as trained on</h4>{_pictures(pictures)}{f'<p>{escape(text)}</p>' if text else ''}</div>"


def _pictures(pictures: list[Image.Image]) -> str:
    shown = "".join(f'<img src="{_url(p)}" alt="">' for p in pictures)
    return f"<div class=pictures>{shown}</div>" if shown else ""


def _url(picture: Image.Image) -> str:
    if max(picture.size) > 2 * SIDE:
        picture.thumbnail((2 * SIDE, 2 * SIDE))
    buffer = io.BytesIO()
    picture.save(buffer, "PNG")
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()


_PAGE = (
    """<!doctype html><html lang="en"><meta charset="utf-8"><title>{title}</title><style>
body{{font:15px/1.45 system-ui,sans-serif;margin:2em auto;max-width:1500px;padding:0 1em;color:#1b1b1f;background:#f6f6f8}}
main{{display:grid;grid-template-columns:repeat(auto-fill,minmax(26em,1fr));gap:1em}}
article{{background:#fff;border:1px solid #ddd;border-radius:8px;padding:.8em 1em;overflow-wrap:anywhere}}
h1{{font-size:1.4em}}h3{{font-size:.8em;color:#777;margin:0 0 .4em}}h4{{font-size:.8em;color:#777;margin:.6em 0 .2em}}
.pictures{{display:flex;flex-wrap:wrap;gap:4px}}"""
    f"img{{{{width:{SIDE}px;max-width:100%;image-rendering:pixelated;border:1px solid #eee}}}}"
    """.pictures img:nth-last-child(n+3),.pictures img:nth-last-child(n+3)~img{{width:110px}}
dl{{margin:.4em 0}}dt{{font-size:.8em;color:#777}}dd{{margin:0 0 .15em}}table{{font-size:.85em;border-spacing:.8em 0;margin-left:-.8em}}
pre{{font-size:12px;white-space:pre-wrap;margin:0}}details{{font-size:.85em}}summary{{color:#555;cursor:pointer}}
.relation{{font-size:.85em;margin:0}}.bad{{color:#b00020}}.facts{{color:#555}}.after{{border-top:1px solid #eee;margin-top:.5em}}
</style><h1>{title}</h1>{body}</html>
"""
)
