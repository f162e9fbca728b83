"""The trade-off chart: top-1 against multiply-adds and against parameters."""

import itertools
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.patheffects import withStroke
from matplotlib.text import Text
from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator

from vt_flax.paper.published import PUBLISHED, PUBLISHED_COMPARISON, Figures
from vt_flax.paper.runs import Result
from vt_flax.viz.figures import literal

DISTILLED = "VT-ResNet (v4, distilled)"
ABLATION = "VT-ResNet (v4, 90 epochs)"
# Color, mark and line of each system.
STYLES = {
    DISTILLED: ("#c1121f", "o", "-"),
    ABLATION: ("#e8838a", "o", "--"),
    "ResNet": ("#555555", "s", "-"),
    "SE-ResNet": ("#1f77b4", "^", "-"),
    "CBAM-ResNet": ("#17a2b8", "v", "-"),
    "AA-ResNet": ("#9467bd", "D", "-"),
    "GloRe-ResNet": ("#8c564b", "P", "-"),
    "LR-Net": ("#2ca02c", "<", "-"),
    "Stand-Alone": ("#bcbd22", ">", "-"),
    "SAN pairwise": ("#ffb266", "h", "-"),
    "SAN patchwise": ("#ff7f0e", "H", "-"),
}
PANELS = {"gmacs": "billion multiply-adds", "mparams": "million parameters"}
TITLE = (
    "Published ImageNet top-1 at 224 x 224; the distilled VT-ResNets learned from a "
    "teacher too"
)
OWN = "; stars are your own runs"
# Where a label may go from its mark, the best first: right and up; and how many points
# are left between them.
PLACES = [(0, 1), (0, -1), (1, 0), (-1, 0), (1, 1), (-1, 1), (1, -1), (-1, -1)]
GAP = 1.0


class Point(NamedTuple):
    """A network on the chart: its label, top-1 in percent, and what that costs."""

    label: str
    top1: float
    gmacs: float
    mparams: float

    @classmethod
    def of(cls, label: str, figures: Figures) -> "Point":
        """Returns the point of published figures."""
        return cls(label, *map(float, figures))


def published_lines() -> dict[str, list[Point]]:
    """Returns the published figures, by system."""
    lines: dict[str, list[Point]] = {system: [] for system in STYLES}
    for row in PUBLISHED_COMPARISON:
        system = DISTILLED if row.system == "VT-ResNet" else row.system
        if row.figures.accuracy:
            lines[system].append(Point.of(row.size, row.figures))
    for row in PUBLISHED:
        if row.ablation == "transformer":
            lines[ABLATION].append(Point.of(row.model[-2:], row.printed))
    return lines


def run_line(result: Result) -> tuple[str, Point]:
    """Returns a run's entry in the legend, and its point."""
    words = [result.model]
    # The published results are of ImageNet.
    if not result.dataset.startswith("imagenet2012"):
        words.append(result.dataset.rsplit("/", 1)[-1].removeprefix("folder:"))
    if result.image_size != (224, 224):
        words.append(" x ".join(map(str, result.image_size)))
    name = result.workdir.resolve().name
    point = Point(name, result.shown_top1, result.macs / 1e9, result.params / 1e6)
    return f"{result.workdir}: {', '.join(words)}", point


