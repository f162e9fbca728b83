"""The crop of evaluation: Pillow's, in tf.data, in predict, and nearly so in JAX."""

import io

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from image_files import encode
from jax import export
from PIL import Image
from sklearn.datasets import load_sample_images

from vt_flax.data import images
from vt_flax.data.augment.resampling import center_crop as crop_in_jax
from vt_flax.data.center_crop import center_crop
from vt_flax.data.host import tensorflow


def crop_in_tf(image, size, resize):
    encoded = tensorflow().constant(encode(image))
    return images.center_crop(encoded, size, resize).numpy()


def part_of(image, resized, corner, size):
    """Cuts a part out of an image that Pillow has resized as a whole."""
    whole = Image.fromarray(image).resize(resized, Image.Resampling.BILINEAR)
    left, upper = corner
    return np.asarray(whole)[upper : upper + size, left : left + size]


@pytest.mark.parametrize("crop", [center_crop, crop_in_tf])
@pytest.mark.parametrize(
    "width,height,size,resize,resized,corner",
    [
        (50, 40, 32, 36, (45, 36), (6, 2)),
        (33, 51, 15, 20, (20, 31), (2, 8)),  # 30.9 pixels high
        (75, 50, 40, 41, (62, 41), (11, 0)),  # 61.5 pixels wide
        (85, 50, 40, 45, (76, 45), (18, 2)),  # 76.5 pixels wide
        (7, 5, 16, 16, (22, 16), (3, 0)),  # smaller than the crop: 22.4 wide
        (33, 47, 32, 33, (33, 47), (0, 7)),  # nothing to resize
        (1, 500, 8, 8, (8, 4000), (0, 1996)),
    ],
)
def test_it_is_part_of_the_whole_image_resized(
    crop, width, height, size, resize, resized, corner
):
    image = np.random.default_rng(0).integers(0, 256, (height, width, 3), np.uint8)
    out = crop(image, size, resize)
    assert out.dtype == np.uint8
    # Sums are often a half exactly, which Pillow rounds either way, in both directions.
    apart = np.abs(part_of(image, resized, corner, size) - out.astype(int))
    assert apart.max() <= 2 and (apart > 1).mean() < 2e-3
    # No border of black is cut in.
    assert crop(np.full_like(image, 255), size, resize).min() == 255


def test_photographs(real_data):
    """Encoded as JPEG, as evaluation and predict read them."""
    size, resize = 224, 256
    for file in sorted((real_data / "imagenet_samples").glob("*/*.JPEG"))[::60]:
        encoded = file.read_bytes()
        image = Image.open(io.BytesIO(encoded)).convert("RGB")
        scale = resize / min(image.size)
        resized = [max(resize, round(side * scale)) for side in image.size]
        corner = [(side - size) // 2 for side in resized]
        found = images.center_crop(tensorflow().constant(encoded), size, resize).numpy()
        expected = center_crop(np.asarray(image), size, resize)
        np.testing.assert_array_equal(found, expected)
        apart = np.abs(
            part_of(np.asarray(image), resized, corner, size) - found.astype(int)
        )
        assert apart.max() <= 2 and (apart > 1).mean() < 1e-3


@pytest.mark.parametrize(
    "height, width, size, resize",
    [
        (300, 211, 96, 96),
        (40, 57, 64, 72),  # enlarged
        (75, 50, 40, 41),  # the long side is 61.5: 62
        (50, 83, 40, 50),  # nothing to resize
    ],
)
def test_in_jax_it_is_the_same(height, width, size, resize):
    # Parts of photographs, as large as they get.
    batch = np.stack([x[:height, -width:] for x in load_sample_images().images])
    found = np.asarray(jax.jit(crop_in_jax, static_argnums=(1, 2))(batch, size, resize))
    expected = np.stack([center_crop(x, size, resize) for x in batch])
    assert found.shape == expected.shape and found.dtype == np.float32
    apart = np.abs(found - expected)
    if resize == min(height, width):
        assert apart.max() == 0
    assert apart.max() <= 1 and (apart > 0).mean() < 0.03


def test_in_jax_sizes_may_be_symbols():
    sides = export.symbolic_shape("batch, height, width, 3")
    given = jax.ShapeDtypeStruct(sides, jnp.uint8)
    found = jax.eval_shape(lambda x: crop_in_jax(x, 32, 36), given)
    assert str(found.shape) == "(batch, 32, 32, 3)"
