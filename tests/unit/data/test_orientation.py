"""EXIF orientation: where it may be in a file, and crops of turned images."""

import io
import struct

import numpy as np
import pytest
import tensorflow as tf
from image_files import TURNS, chunk, encode, png, with_orientation
from PIL import Image, ImageOps

from vt_flax.data import images
from vt_flax.data.orientation import as_stored, orientation_in, upright
from vt_flax.data.pillow_decoder import decode_with_pillow
from vt_flax.inference.reading import read_picture

PIXELS = np.random.default_rng(0).integers(0, 256, (16, 24, 3), np.uint8)
JPEG, PNG = encode(PIXELS, "JPEG"), encode(PIXELS, "PNG")


def tiff(order="<", entries=((0x112, 3, 1, 6),), count=None):
    """EXIF data, which are a TIFF without pixels."""
    start = {"<": b"II*\0", ">": b"MM\0*"}[order] + struct.pack(order + "I", 8)
    body = b"".join(
        struct.pack(order + {3: "HHIHxx", 4: "HHII"}[kind], tag, kind, length, value)
        for tag, kind, length, value in entries
    )
    total = len(entries) if count is None else count
    return start + struct.pack(order + "H", total) + body + bytes(4)


def segment(data, marker=0xE1):
    return struct.pack(">BBH", 0xFF, marker, len(data) + 2) + data


def jpeg(*segments):
    """Puts segments before all others, where cameras have EXIF."""
    return JPEG[:2] + b"".join(segments) + JPEG[2:]


def exif(*arguments, **named):
    return segment(b"Exif\0\0" + tiff(*arguments, **named))


def xmp(text):
    return segment(b"http://ns.adobe.com/xap/1.0/\0" + text)


IN_XMP = b'<x tiff:Orientation="6"/>'
MAKER = (0x10F, 3, 1, 7)
RAW = b"Raw profile type exif\0\0\nexif\n%8d\n" % len(tiff()) + tiff().hex().encode()

# Metadata that writers and editors leave, and what Pillow makes of them.
PLAIN = {
    "none": (JPEG, 1),
    "XMP of something else": (jpeg(xmp(b"<x/>")), 1),
    "no PNG's": (PNG, 1),
    "PNG's other text": (png(PIXELS, 8, 2, chunk(b"tEXt", b"Software\0x")), 1),
}
WITH_METADATA = {
    "little endian": (jpeg(exif("<")), 6),
    "big endian": (jpeg(exif(">")), 6),
    "no orientation": (jpeg(exif("<", [MAKER])), 1),
    "0": (jpeg(exif("<", [(0x112, 3, 1, 0)])), 1),
    "after 130 kB": (jpeg(*[segment(bytes(65000), 0xE2)] * 2, exif()), 6),
    "PNG": (png(PIXELS, 8, 2, chunk(b"eXIf", tiff(">"))), 6),
    "PNG, after the pixels": (png(PIXELS, 8, 2, after=chunk(b"eXIf", tiff())), 6),
    "XMP": (jpeg(xmp(IN_XMP)), 6),
    "EXIF without, XMP with": (jpeg(exif("<", [MAKER]), xmp(IN_XMP)), 6),
    "fill bytes": (jpeg(b"\xff\xff", exif()), 6),
    "raw profile": (png(PIXELS, 8, 2, chunk(b"tEXt", RAW)), 6),
    "PNG's XMP": (
        png(PIXELS, 8, 2, chunk(b"iTXt", b"XML:com.adobe.xmp\0\0\0\0\0" + IN_XMP)),
        6,
    ),
    "WebP": (encode(PIXELS, "WEBP", **with_orientation(7)), 7),
    "TIFF": (encode(PIXELS, "TIFF", **with_orientation(5)), 5),
}
# None of these keeps the image from being read.
DAMAGED = {
    "no header": jpeg(segment(b"Exif\0\0garbage")),
    "count beyond the end": jpeg(exif("<", [], count=500)),
    "PNG": png(PIXELS, 8, 2, chunk(b"eXIf", b"garbage")),
    "WebP": encode(PIXELS, "WEBP", exif=b"Exif\0\0II*\0\x08\0\0\0\x09\0"),
}


@pytest.mark.filterwarnings("ignore:.*had too many entries")
@pytest.mark.parametrize("name", PLAIN | WITH_METADATA)
def test_orientation_is_found(name, monkeypatch):
    encoded, expected = (PLAIN | WITH_METADATA)[name]
    by_pillow = ImageOps.exif_transpose(Image.open(io.BytesIO(encoded)))
    stored = np.asarray(decode_with_pillow(encoded))
    np.testing.assert_array_equal(by_pillow.convert("RGB"), TURNS[expected](stored))
    if name in PLAIN:
        monkeypatch.setattr(Image, "open", None)  # it takes too long
    assert orientation_in(encoded) == expected


@pytest.mark.filterwarnings("ignore:Corrupt EXIF")
@pytest.mark.parametrize("name", DAMAGED)
def test_damaged_metadata_stop_no_image(name, tmp_path):
    encoded = DAMAGED[name]
    assert orientation_in(encoded) == orientation_in(encoded[:40]) == 1
    (tmp_path / "image").write_bytes(encoded)
    found = read_picture(tmp_path / "image").pixels
    np.testing.assert_array_equal(found, images.decode(tf.constant(encoded)))
    assert found.shape == PIXELS.shape


@pytest.mark.parametrize("value", TURNS)
def test_views(value):
    np.testing.assert_array_equal(upright(PIXELS, value), TURNS[value](PIXELS))
    np.testing.assert_array_equal(as_stored(TURNS[value](PIXELS), value), PIXELS)


# A place's color tells where it is: red its column, green its row.
ROWS, COLUMNS = np.mgrid[:96, :128]
SCENE = np.stack([2 * COLUMNS, 2 * ROWS, ROWS + COLUMNS], -1).astype(np.uint8)


@pytest.mark.parametrize("value", [3, 5, 6])
@pytest.mark.parametrize("form, size", [("PNG", 60), ("JPEG", 60), ("JPEG", 9)])
def test_crops_are_those_of_the_upright_image(form, size, value):
    """Of the same seed; a JPEG is reduced by the decoder to a half or an eighth."""
    options = {"quality": 95, "subsampling": 0} if form == "JPEG" else {}
    files = {v: encode(as_stored(SCENE, v), form, **options) for v in (1, value)}
    for seed in range(2):
        expected, found = (
            images.random_resized_crop(tf.constant(file), size, 0.6, (7, seed), v)
            .numpy()
            .astype(int)
            for v, file in files.items()
        )
        # In a part that is a pixel off levels are two off.
        gap = np.abs(found - expected)
        assert gap.mean() < (0.01 if form == "PNG" else 1.2)
        assert gap.max() <= (1 if form == "PNG" else 8)
    if form == "PNG":
        for crop in ((33, 40), (96, 96)):
            expected, found = (
                images.center_crop(tf.constant(file), *crop, orientation=v).numpy()
                for v, file in files.items()
            )
            np.testing.assert_array_equal(found, expected)


def test_pillow_s_decoder_turns_nothing():
    """Copies of TFDS datasets keep the pixels that are stored."""
    for form in ("PNG", "TIFF"):
        encoded = encode(PIXELS, form, **with_orientation(6))
        np.testing.assert_array_equal(decode_with_pillow(encoded), PIXELS)
