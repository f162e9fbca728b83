"""A chart of plans: memory by content, and what bounds a step."""

import pathlib
from collections.abc import Mapping
from typing import Any

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from vt_flax.plan.topology import GIB
from vt_flax.viz.figures import save_figure

# What a device's memory holds.
CONTENTS = ("parameters", "optimizer", "ema", "batch", "teacher", "working")
PARTS = ("compute", "memory", "interconnect")


def draw_plans(path: pathlib.Path, plans: Mapping[str, Mapping[str, Any]]) -> None:
    """Draws bars for each plan in two panels, to a file (see `save_figure`).

    Args:
      path: file to write.
      plans: records, by their labels.
    """
    figure = Figure(figsize=(11, 2.2 + 0.55 * len(plans)), layout="constrained")
    FigureCanvasAgg(figure)
    memory, bounds = figure.subplots(1, 2, sharey=True)
    rows = np.arange(len(plans))

    def values(key: str) -> np.ndarray:
        return np.asarray([plan[key] for plan in plans.values()])

    left = np.zeros(len(plans))
    for name in CONTENTS:
        sizes = values(f"memory_{name}") / GIB
        if sizes.any():
            memory.barh(rows, sizes, left=left, label=name)
        left += sizes
    limits = values("memory_available") / GIB
    memory.plot(limits, rows, "k|", markersize=20, label="available")
    memory.set_xlabel("GiB of a device's memory at the peak")
    memory.set_yticks(rows, list(plans))
    memory.invert_yaxis()

    for i, name in enumerate(PARTS):
        milliseconds = 1e3 * values(f"bound_{name}_seconds")
        bounds.barh(rows + (i - 1) * 0.25, milliseconds, 0.25, label=name)
    bounds.set_xlabel("ms a step, at least")
    for axes in (memory, bounds):
        axes.grid(axis="x", color="#e5e5e5", linewidth=0.6)
        axes.set_axisbelow(True)
        axes.legend(fontsize=8, loc="lower center", bbox_to_anchor=(0.5, 1.0), ncols=4)
    save_figure("--save", path, figure)
