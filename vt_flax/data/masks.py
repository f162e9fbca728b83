"""Mask files: 8-bit gray PNGs of class indices, and tables of what values become."""

import io
from collections.abc import Sequence

import numpy as np
from PIL import Image

from vt_flax.data.orientation import PNG_START

# Label of a pixel without a label.
IGNORE = 255
# Class of values that must not occur, in a table of classes.
NO_CLASS = 254
MAX_CLASSES = 254

# A PNG's bit depth and color type, bytes 24 and 25, in a mask.
GRAY_8_BITS = bytes((8, 0))
COLOR_TYPES = {0: "gray", 2: "RGB", 3: "palette", 4: "gray+alpha", 6: "RGBA"}
GRAY, PALETTE = 0, 3

EXPECTED = "a mask must be a gray PNG of class indices in 8 bits"


def label_table(label_map: Sequence[int]) -> np.ndarray:
    """Returns a table (256,), uint8, of the class of each stored value.

    Values beyond the label map become 254, since they must not occur; 255 stays 255.
    """
    table = np.full(256, NO_CLASS, np.uint8)
    table[IGNORE] = IGNORE
    table[: len(label_map)] = label_map
    return table


def numbered_names(count: int) -> tuple[str, ...]:
    """Returns names for classes that have none."""
    return tuple(f"class {i}" for i in range(count))


def histogram(mask: np.ndarray) -> np.ndarray:
    """Returns the number of pixels (256,) of each value in a uint8 mask."""
    # Twice as fast as np.bincount, which converts to 64 bits first.
    return np.asarray(Image.fromarray(mask).histogram())


def values_in(mask: np.ndarray) -> np.ndarray:
    """Returns the values that occur in a uint8 mask, ascending."""
    return np.flatnonzero(histogram(mask))


def absent_classes(
    pixels: np.ndarray, table: np.ndarray, names: Sequence[str]
) -> list[str]:
    """Returns the names of the classes without a pixel in a histogram (256,)."""
    present = {*table[np.flatnonzero(pixels)].tolist()}
    return [name for i, name in enumerate(names) if i not in present]


def is_gray_png(encoded: bytes) -> bool:
    """Returns whether a file is an 8-bit gray PNG."""
    return encoded.startswith(PNG_START) and encoded[24:26] == GRAY_8_BITS


def encode_png(pixels: np.ndarray) -> bytes:
    """Encodes a mask (height, width) or an RGB image, uint8, as a PNG of 8 bits."""
    output = io.BytesIO()
    Image.fromarray(pixels).save(output, "PNG")
    return output.getvalue()


def decode_mask(
    encoded: bytes, palettes: bool = False, *, any_gray: bool = False
) -> np.ndarray:
    """Decodes a mask to its values (height, width), uint8.

    Args:
      encoded: an 8-bit gray PNG.
      palettes: also accept palette PNGs, whose indices are the values.
      any_gray: also accept other PNGs of one value a pixel: gray of 1, 2, 4 or 16 bits,
        and opaque gray+alpha, RGB or RGBA of 8 bits whose channels are equal.

    Raises:
      ValueError: if it is another file or damaged; the message says what to do.
    """
    if not encoded.startswith(PNG_START) or len(encoded) < 26:
        raise ValueError("a mask must be a PNG; this is none, is empty or is cut off")
    depth, color = encoded[24:26]
    accepted = any_gray and (color == GRAY or color != PALETTE and depth == 8)
    if not (is_gray_png(encoded) or accepted or palettes and color == PALETTE):
        raise ValueError(
            f"{EXPECTED}, this one is {COLOR_TYPES.get(color)}, {depth} bits: save the "
            "class index of each color or palette entry as gray"
        )
    try:
        with Image.open(io.BytesIO(encoded)) as image:
            one_channel = color in (GRAY, PALETTE)
            pixels = np.asarray(image if one_channel else image.convert("RGBA"))
    except Exception as error:
        # Pillow's plugins raise OSError, SyntaxError, struct.error and more.
        raise ValueError(f"not a readable PNG ({error})") from error
    if not one_channel:
        if (pixels[..., :3] != pixels[..., :1]).any() or pixels[..., 3].min() < 255:
            raise ValueError(
                f"{EXPECTED}, this one has colors or transparency: save the class "
                "index of each color as gray"
            )
        pixels = pixels[..., 0]
    elif color == GRAY and 1 < depth < 8:
        # Pillow scales 2 and 4 bits to 0..255; 1 bit becomes a bool.
        pixels = pixels // (255 // (2**depth - 1))
    if pixels.max() > 255:
        raise ValueError(
            f"{EXPECTED}, this one has values up to {pixels.max():,}: if they are ids "
            "of instances or segments, store the class index of each instead"
        )
    return pixels.astype(np.uint8, copy=False)
