"""A chart of a report on tokens: entropy and foreground by module and token."""

import pathlib

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from vt_flax.inference.token_records import Report
from vt_flax.inference.token_tables import title
from vt_flax.viz.figures import literal, save_figure

COLOURS = ("#1f77b4", "#c1121f", "#2ca02c", "#9467bd", "#8c564b", "#17a2b8")
# Tokens' places between two modules.
GAP = 1.5


def make_figure(report: Report) -> Figure:
    """Returns the chart: a panel of entropies and, with masks, one of foreground.

    A token is a point with its spread, a module a group of them. Small points are
    heads; the dashed line in the lower panel is what foreground has of all pixels.
    """
    modules = report["modules"]
    count = sum(len(module["tokens"]) for module in modules)
    keys = {"entropy_share": "entropy, % of the most"}
    if report["classes"]:
        keys["foreground"] = "on foreground, %"
    width = min(max(7, 1 + 0.22 * count), 30)
    figure = Figure(figsize=(width, 0.8 + 2.6 * len(keys)), layout="constrained")
    FigureCanvasAgg(figure)
    panels = figure.subplots(len(keys), 1, sharex=True, squeeze=False)[:, 0]
    for axes, (key, label) in zip(panels, keys.items(), strict=True):
        _draw(axes, report, key)
        axes.set_ylabel(label)
        axes.grid(axis="y", color="#e5e5e5", linewidth=0.6)
        axes.set_axisbelow(True)
    if report["classes"]:
        area = 100 * report["classes"]["foreground_area"]["mean"]
        panels[1].axhline(area, color="#555555", linestyle="--", linewidth=1)
    panels[-1].set_xticks(
        [x for places in _places(report) for x in places],
        [str(token["token"]) for module in modules for token in module["tokens"]],
        fontsize=7,
    )
    marks = ["bars are the spread over the examples"]
    if any(module["heads"] > 1 for module in modules):
        marks.append("small points single heads")
    if report["classes"]:
        marks.append("the dashed line is foreground's share of all pixels")
    panels[-1].set_xlabel(f"token ({', '.join(marks)})", fontsize=8)
    for module, places in zip(modules, _places(report), strict=True):
        panels[0].text(
            *((places[0] + places[-1]) / 2, 1.01),
            module["module"],
            transform=panels[0].get_xaxis_transform(),
            ha="center",
            va="bottom",
            fontsize=9,
        )
    figure.suptitle(literal(title(report)), fontsize=9)
    return figure


def draw_report(path: pathlib.Path, report: Report) -> None:
    """Draws the chart to a file, see `figures.save_figure`."""
    save_figure("--tokens", path, make_figure(report))


def _places(report: Report) -> list[list[float]]:
    """Returns where the tokens of each module stand."""
    places, first = [], 0.0
    for module in report["modules"]:
        count = len(module["tokens"])
        places.append([first + i for i in range(count)])
        first += count - 1 + GAP + 1
    return places


def _draw(axes: Axes, report: Report, key: str) -> None:
    for i, (module, places) in enumerate(
        zip(report["modules"], _places(report), strict=True)
    ):
        colour = COLOURS[i % len(COLOURS)]
        for x, token in zip(places, module["tokens"], strict=True):
            # Of heads there are entropies alone.
            heads = token.get("heads", []) if key == "entropy_share" else []
            means = [head[key]["mean"] for head in heads]
            heads = [100 * mean for mean in means if mean is not None]
            axes.scatter([x] * len(heads), heads, s=6, color=colour, alpha=0.35)
            figure = token[key]
            if figure["mean"] is None:
                continue
            axes.errorbar(
                x,
                100 * figure["mean"],
                100 * figure["spread"],
                color=colour,
                marker="o",
                markersize=5,
                capsize=2,
                linewidth=1,
            )
