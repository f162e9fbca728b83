"""Pooling pixels and writing back: XLA and kernels against NumPy in float64."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from reference import normal as single_normal
from reference import softmax
from tpu_programs import CHIPS, needs_tpu_compiler, run_for_chips

from vt_flax.fused import folded, pixel_attention, platforms
from vt_flax.fused.kernels import pooling, writing

pytestmark = pytest.mark.slow

BATCH, PIXELS, CHANNELS = 8, 21, 128


@pytest.fixture(autouse=True)
def for_tpus(monkeypatch):
    """Traces kernels here too; CPUs run the XLA fallback."""
    monkeypatch.setattr(platforms, "for_tpus", lambda: True)


def normal(seed, *shape):
    """Numbers in float64 that float32 holds too."""
    return single_normal(seed, *shape).astype(np.float64)


def block(x, g, blocks):
    width = x.shape[-1] // blocks
    return x[..., g * width : (g + 1) * width]


def pool_reference(blocks, attention, arrays):
    """A_g = softmax over pixels of F_g x_g^T, and A_g x_g, block by block."""
    x = arrays["x"]
    filters = np.broadcast_to(arrays["filters"], (len(x), *arrays["filters"].shape[1:]))
    found, pooled = [], []
    for g in range(blocks):
        own = block(x, g, blocks)
        logits = np.einsum("bmc,bpc->bmp", block(filters, g, blocks), own)
        found.append(softmax(logits, axis=2))
        pooled.append(np.einsum("bmp,bpc->bmc", found[-1], own))
    result = {"pooled": np.concatenate(pooled, axis=2)}
    if attention:
        result["attention"] = np.concatenate(found, axis=1)
    return result


def write_back_reference(blocks, arrays):
    """x S + W_h^T V_h, W_h = softmax over tokens of K_h x_g^T, head by head."""
    x, values = arrays["x"], arrays["values"]
    tokens = values.shape[1]
    block_heads = arrays["keys"].shape[1] // tokens
    heads = blocks * block_heads
    out = x @ arrays["shortcut"][0] if "shortcut" in arrays else x
    written = []
    for h in range(heads):
        g, k = divmod(h, block_heads)
        keys = block(arrays["keys"][:, k * tokens : (k + 1) * tokens], g, blocks)
        logits = np.einsum("blc,bpc->blp", keys, block(x, g, blocks))
        attention = softmax(logits, axis=1)
        written.append(np.einsum("blp,bld->bpd", attention, block(values, h, heads)))
    return {"out": out + np.concatenate(written, axis=2)}


def pool_arrays(rows, shared=False):
    return {
        "x": normal(0, BATCH, PIXELS, CHANNELS),
        "filters": 0.2 * normal(1, 1 if shared else BATCH, rows, CHANNELS),
    }


def write_arrays(block_heads, tokens, features=CHANNELS, shortcut=False):
    arrays = {
        "x": normal(3, BATCH, PIXELS, CHANNELS),
        "keys": 0.2 * normal(4, BATCH, block_heads * tokens, CHANNELS),
        "values": normal(5, BATCH, tokens, features),
    }
    if shortcut:
        arrays["shortcut"] = 0.1 * normal(7, 1, CHANNELS, features)
    return arrays


def close(found, expected, tolerance=1e-5):
    assert set(found) == set(expected)
    for name, value in expected.items():
        scale = np.abs(value).max()
        np.testing.assert_allclose(
            found[name], value, rtol=0, atol=tolerance * scale, err_msg=name
        )


def single(arrays):
    return {name: jnp.asarray(array, jnp.float32) for name, array in arrays.items()}


def slope(compute, arrays, cotangents, name, direction):
    """The slope along a direction of one array, by differences in float64."""

    def total(step):
        results = compute(arrays | {name: arrays[name] + step * direction})
        return sum(np.sum(results[key] * value) for key, value in cotangents.items())

    return (total(1e-5) - total(-1e-5)) / 2e-5


def check(restated, kernels, layer, arrays):
    """Compares kernels, and the layer by XLA, with a restatement and its slopes.

    Args:
      restated: the restatement, of a dictionary of arrays.
      kernels: functions of the forward and the backward pass.
      layer: the layer, which gives a dictionary of arrays as `restated` does.
      arrays: arguments in float64.
    """
    expected, given = restated(arrays), single(arrays)
    cotangents = {
        name: normal(20 + i, *value.shape)
        for i, (name, value) in enumerate(expected.items())
    }

    @jax.jit
    def by_xla(arrays, cotangents):
        results, pull = jax.vjp(layer, arrays)
        return results, pull(cotangents)[0]

    results, gradients = by_xla(given, single(cotangents))
    forward, backward = kernels
    close(results, expected)
    close(forward(given), expected)
    of_kernel = pixel_attention._like(given, backward(given, single(cotangents)))
    for found in (gradients, of_kernel):
        assert set(found) == set(arrays)
        for i, name in enumerate(arrays):
            assert found[name].shape == arrays[name].shape
            direction = normal(30 + i, *arrays[name].shape)
            terms = np.asarray(found[name], np.float64) * direction
            wrong = terms.sum() - slope(restated, arrays, cotangents, name, direction)
            assert abs(wrong) < 3e-6 * np.abs(terms).sum(), name


@pytest.mark.parametrize(
    "blocks, attention, arrays",
    [
        (1, True, pool_arrays(16, shared=True)),
        (4, False, pool_arrays(2)),
    ],
)
def test_pool(blocks, attention, arrays):
    def layer(arrays):
        results = pixel_attention.pool(**arrays, blocks=blocks, attention=attention)
        return dict(
            zip(("pooled", "attention")[: 1 + attention], results, strict=False)
        )

    options = {"blocks": blocks, "interpret": True}
    kernels = (
        functools.partial(pooling.forward, attention=attention, **options),
        functools.partial(pooling.backward, **options),
    )
    check(functools.partial(pool_reference, blocks, attention), kernels, layer, arrays)


@pytest.mark.parametrize(
    "blocks, arrays",
    [(4, write_arrays(2, 8)), (1, write_arrays(4, 8, 256, shortcut=True))],
)
def test_write_back(blocks, arrays):
    def layer(arrays):
        return {"out": pixel_attention.write_back(**arrays, blocks=blocks)}

    options = {"blocks": blocks, "interpret": True}
    kernels = (
        functools.partial(writing.forward, **options),
        functools.partial(writing.backward, **options),
    )
    check(functools.partial(write_back_reference, blocks), kernels, layer, arrays)


def test_kernels_of_several_steps_in_bfloat16():
    """24 examples are three steps of a kernel; a total sums over all of them."""
    arrays = {
        name: array if array.shape[0] == 1 else np.concatenate([array, -array, array])
        for name, array in write_arrays(2, 8, 256, shortcut=True).items()
    }
    cotangents = {"out": normal(9, 24, PIXELS, 256)}
    half, full = (
        jax.tree.map(lambda a, t=t: jnp.asarray(a, t), (arrays, cotangents))
        for t in (jnp.bfloat16, jnp.float32)
    )
    found = writing.backward(*half, blocks=4, interpret=True)
    found = pixel_attention._like(half[0], found)
    _, pull = jax.vjp(lambda a: folded.write_back(**a, blocks=4), full[0])
    (expected,) = pull(full[1]["out"])
    assert {array.dtype for array in found.values()} == {jnp.dtype("bfloat16")}
    expected = {name: np.asarray(array) for name, array in expected.items()}
    close({k: np.asarray(v, np.float32) for k, v in found.items()}, expected, 3e-2)


@pytest.mark.parametrize("batch", [3, 12])
def test_any_batch(batch):
    """Batches that kernels do not take are computed by the XLA fallback."""
    x, filters = normal(0, batch, 9, 128), normal(1, batch, 8, 128)
    arrays = {"x": x, "filters": filters}
    pooled, _ = pixel_attention.pool(*single(arrays).values(), 2)
    close({"pooled": pooled}, pool_reference(2, False, arrays))


KERNELS = """
import jax, jax.numpy as jnp
from vt_flax.fused.pixel_attention import pool, write_back
from vt_flax.parallel.mesh import batch_sharding, on_devices_of, replicated

