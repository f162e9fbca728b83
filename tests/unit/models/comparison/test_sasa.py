"""Stand-Alone ResNet: counts by hand and beside the printed figures, and pooling."""

import jax
import numpy as np
import pytest

from vt_flax.errors import UserError
from vt_flax.models import create_model
from vt_flax.models.comparison.sasa import (
    AttentionStem,
    BlockAttention,
    StandAloneAttention,
)
from vt_flax.paper import macs

SIZES = {26: (1, 2, 4, 1), 38: (2, 3, 5, 2), 50: (3, 4, 6, 3)}
# M parameters of the architecture; GFLOPs as the paper prints them, of the network with
# a convolution as its stem and of the whole.
FIGURES = {26: (10.34, 4.5, 4.7), 38: (14.19, 5.7, 6.0), 50: (18.04, 7.0, 7.2)}


def by_hand(depth):
    """Parameters and multiply-adds of a network at 224 x 224, part by part."""
    pixels = 224**2
    # Query, key, four value maps; vectors of 4 rows, 4 columns, 4 maps; one norm.
    stem_params = 6 * 3 * 64 + 12 * 64 + 2 * 64
    mixing = 16 * 4 * 64 + 16 * 4 * 3 * 64
    parts = {"stem": (stem_params, pixels * (3 * 3 * 64 + 2 * 16 * 64) + mixing)}
    inside, side = 64, 56
    for i, blocks in enumerate(SIZES[depth]):
        width, params, amount = 64 * 2**i, 0, 0
        for j in range(blocks):
            before = side**2
            side = side // 2 if i and not j else side
            # Pooled after its attention.
            amount += before * (inside * width + 3 * width**2 + 3 * 49 * width)
            amount += side**2 * 4 * width**2
            params += inside * width + 7 * width**2 + 7 * width + 2 * 6 * width
            if not j:
                params += inside * 4 * width + 8 * width
                amount += side**2 * inside * 4 * width
            inside = 4 * width
        parts[f"stage{i + 2}"] = (params, amount)
    parts["head"] = (2048 * 1000 + 1000, 2048 * 1000)
    return parts


@pytest.mark.slow
@pytest.mark.parametrize("depth", list(SIZES))
def test_counts(depth):
    counts = macs.count(create_model(f"sasa_resnet{depth}"))
    expected = by_hand(depth)
    assert counts.params == {part: pair[0] for part, pair in expected.items()}
    assert counts.macs == {part: pair[1] for part, pair in expected.items()}

    params, with_convolution, printed = FIGURES[depth]
    assert counts.total_params / 1e6 == pytest.approx(params, rel=0.005)
    # FLOPs are two for a multiply-add.
    convolution = 112**2 * 7 * 7 * 3 * 64
    total = counts.total_macs - counts.macs["stem"] + convolution
    assert 2 * total / 1e9 == pytest.approx(with_convolution, rel=0.006)
    missing = printed / 2 - counts.total_macs / 1e9
    assert 0.09 < missing < 0.13


def run(module, x, **settings):
    init = jax.jit(lambda k, x: module.init(k, x, **settings))
    variables = init(jax.random.key(0), x)
    apply = jax.jit(lambda v, x: module.apply(v, x, **settings))
    return variables, np.asarray(apply(variables, x))


def test_mean_pooling_makes_the_stride():
    x = np.random.default_rng(0).normal(size=(2, 5, 4, 6)).astype(np.float32)
    variables, found = run(StandAloneAttention(8, 2, stride=2), x)
    whole = StandAloneAttention(8, 2, attention="unfold").apply(variables, x)
    for i in range(3):
        for j in range(2):
            # The last row of five is pooled alone.
            mean = whole[:, 2 * i : 2 * i + 2, 2 * j : 2 * j + 2].mean((1, 2))
            np.testing.assert_allclose(found[:, i, j], mean, atol=1e-6)


def test_stem_is_pooled_over_its_blocks():
    x = np.random.default_rng(0).normal(size=(1, 9, 8, 3)).astype(np.float32)
    stem = AttentionStem(8, heads=2)
    variables, found = run(stem, x, train=False)
    assert found.shape == (1, 3, 2, 8)
    inner = {"params": variables["params"]["attention"]}
    # Fresh running statistics are 0 and 1.
    whole = BlockAttention(8, 2).apply(inner, x) / np.sqrt(1 + 1e-5)
    for i in range(3):
        for j in range(2):
            most = whole[:, 4 * i : 4 * i + 4, 4 * j : 4 * j + 4].max((1, 2))
            np.testing.assert_allclose(found[:, i, j], most, atol=1e-6)


@pytest.mark.parametrize(
    "options,message",
    [
        ({"heads": 3}, "3 heads do not divide width=64"),
        ({"heads": 0}, "0 heads do not divide"),
        ({"width": 4}, "8 heads do not divide width=4"),
    ],
)
def test_invalid_options(options, message):
    with pytest.raises(UserError, match=message):
        create_model("sasa_resnet50", **options)
