"""Decoding, random resized crops, and padded crops."""

import io

import numpy as np
import pytest
from image_files import encode
from PIL import Image

from vt_flax.data import images
from vt_flax.data.host import tensorflow
from vt_flax.data.pillow_decoder import decode_with_pillow

tf = tensorflow()


def noise(height, width, channels=3):
    shape = (height, width, channels)
    return np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)


def decoded(encoded):
    image = images.decode(tf.constant(encoded)).numpy()
    assert image.dtype == np.uint8
    return image


def draw(function, count):
    """Returns what a function makes of each of some seeds."""
    seeds = tf.data.Dataset.range(count).map(lambda i: tf.stack([7, i]))
    return np.stack(list(seeds.map(function).as_numpy_iterator()))


@pytest.fixture(scope="module")
def photographs(real_data):
    files = sorted((real_data / "imagenet_samples").glob("*/*.JPEG"))
    return [file.read_bytes() for file in files[::30]]


# Decoding.


def test_cmyk_jpeg_becomes_rgb():
    """Full black ink is black and no ink is white; else (1 - ink) (1 - black)."""
    encoded = encode(Image.fromarray(noise(16, 16, 4), "CMYK"), "JPEG", quality=95)
    ink = np.asarray(Image.open(io.BytesIO(encoded))).astype(np.float64) / 255
    expected = 255 * (1 - ink[..., :3]) * (1 - ink[..., 3:])
    assert np.abs(decoded(encoded) - expected).max() <= 1.01
    white = Image.new("CMYK", (8, 8), (0, 0, 0, 0))
    assert decoded(encode(white, "JPEG")).min() >= 250


@pytest.mark.parametrize("form", ["PNG", "JPEG", "GIF", "BMP", "WEBP"])
def test_what_is_no_image_or_a_damaged_one_is_refused(form):
    encoded = encode(Image.fromarray(noise(64, 64)), form)
    parts = [encoded[: int(share * len(encoded))] for share in (0.05, 0.5, 0.9)]
    for damaged in (*parts, b"", b"no image", bytes(500)):
        with pytest.raises((tf.errors.OpError, ValueError)):
            decoded(damaged)
        with pytest.raises(ValueError, match="^not a readable image .[^<]*$"):
            decode_with_pillow(damaged)
    if form == "PNG":
        middle = len(encoded) // 2
        with pytest.raises(tf.errors.OpError):
            decoded(encoded[:middle] + bytes(200) + encoded[middle + 200 :])


def test_photographs_are_decoded_as_pillow_does(photographs):
    for encoded in photographs:
        expected = np.asarray(Image.open(io.BytesIO(encoded)).convert("RGB"))
        np.testing.assert_array_equal(decoded(encoded), expected)


@pytest.mark.parametrize("share", [0.3, 0.99])
def test_a_crop_notices_that_the_file_is_cut_off_below_it(share, photographs):
    """Whatever part is asked for: a decoder of parts alone would often not see it."""
    encoded = photographs[0]
    for i in range(6):
        with pytest.raises(tf.errors.OpError):
            images.random_resized_crop(
                tf.constant(encoded[: int(share * len(encoded))]), 32, 0.08, [0, i]
            )


# The random resized crop.


def boxes(width, height, min_area, count):
    """Returns left, top, width and height of some boxes."""
    found = draw(
        lambda seed: images.random_box([height, width, 3], min_area, seed), count
    )
    top, left, h, w = found.T.astype(np.int64)
    return left, top, w, h


@pytest.mark.parametrize("width, height", [(9, 7), (1, 1), (1, 500), (400, 3)])
def test_boxes_lie_inside_the_image(width, height):
    left, top, w, h = boxes(width, height, 0.08, 300)
    assert left.min() >= 0 and (left + w).max() <= width and w.min() > 0
    assert top.min() >= 0 and (top + h).max() <= height and h.min() > 0
    # And reach every border.
    assert left.min() == top.min() == 0
    assert (left + w).max() == width and (top + h).max() == height


