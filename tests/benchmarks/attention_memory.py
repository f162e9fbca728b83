"""Memory of a residual block of local attention, with and without unfolded windows.

python tests/benchmarks/attention_memory.py
python tests/benchmarks/attention_memory.py --topology v5e:2x2
"""

import functools
import math

import flax.linen as nn
import jax
import jax.numpy as jnp
from command import make_parser

from vt_flax.cli import startup, tables
from vt_flax.models import create_model
from vt_flax.models.comparison.local_attention import ATTENTION
from vt_flax.models.comparison.san import SANBlock
from vt_flax.models.comparison.san_attention import (
    PairwiseAttention,
    PatchwiseAttention,
)
from vt_flax.models.resnet import BottleneckBlock
from vt_flax.parallel import devices
from vt_flax.plan.tpu_compiler import tpu_devices

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


def measure(device):
    """Returns MB of a map, and of working memory by `attention`, for each block."""
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


def main(argv):
    parser = make_parser(__doc__, config=False)
    parser.add_argument("--topology", metavar="NAME", help="such as v5e:2x2")
    args = parser.parse_args(argv)
    if not args.topology:
        devices.start_devices()
    candidates = tpu_devices(args.topology) if args.topology else jax.devices()
    rows = measure(candidates[0])
    title = f"MB of a block's forward and backward pass, {args.topology or 'here'}"
    tables.print_rows(rows, args.format, title)


if __name__ == "__main__":
    startup.run(main)
