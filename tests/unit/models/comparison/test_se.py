"""SE-ResNet: the gate and the gated block in NumPy, and the published counts."""

import jax
import numpy as np
import pytest
from block_reference import dense, residual_block, sigmoid
from reference import check, normal

from vt_flax.errors import UserError
from vt_flax.models import create_model
from vt_flax.models.comparison.se import ChannelGate
from vt_flax.models.resnet import BasicBlock, BottleneckBlock
from vt_flax.paper.macs import count

DEPTHS = {18: (2, 2, 2, 2), 34: (3, 4, 6, 3), 50: (3, 4, 6, 3), 101: (3, 4, 23, 3)}


def gate(p, x):
    """s = sigmoid(W_2 ReLU(W_1 z)), z the mean over the pixels; x s."""
    hidden = np.maximum(dense(p, x.mean((1, 2)), "reduce"), 0)
    return x * sigmoid(dense(p, hidden, "expand"))[:, None, None]


@pytest.mark.parametrize("shape", [(2, 5, 7, 32), (3, 1, 1, 48), (1, 8, 3, 6)])
def test_gate(shape):
    check(ChannelGate(), gate, normal(0, *shape), train=False)


@pytest.mark.parametrize(
    "bottleneck,stride,variant",
    [(False, 1, "torchvision"), (True, 2, "torchvision"), (True, 2, "msra")],
)
def test_block(bottleneck, stride, variant):
    """The gate stands after the last BatchNorm, before the sum."""
    options = create_model("se_resnet50").block_options(3)
    block = BasicBlock(16, stride, **options)
    if bottleneck:
        block = BottleneckBlock(16, stride, variant=variant, **options)
    check(
        block,
        lambda p, x: residual_block(p, x, stride, variant, gate),
        normal(1, 4, 5, 7, 16),
        train=True,
    )


@pytest.mark.parametrize(
    "channels, multiple, width", [(64, 1, 4), (64, 8, 8), (320, 8, 24), (6, 1, 1)]
)
def test_reduced_width(channels, multiple, width):
    x = jax.ShapeDtypeStruct((1, 2, 2, channels), np.float32)
    gate = ChannelGate(multiple)
    params = jax.eval_shape(lambda x: gate.init(jax.random.key(0), x, train=False), x)
    assert params["params"]["reduce"]["kernel"].shape == (channels, width)


def test_gate_multiple_is_positive():
    with pytest.raises(UserError, match="gate_multiple=0: must be at least 1"):
        create_model("se_resnet18", gate_multiple=0)


# Parameters of torchvision's ResNets.
PLAIN = {18: 11_689_512, 34: 21_797_672, 50: 25_557_032, 101: 44_549_160}
# Printed: M parameters (counted by the arithmetic of section 5), MMACs.
PRINTED = {18: (11.78, 1814), 34: (21.96, 3664), 50: (28.09, 3860), 101: (49.33, 7575)}


@pytest.mark.slow
@pytest.mark.parametrize("depth", list(DEPTHS))
def test_counts(depth):
    """The MACs are printed of the variant that strides in the first 1 x 1."""
    variant = "msra" if depth >= 50 else "torchvision"
    counts = count(create_model(f"se_resnet{depth}", variant=variant))
    gates = 0
    for i, blocks in enumerate(DEPTHS[depth]):
        c = 64 * 2**i * (4 if depth >= 50 else 1)
        gates += blocks * (2 * c * (c // 16) + c // 16 + c)
    assert counts.total_params == PLAIN[depth] + gates
    params, mmacs = PRINTED[depth]
    assert counts.total_params / 1e6 == pytest.approx(params, abs=0.005)
    assert counts.total_macs / 1e6 == pytest.approx(mmacs, abs=1)
