"""Finds the folders of each split below a dataset's folder."""

import re

from etils import epath

from vt_flax.data.image_files import is_image, list_folder
from vt_flax.data.label_lists import IMAGENET_VALIDATION
from vt_flax.data.splits import ALL, split_parts
from vt_flax.errors import UserError, first_names, nearest

# Names of folders that are splits rather than classes, such as `Train` and `val2017`.
SPLIT_NAME = re.compile(
    r"(train(ing)?|val(id(ation)?)?|dev|test(ing)?|eval(uation)?|holdout)"
    r"([ _-]?(set|split|data|images|imgs))?[ _-]?\d*",
    re.IGNORECASE,
)
# Names of folders beside which there are no classes either.
NO_CLASS_NAME = re.compile(
    r"images?|imgs?|data(set)?|labels?|masks?|annotations?", re.IGNORECASE
)
# What a folder may be; one without images and folders is neither.
SPLIT, CLASS = "split", "class"


def find_roots(
    path: epath.Path, split: str
) -> tuple[list[tuple[list[epath.Path], str]], list[str]]:
    """Finds the folders that a split of the dataset in `path` is read from.

    Returns:
      For each summand of the split, its folders and its slice; the folders hold class
      folders or, with a list of their classes, images; and notes.

    Raises:
      UserError: if there is no such split.
    """
    folders, files = list_folder(path)
    # A folder may have a name that would be parsed, such as `a+b`.
    parts = [(split, "")] if split in folders else split_parts(split)
    roots, notes = {}, []
    for name in dict(parts):
        if name in folders and _kind(path / name, files) == SPLIT:
            roots[name] = [path / name]
            continue
        kinds = {folder: _kind(path / folder, files) for folder in folders}
        splits = [folder for folder in folders if kinds[folder] == SPLIT]
        if name == ALL:
            classes = [folder for folder in folders if kinds[folder] == CLASS]
            roots[ALL], more = _roots_of_all(path, splits, classes)
            notes += more
            continue
        hint = nearest(name, splits)
        if not any(map(SPLIT_NAME.fullmatch, splits)):
            hint += f"; without split folders, write {ALL!r} or 'all[:80%]'"
        raise UserError(
            f"folder:{path} has no split {name!r}: expected {path / name}/CLASS/IMAGE, "
            f"or {path / name}.csv with a line FILE,CLASS for each image{hint}"
        )
    loose = sum(map(is_image, files))
    if loose and [path] not in roots.values():
        notes.append(f"{path}: images left out beside the split folders: {loose:,}")
    return [(roots[name], slice_text) for name, slice_text in parts], notes


def _kind(folder: epath.Path, beside: list[str]) -> str:
    """Returns whether a folder is a split, a class, or neither.

    A split holds class folders, or images whose classes are listed. Images beside its
    class folders do not matter if it is named as a split.
    """
    folders, files = list_folder(folder)
    images = list(filter(is_image, files))
    if images and (
        f"{folder.name}.csv" in beside or IMAGENET_VALIDATION.fullmatch(images[0])
    ):
        return SPLIT
    if folders and (not images or SPLIT_NAME.fullmatch(folder.name)):
        return SPLIT
    return CLASS if images else ""


def _roots_of_all(
    path: epath.Path, splits: list[str], classes: list[str]
) -> tuple[list[epath.Path], list[str]]:
    """Returns the folders from which all splits together are read, and notes."""
    named = [folder for folder in splits if SPLIT_NAME.fullmatch(folder)]
    if named and classes:
        raise UserError(
            f"folder:{path}: folders that look like splits ({first_names(named)}) are "
            f"beside folders of images ({first_names(classes)}): name a split, such as "
            f"{named[0]!r}, or move one kind away"
        )
    if named:
        return [path / folder for folder in splits], []
    if not splits or classes:
        return [path], []
    return [path], [
        f"folder:{path}: {first_names(splits)} are read as classes, with the images of "
        f"the folders in them; if they are splits, name one, such as {splits[0]!r}"
    ]