def test_ratio_height_and_place_are_uniform():
    """The sampler as it is documented, on a square large enough to round nothing."""
    side, min_area = 10000, 0.08
    left, top, w, h = boxes(side, side, min_area, 3000)
    area, ratio = w * h / side**2, w / h
    assert area.min() > min_area - 1e-3 and area.max() <= 1
    assert ratio.min() > 3 / 4 - 1e-3 and ratio.max() < 4 / 3 + 1e-3
    least = np.sqrt(min_area / ratio) * side
    most = np.minimum(side, side / ratio)
    samples = [
        (ratio - 3 / 4) / (4 / 3 - 3 / 4),
        (h - least) / (most - least),
        # Where hardly any room is left the place is decided by rounding.
        ((left + 0.5) / (side - w + 1))[w < 0.9 * side],
        ((top + 0.5) / (side - h + 1))[h < 0.9 * side],
    ]
    for sample in samples:
        deciles = np.quantile(sample, np.linspace(0.1, 0.9, 9))
        # 5 standard deviations of a median of 1,500 draws are 0.065.
        assert np.abs(deciles - np.linspace(0.1, 0.9, 9)).max() < 0.065
    assert abs(np.corrcoef(samples[0], samples[1])[0, 1]) < 0.1


def plain_bilinear(image, size):
    """Bilinear with half-pixel centers and no antialiasing, in float64."""

    def axis(count):
        at = np.clip((np.arange(size) + 0.5) * count / size - 0.5, 0, count - 1)
        low = np.floor(at).astype(int)
        return low, np.minimum(low + 1, count - 1), at - low

    image = image.astype(np.float64)
    low, high, share = axis(image.shape[0])
    share = share[:, None, None]
    image = image[low] * (1 - share) + image[high] * share
    low, high, share = axis(image.shape[1])
    share = share[None, :, None]
    return image[:, low] * (1 - share) + image[:, high] * share


@pytest.mark.parametrize("form", ["PNG", "JPEG"])
def test_random_resized_crop_is_the_box_resized(form):
    image = Image.fromarray(noise(60, 90)).resize((90, 60), Image.Resampling.BOX)
    encoded = encode(image, form)
    # The transform of the fused decoder is a faster one.
    whole = tf.io.decode_image(encoded, 3).numpy()
    for i in range(3):
        left, top, w, h = (int(v[i]) for v in boxes(90, 60, 0.2, 3))
        out = images.random_resized_crop(tf.constant(encoded), 50, 0.2, [7, i]).numpy()
        assert out.shape == (50, 50, 3) and out.dtype == np.uint8
        expected = plain_bilinear(whole[top : top + h, left : left + w], 50)
        gap = np.abs(out - expected)
        # The decoder of a part knows nothing of the color beside its border.
        assert gap[2:-2, 2:-2].max() <= 1


@pytest.mark.parametrize("factor", [2, 4])
def test_a_large_jpeg_is_averaged_down(factor):
    """The crop is near that of the whole image with antialiasing, which Pillow does."""
    smooth = Image.fromarray(noise(12, 16)).resize(
        (16 * 16 * factor, 12 * 16 * factor), Image.Resampling.BICUBIC
    )
    # Stripes a pixel wide: without averaging, the crop would be striped too.
    array = np.asarray(smooth).astype(int)
    array[:, ::2] -= 40
    array[:, 1::2] += 40
    image = Image.fromarray(np.clip(array, 0, 255).astype(np.uint8))
    encoded = encode(image, "JPEG", quality=95)
    shape = (12 * 16 * factor, 16 * 16 * factor, 3)
    top, left, h, w = images.random_box(shape, 0.9, [3, 3]).numpy()
    out = images.random_resized_crop(tf.constant(encoded), 64, 0.9, [3, 3]).numpy()
    cut = image.crop((left, top, left + w, top + h))
    expected = np.asarray(cut.resize((64, 64), Image.Resampling.BILINEAR)).astype(int)
    assert np.abs(out - expected).mean() < 4
    assert (
        np.abs(np.diff(out.astype(int), axis=1)).mean()
        < 1.3 * np.abs(np.diff(expected, axis=1)).mean()
    )


# The padded crop.


def test_padded_crops_are_all_the_windows_of_the_padded_image():
    size, padding, draws = 4, 2, 500
    array = np.arange(1, size * size * 3 + 1, dtype=np.uint8).reshape(size, size, 3)
    encoded = encode(Image.fromarray(array))
    padded = np.pad(array, ((padding, padding), (padding, padding), (0, 0)))
    windows = {
        padded[i : i + size, j : j + size].tobytes(): (i, j)
        for i in range(2 * padding + 1)
        for j in range(2 * padding + 1)
    }
    assert len(windows) == 25
    counts = dict.fromkeys(windows.values(), 0)
    for out in draw(
        lambda seed: images.pad_and_crop(encoded, size, padding, seed), draws
    ):
        counts[windows[out.tobytes()]] += 1
    # 20 each, with a standard deviation of 4.4.
    assert min(counts.values()) > 2 and max(counts.values()) < 45
