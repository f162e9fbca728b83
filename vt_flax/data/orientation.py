"""EXIF orientation: finds it in a file, and turns pixels upright.

Orientation 1 is upright. The stored pixels of the others become upright by exchanging
rows and columns (5 to 8), and then reversing the order of the rows (3, 4, 7, 8), of the
columns (2, 3, 6, 7) or of both.
"""

import io
import struct
from typing import Any

import numpy as np
from PIL import ExifTags, Image

from vt_flax.data.host import tensorflow

UPRIGHT = 1
# Orientations that exchange rows and columns begin here.
FIRST_TRANSPOSED = 5

JPEG_START, PNG_START = b"\xff\xd8\xff", b"\x89PNG\r\n\x1a\n"
# Segments of a JPEG: EXIF and XMP are in the second, metadata end before the last.
APP1, START_OF_SCAN = 0xE1, 0xDA
EXIF_START, XMP_START = b"Exif\0\0", b"http://ns.adobe.com/xap/1.0/\0"
# Chunks of text in a PNG from which Pillow takes an orientation.
TEXT_STARTS = (b"Raw profile type exif\0", b"XML:com.adobe.xmp\0")
TEXT_CHUNKS = (b"tEXt", b"zTXt", b"iTXt")
# EXIF's type of an orientation: an integer of 16 bits.
SHORT = 3

Tensor = Any


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

    Pillow takes 0.1 ms, in which no other thread runs Python. So the metadata of JPEG
    and PNG are looked for here, and Pillow is asked only about unusual ones.
    """
    try:
        found = _usual_orientation(encoded)
    except (struct.error, IndexError, ValueError):
        found = None
    if found is not None:
        return found
    try:
        with Image.open(io.BytesIO(encoded)) as image:
            return orientation_of(image)
    except Exception:
        # Whoever decodes the file says what is wrong with it.
        return UPRIGHT


def _usual_orientation(encoded: bytes) -> int | None:
    """Returns the orientation of a JPEG or PNG; None if only Pillow can tell.

    Raises:
      struct.error, IndexError, ValueError: if the file is damaged or unusual.
    """
    if encoded.startswith(JPEG_START):
        exif, other = _metadata_of_jpeg(encoded)
    elif encoded.startswith(PNG_START):
        exif, other = _metadata_of_png(encoded)
    else:
        return None
    if len(exif) > 1:
        return None
    found = _exif_orientation(exif[0]) if exif else None
    if found is None:
        return None if other else UPRIGHT
    return found if found in range(1, 9) else UPRIGHT


def _metadata_of_jpeg(encoded: bytes) -> tuple[list[bytes], bool]:
    """Returns the EXIF segments, and whether XMP has an orientation."""
    exif, other = [], False
    at = 2
    while (marker := encoded[at + 1]) != START_OF_SCAN:
        if encoded[at] != 0xFF or not 0xC0 <= marker < 0xFF:
            raise ValueError("no segment of a JPEG")
        end = at + 2 + int.from_bytes(encoded[at + 2 : at + 4], "big")
        if marker == APP1:
            if encoded.startswith(EXIF_START, at + 4):
                exif.append(encoded[at + 4 + len(EXIF_START) : end])
            elif encoded.startswith(XMP_START, at + 4):
                other |= encoded.find(b"tiff:Orientation", at, end) >= 0
        at = end
    return exif, other


def _metadata_of_png(encoded: bytes) -> tuple[list[bytes], bool]:
    """Returns the EXIF chunks, and whether text may have an orientation."""
    exif, other = [], False
    at = len(PNG_START)
    while (kind := encoded[at + 4 : at + 8]) != b"IEND":
        if len(kind) < 4:
            raise ValueError("a PNG that is cut off")
        start = at + 8
        at = start + int.from_bytes(encoded[at : at + 4], "big") + 4
        if kind == b"eXIf":
            exif.append(encoded[start : at - 4])
        elif kind in TEXT_CHUNKS:
            other |= encoded.startswith(TEXT_STARTS, start)
    return exif, other


def _exif_orientation(exif: bytes) -> int | None:
    """Returns the orientation of EXIF data, which are a TIFF; None if it has none.

    Raises:
      struct.error, ValueError: if they are damaged or unusual.
    """
    order = {b"II*\0": "<", b"MM\0*": ">"}.get(exif[:4])
    if order is None:
        raise ValueError("no TIFF header")
    (directory,) = struct.unpack_from(order + "I", exif, 4)
    (count,) = struct.unpack_from(order + "H", exif, directory)
    entries = exif[directory + 2 : directory + 2 + 12 * count]
    if len(entries) < 12 * count:
        raise ValueError("a directory that is cut off")
    for tag, kind, length, value in struct.iter_unpack(order + "HHIH2x", entries):
        if tag == ExifTags.Base.Orientation:
            if (kind, length) != (SHORT, 1):
                raise ValueError("an orientation of another type")
            return value
    return None


def upright(pixels: np.ndarray, orientation: int) -> np.ndarray:
    """Returns a view of stored pixels (height, width, ...) that is upright."""
    rows, columns = _reversed(orientation)
    if orientation >= FIRST_TRANSPOSED:
        pixels = pixels.swapaxes(0, 1)
    return pixels[:: -1 if rows else 1, :: -1 if columns else 1]


def as_stored(pixels: np.ndarray, orientation: int) -> np.ndarray:
    """Returns a view of upright pixels as a file of an orientation stores them."""
    # Two quarter turns are each other's inverse; all others are their own.
    return upright(pixels, {6: 8, 8: 6}.get(orientation, orientation))


def _reversed(orientation: int) -> tuple[bool, bool]:
    """Returns whether the rows, and whether the columns, are in reversed order."""
    turns = (orientation - 1) % 4
    return turns >= 2, turns in (1, 2)


def exchanged(shape: Tensor, orientation: int) -> Tensor:
    """Returns the stored shape (rows, columns, ...) from the upright one, and back.

    Only the first two change.
    """
    if orientation < FIRST_TRANSPOSED:
        return shape
    return tensorflow().concat([shape[1::-1], shape[2:]], 0)


def stored_box(box: Tensor, shape: Tensor, orientation: int) -> Tensor:
    """Returns where a part of the upright image is in the stored one.

    Args:
      box: (4,), top, left, height and width in the upright image.
      shape: height and width of the upright image, and maybe more.
      orientation: of the stored image.

    Returns:
      (4,), top, left, height and width in the stored image.
    """
    if orientation == UPRIGHT:
        return box
    tf = tensorflow()
    at, lengths = box[:2], box[2:]
    at = tf.where(_reversed(orientation), shape[:2] - at - lengths, at)
    return tf.concat([exchanged(at, orientation), exchanged(lengths, orientation)], 0)
