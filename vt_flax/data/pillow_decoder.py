"""Images of any format and mode, decoded by Pillow to 8-bit RGB."""

import dataclasses
import io

import numpy as np
from PIL import Image, TiffImagePlugin

from vt_flax.data.orientation import UPRIGHT, as_stored, orientation_of


@dataclasses.dataclass(frozen=True)
class Decoded:
    """An image of 8 bits per channel.

    Attributes:
      image: RGB, as it is stored: not turned by its orientation.
      orientation: EXIF orientation, 1 to 8.
      note: how more than 8 bits were converted; else empty.
    """

    image: Image.Image
    orientation: int = UPRIGHT
    note: str = ""


def decode_with_pillow(encoded: bytes) -> Image.Image:
    """Decodes a file to an RGB image, as it is stored.

    Raises:
      ValueError: if the bytes are no image, or a damaged one; says why.
    """
    try:
        return decode_opened(Image.open(io.BytesIO(encoded))).image
    except Exception as error:
        # Pillow's plugins raise OSError, SyntaxError, struct.error and more. Their
        # messages name an object in memory where they mean the file.
        reason = str(error).partition(" <_io.BytesIO")[0] or type(error).__name__
        raise ValueError(f"not a readable image ({reason})") from error


def decode_opened(image: Image.Image) -> Decoded:
    """Decodes an image that Pillow has opened.

    Raises:
      ValueError: if it has 32 bits per pixel, or 16 in separate planes.
      Exception: of any type, if the file is damaged.
    """
    raw_mode = _raw_mode(image)  # which is gone after loading
    if image.format == "TIFF" and ";16" not in raw_mode:
        bits = image.tag_v2.get(TiffImagePlugin.BITSPERSAMPLE, (1,))
        if raw_mode and max(bits) == 16:
            raise ValueError("16 bits in separate planes, which Pillow cannot read")
    # Pillow turns a TIFF as it loads it; of a PNG, EXIF data may follow the pixels.
    turned = orientation_of(image) if image.format == "TIFF" else UPRIGHT
    # The mode is final only now: of some files a palette is found on loading.
    image.load()
    decoded = _to_rgb(image, raw_mode)
    if turned == UPRIGHT:
        return dataclasses.replace(decoded, orientation=orientation_of(image))
    stored = np.ascontiguousarray(as_stored(np.asarray(decoded.image), turned))
    return dataclasses.replace(
        decoded, image=Image.fromarray(stored), orientation=turned
    )


def _raw_mode(image: Image.Image) -> str:
    """Returns Pillow's name for how a file stores pixels, as in `RGB;16B`."""
    tiles = getattr(image, "tile", ())
    arguments = tiles[0][3] if tiles else ""
    return str(arguments[0] if isinstance(arguments, tuple) else arguments)


def _to_rgb(image: Image.Image, raw_mode: str) -> Decoded:
    """Converts a loaded image to 8 bits; Pillow would clip 16 and 32 bits at 255."""
    note = "16 bits converted to 8: 65,535 is white"
    # Pillow has 16-bit PGMs in 32 bits, and before its version 11 also PNGs.
    if image.mode.startswith("I;16") or (
        image.mode == "I" and image.format in ("PNG", "PPM")
    ):
        levels = np.asarray(image)
        if raw_mode == "I;12":
            eight = levels.astype(np.uint32) * 255 // 4095
            note = "12 bits converted to 8: 4,095 is white"
        elif image.format == "PNG":
            eight = levels >> 8  # as TensorFlow reads it: libpng drops the lower byte
        else:
            eight = levels // 257
        gray = Image.fromarray(eight.astype(np.uint8))
        return Decoded(gray.convert("RGB"), note=note)
    if image.mode in ("I", "F"):
        raise ValueError("32 bits per pixel, whose white is not defined: convert to 8")
    # A copy of a large image takes half a gigabyte.
    rgb = image if image.mode == "RGB" else image.convert("RGB")
    return Decoded(rgb, note=note if ";16" in raw_mode else "")
