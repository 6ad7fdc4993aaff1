"""Curves as small inline SVG that takes its colours from the page, so that it is right in light and dark."""

from __future__ import annotations

import io
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from jaxtyping import Float
from markupsafe import Markup, escape

_POINTS = 400
"""Points a line is drawn with; longer ones are averaged bin by bin."""
_NARROW, _WIDE = (3.5, 2.0), (4.3, 2.3)
"""Inches of a chart, before the page scales it."""
# Colours that stand for the page's own and are replaced after drawing; no one would choose them.
_TEXT, _FAINT = "#0a0b01", "#0a0b02"
_LINES = tuple(f"#0a0b{number:02x}" for number in range(0x10, 0x16))
_PAGE = {_TEXT: "var(--muted)", _FAINT: "var(--rule)"} | {
    colour: f"var(--line-{number})" for number, colour in enumerate(_LINES)
}


@dataclass(frozen=True, slots=True)
class Line:
    """One line of a chart."""

    name: str
    steps: Float[np.ndarray, " n"]
    values: Float[np.ndarray, " n"]


@dataclass(frozen=True, slots=True)
class Chart:
    """One chart: lines over the steps, and levels to compare them with."""

    title: str
    lines: Sequence[Line]
    levels: Mapping[str, float] = field(default_factory=dict)
    """Horizontal lines by name."""
    logarithmic: bool = False
    dots: bool = False
    """Mark the points: few were measured."""
    wide: bool = False
    """Two beside each other on the page, not three."""
    begins: int | None = None
    """Step after which another stage of the run begins, marked by an upright line."""


def thinned(line: Line, points: int = _POINTS) -> Line:
    """The line with at most so many points: means of bins of equally many, the first and last bin included."""
    if len(line.values) <= points:
        return line
    edges = np.linspace(0, len(line.values), points + 1).astype(np.int64)[:-1]
    counts = np.diff([*edges, len(line.values)])
    return Line(line.name, np.add.reduceat(line.steps, edges) / counts, np.add.reduceat(line.values, edges) / counts)


def svg(chart: Chart, name: str) -> Markup:
    """The chart as an ``<svg>`` element.

    Args:
        name: Unique on the page: put before every id inside.
    """
    import matplotlib as mpl
    from matplotlib.figure import Figure

    settings = {
        "svg.fonttype": "none", "svg.hashsalt": name, "text.parse_math": False, "axes.unicode_minus": False,
        "font.size": 8.5 if chart.wide else 9, "font.family": "sans-serif", "text.color": _TEXT, "axes.labelcolor": _TEXT,
        "xtick.color": _TEXT, "ytick.color": _TEXT, "axes.edgecolor": _FAINT, "grid.color": _FAINT,
    }  # fmt: skip
    with mpl.rc_context(settings):
        figure = Figure(figsize=_WIDE if chart.wide else _NARROW, layout="constrained")
        axes = figure.add_subplot()
        _draw(axes, chart)
        file = io.StringIO()
        figure.savefig(file, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
    return Markup(_for_the_page(file.getvalue(), name, described(chart)))


def _draw(axes: Any, chart: Chart) -> None:
    from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullLocator

    for number, line in enumerate(chart.lines):
        few = thinned(line)
        mark = "o" if chart.dots or len(few.values) == 1 else None
        axes.plot(
            few.steps, few.values, color=_LINES[number % len(_LINES)], linewidth=1.8, marker=mark, markersize=4,
            label=plain(line.name), solid_capstyle="round",
        )  # fmt: skip
    for number, (name, value) in enumerate(chart.levels.items(), start=len(chart.lines)):
        axes.axhline(value, color=_LINES[number % len(_LINES)], linewidth=1.3, linestyle=(0, (4, 3)), label=name)
    if chart.begins is not None:
        axes.axvline(chart.begins, color=_FAINT, linewidth=1.3, linestyle=(0, (1, 2)))
    if chart.logarithmic and all((line.values > 0).all() for line in chart.lines):
        axes.set_yscale("log")
        axes.yaxis.set_major_locator(LogLocator(subs=(1.0, 3.0), numticks=6))
        axes.yaxis.set_minor_locator(NullLocator())
        axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    else:
        axes.yaxis.set_major_locator(MaxNLocator(5, steps=[1, 2, 2.5, 5, 10]))
    axes.xaxis.set_major_locator(MaxNLocator(5, integer=True))
    axes.grid(axis="y", linewidth=0.6)
    axes.set_axisbelow(True)
    for side in ("top", "right", "left"):
        axes.spines[side].set_visible(False)
    axes.tick_params(length=0)
    axes.set_xlabel("step")
    if len(chart.lines) + len(chart.levels) > 1:
        axes.legend(
            loc="lower left", bbox_to_anchor=(0, 1), ncols=4 if chart.wide else 3, frameon=False, borderaxespad=0,
            handlelength=1.4, columnspacing=1.0, fontsize=8,
        )  # fmt: skip


def plain(name: str, longest: int = 40) -> str:
    """The name as the drawing library can measure it: its font has not every letter, and half a letter is an error."""
    return "".join(letter if letter.isascii() and letter.isprintable() else "?" for letter in name[:longest])


def described(chart: Chart) -> str:
    """The chart in words, for those who do not see it."""
    told = [
        f"{line.name} from {line.values[0]:.4g} to {line.values[-1]:.4g} over steps {int(line.steps[0])} to "
        f"{int(line.steps[-1])}"
        for line in chart.lines
        if len(line.values)
    ]
    told += [f"{name} at {value:.3f}" for name, value in chart.levels.items()]
    if chart.begins is not None:
        told.append(f"the high-resolution phase begins after step {chart.begins}")
    return f"{chart.title}: {'; '.join(told)}."


def _for_the_page(text: str, name: str, words: str) -> str:
    """The bare element, with colours of the page and ids of its own."""
    text = text[text.index("<svg") :]
    text = re.sub(r"<metadata>.*?</metadata>", "", text, flags=re.DOTALL)
    text = re.sub(r"<!--.*?-->", "", text, flags=re.DOTALL)
    text = re.sub(r'\b(id=")|(href="#)|(url\(#)', lambda found: f"{found.group(0)}{name}-", text)
    for colour, variable in _PAGE.items():
        text = text.replace(colour, variable)
    text = re.sub(r"font: ([\d.]+px)[^;\"]*", r"font: \1 inherit; font-family: inherit", text)
    box = re.search(r'viewBox="[^"]*"', text)
    assert box is not None
    head = f'<svg class="chart" role="img" aria-label="{escape(words)}" {box.group(0)} '
    spaces = 'xmlns:xlink="http://www.w3.org/1999/xlink" xmlns="http://www.w3.org/2000/svg"'
    return head + spaces + text[text.index(">", text.index("<svg")) :]
