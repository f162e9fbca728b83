"""SE- and CBAM-ResNet: gates and gated blocks in NumPy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from block_reference import dense, residual_block, sigmoid
from reference import check, convolve, near, normal

from vt_flax.models import create_model
from vt_flax.models.comparison.cbam import maximum
from vt_flax.models.comparison.se import ChannelGate
from vt_flax.models.resnet import BasicBlock, BottleneckBlock


def channel_gate(p, x, poolings=(np.mean,)):
    """x sigmoid(sum of W_2 ReLU(W_1 z)), z the mean over the pixels, or others."""

    def logits(z):
        return dense(p, np.maximum(dense(p, z, "reduce"), 0), "expand")

    gate = sigmoid(sum(logits(pool(x, axis=(1, 2))) for pool in poolings))
    return x * gate[:, None, None]


def spatial_gate(p, x):
    """x sigmoid(BN(f([maximum over the channels; mean over the channels])))."""
    pooled = np.stack([x.max(-1), x.mean(-1)], -1)
    assert p.get("conv", "kernel").shape == (7, 7, 2, 1)
    weights = convolve(pooled, p.get("conv", "kernel"), 1)
    return x * sigmoid(p.normalize(weights, "norm"))


def both_gates(p, x):
    """The channel gate by mean and maximum, then the spatial gate."""
    x = channel_gate(p / "channel", x, (np.mean, np.max))
    return spatial_gate(p / "spatial", x)


@pytest.mark.parametrize(
    "name, kind, stride, variant",
    [
        ("se_resnet18", BasicBlock, 1, "torchvision"),
        ("se_resnet50", BottleneckBlock, 2, "msra"),
        ("cbam_resnet18", BasicBlock, 2, "torchvision"),
        ("cbam_resnet50", BottleneckBlock, 2, "torchvision"),
    ],
)
def test_block(name, kind, stride, variant):
    """The gates stand after the last BatchNorm, before the sum."""
    gate = channel_gate if name.startswith("se") else both_gates
    options = create_model(name).block_options(3)
    if kind is BottleneckBlock:
        options["variant"] = variant
    check(
        kind(16, stride, **options),
        lambda p, x: residual_block(p, x, stride, variant, gate),
        normal(2, 4, 5, 7, 16),
        train=True,
    )


def test_maximum():
    """The gradient goes to the first of the largest; half of the maxima are ties."""
    x = np.random.default_rng(4).integers(0, 3, (4, 5, 6)).astype(np.float32)
    weights = normal(5, 4, 6)
    value, gradient = jax.value_and_grad(lambda x: jnp.sum(maximum(x, 1) * weights))(x)
    near(value, np.sum(x.max(1) * weights), 1e-6)
    expected = np.zeros_like(x)
    np.put_along_axis(expected, x.argmax(1)[:, None], weights[:, None], 1)
    np.testing.assert_array_equal(gradient, expected)


@pytest.mark.parametrize(
    "channels, multiple, width", [(64, 1, 4), (64, 8, 8), (320, 8, 24), (6, 1, 1)]
)
def test_reduced_width(channels, multiple, width):
    x = jax.ShapeDtypeStruct((1, 2, 2, channels), np.float32)
    gate = ChannelGate(multiple)
    params = jax.eval_shape(lambda x: gate.init(jax.random.key(0), x, train=False), x)
    assert params["params"]["reduce"]["kernel"].shape == (channels, width)
