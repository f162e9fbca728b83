"""The evaluation's crop on the device against the host's, on photographs."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import export
from sklearn.datasets import load_sample_images

from vt_flax.data import images
from vt_flax.data.augment.center_crop import centre_crop
from vt_flax.data.host import tensorflow


def host_crop(image, size, resize):
    encoded = tensorflow().io.encode_png(image)
    return images.centre_crop(encoded, size, resize).numpy()


@pytest.mark.parametrize(
    "height, width, size, resize",
    [
        (427, 640, 64, 73),
        (300, 211, 96, 96),
        (91, 91, 32, 36),
        (40, 57, 64, 72),  # enlarged
        (75, 50, 40, 41),  # the long side is 61.5: 62
        (50, 83, 40, 50),  # nothing to resize
    ],
)
def test_it_is_the_hosts(height, width, size, resize):
    # Pieces of photographs, as large as they get.
    batch = np.stack([x[:height, -width:] for x in load_sample_images().images])
    found = np.asarray(jax.jit(centre_crop, static_argnums=(1, 2))(batch, size, resize))
    expected = np.stack([host_crop(x, size, resize) for x in batch])
    assert found.shape == expected.shape and found.dtype == np.float32
    apart = np.abs(found - expected)
    if resize == min(height, width):
        assert apart.max() == 0
    assert apart.max() <= 1 and (apart > 0).mean() < 0.01


def test_sizes_may_be_symbols():
    sides = export.symbolic_shape("batch, height, width, 3")
    given = jax.ShapeDtypeStruct(sides, jnp.uint8)
    found = jax.eval_shape(lambda x: centre_crop(x, 32, 36), given)
    assert str(found.shape) == "(batch, 32, 32, 3)"
