"""AA-ResNet: attention and the augmented block by loops in NumPy."""

import functools

import jax
import numpy as np
import pytest
from block_reference import Same, attend_relatively, augmented, residual_block, same
from reference import Scope, check, near, normal, variables_of

from vt_flax.errors import UserError
from vt_flax.models import create_model
from vt_flax.models.comparison.aa import AugmentedConv, RelativeAttention
from vt_flax.models.resnet import BasicBlock, BottleneckBlock

HEADS, KEYS, VALUES = 2, 6, 4


def restated(p, x):
    return attend_relatively(p / "module", x, HEADS, KEYS)


@pytest.mark.slow
def test_attention_on_maps_of_another_size():
    """Offsets without an embedding use the farthest one."""
    attention = Same(RelativeAttention(HEADS, KEYS, VALUES))
    variables = variables_of(attention, normal(0, 1, 4, 5, 8))
    assert variables["params"]["module"]["rows"].shape == (2 * 4 - 1, KEYS // HEADS)
    x = normal(1, 2, 6, 3, 8)
    out = jax.jit(lambda v, x: attention.apply(v, x, train=False))(variables, x)
    near(out, restated(Scope(variables), x.astype(np.float64)), 1e-5)


@pytest.mark.slow
@pytest.mark.parametrize(
    "size, stride, reduction", [((7, 10), 1, 2), ((11, 14), 2, 2), ((1, 5), 1, 1)]
)
def test_augmented_convolution(size, stride, reduction):
    """Odd sizes and strides; attention sees the map halved once or twice."""
    check(
        Same(AugmentedConv(10, 3, stride, HEADS, KEYS, VALUES, reduction)),
        same(lambda p, x: augmented(p, x, stride, HEADS, KEYS, reduction)),
        normal(4, 1, *size, 6),
        train=True,
    )


@pytest.mark.slow
@pytest.mark.parametrize("bottleneck, stride", [(False, 1), (True, 2)])
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


def test_attention_leaves_channels_to_the_convolution():
    model = create_model("aa_resnet34", width=4)
    with pytest.raises(UserError, match="none of 8 to the convolution .at stage3"):
        jax.eval_shape(model.init, jax.random.key(0), normal(0, 1, 32, 32, 3))
