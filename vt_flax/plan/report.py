"""Reports of plans: records, and tables with a column or a row for each plan."""

from collections.abc import Sequence
from typing import Any

from vt_flax.plan.planning import Plan
from vt_flax.plan.topology import GIB, HERE, Chip

MIB = 2**20
# What a device's memory holds.
CONTENTS = ("parameters", "optimizer", "ema", "batch", "teacher", "working")
# Words for a time, and for the rate that follows from it.
LEAST_AND_MOST = {
    "bound": ("at least", "at most"),
    "estimate": ("estimated", "estimated"),
    "measured": ("measured", "measured"),
}
# Rows of a plan that a sweep shows, as columns.
SWEPT = (
    *("batch; a chip", "memory at the peak, GiB", "MB an image: HBM", "bound by"),
    *("images/s of a chip; of a host; all: at most", "hours; chip-hours: at least"),
    "images/s of a chip; of a host; all: estimated",
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
        "as compiled"
    )


def notes(plans: Sequence[Plan]) -> list[str]:
    """Returns the lines below a table: sources of its figures, and what they omit."""
    chips = {plan.case.place.chip.name: plan.case.place.chip for plan in plans}
    found = [
        "at least, at most: compute, memory and interconnect at their peaks, all at "
        "once; estimated: one after another. Neither includes the latency of "
        "collectives, evaluations and checkpoints.",
        *map(_figures, chips.values()),
    ]
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
        {"of a device and a step": row}
        | {label: one.get(row) for label, one in cells.items()}
        for row in rows
    ]


def sweep_rows(plans: Sequence[Plan]) -> list[dict[str, Any]]:
    """Returns a row for each plan, with the figures that sweeps are made for."""
    rows = []
    for plan in plans:
        found, cells = record(plan), _cells(plan)
        runs, sent = (
            sum(row[key] for row in found["collectives"].values())
            for key in ("count", "sent")
        )
        shown = {key: cells[key] for key in SWEPT}
        rows.append(
            {"topology": found["topology"], **plan.case.swept, **shown}
            | {"collectives: runs; MB a chip sends": f"{runs}; {sent / 1e6:,.1f}"}
        )
    return rows


def _cells(plan: Plan) -> dict[str, str]:
    """Returns the column of a plan, by names of rows."""
    found, memory = record(plan), plan.costs["memory"]
    peak, available, chips = memory["peak"], found["memory_available"], found["chips"]
    cells = {
        "chips; devices; hosts": f"{chips:,}; {found['devices']:,}; {found['hosts']:,}",
        "batch; a chip": f"{found['batch']:,}; {found['batch'] / chips:,.0f}",
        "memory at the peak, GiB": f"{peak / GIB:.2f} of {available / GIB:.2f} "
        f"({peak / available:.0%})",
    }
    for name in CONTENTS:
        if size := memory[name]:
            cells[f"  {name}, MiB"] = f"{size / MIB:,.1f} ({size / peak:.0%})"
    for kind in ("forward_macs", "macs"):
        word = "forward" if kind == "forward_macs" else "step"
        cells[f"GMACs an image: {word}"] = f"{found[f'{kind}_per_image'] / 1e9:.3f}"
    for kind, word in (("hbm", "HBM"), ("compiler", "compiler's count")):
        size = found[f"{kind}_bytes_per_image"]
        cells[f"MB an image: {word}"] = f"{size / 1e6:,.1f}"
    for kind, row in sorted(found["collectives"].items()):
        cells[f"{kind}s: runs; MB; MB a chip sends"] = (
            f"{row['count']:,}; {row['bytes'] / 1e6:,.1f}; {row['sent'] / 1e6:,.1f}"
        )
    for name, seconds in plan.bounds.items():
        cells[f"at least, ms: {name}"] = f"{seconds * 1e3:,.2f}"
    cells["bound by"] = found["bound_by"]
    for name, seconds in plan.times.items():
        least, most = LEAST_AND_MOST[name]
        rates = [
            found[f"{name}_images_per_second{of}"]
            for of in ("_of_a_chip", "_of_a_host", "")
        ]
        cells[f"images/s of a chip; of a host; all: {most}"] = "; ".join(
            f"{rate:,.0f}" if rate >= 100 else f"{rate:.3g}" for rate in rates
        )
        hours = "- (how many examples? --examples N)"
        if found[f"{name}_hours"] is not None:
            hours = f"{found[f'{name}_hours']:,.2f}; {found[f'{name}_chip_hours']:,.1f}"
        cells[f"hours; chip-hours: {least}"] = hours
        if plan.measured:
            difference = f"{seconds / plan.measured - 1:+.0%}"
            cells[f"ms a step; from measured: {least}"] = (
                f"{seconds * 1e3:,.1f}; {difference}"
            )
    return cells


def _figures(chip: Chip) -> str:
    """Returns the line of a chip's published or measured figures."""
    shared = f", shared by {chip.devices} JAX devices" if chip.devices > 1 else ""
    return (
        f"{chip.name}: {chip.flops / 1e12:,.4g} TFLOP/s, memory "
        f"{chip.bandwidth / 1e9:,.4g} GB/s, a link {chip.link / 1e9:,.4g} GB/s"
        f"{shared} ({chip.source})"
    )
