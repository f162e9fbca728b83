"""AA-ResNet: attention and the augmented block by loops in NumPy, published counts."""

import functools

import block_reference
import jax
import numpy as np
import pytest
from block_reference import Same, attend_relatively, augmented, residual_block, same
from reference import Scope, check, near, normal, variables_of

from vt_flax.errors import UserError
from vt_flax.models import create_model
from vt_flax.models.comparison.aa import AugmentedConv, RelativeAttention, halve
from vt_flax.models.resnet import BasicBlock, BottleneckBlock
from vt_flax.paper.macs import count

HEADS, KEYS, VALUES = 2, 6, 4


def attention():
    return Same(RelativeAttention(HEADS, KEYS, VALUES))


def restated(p, x):
    return attend_relatively(p / "module", x, HEADS, KEYS)


@pytest.mark.slow
@pytest.mark.parametrize("shape", [(2, 5, 4, 8), (1, 1, 1, 6), (3, 1, 7, 5)])
def test_attention(shape):
    check(attention(), restated, normal(0, *shape), train=False)


@pytest.mark.slow
@pytest.mark.parametrize("height,width", [(3, 2), (6, 4), (2, 9)])
def test_attention_on_maps_of_another_size(height, width):
    """Offsets without an embedding use the farthest one."""
    variables = variables_of(attention(), normal(0, 1, 4, 5, 8))
    table = variables["params"]["module"]["rows"]
    assert table.shape == (2 * 4 - 1, KEYS // HEADS)
    x = normal(1, 2, height, width, 8)
    out = jax.jit(lambda v, x: attention().apply(v, x, train=False))(variables, x)
    near(out, restated(Scope(variables), x.astype(np.float64)), 1e-5)


@pytest.mark.parametrize("shape", [(2, 6, 8, 3), (1, 5, 7, 2), (2, 1, 2, 4)])
def test_halve(shape):
    x = normal(3, *shape)
    near(jax.jit(halve)(x), block_reference.halve(x.astype(np.float64)), 1e-6)


@pytest.mark.slow
@pytest.mark.parametrize(
    "size,stride,reduction",
    [
        ((28, 28), 1, 2),
        ((7, 10), 1, 2),
        ((9, 5), 2, 1),
        ((11, 14), 2, 2),
        ((4, 5), 1, 1),
    ],
)
def test_augmented_convolution(size, stride, reduction):
    """28 x 28 maps attended at 14 x 14, odd sizes and strides among them."""
    conv = AugmentedConv(10, 3, stride, HEADS, KEYS, VALUES, reduction)
    x = normal(4, 1, *size, 6)
    check(
        Same(conv),
        same(lambda p, x: augmented(p, x, stride, HEADS, KEYS, reduction)),
        x,
        train=False,
    )
    attended = -(-size[0] // (stride * reduction))
    shapes = jax.eval_shape(conv.init, jax.random.key(0), x)["params"]
    assert shapes["attention"]["rows"].shape == (2 * attended - 1, KEYS // HEADS)
    assert shapes["local"]["kernel"].shape == (3, 3, 6, 10 - VALUES)


@pytest.mark.parametrize("bottleneck,stride", [(False, 1), (True, 2)])
def test_block(bottleneck, stride):
    """The first of two 3 x 3 is augmented, or the 3 x 3 of a bottleneck."""
    model = create_model(f"aa_resnet{50 if bottleneck else 34}", heads=2)
    kind = BottleneckBlock if bottleneck else BasicBlock
    conv = functools.partial(augmented, heads=2, keys=40, reduction=2)
    name = "conv2" if bottleneck else "conv1"
    check(
        kind(16, stride, **model.block_options(3)),
        lambda p, x: residual_block(p, x, stride, replaced={name: conv}),
        normal(0, 2, 5, 7, 16),
        train=False,
    )


# Channels of keys and values of stages 3 to 5: 0.25 F each, or 0.2 F and 0.1 F,
# rounded down to multiples of eight heads, with at least 20 key channels per head.
CHANNELS = {
    34: ((160, 32), (160, 64), (160, 128)),
    50: ((160, 8), (160, 24), (160, 48)),
    101: ((160, 8), (160, 24), (160, 48)),
}
# Parameters of torchvision's ResNets.
PLAIN = {34: 21_797_672, 50: 25_557_032, 101: 44_549_160}
# Printed: M parameters (counted by the arithmetic of section 5); half the source's G
# operations, of which the paper prints 4.1 instead of 4.15.
PRINTED = {34: (20.75, 3.55), 50: (25.81, 4.15), 101: (45.39, 8.05)}


@pytest.mark.slow
@pytest.mark.parametrize("depth", list(CHANNELS))
def test_counts(depth):
    model = create_model(f"aa_resnet{depth}")
    counts = count(model)
    params = PLAIN[depth]
    for i, (keys, values) in enumerate(CHANNELS[depth]):
        width, side = 128 * 2**i, (14, 14, 7)[i]
        for block in range(model.stage_sizes[i + 1]):
            first = block == 0 and not model.bottleneck
            inside = width // 2 if first else width
            params -= 9 * inside * values
            params += inside * (2 * keys + values) + values**2
            params += 2 * (2 * side - 1) * keys // 8
    assert counts.total_params == params
    printed, gmacs = PRINTED[depth]
    assert params / 1e6 == pytest.approx(printed, abs=0.005)
    assert counts.total_macs / 1e9 == pytest.approx(gmacs, rel=0.02)


def test_invalid_options():
    with pytest.raises(UserError, match="heads=0: must be at least 1"):
        create_model("aa_resnet50", heads=0)
    model = create_model("aa_resnet34", width=4)
    with pytest.raises(UserError, match="none of 8 to the convolution .at stage3"):
        jax.eval_shape(model.init, jax.random.key(0), normal(0, 1, 32, 32, 3))
