"""Decoding, centre crops, random resized crops, and padded crops."""

import io
import math

import numpy as np
import pytest
from PIL import Image

from vt_flax.data import images


def noise(height, width, channels=3, seed=0):
    shape = (height, width, channels) if channels else (height, width)
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


def encode(image, form="PNG", **options):
    buffer = io.BytesIO()
    image.save(buffer, form, **options)
    return buffer.getvalue()


def decoded(encoded):
    image = images.decode(encoded)
    assert image.mode == "RGB"
    return np.asarray(image)


# Decoding.


@pytest.mark.parametrize("form", ["PNG", "BMP", "TIFF"])
def test_rgb_is_kept(form):
    array = noise(5, 7)
    np.testing.assert_array_equal(decoded(encode(Image.fromarray(array), form)), array)


def test_jpeg_is_close():
    ramp = np.linspace(0, 255, 32).astype(np.uint8)
    array = np.stack([np.tile(ramp, (16, 1))] * 3, -1)
    out = decoded(encode(Image.fromarray(array), "JPEG", quality=95))
    assert np.abs(out.astype(int) - array).max() <= 4


def test_grey_is_repeated():
    array = noise(5, 7, 0)
    out = decoded(encode(Image.fromarray(array)))
    np.testing.assert_array_equal(out, np.repeat(array[..., None], 3, -1))


def test_one_bit_is_black_and_white():
    array = noise(5, 7, 0) > 127
    out = decoded(encode(Image.fromarray(array)))
    expected = np.repeat(array[..., None], 3, -1) * 255
    np.testing.assert_array_equal(out, expected)


@pytest.mark.parametrize("form", ["PNG", "GIF"])
def test_palette_is_looked_up(form):
    palette = noise(1, 4)[0]
    indices = noise(5, 7, 0) % 4
    image = Image.fromarray(indices).convert("P")
    image.putdata(indices.ravel())
    image.putpalette(palette.ravel().tolist())
    np.testing.assert_array_equal(decoded(encode(image, form)), palette[indices])


def test_alpha_is_dropped():
    array = noise(5, 7, 4)
    np.testing.assert_array_equal(
        decoded(encode(Image.fromarray(array, "RGBA"))), array[..., :3]
    )


def test_cmyk_jpeg_becomes_rgb():
    """Full black ink is black and no ink is white; else (1 - ink) (1 - black)."""
    encoded = encode(Image.fromarray(noise(16, 16, 4), "CMYK"), "JPEG", quality=95)
    ink = np.asarray(Image.open(io.BytesIO(encoded))).astype(np.float64) / 255
    expected = 255 * (1 - ink[..., :3]) * (1 - ink[..., 3:])
    assert np.abs(decoded(encoded) - expected).max() <= 1.01
    white = Image.new("CMYK", (8, 8), (0, 0, 0, 0))
    assert decoded(encode(white, "JPEG")).min() >= 250


def test_sixteen_bit_grey_is_scaled_to_eight_bits():
    array = np.linspace(0, 65535, 64).astype(np.uint16).reshape(8, 8)
    out = decoded(encode(Image.fromarray(array)))
    assert np.abs(out[..., 0] - array / 65535 * 255).max() <= 1


@pytest.mark.parametrize("shape", [(5, 7), (5, 7, 1), (5, 7, 3), (1, 1, 1), (3, 1, 3)])
def test_arrays(shape):
    array = np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)
    out = decoded(array)
    expected = array.reshape(*shape[:2], -1)
    assert out.shape == (*shape[:2], 3)
    np.testing.assert_array_equal(out, np.broadcast_to(expected, out.shape))


@pytest.mark.parametrize("encoded", [b"", b"no image", b"\x89PNG\r\n\x1a\n"])
def test_what_is_no_image_is_refused(encoded):
    with pytest.raises(ValueError, match=r"."):
        images.decode(encoded)


@pytest.mark.parametrize("form", ["PNG", "JPEG", "GIF", "BMP", "WEBP"])
@pytest.mark.parametrize("share", [0.05, 0.5, 0.9])
def test_a_truncated_file_is_refused(form, share):
    encoded = encode(Image.fromarray(noise(64, 64)), form)
    with pytest.raises(ValueError, match=r"."):
        images.decode(encoded[: int(share * len(encoded))])


def test_a_damaged_file_is_refused():
    encoded = bytearray(encode(Image.fromarray(noise(64, 64))))
    middle = len(encoded) // 2
    encoded[middle : middle + 200] = bytes(200)
    with pytest.raises(ValueError, match=r"."):
        images.decode(bytes(encoded))


# The centre crop.


@pytest.mark.parametrize(
    "width,height,size,resize,resized,corner",
    [
        (50, 40, 32, 36, (45, 36), (6, 2)),
        (40, 50, 32, 36, (36, 45), (2, 6)),
        (51, 33, 16, 20, (31, 20), (7, 2)),  # 30.9 pixels wide
        (33, 51, 15, 20, (20, 31), (2, 8)),
        (7, 5, 16, 16, (22, 16), (3, 0)),  # smaller than the crop: 22.4 wide
        (5, 5, 9, 12, (12, 12), (1, 1)),
        (33, 47, 32, 33, (33, 47), (0, 7)),  # nothing to resize
        (32, 32, 32, 32, (32, 32), (0, 0)),
        (1, 500, 8, 8, (8, 4000), (0, 1996)),
    ],
)
def test_centre_crop(width, height, size, resize, resized, corner):
    image = Image.fromarray(noise(height, width))
    whole = np.asarray(image.resize(resized, Image.Resampling.BILINEAR))
    left, upper = corner
    out = images.centre_crop(image, size, resize)
    assert out.shape == (size, size, 3) and out.dtype == np.uint8
    np.testing.assert_array_equal(out, whole[upper : upper + size, left : left + size])


