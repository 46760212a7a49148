"""`report.html`: one page, complete in itself, that shows a run: facts, curves, scores, mistakes and pictures with captions.

Everything that comes from data or a config (captions, class names, paths) is escaped. Nothing is fetched when it is read.
"""

import base64
import io
import json
import math
import os
from collections.abc import Iterable, Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Int, UInt8

from mmjax.cli import report_charts
from mmjax.core.errors import UserError
from mmjax.version import __version__

FILE = "report.html"
MAX_CLASSES = 40  # a larger confusion matrix is shown as its commonest confusions
MAX_PIXELS = 160  # a larger picture is shrunk
Sample = tuple[UInt8[np.ndarray, "_ _ _"], str, float, bool]  # pictures [H, W, C], each of its own size; C is 1 or 3


def write(
    workdir: str | os.PathLike,
    *,
    metrics: Sequence[Mapping[str, Any]],
    config: Mapping[str, Any],
    evaluation: Mapping[str, Any],
    confusion: Int[np.ndarray, "K K"] | None,
    classes: Sequence[str],
    samples: Sequence[Sample],
) -> Path:
    """Writes `workdir/report.html` in one move and returns its path. Parts for which nothing is given say so.

    Args:
      metrics: lines of `metrics.jsonl`, as `core.metrics.read` gives them.
      config: the run's, as a plain dict.
      evaluation: "<evaluation>/<name>" -> score as a fraction; and, where known, "step", "split" and "hardware".
      confusion: counts; row the true class, column the one chosen.
      classes: K names.
      samples: (image, the caption it likes best, their cosine similarity, whether that caption's class is right).

    Raises:
      UserError: the file cannot be written.
    """
    sections = [
        ("Scores", _scores(evaluation)),
        ("Curves", report_charts.curves(metrics)),
        ("Confusion", _confusion(confusion, classes)),
        ("Pictures and the captions they like best", _pictures(samples)),
        ("Run", _facts(Path(workdir), metrics, config, evaluation)),
    ]
    return write_page(Path(workdir) / FILE, Path(workdir).resolve().name, _subtitle(config, evaluation), sections)


def write_page(path: Path, title: str, subtitle: str, sections: Sequence[tuple[str, str]]) -> Path:
    """Writes a page in one move and returns its path. `subtitle` and the sections' second parts are HTML.

    Raises:
      UserError: the file cannot be written.
    """
    body = "\n".join(f"<section><h2>{escape(name)}</h2>\n{content}</section>" for name, content in sections)
    page = _PAGE.format(title=escape(title), subtitle=subtitle, style=_STYLE, body=body)
    partial = path.with_name(path.name + ".partial")
    try:
        partial.write_text(page, encoding="utf-8")
        os.replace(partial, path)
    except OSError as e:
        partial.unlink(missing_ok=True)
        raise UserError(f"cannot write '{path}': {e.strerror or e}; free some space or make the folder writable") from None
    return path


