"""Decoding, center crops, random resized crops, and padded crops."""

import io

import numpy as np
import pytest
from image_files import encode
from PIL import Image

from vt_flax.data import images
from vt_flax.data.host import tensorflow

tf = tensorflow()


def noise(height, width, channels=3, seed=0):
    shape = (height, width, channels) if channels else (height, width)
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


def decoded(encoded):
    image = images.decode(tf.constant(encoded)).numpy()
    assert image.dtype == np.uint8
    return image


def draw(function, count):
    """Returns what a function makes of each of some seeds."""
    seeds = tf.data.Dataset.range(count).map(lambda i: tf.stack([7, i]))
    return np.stack(list(seeds.map(function).as_numpy_iterator()))


# Decoding.


def test_jpeg_is_close():
    ramp = np.linspace(0, 255, 32).astype(np.uint8)
    array = np.stack([np.tile(ramp, (16, 1))] * 3, -1)
    out = decoded(encode(Image.fromarray(array), "JPEG", quality=95))
    assert np.abs(out.astype(int) - array).max() <= 4


def test_cmyk_jpeg_becomes_rgb():
    """Full black ink is black and no ink is white; else (1 - ink) (1 - black)."""
    encoded = encode(Image.fromarray(noise(16, 16, 4), "CMYK"), "JPEG", quality=95)
    ink = np.asarray(Image.open(io.BytesIO(encoded))).astype(np.float64) / 255
    expected = 255 * (1 - ink[..., :3]) * (1 - ink[..., 3:])
    assert np.abs(decoded(encoded) - expected).max() <= 1.01
    white = Image.new("CMYK", (8, 8), (0, 0, 0, 0))
    assert decoded(encode(white, "JPEG")).min() >= 250


@pytest.mark.parametrize("encoded", [b"", b"no image", b"\x89PNG\r\n\x1a\n"])
def test_what_is_no_image_is_refused(encoded):
    with pytest.raises((tf.errors.OpError, ValueError)):
        decoded(encoded)


@pytest.mark.parametrize("form", ["PNG", "JPEG", "GIF", "BMP", "WEBP"])
@pytest.mark.parametrize("share", [0.05, 0.5, 0.9])
def test_a_truncated_file_is_refused(form, share):
    encoded = encode(Image.fromarray(noise(64, 64)), form)
    with pytest.raises((tf.errors.OpError, ValueError)):
        decoded(encoded[: int(share * len(encoded))])


def test_a_damaged_file_is_refused():
    encoded = bytearray(encode(Image.fromarray(noise(64, 64))))
    middle = len(encoded) // 2
    encoded[middle : middle + 200] = bytes(200)
    with pytest.raises(tf.errors.OpError):
        decoded(bytes(encoded))


def test_photographs_are_decoded_as_pillow_does(photographs):
    for encoded in photographs[::6]:
        expected = np.asarray(Image.open(io.BytesIO(encoded)).convert("RGB"))
        gap = np.abs(decoded(encoded).astype(int) - expected)
        assert gap.max() <= 2 and gap.mean() < 0.05


@pytest.mark.parametrize("share", [0.3, 0.6, 0.9, 0.99])
def test_a_crop_notices_that_the_file_is_cut_off_below_it(share, photographs):
    """Whatever part is asked for: a decoder of parts alone would often not see it."""
    encoded = photographs[0]
    for i in range(6):
        with pytest.raises(tf.errors.OpError):
            images.random_resized_crop(
                tf.constant(encoded[: int(share * len(encoded))]), 32, 0.08, [0, i]
            )


@pytest.mark.parametrize(
    "encoded,words",
    [(b"", "empty"), (bytes(500), "500 zero bytes"), (b"no image", "cannot identify")],
)
def test_the_problem_with_a_file(encoded, words):
    assert words in images.problem(encoded)


def test_the_problem_with_a_truncated_file(photographs):
    assert images.problem(photographs[0]) == ""
    assert "truncated" in images.problem(photographs[0][:20000])


