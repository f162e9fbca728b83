"""Pooling pixels and writing back: XLA and kernels against NumPy in float64."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from reference import normal as single_normal
from reference import softmax
from tpu_programs import CHIPS, needs_tpu_compiler, run_for_chips, run_program

from vt_flax.fused import pixel_attention, platforms
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
    out = out + np.concatenate(written, axis=2)
    if "origin" not in arrays:
        return {"out": out}
    moments = [np.sum((out - arrays["origin"]) ** n, axis=1) for n in (1, 2)]
    return {"out": out, "sums": np.stack(moments, axis=1)}


def pool_arrays(rows, shared=False):
    return {
        "x": normal(0, BATCH, PIXELS, CHANNELS),
        "filters": 0.2 * normal(1, 1 if shared else BATCH, rows, CHANNELS),
    }


def write_arrays(block_heads, tokens, features=CHANNELS, shortcut=False, origin=True):
    found = {
        "x": normal(3, BATCH, PIXELS, CHANNELS),
        "keys": 0.2 * normal(4, BATCH, block_heads * tokens, CHANNELS),
        "values": normal(5, BATCH, tokens, features),
    }
    if shortcut:
        found["shortcut"] = 0.1 * normal(7, 1, CHANNELS, features)
    if origin:
        found["origin"] = normal(8, 1, 1, features)
    return found


POOLED = [
    (1, True, pool_arrays(16, shared=True)),
    (4, True, pool_arrays(4)),
    (4, False, pool_arrays(2)),
]
WRITTEN = [
    (4, write_arrays(2, 8)),
    (1, write_arrays(4, 8, 256, shortcut=True)),
    (2, write_arrays(1, 16, 256, shortcut=True, origin=False)),
]


def close(found, expected, tolerance=1e-5):
    assert set(found) == set(expected)
    for name, value in expected.items():
        scale = np.abs(value).max()
        np.testing.assert_allclose(
            found[name], value, rtol=0, atol=tolerance * scale, err_msg=name
        )


def single(arrays):
    return {name: jnp.asarray(array, jnp.float32) for name, array in arrays.items()}


@pytest.mark.parametrize("blocks, attention, arrays", POOLED)
def test_pool(blocks, attention, arrays):
    expected = pool_reference(blocks, attention, arrays)
    given = single(arrays)
    options = {"blocks": blocks, "attention": attention}
    close(pooling.forward(given, **options, interpret=True), expected)
    run = jax.jit(lambda a: pixel_attention.pool(**a, **options))
    found = dict(zip(("pooled", "attention"), run(given), strict=True))
    close({key: value for key, value in found.items() if value is not None}, expected)


@pytest.mark.parametrize("blocks, arrays", WRITTEN)
def test_write_back(blocks, arrays):
    expected = write_back_reference(blocks, arrays)
    given = single(arrays)
    close(writing.forward(given, blocks=blocks, interpret=True), expected)
    run = jax.jit(lambda a: pixel_attention.write_back(**a, blocks=blocks))
    found = dict(zip(("out", "sums"), run(given), strict=True))
    close({key: value for key, value in found.items() if value is not None}, expected)


def slopes(compute, arrays, cotangents, name, seed):
    """The slope along a random direction of one array, by differences in float64."""
    direction = normal(seed, *arrays[name].shape)

    def total(step):
        found = compute(arrays | {name: arrays[name] + step * direction})
        return sum(np.sum(found[key] * value) for key, value in cotangents.items())

    return direction, (total(1e-5) - total(-1e-5)) / 2e-5


def check_gradients(compute, backward, arrays):
    """Compares gradients with differences of the reference.

    Args:
      compute: the reference.
      backward: functions of arrays and cotangents that return gradients.
      arrays: arguments of the reference.
    """
    expected = compute(arrays)
    cotangents = {
        name: normal(20 + i, *value.shape)
        for i, (name, value) in enumerate(expected.items())
    }
    given = single(arrays), single(cotangents)
    for gradients in backward:
        found = gradients(*given)
        assert set(found) == set(arrays)
        for i, name in enumerate(arrays):
            assert found[name].shape == arrays[name].shape
            if name == "origin":
                assert not np.any(found[name])  # a running mean has no gradient
                continue
            direction, slope = slopes(compute, arrays, cotangents, name, 30 + i)
            size = np.abs(np.asarray(found[name]) * direction).sum()
            ours = np.sum(np.asarray(found[name], np.float64) * direction)
            assert abs(ours - slope) < 3e-6 * size, name


@functools.partial(jax.jit, static_argnums=0)
def pull(compute, arrays, cotangents):
    """Gradients of the dictionary that `compute` takes."""
    return jax.vjp(compute, arrays)[1](cotangents)[0]


@pytest.mark.parametrize("blocks, attention, arrays", POOLED)
def test_gradients_of_pool(blocks, attention, arrays):
    def kernel(arrays, cotangents):
        found = pooling.backward(arrays, cotangents, blocks=blocks, interpret=True)
        return pixel_attention._like(arrays, found)

    def whole(arrays, cotangents):
        def compute(arrays):
            return pixel_attention._pool(blocks, attention, arrays)

        return pull(compute, arrays, cotangents)

    def expected(arrays):
        return pool_reference(blocks, attention, arrays)

    check_gradients(expected, (kernel, whole), arrays)


@pytest.mark.parametrize("blocks, arrays", WRITTEN)
def test_gradients_of_write_back(blocks, arrays):
    def kernel(arrays, cotangents):
        found = writing.backward(arrays, cotangents, blocks=blocks, interpret=True)
        return pixel_attention._like(arrays, found)

    def whole(arrays, cotangents):
        def compute(arrays):
            return pixel_attention._write_back(blocks, arrays)

        return pull(compute, arrays, cotangents)

    def expected(arrays):
        return write_back_reference(blocks, arrays)

    check_gradients(expected, (kernel, whole), arrays)


def test_second_derivatives_beside_kernels():
    """The rule for reverse mode can be differentiated like the XLA fallback."""
    arrays = single(pool_arrays(4))
    direction = single({name: normal(40, *a.shape) for name, a in arrays.items()})

    def curvature(compute):
        def loss(arrays):
            return jnp.sum(compute(4, True, arrays)["attention"] ** 2)

        return jax.jit(lambda *a: jax.jvp(jax.grad(loss), *a))((arrays,), (direction,))

    found = curvature(pixel_attention._pool)[1]
    expected = curvature(pixel_attention._pool_by_xla)[1]
    close(found, {name: np.asarray(array) for name, array in expected.items()})


def test_kernels_of_several_steps_and_in_bfloat16():
    """24 examples are three steps of a kernel; a total sums over all of them."""
    arrays = write_arrays(2, 8, 256, shortcut=True)
    arrays = {
        name: array if array.shape[0] == 1 else np.concatenate([array, -array, array])
        for name, array in arrays.items()
    }
    cotangent = {"out": normal(9, 24, PIXELS, 256), "sums": normal(10, 24, 2, 256)}
    given, cotangents = single(arrays), single(cotangent)
    _, backward = jax.vjp(lambda a: pixel_attention._write_back_by_xla(4, a), given)
    (expected,) = backward(cotangents)
    found = writing.backward(given, cotangents, blocks=4, interpret=True)
    found = pixel_attention._like(given, found)
    close(found, {name: np.asarray(array) for name, array in expected.items()})

    half = {
        name: array if name == "origin" else array.astype(jnp.bfloat16)
        for name, array in given.items()
    }
    out = writing.forward(half, blocks=4, interpret=True)
    assert out["out"].dtype == jnp.bfloat16 and out["sums"].dtype == jnp.float32
    exact = write_back_reference(4, {k: np.asarray(v, float) for k, v in half.items()})
    close(jax.tree.map(lambda a: a.astype(jnp.float32), out), exact, 2e-2)


@pytest.mark.parametrize("batch", [3, 12])
def test_any_batch(batch):
    """Batches that kernels do not take are computed by the XLA fallback."""
    x, filters = normal(0, batch, 9, 128), normal(1, batch, 8, 128)
    arrays = {"x": x, "filters": filters}
    pooled, _ = pixel_attention.pool(*single(arrays).values(), 2)
    expected = pool_reference(2, False, arrays)
    close({"pooled": pooled}, expected)


PROGRAM = """
import sys
import jax, jax.numpy as jnp
from vt_flax.fused import VT_PARTS
from vt_flax.nn.layers import VTLayers
from vt_flax.nn.visual_transformer import VTOptions, VTStage
from vt_flax.parallel.mesh import batch_sharding, make_mesh, replicated
from vt_flax.plan.tpu_compiler import tpu_devices

