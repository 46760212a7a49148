"""The curves of a report, as SVG that takes the page's colours, so that they read on light and on dark."""

import io
import math
import re
from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

import numpy as np

POINTS = 1200  # a curve with more is thinned
COLOURS = ("#3b82c4", "#d9822b", "#2f9e6e", "#b5569f", "#8a8f2d", "#c2504a")  # of like contrast on white and on near-black
_INK, _GRID = "#010203", "#040506"  # replaced by the page's text colour, full and faint

# Title, which names it shows, logarithmic or not.
CHARTS: tuple[tuple[str, str, bool], ...] = (
    ("Loss", r"loss", False),
    ("Accuracy", r"(.*/)?(batch_)?accuracy", False),
    ("Retrieval, R@1", r".*_r1", False),
    ("Gradient norm", r"grad_norm", True),
    ("Learning rate", r"learning_rate(_.*)?", False),
    ("Logit scale", r"logit_scale", False),
    ("Examples a second", r"examples_per_second", False),
)


def curves(metrics: Sequence[Mapping[str, Any]]) -> str:
    """One chart for each of `CHARTS` that the lines of `metrics.jsonl` have numbers for."""
    names = dict.fromkeys(k for line in metrics for k, v in line.items() if k != "step" and isinstance(v, (int, float)))
    charts = []
    for title, pattern, log in CHARTS:
        series = {n: _series(metrics, n) for n in names if re.fullmatch(pattern, n)}
        if series:
            charts.append(_chart(title, series, log))
    if not charts:
        return '<p class="absent">No metrics were logged.</p>'
    return f'<div class="charts">{"".join(charts)}</div>'


def _series(metrics: Sequence[Mapping[str, Any]], name: str) -> np.ndarray:
    """[N, 2]: step and value; infinities as NaN."""
    pairs = [(line["step"], line[name]) for line in metrics if isinstance(line.get(name), (int, float))]
    out = np.array(pairs, np.float64)
    out[~np.isfinite(out)] = np.nan
    return out


def _chart(title: str, series: Mapping[str, np.ndarray], log: bool) -> str:
    finite = {n: s[~np.isnan(s[:, 1])] for n, s in series.items()}
    missing = sum(len(s) - len(finite[n]) for n, s in series.items())
    notes = [f"{missing} values not finite"] if missing else []
    run = max(_run(s) for s in series.values())
    notes += [f"a point is the mean of {run} lines"] if run > 1 else []
    note = f"<p>{'; '.join(notes)}</p>" if notes else ""
    if not any(len(s) for s in finite.values()):
        return f'<div class="chart"><h3>{title}</h3>{note}</div>'
    described = "; ".join(
        f"{n} from {s[0, 1]:.4g} at step {s[0, 0]:.0f} to {s[-1, 1]:.4g} at step {s[-1, 0]:.0f}" for n, s in finite.items() if len(s)
    )
    svg = _svg({n: _thin(s) for n, s in series.items()}, log and all((s[:, 1] > 0).all() for s in finite.values()))
    label = escape(f"{title}: {described}", quote=True)
    svg = svg.replace("<svg", f'<svg role="img" aria-label="{label}"', 1)
    return f'<div class="chart"><h3>{title}</h3>{svg}{note}</div>'


def _run(series: np.ndarray) -> int:
    """How many lines a drawn point stands for."""
    return math.ceil(len(series) / POINTS)


def _thin(series: np.ndarray) -> np.ndarray:
    """Means of equal runs of lines, POINTS of them at most."""
    run = _run(series)
    return series if run < 2 else np.array([series[i : i + run].mean(0) for i in range(0, len(series), run)])


def _svg(series: Mapping[str, np.ndarray], log: bool) -> str:
    """An <svg> element without a background, its text and axes in the page's own colour."""
    import matplotlib
    from matplotlib.backends.backend_svg import FigureCanvasSVG
    from matplotlib.figure import Figure
    from matplotlib.ticker import LogLocator, MaxNLocator, NullLocator

    style = {
        "svg.fonttype": "none",
        "svg.hashsalt": "mmjax",
        "font.size": 9,
        "text.color": _INK,
        "axes.labelcolor": _INK,
        "xtick.color": _INK,
        "ytick.color": _INK,
        "axes.edgecolor": _GRID,
        "grid.color": _GRID,
        "text.parse_math": False,  # names are data
    }
    with matplotlib.rc_context(style):
        figure = Figure(figsize=(4.1, 2.35), layout="constrained")
        FigureCanvasSVG(figure)
        axes = figure.add_subplot()
        for colour, (name, points) in zip(_cycle(len(series)), series.items(), strict=True):
            few = len(points) <= 40
            axes.plot(points[:, 0], points[:, 1], color=colour, linewidth=1.6, marker="o" if few else "", markersize=3, label=name)
        if log:
            axes.set_yscale("log")
            axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
            axes.yaxis.set_major_formatter("{x:g}")
            axes.yaxis.set_minor_locator(NullLocator())
        axes.set_xlabel("step")
        axes.xaxis.set_major_locator(MaxNLocator(6, integer=True))
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(True, linewidth=0.7)
        axes.tick_params(length=0)
        if len(series) > 1:
            axes.legend([n.replace("/", ": ").replace("_", " ") for n in series], frameon=False, fontsize=8)
        buffer = io.StringIO()
        figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None, "Creator": None, "Format": None, "Type": None})
    text = buffer.getvalue()
    text = re.sub(r"""\sxmlns(:\w+)?=["'][^"']*["']""", "", text[text.index("<svg") :])
    text = re.sub(r"(stroke|fill): " + _GRID, r"\1: currentColor; \1-opacity: 0.18", text)
    text = text.replace(_INK, "currentColor")
    return re.sub(r'font-family: [^;"]*', "font-family: inherit", text)


def _cycle(n: int) -> list[str]:
    return [COLOURS[i % len(COLOURS)] for i in range(n)]