def figures(pictures: Sequence[tuple[UInt8[np.ndarray, "_ _ _"], str]], note: str = "") -> str:
    """Pictures with what stands below each, and a line above them all."""
    shown = (
        f'<figure><img src="{_data_url(image)}" alt="{escape(text, quote=True)}"><figcaption>{escape(text)}</figcaption></figure>'
        for image, text in pictures
    )
    return f'<p>{escape(note)}</p><div class="grid">{"".join(shown)}</div>'


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Words in a table; the first of a row names it."""
    top = "".join(f'<th scope="col">{escape(word)}</th>' for word in head)
    body = "".join(
        f'<tr><th scope="row">{escape(row[0])}</th>{"".join(f"<td>{escape(word)}</td>" for word in row[1:])}</tr>' for row in rows
    )
    return f'<table class="plain"><tr>{top}</tr>{body}</table>'


def _subtitle(config: Mapping[str, Any], evaluation: Mapping[str, Any]) -> str:
    parts = [f"task {config['task']}" if config.get("task") else "", f"step {evaluation['step']:,}" if "step" in evaluation else ""]
    parts.append(f"{evaluation['split']} split" if "split" in evaluation else "")
    return escape(" · ".join(p for p in parts if p))


def _scores(evaluation: Mapping[str, Any]) -> str:
    """The accuracy in large figures, retrieval as a table of recalls, whatever else as tiles."""
    scores = {k: v for k, v in evaluation.items() if isinstance(v, (int, float)) and k != "step"}
    if not scores:
        return _absent("No evaluation was run.")
    out = []
    recalls = {k: v for k, v in scores.items() if "_to_" in k and "_r" in k}
    tiles = {k: v for k, v in scores.items() if k not in recalls}
    if tiles:
        shown = (f'<div class="tile"><b>{_score(v)}</b><span>{escape(_words(k))}</span></div>' for k, v in tiles.items())
        out.append(f'<div class="tiles">{"".join(shown)}</div>')
    if recalls:
        rows = sorted({k.rsplit("_r", 1)[0] for k in recalls})
        depths = sorted({int(k.rsplit("_r", 1)[1]) for k in recalls if k.rsplit("_r", 1)[1].isdigit()})
        head = "".join(f'<th scope="col">R@{d}</th>' for d in depths)
        table = "".join(
            f'<tr><th scope="row">{escape(_words(row))}</th>'
            + "".join(f"<td>{_score(recalls[f'{row}_r{d}']) if f'{row}_r{d}' in recalls else '–'}</td>" for d in depths)
            + "</tr>"
            for row in rows
        )
        out.append("<p>Retrieval, R@K: the share of queries with a right answer among the first K.</p>")
        out.append(f'<table class="plain"><tr><td></td>{head}</tr>{table}</table>')
    return "\n".join(out)


def _score(value: float) -> str:
    """A fraction as a percentage; any other number as it is."""
    if not math.isfinite(value):
        return "not finite"
    return f"{100 * value:.1f} %" if 0 <= value <= 1 else f"{value:.4g}"


def _words(name: str) -> str:
    """`retrieval/image_to_text` -> `retrieval: image to text`."""
    return name.replace("/", ": ").replace("_", " ")


def _confusion(counts: np.ndarray | None, classes: Sequence[str]) -> str:
    if counts is None or counts.size == 0:
        return _absent("No confusion matrix: the evaluation has no classes.")
    total, right = int(counts.sum()), int(np.trace(counts))
    names = [*map(str, classes), *map(str, range(len(classes), len(counts)))]
    summary = f"<p>{right:,} of {total:,} right. Rows are the true class, columns the one chosen; shade is the share of the row.</p>"
    if len(counts) > MAX_CLASSES:
        return f"<p>{right:,} of {total:,} right.</p>{_commonest(counts, names)}"
    head = "".join(f'<th scope="col"><span>{escape(n)}</span></th>' for n in names)
    rows = []
    for i, row in enumerate(counts):
        share = row / max(row.sum(), 1)
        cells = "".join(
            f'<td class="{"hit" if i == j else "miss"}" style="--a:{math.sqrt(share[j]):.3f}">{n if n else ""}</td>'
            for j, n in enumerate(row)
        )
        rows.append(f'<tr><th scope="row">{escape(names[i])}</th>{cells}</tr>')
    return f'{summary}<div class="scroll"><table class="matrix"><tr><td></td>{head}</tr>{"".join(rows)}</table></div>'


def _commonest(counts: np.ndarray, names: Sequence[str], top: int = 20) -> str:
    wrong = counts - np.diag(np.diag(counts))
    order = np.argsort(-wrong, axis=None, kind="stable")[:top]
    pairs = [(int(wrong.flat[i]), *divmod(int(i), len(counts))) for i in order if wrong.flat[i]]
    rows = "".join(f"<tr><td>{n}</td><td>{escape(names[i])}</td><td>{escape(names[j])}</td></tr>" for n, i, j in pairs)
    head = '<tr><th scope="col">times</th><th scope="col">true class</th><th scope="col">taken for</th></tr>'
    return f'<p>The commonest confusions among {len(counts)} classes:</p><table class="plain">{head}{rows}</table>'


def _pictures(samples: Sequence[Sample]) -> str:
    if not samples:
        return _absent("No pictures were given.")
    wrong = sum(not ok for *_, ok in samples)
    figures = []
    for image, caption, similarity, ok in samples:
        mark, verdict = ("✓", "right") if ok else ("✗", "wrong")
        alt = escape(f"picture whose best caption is: {caption} ({verdict})", quote=True)
        figures.append(
            f'<figure class="{verdict}"><img src="{_data_url(image)}" alt="{alt}">'
            f'<figcaption><b aria-hidden="true">{mark}</b> {escape(caption)} <small>{similarity:.2f}</small></figcaption></figure>'
        )
    note = f"<p>{len(samples)} pictures, {wrong} wrong (✗). The number is the cosine similarity of picture and caption.</p>"
    return f'{note}<div class="grid">{"".join(figures)}</div>'


def _data_url(image: np.ndarray) -> str:
    """A PNG of the picture, shrunk if large, as a data URL."""
    from PIL import Image

    picture = Image.fromarray(image[..., 0] if image.shape[-1] == 1 else image)
    picture.thumbnail((MAX_PIXELS, MAX_PIXELS))
    buffer = io.BytesIO()
    picture.save(buffer, "PNG")
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()


def _facts(workdir: Path, metrics: Sequence[Mapping[str, Any]], config: Mapping[str, Any], evaluation: Mapping[str, Any]) -> str:
    record = _record(workdir)
    optim, data = config.get("optim") or {}, config.get("data") or {}
    steps, seconds = _time(metrics)
    facts = {
        "Folder": str(workdir.resolve()),
        "mmjax": " ".join(filter(None, (record.get("version") or __version__, record.get("commit") and f"commit {record['commit']}"))),
        "Hardware": evaluation.get("hardware"),
        "Steps": f"{steps:,} of {config['steps']:,}" if "steps" in config else f"{steps:,}",
        "Time in steps": _duration(seconds) if seconds else None,
        "Batch": config.get("batch_size"),
        "Computed in": config.get("dtype"),
        "Optimizer": _join(optim.get("name"), optim.get("lr") and f"peak rate {optim['lr']:g}", optim.get("schedule")),
        "Data": _join(data.get("source"), data.get("split") and f"{data['split']} split"),
        "Seed": config.get("seed"),
    }
    rows = "".join(f'<tr><th scope="row">{k}</th><td>{escape(str(v))}</td></tr>' for k, v in facts.items() if v not in (None, ""))
    whole = escape(json.dumps(config, indent=1, default=str, sort_keys=True)) if config else ""
    details = f"<details><summary>The whole config</summary><pre>{whole}</pre></details>" if whole else _absent("No config was given.")
    return f'<table class="plain facts">{rows}</table>{details}'


def _record(workdir: Path) -> dict[str, Any]:
    """Version and commit that `config.json` holds; empty where there is none to read."""
    try:
        record = json.loads((workdir / "config.json").read_text())
    except (OSError, ValueError):
        return {}
    return record if isinstance(record, dict) else {}


def _time(metrics: Iterable[Mapping[str, Any]]) -> tuple[int, float]:
    """(last step, seconds in steps) from the lines that tell a mean step time since the line before."""
    last, seconds = 0, 0.0
    for line in metrics:
        each = line.get("step_seconds")
        if isinstance(each, (int, float)) and math.isfinite(each):
            seconds += each * (line["step"] - last)
            last = line["step"]
    return max((line["step"] for line in metrics), default=0), seconds


def _duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {rest} s" if minutes else f"{seconds:.1f} s"


def _join(*parts: Any) -> str:
    return ", ".join(str(p) for p in parts if p)


def _absent(text: str) -> str:
    return f'<p class="absent">{text}</p>'


_STYLE = """
:root { color-scheme: light dark; --back: #fbfbfa; --card: #fff; --ink: #1d2127; --soft: #646b76; --line: #dfe2e6;
  --right: 22 135 82; --wrong: 200 52 45; }
