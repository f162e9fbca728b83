"""Pooling pixels and writing back: products and kernels against NumPy in float64."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from reference import normal as single_normal
from reference import softmax
from tpu_programs import CHIPS, needs_tpu_compiler, run_for_chips, run_program

from vt_flax.fused import pixel_attention as attention
from vt_flax.fused import platforms
from vt_flax.fused.kernels import pooling, writing

pytestmark = pytest.mark.slow

BATCH, PIXELS, CHANNELS = 8, 21, 128


@pytest.fixture(autouse=True)
def for_tpus(monkeypatch):
    """Has kernels traced here too; what runs on CPUs is products."""
    monkeypatch.setattr(platforms, "for_tpus", lambda: True)


def normal(seed, *shape):
    """Numbers in float64 that float32 holds too."""
    return single_normal(seed, *shape).astype(np.float64)


def block(x, g, blocks):
    width = x.shape[-1] // blocks
    return x[..., g * width : (g + 1) * width]


def taken(arrays):
    """Maps with their scale and bias."""
    x = arrays["x"]
    if "affine" in arrays:
        x = x * arrays["affine"][:, :1] + arrays["affine"][:, 1:]
    return x


def pool_reference(blocks, weights, arrays):
    """A_g = softmax over pixels of F_g x_g^T, and A_g x_g, block by block."""
    x = taken(arrays)
    filters = np.broadcast_to(arrays["filters"], (len(x), *arrays["filters"].shape[1:]))
    found, pooled = [], []
    for g in range(blocks):
        own = block(x, g, blocks)
        logits = np.einsum("bmc,bpc->bmp", block(filters, g, blocks), own)
        found.append(softmax(logits, axis=2))
        pooled.append(np.einsum("bmp,bpc->bmc", found[-1], own))
    result = {"pooled": np.concatenate(pooled, axis=2)}
    return result | ({"weights": np.concatenate(found, axis=1)} if weights else {})


def write_back_reference(blocks, arrays):
    """x S + W_h^T V_h, W_h = softmax over tokens of K_h x_g^T, head by head."""
    x, values = taken(arrays), arrays["values"]
    tokens = values.shape[1]
    each = arrays["keys"].shape[1] // tokens
    heads = blocks * each
    out = x @ arrays["shortcut"][0] if "shortcut" in arrays else x
    written = []
    for h in range(heads):
        g, k = divmod(h, each)
        keys = block(arrays["keys"][:, k * tokens : (k + 1) * tokens], g, blocks)
        logits = np.einsum("blc,bpc->blp", keys, block(x, g, blocks))
        weights = softmax(logits, axis=1)
        written.append(np.einsum("blp,bld->bpd", weights, block(values, h, heads)))
    out = out + np.concatenate(written, axis=2)
    if "origin" not in arrays:
        return {"out": out}
    moments = [np.sum((out - arrays["origin"]) ** n, axis=1) for n in (1, 2)]
    return {"out": out, "sums": np.stack(moments, axis=1)}


def pool_arrays(rows, shared=False, affine=0):
    found = {
        "x": normal(0, BATCH, PIXELS, CHANNELS),
        "filters": 0.2 * normal(1, 1 if shared else BATCH, rows, CHANNELS),
    }
    if affine:
        found["affine"] = 1 + 0.5 * normal(2, affine, 2, CHANNELS)
    return found


def write_arrays(
    each, tokens, features=CHANNELS, affine=0, shortcut=False, origin=True
):
    found = {
        "x": normal(3, BATCH, PIXELS, CHANNELS),
        "keys": 0.2 * normal(4, BATCH, each * tokens, CHANNELS),
        "values": normal(5, BATCH, tokens, features),
    }
    if affine:
        found["affine"] = 1 + 0.5 * normal(6, affine, 2, CHANNELS)
    if shortcut:
        found["shortcut"] = 0.1 * normal(7, 1, CHANNELS, features)
    if origin:
        found["origin"] = normal(8, 1, 1, features)
    return found


POOLED = [
    (1, True, pool_arrays(16, shared=True)),
    (4, True, pool_arrays(4, affine=1)),
    (4, False, pool_arrays(2, affine=BATCH)),
]
WRITTEN = [
    (4, write_arrays(2, 8, affine=1)),
    (1, write_arrays(4, 8, 256, shortcut=True)),
    (2, write_arrays(1, 16, 256, affine=BATCH, shortcut=True, origin=False)),
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


@pytest.mark.parametrize("blocks, weights, arrays", POOLED)
def test_pool(blocks, weights, arrays):
    expected = pool_reference(blocks, weights, arrays)
    given = single(arrays)
    products = jax.jit(attention._pool_by_products, static_argnums=(0, 1))
    close(products(blocks, weights, given), expected)
    options = {"blocks": blocks, "weights": weights, "interpret": True}
    close(pooling.forward(given, **options), expected)
    pooled, found = jax.jit(
        lambda a: attention.pool(
            a["x"], a["filters"], blocks, affine=a.get("affine"), weights=weights
        )
    )(given)
    close({"pooled": pooled}, {"pooled": expected["pooled"]})
    assert (found is not None) == weights


@pytest.mark.parametrize("blocks, arrays", WRITTEN)
def test_write_back(blocks, arrays):
    expected = write_back_reference(blocks, arrays)
    given = single(arrays)
    products = jax.jit(attention._write_back_by_products, static_argnums=0)
    close(products(blocks, given), expected)
    close(writing.forward(given, blocks=blocks, interpret=True), expected)
    out, sums = jax.jit(lambda a: attention.write_back(**a, blocks=blocks))(given)
    close({"out": out}, {"out": expected["out"]})
    assert (sums is not None) == ("origin" in arrays)


def slopes(compute, arrays, cotangents, name, seed):
    """The slope along a random direction of one array, by differences in float64."""
    direction = normal(seed, *arrays[name].shape)

    def total(step):
        found = compute(arrays | {name: arrays[name] + step * direction})
        return sum(np.sum(found[key] * value) for key, value in cotangents.items())

    return direction, (total(1e-5) - total(-1e-5)) / 2e-5


def check_cotangents(compute, kernel, arrays):
    """Those of the kernel and of JAX's own against differences of the reference."""
    expected = compute(arrays)
    cotangents = {
        name: normal(20 + i, *value.shape)
        for i, (name, value) in enumerate(expected.items())
    }
    given = single(arrays), single(cotangents)
    for pull in kernel:
        found = pull(*given)
        assert set(found) == set(arrays)
        for i, name in enumerate(arrays):
            assert found[name].shape == arrays[name].shape
            if name == "origin":
                assert not np.any(found[name])  # by decree: running means have none
                continue
            direction, slope = slopes(compute, arrays, cotangents, name, 30 + i)
            size = np.abs(np.asarray(found[name]) * direction).sum()
            ours = np.sum(np.asarray(found[name], np.float64) * direction)
            assert abs(ours - slope) < 3e-6 * size, name


