"""Gradients of 1 x 1 convolutions: products and kernels against NumPy in float64."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from reference import normal as single_normal
from tpu_programs import CHIPS, needs_tpu_compiler, run_for_chips

from vt_flax.fused import platforms, pointwise
from vt_flax.fused.kernels import pointwise as kernels
from vt_flax.nn.layers import convolve, relu
from vt_flax.parallel.mesh import batch_sharding, make_mesh

pytestmark = pytest.mark.slow

# Batch, height, width, narrow, wide: channels in lanes, or the batch, or neither whole.
SHAPES = [
    (16, 1, 3, 64, 128),
    (32, 4, 6, 128, 256),
    (256, 2, 3, 64, 128),
]
# Of sides that are even, for what is wanted of every second pixel.
EVEN = [(32, 4, 6, 128, 256), (256, 4, 2, 64, 128)]


@pytest.fixture(autouse=True)
def for_tpus(monkeypatch):
    """Has kernels traced here too; what runs on CPUs is products."""
    monkeypatch.setattr(platforms, "for_tpus", lambda: True)


def normal(seed, *shape):
    """Numbers that bfloat16 holds too."""
    found = jnp.asarray(single_normal(seed, *shape), jnp.bfloat16)
    return np.asarray(found, np.float64)


def close(found, expected, tolerance):
    assert set(found) == set(expected)
    for name, value in expected.items():
        assert found[name].shape == value.shape
        scale = np.abs(value).max()
        np.testing.assert_allclose(
            np.asarray(found[name], np.float64),
            value,
            rtol=0,
            atol=tolerance * scale,
            err_msg=name,
        )


def arrays_of(shape, widening, stride=1, parts=0):
    batch, height, width, narrow, wide = shape
    before, after = (narrow, wide) if widening else (wide, narrow)
    maps = {
        "x": normal(0, batch, height, width, before),
        "dy": normal(1, batch, height, width, after),
    }
    if parts:
        maps["shares"] = normal(4, batch, parts)
    if not widening:
        strided = height // stride, width // stride
        maps["dr"] = normal(2, batch, *strided, before)
    return maps, normal(3, 1, 1, before, after)


def gradients(maps, kernel, rectify):
    """The equations: dx = dy W^T, dW = x^T dy, db = sum dy, and those of max(x, 0)."""
    x, dy = maps["x"], maps["dy"]
    taken = np.maximum(x, 0) if rectify else x
    dx = dy @ kernel[0, 0].T
    if "dr" in maps:
        stride = x.shape[1] // maps["dr"].shape[1]
        dx[:, ::stride, ::stride] += maps["dr"]
    found = {
        "x": np.where(x > 0, dx, 0) if rectify else dx,
        "kernel": np.einsum("nhwc,nhwf->cf", taken, dy)[None, None],
    }
    if "dr" not in maps:
        shares = maps.get("shares", np.ones((len(x), 1)))
        found["bias"] = np.einsum("nhwf,np->pf", dy, shares)[None]
    return found


def pulled(maps, kernel, rectify):
    """What the gradients of the whole operation are."""
    maps = {name: jnp.asarray(array, jnp.float32) for name, array in maps.items()}
    arrays = {"x": maps["x"], "kernel": jnp.asarray(kernel, jnp.float32)}
    if "dr" in maps:
        stride = maps["x"].shape[1] // maps["dr"].shape[1]
        _, pull = jax.vjp(
            lambda a: pointwise.rectify_and_narrow(**a, stride=stride), arrays
        )
        return pull((maps["dr"], maps["dy"]))[0]
    shares = maps.get("shares")
    parts = 1 if shares is None else shares.shape[1]
    arrays["bias"] = jnp.zeros((1, parts, kernel.shape[-1]))

    def widen(arrays):
        return pointwise.widen(**arrays, shares=shares, rectify=rectify)

    return jax.vjp(widen, arrays)[1](maps["dy"])[0]


def kernel_gradients(maps, kernel, rectify, dtype):
    arrays = {name: jnp.asarray(array, dtype) for name, array in maps.items()}
    kernel = jnp.asarray(kernel[0], dtype)
    if "dr" in maps:
        arrays["kernel"] = jnp.swapaxes(kernel, 1, 2)
        found = kernels.narrowing(arrays, interpret=True)
        found["kernel"] = jnp.swapaxes(found["kernel"], 1, 2)
    else:
        arrays["kernel"] = kernel
        found = kernels.widening(arrays, rectify=rectify, interpret=True)
        found["bias"] = jnp.sum(found["bias"], 0)[None]
    assert found["x"].dtype == dtype and found["kernel"].dtype == jnp.float32
    return found | {"kernel": jnp.sum(found["kernel"], 0)[None, None]}


@pytest.mark.parametrize("widening, rectify", [(True, False), (True, True), (False, 1)])
@pytest.mark.parametrize("dtype, tolerance", [("float32", 1e-6), ("bfloat16", 4e-3)])
@pytest.mark.parametrize("shape", SHAPES)
def test_kernels(shape, dtype, tolerance, widening, rectify, monkeypatch):
    """In several steps, an odd number of them too, and in one."""
    maps, kernel = arrays_of(shape, widening)
    expected = gradients(maps, kernel, rectify)
    for step in (2**30, 1) if dtype == "float32" else (3 * 2**18,):
        monkeypatch.setattr(kernels, "STEP_BYTES", step)
        close(kernel_gradients(maps, kernel, rectify, dtype), expected, tolerance)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("step", [2**30, 1])
def test_shares_of_the_bias(shape, step, monkeypatch):
    maps, kernel = arrays_of(shape, True, parts=2)
    expected = gradients(maps, kernel, True)
    monkeypatch.setattr(kernels, "STEP_BYTES", step)
    close(kernel_gradients(maps, kernel, True, "float32"), expected, 1e-6)
    if step > 1:
        found = jax.jit(pulled, static_argnums=2)(maps, kernel, True)
        close(found, expected, 1e-5)


def test_maps_of_few_channels_side_by_side(monkeypatch):
    """The batch fills lanes, as for each of them alone."""
    maps, kernel = arrays_of((128, 2, 3, 128, 256), True)
    arrays = {name: jnp.asarray(array, jnp.float32) for name, array in maps.items()}
    arrays["kernel"] = jnp.asarray(kernel[0], jnp.float32)
    monkeypatch.setattr(kernels, "STEP_BYTES", 2**20)
    found = kernels.widening(arrays, grain=64, interpret=True)
    found["kernel"] = jnp.sum(found["kernel"], 0)[None, None]
    found["bias"] = jnp.sum(found["bias"], 0)[None]
    close(found, gradients(maps, kernel, False), 1e-6)


@pytest.mark.parametrize("step", [2**30, 2**20, 1])
@pytest.mark.parametrize("shape", EVEN)
def test_every_second_pixel(shape, step, monkeypatch):
    """Of a whole map, of a part of its rows, and of a part of one row, at a time."""
    maps, kernel = arrays_of(shape, False, stride=2)
    monkeypatch.setattr(kernels, "STEP_BYTES", step)
    found = kernel_gradients(maps, kernel, True, "float32")
    close(found, gradients(maps, kernel, True), 1e-6)


OTHERS = [(12, 2, 3, 128, 256), (32, 2, 2, 96, 128), (96, 2, 2, 64, 128)]


@pytest.mark.parametrize("shape", [SHAPES[0], *OTHERS, (16, 1, 1, 512, 1024)])
@pytest.mark.parametrize("widening, rectify", [(True, False), (True, True), (False, 1)])
def test_gradients(shape, widening, rectify, monkeypatch):
    """Also of what kernels do not take: batches, channels, large ones."""
    maps, kernel = arrays_of(shape, widening)
    if shape not in SHAPES:
        monkeypatch.delattr(jax.lax, "platform_dependent")
    found = jax.jit(pulled, static_argnums=2)(maps, kernel, rectify)
    close(found, gradients(maps, kernel, rectify), 1e-5)


@pytest.mark.parametrize("shape", [*EVEN, OTHERS[1]])
def test_gradients_of_every_second_pixel(shape):
    maps, kernel = arrays_of(shape, False, stride=2)
    found = jax.jit(pulled, static_argnums=2)(maps, kernel, True)
    close(found, gradients(maps, kernel, True), 1e-5)


def test_values():
    x, kernel, bias = normal(0, 2, 3, 3, 6), normal(1, 1, 1, 6, 10), normal(2, 10)
    single = [jnp.asarray(a, jnp.float32) for a in (x, kernel, bias[None, None])]
    for rectify in (False, True):
        taken = np.maximum(x, 0) if rectify else x
        found = pointwise.widen(*single, rectify=rectify)
        np.testing.assert_allclose(found, taken @ kernel[0, 0] + bias, 1e-5, 1e-5)
    shares, both = np.array([[0.0, 1.0], [2.0, 1.0]]), np.stack([bias, 3 * bias])
    found = pointwise.widen(
        *single[:2], *(jnp.asarray(a, jnp.float32) for a in (both[None], shares))
    )
    expected = x @ kernel[0, 0] + (shares @ both)[:, None, None]
    np.testing.assert_allclose(found, expected, 1e-5, 1e-5)
    r, y = pointwise.rectify_and_narrow(*single[:2])
    np.testing.assert_array_equal(r, np.maximum(x, 0))
    np.testing.assert_allclose(y, np.maximum(x, 0) @ kernel[0, 0], 1e-5, 1e-5)
    strided, same = pointwise.rectify_and_narrow(*single[:2], stride=2)
    np.testing.assert_array_equal(strided, np.maximum(x, 0)[:, ::2, ::2])
    np.testing.assert_array_equal(same, y)


@pytest.mark.parametrize("tpus", [True, False])
@pytest.mark.parametrize("widening", [True, False])
def test_elsewhere_it_is_what_autodiff_gives(widening, tpus, monkeypatch):
    """To the bit, in bfloat16; but for TPUs a widening kernel's is not rounded."""
    monkeypatch.setattr(platforms, "for_tpus", lambda: tpus)
    maps, kernel = arrays_of((4, 3, 3, 8, 16), widening)
    x, dy = (jnp.asarray(maps[name], jnp.bfloat16) for name in ("x", "dy"))
    kernel = jnp.asarray(kernel, jnp.float32)
    bias = jnp.zeros((1, 1, kernel.shape[-1]))

    def plain(x, kernel):
        return convolve(relu(x), kernel, dtype=x.dtype)

    def ours(x, kernel):
        if widening:
            return pointwise.widen(x, kernel, bias, rectify=True)
        return pointwise.rectify_and_narrow(x, kernel)[1]

    expected = jax.vjp(plain, x, kernel)[1](dy)
    for one, other in zip(jax.vjp(ours, x, kernel)[1](dy), expected, strict=True):
        assert one.dtype == other.dtype
        if widening and one.shape == kernel.shape:
            one = one.astype(jnp.bfloat16).astype(one.dtype)
        np.testing.assert_array_equal(one, other)


