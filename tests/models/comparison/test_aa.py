"""AA-ResNet: which convolutions are augmented, how, and the published counts."""

import functools

import jax
import pytest
from block_reference import augmented, residual_block
from flax import traverse_util
from reference import check, normal

from vt_flax.analysis.macs import count
from vt_flax.errors import UserError
from vt_flax.models import create_model
from vt_flax.models.resnet import ResidualBlock


@pytest.mark.parametrize("bottleneck,stride", [(False, 1), (True, 2)])
def test_block(bottleneck, stride):
    """The first of two 3 x 3 is augmented, or the 3 x 3 of a bottleneck."""
    model = create_model(f"aa_resnet{50 if bottleneck else 34}", heads=2)
    block = ResidualBlock(16, stride, bottleneck, parts=model.block_parts(3))
    conv = functools.partial(augmented, heads=2, keys=40, reduction=2)
    name = "conv2" if bottleneck else "conv1"
    check(
        block,
        lambda p, x: residual_block(p, x, stride, replaced={name: conv}),
        normal(0, 2, 5, 7, 16),
        train=False,
    )


# Keys and values of stages 3 to 5: 0.25 F each, or 0.2 F and 0.1 F, in multiples of
# eight heads; and of 20 channels of keys a head.
CHANNELS = {
    34: ((160, 32), (160, 64), (160, 128)),
    50: ((160, 8), (160, 24), (160, 48)),
    101: ((160, 8), (160, 24), (160, 48)),
}
# Of torchvision's networks.
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


@pytest.mark.parametrize("depth", [34, 50])
def test_where_there_is_attention(depth):
    shapes = jax.eval_shape(
        create_model(f"aa_resnet{depth}").init,
        jax.random.key(0),
        jax.ShapeDtypeStruct((1, 224, 224, 3), "float32"),
    )
    paths = traverse_util.flatten_dict(shapes["params"])
    found = {path[:3] for path in paths if "attention" in path}
    conv = "conv2" if depth >= 50 else "conv1"
    assert found == {
        (f"stage{stage}", f"block{block}", conv)
        for stage, blocks in ((3, 4), (4, 6), (5, 3))
        for block in range(1, blocks + 1)
    }


def test_options_that_do_not_fit():
    with pytest.raises(UserError, match="heads=0: must be at least 1"):
        create_model("aa_resnet50", heads=0)
    model = create_model("aa_resnet34", width=4)
    with pytest.raises(UserError, match="none of 8 to the convolution .at stage3"):
        jax.eval_shape(model.init, jax.random.key(0), normal(0, 1, 32, 32, 3))