def make_figure(results: Sequence[Result] = ()) -> Figure:
    """Returns the chart: a panel for multiply-adds and one for parameters.

    Each system is a line, each of the user's runs a star; their labels are those of the
    legend, in both panels alike.

    Args:
      results: of the user's own runs, each evaluated.
    """
    figure = Figure(figsize=(13, 7), layout="constrained")
    FigureCanvasAgg(figure)
    panels = figure.subplots(1, 2, sharey=True)
    runs = [run_line(result) for result in results]
    labels = []
    for axes, (key, title) in zip(panels, PANELS.items(), strict=True):
        texts: list[tuple[Text, float]] = []
        labels.append((axes, texts))
        for system, points in published_lines().items():
            color, mark, line = STYLES[system]
            ours = system == DISTILLED
            style = {"color": color, "marker": mark, "linestyle": line}
            style |= {"linewidth": 2.4, "markersize": 7} if ours else {"linewidth": 1.2}
            texts += _draw(axes, key, system, points, zorder=3 if ours else 2, **style)
        for i, (label, point) in enumerate(runs):
            style = {"color": f"C{i % 10}", "marker": "*", "linestyle": "none"}
            style |= {"markersize": 15, "markeredgecolor": "black"}
            texts += _draw(axes, key, label, [point], zorder=4, **style)
        axes.set_xscale("log")
        low, high = axes.get_xlim()
        subs = (1, 2, 5) if high > 20 * low else (1, 1.5, 2, 3, 4, 5, 6, 8)
        axes.xaxis.set_major_locator(LogLocator(subs=subs))
        axes.xaxis.set_major_formatter(FuncFormatter(lambda x, _: f"{x:g}"))
        axes.xaxis.set_minor_locator(NullLocator())
        axes.set_xlabel(title)
        axes.grid(color="#e5e5e5", linewidth=0.6)
        axes.set_axisbelow(True)
    panels[0].set_ylabel("top-1, %")
    figure.suptitle(TITLE + OWN * bool(runs), fontsize=11)
    figure.legend(
        *panels[0].get_legend_handles_labels(),
        loc="outside lower center",
        ncols=4,
        fontsize=9,
    )
    # Only now the marks are where they stay.
    figure.draw_without_rendering()
    for axes, texts in labels:
        _place_labels(axes, texts)
    return figure


def _draw(
    axes: Axes, key: str, label: str, points: Sequence[Point], **style: Any
) -> list[tuple[Text, float]]:
    """Draws a line, and a text at each point.

    Returns:
      The texts, and their distances from the centers of the marks, in points.
    """
    known = sorted((getattr(p, key), p.top1, p.label) for p in points)
    x, y, _ = zip(*known, strict=True)
    (line,) = axes.plot(x, y, label=literal(label), **style)
    look = {"fontsize": 7, "color": line.get_color(), "zorder": 5}
    look["path_effects"] = [withStroke(linewidth=1.5, foreground="white")]
    away = line.get_markersize() / 2 + GAP
    return [
        (axes.text(x, y, literal(text), ha="center", va="center", **look), away)
        for x, y, text in known
    ]


def _place_labels(axes: Axes, texts: Sequence[tuple[Text, float]]) -> None:
    """Moves each text from its mark to where it covers least of all else."""
    renderer = axes.figure.canvas.get_renderer()
    pixels_per_point = axes.figure.dpi / 72
    # Boxes (left, bottom, right, top) of marks, lines and placed texts.
    taken = []
    for line in axes.lines:
        marks = axes.transData.transform(line.get_xydata())
        half = line.get_markersize() / 2 * pixels_per_point
        taken += [[*(mark - half), *(mark + half)] for mark in marks]
        for one, other in itertools.pairwise(marks):
            steps = int(np.hypot(*(other - one)) / 4) + 2
            taken += [
                [*(at - 1.5), *(at + 1.5)] for at in np.linspace(one, other, steps)
            ]
    for text, away in texts:
        at = text.get_window_extent(renderer)
        moves = np.asarray(PLACES) * (away * pixels_per_point + np.asarray(at.size) / 2)
        boxes = at.extents + np.tile(moves, 2)
        others = np.asarray(taken)
        low = np.maximum(boxes[:, None, :2], others[:, :2])
        high = np.minimum(boxes[:, None, 2:], others[:, 2:])
        covered = np.prod(np.maximum(high - low, 0), -1).sum(-1)
        best = np.argmin(covered)
        center = axes.transData.transform(text.get_position()) + moves[best]
        text.set_position(axes.transData.inverted().transform(center))
        taken.append(boxes[best])
