"""Finds the images and masks of folders and pairs them by name."""

import os
from typing import Any, NamedTuple

from etils import epath

from vt_flax.data.image_files import IMAGE_SUFFIXES, files_below, is_image
from vt_flax.errors import UserError, first_names


class Pair(NamedTuple):
    """An image and its mask."""

    name: str  # of the example, unique in its split
    image: epath.Path
    mask: epath.Path
    extra: Any = None  # needed to decode the mask


def images_in(folder: epath.Path) -> dict[str, epath.Path]:
    """Returns all image files below a folder by their path in it, without suffix.

    Raises:
      UserError: if two files have the same name but for their suffixes.
    """
    found: dict[str, epath.Path] = {}
    for file in files_below(folder):
        if not is_image(file.name):
            continue
        name = os.fspath((file.parent / file.stem).relative_to(folder))
        if name in found:
            raise UserError(
                f"{file} and {found[name].name} have one name: a mask could be "
                "either's; rename or remove one"
            )
        found[name] = file
    return found


def pair_up(image_folder: epath.Path, mask_folder: epath.Path) -> list[Pair]:
    """Pairs all images below a folder with the masks below another by their names.

    Raises:
      UserError: if there are none, or a file has no other half.
    """
    images, masks = images_in(image_folder), images_in(mask_folder)
    if not images and not masks:
        raise UserError(
            f"no images in {image_folder}: expected files {', '.join(IMAGE_SUFFIXES)}"
        )
    without_mask = sorted(images.keys() - masks.keys())
    without_image = sorted(masks.keys() - images.keys())
    if without_mask or without_image:
        alone = first_names(name + images[name].suffix for name in without_mask)
        others = first_names(name + masks[name].suffix for name in without_image)
        raise UserError(
            f"images of {image_folder} and masks of {mask_folder} need the same names: "
            f"without a mask: {alone or 'none'}; without an image: {others or 'none'}"
        )
    return [Pair(name, images[name], masks[name]) for name in sorted(images)]


def read_lines(path: epath.Path) -> list[str]:
    """Returns the stripped lines of a text file, without empty ones at the end.

    Raises:
      UserError: if it is not UTF-8.
    """
    try:
        # epath's read_text takes no notice of the encoding.
        text = path.read_bytes().decode("utf-8-sig")
    except ValueError as error:
        raise UserError(f"{path}: cannot be read as text ({error})") from error
    return [line.strip() for line in text.rstrip().split("\n")]
