"""Augmented convolution equals its restatement by loops over pairs of pixels."""

import block_reference
import jax
import numpy as np
import pytest
from block_reference import Same, attend_relatively, augmented, same
from reference import (
    Scope,
    check,
    check_bfloat16,
    check_gradients,
    near,
    normal,
    variables_of,
)

from vt_flax.errors import UserError
from vt_flax.models.comparison.augmented_attention import (
    AugmentedConv,
    RelativeAttention,
    halve,
)

pytestmark = pytest.mark.slow

HEADS, KEYS, VALUES = 2, 6, 4


def attention(dtype=np.float32):
    return Same(RelativeAttention(HEADS, KEYS, VALUES, dtype))


def restated(p, x):
    return attend_relatively(p / "module", x, HEADS, KEYS)


@pytest.mark.parametrize("shape", [(2, 5, 4, 8), (1, 1, 1, 6), (3, 1, 7, 5)])
def test_attention(shape):
    check(attention(), restated, normal(0, *shape), train=False)


@pytest.mark.parametrize("height,width", [(3, 2), (6, 4), (2, 9)])
def test_attention_on_maps_of_another_size(height, width):
    """Offsets beyond those that there are embeddings for are taken as the farthest."""
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
def test_convolution(size, stride, reduction):
    """28 x 28 maps attended at 14 x 14, odd sizes and strides among them."""
    conv = AugmentedConv(
        10,
        3,
        stride,
        heads=HEADS,
        key_channels=KEYS,
        value_channels=VALUES,
        reduction=reduction,
    )
    x = normal(4, 1, *size, 6)
    check(
        Same(conv),
        same(lambda p, x: augmented(p, x, stride, HEADS, KEYS, reduction)),
        x,
        train=False,
    )
    served = -(-size[0] // (stride * reduction))
    shapes = jax.eval_shape(conv.init, jax.random.key(0), x)["params"]
    assert shapes["attention"]["rows"].shape == (2 * served - 1, KEYS // HEADS)
    assert shapes["local"]["conv"]["kernel"].shape == (3, 3, 6, 10 - VALUES)


def test_bfloat16_and_gradients():
    x = normal(5, 2, 5, 4, 8)

    def make(dtype):
        return Same(AugmentedConv(10, 3, 1, dtype, HEADS, KEYS, VALUES, 2))

    check_bfloat16(make, x)
    check_gradients(make(np.float32), x)


@pytest.mark.parametrize(
    "features,values,message",
    [(4, 4, "4 channels of attention leave none of 4"), (9, 3, "2 heads do not")],
)
def test_channels_that_do_not_fit(features, values, message):
    conv = AugmentedConv(features, 3, heads=2, key_channels=KEYS, value_channels=values)
    with pytest.raises(UserError, match=message):
        jax.eval_shape(conv.init, jax.random.key(0), normal(6, 1, 4, 4, 6))
