"""What the values of a mask mean: a class, no label, or a mistake."""

import io
from collections.abc import Iterable, Sequence

import numpy as np
from PIL import Image

from vt_flax.data.orientation import PNG_START

# The label of pixels that nobody has labelled.
IGNORE = 255
# What a table gives for values that must not occur, so that they can be found.
NO_CLASS = 254
MOST_CLASSES = 254

# Entries of a TFDS dataset's metadata: names of the classes; the class that each
# becomes in a mirrored image; the dataset that this is a smaller copy of; the number of
# pixels of each stored value, by split.
CLASS_NAMES, MIRRORED, RESIZED_FROM = "class_names", "mirrored", "resized_from"
MASK_PIXELS = "mask_pixels"

GREY, PALETTE = 0, 3
# First byte and number of those that hold depth and colour type, and what they hold in
# a mask.
GREY_PLACE, GREY_8_BITS = (24, 2), bytes((8, GREY))
COLOUR_TYPES = {GREY: "gray", 2: "RGB", PALETTE: "palette", 4: "gray+alpha", 6: "RGBA"}

BY_INDEX = "give each color its class index and save that as a gray PNG"
HOW_TO_MEND = {
    PALETTE: "if the indices into its palette are the labels, "
    "`Image.fromarray(np.asarray(Image.open(f))).save(f)` (Pillow) makes it gray; if "
    "its colors are, give each color its class index first",
    GREY: "save its class indices as 8 bits",
}


def label_table(label_map: Sequence[int]) -> np.ndarray:
    """Returns a table (256,), uint8, of what stored values become.

    Args:
      label_map: what value i becomes: a class, or 255. Values beyond it must not occur,
        and become 254; but 255 stays 255.
    """
    table = np.full(256, NO_CLASS, np.uint8)
    table[IGNORE] = IGNORE
    table[: len(label_map)] = label_map
    return table


def identity_table(classes: int) -> np.ndarray:
    """Returns the table (256,), uint8, of masks that store class indices and 255."""
    return label_table(range(classes))


def numbered_names(indices: Iterable[int]) -> tuple[str, ...]:
    """Returns names for classes that have none."""
    return tuple(f"class {i}" for i in indices)


def histogram(mask: np.ndarray) -> np.ndarray:
    """Returns how many pixels (256,) of a uint8 mask have each value."""
    # Pillow's is twice as fast as np.bincount, which converts to 64 bits first.
    return np.asarray(Image.fromarray(mask).histogram())


def values_in(mask: np.ndarray) -> np.ndarray:
    """Returns which of the 256 values occur in a uint8 mask, ascending."""
    return np.flatnonzero(histogram(mask))


def decode_mask(
    encoded: bytes, palettes: bool = False, *, any_gray: bool = False
) -> np.ndarray:
    """Decodes a mask to its values.

    Args:
      encoded: an 8-bit gray PNG.
      palettes: whether to accept palette PNGs, whose indices are the values.
      any_gray: whether to accept every other PNG of one value a pixel: gray of 1, 2, 4
        or 16 bits, gray with an opaque alpha channel, RGB and RGBA with equal channels.

    Returns:
      (height, width), uint8.

    Raises:
      ValueError: if it is something else, or damaged; says what and how to mend it.
    """
    if not encoded:
        raise ValueError("it is empty")
    if not encoded.startswith(PNG_START):
        raise ValueError("a mask must be a PNG, which keeps every value as it is")
    if len(encoded) < 26:
        raise ValueError("it is cut off")
    # Pillow scales gray of 2 and 4 bits to 0..255 and does not say so; 1 bit is a bool.
    depth, color = encoded[24:26]
    converted = any_gray and color != PALETTE and (depth <= 8 or color == GREY)
    if not (is_grey_png(encoded) or converted or palettes and color == PALETTE):
        kind = COLOUR_TYPES.get(color, "unknown")
        raise ValueError(
            "a mask must be a gray PNG of class indices in 8 bits, the mode of this "
            f"one is {kind}, {depth} bits: {HOW_TO_MEND.get(color, BY_INDEX)}"
        )
    try:
        with Image.open(io.BytesIO(encoded)) as image:
            pixels = np.asarray(image)
    except Exception as error:
        # Pillow's plugins raise OSError, SyntaxError, struct.error and more.
        raise ValueError(f"not a readable PNG ({error})") from error
    if pixels.ndim == 3:
        pixels = _equal_channels(pixels)
    elif color == GREY and 1 < depth < 8:
        pixels = pixels // (255 // (2**depth - 1))
    elif pixels.max() > 255:
        raise ValueError(
            "a mask must be a gray PNG of class indices, this one has 16 bits and "
            f"values up to {pixels.max():,}: if they are ids of instances or segments, "
            "store the class index of each instead"
        )
    return pixels.astype(np.uint8, copy=False)


def _equal_channels(pixels: np.ndarray) -> np.ndarray:
    """Returns the one value (height, width) of gray pixels stored as several channels.

    Args:
      pixels: (height, width, channels): gray or RGB, and alpha if the number is even.

    Raises:
      ValueError: if the channels differ, or alpha is not 255 everywhere.
    """
    kind = {2: "gray+alpha", 3: "RGB", 4: "RGBA"}[pixels.shape[-1]]
    if kind != "RGB":
        if (pixels[..., -1] < 255).any():
            raise ValueError(
                f"a mask must be a gray PNG of class indices, this one is {kind} with "
                "transparent pixels: save the channel that holds the classes alone"
            )
        pixels = pixels[..., :-1]
    if (pixels != pixels[..., :1]).any():
        colors = np.unique(pixels.reshape(-1, 3), axis=0)
        shown = ", ".join(str(tuple(map(int, color))) for color in colors[:3])
        raise ValueError(
            f"a mask must be a gray PNG of class indices, this one is {kind} of "
            f"{len(colors):,} colors ({shown}{', ...' if len(colors) > 3 else ''}): "
            f"{BY_INDEX}"
        )
    return pixels[..., 0]


def is_grey_png(encoded: bytes) -> bool:
    """Tells whether a file is an 8-bit grey PNG."""
    first, count = GREY_PLACE
    found = encoded[first : first + count]
    return encoded.startswith(PNG_START) and found == GREY_8_BITS


def encode_mask(labels: np.ndarray) -> bytes:
    """Encodes labels (height, width), uint8, as an 8-bit grey PNG."""
    output = io.BytesIO()
    Image.fromarray(labels).save(output, "PNG")
    return output.getvalue()
