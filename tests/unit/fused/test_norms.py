"""Fused BatchNorms against `nn`'s BatchNorm, which is checked against equations."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import reference

from vt_flax.fused.norms import (
    GramNorm,
    MomentNorm,
    OnePassBatchNorm,
    PooledNorm,
    example_means,
)
from vt_flax.nn.batch_norm import BatchNorm
from vt_flax.nn.layers import convolve, pad

C, F = 6, 10
SETTINGS = [({}, True), ({"group_size": 2}, True), ({"frozen": True}, True)]


def make_variables(running_mean=0.0):
    """Random parameters, with scales of both signs, and running statistics."""
    rng = np.random.default_rng(3)
    tree = {
        "params": {"scale": np.linspace(-1.5, 1.4, F), "bias": rng.normal(0, 1, F)},
        "batch_stats": {
            "mean": rng.normal(running_mean, 0.5, F),
            "var": rng.uniform(0.5, 2, F),
        },
    }
    return jax.tree.map(np.float32, tree)


def make_map(*shape):
    """A map whose examples differ in mean and deviation, so that groups differ."""
    x = reference.normal(5, *shape) + 0.3
    return np.float32(x * np.arange(1, len(x) + 1).reshape(-1, 1, 1, 1))


def layers_in_order(norm, variables, x, kernel, stride=1):
    """A convolution and BatchNorm, or BatchNorm alone."""
    y = x if kernel is None else convolve(x, kernel, stride)
    return norm.apply(variables, y, train=True, mutable=["batch_stats"])


def compare(computed, expected, variables, *inputs, tolerance=1e-5):
    """Compares results, new statistics, and gradients by parameters and inputs."""

    def outcome(compute):
        def loss(params, inputs):
            out, state = compute({**variables, "params": params}, *inputs)
            return jnp.sum(out * reference.normal(2, *out.shape)), (out, state)

        return jax.grad(loss, (0, 1), has_aux=True)(variables["params"], inputs)

    found, wanted = jax.jit(lambda: [outcome(f) for f in (computed, expected)])()
    for a, b in zip(*map(jax.tree.leaves, (found, wanted)), strict=True):
        reference.near(a, b, tolerance)


@pytest.mark.parametrize("settings, train", SETTINGS, ids=str)
def test_one_pass_and_streamed_moments(settings, train):
    def one_pass(variables, x):
        return layers_in_order(OnePassBatchNorm(**settings), variables, x, None)

    def streamed(variables, x):
        norm = MomentNorm(means=lambda o: example_means(o, x), **settings)
        affine, state = norm.apply(
            variables, F, len(x), train=train, mutable=["batch_stats"]
        )
        return affine(x), state

    def expected(variables, x):
        return layers_in_order(BatchNorm(**settings), variables, x, None)

    for computed in (one_pass, streamed):
        compare(computed, expected, make_variables(), make_map(4, 3, 5, F))


@pytest.mark.parametrize("running, group", [(1000.0, 0), (1003.0, 4)])
def test_one_pass_keeps_its_digits_near_the_running_mean(running, group):
    """A mean of 1000 deviations; the running mean is 3 or so away from it."""
    variables = make_variables(running)
    x = reference.normal(1, 8, 10, 10, F) + np.float32(1000)
    found, expected = (
        norm.apply(variables, x, train=True, mutable=["batch_stats"])
        for norm in (OnePassBatchNorm(group), BatchNorm(group))
    )
    for a, b in zip(*map(jax.tree.leaves, (found, expected)), strict=True):
        reference.near(a, b, 1e-5)


@pytest.mark.parametrize("settings, train", SETTINGS, ids=str)
@pytest.mark.parametrize("mean", [0.0, 100.0])
def test_gram_norm(settings, train, mean):
    """Convolution and BatchNorm; at a mean of 100 deviations 4 digits are exact."""
    kernel = reference.normal(1, 1, 1, C, F) / 2

    def computed(variables, x, kernel):
        return GramNorm(**settings).apply(
            variables, x, kernel, train=train, mutable=["batch_stats"]
        )

    def expected(variables, x, kernel):
        return layers_in_order(BatchNorm(**settings), variables, x, kernel)

    x = np.maximum(make_map(4, 3, 5, C), 0) + np.float32(mean)
    tolerance = 1e-3 if mean else 1e-5
    compare(computed, expected, make_variables(), x, kernel, tolerance=tolerance)


def test_gram_norm_in_bfloat16():
    variables, kernel = make_variables(), reference.normal(1, 1, 1, C, F) / 2
    x = jnp.asarray(np.maximum(make_map(4, 3, 5, C), 0), jnp.bfloat16)
    out, _ = GramNorm().apply(variables, x, kernel, train=True, mutable=["batch_stats"])
    expected, _ = layers_in_order(BatchNorm(), variables, np.float32(x), kernel)
    assert out.dtype == jnp.bfloat16
    reference.near(np.float32(out), expected, 2e-2)


@pytest.mark.parametrize("settings, train", SETTINGS, ids=str)
def test_pooled_norm(settings, train):
    """Convolution, BatchNorm, ReLU and max pooling."""
    kernel = 0.3 * reference.normal(1, 7, 7, 3, F)

    def computed(variables, x, kernel):
        return PooledNorm(**settings).apply(
            variables, x, kernel, train=train, mutable=["batch_stats"]
        )

    def expected(variables, x, kernel):
        norm = BatchNorm(**settings)
        y, state = layers_in_order(norm, variables, x, kernel, stride=2)
        return nn.max_pool(nn.relu(y), (3, 3), (2, 2), pad(3)), state

    inputs = make_map(4, 17, 14, 3), kernel
    compare(computed, expected, make_variables(), *inputs, tolerance=2e-5)
