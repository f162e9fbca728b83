"""What the values of a mask mean: a class, no label, or a mistake."""

import io
from collections.abc import Iterable, Sequence

import numpy as np
from PIL import Image

# The label of pixels that nobody has labelled.
IGNORE = 255
# What a table gives for values that must not occur, so that they can be found.
NO_CLASS = 254
MOST_CLASSES = 254

# Entries of a TFDS dataset's metadata: names of the classes; the class that each
# becomes in a mirrored image; the dataset that this is a smaller copy of.
CLASS_NAMES, MIRRORED, RESIZED_FROM = "class_names", "mirrored", "resized_from"

PNG_START = b"\x89PNG\r\n\x1a\n"
GREY, PALETTE = 0, 3
# First byte and number of those that hold depth and colour type, and what they hold in
# a mask.
GREY_PLACE, GREY_8_BITS = (24, 2), bytes((8, GREY))
COLOUR_TYPES = {GREY: "grey", 2: "RGB", PALETTE: "palette", 4: "grey+alpha", 6: "RGBA"}

HOW_TO_MEND = {
    PALETTE: "if the indices into its palette are the labels, "
    "`Image.fromarray(np.asarray(Image.open(f))).save(f)` (Pillow) makes it grey; if "
    "its colours are, give each colour its class index first",
    GREY: "if its values are class indices, "
    "`Image.fromarray(np.asarray(Image.open(f)).astype(np.uint8)).save(f)` (Pillow) "
    "makes it 8-bit",
    2: "give each colour its class index and save that as a grey PNG",
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


def values_in(mask: np.ndarray) -> np.ndarray:
    """Returns which of the 256 values occur in a uint8 mask, ascending."""
    return np.flatnonzero(np.bincount(mask.ravel(), minlength=256))


def decode_mask(encoded: bytes, palettes: bool = False) -> np.ndarray:
    """Decodes a mask to its values.

    Args:
      encoded: an 8-bit grey PNG.
      palettes: whether a palette PNG is as good: its indices are the values.

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
    # Pillow does not tell grey of fewer bits from 8, and scales its values to 0..255.
    depth, colour = encoded[24:26]
    if not (is_grey_png(encoded) or palettes and colour == PALETTE):
        kind = COLOUR_TYPES.get(colour, "unknown")
        raise ValueError(
            "a mask must be a grey PNG of class indices in 8 bits, the mode of this "
            f"one is {kind}, {depth} bits: {HOW_TO_MEND.get(colour, HOW_TO_MEND[2])}"
        )
    try:
        with Image.open(io.BytesIO(encoded)) as image:
            return np.asarray(image, np.uint8)
    except Exception as error:
        # Pillow's plugins raise OSError, SyntaxError, struct.error and more.
        raise ValueError(f"not a readable PNG ({error})") from error


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
