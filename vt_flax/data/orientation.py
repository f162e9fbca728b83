"""EXIF orientation: finds it in a file, and turns pixels upright.

Orientation 1 is upright. The stored pixels of the others become upright by exchanging
rows and columns (5 to 8), and then reversing the order of the rows (3, 4, 7, 8), of the
columns (2, 3, 6, 7) or of both.
"""

import io

import numpy as np
from PIL import ExifTags, Image

UPRIGHT = 1
# Orientations that exchange rows and columns begin here.
FIRST_TRANSPOSED = 5

JPEG_START, PNG_START = b"\xff\xd8\xff", b"\x89PNG\r\n\x1a\n"
# Segments of a JPEG: EXIF and XMP are in the second, metadata end before the last.
APP1, START_OF_SCAN = 0xE1, 0xDA
EXIF_START = b"Exif\0\0"
XMP_ORIENTATION = b"tiff:Orientation"
# What a PNG with an orientation contains: a chunk of EXIF data, or text.
PNG_METADATA = (b"eXIf", b"Raw profile type exif", b"XML:com.adobe.xmp")


def orientation_of(image: Image.Image) -> int:
    """Returns the orientation, 1 to 8, that Pillow finds in EXIF or XMP data.

    It is 1 where there is none, and where the metadata are damaged, which do not keep
    an image from being decoded.
    """
    try:
        found = image.getexif().get(ExifTags.Base.Orientation, UPRIGHT)
    except Exception:
        # Pillow's parsers raise SyntaxError, struct.error, ValueError and more.
        return UPRIGHT
    return int(found) if found in range(1, 9) else UPRIGHT


def orientation_in(encoded: bytes) -> int:
    """Returns what `orientation_of` does, of an encoded image.

    Pillow holds Python's lock for 0.1 ms, and decodes a whole PNG to find no EXIF data.
    It is asked only where the file has metadata that may hold an orientation.
    """
    if not _may_be_turned(encoded):
        return UPRIGHT
    try:
        with Image.open(io.BytesIO(encoded)) as image:
            return orientation_of(image)
    except Exception:
        # Decoding the file reports what is wrong with it.
        return UPRIGHT


def _may_be_turned(encoded: bytes) -> bool:
    """Returns False for a JPEG or PNG that stores no orientation."""
    if encoded.startswith(PNG_START):
        return any(mark in encoded for mark in PNG_METADATA)
    if not encoded.startswith(JPEG_START):
        return True
    at = 2
    while len(encoded) >= at + 4 and encoded[at + 1] != START_OF_SCAN:
        end = at + 2 + int.from_bytes(encoded[at + 2 : at + 4], "big")
        if encoded[at] != 0xFF or not 0xC0 <= encoded[at + 1] < 0xFF:
            return True  # unusual
        if encoded[at + 1] == APP1 and (
            encoded.startswith(EXIF_START, at + 4)
            or encoded.find(XMP_ORIENTATION, at, end) >= 0
        ):
            return True
        at = end
    return False


def upright(pixels: np.ndarray, orientation: int) -> np.ndarray:
    """Returns a view of stored pixels (height, width, ...) that is upright."""
    if orientation >= FIRST_TRANSPOSED:
        pixels = pixels.swapaxes(0, 1)
    turns = (orientation - 1) % 4
    reverses_rows, reverses_columns = turns >= 2, turns in (1, 2)
    return pixels[:: -1 if reverses_rows else 1, :: -1 if reverses_columns else 1]


def as_stored(pixels: np.ndarray, orientation: int) -> np.ndarray:
    """Returns a view of upright pixels as a file of an orientation stores them."""
    # Two quarter turns are each other's inverse; all others are their own.
    return upright(pixels, {6: 8, 8: 6}.get(orientation, orientation))