@pytest.mark.parametrize("blocks, weights, arrays", POOLED)
def test_cotangents_of_pool(blocks, weights, arrays):
    def kernel(arrays, cotangents):
        found = pooling.backward(arrays, cotangents, blocks=blocks, interpret=True)
        return attention._fitting(arrays, found)

    def whole(arrays, cotangents):
        compute = lambda a: attention._pool(blocks, weights, a)  # noqa: E731
        return jax.jit(attention._pull, static_argnums=0)(compute, arrays, cotangents)

    check_cotangents(
        lambda a: pool_reference(blocks, weights, a), (kernel, whole), arrays
    )


@pytest.mark.parametrize("blocks, arrays", WRITTEN)
def test_cotangents_of_write_back(blocks, arrays):
    def kernel(arrays, cotangents):
        found = writing.backward(arrays, cotangents, blocks=blocks, interpret=True)
        return attention._fitting(arrays, found)

    def whole(arrays, cotangents):
        compute = lambda a: attention._write_back(blocks, a)  # noqa: E731
        return jax.jit(attention._pull, static_argnums=0)(compute, arrays, cotangents)

    check_cotangents(lambda a: write_back_reference(blocks, a), (kernel, whole), arrays)


def test_second_derivatives_beside_kernels():
    """The rule for reverse mode can be differentiated, as products are."""
    arrays = single(pool_arrays(4, affine=1))
    direction = single({name: normal(40, *a.shape) for name, a in arrays.items()})

    def curvature(compute):
        def loss(arrays):
            return jnp.sum(compute(4, True, arrays)["weights"] ** 2)

        return jax.jit(lambda *a: jax.jvp(jax.grad(loss), *a))((arrays,), (direction,))

    found = curvature(attention._pool)[1]
    expected = curvature(attention._pool_by_products)[1]
    close(found, {name: np.asarray(array) for name, array in expected.items()})


def test_kernels_of_several_steps_and_in_bfloat16():
    """24 examples are three steps of a kernel, and a total is of all of them."""
    arrays = write_arrays(2, 8, 256, shortcut=True)
    arrays = {
        name: array if array.shape[0] == 1 else np.concatenate([array, -array, array])
        for name, array in arrays.items()
    }
    cotangent = {"out": normal(9, 24, PIXELS, 256), "sums": normal(10, 24, 2, 256)}
    given, cotangents = single(arrays), single(cotangent)
    expected = attention._pull(
        lambda a: attention._write_back_by_products(4, a), given, cotangents
    )
    found = writing.backward(given, cotangents, blocks=4, interpret=True)
    found = attention._fitting(given, found)
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
    """Batches that kernels do not take are computed by products."""
    x, filters = normal(0, batch, 9, 128), normal(1, batch, 8, 128)
    arrays = {"x": x, "filters": filters}
    pooled, _ = attention.pool(*single(arrays).values(), 2)
    expected = pool_reference(2, False, arrays)
    close({"pooled": pooled}, expected)


PROGRAM = """
import sys
import jax, jax.numpy as jnp
from vt_flax.nn.visual_transformer import VTOptions, VTStage
from vt_flax.parallel.mesh import batch_sharding, make_mesh, replicated
from vt_flax.parallel.topology import tpu_devices

mesh = make_mesh(tpu_devices(sys.argv[1]))
# As in VT-ResNets, whose other stages take the compiler longer than this one.
stage = VTStage(VTOptions(formulation="fused", dtype=jnp.bfloat16), 3, 512)
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
def test_tpus_can_compile_it():
    """For four chips, each of which works on its own examples alone."""
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
            affine = jnp.stack([maps[:, 0], maps[:, 1]], 1).astype(jnp.float32)
            found = [
                *pool(maps, filters, 4, affine=affine, weights=True),
                *write_back(
                    maps, keys, values, 4, affine=affine, shortcut=shortcut,
                    origin=jnp.zeros((1, 1, 256)),
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
def test_each_chip_can_compile_the_kernels(topology, kernels):
    """Three operations, forward and back.

    A v4 has 16 MiB of memory on the chip, in which a map of 14 x 14 x 1024 does not fit
    twice: it computes products.
    """
    assert kernels[topology] == ("4" if topology.startswith("v4") else "6")
