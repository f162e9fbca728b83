"""The device's image operations against Pillow's."""

import jax
import numpy as np
import pytest
from PIL import Image, ImageEnhance, ImageOps

from vt_flax.data.augment import operations
from vt_flax.data.augment.operations import OPERATIONS, operation, stack

FILL = (128, 128, 128)

VALUES = {
    "ShearX": [0.3, -0.3, 0.1666, -0.0333],
    "ShearY": [0.3, -0.2333],
    "TranslateX": [0.0, 33.84, -101.51],
    "TranslateY": [11.28, -67.67, 223.0],
    "Rotate": [30.0, -26.6667, 10.0, -3.3333, 0.0],
    "Posterize": [8, 5, 4, 1],
    "Solarize": [256, 170.67, 113.78, 1, 0],
    "Contrast": [0.1, 0.5, 1.0, 1.7, 1.9],
    "Color": [0.1, 0.5, 1.0, 1.9],
    "Brightness": [0.1, 0.7, 1.9],
    "Sharpness": [0.1, 0.9, 1.5, 1.9],
}
# Where Pillow computes in floating point, a product may round to the level below.
ROUNDED = ("AutoContrast", "Contrast", "Color", "Brightness", "Sharpness")
CASES = [(name, value) for name in OPERATIONS for value in VALUES.get(name, [0.0])]


def pillow(image: Image.Image, name: str, value: float) -> Image.Image:
    """What AutoAugment's published code calls."""

    def transform(*matrix):
        return image.transform(
            image.size,
            Image.Transform.AFFINE,
            matrix,
            Image.Resampling.NEAREST,
            fillcolor=FILL,
        )

    return {
        "ShearX": lambda: transform(1, value, 0, 0, 1, 0),
        "ShearY": lambda: transform(1, 0, 0, value, 1, 0),
        "TranslateX": lambda: transform(1, 0, value, 0, 1, 0),
        "TranslateY": lambda: transform(1, 0, 0, 0, 1, value),
        "Rotate": lambda: image.rotate(value, Image.Resampling.NEAREST, fillcolor=FILL),
        "AutoContrast": lambda: ImageOps.autocontrast(image),
        "Equalize": lambda: ImageOps.equalize(image),
        "Invert": lambda: ImageOps.invert(image),
        "Posterize": lambda: ImageOps.posterize(image, value),
        "Solarize": lambda: ImageOps.solarize(image, value),
        "Contrast": lambda: ImageEnhance.Contrast(image).enhance(value),
        "Color": lambda: ImageEnhance.Color(image).enhance(value),
        "Brightness": lambda: ImageEnhance.Brightness(image).enhance(value),
        "Sharpness": lambda: ImageEnhance.Sharpness(image).enhance(value),
        "Identity": lambda: image,
    }[name]()


@jax.jit
def apply_layer(images, layer):
    return operations.apply_layers(images, [layer], [OPERATIONS])


def check(images, cases):
    """Applies one operation to each image, here and by Pillow."""
    layer = stack([operation(*case, images.shape[1:3]) for case in cases])
    found = apply_layer(images, layer)
    assert found.dtype == np.uint8 and found.shape == images.shape
    for image, result, (name, value) in zip(images, found, cases, strict=True):
        expected = np.asarray(pillow(Image.fromarray(image), name, value), int)
        gap = np.asarray(result) - expected
        assert np.abs(gap).max() <= (name in ROUNDED), (name, value)
        # Noise of few pixels may be rounded at any of them.
        assert image.size < 5000 or (gap != 0).mean() < 0.05, (name, value)


def test_operations_on_photographs(real_data):
    """All operations in one batch, as a policy draws them; one photograph is gray."""
    files = sorted((real_data / "imagenet_samples").glob("*/*.JPEG"))
    gray = next(file for file in files if Image.open(file).mode == "L")
    photographs = [
        np.asarray(Image.open(file).convert("RGB").resize((96, 96)))
        for file in [*files[::43][:7], gray]
    ]
    check(np.stack([photographs[i % 8] for i in range(len(CASES))]), CASES)


@pytest.mark.parametrize("shape", [(17, 40), (3, 3), (2, 5), (1, 1)])
def test_small_images_and_few_levels(shape):
    """Noise, a single level, two levels, and channels that differ."""
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (4, *shape, 3), dtype=np.uint8)
    images[1] = 77
    images[2] = rng.choice([10, 240], (*shape, 3))
    images[3] //= 8
    images[3, ..., 0] = 200
    check(np.repeat(images, len(CASES), 0), CASES * 4)


def test_products_equal_the_scatter_and_the_gather():
    """Accelerators run the products; here both run on the CPU."""
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (8, 3, 32, 32), dtype=np.uint8)
    counts = np.stack(
        [[np.bincount(p.ravel(), minlength=256) for p in image] for image in images]
    )
    table = rng.integers(0, 256, (8, 3, 256))
    b, c = np.ogrid[:8, :3]
    levels = table[b[..., None, None], c[..., None, None], images]
    for histogram in (operations.histogram, operations.histogram_by_product):
        np.testing.assert_array_equal(jax.jit(histogram)(images), counts)
    for look_up in (operations.look_up, operations.look_up_by_product):
        np.testing.assert_array_equal(jax.jit(look_up)(table, images), levels)
