"""A chart of plans: memory, what bounds a step, and the rate that follows."""

import pathlib
from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from vt_flax.plan.planning import Plan
from vt_flax.plan.report import CONTENTS, record, times
from vt_flax.plan.topology import GIB
from vt_flax.viz.figures import save_figure

COLORS = {
    **{"parameters": "#1f77b4", "optimizer": "#17a2b8", "averages": "#9467bd"},
    **{"batch": "#2ca02c", "teacher": "#8c564b", "working": "#c7c7c7"},
    **{"compute": "#c1121f", "memory": "#1f77b4", "interconnect": "#2ca02c"},
    **{"input": "#8c564b", "bound": "#555555", "estimate": "#c7c7c7"},
    "measured": "#c1121f",
}
NAMES = {"bound": "at most", "estimate": "estimated"}


def make_figure(plans: Sequence[Plan]) -> Figure:
    """Returns the chart: a group of bars for each plan in each of three panels."""
    figure = Figure(figsize=(13, 2.2 + 0.55 * len(plans)), layout="constrained")
    FigureCanvasAgg(figure)
    memory, bounds, rates = figure.subplots(1, 3, sharey=True)
    _draw_memory(memory, plans)
    names = ["compute", "memory", "interconnect"]
    if any(plan.roofline.input for plan in plans):
        names.append("input")
    _draw_groups(
        bounds,
        {
            name: [getattr(plan.roofline, name) * 1e3 for plan in plans]
            for name in names
        },
    )
    bounds.set_xlabel("ms a step, at least")
    records = [record(plan) for plan in plans]
    _draw_groups(
        rates,
        {
            name: [row.get(f"{name}_images_per_second_of_a_chip", 0) for row in records]
            for name in max(map(times, plans), key=len)
        },
    )
    rates.set_xlabel("images/s a chip")
    memory.set_yticks(range(len(plans)), [plan.case.label for plan in plans])
    memory.invert_yaxis()
    return figure


def draw_plans(path: pathlib.Path, plans: Sequence[Plan]) -> None:
    """Draws the chart to a file, see `figures.save_figure`."""
    save_figure("--save", path, make_figure(plans))


def _draw_memory(axes: Axes, plans: Sequence[Plan]) -> None:
    left = np.zeros(len(plans))
    for name in CONTENTS:
        sizes = np.asarray([plan.costs["memory"][name] / GIB for plan in plans])
        if sizes.any():
            axes.barh(
                range(len(plans)), sizes, left=left, label=name, color=COLORS[name]
            )
        left += sizes
    for i, plan in enumerate(plans):
        limit = plan.case.place.chip.device.memory / GIB
        axes.plot([limit, limit], [i - 0.45, i + 0.45], color="black", linewidth=2)
    axes.plot([], [], color="black", linewidth=2, label="available")
    axes.set_xlabel("GiB of a device's memory at the peak")
    _finish(axes)


def _draw_groups(axes: Axes, groups: dict[str, list[float]]) -> None:
    height = 0.8 / len(groups)
    for i, (name, values) in enumerate(groups.items()):
        places = np.arange(len(values)) + (i - (len(groups) - 1) / 2) * height
        axes.barh(
            places, values, height, label=NAMES.get(name, name), color=COLORS[name]
        )
    _finish(axes)


def _finish(axes: Axes) -> None:
    axes.grid(axis="x", color="#e5e5e5", linewidth=0.6)
    axes.set_axisbelow(True)
    axes.legend(fontsize=8, loc="lower center", bbox_to_anchor=(0.5, 1.0), ncols=3)