@media (prefers-color-scheme: dark) { :root { --back: #14171b; --card: #1c2026; --ink: #e6e8eb; --soft: #9aa2ad; --line: #343a43;
  --right: 62 178 118; --wrong: 236 96 88; } }
* { box-sizing: border-box; }
body { margin: 0 auto; max-width: 1080px; padding: 2rem 1rem 4rem; background: var(--back); color: var(--ink);
  font: 16px/1.5 system-ui, -apple-system, "Segoe UI", Roboto, "DejaVu Sans", sans-serif; }
h1 { margin: 0; font-size: 1.9rem; overflow-wrap: anywhere; } header p { margin: .1rem 0 0; color: var(--soft); }
h2 { margin: 2.2rem 0 .7rem; font-size: 1.15rem; } p { margin: .3rem 0 .8rem; } small, .absent { color: var(--soft); }
.tiles, .charts, .grid { display: grid; gap: .8rem; }
.tiles { grid-template-columns: repeat(auto-fill, minmax(190px, 1fr)); margin-bottom: .8rem; }
.tile, .chart, figure { margin: 0; background: var(--card); border: 1px solid var(--line); border-radius: 8px; }
.tile { padding: .7rem 1rem; } .tile b { display: block; font-size: 1.8rem; line-height: 1.2; } .tile span { color: var(--soft); }
.charts { grid-template-columns: repeat(auto-fill, minmax(320px, 1fr)); } .chart { padding: .6rem .6rem .2rem; }
.chart svg { display: block; width: 100%; height: auto; } .chart h3 { margin: 0 0 .2rem .3rem; font-size: .95rem; }
.chart p { margin: 0 .3rem .4rem; font-size: .85rem; color: var(--soft); }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; }
.plain th, .plain td { padding: .3rem .9rem .3rem 0; border-bottom: 1px solid var(--line); text-align: left; }
.plain th { font-weight: 600; } .facts td { overflow-wrap: anywhere; } .facts th { white-space: nowrap; vertical-align: top; }
.scroll { overflow-x: auto; }
.matrix th { padding: .2rem .5rem; font-weight: 600; font-size: .85rem; text-align: right; }
.matrix th[scope=col] { text-align: center; }
.matrix td { min-width: 2.6rem; height: 2.2rem; text-align: center; font-size: .85rem; border: 1px solid var(--back); }
.matrix .hit { background: rgb(var(--right) / calc(var(--a) * .55)); }
.matrix .miss { background: rgb(var(--wrong) / calc(var(--a) * .9)); }
.grid { grid-template-columns: repeat(auto-fill, minmax(112px, 1fr)); }
figure { overflow: hidden; border-width: 2px; } figure img { display: block; width: 100%; image-rendering: pixelated; }
figcaption { padding: .35rem .5rem .45rem; font-size: .8rem; line-height: 1.3; overflow-wrap: anywhere; }
.right { border-color: rgb(var(--right)); } .right b { color: rgb(var(--right)); }
.wrong { border-color: rgb(var(--wrong)); } .wrong b { color: rgb(var(--wrong)); }
details { margin-top: 1rem; } summary { cursor: pointer; } pre { overflow-x: auto; font-size: .8rem; }
"""

_PAGE = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{title}: mmjax report</title>
<style>{style}</style>
</head>
<body>
<header><h1>{title}</h1><p>{subtitle}</p></header>
<main>
{body}
</main>
</body>
</html>
"""
