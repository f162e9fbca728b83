"""The device's image operations against Pillow's, on real photographs."""

import jax
import numpy as np
import pytest
from PIL import Image, ImageEnhance, ImageOps

from vt_flax.data.augment import operations
from vt_flax.data.augment.kernel import apply_in_kernel
from vt_flax.data.augment.operations import OPERATIONS, operation, stack

SIDE = 224
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
def reference(images, layers):
    return operations.apply_layers(images, layers, [OPERATIONS] * len(layers))


@jax.jit
def kernel(images, layers):
    """What TPUs run, on the CPU."""
    return apply_in_kernel(images, layers, interpret=True)


def layer(size, names_and_values):
    return stack([operation(name, value, size) for name, value in names_and_values])


def apply(images, *names_and_values, formulation=reference):
    """Applies one operation to all images, or one to each."""
    if len(names_and_values) != len(images):
        names_and_values *= len(images)
    out = formulation(images, [layer(images.shape[1:3], names_and_values)])
    assert out.dtype == np.uint8 and out.shape == images.shape
    return np.asarray(out)


def expected(images, name, value):
    return np.stack([pillow(Image.fromarray(i), name, value) for i in images])


@pytest.fixture(scope="module")
def photographs(real_data):
    """Eight photographs, one of them grey, brought to size."""
    files = sorted((real_data / "imagenet_samples").glob("*/*.JPEG"))
    grey = next(file for file in files if Image.open(file).mode == "L")
    chosen = [*files[::43][:7], grey]
    return np.stack(
        [Image.open(file).convert("RGB").resize((SIDE, SIDE)) for file in chosen]
    )


@pytest.mark.parametrize("formulation", [reference, kernel])
def test_every_image_gets_its_own_operation(formulation, photographs):
    """All operations in one batch, as a policy draws them."""
    cases = [case for case in CASES if case[1] != 0.0 or case[0] not in VALUES]
    images = np.stack([photographs[i % 8] for i in range(len(cases))])
    out = apply(images, *cases, formulation=formulation)
    for image, found, (name, value) in zip(images, out, cases, strict=True):
        gap = found.astype(int) - np.asarray(
            pillow(Image.fromarray(image), name, value)
        )
        assert np.abs(gap).max() <= (name in ROUNDED), name
        assert (gap != 0).mean() < 0.05, name


@pytest.mark.parametrize("shape", [(32, 32), (17, 40), (3, 3), (2, 5), (1, 1)])
@pytest.mark.parametrize("name,value", CASES)
def test_other_sizes_and_few_levels(name, value, shape):
    """Noise, one level alone, two levels, and channels that differ."""
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (4, *shape, 3), dtype=np.uint8)
    images[1] = 77
    images[2] = rng.choice([10, 240], (*shape, 3))
    images[3] //= 8
    images[3, ..., 0] = 200
    gap = apply(images, (name, value)).astype(int) - expected(images, name, value)
    assert np.abs(gap).max() <= (name in ROUNDED)


def test_the_product_formulations_are_the_scatter_and_the_gather(photographs):
    """What accelerators run, on the CPU."""
    images = photographs.transpose(0, 3, 1, 2)
    counts = np.stack(
        [[np.bincount(p.ravel(), minlength=256) for p in image] for image in images]
    )
    by_product = jax.jit(operations.histogram_by_product)(images)
    np.testing.assert_array_equal(by_product, counts)
    np.testing.assert_array_equal(operations.histogram(images), counts)

    table = np.random.default_rng(0).integers(0, 256, (8, 3, 256))
    b, c = np.ogrid[:8, :3]
    found = table[b[..., None, None], c[..., None, None], images]
    by_product = jax.jit(operations.look_up_by_product)(table, images)
    np.testing.assert_array_equal(by_product, found)
    np.testing.assert_array_equal(operations.look_up(table, images), found)


SHAPES = [(17, 40), (3, 3), (1, 1), (1, 7), (7, 1), (130, 57)]


@pytest.mark.slow
@pytest.mark.usefixtures("well_compiled")
@pytest.mark.parametrize("shape", SHAPES)
def test_the_kernel_is_the_reference(shape):
    """To the level, in three layers: what one leaves behind is not to reach the next.

    Of noise, few levels and one level alone; and at every place of the batch.
    """
    rng = np.random.default_rng(0)
    cases = CASES + [("Rotate", angle) for angle in rng.uniform(-30, 30, 6)]
    images = rng.integers(0, 256, (len(cases), *shape, 3), dtype=np.uint8)
    images[::3] = rng.choice([10, 100, 240], images[::3].shape)
    images[::7] = rng.integers(0, 256, (len(images[::7]), 1, 1, 3))
    layers = []
    for _ in range(3):
        rng.shuffle(cases)
        layers.append(layer(shape, cases))
    found, expected = kernel(images, layers), images
    for one in layers:
        expected = reference(expected, [one])
    np.testing.assert_array_equal(found, expected)
    assert min(shape) < 3 or (np.asarray(found) != images).mean() > 0.5


def test_an_unknown_operation():
    with pytest.raises(ValueError, match="Twirl"):
        operation("Twirl")
