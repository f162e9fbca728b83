"""Reports of plans: records, and tables with a column or a row for each plan."""

from collections.abc import Sequence
from typing import Any

from vt_flax.plan.planning import Plan
from vt_flax.plan.topology import GIB, HERE, Chip

MIB = 2**20
# What a device's memory holds.
CONTENTS = ("parameters", "optimizer", "averages", "batch", "teacher", "working")


def record(plan: Plan) -> dict[str, Any]:
    """Returns a plan in bytes, seconds and multiply-adds, of a device and a step.

    Keys that begin with `bound_` and `estimate_` say which a figure is.
    """
    case, costs, bounds = plan.case, plan.costs, plan.roofline
    place, images = case.place, case.batch / case.place.devices
    found = {
        "topology": place.name,
        **case.swept,
        "chip": place.chip.name,
        "chips": place.chips,
        "devices": place.devices,
        "hosts": place.hosts,
        "batch": case.batch,
        "memory_available": place.chip.device.memory,
        **{f"memory_{key}": value for key, value in costs["memory"].items()},
        "forward_macs_per_image": costs["forward"],
        "macs": round(costs["macs"]),
        "macs_per_image": round(costs["macs"] / images),
        "main_memory_bytes": costs["traffic"],
        "main_memory_bytes_per_image": round(costs["traffic"] / images),
        "compiler_bytes_per_image": round(costs["bytes"] / images),
        "compiler_flops_per_image": round(costs["flops"] / images),
        "collectives": costs["collectives"],
        "loops_of_unknown_length": costs["unknown"],
        "recomputed_instructions": costs["recomputed"],
        "compile_seconds": costs["compile"],
        "bound_compute_seconds": bounds.compute,
        "bound_memory_seconds": bounds.memory,
        "bound_interconnect_seconds": bounds.interconnect,
        "bound_input_seconds": bounds.input,
        "bound_by": bounds.limit,
        "examples": case.facts.examples or None,
        "steps": plan.steps or None,
    }
    for name, seconds in times(plan).items():
        rate = plan.images_per_second(seconds)
        hours = plan.hours(seconds)
        found |= {
            f"{name}_seconds": seconds,
            f"{name}_images_per_second": rate,
            f"{name}_images_per_second_of_a_chip": rate / place.chips,
            f"{name}_images_per_second_of_a_host": rate / place.hosts,
            f"{name}_hours": hours,
            f"{name}_chip_hours": hours and hours * place.chips,
        }
    if plan.measured:
        found |= {f"{name}_error": error(plan, name) for name in ("bound", "estimate")}
    return found


def times(plan: Plan) -> dict[str, float]:
    """Returns seconds per step: `bound`, `estimate`, and `measured` if it was run."""
    found = {"bound": plan.roofline.bound, "estimate": plan.roofline.in_turn}
    return found | ({"measured": plan.measured} if plan.measured else {})


def error(plan: Plan, name: str) -> float:
    """Returns the relative difference of `bound` or `estimate` from measured time."""
    return times(plan)[name] / plan.measured - 1


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
        "at least, at most: bounds; each part of a chip at its best all the time, all "
        "at once. estimated: compute, memory and interconnect in turn, each at its "
        "best. In neither are the latency of collectives, evaluations, checkpoints. "
        "images/s of a host is what its input must deliver.",
        *map(_figures, chips.values()),
    ]
    for facts in dict.fromkeys(plan.case.facts for plan in plans):
        known = f"{facts.examples:,} ({facts.source})"
        unknown = f"not known ({facts.source}); state them by --examples"
        found.append(f"examples in an epoch: {known if facts.examples else unknown}")
    if any(chip.cached for chip in chips.values()):
        found.append(
            "a cache may save memory traffic: the bound by memory has only what a step "
            "is given and returns, the estimate all of it"
        )
    pods = [plan.case for plan in plans if plan.case.place.name != HERE]
    if any(case.config.model.get("formulation") == "auto" for case in pods):
        found.append(
            "model.formulation=auto is planned as printed; a run on the chips times "
            "all formulations and takes the fastest: plan another by "
            "--config.model.formulation=fused, all by "
            "--sweep model.formulation=printed,folded,fused"
        )
    for plan in plans:
        if unknown := plan.costs["unknown"]:
            found.append(
                f"{plan.case.label}: {unknown} loops do not say how often they run; "
                "they count once"
            )
        if again := plan.costs["recomputed"]:
            found.append(
                f"{plan.case.label}: the compiler computes {again} results twice, to "
                "save memory"
            )
        if plan.measured:
            bound, estimate = (error(plan, name) for name in ("bound", "estimate"))
            found.append(
                f"measured: {plan.measured * 1e3:,.1f} ms a step, from which the bound "
                f"is {bound:+.0%} away and the estimate {estimate:+.0%}"
            )
    return found


def columns(plans: Sequence[Plan]) -> list[dict[str, Any]]:
    """Returns the rows of a table with a column for each plan."""
    cells = {plan.case.label: _cells(plan) for plan in plans}
    # Not all plans have all rows, but all in this order.
    longest = max(cells.values(), key=len)
    return [
        {"of a device and a step": key}
        | {label: one.get(key) for label, one in cells.items()}
        for key in longest
    ]


