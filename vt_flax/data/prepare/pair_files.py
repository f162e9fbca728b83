"""Finds the images and masks of a folder and pairs them by name."""

import dataclasses
import os
from collections.abc import Mapping
from typing import Any

from etils import epath

from vt_flax.data.image_files import (
    IMAGE_SUFFIXES,
    files_below,
    is_image,
    list_folder,
)
from vt_flax.errors import UserError


@dataclasses.dataclass(frozen=True)
class PairFiles:
    """An image and its mask.

    Attributes:
      name: of the example, unique in its split.
      image: a file of any kind that Pillow knows.
      mask: a PNG file.
      extra: what else it takes to read the mask.
    """

    name: str
    image: epath.Path
    mask: epath.Path
    extra: Any = None


def subfolder(manual: epath.Path, path: str, instructions: str) -> epath.Path:
    """Returns a folder of the manual files.

    Raises:
      UserError: if it is not there; tells what should be.
    """
    folder = manual / path
    if not folder.is_dir():
        raise UserError(
            f"{folder} is not there; wanted is: {' '.join(instructions.split())}"
        )
    return folder


def find_folder(manual: epath.Path, name: str, depth: int = 4) -> epath.Path | None:
    """Finds a folder by its name wherever archives were unpacked, or None.

    Args:
      manual: where to look.
      name: of the folder.
      depth: how far down.
    """
    level = [manual]
    for _ in range(depth):
        folders = [
            parent / name for parent in level for name in list_folder(parent).folders
        ]
        for folder in folders:
            if folder.name == name:
                return folder
        level = folders
    return None


def images_in(folder: epath.Path, deep: bool = False) -> dict[str, epath.Path]:
    """Returns the image files of a folder by their paths in it, without suffixes.

    Args:
      folder: where to look.
      deep: whether in its subfolders, too.

    Raises:
      UserError: if two files have the same name but for their suffixes.
    """
    files = (
        files_below(folder)
        if deep
        else [folder / name for name in list_folder(folder).files]
    )
    found: dict[str, epath.Path] = {}
    for file in files:
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


def pair_up(
    images: Mapping[str, epath.Path],
    masks: Mapping[str, epath.Path],
    image_folder: epath.Path,
    mask_folder: epath.Path,
) -> list[PairFiles]:
    """Pairs images with masks of the same name.

    Args:
      images: files by name.
      masks: files by name.
      image_folder: where an image that is missing should be.
      mask_folder: where a mask that is missing should be.

    Raises:
      UserError: if there are none, or a file has no other half.
    """
    if not images and not masks:
        raise UserError(
            f"no images in {image_folder}: expected files {', '.join(IMAGE_SUFFIXES)}"
        )
    for some, others, folder, what in (
        (images, masks, mask_folder, "mask"),
        (masks, images, image_folder, "image"),
    ):
        alone = sorted(some.keys() - others.keys())
        if alone:
            suffix = ".png" if what == "mask" else ".*"
            more = f" ({len(alone) - 1:,} more have none)" if len(alone) > 1 else ""
            similar = [
                name
                for name in others.keys() - some.keys()
                if name.startswith(alone[0]) or alone[0].startswith(name)
            ]
            if similar:
                other = others[min(similar, key=lambda name: (len(name), name))]
                more += f"; if it is {other.name}, rename it"
            raise UserError(
                f"{some[alone[0]]} has no {what}: {folder / alone[0]}{suffix} is not "
                f"there{more}"
            )
    return [PairFiles(name, images[name], masks[name]) for name in sorted(images)]


def read_lines(path: epath.Path) -> list[str]:
    """Returns the lines of a text file, stripped, without empty ones at the end.

    Raises:
      UserError: if it cannot be read.
    """
    try:
        # epath's read_text takes no notice of the encoding.
        return path.read_bytes().decode("utf-8-sig").rstrip().splitlines()
    except (OSError, ValueError) as error:
        raise UserError(f"{path}: cannot be read as text ({error})") from error
