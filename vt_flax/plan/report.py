"""Plans as a table, with a column or a row for each."""

from collections.abc import Mapping, Sequence
from typing import Any

from vt_flax.plan.cases import Case
from vt_flax.plan.topology import HERE, Chip

# Keys of a record that a sweep shows.
SWEPT = (
    *("batch", "memory_peak", "hbm_bytes_per_image", "bound_by"),
    *("bound_images_per_second_of_a_chip", "estimate_images_per_second_of_a_chip"),
    *("bound_hours", "estimate_hours"),
)


def columns(plans: Mapping[str, Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Returns the rows of a table with a column for each record, by its label."""
    cells = {label: _cells(plan) for label, plan in plans.items()}
    keys = dict.fromkeys(key for column in cells.values() for key in column)
    return [
        {"": key} | {label: column.get(key) for label, column in cells.items()}
        for key in keys
    ]


def sweep_rows(
    plans: Sequence[Mapping[str, Any]], swept: Sequence[str]
) -> list[dict[str, Any]]:
    """Returns a row for each record, with the figures that sweeps are made for.

    Args:
      plans: the records.
      swept: keys that the sweep sets.
    """
    keys = ("topology", *swept, *SWEPT)
    return [{key: cells[key] for key in keys} for cells in map(_cells, plans)]


def notes(cases: Sequence[Case]) -> list[str]:
    """Returns the lines below a table: sources of its figures, and what they omit."""
    chips = {case.place.chip.name: case.place.chip for case in cases}
    found = [
        "bound: compute, memory and interconnect at their peaks, all at once; "
        "estimate: one after another. Neither includes the latency of collectives, "
        "evaluations and checkpoints.",
        *map(_figures, chips.values()),
    ]
    if not all(case.steps for case in cases):
        found.append("hours need the number of examples in an epoch: --examples N")
    if any(chip.cached for chip in chips.values()):
        found.append(
            "caches may hide memory traffic: the bound by memory counts only a step's "
            "arguments and results, the estimate all traffic"
        )
    pods = [case for case in cases if case.place.name != HERE]
    if any(case.config.model.get("formulation") == "auto" for case in pods):
        found.append(
            "model.formulation=auto is planned as printed; a run on the chips times "
            "all formulations and takes the fastest: plan all by "
            "--sweep model.formulation=printed,folded,fused"
        )
    return found


def _cells(plan: Mapping[str, Any]) -> dict[str, str]:
    """Returns a record as text, with a key for each kind of collective."""
    cells = {}
    for key, value in plan.items():
        if key == "collectives":
            for kind, row in sorted(value.items()):
                size, sent = (row[name] / 1e6 for name in ("bytes", "sent"))
                cells[kind] = (
                    f"{row['count']:,} of {size:,.1f} MB; a chip sends {sent:,.1f} MB"
                )
        elif key.startswith("memory_") or "_bytes" in key:
            cells[key] = f"{value / 1e6:,.1f} MB"
        elif "macs" in key:
            cells[key] = f"{value / 1e9:,.3f} G"
        elif key.endswith("_seconds"):
            cells[key] = f"{value * 1e3:,.2f} ms"
        elif isinstance(value, float):
            cells[key] = f"{value:,.0f}" if value >= 1000 else f"{value:.2f}"
        else:
            cells[key] = f"{value:,}" if isinstance(value, int) else value or "-"
    return cells


def _figures(chip: Chip) -> str:
    """Returns the line of a chip's published or measured figures."""
    shared = f", shared by {chip.devices} JAX devices" if chip.devices > 1 else ""
    return (
        f"{chip.name}: {chip.flops / 1e12:,.4g} TFLOP/s, memory "
        f"{chip.bandwidth / 1e9:,.4g} GB/s, a link {chip.link / 1e9:,.4g} GB/s"
        f"{shared} ({chip.source})"
    )
