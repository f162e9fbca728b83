"""SE-ResNet: the gate and its place against NumPy, and the published counts."""

import jax
import numpy as np
import pytest
from block_reference import dense, residual_block, sigmoid
from reference import check, check_bfloat16, check_gradients, normal

from vt_flax.analysis.macs import count
from vt_flax.errors import UserError
from vt_flax.models import create_model
from vt_flax.models.comparison.se import ChannelGate
from vt_flax.models.resnet import ResidualBlock

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
    """The gate stands after the last normalisation, before the sum."""
    parts = create_model("se_resnet50").block_parts(3)
    block = ResidualBlock(16, stride, bottleneck, variant, parts=parts)
    check(
        block,
        lambda p, x: residual_block(p, x, stride, variant, gate),
        normal(1, 4, 5, 7, 16),
        train=True,
    )


@pytest.mark.parametrize(
    "channels, multiple, width", [(64, 1, 4), (64, 8, 8), (320, 8, 24), (6, 1, 1)]
)
def test_width_of_a_gate(channels, multiple, width):
    x = normal(3, 1, 2, 2, channels)
    params = ChannelGate(multiple=multiple).init(jax.random.key(0), x, train=False)
    assert params["params"]["reduce"]["kernel"].shape == (channels, width)


def test_width_that_is_none():
    with pytest.raises(UserError, match="gate_multiple 0"):
        count(create_model("se_resnet18", gate_multiple=0))


def test_gate_in_bfloat16_and_gradients():
    x = normal(2, 2, 5, 4, 32)
    check_bfloat16(lambda dtype: ChannelGate(dtype), x)
    check_gradients(ChannelGate(), x)


# Parameters of torchvision's networks.
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