def compile_for(mesh):
    def shape(*sizes):
        sharding = replicated(mesh) if sizes[0] == 1 else batch_sharding(mesh)
        return jax.ShapeDtypeStruct(sizes, jnp.bfloat16, sharding=sharding)

    batch = 8 * mesh.size
    arguments = (
        shape(batch, 24, 256), shape(1, 16, 256),
        shape(batch, 16, 256), shape(batch, 8, 256), shape(1, 256, 256),
        shape(batch, 196, 1024), shape(batch, 8, 1024),
    )

    def loss(maps, filters, keys, values, shortcut, large, large_filters):
        with on_devices_of(mesh):
            found = [
                *pool(maps, filters, 4, attention=True),
                write_back(maps, keys, values, 4, shortcut),
                pool(large, large_filters, 16)[0],
            ]
        return sum(jnp.sum(jnp.square(x.astype(jnp.float32))) for x in found)

    gradients = jax.jit(jax.grad(loss, argnums=range(7)))
    compiled = gradients.lower(*arguments).compile().as_text()
    for traffic in ("all-gather", "all-to-all", "collective-permute"):
        assert traffic not in compiled, traffic
    return compiled.count('custom_call_target="tpu_custom_call"')
"""


@pytest.fixture(scope="module")
def kernels():
    return run_for_chips(KERNELS)


@needs_tpu_compiler
@pytest.mark.parametrize("topology", CHIPS)
def test_each_chip_compiles_the_kernels(topology, kernels):
    """Three operations, forward and back.

    A v4 has 16 MiB of memory on the chip, in which a map of 14 x 14 x 1024 does not fit
    twice: it uses the XLA fallback.
    """
    assert kernels[topology] == ("4" if topology.startswith("v4") else "6")