mesh = make_mesh(tpu_devices(sys.argv[1]))
# The stage of a VT-ResNet alone: the compiler needs longer for the other stages.
layers = VTLayers(jnp.bfloat16)
stage = VTStage(VTOptions(), 3, 512, layers=layers, parts=VT_PARTS["fused"])
maps = jax.ShapeDtypeStruct(
    (32, 4, 6, 256), jnp.bfloat16, sharding=batch_sharding(mesh)
)
variables = jax.eval_shape(
    lambda x: stage.init(jax.random.key(0), x, train=False), maps
)
variables = jax.tree.map(
    lambda a: jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=replicated(mesh)),
    variables,
)

def gradients(variables, maps):
    def loss(params):
        with jax.sharding.use_abstract_mesh(mesh.abstract_mesh):
            (_, tokens), new = stage.apply(
                variables | {"params": params}, maps, train=True,
                mutable=["batch_stats"],
            )
        return jnp.sum(tokens ** 2), new
    return jax.grad(loss, has_aux=True)(variables["params"])

compiled = jax.jit(gradients).lower(variables, maps).compile().as_text()
print(compiled.count('custom_call_target="tpu_custom_call"'))
for traffic in ("all-gather", "all-to-all", "collective-permute"):
    assert traffic not in compiled, traffic
"""


@needs_tpu_compiler
def test_tpus_compile_a_stage():
    """For four chips, each of which computes its own examples."""
    # Three tokenizers and two projectors, forward and back.
    assert run_program(PROGRAM, "v5e:2x2") == "10"


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
                *write_back(
                    maps, keys, values, 4, shortcut, jnp.zeros((1, 1, 256))
                ),
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
