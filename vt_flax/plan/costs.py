"""Costs of a training step on a device, as traced and as compiled."""

import contextlib
import hashlib
import json
import math
import os
import pathlib
from typing import Any

import jax
from jax.sharding import Mesh

from vt_flax.paper.macs import count, products
from vt_flax.paths import write_whole
from vt_flax.plan.collectives import find_collectives
from vt_flax.plan.hlo import Program
from vt_flax.plan.step import MeshStep
from vt_flax.plan.tpu_compiler import libtpu_version
from vt_flax.plan.traffic import memory_traffic
from vt_flax.version import versions

CACHE = "~/.cache/vt_flax/plan"
# Environment variables with options of the compilers.
VARIABLES = ("XLA_FLAGS", "LIBTPU_INIT_ARGS")


def read_costs(step: MeshStep, topology: str = "") -> dict[str, Any]:
    """Compiles a training step and returns its costs, of one device and one step.

    Args:
      step: the step, on its mesh.
      topology: name of the mesh's TPU topology, for which compiling takes minutes: the
        costs are kept in CACHE, and a program that was compiled before is not compiled
        again. Empty for devices of this machine.

    Returns:
      `macs`: multiply-adds of its products, without those of padding. `forward_macs`:
      those of the network for one image, as `summarize` has them. `traffic`: bytes to
      and from HBM, see `memory_traffic`. `arguments`: bytes of the step's arguments and
      results, a lower bound of that. `flops` and `bytes`: operations and bytes moved,
      on the chip too, as the compiler counts them, loops once. `memory`: bytes at the
      peak by content, see `_memory`. `collectives`: see `find_collectives`.
      `unknown_loops`: number of loops of unknown length, which count once.
    """
    traced = step.trace()
    lowered = traced.lower()
    file = _cache_file(lowered.as_text(), topology) if topology else None
    if file and file.exists():
        return json.loads(file.read_text())
    compiled = lowered.compile()
    program = Program(compiled.as_text())
    counted, memory = compiled.cost_analysis(), compiled.memory_analysis()
    macs = sum(amount for _, amount in products(traced.jaxpr.jaxpr, padding=False))
    costs = {
        "macs": macs / step.mesh.size,
        "forward_macs": count(step.model, step.size).total_macs,
        "traffic": memory_traffic(program),
        "arguments": memory.argument_size_in_bytes + memory.output_size_in_bytes,
        "flops": counted["flops"],
        "bytes": counted["bytes accessed"],
        "memory": _memory(step, memory),
        "collectives": find_collectives(program, _chips(step.mesh)),
        "unknown_loops": program.unknown,
    }
    if file:
        # Without a writable home folder nothing is kept.
        with contextlib.suppress(OSError):
            file.parent.mkdir(parents=True, exist_ok=True)
            write_whole(file, json.dumps(costs))
    return costs


def _cache_file(program: str, topology: str) -> pathlib.Path:
    """Returns the file of a program's costs, by all that decides them."""
    libraries = versions() | {"libtpu": libtpu_version()}
    options = {name: os.environ.get(name) for name in VARIABLES}
    key = json.dumps([program, topology, libraries, options], sort_keys=True)
    name = hashlib.sha256(key.encode()).hexdigest()[:32]
    return pathlib.Path(CACHE).expanduser() / f"{name}.json"


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
