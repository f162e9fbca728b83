"""Images of any format and mode, decoded by Pillow to 8-bit RGB."""

import contextlib
import dataclasses
import io
from collections.abc import Sequence

import numpy as np
from etils import epath
from PIL import Image, TiffImagePlugin

from vt_flax.data.image_files import SUFFIXES_OF_8_BITS
from vt_flax.data.orientation import UPRIGHT, as_stored, orientation_of

# A 16-bit image without a level from here on probably holds data of 14 bits or fewer.
LEAST_OF_16_BITS = 1 << 14
# Files of a split that are opened before a run starts to look for more than 8 bits.
SAMPLE = 16


@dataclasses.dataclass(frozen=True)
class Decoded:
    """An image of 8 bits per channel.

    Attributes:
      image: RGB, as it is stored: not turned by its orientation.
      orientation: EXIF orientation, 1 to 8.
      note: how more than 8 bits were converted; else empty.
      is_doubtful: True if the levels are probably not those that were meant.
    """

    image: Image.Image
    orientation: int = UPRIGHT
    note: str = ""
    is_doubtful: bool = False


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


def _raw_mode(image: Image.Image) -> str:
    """Returns Pillow's name for how a file stores pixels, as in `RGB;16B`."""
    tiles = getattr(image, "tile", ())
    arguments = tiles[0][3] if tiles else ""
    return str(arguments[0] if isinstance(arguments, tuple) else arguments)


def _to_rgb(image: Image.Image, raw_mode: str) -> Decoded:
    """Converts a loaded image to 8 bits; Pillow would clip 16 and 32 bits at 255."""
    # Pillow has 16-bit PGMs in 32 bits, and before its version 11 also PNGs.
    if image.mode.startswith("I;16") or (
        image.mode == "I" and image.format in ("PNG", "PPM")
    ):
        levels = np.asarray(image)
        if raw_mode == "I;12":  # a TIFF that says so
            eight = levels.astype(np.uint32) * 255 // 4095
            note = "12 bits converted to 8: 4,095 is white"
            return Decoded(_gray(eight), note=note)
        # As TensorFlow reads PNGs: libpng drops the lower byte.
        eight = levels >> 8 if image.format == "PNG" else levels // 257
        return _of_16_bits(_gray(eight), int(levels.max()))
    if image.mode in ("I", "F"):
        return _stretched(image)
    # A copy of a large image takes half a gigabyte.
    rgb = image if image.mode == "RGB" else image.convert("RGB")
    if ";16" in raw_mode:  # several channels
        highest = max(high for _, high in rgb.getextrema())
        return _of_16_bits(rgb, 256 * highest + 255)
    return Decoded(rgb)


def _gray(levels: np.ndarray) -> Image.Image:
    return Image.fromarray(levels.astype(np.uint8)).convert("RGB")


def _of_16_bits(image: Image.Image, highest: int) -> Decoded:
    """Returns an image, of whose 16-bit levels the highest is given."""
    note = "16 bits converted to 8: 65,535 is white"
    is_dark = highest < LEAST_OF_16_BITS
    if is_dark:
        note += (
            f", but no level is above {highest:,}, so that it is nearly black: if its "
            "data have fewer bits, scale them to 16, or save 8 bits"
        )
    return Decoded(image, note=note, is_doubtful=is_dark)


def _stretched(image: Image.Image) -> Decoded:
    """Converts 32 bits per pixel, of which no format defines the white, to 8."""
    low, high = image.getextrema()
    if not (np.isfinite(low) and np.isfinite(high)):
        raise ValueError("it has levels that are no finite numbers")
    levels = np.asarray(image, np.float32)
    if low >= 0 and 1 < high <= 255:
        return Decoded(_gray(np.round(levels)))
    levels = np.round((levels - low) / max(high - low, 1e-30) * 255)
    note = f"32 bits converted to 8: {low:g} is black, {high:g} is white"
    return Decoded(_gray(levels), note=note, is_doubtful=True)


def notes_on_levels(name: str, files: Sequence[epath.Path]) -> list[str]:
    """Returns a note if the images of 16 or 32 bits in a small sample are doubtful.

    No file is read of formats that have 8 bits, such as JPEG.
    """
    files = [
        file for file in files if not file.name.lower().endswith(SUFFIXES_OF_8_BITS)
    ]
    note = ""
    for file in files[:: -(-len(files) // SAMPLE) or 1]:
        # A file that cannot be read is reported when a batch needs it.
        with (
            contextlib.suppress(Exception),
            file.open("rb") as stream,
            Image.open(stream) as image,
        ):
            if image.mode[0] in "IF" or ";16" in _raw_mode(image):
                decoded = decode_opened(image)
                if not decoded.is_doubtful:
                    return []  # one that reaches white shows what the others mean
                note = note or f"{name}: {file}: {decoded.note}"
    return [note] if note else []
