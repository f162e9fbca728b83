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
# Other files of a split whose headers are read before a run starts, and images of more
# bits that are decoded then.
HEADERS, DECODED = 32, 8


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
        """True for 16 bits of which so few are used that the image is nearly black."""
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
    """Returns whether an opened image, not yet loaded, has more than 8 bits."""
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
            gray = Image.fromarray(eight.astype(np.uint8))
            note = "12 bits brought to 8: 4,095 is white"
            return Decoded(gray.convert("RGB"), bits=12, highest=highest, note=note)
        # As TensorFlow reads PNGs: libpng drops the lower byte.
        eight = levels >> 8 if image.format == "PNG" else levels // 257
        gray = Image.fromarray(eight.astype(np.uint8))
        return _noted(gray.convert("RGB"), highest)
    if image.mode in ("I", "F"):
        levels, note = _stretched(image)
        gray = Image.fromarray(levels)
        return Decoded(gray.convert("RGB"), bits=32 if note else 8, note=note)
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


def notes_on_levels(name: str, files: Sequence[epath.Path]) -> list[str]:
    """Returns notes on images of 16 and 32 bits, from a small sample.

    Most formats have 8 bits: of JPEGs, say, no file is read.
    """
    files = [
        file for file in files if not file.name.lower().endswith(SUFFIXES_OF_8_BITS)
    ]
    deep: dict[int, list[tuple[epath.Path, Decoded]]] = {12: [], 16: [], 32: []}
    for file in files[:: -(-len(files) // HEADERS) or 1]:
        # An image that cannot be read is named when its turn comes.
        with (
            contextlib.suppress(Exception),
            file.open("rb") as stream,
            Image.open(stream) as image,
        ):
            if has_more_than_8_bits(image):
                decoded = decode_opened(image)
                deep[decoded.bits].append((file, decoded))
        if sum(map(len, deep.values())) == DECODED:
            break
    notes = []
    if deep[16] and all(decoded.is_dark for _, decoded in deep[16]):
        file, brightest = max(deep[16], key=lambda found: found[1].highest)
        notes.append(
            f"{name}: {file}, the brightest of {len(deep[16])} images of 16 bits that "
            f"were looked at: {brightest.note}"
        )
    if deep[32]:
        file, decoded = deep[32][0]
        notes.append(
            f"{name}: {file}: {decoded.note}; every image of 32 bits is stretched by "
            "its own levels: save 8 bits to keep the brightness of one to another"
        )
    return notes
