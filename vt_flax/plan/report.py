"""Reports of plans: records, and tables with a column or a row for each plan."""

from collections.abc import Sequence
from typing import Any

from vt_flax.plan.planning import Plan
from vt_flax.plan.topology import HERE, Chip

# Keys of a record that a sweep shows.
SWEPT = (
    *("batch", "memory_peak", "hbm_bytes_per_image", "bound_by"),
    *("bound_images_per_second_of_a_chip", "estimate_images_per_second_of_a_chip"),
    *("bound_hours", "estimate_hours"),
)


def record(plan: Plan) -> dict[str, Any]:
    """Returns a plan in bytes, seconds and multiply-adds, of a device and a step.

    Keys that begin with `bound_`, `estimate_` and `measured_` say which a figure is.
    """
    case, costs, place = plan.case, plan.costs, plan.case.place
    images = case.batch / place.devices
    found = {
        "topology": place.name,
        **case.swept,
        "chips": place.chips,
        "devices": place.devices,
        "hosts": place.hosts,
        "batch": case.batch,
        "memory_available": place.chip.device.memory,
        **{f"memory_{key}": value for key, value in costs["memory"].items()},
        "forward_macs_per_image": costs["forward_macs"],
        "macs_per_image": round(costs["macs"] / images),
        "hbm_bytes_per_image": round(costs["traffic"] / images),
        "compiler_bytes_per_image": round(costs["bytes"] / images),
        "compiler_flops_per_image": round(costs["flops"] / images),
        "collectives": costs["collectives"],
        **{f"bound_{name}_seconds": time for name, time in plan.bounds.items()},
        "bound_by": plan.limit,
        "examples": case.facts.examples or None,
        "steps": plan.steps or None,
    }
    for name, seconds in plan.times.items():
        rate = case.batch / seconds
        hours = plan.steps * seconds / 3600 if plan.steps else None
        found |= {
            f"{name}_seconds": seconds,
            f"{name}_images_per_second": rate,
            f"{name}_images_per_second_of_a_chip": rate / place.chips,
            f"{name}_images_per_second_of_a_host": rate / place.hosts,
            f"{name}_hours": hours,
            f"{name}_chip_hours": hours and hours * place.chips,
        }
    return found


def title(plans: Sequence[Plan]) -> str:
    """Returns the line above a table."""
    config = plans[0].case.config
    return (
        f"{config.model.name}, {config.data.name}, {config.duration}: a training step "
        "as compiled, of a device"
    )


def notes(plans: Sequence[Plan]) -> list[str]:
    """Returns the lines below a table: sources of its figures, and what they omit."""
    chips = {plan.case.place.chip.name: plan.case.place.chip for plan in plans}
    found = [
        "bound: compute, memory and interconnect at their peaks, all at once; "
        "estimate: one after another. Neither includes the latency of collectives, "
        "evaluations and checkpoints.",
        *map(_figures, chips.values()),
    ]
    if any(not plan.steps for plan in plans):
        found.append("hours need the number of examples in an epoch: --examples N")
    if any(chip.cached for chip in chips.values()):
        found.append(
            "caches may hide memory traffic: the bound by memory counts only a step's "
            "arguments and results, the estimate all traffic"
        )
    pods = [plan.case for plan in plans if plan.case.place.name != HERE]
    if any(case.config.model.get("formulation") == "auto" for case in pods):
        found.append(
            "model.formulation=auto is planned as printed; a run on the chips times "
            "all formulations and takes the fastest: plan all by "
            "--sweep model.formulation=printed,folded,fused"
        )
    for plan in plans:
        if unknown := plan.costs["unknown_loops"]:
            found.append(
                f"{plan.case.label}: {unknown} loops of unknown length count once"
            )
    return found


def columns(plans: Sequence[Plan]) -> list[dict[str, Any]]:
    """Returns the rows of a table with a column for each plan."""
    cells = {plan.case.label: _cells(plan) for plan in plans}
    rows = dict.fromkeys(row for one in cells.values() for row in one)
    return [
        {"": row} | {label: one.get(row) for label, one in cells.items()}
        for row in rows
    ]


def sweep_rows(plans: Sequence[Plan]) -> list[dict[str, Any]]:
    """Returns a row for each plan, with the figures that sweeps are made for."""
    rows = []
    for plan in plans:
        cells = _cells(plan)
        runs = sum(row["count"] for row in plan.costs["collectives"].values())
        rows.append(
            {key: cells[key] for key in ("topology", *plan.case.swept, *SWEPT)}
            | {"collectives": runs}
        )
    return rows


def _cells(plan: Plan) -> dict[str, str]:
    """Returns the record of a plan as texts, with a key for each kind of collective."""
    cells = {}
    for key, value in record(plan).items():
        if key == "collectives":
            for kind, row in sorted(value.items()):
                size, sent = (row[name] / 1e6 for name in ("bytes", "sent"))
                cells[kind] = (
                    f"{row['count']:,} of {size:,.1f} MB; a chip sends {sent:,.1f} MB"
                )
        elif key.startswith("memory_") or "_bytes" in key:
            cells[key] = f"{value / 1e6:,.1f} MB"
        elif "macs" in key or "flops" in key:
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