def test_centre_crop_never_reaches_outside_the_image():
    """White images stay white: no border of black is cut in."""
    for width, height in [(1, 1), (3, 2), (9, 31), (224, 225), (333, 77)]:
        image = Image.new("RGB", (width, height), (255, 255, 255))
        assert images.centre_crop(image, 24, 24).min() == 255
        assert images.centre_crop(image, 24, 27).min() == 255


# The random resized crop.


def boxes(width, height, min_area, count, seed=0):
    generator = np.random.default_rng(seed)
    found = [
        images.random_resized_box(width, height, min_area, generator)
        for _ in range(count)
    ]
    return np.asarray(found).T


@pytest.mark.parametrize(
    "width,height",
    [(8, 8), (31, 17), (500, 375), (1, 1), (1, 500), (500, 1), (2, 3), (40, 400)],
)
@pytest.mark.parametrize("min_area", [0.08, 0.5, 1.0])
def test_boxes_lie_inside_the_image(width, height, min_area):
    left, upper, right, lower = boxes(width, height, min_area, 300)
    assert (left >= 0).all() and (right <= width).all() and (left < right).all()
    assert (upper >= 0).all() and (lower <= height).all() and (upper < lower).all()


@pytest.mark.parametrize("min_area", [0.08, 0.35])
def test_area_ratio_and_place_are_uniform(min_area):
    """Below 3 / 4 of a square's area every ratio fits, so no draw is rejected there."""
    side = 10000
    left, upper, right, lower = boxes(side, side, min_area, 5000)
    w, h = right - left, lower - upper
    area, ratio = w * h / side**2, w / h
    assert area.min() > min_area - 1e-3 and area.max() <= 1
    assert ratio.min() > 3 / 4 - 1e-3 and ratio.max() < 4 / 3 + 1e-3
    small = area < 3 / 4
    samples = [
        (area[small] - min_area) / (3 / 4 - min_area),
        (np.log(ratio[small]) - math.log(3 / 4)) / (2 * math.log(4 / 3)),
        left[small] / (side - w[small]),
        upper[small] / (side - h[small]),
    ]
    assert small.sum() > 1500
    for sample in samples:
        deciles = np.quantile(sample, np.linspace(0.1, 0.9, 9))
        # 5 standard deviations of a median of 1,500 draws are 0.065.
        assert np.abs(deciles - np.linspace(0.1, 0.9, 9)).max() < 0.065
    for i in range(4):
        for j in range(i):
            assert abs(np.corrcoef(samples[i], samples[j])[0, 1]) < 0.13


def test_boxes_reach_every_border():
    left, upper, right, lower = boxes(9, 7, 0.08, 500)
    assert left.min() == 0 and right.max() == 9
    assert upper.min() == 0 and lower.max() == 7


@pytest.mark.parametrize(
    "width,height,box",
    [
        (500, 1, (249, 0, 250, 1)),  # 4 / 3 pixels wide, rounded to 1
        (1, 500, (0, 249, 1, 250)),
        (400, 3, (198, 0, 202, 3)),
        (3, 400, (0, 198, 3, 202)),
        (900, 30, (430, 0, 470, 30)),
        (30, 900, (0, 430, 30, 470)),
    ],
)
def test_extreme_shapes_fall_back_to_the_centre(width, height, box):
    """8 % of so long an image in a ratio under 4 / 3 is wider than the image."""
    np.testing.assert_array_equal(boxes(width, height, 0.08, 20), np.c_[[box] * 20].T)


def test_random_resized_crop_is_the_box_resized():
    image = Image.fromarray(noise(60, 90))
    for seed in range(5):
        box = images.random_resized_box(90, 60, 0.2, np.random.default_rng(seed))
        out = images.random_resized_crop(image, 40, 0.2, np.random.default_rng(seed))
        assert out.shape == (40, 40, 3) and out.dtype == np.uint8
        cut = image.crop(box).resize((40, 40), Image.Resampling.BILINEAR)
        # At its border the one filter may see a pixel outside the box.
        inner = slice(3, -3)
        gap = out.astype(int) - np.asarray(cut)
        assert np.abs(gap[inner, inner]).max() <= 1


# The padded crop.


def test_padded_crops_are_all_the_windows_of_the_padded_image():
    size, padding, draws = 4, 2, 1000
    array = np.arange(1, size * size * 3 + 1, dtype=np.uint8).reshape(size, size, 3)
    padded = np.pad(array, ((padding, padding), (padding, padding), (0, 0)))
    windows = {
        padded[i : i + size, j : j + size].tobytes(): (i, j)
        for i in range(2 * padding + 1)
        for j in range(2 * padding + 1)
    }
    assert len(windows) == 25
    generator = np.random.default_rng(0)
    counts = dict.fromkeys(windows.values(), 0)
    for _ in range(draws):
        out = images.pad_and_crop(Image.fromarray(array), size, padding, generator)
        counts[windows[out.tobytes()]] += 1
    # 40 each, with a standard deviation of 6.2.
    assert min(counts.values()) > 10 and max(counts.values()) < 75


def test_no_padding_leaves_the_image():
    array = noise(6, 6)
    out = images.pad_and_crop(Image.fromarray(array), 6, 0, np.random.default_rng(0))
    np.testing.assert_array_equal(out, array)


def test_images_of_other_sizes_are_brought_to_size_before_padding():
    image = Image.fromarray(noise(20, 30))
    resized = image.resize((12, 8), Image.Resampling.BILINEAR)
    middle = np.asarray(resized)[:, 2:10]
    out = images.pad_and_crop(image, 8, 0, np.random.default_rng(0))
    np.testing.assert_array_equal(out, middle)
