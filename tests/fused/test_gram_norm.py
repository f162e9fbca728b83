"""Normalised 1 x 1 convolutions equal the equations, in float64, forward and back."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import reference

from vt_flax.errors import UserError
from vt_flax.fused.gram_norm import GramNorm

C, F, EPSILON = 6, 16, 1e-5


def inputs(batch=4):
    """Rectified maps with a mean, a kernel, and what the module keeps."""
    rng = np.random.default_rng(3)
    x = np.maximum(rng.normal(0.5, 1, (batch, 3, 5, C)), 0)
    # Examples of unlike means and deviations: no two groups are alike.
    x *= np.arange(1, batch + 1).reshape(-1, 1, 1, 1)
    kernel = rng.normal(0, 0.5, (1, 1, C, F))
    variables = {
        "params": {"scale": rng.normal(0, 1, F), "bias": rng.normal(0, 1, F)},
        "batch_stats": {
            "mean": rng.normal(0, 0.5, F),
            "var": rng.uniform(0.5, 2, F),
        },
    }
    variables["params"]["scale"][0] = 0.0
    return jax.tree.map(np.float32, (x, kernel, variables))


def expected(x, kernel, scale, bias, weights, groups):
    """The result, and gradients of its product with `weights`, by the equations."""
    x, kernel, scale, bias = (np.float64(a) for a in (x, kernel, scale, bias))
    kernel = kernel[0, 0]
    out, dx, dkernel, dscale = [], [], 0, 0
    pairs = zip(np.split(x, groups), np.split(np.float64(weights), groups), strict=True)
    stats = []
    for part, dy in pairs:
        y = part @ kernel
        axes = (0, 1, 2)
        mean, var = y.mean(axes), y.var(axes)
        stats.append((mean, var))
        hat = (y - mean) / np.sqrt(var + EPSILON)
        out.append(hat * scale + bias)
        dscale = dscale + (dy * hat).sum(axes)
        dhat = dy * scale
        centred = dhat - dhat.mean(axes) - hat * (dhat * hat).mean(axes)
        found = centred / np.sqrt(var + EPSILON)
        dx.append(found @ kernel.T)
        dkernel = dkernel + np.einsum("nhwc,nhwf->cf", part, found)
    gradients = {
        "x": np.concatenate(dx),
        "kernel": dkernel[None, None],
        "scale": dscale,
        "bias": np.float64(weights).sum((0, 1, 2)),
    }
    return np.concatenate(out), gradients, np.mean(stats, 0)


@pytest.mark.slow
@pytest.mark.parametrize("span,groups", [("global", 1), ("4", 1), ("2", 2), ("1", 4)])
def test_values_gradients_and_running_averages(span, groups):
    x, kernel, variables = inputs()
    weights = reference.normal(7, 4, 3, 5, F)
    params, layer = variables["params"], GramNorm(span)

    def loss(x, kernel, params):
        folded, new = layer.apply(
            {**variables, "params": params},
            x, kernel, train=True, mutable=["batch_stats"],
        )  # fmt: skip
        out = folded(x)
        return jnp.sum(out * weights), (out, new["batch_stats"])

    found, (out, stats) = jax.grad(loss, (0, 1, 2), has_aux=True)(x, kernel, params)
    wanted, gradients, (mean, var) = expected(
        x, kernel, **params, weights=weights, groups=groups
    )
    assert reference.error(out, wanted) < 1e-5
    assert reference.error(found[0], gradients["x"]) < 1e-5
    assert reference.error(found[1], gradients["kernel"]) < 1e-5
    for name in ("scale", "bias"):
        assert reference.error(found[2][name], gradients[name]) < 1e-5
    old = variables["batch_stats"]
    assert reference.error(stats["mean"], 0.9 * old["mean"] + 0.1 * mean) < 1e-5
    assert reference.error(stats["var"], 0.9 * old["var"] + 0.1 * var) < 1e-5


@pytest.mark.parametrize(
    "span,train", [("global", False), ("2", False), ("frozen", True)]
)
def test_running_averages_are_used(span, train):
    x, kernel, variables = inputs(batch=3)
    folded, state = GramNorm(span).apply(
        variables, x, kernel, train=train, mutable=["batch_stats"]
    )
    out = folded(x)
    running, params = variables["batch_stats"], variables["params"]
    y = np.float64(x) @ kernel[0, 0]
    hat = (y - running["mean"]) / np.sqrt(running["var"] + EPSILON)
    assert reference.error(out, hat * params["scale"] + params["bias"]) < 1e-5
    assert jax.tree.all(jax.tree.map(np.array_equal, state["batch_stats"], running))


def test_bfloat16_is_as_near_as_its_digits():
    x, kernel, variables = inputs()
    x = jnp.asarray(x, jnp.bfloat16)
    folded, _ = GramNorm().apply(
        variables, x, kernel, train=True, mutable=["batch_stats"]
    )
    out = folded(x)
    wanted, *_ = expected(
        np.float32(x), kernel, **variables["params"], weights=out, groups=1
    )
    assert out.dtype == jnp.bfloat16
    assert reference.error(np.float32(out), wanted) < 2e-2


def test_groups_must_divide_the_batch():
    x, kernel, variables = inputs()
    with pytest.raises(UserError, match="span 3 .* batch of 4"):
        GramNorm("3").apply(variables, x, kernel, train=True, mutable=["batch_stats"])
