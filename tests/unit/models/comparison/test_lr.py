"""LR-Net: counts by hand and beside the printed figures, and the stem."""

import numpy as np
import pytest
import reference

from vt_flax.models import create_model
from vt_flax.models.comparison.lr import LRStem
from vt_flax.paper import macs

SIZES = {18: (2, 2, 2, 2), 26: (2, 2, 2, 2), 50: (3, 4, 6, 3), 101: (3, 4, 23, 3)}
# M parameters of the architecture, and GMACs as the paper prints them.
FIGURES = {18: (14.4, 2.5), 26: (14.6, 2.6), 50: (23.4, 4.3), 101: (40.8, 7.79)}


def layer(inside, outside, before, after):
    """Parameters and multiply-adds of a local relation layer."""
    groups = -(-inside // 8)
    prior = 2 * groups + groups + groups * groups + groups
    params = 2 * inside * groups + prior + inside * outside
    products = (before + after) * inside * groups + after * inside * (49 + outside)
    return params, products + 49 * (prior - 2 * groups)


def convolution(inside, outside, pixels):
    return inside * outside, inside * outside * pixels


def norm(channels):
    return 2 * channels, 0


def by_hand(depth):
    """Parameters and multiply-adds of a network at 224 x 224, part by part."""
    stem = [convolution(3, 64, 224**2), norm(64)]
    stem += [layer(64, 64, 224**2, 112**2), norm(64)]
    parts, inside, side = {"stem": stem}, 64, 56
    for i, blocks in enumerate(SIZES[depth]):
        found = []
        width, outside = (100 * 2**i, 256 * 2**i) if depth > 18 else (177 * 2**i,) * 2
        for j in range(blocks):
            before = side**2
            side = side // 2 if i and not j else side
            after = side**2
            if depth > 18:
                found += [convolution(inside, width, before), norm(width)]
                found += [layer(width, width, before, after), norm(width)]
                found += [convolution(width, outside, after), norm(outside)]
            else:
                found += [layer(inside, width, before, after), norm(width)]
                found += [layer(width, width, after, after), norm(width)]
            if not j:
                found += [convolution(inside, outside, after), norm(outside)]
            inside = outside
        parts[f"stage{i + 2}"] = found
    parts["head"] = [(inside * 1000 + 1000, inside * 1000)]
    return {part: tuple(map(sum, zip(*f, strict=True))) for part, f in parts.items()}


@pytest.mark.slow
@pytest.mark.parametrize("depth", list(SIZES))
def test_counts(depth):
    counts = macs.count(create_model(f"lr_net{depth}"))
    expected = by_hand(depth)
    assert counts.params == {part: pair[0] for part, pair in expected.items()}
    assert counts.macs == {part: pair[1] for part, pair in expected.items()}

    params, printed = FIGURES[depth]
    assert counts.total_params / 1e6 == pytest.approx(params, rel=0.005)
    # The printed figure's stem strides after its layer, not before.
    strided, unstrided = (layer(64, 64, 224**2, side**2)[1] for side in (112, 224))
    assert (unstrided - strided) / 1e9 == pytest.approx(0.29, abs=0.005)
    total = counts.total_macs + unstrided - strided
    assert total / 1e9 == pytest.approx(printed, rel=0.024)


def test_stem_strides_in_its_attention():
    """Pixel 2 i is the center of window i."""
    images = np.random.default_rng(0).normal(size=(1, 9, 8, 3)).astype(np.float32)
    whole, strided = (LRStem(8, kind) for kind in ("small", "imagenet"))
    variables = reference.variables_of(whole, images)
    every, found = reference.jax.jit(
        lambda v, x: [stem.apply(v, x, train=False) for stem in (whole, strided)]
    )(variables, images)
    every = np.asarray(every)[:, ::2, ::2]
    every = np.pad(every, ((0, 0), (1, 1), (1, 1), (0, 0)), constant_values=-np.inf)
    expected = [
        [every[0, 2 * i : 2 * i + 3, 2 * j : 2 * j + 3].max((0, 1)) for j in range(2)]
        for i in range(3)
    ]
    np.testing.assert_allclose(found[0], expected, atol=1e-6)
