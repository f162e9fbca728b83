"""Fused BatchNorms against the equations in float64, and against `nn`'s BatchNorm."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import reference

from vt_flax.errors import UserError
from vt_flax.fused.norms import GramNorm, MomentNorm, OnePassBatchNorm, PooledNorm
from vt_flax.nn.batch_norm import BatchNorm
from vt_flax.nn.layers import convolve, pad

C, F, EPSILON = 6, 10, 1e-5
SETTINGS = [
    ({}, True),
    ({"group_size": 2}, True),
    ({"frozen": True}, True),
    ({}, False),
]


def make_variables(channels):
    """Random parameters, with scales of both signs, and running statistics."""
    rng = np.random.default_rng(3)
    tree = {
        "params": {
            "scale": np.linspace(-1.5, 1.5, channels),
            "bias": rng.normal(0, 1, channels),
        },
        "batch_stats": {
            "mean": rng.normal(0, 0.5, channels),
            "var": rng.uniform(0.5, 2, channels),
        },
    }
    return jax.tree.map(np.float32, tree)


def make_map(*shape, seed=5):
    """A map whose examples differ in mean and deviation, so that groups differ."""
    x = np.random.default_rng(seed).normal(0.3, 1, shape)
    return np.float32(x * np.arange(1, len(x) + 1).reshape(-1, 1, 1, 1))


def with_gradients(compute):
    """Returns a function of variables and inputs: gradients, then result and state."""

    def loss(params, variables, *inputs):
        out, state = compute(variables | {"params": params}, *inputs)
        return jnp.sum(out * reference.normal(2, *out.shape)), (out, state)

    @jax.jit
    def run(variables, *inputs):
        by = (0, *range(2, 2 + len(inputs)))
        gradients = jax.grad(loss, by, has_aux=True)
        return gradients(variables["params"], variables, *inputs)

    return run


def assert_near(found, expected, tolerance=1e-5):
    for a, b in zip(*map(jax.tree.leaves, (found, expected)), strict=True):
        assert reference.error(a, b) < tolerance


# ------------------------------------------------------------------------ one pass


@pytest.mark.parametrize("settings,train", SETTINGS, ids=str)
def test_one_pass_and_streamed_moments_equal_batch_norm(settings, train):
    options = {"train": train, "mutable": ["batch_stats"]}

    def plain(variables, x):
        return BatchNorm(**settings).apply(variables, x, **options)

    def one_pass(variables, x):
        return OnePassBatchNorm(**settings).apply(variables, x, **options)

    def streamed(variables, x):
        def means(origin):
            centered = x - origin
            return jnp.mean(centered, (1, 2)), jnp.mean(jnp.square(centered), (1, 2))

        norm = MomentNorm(means=means, **settings)
        affine, state = norm.apply(variables, F, len(x), **options)
        return affine(x), state

    inputs = make_variables(F), make_map(4, 3, 5, F)
    expected = with_gradients(plain)(*inputs)
    for compute in (one_pass, streamed):
        assert_near(with_gradients(compute)(*inputs), expected)


@pytest.mark.parametrize("group", [0, 4])
@pytest.mark.parametrize("running", [1000.0, 1003.0])
def test_one_pass_keeps_its_digits_near_the_running_mean(running, group):
    """A mean of 1000 deviations; the running mean is 3 or less away from it."""
    variables = make_variables(F)
    variables["batch_stats"]["mean"][:] = running
    x = reference.normal(1, 8, 10, 10, F) + np.float32(1000)
    out, state = OnePassBatchNorm(group).apply(
        variables, x, train=True, mutable=["batch_stats"]
    )
    grouped = x.astype(np.float64).reshape(-1, group or 8, 10, 10, F)
    var = grouped.var((1, 2, 3), keepdims=True)
    hat = (grouped - grouped.mean((1, 2, 3), keepdims=True)) / np.sqrt(var + EPSILON)
    params = variables["params"]
    expected = (hat * params["scale"] + params["bias"]).reshape(x.shape)
    assert reference.error(out, expected) < 2e-6
    updated = 0.9 * variables["batch_stats"]["var"] + 0.1 * var.mean((0, 1, 2, 3))
    assert reference.error(state["batch_stats"]["var"], updated) < 1e-6


def test_one_pass_recovers_its_digits_as_the_running_mean_follows():
    variables = make_variables(F)
    x = reference.normal(1, 8, 20, F) + np.float32(1000)
    step = jax.jit(
        lambda v: OnePassBatchNorm().apply(v, x, train=True, mutable=["batch_stats"])
    )
    for _ in range(150):
        _, state = step(variables)
        variables |= state
    flat = x.reshape(-1, F).astype(np.float64)
    assert reference.error(variables["batch_stats"]["mean"], flat.mean(0)) < 1e-5
    assert reference.error(variables["batch_stats"]["var"], flat.var(0)) < 1e-3


# ------------------------------------------------------------------------ GramNorm


def apply_gram(layer, variables, x, kernel, train=True):
    @jax.jit
    def run(variables, x, kernel):
        return layer.apply(variables, x, kernel, train=train, mutable=["batch_stats"])

    return run(variables, x, kernel)


def gram_inputs(batch=4):
    x = np.maximum(make_map(batch, 3, 5, C), 0)
    kernel = np.float32(np.random.default_rng(1).normal(0, 0.5, (1, 1, C, F)))
    variables = make_variables(F)
    variables["params"]["scale"][0] = 0.0
    return variables, x, kernel


def by_equations(variables, x, kernel, groups=1):
    """The result, and gradients of its product with random weights, in float64."""
    x, kernel = np.float64(x), np.float64(kernel[0, 0])
    scale, bias = (np.float64(variables["params"][name]) for name in ("scale", "bias"))
    weights = np.float64(reference.normal(2, *x.shape[:-1], F))
    out, dx, stats, dkernel, dscale = [], [], [], 0, 0
    for own, dy in zip(np.split(x, groups), np.split(weights, groups), strict=True):
        y, axes = own @ kernel, (0, 1, 2)
        mean, var = y.mean(axes), y.var(axes)
        stats.append((mean, var))
        hat = (y - mean) / np.sqrt(var + EPSILON)
        out.append(hat * scale + bias)
        dscale = dscale + (dy * hat).sum(axes)
        dhat = dy * scale
        centered = dhat - dhat.mean(axes) - hat * (dhat * hat).mean(axes)
        dlayer = centered / np.sqrt(var + EPSILON)
        dx.append(dlayer @ kernel.T)
        dkernel = dkernel + np.einsum("nhwc,nhwf->cf", own, dlayer)
    dparams = {"scale": dscale, "bias": weights.sum((0, 1, 2))}
    mean, var = np.mean(stats, 0)
    old = variables["batch_stats"]
    new = {"mean": 0.9 * old["mean"] + 0.1 * mean, "var": 0.9 * old["var"] + 0.1 * var}
    gradients = dparams, np.concatenate(dx), dkernel[None, None]
    return gradients, (np.concatenate(out), {"batch_stats": new})


@pytest.mark.parametrize("group_size,groups", [(0, 1), (2, 2), (1, 4)])
def test_gram_norm_equals_the_equations(group_size, groups):
    inputs = gram_inputs()
    layer = GramNorm(group_size)
    found = with_gradients(lambda *a: apply_gram(layer, *a))(*inputs)
    assert_near(found, by_equations(*inputs, groups))


@pytest.mark.parametrize("group_size,groups", [(0, 1), (4, 2)])
def test_gram_norm_at_a_mean_of_100_deviations(group_size, groups):
    """The covariance is taken of centered numbers: in float32, 4 digits are exact."""
    variables, _, kernel = gram_inputs()
    x = reference.normal(8, 8, 10, 10, C) + np.float32(100)
    (out, state) = apply_gram(GramNorm(group_size), variables, x, kernel)
    _, expected = by_equations(variables, x, kernel, groups)
    assert_near((out, state), expected, 1e-4)


@pytest.mark.parametrize(
    "settings,train",
    [({}, False), ({"group_size": 2}, False), ({"frozen": True}, True)],
)
def test_gram_norm_of_running_statistics(settings, train):
    variables, x, kernel = gram_inputs(batch=3)
    out, state = apply_gram(GramNorm(**settings), variables, x, kernel, train)
    running, params = variables["batch_stats"], variables["params"]
    y = np.float64(x) @ kernel[0, 0]
    hat = (y - running["mean"]) / np.sqrt(running["var"] + EPSILON)
    assert reference.error(out, hat * params["scale"] + params["bias"]) < 1e-5
    assert jax.tree.all(jax.tree.map(np.array_equal, state["batch_stats"], running))


def test_gram_norm_in_bfloat16():
    variables, x, kernel = gram_inputs()
    x = jnp.asarray(x, jnp.bfloat16)
    out, _ = apply_gram(GramNorm(), variables, x, kernel)
    _, (expected, _) = by_equations(variables, np.float32(x), kernel)
    assert out.dtype == jnp.bfloat16
    assert reference.error(np.float32(out), expected) < 2e-2


def test_groups_must_divide_the_batch():
    with pytest.raises(UserError, match="bn_group_size=3 .* batch of 4"):
        apply_gram(GramNorm(3), *gram_inputs())


# ---------------------------------------------------------------------- PooledNorm


@pytest.mark.parametrize("settings,train", SETTINGS, ids=str)
def test_pooled_norm_equals_the_layers_in_order(settings, train):
    options = {"train": train, "mutable": ["batch_stats"]}

    def pooled(variables, x, kernel):
        return PooledNorm(**settings).apply(variables, x, kernel, **options)

    def in_order(variables, x, kernel):
        y = convolve(x, kernel, 2)
        y, state = BatchNorm(**settings).apply(variables, y, **options)
        return nn.max_pool(nn.relu(y), (3, 3), (2, 2), pad(3)), state

    run, run_in_order = with_gradients(pooled), with_gradients(in_order)
    kernel = np.float32(np.random.default_rng(1).normal(0, 0.3, (7, 7, 3, F)))
    variables, x = make_variables(F), make_map(4, 17, 14, 3)
    assert_near(run(variables, x, kernel), run_in_order(variables, x, kernel), 2e-5)
    # All pixels of a channel tie if its scale is zero: any may get the gradient.
    variables["params"]["scale"][3] = 0.0
    assert_near(run(variables, x, kernel)[1], run_in_order(variables, x, kernel)[1])
