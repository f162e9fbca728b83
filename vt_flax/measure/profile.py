"""`benchmark profile`: where the time of a training step goes, by JAX's profiler."""

import collections
import pathlib
from collections.abc import Sequence
from typing import Any

import jax
from ml_collections import ConfigDict

from vt_flax.errors import UserError
from vt_flax.measure.step import short
from vt_flax.paper.macs import products
from vt_flax.parallel.mesh import describe, make_mesh
from vt_flax.paths import writing
from vt_flax.plan.hlo import Instruction, Program
from vt_flax.plan.machine import measured_peak
from vt_flax.plan.step import Step
from vt_flax.plan.traffic import KINDS
from vt_flax.training.config_rules import check_step

# Kind of an instruction that is, or fuses, one of these; the first that matches counts.
KIND_OF_OPCODE = {
    "convolution": "convolutions",
    "dot": "products of matrices",
    "custom-call": "kernels and library calls",
    **dict.fromkeys(KINDS, "collectives"),
}
# An instruction of these opcodes alone only moves data.
MOVES = (
    *("bitcast", "broadcast", "concatenate", "constant", "convert", "copy", "iota"),
    *("fusion", "get-tuple-element", "pad", "parameter", "reshape", "reverse"),
    *("slice", "transpose", "tuple"),
)
# The computations that these run are listed themselves.
CALLERS = ("while", "call", "conditional")
PRODUCTS = ("convolutions", "products of matrices")


def profile(
    config: ConfigDict, batch: int, steps: int, folder: pathlib.Path
) -> tuple[list[dict[str, Any]], list[str]]:
    """Runs some training steps under JAX's profiler.

    Args:
      config: a resolved configuration.
      batch: batch size.
      steps: number of profiled steps, after two that are not.
      folder: folder to write the trace to, for TensorBoard and Perfetto.

    Returns:
      A record for each kind of work of a step, the most expensive first: milliseconds,
      their share of all, and the most expensive instruction with its share. And notes.

    Raises:
      UserError: if the devices cannot share the batch, the folder cannot be made, or
        the profiler recorded nothing of them.
    """
    mesh = make_mesh(fsdp=config.parallel.fsdp)
    check_step(config, mesh.size)
    # The profiler itself would only fail after the work.
    with writing(f"--trace {folder}"):
        folder.mkdir(parents=True, exist_ok=True)
    step = Step(config, mesh, batch)
    traced = step.trace()
    program = Program(traced.lower().compile().as_text())
    step.start()
    step.seconds()
    with jax.profiler.trace(folder):
        seconds = step.seconds(steps)
    found = _times(folder)
    if not found:
        raise UserError(f"{folder}: the profiler has seen no work of {describe(mesh)}")
    each = {name: time / steps / mesh.size for name, time in found.items()}
    records = shares(program, each)
    macs = sum(count for _, count in products(traced.jaxpr.jaxpr, padding=False))
    busy = sum(r["ms"] for r in records if r["kind"] in PRODUCTS) / 1e3
    notes = [f"{describe(mesh)}: {seconds * 1e3:,.1f} ms a step, under the profiler"]
    if busy:
        rate = 2 * macs / mesh.size / busy
        peak = measured_peak(mesh, config.model.dtype) / mesh.size
        notes.append(
            f"convolutions and products, {2 * macs / 1e9:,.1f} GFLOP a step: "
            f"{rate / 1e9:,.4g} GFLOP/s, {rate / peak:.0%} of a large product of "
            "matrices here"
        )
    return records, notes


def shares(program: Program, times: dict[str, float]) -> list[dict[str, Any]]:
    """Returns the records of `profile` from seconds by instruction name."""
    totals: dict[tuple[str, str], float] = collections.Counter()
    dearest: dict[tuple[str, str], tuple[float, str]] = {}
    for one, _, _ in program.executed():
        if one.opcode in CALLERS or one.name not in times:
            continue
        inside = [one]
        if one.opcode == "fusion":
            inside += [fused for fused, _ in program.fused(one)]
        source = next(filter(None, map(_source, inside)), "")
        key = _kind(inside), _pass(source)
        totals[key] += times[one.name]
        named = times[one.name], source.partition("/")[2] or one.name
        dearest[key] = max(dearest.get(key, named), named)
    whole = sum(totals.values())
    return [
        {
            "kind": kind,
            "pass": way,
            "ms": short(total * 1e3),
            "share": round(total / whole, 4),
            "dearest": dearest[kind, way][1],
            "its_share": round(dearest[kind, way][0] / whole, 4),
        }
        for (kind, way), total in sorted(totals.items(), key=lambda item: -item[1])
    ]


def _times(folder: pathlib.Path) -> dict[str, float]:
    """Returns seconds by instruction, over all devices, of the newest trace."""
    # Each trace has a folder, named by its time.
    (*_, newest) = sorted((folder / "plugins" / "profile").iterdir())
    times: dict[str, float] = collections.Counter()
    for file in newest.glob("*.xplane.pb"):
        for plane in jax.profiler.ProfileData.from_file(str(file)).planes:
            for line in plane.lines:
                for event in line.events:
                    named = dict(event.stats).get("hlo_op")
                    if named == event.name:
                        times[named] += event.duration_ns / 1e9
    return times


def _kind(inside: Sequence[Instruction]) -> str:
    codes = {each.opcode.removesuffix("-start") for each in inside}
    for code, kind in KIND_OF_OPCODE.items():
        if code in codes:
            return kind
    return "moves" if codes <= {*MOVES} else "element by element, and sums"


def _pass(source: str) -> str:
    """Returns which pass of the step an operation name of JAX belongs to."""
    if "transpose(" in source:
        return "backward"
    return "forward" if "jvp(" in source else "the rest"


def _source(one: Instruction) -> str:
    """Returns the operation name that JAX gave an instruction, if any."""
    _, _, after = one.rest.partition('op_name="')
    return after.partition('"')[0]
