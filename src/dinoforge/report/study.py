"""The plot of a study: every arm of every seed, a panel a score."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from dinoforge.report.curves import plain


@dataclass(frozen=True, slots=True)
class Panel:
    """One score of all arms."""

    title: str
    arms: Mapping[str, Sequence[float]]
    """Scores of the seeds by arm, from the top down; none where none was measured."""


_DOT, _MEAN = "#9a9a94", "#1f5fa8"
"""Of a seed, and of the mean of seeds."""


def drawn(title: str, panels: Sequence[Panel]) -> str:
    """An SVG file: a grey dot for every seed, a blue one for their mean; it depends on nothing but what it shows."""
    import matplotlib as mpl
    from matplotlib.figure import Figure

    settings = {"svg.fonttype": "none", "svg.hashsalt": title, "text.parse_math": False, "font.size": 9,
                "axes.unicode_minus": False}  # fmt: skip
    with mpl.rc_context(settings):
        most = max(len(panel.arms) for panel in panels)
        figure = Figure(figsize=(2.6 + 2.6 * len(panels), 1.1 + 0.3 * most), layout="constrained")
        figure.suptitle(plain(title, 90), fontsize=10)
        for axes, panel in zip(figure.subplots(1, len(panels), sharey=True, squeeze=False)[0], panels, strict=True):
            for at, values in enumerate(panel.arms.values()):
                axes.plot(values, [at] * len(values), "o", color=_DOT, markersize=4)
                if values:
                    axes.plot(sum(values) / len(values), at, "o", color=_MEAN, markersize=6)
            axes.set_title(plain(panel.title), fontsize=9)
            axes.set_yticks(range(len(panel.arms)), [plain(name) for name in panel.arms])
            axes.set_ylim(len(panel.arms) - 0.5, -0.5)
            axes.grid(axis="x", linewidth=0.6, color="#dddddd")
            axes.set_axisbelow(True)
            axes.locator_params(axis="x", nbins=4)
            axes.tick_params(length=0)
            for side in ("top", "right", "left"):
                axes.spines[side].set_visible(False)
        file = io.StringIO()
        figure.savefig(file, format="svg", facecolor="white", metadata={"Date": None, "Creator": None})
    return file.getvalue()
