"""Images of any format and mode, decoded by Pillow to 8-bit RGB."""

import dataclasses
import io

import numpy as np
from PIL import Image, TiffImagePlugin

from vt_flax.data.orientation import UPRIGHT, as_stored, orientation_of

# A 16-bit image without a level from here on probably holds data of 14 bits or fewer.
LEAST_OF_16_BITS = 1 << 14


@dataclasses.dataclass(frozen=True)
class Decoded:
    """An image of 8 bits a channel.

    Attributes:
      image: RGB, as it is stored: not turned by its orientation.
      orientation: 1 to 8; see `orientation`.
      bits: of a channel in the file; 8 also for fewer.
      highest: the highest level in the file, if it has 16 bits; as Pillow reads only
        the upper byte of several channels, up to 255 more there.
      note: what was done to more than 8 bits, in a few words; else empty.
    """

    image: Image.Image
    orientation: int = UPRIGHT
    bits: int = 8
    highest: int = 255
    note: str = ""

    @property
    def is_dark(self) -> bool:
        """Whether it has 16 bits and uses so few of them that it is nearly black."""
        return self.bits == 16 and self.highest < LEAST_OF_16_BITS


def decode_with_pillow(encoded: bytes) -> Image.Image:
    """Decodes a file to an RGB image, as it is stored.

    Raises:
      ValueError: if the bytes are no image, or a damaged one; says why.
    """
    try:
        return decode_opened(Image.open(io.BytesIO(encoded))).image
    except Exception as error:
        # Pillow's plugins raise OSError, SyntaxError, struct.error and more.
        raise ValueError(str(error) or type(error).__name__) from error


def decode_opened(image: Image.Image) -> Decoded:
    """Decodes an image that Pillow has opened.

    Raises:
      ValueError: if its levels are no finite numbers.
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


def has_more_than_8_bits(image: Image.Image) -> bool:
    """Tells it of an image that was opened and not yet loaded."""
    return image.mode[0] in "IF" or ";16" in _raw_mode(image)


def _raw_mode(image: Image.Image) -> str:
    """Returns Pillow's name for how a file stores pixels, as in `RGB;16B`."""
    tiles = getattr(image, "tile", ())
    arguments = tiles[0][3] if tiles else ""
    return str(arguments[0] if isinstance(arguments, tuple) else arguments)


def _to_rgb(image: Image.Image, raw_mode: str) -> Decoded:
    """Brings a loaded image to 8 bits; Pillow would clip 16 and 32 bits at 255."""
    # Pillow has 16-bit PGMs in 32 bits, and before its version 11 also PNGs.
    if image.mode.startswith("I;16") or (
        image.mode == "I" and image.format in ("PNG", "PPM")
    ):
        levels = np.asarray(image)
        highest = int(levels.max())
        if raw_mode == "I;12":  # a TIFF that says so
            eight = levels.astype(np.uint32) * 255 // 4095
            grey = Image.fromarray(eight.astype(np.uint8))
            note = "12 bits brought to 8: 4,095 is white"
            return Decoded(grey.convert("RGB"), bits=12, highest=highest, note=note)
        # As TensorFlow reads PNGs: libpng drops the lower byte.
        eight = levels >> 8 if image.format == "PNG" else levels // 257
        grey = Image.fromarray(eight.astype(np.uint8))
        return _noted(grey.convert("RGB"), highest)
    if image.mode in ("I", "F"):
        levels, note = _stretched(image)
        grey = Image.fromarray(levels)
        return Decoded(grey.convert("RGB"), bits=32 if note else 8, note=note)
    # A copy of a large image takes half a gigabyte.
    rgb = image if image.mode == "RGB" else image.convert("RGB")
    if ";16" in raw_mode:  # several channels
        highest = max(high for _, high in rgb.getextrema())
        return _noted(rgb, 256 * highest + 255)
    return Decoded(rgb)


def _noted(image: Image.Image, highest: int) -> Decoded:
    """Adds to an image of 16 bits a note on its levels."""
    decoded = Decoded(image, bits=16, highest=highest)
    note = "16 bits brought to 8: 65,535 is white"
    if decoded.is_dark:
        note += (
            f", but no level is above {highest:,}, so that it is nearly black: if its "
            "data have fewer bits, scale them to 16, or save 8 bits"
        )
    return dataclasses.replace(decoded, note=note)


def _stretched(image: Image.Image) -> tuple[np.ndarray, str]:
    """Brings 32 bits a pixel, of which no format says the white, to 8."""
    low, high = image.getextrema()
    if not (np.isfinite(low) and np.isfinite(high)):
        raise ValueError("it has levels that are no finite numbers")
    levels = np.asarray(image, np.float32)
    if low >= 0 and 1 < high <= 255:
        return np.round(levels).astype(np.uint8), ""
    levels = np.round((levels - low) / max(high - low, 1e-30) * 255).astype(np.uint8)
    return levels, f"32 bits brought to 8: {low:g} is black, {high:g} is white"
