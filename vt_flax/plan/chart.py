"""A chart of plans: memory by content, and what bounds a step."""

import pathlib
from collections.abc import Sequence

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from vt_flax.plan.planning import Plan
from vt_flax.plan.topology import GIB
from vt_flax.viz.figures import save_figure

# What a device's memory holds.
CONTENTS = ("parameters", "optimizer", "ema", "batch", "teacher", "working")


def draw_plans(path: pathlib.Path, plans: Sequence[Plan]) -> None:
    """Draws bars for each plan in two panels, to a file (see `save_figure`)."""
    figure = Figure(figsize=(11, 2.2 + 0.55 * len(plans)), layout="constrained")
    FigureCanvasAgg(figure)
    memory, bounds = figure.subplots(1, 2, sharey=True)
    rows = np.arange(len(plans))

    left = np.zeros(len(plans))
    for name in CONTENTS:
        sizes = np.asarray([plan.costs["memory"][name] / GIB for plan in plans])
        if sizes.any():
            memory.barh(rows, sizes, left=left, label=name)
        left += sizes
    limits = [plan.case.place.chip.device.memory / GIB for plan in plans]
    memory.plot(limits, rows, "k|", markersize=20, label="available")
    memory.set_xlabel("GiB of a device's memory at the peak")
    memory.set_yticks(rows, [plan.case.label for plan in plans])
    memory.invert_yaxis()

    for i, name in enumerate(plans[0].bounds):
        milliseconds = [plan.bounds[name] * 1e3 for plan in plans]
        bounds.barh(rows + (i - 1) * 0.25, milliseconds, 0.25, label=name)
    bounds.set_xlabel("ms a step, at least")
    for axes in (memory, bounds):
        axes.grid(axis="x", color="#e5e5e5", linewidth=0.6)
        axes.set_axisbelow(True)
        axes.legend(fontsize=8, loc="lower center", bbox_to_anchor=(0.5, 1.0), ncols=4)
    save_figure("--save", path, figure)
