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
    VTLayers,
    linear_survival,
    resize,
    split_heads,
)


@pytest.mark.parametrize(
    "groups, features, shape",
    [(1, 12, (3, 16)), (2, 12, (2, 5, 16)), (16, 32, (1, 3, 4, 16))],
)
def test_grouped_linear_is_a_block_diagonal_product(groups, features, shape):
    x, module = reference.normal(0, *shape), Linear(features, groups)
    shapes = jax.eval_shape(module.init, jax.random.key(0), x)
    variables = reference.randomize(shapes, 1)
    expected = reference.Scope({"params": {"map": variables["params"]}}).linear(
        x.astype(np.float64), "map"
    )
    reference.near(module.apply(variables, x), expected, 1e-5)


def test_grouped_linear_starts_with_the_variance_of_its_own_fan_in():
    """Each block is initialized for the channels that it reads: variance 1 / fan-in."""
    for groups in (1, 8):
        x = jnp.ones((1, 256))
        variables = Linear(512, groups).init(jax.random.key(0), x)
        variance = np.var(variables["params"]["kernel"])
        assert variance == pytest.approx(groups / 256, rel=0.05)


@pytest.mark.parametrize("channels, features", [(16, 12), (12, 16)])
def test_groups_must_divide_both_sides(channels, features):
    with pytest.raises(UserError, match="8 groups do not divide .* from"):
        jax.eval_shape(
            Linear(features, 8).init, jax.random.key(0), jnp.ones((1, channels))
        )


def test_split_heads():
    x = np.arange(2 * 3 * 8).reshape(2, 3, 8)
    np.testing.assert_array_equal(split_heads(x, 4)[:, :, 1], x[:, :, 2:4])
    with pytest.raises(UserError, match="3 heads do not divide 8 channels"):
        split_heads(x, 3)


@pytest.mark.parametrize("kernel, stride", [(1, 2), (3, 1), (7, 2)])
def test_convolution_pads_both_sides_equally(kernel, stride):
    module = Conv(5, kernel, stride)
    for sides in ((8, 8), (7, 10)):
        x = reference.normal(0, 2, *sides, 3)
        shapes = jax.eval_shape(module.init, jax.random.key(0), x)
        variables = reference.randomize(shapes, 1)
        weights = variables["params"]["kernel"]
        expected = reference.convolve(x.astype(np.float64), weights, stride)
        reference.near(module.apply(variables, x), expected, 1e-5)


@pytest.mark.parametrize(
    "source, target", [((9, 13), (14, 14)), ((28, 31), (14, 14)), ((1, 3), (4, 7))]
)
def test_resize(source, target):
    x = reference.normal(0, 2, *source, 3)
    expected = reference.resize(x.astype(np.float64), *target)
    reference.near(resize(x, *target), expected, 1e-5)


def test_resize_by_hand():
    """Doubling a row of two: half-pixel centers and repeated borders."""
    x = jnp.array([0.0, 4.0]).reshape(1, 1, 2, 1)
    np.testing.assert_allclose(resize(x, 1, 4).ravel(), [0.0, 1.0, 3.0, 4.0])
    # Four to two without antialiasing: the mean of the two nearest pixels only.
    x = jnp.array([0.0, 1.0, 5.0, 7.0]).reshape(1, 1, 4, 1)
    np.testing.assert_allclose(resize(x, 1, 2).ravel(), [0.5, 6.0])


def test_stochastic_depth():
    """It keeps a fraction of the examples, and the mean over them."""
    count, probability = 20000, 0.25
    x = np.broadcast_to(reference.normal(0, 2, 3), (count, 2, 3))
    module, key = StochasticDepth(probability), jax.random.key(3)
    np.testing.assert_array_equal(module.apply({}, x, train=False), x)
    out = np.asarray(module.apply({}, x, train=True, rngs={"dropout": key}))
    kept = np.any(out != 0.0, axis=(1, 2))
    np.testing.assert_allclose(out[kept], x[kept] / probability, rtol=1e-6)
    deviation = (probability * (1 - probability) / count) ** 0.5
    assert abs(kept.mean() - probability) < 4 * deviation
    with pytest.raises(Exception, match="dropout"):
        module.apply({}, x, train=True)


def test_linear_survival():
    """Equation 4 of Huang et al.: 1 - l / L (1 - p_L)."""
    chances = [linear_survival(i, 4, 0.6) for i in (1, 2, 3, 4)]
    np.testing.assert_allclose(chances, [0.9, 0.8, 0.7, 0.6])


@pytest.mark.parametrize(
    "settings, message",
    [
        ({"bn_group_size": -1}, "bn_group_size=-1: must be at least 0"),
        ({"bn_momentum": 1.0}, "bn_momentum=1.0: must be at least 0, and under 1"),
        ({"bn_epsilon": 0.0}, "bn_epsilon=0.0: must be over 0"),
        ({"norm_placement": "pixels"}, "'pixels' is not known"),
    ],
)
def test_settings_out_of_range_are_rejected(settings, message):
    with pytest.raises(UserError, match=message):
        VTLayers(**settings)


def test_layers_have_the_settings():
    layers = Layers(jnp.bfloat16, 4, True, 0.5, 1e-3)
    norm = layers.batch_norm("norm")
    settings = norm.group_size, norm.frozen, norm.momentum, norm.epsilon
    assert settings == (4, True, 0.5, 1e-3)
    made = norm, layers.conv(8, 3, name="conv"), layers.linear(8, name="map")
    assert {layer.dtype for layer in made} == {jnp.bfloat16}