def sweep_rows(plans: Sequence[Plan]) -> list[dict[str, Any]]:
    """Returns a row for each plan, with the figures that sweeps are made for."""
    rows = []
    for plan in plans:
        found, bounds = record(plan), plan.roofline
        collectives, hours = found["collectives"].values(), found["bound_hours"]
        rows.append(
            {
                "topology": found["topology"],
                **plan.case.swept,
                "a chip": round(found["batch"] / found["chips"]),
                "GiB": round(found["memory_peak"] / GIB, 2),
                "MB/image": round(found["main_memory_bytes_per_image"] / 1e6, 1),
                "collectives": round(sum(row["count"] for row in collectives)),
                "MB sent": round(sum(row["sent"] for row in collectives) / 1e6, 1),
                "compute ms": round(bounds.compute * 1e3, 2),
                "memory ms": round(bounds.memory * 1e3, 2),
                "interconnect ms": round(bounds.interconnect * 1e3, 2),
                "bound by": bounds.limit,
                "images/s a chip, at most": round(
                    found["bound_images_per_second_of_a_chip"]
                ),
                "estimated": round(found["estimate_images_per_second_of_a_chip"]),
                "hours, at least": hours and round(hours, 2),
            }
        )
    return rows


def collective_rows(plans: Sequence[Plan]) -> list[dict[str, Any]]:
    """Returns a row for each kind of collective of each plan."""
    return [
        {
            "plan": plan.case.label,
            "collective": kind,
            "runs in a step": row["count"],
            "of them in loops": row["looped"],
            "MB": round(row["bytes"] / 1e6, 3),
            "MB a chip sends": round(row["sent"] / 1e6, 3),
        }
        for plan in plans
        for kind, row in sorted(plan.costs["collectives"].items())
    ]


def _cells(plan: Plan) -> dict[str, str]:
    """Returns the column of a plan."""
    found, costs, bounds = record(plan), plan.costs, plan.roofline
    memory, available = costs["memory"], found["memory_available"]
    peak, chips = memory["peak"], found["chips"]
    images = found["batch"] / found["devices"]
    collectives = costs["collectives"].values()
    runs, size = (sum(row[key] for row in collectives) for key in ("count", "bytes"))
    cells = {
        "chips; devices; hosts": f"{chips:,}; {found['devices']:,}; {found['hosts']:,}",
        "batch; a chip": f"{found['batch']:,}; {found['batch'] / chips:,.0f}",
        "memory at the peak, GiB": f"{peak / GIB:.2f} of "
        f"{available / GIB:.2f} ({peak / available:.0%})",
        **{
            f"  {name}, MiB": f"{memory[name] / MIB:,.1f} ({memory[name] / peak:.0%})"
            for name in CONTENTS
            if memory[name] or name != "teacher"
        },
        "GMACs an image: forward; step": f"{costs['forward'] / 1e9:.3f}; "
        f"{found['macs_per_image'] / 1e9:.3f}",
        "MB an image: main memory": f"{costs['traffic'] / images / 1e6:,.1f}",
        "MB an image: compiler's count": f"{costs['bytes'] / images / 1e6:,.1f}",
        "collectives: runs; MB": f"{runs:,}; {size / 1e6:,.1f}",
        "at least, ms: compute": f"{bounds.compute * 1e3:,.2f}",
        "at least, ms: memory": f"{bounds.memory * 1e3:,.2f}",
        "at least, ms: interconnect": f"{bounds.interconnect * 1e3:,.2f}",
    }
    if bounds.input:
        cells["at least, ms: input"] = f"{bounds.input * 1e3:,.2f}"
    cells["bound by"] = bounds.limit
    for name in times(plan):
        word = {"bound": "at most", "estimate": "estimated"}.get(name, name)
        rate = f"{name}_images_per_second"
        rates = (found[f"{rate}_of_a_chip"], found[f"{rate}_of_a_host"], found[rate])
        hours = "- (how many examples? --examples N)"
        if found[f"{name}_hours"] is not None:
            hours = f"{found[f'{name}_hours']:,.2f}; {found[f'{name}_chip_hours']:,.1f}"
        cells |= {
            f"images/s of a chip; of a host; all: {word}": "; ".join(
                f"{number:,.0f}" if number >= 100 else f"{number:.3g}"
                for number in rates
            ),
            f"hours; chip-hours: {word.replace('most', 'least')}": hours,
        }
    return cells


def _figures(chip: Chip) -> str:
    """Returns the line of a chip's published or measured figures."""
    devices = chip.devices
    shared = f", shared by {devices} JAX devices" if devices > 1 else ""
    return (
        f"{chip.name}: {chip.flops / 1e12:,.4g} TFLOP/s, memory "
        f"{chip.bandwidth / 1e9:,.4g} GB/s, a link {chip.link / 1e9:,.4g} GB/s"
        f"{shared} ({chip.source})"
    )
