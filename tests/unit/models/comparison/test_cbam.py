"""CBAM-ResNet: both gates and the gated block in NumPy, and the published counts."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from block_reference import dense, residual_block, sigmoid
from reference import check, convolve, near, normal

from vt_flax.models import create_model
from vt_flax.models.comparison.cbam import SpatialGate, maximum
from vt_flax.models.comparison.se import ChannelGate
from vt_flax.models.resnet import BasicBlock, BottleneckBlock
from vt_flax.paper.macs import count


def channel_gate(p, x):
    """x sigmoid(M(mean over the pixels) + M(maximum over the pixels))."""

    def m(z):
        return dense(p, np.maximum(dense(p, z, "reduce"), 0), "expand")

    return x * sigmoid(m(x.mean((1, 2))) + m(x.max((1, 2))))[:, None, None]


def spatial_gate(p, x):
    """x sigmoid(BN(f([maximum over the channels; mean over the channels])))."""
    pooled = np.stack([x.max(-1), x.mean(-1)], -1)
    weights = convolve(pooled, p.get("conv", "kernel"), 1)
    assert p.get("conv", "kernel").shape == (7, 7, 2, 1)
    return x * sigmoid(p.normalize(weights, "norm"))


def gates(p, x):
    """The channel gate, then the spatial gate."""
    return spatial_gate(p / "spatial", channel_gate(p / "channel", x))


SHAPES = [(2, 5, 7, 32), (3, 1, 2, 48), (1, 9, 3, 6)]


@pytest.mark.parametrize("shape", SHAPES)
def test_channel_gate(shape):
    gate = ChannelGate(poolings=(jnp.mean, maximum))
    check(gate, channel_gate, normal(0, *shape), train=False)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("train", [False, True])
def test_spatial_gate(shape, train):
    check(SpatialGate(), spatial_gate, normal(1, *shape), train=train)


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_maximum(axis):
    """The gradient goes to the first of the largest; half of the maxima are ties."""
    x = np.random.default_rng(4).integers(0, 3, (4, 5, 6)).astype(np.float32)
    weights = normal(5, *np.delete(x.shape, axis))
    value, gradient = jax.jit(
        jax.value_and_grad(lambda x: jnp.sum(maximum(x, axis) * weights))
    )(x)
    near(value, np.sum(x.max(axis) * weights), 1e-6)
    expected = np.zeros_like(x)
    first = np.expand_dims(x.argmax(axis), axis)
    np.put_along_axis(expected, first, np.expand_dims(weights, axis), axis)
    np.testing.assert_array_equal(gradient, expected)


@pytest.mark.parametrize("bottleneck,stride", [(False, 2), (True, 1)])
def test_block(bottleneck, stride):
    """Both gates stand after the last BatchNorm, before the sum."""
    kind = BottleneckBlock if bottleneck else BasicBlock
    check(
        kind(16, stride, **create_model("cbam_resnet50").block_options(3)),
        lambda p, x: residual_block(p, x, stride, gate=gates),
        normal(2, 4, 5, 7, 16),
        train=True,
    )


# Parameters of torchvision's ResNets.
PLAIN = {18: 11_689_512, 34: 21_797_672, 50: 25_557_032, 101: 44_549_160}
# Printed MMACs; those of SE-ResNet are 0.9 to 6 less.
PRINTED = {18: 1815, 34: 3664, 50: 3864, 101: 7581}


@pytest.mark.slow
@pytest.mark.parametrize("depth", list(PRINTED))
def test_counts(depth):
    """SE's parameters and 100 a block; MACs of the variant that strides first."""
    variant = "msra" if depth >= 50 else "torchvision"
    model = create_model(f"cbam_resnet{depth}", variant=variant)
    params = PLAIN[depth]
    for i, blocks in enumerate(model.stage_sizes):
        c = 64 * 2**i * (4 if depth >= 50 else 1)
        params += blocks * (2 * c * (c // 16) + c // 16 + c + 100)
    counts = count(model)
    assert counts.total_params == params
    assert counts.total_macs / 1e6 == pytest.approx(PRINTED[depth], rel=5e-4)
