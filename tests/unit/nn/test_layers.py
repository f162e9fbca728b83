"""Small layers: padding, grouped maps, bilinear resize, stochastic depth."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import reference

from vt_flax.errors import UserError
from vt_flax.nn.layers import (
    Conv,
    Layers,
    Linear,
    StochasticDepth,
    linear_survival,
    resize,
    split_heads,
)


@pytest.mark.parametrize("shape", [(3, 16), (2, 5, 16), (1, 3, 4, 16)])
@pytest.mark.parametrize("groups,features", [(1, 12), (2, 12), (4, 16), (16, 32)])
def test_grouped_linear_is_a_block_diagonal_product(groups, features, shape):
    x = reference.normal(0, *shape)
    rng = np.random.default_rng(1)
    kernel = rng.normal(size=(groups, 16 // groups, features // groups))
    kernel = kernel.astype(np.float32)
    dense = np.zeros((16, features))
    for i in range(16):
        for j in range(features):
            if i // (16 // groups) == j // (features // groups):
                g = i // (16 // groups)
                dense[i, j] = kernel[g, i % (16 // groups), j % (features // groups)]
    params = {"kernel": kernel if groups > 1 else kernel[0]}
    out = Linear(features, groups).apply({"params": params}, x)
    assert reference.error(out, x @ dense) < 1e-5


def test_grouped_linear_starts_with_the_variance_of_its_own_fan_in():
    """Each block is initialized for the channels that it reads: variance 1 / fan-in."""
    for groups in (1, 8):
        x = jnp.ones((1, 256))
        variables = Linear(512, groups).init(jax.random.key(0), x)
        variance = np.var(variables["params"]["kernel"])
        assert variance == pytest.approx(groups / 256, rel=0.05)


@pytest.mark.parametrize("channels,features", [(16, 12), (12, 16)])
def test_groups_must_divide_both_sides(channels, features):
    with pytest.raises(UserError, match="8 groups do not divide .* from"):
        jax.eval_shape(
            Linear(features, 8).init, jax.random.key(0), jnp.ones((1, channels))
        )


def test_split_heads():
    x = np.arange(2 * 3 * 8).reshape(2, 3, 8)
    out = split_heads(x, 4)
    np.testing.assert_array_equal(out[:, :, 1], x[:, :, 2:4])
    with pytest.raises(UserError, match="3 heads do not divide 8 channels"):
        split_heads(x, 3)


@pytest.mark.parametrize("kernel,stride", [(1, 1), (1, 2), (3, 1), (3, 2), (7, 2)])
@pytest.mark.parametrize("height,width", [(8, 8), (7, 10)])
def test_convolution_pads_both_sides_equally(kernel, stride, height, width):
    x = reference.normal(0, 2, height, width, 3)
    module = Conv(5, kernel, stride)
    variables = reference.randomize(
        jax.eval_shape(module.init, jax.random.key(0), x), seed=1
    )
    weights = variables["params"]["kernel"]
    expected = reference.convolve(x.astype(np.float64), weights, stride)
    assert reference.error(module.apply(variables, x), expected) < 1e-5


@pytest.mark.parametrize(
    "source,target",
    [
        ((14, 14), (14, 14)),
        ((9, 13), (14, 14)),
        ((28, 31), (14, 14)),
        ((14, 14), (4, 4)),
        ((5, 6), (1, 5)),
        ((1, 3), (4, 7)),
    ],
)
def test_resize(source, target):
    x = reference.normal(0, 2, *source, 3)
    expected = reference.resize(x.astype(np.float64), *target)
    assert reference.error(resize(x, *target), expected) < 1e-5


def test_resize_by_hand():
    """Doubling a row of two: half-pixel centres and repeated borders."""
    x = jnp.array([0.0, 4.0]).reshape(1, 1, 2, 1)
    np.testing.assert_allclose(resize(x, 1, 4).ravel(), [0.0, 1.0, 3.0, 4.0])
    # Four to two without antialiasing: the mean of the two nearest pixels only.
    x = jnp.array([0.0, 1.0, 5.0, 7.0]).reshape(1, 1, 4, 1)
    np.testing.assert_allclose(resize(x, 1, 2).ravel(), [0.5, 6.0])
    x = jnp.arange(6.0).reshape(1, 1, 6, 1) ** 2
    np.testing.assert_allclose(resize(x, 1, 2).ravel(), [1.0, 16.0])


def test_stochastic_depth_is_the_identity_in_evaluation():
    x = reference.normal(0, 4, 3)
    out = StochasticDepth(0.1).apply({}, x, train=False)
    np.testing.assert_array_equal(out, x)
    out = StochasticDepth(1.0).apply({}, x, train=True)
    np.testing.assert_array_equal(out, x)


@pytest.mark.parametrize("probability", [0.25, 0.9])
def test_stochastic_depth_keeps_a_fraction_and_the_mean(probability):
    count = 20000
    x = np.broadcast_to(reference.normal(0, 2, 3), (count, 2, 3))
    out = StochasticDepth(probability).apply(
        {}, x, train=True, rngs={"dropout": jax.random.key(3)}
    )
    out = np.asarray(out)
    kept = np.any(out != 0.0, axis=(1, 2))
    np.testing.assert_allclose(out[kept], x[kept] / probability, rtol=1e-6)
    deviation = (probability * (1 - probability) / count) ** 0.5
    assert abs(kept.mean() - probability) < 4 * deviation
    bound = 4 * deviation / probability * np.abs(x[0])
    assert np.all(np.abs(out.mean(0) - x[0]) < bound)


def test_stochastic_depth_needs_random_numbers_and_differs_by_key():
    x = np.ones((64, 2), np.float32)
    module = StochasticDepth(0.5)
    outs = [
        module.apply({}, x, train=True, rngs={"dropout": jax.random.key(k)})
        for k in (0, 0, 1)
    ]
    np.testing.assert_array_equal(outs[0], outs[1])
    assert np.any(outs[0] != outs[2])
    with pytest.raises(Exception, match="dropout"):
        module.apply({}, x, train=True)


def test_linear_survival():
    """Equation 4 of Huang et al.: 1 - l / L (1 - p_L)."""
    chances = [linear_survival(i, 4, 0.6) for i in (1, 2, 3, 4)]
    np.testing.assert_allclose(chances, [0.9, 0.8, 0.7, 0.6])
    assert linear_survival(2, 5, 1.0) == 1.0


@pytest.mark.parametrize(
    "settings,message",
    [
        ({"bn_group_size": -1}, "bn_group_size=-1: must be at least 0"),
        ({"bn_momentum": 1.0}, "bn_momentum=1.0: must be at least 0, and under 1"),
        ({"bn_epsilon": 0.0}, "bn_epsilon=0.0: must be over 0"),
    ],
)
def test_settings_out_of_range_are_rejected(settings, message):
    with pytest.raises(UserError, match=message):
        Layers(**settings)


def test_layers_have_the_settings():
    layers = Layers(jnp.bfloat16, 4, True, 0.5, 1e-3)
    norm = layers.batch_norm("norm")
    found = norm.group_size, norm.frozen, norm.momentum, norm.epsilon
    assert found == (4, True, 0.5, 1e-3)
    made = norm, layers.conv(8, 3, name="conv"), layers.linear(8, name="map")
    assert {layer.dtype for layer in made} == {jnp.bfloat16}
