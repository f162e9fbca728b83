"""Where the TPU kernel is taken, how it is checked there, and that TPUs can compile it.

What it computes is compared with the operations that test_operations compares with
Pillow's.
"""

import types

import jax
import numpy as np
import pytest
from test_operations import CASES, apply_layer
from tpu_programs import CHIPS, needs_tpu_compiler, run_for_chips

from vt_flax.data import augment
from vt_flax.data.augment import kernel, policies
from vt_flax.data.augment.operations import operation, stack
from vt_flax.errors import UserError
from vt_flax.parallel.mesh import batch_sharding, make_mesh
from vt_flax.training.config import default_config

pytestmark = pytest.mark.slow


@pytest.fixture
def interpreted(monkeypatch):
    """Runs the kernel on the CPU, traced anew: JAX keeps what it has compiled."""
    real = kernel.apply_in_kernel
    monkeypatch.setattr(
        kernel,
        "apply_in_kernel",
        lambda images, layers: real(images, layers, interpret=True),
    )


def config(**changes):
    result = default_config().data
    result.update({"augment": "autoaugment", "image_size": 40, **changes})
    return result


@pytest.fixture
def tpus():
    """A sharding that looks as if it lay on TPUs."""
    real = batch_sharding(make_mesh())
    return types.SimpleNamespace(
        device_set=[types.SimpleNamespace(platform="tpu")],
        addressable_devices=real.addressable_devices,
    )


@pytest.mark.usefixtures("well_compiled")
@pytest.mark.parametrize("shape", [(17, 40), (3, 3), (1, 7), (130, 57)])
def test_the_kernel_is_the_reference(shape):
    """To the level, in three layers: nothing of a layer is left for the next.

    Of noise, few levels and a single level; and at every index of the batch.
    """
    rng = np.random.default_rng(0)
    cases = CASES + [("Rotate", angle) for angle in rng.uniform(-30, 30, 6)]
    images = rng.integers(0, 256, (len(cases), *shape, 3), dtype=np.uint8)
    images[::3] = rng.choice([10, 100, 240], images[::3].shape)
    images[::7] = rng.integers(0, 256, (len(images[::7]), 1, 1, 3))
    layers = []
    for _ in range(3):
        rng.shuffle(cases)
        layers.append(stack([operation(*case, shape) for case in cases]))
    result = kernel.apply_in_kernel(images, layers, interpret=True)
    expected = images
    for layer in layers:
        expected = apply_layer(expected, layer)
    np.testing.assert_array_equal(result, expected)
    assert min(shape) < 3 or (np.asarray(result) != images).mean() > 0.5


def test_only_tpus_take_it(tpus, monkeypatch):
    cpus = batch_sharding(make_mesh())
    assert policies.takes_kernel(config(), (224, 224), tpus)
    assert policies.takes_kernel(config(), (640, 32), tpus)
    assert not policies.takes_kernel(config(), (32, 641), tpus)
    assert not policies.takes_kernel(config(augment_kernel=False), (32, 32), tpus)
    assert not policies.takes_kernel(config(), (32, 32), cpus)
    assert not policies.takes_kernel(config(), (32, 32), None)
    monkeypatch.setattr(jax, "default_backend", lambda: "tpu")
    assert policies.takes_kernel(config(), (32, 32), None)


def test_a_right_kernel_passes(tpus, interpreted):
    assert augment.check_device(config(), tpus) == []


@pytest.mark.parametrize("broken", ["move", "look_up"])
def test_a_wrong_kernel_is_refused(broken, tpus, interpreted, monkeypatch):
    monkeypatch.setattr(kernel, broken, lambda *arguments: None)
    with pytest.raises(UserError, match="gives other images than .* by up to") as error:
        augment.check_device(config(), tpus)
    assert "set data.augment_kernel=False" in str(error.value)
    # Without the kernel there is no error, but a note that this is slow.
    (note,) = augment.check_device(config(augment_kernel=False), tpus)
    assert "data.augment_kernel is False" in note
    (note,) = augment.check_device(config(image_size=641), tpus)
    assert "more than 640 pixels" in note
    assert augment.check_device(config(augment="none"), tpus) == []
    assert augment.check_device(config(), batch_sharding(make_mesh())) == []


def test_a_kernel_that_does_not_run_is_refused(tpus):
    """As on a chip that cannot do what it needs; here on CPUs."""
    with pytest.raises(UserError, match="cpu does not run the kernel: .*interpret"):
        augment.check_device(config(), tpus)


PROGRAM = """
import jax, jax.numpy as jnp
from vt_flax.data.augment import policies
from vt_flax.parallel.mesh import batch_sharding
from vt_flax.training.config import default_config

SIZES = ((224, 224), (640, 640), (32, 32), (130, 500))
config = default_config().data
config.augment = "autoaugment"

def compile_for(mesh):
    sharding = batch_sharding(mesh)

    def apply(images, keys):
        keys = jax.random.wrap_key_data(keys)
        return policies.apply_policy(images, config, keys, sharding)

    # All on the oldest chip, with the least on-chip memory, and on the newest.
    ends = mesh.devices.flat[0].device_kind in ("TPU v4", "TPU7x")
    for height, width in SIZES if ends else SIZES[:2]:
        shape = (16, height, width, 3)
        images = jax.ShapeDtypeStruct(shape, jnp.uint8, sharding=sharding)
        keys = jax.ShapeDtypeStruct((16, 2), jnp.uint32, sharding=sharding)
        compiled = jax.jit(apply).lower(images, keys).compile().as_text()
        assert "tpu_custom_call" in compiled, height
        for traffic in ("all-gather", "all-to-all", "all-reduce", "collective-permute"):
            assert traffic not in compiled, traffic
    return "compiled"
"""


@pytest.fixture(scope="module")
def compiled():
    return run_for_chips(PROGRAM)


@needs_tpu_compiler
@pytest.mark.parametrize("topology", CHIPS)
def test_each_chip_can_compile_it(topology, compiled):
    """For a host of chips, each of which works on its own examples alone."""
    assert compiled[topology] == "compiled"
