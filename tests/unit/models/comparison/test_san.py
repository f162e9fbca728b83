"""SAN: counts by hand and beside the printed figures, and its five stages."""

import functools

import jax
import numpy as np
import pytest
import reference
from flax import traverse_util
from model_variables import randomized

from vt_flax.errors import UserError
from vt_flax.models import create_model, model_options
from vt_flax.models.comparison.san import SANBlock
from vt_flax.models.comparison.san_attention import PatchwiseAttention
from vt_flax.paper import macs

SIZES = {10: (2, 1, 2, 4, 1), 15: (3, 2, 3, 5, 2), 19: (3, 3, 4, 6, 3)}
# M parameters and GMACs as the paper prints them.
FIGURES = {
    ("pairwise", 10): (10.53, 2.2), ("patchwise", 10): (11.84, 1.9),
    ("pairwise", 15): (14.07, 3.0), ("patchwise", 15): (16.18, 2.6),
    ("pairwise", 19): (17.60, 3.8), ("patchwise", 19): (20.52, 3.3),
}  # fmt: skip


class Tally:
    """Counts parameters, multiply-adds, and what the authors' counter adds to these."""

    def __init__(self):
        self.params = self.macs = self.rest = 0

    def linear(self, inside, outside, pixels, bias=True):
        self.params += inside * outside + bias * outside
        self.macs += inside * outside * pixels
        self.rest += bias * outside * pixels

    def norm_relu(self, channels, pixels):
        self.params += 2 * channels
        self.rest += 3 * channels * pixels


def by_hand(kind, depth):
    tally = Tally()
    tally.linear(3, 64, 224**2, bias=False)
    tally.norm_relu(64, 224**2)
    side, before = 224, 64
    for blocks, channels, window in zip(
        SIZES[depth], (64, 256, 512, 1024, 2048), (3, 7, 7, 7, 7), strict=True
    ):
        tally.rest += before * side**2
        side //= 2
        n, k, few, values = side**2, window**2, channels // 16, channels // 4
        tally.linear(before, channels, n, bias=False)
        for _ in range(blocks):
            tally.norm_relu(channels, n)
            for outside in (few, few, values):
                tally.linear(channels, outside, n)
            if kind == "pairwise":
                tally.linear(2, 2, n)
                tally.rest += (few + 2) * n * k
                tally.norm_relu(few + 2, n * k)
                tally.linear(few + 2, few, n * k, bias=False)
                tally.norm_relu(few, n * k)
                tally.linear(few, values // 8, n * k)
            else:
                tally.norm_relu(few * (k + 1), n)
                tally.linear(few * (k + 1), values // 8, n, bias=False)
                tally.norm_relu(values // 8, n)
                tally.linear(values // 8, k * values // 8, n)
            tally.macs += values * k * n
            tally.norm_relu(values, n)
            tally.linear(values, channels, n)
        tally.norm_relu(channels, n)
        before = channels
    tally.rest += 2048 * 7 * 7
    tally.params += 2048 * 1000 + 1000
    tally.macs += 2048 * 1000
    return tally


@pytest.mark.slow
@pytest.mark.parametrize("kind,depth", list(FIGURES))
def test_counts(kind, depth):
    counts = macs.count(create_model(f"san{depth}_{kind}"))
    tally = by_hand(kind, depth)
    assert counts.total_params == tally.params
    assert counts.total_macs == tally.macs
    parts = ["stem", *(f"stage{i}" for i in range(1, 6)), "head"]
    assert list(counts.macs) == parts
    params, printed = FIGURES[kind, depth]
    assert round(counts.total_params / 1e6, 2) == params
    # The printed figure counts more than products.
    counter = (counts.total_macs + tally.rest) / 1e9
    assert counter == pytest.approx(printed, rel=0.022)
    assert counts.total_macs / 1e9 < 0.97 * printed


def test_stages_without_their_branches():
    """With branches of zero, a stage is pooling, a 1 x 1 map, BatchNorm and ReLU."""
    model = create_model("san10_pairwise", stage_sizes=[1, 1, 1, 1, 1], width=2)
    images = np.random.default_rng(0).normal(size=(1, 33, 20, 3)).astype(np.float32)
    variables = randomized(model, images)
    flat = traverse_util.flatten_dict(variables["params"])
    for path in flat:
        if path[-3:-1] == ("block1", "conv"):
            flat[path] = np.zeros_like(flat[path])
    params = traverse_util.unflatten_dict(flat)
    stats = variables["batch_stats"]
    maps = jax.jit(
        lambda p, x: model.apply({"params": p, "batch_stats": stats}, x, features=True)
    )(params, images)

    def norm(x, part):
        mean, var = stats[part]["norm"]["mean"], stats[part]["norm"]["var"]
        x = (x - mean) / np.sqrt(var + 1e-5) * params[part]["norm"]["scale"]
        return np.maximum(x + params[part]["norm"]["bias"], 0)

    x = norm(images @ params["stem"]["conv"]["kernel"], "stem")
    for i in range(1, 6):
        _, height, width, channels = x.shape
        # All are at least 0, so zeros beyond the border do not change the maximum.
        x = np.pad(x, ((0, 0), (0, height % 2), (0, width % 2), (0, 0)))
        x = x.reshape(1, (height + 1) // 2, 2, (width + 1) // 2, 2, channels)
        x = x.max((2, 4)) @ params[f"stage{i}"]["conv"]["kernel"]
        x = norm(x, f"stage{i}")
        if i > 1:
            np.testing.assert_allclose(maps[f"C{i}"], x, atol=1e-5)


def test_options():
    options = model_options("san15_patchwise")
    assert options["stage_sizes"] == (3, 2, 3, 5, 2)
    # No convolution strides.
    assert not {"variant", "bottleneck"} & set(options)
    with pytest.raises(UserError, match="no option 'variant'"):
        create_model("san10_pairwise", variant="msra")
    with pytest.raises(UserError, match=r"\[1, 1, 1, 1\]: must be 5 numbers"):
        create_model("san10_pairwise", stage_sizes=[1, 1, 1, 1])


def test_zero_init_residual_makes_branches_zero():
    x = reference.normal(0, 1, 4, 3, 16)
    for zero in (False, True):
        attention = functools.partial(PatchwiseAttention, 3)
        block = SANBlock(attention, zero_init_residual=zero)
        init = functools.partial(block.init_with_output, train=False)
        found, _ = jax.jit(init)(jax.random.key(0), x)
        assert np.array_equal(found, x) == zero


def test_survival_falls_over_all_five_stages():
    model = create_model("san10_pairwise", survival_probability=0.5)
    found = sum(map(model.survival_probabilities, range(5)), ())
    np.testing.assert_allclose(found, 1 - np.arange(1, 11) / 20)
