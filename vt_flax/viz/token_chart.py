"""A chart of token statistics: entropy and overlap of each token."""

import pathlib

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from vt_flax.inference.token_statistics import Report, title
from vt_flax.viz.figures import literal

PANELS = {
    "relative_entropy": "entropy of the attention map,\n% of a uniform map's",
    "overlap": "overlap with the module's\nother tokens, %",
}


def draw_chart(path: pathlib.Path, report: Report) -> None:
    """Writes the chart as PNG: a panel for each statistic, a group for each module.

    A point is a token, with its standard deviation over the examples.
    """
    count = sum(len(module["tokens"]) for module in report["modules"])
    figure = Figure(
        figsize=(min(max(7, 1 + 0.22 * count), 30), 6), layout="constrained"
    )
    FigureCanvasAgg(figure)
    panels = figure.subplots(len(PANELS), 1, sharex=True)
    ticks, labels = [], []
    for i, module in enumerate(report["modules"]):
        tokens = module["tokens"]
        # One and a half tokens of space between modules.
        places = np.arange(len(tokens)) + len(ticks) + 1.5 * i
        for axes, key in zip(panels, PANELS, strict=True):
            means = [100 * token[key]["mean"] for token in tokens]
            stds = [100 * token[key]["std"] for token in tokens]
            axes.errorbar(places, means, stds, color=f"C{i % 10}", fmt="o", capsize=2)
        top = panels[0].get_xaxis_transform()
        panels[0].text(
            places.mean(), 1.02, module["module"], transform=top, ha="center"
        )
        ticks += places.tolist()
        labels += [str(token["token"]) for token in tokens]
    for axes, label in zip(panels, PANELS.values(), strict=True):
        axes.set_ylabel(label)
        axes.set_xticks(ticks, labels, fontsize=7)
        axes.grid(axis="y", color="#e5e5e5", linewidth=0.6)
        axes.set_axisbelow(True)
    panels[-1].set_xlabel("token (bars: standard deviation over the examples)")
    figure.suptitle(literal(title(report)), fontsize=10)
    figure.savefig(path, dpi=130)
