"""Images as people have them, found by name and decoded as for evaluation.

Pillow decodes them to the same pixels as TensorFlow does in training and evaluation.
"""

import contextlib
import dataclasses
import glob
import io
import os
import pathlib
import warnings
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import numpy as np
from PIL import Image

from vt_flax.data.image_files import files_below, is_image
from vt_flax.data.orientation import upright
from vt_flax.data.pillow_decoder import decode_opened
from vt_flax.errors import UserError, first_line
from vt_flax.paths import typed_path

# Types of one image; see `read_picture`.
ImageLike = (
    str | os.PathLike | bytes | bytearray | memoryview | Image.Image | np.ndarray | Any
)


@dataclasses.dataclass(frozen=True)
class Picture:
    """A decoded image.

    Attributes:
      name: path of the file, or `image I`.
      pixels: (H, W, 3), uint8.
      notes: conversions that may matter, in a few words each.
    """

    name: str
    pixels: np.ndarray
    notes: tuple[str, ...] = ()


def find_images(
    names: Sequence[str | os.PathLike], leave_out: pathlib.Path | None = None
) -> list[pathlib.Path]:
    """Returns the files that names stand for, each once, in the order of the names.

    Args:
      names: files, whatever their suffix; folders, searched recursively for images,
        without hidden files; or patterns such as `shots/*.png` or `shots/**/left_*`.
        `~` is a home folder in strings alone.
      leave_out: a folder that is left out inside of others.

    Raises:
      UserError: if a folder cannot be read or has no images, or nothing matches a
        pattern.
    """
    found: dict[pathlib.Path, None] = {}
    for name in names:
        path = typed_path(name) if isinstance(name, str) else pathlib.Path(name)
        if os.path.isdir(path):
            below = files_below(path, leave_out=leave_out)
            try:
                files = [file for file in below if is_image(file.name)]
            except OSError as error:
                raise UserError(f"{error.filename}: {error.strerror}") from error
            if not files:
                raise UserError(f"{path}: no images in this folder")
        # A file may have a name like a pattern.
        elif glob.has_magic(str(path)) and not os.path.lexists(path):
            matches = sorted(glob.glob(str(path), recursive=True))
            files = [pathlib.Path(match) for match in matches if os.path.isfile(match)]
            if not files:
                raise UserError(f"{path}: no file matches this pattern")
        else:
            # Reading it raises the error if it is missing.
            files = [path]
        found |= dict.fromkeys(files)
    return list(found)


def each_image(images: Any) -> Iterator[tuple[str, Any]]:
    """Yields name and image for each of one or many images, none of them read yet.

    Args:
      images: one image as `read_picture` takes it, a folder, or a pattern of file
        names; or many: a list, an iterator, an array of paths, or a numeric array
        (images, H, W, channels).

    Raises:
      UserError: if a folder or a pattern has no images.
    """
    for i, image in enumerate(_listed(images)):
        if isinstance(image, (str, os.PathLike)):
            yield from ((os.fspath(file), file) for file in find_images([image]))
        else:
            yield f"image {i}", image


def _listed(images: Any) -> Iterable[Any]:
    """Returns many images as they are, and a single one in a list."""
    single = (str, os.PathLike, bytes, bytearray, memoryview, Image.Image)
    if isinstance(images, single) or hasattr(images, "read"):
        return [images]
    if hasattr(images, "shape"):  # of NumPy, JAX, TensorFlow or PyTorch
        images = np.asarray(images)
        if images.dtype.kind in "OSU":  # paths, or images of several sizes
            return images.ravel().tolist()
        return images if images.ndim == 4 else [images]
    return images if isinstance(images, Iterable) else [images]


def read_picture(
    image: ImageLike, name: str = "image", *, ignore_orientation: bool = False
) -> Picture:
    """Reads an image of any size and mode, with the pixels that evaluation has.

    It is turned upright by its EXIF orientation. Of an animation the first frame is
    taken; 16 bits are brought to 8; transparency is left out.

    Args:
      image: a file's path; an encoded image as bytes, or a file that is open for
        reading; an image of Pillow's; or an array, uint8, (H, W) or (H, W, channels)
        with 1, 2 (gray and alpha), 3 or 4 channels. `~` is a home folder in a string,
        not in a `pathlib.Path`.
      name: name of the image, if it is not given by its path.
      ignore_orientation: keeps the image as it is stored.

    Raises:
      UserError: if it is no image, a damaged one, or too large; names it.
    """
    file = None
    if isinstance(image, (str, os.PathLike)):
        file = typed_path(image) if isinstance(image, str) else pathlib.Path(image)
        # A file name may not be valid text.
        name = os.fsencode(file).decode("utf-8", "backslashreplace")
    with _one_line_errors(name), contextlib.ExitStack() as stack:
        if file:
            # Not opened by its name: Pillow would map some TIFFs into memory, and
            # misread those that are turned by a quarter.
            image = stack.enter_context(file.open("rb"))
        elif isinstance(image, (bytes, bytearray, memoryview)):
            image = io.BytesIO(image)
        if hasattr(image, "read"):
            image = Image.open(image)
        if isinstance(image, Image.Image):
            return _decode(name, image, ignore_orientation)
        if hasattr(image, "shape"):
            return Picture(name, _from_array(name, np.asarray(image)))
    raise UserError(
        f"{name} is of type {type(image).__name__}: pass a path, bytes, an open file, "
        "a PIL image, or a uint8 array (H, W, channels); or one flat list of these"
    )


@contextlib.contextmanager
def _one_line_errors(name: str) -> Iterator[None]:
    """Turns whatever Pillow raises about a file into a `UserError`."""
    try:
        with warnings.catch_warnings():
            # Of large images, odd palettes and broken metadata.
            warnings.simplefilter("ignore")
            yield
    except UserError:
        raise
    except Image.UnidentifiedImageError as error:
        raise UserError(f"{name}: not an image in a format that is known") from error
    except Exception as error:
        # Pillow's plugins raise OSError, ValueError, SyntaxError, struct.error, more.
        if isinstance(error, OSError) and error.strerror:
            raise UserError(f"{name}: {error.strerror}") from error
        reason = first_line(error)[:200] or type(error).__name__
        raise UserError(f"{name}: not a readable image ({reason})") from error


def _decode(name: str, image: Image.Image, ignore_orientation: bool) -> Picture:
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
    transparent = "transparency" in image.info
    if image.mode in ("RGBA", "LA", "PA"):
        transparent = image.getchannel("A").getextrema()[0] < 255
    if transparent:
        notes.append("transparent pixels in the colors that are stored for them")
    pixels = np.asarray(decoded.image)
    if not ignore_orientation:
        pixels = upright(pixels, decoded.orientation)
    return Picture(name, pixels, tuple(notes))


def _from_array(name: str, array: np.ndarray) -> np.ndarray:
    """Returns an array of an image as (H, W, 3)."""
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