@pytest.mark.parametrize("widening, stride", [(True, 1), (False, 1), (False, 2)])
def test_eight_devices_equal_one(widening, stride, monkeypatch):
    """Each runs the kernel on its own examples, and kernels' gradients are summed."""
    monkeypatch.setattr(
        jax.lax, "platform_dependent", lambda *arrays, tpu, default: tpu(*arrays)
    )
    seen = []
    for name in ("widening", "narrowing"):
        whole = getattr(kernels, name)

        def interpreted(arrays, whole=whole, **options):
            seen.append(len(arrays["x"]))
            return whole(arrays, interpret=True, **options)

        monkeypatch.setattr(kernels, name, interpreted)
    maps, kernel = arrays_of((128, 2, 2, 128, 256), widening, stride)
    mesh = make_mesh()
    spread = jax.device_put(maps, batch_sharding(mesh))
    with jax.sharding.use_abstract_mesh(mesh.abstract_mesh):
        found = jax.jit(pulled, static_argnums=2)(spread, kernel, True)
    assert seen == [128 // mesh.size] and mesh.size == 8
    close(found, gradients(maps, kernel, True), 1e-6)


PROGRAM = """
import jax, jax.numpy as jnp
from vt_flax.fused.pointwise import rectify_and_narrow, widen
from vt_flax.parallel.mesh import batch_sharding, on_devices_of, replicated

# The side, channels, type and stride of what a block narrows and widens.
SHAPES = (
    (56, 128, "bfloat16", 2),
    (56, 64, "bfloat16", 1),
    (7, 256, "float32", 1),
)

def compile_for(mesh):
    calls = []
    # All on the oldest chip, with the least on-chip memory, and on the newest.
    ends = mesh.devices.flat[0].device_kind in ("TPU v4", "TPU7x")
    for side, channels, dtype, stride in SHAPES if ends else SHAPES[:1]:
        shape = (128 * mesh.size, side, side, 4 * channels)
        x = jax.ShapeDtypeStruct(shape, dtype, sharding=batch_sharding(mesh))
        narrowing, widening = (
            jax.ShapeDtypeStruct((1, 1, *pair), jnp.float32, sharding=replicated(mesh))
            for pair in ((shape[3], channels), (channels, shape[3]))
        )

        def loss(x, narrowing, widening):
            with on_devices_of(mesh):
                r, y = rectify_and_narrow(x, narrowing, stride)
                bias = jnp.zeros((1, 2, shape[3]))
                shares = jnp.stack([jnp.mean(y, (1, 2, 3)), jnp.ones(len(y))], 1)
                y = y[:, ::stride, ::stride]
                y = widen(y, widening, bias, shares, rectify=True)
            return jnp.sum(jnp.square((r + y).astype(jnp.float32)))

        gradients = jax.jit(jax.grad(loss, (0, 1, 2)))
        compiled = gradients.lower(x, narrowing, widening).compile().as_text()
        calls.append(compiled.count('custom_call_target="tpu_custom_call"'))
        for traffic in ("all-gather", "all-to-all", "collective-permute"):
            assert traffic not in compiled, traffic
    return set(calls)
"""


@pytest.fixture(scope="module")
def compiled():
    return run_for_chips(PROGRAM)


@needs_tpu_compiler
@pytest.mark.parametrize("topology", CHIPS)
def test_each_chip_can_compile_it(topology, compiled):
    """A kernel for each of both gradients."""
    assert compiled[topology] == "{2}"
