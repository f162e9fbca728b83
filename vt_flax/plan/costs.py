"""Costs of a training step on a device, as traced and as compiled."""

import math
from typing import Any

import jax
from jax.sharding import Mesh

from vt_flax.paper.macs import count, products
from vt_flax.plan.hlo import Program
from vt_flax.plan.step import MeshStep
from vt_flax.plan.traffic import find_collectives, memory_traffic


def read_costs(step: MeshStep) -> dict[str, Any]:
    """Compiles a training step and returns its costs, of one device and one step.

    For a TPU topology compiling takes minutes.

    Returns:
      `macs`: multiply-adds of its products, without those of padding. `forward_macs`:
      those of the network for one image, as `summarize` has them. `traffic`: bytes to
      and from HBM, see `memory_traffic`. `arguments`: bytes of the step's arguments and
      results, a lower bound of that. `bytes`: bytes moved, on the chip too, as the
      compiler counts them, loops once. `memory`: bytes at the peak by content, see
      `_memory`. `collectives`: see `find_collectives`. `unknown_loops`: number of loops
      of unknown length, which count once.
    """
    traced = step.trace()
    compiled = traced.lower().compile()
    program = Program(compiled.as_text())
    memory = compiled.memory_analysis()
    macs = sum(amount for _, amount in products(traced.jaxpr.jaxpr, padding=False))
    return {
        "macs": macs / step.mesh.size,
        "forward_macs": count(step.model, step.size).total_macs,
        "traffic": memory_traffic(program),
        "arguments": memory.argument_size_in_bytes + memory.output_size_in_bytes,
        "bytes": compiled.cost_analysis()["bytes accessed"],
        "memory": _memory(step, memory),
        "collectives": find_collectives(program, _chips(step.mesh)),
        "unknown_loops": program.unknown,
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


def _memory(step: MeshStep, memory: Any) -> dict[str, int]:
    """Returns bytes at the peak, and of them those of the step's arguments.

    The rest, `working`, holds activations, gradients, temporaries and padding.
    """
    state, batch, teacher = step.arguments()
    contents = {
        "parameters": (state.params, state.batch_stats),
        "optimizer": state.opt_state,
        "ema": (state.ema_params, state.ema_batch_stats),
        "batch": batch,
        "teacher": teacher,
    }
    sizes = {name: _bytes(tree) for name, tree in contents.items()}
    # Some compilers report no peak.
    peak = max(
        memory.peak_memory_in_bytes,
        memory.argument_size_in_bytes
        + memory.output_size_in_bytes
        - memory.alias_size_in_bytes
        + memory.temp_size_in_bytes,
    )
    return {"peak": peak, **sizes, "working": peak - sum(sizes.values())}


def _bytes(tree: Any) -> int:
    """Returns the bytes per device of sharded arrays."""
    return sum(
        math.prod(leaf.sharding.shard_shape(leaf.shape)) * leaf.dtype.itemsize
        for leaf in jax.tree.leaves(tree)
    )