@pytest.fixture(scope="module")
def photographs(real_data):
    files = sorted((real_data / "imagenet_samples").glob("*/*.JPEG"))
    return [file.read_bytes() for file in files[::5]]


# The random resized crop.


def boxes(width, height, min_area, count):
    """Returns left, top, width and height of some boxes."""
    found = draw(
        lambda seed: images.random_box([height, width, 3], min_area, seed), count
    )
    top, left, h, w = found.T.astype(np.int64)
    return left, top, w, h


@pytest.mark.parametrize(
    "width,height",
    [(8, 8), (31, 17), (500, 375), (1, 1), (1, 500), (500, 1), (2, 3), (40, 400)],
)
@pytest.mark.parametrize("min_area", [0.08, 0.5, 1.0])
def test_boxes_lie_inside_the_image(width, height, min_area):
    left, top, w, h = boxes(width, height, min_area, 200)
    assert (left >= 0).all() and (left + w <= width).all() and (w > 0).all()
    assert (top >= 0).all() and (top + h <= height).all() and (h > 0).all()


@pytest.mark.parametrize("min_area", [0.08, 0.35])
def test_ratio_height_and_place_are_uniform(min_area):
    """The sampler as it is documented, on a square large enough to round nothing."""
    side = 10000
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


def test_boxes_reach_every_border():
    left, top, w, h = boxes(9, 7, 0.08, 500)
    assert left.min() == 0 and (left + w).max() == 9
    assert top.min() == 0 and (top + h).max() == 7


@pytest.mark.parametrize(
    "width,height,box",
    [
        (400, 3, (198, 0, 4, 3)),
        (3, 400, (0, 198, 3, 4)),
        (900, 30, (430, 0, 40, 30)),
        (30, 900, (0, 430, 30, 40)),
    ],
)
def test_extreme_shapes_fall_back_to_the_center(width, height, box):
    """8 % of so long an image in a ratio under 4 / 3 is wider than the image."""
    found = np.stack(boxes(width, height, 0.08, 20), -1)
    np.testing.assert_array_equal(found, [box] * 20)


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
    for i in range(5):
        left, top, w, h = (int(v[i]) for v in boxes(90, 60, 0.2, 5))
        out = images.random_resized_crop(tf.constant(encoded), 50, 0.2, [7, i]).numpy()
        assert out.shape == (50, 50, 3) and out.dtype == np.uint8
        expected = plain_bilinear(whole[top : top + h, left : left + w], 50)
        gap = np.abs(out - expected)
        # The decoder of a part knows nothing of the colour beside its border.
        assert gap[2:-2, 2:-2].max() <= 1


@pytest.mark.parametrize("factor", [2, 4, 8])
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


def test_the_seed_decides_the_crop():
    encoded = tf.constant(encode(Image.fromarray(noise(60, 90))))

    def crop(*seed):
        return images.random_resized_crop(encoded, 16, 0.1, list(seed)).numpy()

    np.testing.assert_array_equal(crop(1, 2), crop(1, 2))
    assert not np.array_equal(crop(1, 2), crop(1, 3))
    assert not np.array_equal(crop(1, 2), crop(2, 2))


# The padded crop.


def test_padded_crops_are_all_the_windows_of_the_padded_image():
    size, padding, draws = 4, 2, 1000
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
    # 40 each, with a standard deviation of 6.2.
    assert min(counts.values()) > 10 and max(counts.values()) < 75


def test_no_padding_leaves_the_image():
    array = noise(6, 6)
    encoded = tf.constant(encode(Image.fromarray(array)))
    out = images.pad_and_crop(encoded, 6, 0, [0, 0])
    np.testing.assert_array_equal(out, array)


def test_images_of_other_sizes_are_brought_to_size_before_padding():
    image = Image.fromarray(noise(20, 30))
    resized = image.resize((12, 8), Image.Resampling.BILINEAR)
    middle = np.asarray(resized)[:, 2:10].astype(int)
    out = images.pad_and_crop(tf.constant(encode(image)), 8, 0, [0, 0]).numpy()
    assert np.abs(out - middle).max() <= 1
