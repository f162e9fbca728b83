"""Images as people have them, brought to the pixels that evaluation would see.

Pillow decodes, as it does for training and evaluation where TensorFlow cannot; of JPEG
and PNG the two give the same pixels.
"""

import contextlib
import dataclasses
import os
import pathlib
import stat
import warnings
from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np
from PIL import Image

from vt_flax.data.orientation import UPRIGHT, upright
from vt_flax.data.pillow_decoder import decode_opened
from vt_flax.errors import UserError, first_line
from vt_flax.paths import typed_path

# Beyond this Pillow takes an image for an attack. 540 MB as an array.
MOST_PIXELS = 2 * Image.MAX_IMAGE_PIXELS
MOST_BYTES = 1 << 30


@dataclasses.dataclass(frozen=True)
class Picture:
    """An image as a person sees it.

    Attributes:
      name: what it is called: a file's path, or its number among others.
      stored: (H, W, 3), uint8, as the file stores them.
      notes: what had to be done to it that may matter, in a few words each.
      orientation: by which the stored pixels are turned.
    """

    name: str
    stored: np.ndarray
    notes: tuple[str, ...] = ()
    orientation: int = UPRIGHT

    @property
    def pixels(self) -> np.ndarray:
        """The upright image, (H, W, 3), uint8."""
        return upright(self.stored, self.orientation)


# A file's path, an image of Pillow's, an array (H, W) or (H, W, channels), uint8.
ImageLike = str | os.PathLike | Image.Image | np.ndarray | Picture


def each_image(images: Any) -> Iterator[tuple[str, Any]]:
    """Yields the name and each of one or many images, none of them read yet."""
    if hasattr(images, "shape"):
        images = np.asarray(images)
        if images.ndim != 4:
            images = [images]
    elif isinstance(images, (str, os.PathLike, Image.Image)) or not isinstance(
        images, Iterable
    ):
        images = [images]
    for i, image in enumerate(images):
        named = isinstance(image, (str, os.PathLike))
        yield os.fspath(image) if named else f"image {i}", image


def read_picture(
    image: ImageLike, name: str = "image", *, ignore_orientation: bool = False
) -> Picture:
    """Reads an image of any size and mode, with the pixels that evaluation has.

    It is turned upright by its EXIF orientation. Of an animation the first frame is
    taken; 16 and 32 bits are brought to 8; transparency is left out.

    Args:
      image: a file's path, an image of Pillow's, or an array, uint8, (H, W) or (H, W,
        channels) with 1, 2 (grey and alpha), 3 or 4 channels. `~` is a home folder in
        text, not in a `pathlib.Path`.
      name: of an image that is no file.
      ignore_orientation: keeps the image as it is stored.

    Raises:
      UserError: if it is no image, a damaged one, or too large; names it.
    """
    if isinstance(image, Picture):
        return image
    if isinstance(image, (str, os.PathLike)):
        # Text is what somebody has typed; a path may come from listing a folder.
        typed = isinstance(image, str)
        file = typed_path(image) if typed else pathlib.Path(image)
        return _read_file(file, ignore_orientation=ignore_orientation)
    if isinstance(image, Image.Image):
        with _readable(name):
            return _decode(name, image, ignore_orientation=ignore_orientation)
    if hasattr(image, "shape"):
        return Picture(name, _from_array(name, np.asarray(image)))
    raise UserError(
        f"{name} is a {type(image).__name__}: give a path, a PIL image or a uint8 array"
    )


def _read_file(file: pathlib.Path, *, ignore_orientation: bool) -> Picture:
    # A file may be called what is no text.
    name = os.fsencode(file).decode("utf-8", "backslashreplace")
    with _readable(name):
        status = file.stat()
        if not stat.S_ISREG(status.st_mode):
            kind = "a folder" if stat.S_ISDIR(status.st_mode) else "no regular file"
            raise UserError(f"{name}: {kind}, not an image")
        if not status.st_size:
            raise UserError(f"{name}: not a readable image (it is empty)")
        if status.st_size > MOST_BYTES:
            raise UserError(
                f"{name}: {status.st_size / 2**30:.1f} GiB are more than the "
                f"{MOST_BYTES >> 30} GiB that are read: make it smaller"
            )
        # Not by its name: Pillow would map some TIFFs into memory, and get those wrong
        # that are turned by a quarter.
        with file.open("rb") as stream, Image.open(stream) as image:
            return _decode(name, image, ignore_orientation=ignore_orientation)


@contextlib.contextmanager
def _readable(name: str) -> Iterator[None]:
    """Makes one line of whatever Pillow finds wrong with a file."""
    try:
        with warnings.catch_warnings():
            # Of large images, odd palettes and broken metadata.
            warnings.simplefilter("ignore")
            yield
    except UserError:
        raise
    except Image.DecompressionBombError as error:
        raise UserError(
            f"{name}: has more than the {MOST_PIXELS:,} pixels that are read: make it "
            "smaller"
        ) from error
    except Image.UnidentifiedImageError as error:
        raise UserError(f"{name}: not an image in a format that is known") from error
    except Exception as error:
        # Pillow's plugins raise OSError, ValueError, SyntaxError, struct.error, more.
        if isinstance(error, OSError) and error.strerror:
            raise UserError(f"{name}: {error.strerror}") from error
        reason = first_line(error)[:200] or type(error).__name__
        raise UserError(f"{name}: not a readable image ({reason})") from error


def _decode(name: str, image: Image.Image, *, ignore_orientation: bool) -> Picture:
    width, height = image.size
    if not width or not height:
        raise UserError(f"{name}: an image of {width} x {height} pixels")
    if image.format == "EPS":
        raise UserError(f"{name}: EPS is a program, not pixels: convert it")
    notes = []
    frames = getattr(image, "n_frames", 1)
    # Phones put previews beside a photograph and call it MPO.
    if frames > 1 and image.format != "MPO":
        notes.append(f"the first of {frames} frames")
    decoded = decode_opened(image)
    if decoded.note:
        notes.append(decoded.note)
    if _is_transparent(image):
        notes.append("transparent pixels in the colors that are stored for them")
    orientation = UPRIGHT if ignore_orientation else decoded.orientation
    return Picture(name, np.asarray(decoded.image), tuple(notes), orientation)


def _is_transparent(image: Image.Image) -> bool:
    if image.mode in ("RGBA", "LA", "PA"):
        return image.getchannel("A").getextrema()[0] < 255
    return "transparency" in image.info


def _from_array(name: str, array: np.ndarray) -> np.ndarray:
    shape = " x ".join(map(str, array.shape))
    if array.dtype != np.uint8:
        raise UserError(
            f"{name} is an array of {array.dtype}: levels must be uint8, 0 to 255"
        )
    if array.ndim == 2:
        array = array[..., None]
    if array.ndim != 3 or not 1 <= array.shape[-1] <= 4 or not array.size:
        raise UserError(
            f"{name} is an array of {shape}: must be (H, W) or (H, W, channels) with 1 "
            "to 4 channels"
        )
    if array.shape[-1] < 3:
        return np.repeat(array[..., :1], 3, axis=-1)
    return np.ascontiguousarray(array[..., :3])
