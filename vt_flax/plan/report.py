"""Reports of plans: records, and tables with a column for each plan."""

from collections.abc import Sequence
from typing import Any

from vt_flax.plan.planning import Plan
from vt_flax.plan.topology import GIB, HERE, Chip

MIB = 2**20
SHARES = ("parameters", "optimizer", "averages", "batch", "teacher", "working")


def record(plan: Plan) -> dict[str, Any]:
    """Returns all of a plan, of a device and a step where the name says nothing else.

    Bytes, seconds, multiply-adds; `bound_` and `estimate_` say which a figure is.
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


def title(plans: Sequence[Plan]) -> str:
    """Returns the line above a table."""
    config = plans[0].case.make(plans[0].case.batch)
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
        *(
            f"{chip.name}: {chip.flops / 1e12:,.4g} TFLOP/s, memory "
            f"{chip.bandwidth / 1e9:,.4g} GB/s, a link {chip.link / 1e9:,.4g} GB/s"
            f"{_shared(chip)} ({chip.source})"
            for chip in chips.values()
        ),
    ]
    told = {plan.case.facts.told: plan.case.facts.examples for plan in plans}
    found += [
        f"examples in an epoch: {examples:,} ({source})"
        if examples
        else f"examples in an epoch: not known ({source}); state them by --examples"
        for source, examples in told.items()
    ]
    if any(chip.cached for chip in chips.values()):
        found.append(
            "a cache may spare what is moved: the bound by memory has only what a step "
            "is given and returns, the estimate all of it"
        )
    pods = [plan.case for plan in plans if plan.case.place.name != HERE]
    models = [case.make(case.batch).model for case in pods]
    if any(model.get("formulation") == "auto" for model in models):
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


def times(plan: Plan) -> dict[str, float]:
    """Returns a step's seconds: `bound`, `estimate`, and `measured` if it was."""
    found = {"bound": plan.roofline.bound, "estimate": plan.roofline.in_turn}
    return found | ({"measured": plan.measured} if plan.measured else {})


def error(plan: Plan, name: str) -> float:
    """Returns how much longer a step takes by `bound` or `estimate` than measured.

    As a share of the measured time.
    """
    return times(plan)[name] / plan.measured - 1


def columns(plans: Sequence[Plan]) -> list[dict[str, Any]]:
    """Returns the rows of a table with a column for each plan."""
    told = {plan.case.label: _told(plan) for plan in plans}
    # Not all of them have all rows, but all in this order.
    longest = max(told.values(), key=len)
    return [
        {"of a device and a step": key}
        | {label: one.get(key) for label, one in told.items()}
        for key in longest
    ]


def _told(plan: Plan) -> dict[str, str]:
    case, costs, bounds = plan.case, plan.costs, plan.roofline
    place, images = case.place, case.batch / case.place.devices
    memory, available = costs["memory"], place.chip.device.memory
    peak = memory["peak"]
    found = {
        "chips; devices; hosts": f"{place.chips:,}; {place.devices:,}; {place.hosts:,}",
        "batch; a chip": f"{case.batch:,}; {case.batch / place.chips:,.0f}",
        "memory at the peak, GiB": f"{peak / GIB:.2f} of "
        f"{available / GIB:.2f} ({peak / available:.0%})",
        **{
            f"  {name}, MiB": f"{memory[name] / MIB:,.1f} ({memory[name] / peak:.0%})"
            for name in SHARES
            if memory[name] or name != "teacher"
        },
        "GMACs an image: forward; step": f"{costs['forward'] / 1e9:.3f}; "
        f"{costs['macs'] / images / 1e9:.3f}",
        "MB an image: main memory": f"{costs['traffic'] / images / 1e6:,.1f}",
        "MB an image: compiler's count": f"{costs['bytes'] / images / 1e6:,.1f}",
        "collectives: runs; MB": _collectives(costs["collectives"]),
        "at least, ms: compute": f"{bounds.compute * 1e3:,.2f}",
        "at least, ms: memory": f"{bounds.memory * 1e3:,.2f}",
        "at least, ms: interconnect": f"{bounds.interconnect * 1e3:,.2f}",
    }
    if bounds.input:
        found["at least, ms: input"] = f"{bounds.input * 1e3:,.2f}"
    found["bound by"] = bounds.limit
    for name, seconds in times(plan).items():
        word = {"bound": "at most", "estimate": "estimated"}.get(name, name)
        rate = plan.images_per_second(seconds)
        rates = (rate / place.chips, rate / place.hosts, rate)
        found |= {
            f"images/s of a chip; of a host; all: {word}": "; ".join(
                f"{number:,.0f}" if number >= 100 else f"{number:.3g}"
                for number in rates
            ),
            f"hours; chip-hours: {word.replace('most', 'least')}": _hours(
                plan, seconds
            ),
        }
    return found


def _shared(chip: Chip) -> str:
    """Returns what to add to a chip's figures if several devices share them."""
    return f", shared by {chip.devices} JAX devices" if chip.devices > 1 else ""


def _hours(plan: Plan, seconds: float) -> str:
    hours = plan.hours(seconds)
    if hours is None:
        return "- (how many examples? --examples N)"
    return f"{hours:,.2f}; {hours * plan.case.place.chips:,.1f}"


def _collectives(found: dict[str, dict[str, float]]) -> str:
    runs = sum(row["count"] for row in found.values())
    size = sum(row["bytes"] for row in found.values())
    return f"{runs:,}; {size / 1e6:,.1f}"


def sweep_rows(plans: Sequence[Plan]) -> list[dict[str, Any]]:
    """Returns a row for each plan, with the figures that sweeps are made for."""
    rows = []
    for plan in plans:
        case, costs, bounds = plan.case, plan.costs, plan.roofline
        place = case.place
        images = case.batch / place.devices
        moved = costs["collectives"].values()
        rate = plan.images_per_second(bounds.bound)
        hours = plan.hours(bounds.bound)
        rows.append(
            {
                "topology": place.name,
                **case.swept,
                "a chip": round(case.batch / place.chips),
                "GiB": round(costs["memory"]["peak"] / GIB, 2),
                "MB/image": round(costs["traffic"] / images / 1e6, 1),
                "collectives": round(sum(row["count"] for row in moved)),
                "MB sent": round(sum(row["sent"] for row in moved) / 1e6, 1),
                "compute ms": round(bounds.compute * 1e3, 2),
                "memory ms": round(bounds.memory * 1e3, 2),
                "interconnect ms": round(bounds.interconnect * 1e3, 2),
                "bound by": bounds.limit,
                "images/s a chip, at most": round(rate / place.chips),
                "estimated": round(case.batch / bounds.in_turn / place.chips),
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
