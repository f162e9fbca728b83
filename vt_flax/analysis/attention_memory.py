"""Memory of a residual block of local attention, with and without unfolded windows.

`python -m vt_flax.analysis.attention_memory` runs in a process of its own: it reads a
topology as JSON and prints the rows.
"""

import functools
import json
import math
import sys
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from vt_flax.errors import UserError
from vt_flax.models import create_model
from vt_flax.models.comparison.local_attention import ATTENTION
from vt_flax.models.comparison.san import SANBlock
from vt_flax.models.comparison.san_attention import (
    PairwiseAttention,
    PatchwiseAttention,
)
from vt_flax.models.resnet import BottleneckBlock
from vt_flax.plan.tpu_compiler import compile_apart, read_request, tpu_devices

# Input of a block of stage 2, in all networks.
SHAPE = (32, 56, 56, 256)
BLOCKS = ("LR-Net", "Stand-Alone", "SAN pairwise", "SAN patchwise")


def make_block(name: str, attention: str) -> nn.Module:
    """Returns a residual block of BLOCKS with a 7 x 7 window and 256 channels."""
    if name.startswith("SAN"):
        kind = {"SAN pairwise": PairwiseAttention, "SAN patchwise": PatchwiseAttention}
        return SANBlock(functools.partial(kind[name], 7, attention))
    network = {"LR-Net": "lr_net50", "Stand-Alone": "sasa_resnet50"}[name]
    model = create_model(network, attention=attention)
    return BottleneckBlock(model.stage_width(2), **model.block_options(2))


def working_memory(block: nn.Module, device: jax.Device) -> int:
    """Returns the bytes that a block's forward and backward pass need on a device.

    These are the temporary buffers that the compiler allocates, without the block's
    input, parameters and gradients. Nothing is run.
    """
    x = jax.ShapeDtypeStruct(SHAPE, jnp.float32)
    variables = jax.eval_shape(
        lambda x: block.init(jax.random.key(0), x, train=False), x
    )

    def gradients(variables, x, cotangent):
        def run(variables, x):
            return block.apply(variables, x, train=True, mutable=["batch_stats"])

        _, pull, state = jax.vjp(run, variables, x, has_aux=True)
        return pull(cotangent), state

    sharding = jax.sharding.SingleDeviceSharding(device)
    arguments = jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding),
        (variables, x, x),
    )
    compiled = jax.jit(gradients).lower(*arguments).compile()
    return compiled.memory_analysis().temp_size_in_bytes


def rows(topology: str = "") -> list[dict[str, Any]]:
    """Compares the memory of each block by `attention`.

    Args:
      topology: such as `v5e:2x2`, to compile for one device of it; empty for this
        machine's first device.

    Returns:
      Records with the block, MB of a map, MB of each `attention` and their ratio.

    Raises:
      UserError: if libtpu is missing, or cannot compile the block.
    """
    if topology:
        programs = len(BLOCKS) * len(ATTENTION)
        return compile_apart(
            "vt_flax.analysis.attention_memory", {"topology": topology}, programs
        )
    return _rows(jax.devices()[0])


def _rows(device: jax.Device) -> list[dict[str, Any]]:
    found = []
    for name in BLOCKS:
        memory = {
            attention: working_memory(make_block(name, attention), device) / 1e6
            for attention in ATTENTION
        }
        found.append(
            {
                "block": name,
                "MB of a map": round(4 * math.prod(SHAPE) / 1e6, 1),
                **{key: round(value, 1) for key, value in memory.items()},
                "ratio": round(memory["unfold"] / memory["scan"], 2),
            }
        )
    return found


if __name__ == "__main__":
    try:
        device = tpu_devices(read_request()["topology"])[0]
        print(json.dumps(_rows(device)))
    except UserError as error:
        sys.exit(str(error))
