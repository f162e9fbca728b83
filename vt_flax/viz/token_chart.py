"""A chart of token statistics: entropy and foreground of each token."""

import pathlib

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from vt_flax.inference.token_statistics import Report, title
from vt_flax.viz.figures import literal

# Between two modules, in tokens.
GAP = 2.5


def draw_chart(path: pathlib.Path, report: Report) -> None:
    """Writes the chart as PNG: a panel of entropies and, with masks, one of foreground.

    A point is a token, with its standard deviation over the examples; small points are
    its heads.
    """
    panels = {"relative_entropy": "entropy, % of the maximum"}
    if "foreground" in report:
        panels["foreground"] = "on foreground, %"
    count = sum(len(module["tokens"]) for module in report["modules"])
    size = min(max(7, 1 + 0.22 * count), 30), 0.8 + 2.6 * len(panels)
    figure = Figure(figsize=size, layout="constrained")
    FigureCanvasAgg(figure)
    grid = figure.subplots(len(panels), 1, sharex=True, squeeze=False)[:, 0]
    for axes, (key, label) in zip(grid, panels.items(), strict=True):
        _draw_panel(axes, report, key)
        axes.set_ylabel(label)
    legend = ["bars: standard deviation over the examples"]
    if any(module["heads"] > 1 for module in report["modules"]):
        legend.append("small points: single heads")
    if "foreground" in report:
        area = 100 * report["foreground"]["area"]["mean"]
        grid[1].axhline(area, color="#555555", linestyle="--", linewidth=1)
        legend.append("dashed: foreground's share of the pixels")
    grid[-1].set_xlabel(f"token ({'; '.join(legend)})", fontsize=8)
    figure.suptitle(literal(title(report)), fontsize=9)
    figure.savefig(path, dpi=130)


def _draw_panel(axes: Axes, report: Report, key: str) -> None:
    """Draws one statistic of all tokens, a group for each module."""
    ticks, labels = [], []
    left = 0.0
    for i, module in enumerate(report["modules"]):
        color = f"C{i % 10}"
        for x, token in enumerate(module["tokens"], start=len(ticks)):
            x += left
            ticks.append(x)
            labels.append(str(token["token"]))
            # There are entropies alone of single heads.
            heads = token.get("head_entropy", ()) if key == "relative_entropy" else ()
            for head in heads:
                if head["mean"] is not None:
                    axes.plot(x, 100 * head["mean"], ".", color=color, alpha=0.35)
            mean, std = token[key]["mean"], token[key]["std"]
            if mean is not None:
                axes.errorbar(x, 100 * mean, 100 * std, color=color, fmt="o", capsize=2)
        middle = (ticks[-len(module["tokens"])] + ticks[-1]) / 2
        if key == "relative_entropy":
            style = {"ha": "center", "fontsize": 9}
            style["transform"] = axes.get_xaxis_transform()
            axes.text(middle, 1.01, module["module"], **style)
        left += GAP - 1
    axes.set_xticks(ticks, labels, fontsize=7)
    axes.grid(axis="y", color="#e5e5e5", linewidth=0.6)
    axes.set_axisbelow(True)
