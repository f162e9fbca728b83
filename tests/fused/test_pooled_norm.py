"""What is pooled before it is normalised equals what is normalised before."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import reference

from vt_flax.fused.pooled_norm import PooledNorm
from vt_flax.nn.layers import convolve, pad
from vt_flax.nn.norm import BatchNorm

F = 10


def inputs():
    rng = np.random.default_rng(5)
    x = rng.normal(0.3, 1, (4, 17, 14, 3))
    x *= np.arange(1, 5).reshape(-1, 1, 1, 1)
    kernel = rng.normal(0, 0.3, (7, 7, 3, F))
    # Scales of both signs: these decide which pixel is the largest.
    scale = np.linspace(-1.5, 1.5, F)
    variables = {
        "params": {"scale": scale, "bias": rng.normal(0, 1, F)},
        "batch_stats": {"mean": rng.normal(0, 1, F), "var": rng.uniform(0.5, 2, F)},
    }
    return jax.tree.map(np.float32, (x, kernel, variables))


def in_order(layer, variables, x, kernel, train):
    """Convolved, normalised, rectified and pooled, one after the other."""
    y, new = layer.apply(
        variables, convolve(x, kernel, 2), train=train, mutable=["batch_stats"]
    )
    return nn.max_pool(nn.relu(y), (3, 3), (2, 2), pad(3)), new


@pytest.mark.slow
@pytest.mark.parametrize(
    "span,train",
    [("global", True), ("2", True), ("frozen", True), ("global", False)],
)
def test_equals_the_layers_in_order(span, train):
    x, kernel, variables = inputs()

    def pooled(variables, x, kernel):
        return PooledNorm(span).apply(
            variables, x, kernel, train=train, mutable=["batch_stats"]
        )

    def plain(variables, x, kernel):
        return in_order(BatchNorm(span), variables, x, kernel, train)

    found, wanted = (f(variables, x, kernel) for f in (pooled, plain))
    assert reference.error(found[0], wanted[0]) < 1e-5
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6),
        found[1], wanted[1],
    )  # fmt: skip
    weights = reference.normal(2, *wanted[0].shape)

    def gradients(f):
        def loss(params, x, kernel):
            out, _ = f({**variables, "params": params}, x, kernel)
            return jnp.sum(out * weights)

        return jax.grad(loss, (0, 1, 2))(variables["params"], x, kernel)

    for a, b in zip(
        *map(jax.tree.leaves, map(gradients, (pooled, plain))), strict=True
    ):
        assert reference.error(a, b) < 2e-5


def test_by_numpy():
    x, kernel, variables = inputs()
    variables["params"]["scale"][3] = 0.0
    found, _ = PooledNorm().apply(
        variables, x, kernel, train=True, mutable=["batch_stats"]
    )
    padded = np.pad(np.float64(x), ((0, 0), (3, 3), (3, 3), (0, 0)))
    rows, columns = (range(0, side, 2) for side in x.shape[1:3])
    y = np.stack(
        [
            np.stack(
                [
                    np.einsum("nhwc,hwcf->nf", padded[:, i : i + 7, j : j + 7], kernel)
                    for j in columns
                ],
                1,
            )
            for i in rows
        ],
        1,
    )
    axes = (0, 1, 2)
    hat = (y - y.mean(axes)) / np.sqrt(y.var(axes) + 1e-5)
    params = variables["params"]
    z = np.maximum(hat * params["scale"] + params["bias"], 0)
    z = np.pad(z, ((0, 0), (1, 1), (1, 1), (0, 0)), constant_values=-np.inf)
    height, width = ((side + 1) // 2 for side in y.shape[1:3])
    wanted = np.stack(
        [
            np.stack(
                [
                    z[:, i : i + 3, j : j + 3].max((1, 2))
                    for j in range(0, 2 * width, 2)
                ],
                1,
            )
            for i in range(0, 2 * height, 2)
        ],
        1,
    )
    assert reference.error(found, wanted) < 1e-5
