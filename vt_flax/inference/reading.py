"""Images as people have them, decoded to the pixels that evaluation sees.

Pillow decodes them. TensorFlow, which training and evaluation use, gives the same
pixels.
"""

import contextlib
import dataclasses
import io
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
from vt_flax.inference.files import find_images
from vt_flax.paths import typed_path

# Pillow raises an error beyond this, against decompression bombs. 540 MB as an array.
MOST_PIXELS = 2 * Image.MAX_IMAGE_PIXELS


@dataclasses.dataclass(frozen=True)
class Picture:
    """A decoded image.

    Attributes:
      name: path of the file, or number among other images.
      stored: (H, W, 3), uint8, pixels as the file stores them.
      notes: conversions that may matter, in a few words each.
      orientation: EXIF orientation of the stored pixels.
    """

    name: str
    stored: np.ndarray
    notes: tuple[str, ...] = ()
    orientation: int = UPRIGHT

    @property
    def pixels(self) -> np.ndarray:
        """The upright image, (H, W, 3), uint8."""
        return upright(self.stored, self.orientation)


# What one image may be; see `each_image`.
ImageLike = (
    str | os.PathLike | bytes | bytearray | memoryview | Image.Image | np.ndarray | Any
)

WHAT_TO_PASS = (
    "pass a path, an encoded image as bytes or an open file, a PIL image, or a uint8 "
    "array (H, W, channels); of several images, one flat list"
)


def each_image(images: Any) -> Iterator[tuple[str, Any]]:
    """Yields the name and each of one or many images, none of them read yet.

    Args:
      images: one image or many: a list, an iterator, an array of paths, or a numeric
        array (images, H, W, channels). An image is a path, of a folder (whose images
        are meant) and a pattern too; the bytes of an encoded image, or a file that is
        open for them; an image of Pillow's; an array or a tensor of levels.

    Raises:
      UserError: for what can be no image.
    """
    for i, image in enumerate(_listed(images)):
        if isinstance(image, (str, os.PathLike)):
            yield from ((os.fspath(file), file) for file in _files(image))
        else:
            # An open file is called by its path.
            path = getattr(image, "name", None) if hasattr(image, "read") else None
            yield path if isinstance(path, str) else f"image {i}", image


def _listed(images: Any) -> Iterable[Any]:
    """Returns many images as they are, and one in a list."""
    single = (str, os.PathLike, bytes, bytearray, memoryview, Image.Image)
    if isinstance(images, single) or hasattr(images, "read"):
        return [images]
    if hasattr(images, "shape"):
        images = _as_array("images", images)
        if images.dtype.kind in "OSU":
            # An array of paths, or of images of several sizes.
            return images.ravel().tolist()
        return images if images.ndim == 4 else [images]
    return images if isinstance(images, Iterable) else [images]


def _files(path: str | os.PathLike) -> list[pathlib.Path]:
    """Returns the files that a path, a folder or a pattern stands for."""

    def refuse(error: OSError) -> None:
        raise UserError(f"{error.filename}: {error.strerror}") from error

    return find_images([path], on_error=refuse)


def read_picture(
    image: ImageLike, name: str = "image", *, ignore_orientation: bool = False
) -> Picture:
    """Reads an image of any size and mode, with the pixels that evaluation has.

    It is turned upright by its EXIF orientation. Of an animation the first frame is
    taken; 16 and 32 bits are brought to 8; transparency is left out.

    Args:
      image: a file's path; an encoded image as bytes, or a file that is open for them,
        which is read from its start where it can be rewound; an image of Pillow's; or
        an array, uint8, (H, W) or (H, W, channels) with 1, 2 (gray and alpha), 3 or 4
        channels. `~` is a home folder in text, not in a `pathlib.Path`.
      name: of an image that is no file.
      ignore_orientation: keeps the image as it is stored.

    Raises:
      UserError: if it is no image, a damaged one, or too large; names it.
    """
    picture = image if isinstance(image, Picture) else _read(image, name)
    if ignore_orientation:
        picture = dataclasses.replace(picture, orientation=UPRIGHT)
    return picture


def _read(image: ImageLike, name: str) -> Picture:
    if isinstance(image, (str, os.PathLike)):
        # Text is what somebody has typed; a path may come from listing a folder.
        typed = isinstance(image, str)
        return _read_file(typed_path(image) if typed else pathlib.Path(image))
    with _readable(name):
        if isinstance(image, Image.Image):
            return _decode(name, image)
        if hasattr(image, "read"):
            # From its start where it can be rewound, as Pillow does.
            with contextlib.suppress(AttributeError, OSError):
                image.seek(0)
            image = io.BytesIO(image.read()).getvalue()
        elif hasattr(image, "shape") and not isinstance(image, memoryview):
            array = _as_array(name, image)
            if array.ndim or not isinstance(array.item(), bytes):
                return Picture(name, _from_array(name, array))
            image = array.item()
        if isinstance(image, (bytes, bytearray, memoryview)):
            with Image.open(io.BytesIO(image)) as opened:
                return _decode(name, opened)
    raise UserError(f"{name} is of type {type(image).__name__}: {WHAT_TO_PASS}")


def _read_file(file: pathlib.Path) -> Picture:
    # A file name may not be valid text.
    name = os.fsencode(file).decode("utf-8", "backslashreplace")
    with _readable(name):
        mode = file.stat().st_mode
        if not stat.S_ISREG(mode):  # to open a pipe could take forever
            kind = "a folder" if stat.S_ISDIR(mode) else "not a regular file"
            raise UserError(f"{name}: {kind}, not an image")
        # Not by its name: Pillow would map some TIFFs into memory, and misread those
        # that are turned by a quarter.
        with file.open("rb") as stream, Image.open(stream) as image:
            return _decode(name, image)


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


def _decode(name: str, image: Image.Image) -> Picture:
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
    pixels = np.asarray(decoded.image)
    return Picture(name, pixels, tuple(notes), decoded.orientation)


def _is_transparent(image: Image.Image) -> bool:
    if image.mode in ("RGBA", "LA", "PA"):
        return image.getchannel("A").getextrema()[0] < 255
    return "transparency" in image.info


def _as_array(name: str, array: Any) -> np.ndarray:
    """Returns an array of NumPy's, JAX's, TensorFlow's or PyTorch's as NumPy's."""
    with _readable(name):
        # PyTorch's may be on a GPU, or have gradients.
        return np.asarray(array.detach().cpu() if hasattr(array, "detach") else array)


def _from_array(name: str, array: np.ndarray) -> np.ndarray:
    """Returns levels as (H, W, 3)."""
    pixels = array[..., None] if array.ndim == 2 else array
    is_image = pixels.ndim == 3 and 1 <= pixels.shape[-1] <= 4 and pixels.size
    # Of other types it is not known which value is white.
    if not is_image or pixels.dtype != np.uint8:
        shape = " x ".join(map(str, array.shape)) or "no dimensions"
        raise UserError(
            f"{name} is an array of {shape}, {array.dtype}: pass levels from 0 to 255 "
            "as uint8, (H, W) or (H, W, channels) with 1 to 4 channels"
        )
    if pixels.shape[-1] < 3:
        return np.repeat(pixels[..., :1], 3, axis=-1)
    return np.ascontiguousarray(pixels[..., :3])
