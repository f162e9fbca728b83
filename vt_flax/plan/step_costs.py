"""Costs of a training step on a device, as traced and as compiled."""

import math
import re
import time
from typing import Any

import jax
from jax.sharding import Mesh

from vt_flax.paper.macs import count, products
from vt_flax.plan.collectives import find_collectives, totals
from vt_flax.plan.hlo import Program
from vt_flax.plan.step import MeshStep
from vt_flax.plan.traffic import memory_traffic


def read_costs(step: MeshStep) -> dict[str, Any]:
    """Compiles a training step and returns its costs, of one device and one step.

    Returns:
      `macs`: multiply-adds of its products, traced, without those of zeros around
      images. `forward`: those of the network for one image, as `summarize` has them.
      `traffic`: bytes to and from HBM, see `memory_traffic`. `given`: bytes of the
      step's arguments and results, a lower bound of that. `flops`, `bytes`,
      `temporary`: operations, bytes moved (on the chip too) and bytes of working memory
      as the compiler counts them, loops once. `memory`: bytes at the peak by content,
      see `_memory`. `cycles`: the TPU compiler's estimate outside of kernels; 0 without
      one. `collectives`: by kind, see `collectives.totals`; `sent` is of a chip.
      `unknown`: number of loops of unknown length, which count once. `recomputed`:
      number of instructions that the compiler repeats to save memory. `compile`:
      seconds to compile.
    """
    begin = time.perf_counter()
    traced = step.trace()
    compiled = traced.lower().compile()
    seconds = time.perf_counter() - begin
    program = Program(compiled.as_text())
    cost, memory = compiled.cost_analysis(), compiled.memory_analysis()
    found = find_collectives(program, _chips(step.mesh))
    macs = sum(amount for _, amount in products(traced.jaxpr.jaxpr, padding=False))
    return {
        "macs": macs / step.mesh.size,
        "forward": count(step.model, step.size).total_macs,
        "traffic": memory_traffic(program),
        "given": memory.argument_size_in_bytes + memory.output_size_in_bytes,
        "flops": cost["flops"],
        "bytes": cost["bytes accessed"],
        "temporary": memory.temp_size_in_bytes,
        "memory": _memory(step, memory),
        "cycles": _estimated_cycles(program),
        "collectives": totals(found),
        "unknown": len(program.unknown),
        "recomputed": sum(".remat" in one.name for one, _, _ in program.executed()),
        "compile": round(seconds, 1),
    }


def _chips(mesh: Mesh) -> list[Any]:
    """Returns an identifier of each device's chip, in the order of the devices.

    Only TPUs have several devices on a chip.
    """
    return [
        (getattr(device, "slice_index", 0), *device.coords)
        if device.platform == "tpu"
        else device.id
        for device in mesh.devices.flat
    ]


def _estimated_cycles(program: Program) -> int:
    """Sums the TPU compiler's estimates of cycles, which kernels do not have.

    Bytes and FLOPs do not show work that is neither, such as moving single pixels.
    """
    total = 0
    for one, _, name in program.executed():
        if match := re.search(r'"estimated_cycles":\s*"(\d+)"', one.rest):
            total += program.runs[name] * int(match[1])
    return total


def _memory(step: MeshStep, found: Any) -> dict[str, int]:
    """Returns bytes at the peak, and of them those of the step's arguments.

    The rest, `working`, holds activations, gradients, temporaries and padding.
    """
    state, batch, teacher = step.arguments()
    parts = {
        "parameters": (state.params, state.batch_stats),
        "optimizer": state.opt_state,
        "averages": (state.ema_params, state.ema_batch_stats),
        "batch": batch,
        "teacher": teacher,
    }
    sizes = {name: _bytes(tree) for name, tree in parts.items()}
    # Some compilers report no peak.
    peak = max(
        found.peak_memory_in_bytes,
        found.argument_size_in_bytes
        + found.output_size_in_bytes
        - found.alias_size_in_bytes
        + found.temp_size_in_bytes,
    )
    return {"peak": peak, **sizes, "working": peak - sum(sizes.values())}


def _bytes(tree: Any) -> int:
    """Returns the bytes per device of sharded arrays."""
    return sum(
        math.prod(leaf.sharding.shard_shape(leaf.shape)) * leaf.dtype.itemsize
        for leaf in jax.tree.leaves(tree)
    )
