"""Recognizes the split folders and class folders of a dataset."""

import re

from etils import epath

from vt_flax.data.image_files import is_image, list_folder, scan_folder
from vt_flax.data.label_lists import IMAGENET_VALIDATION, list_name
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


class FolderLayout:
    """The folders that a split is read from.

    Attributes:
      parts: name and slice of each summand of the split.
      roots: for each of these names, the folders that hold class folders or, if there
        is a list of their classes, images.
      notes: how the folder was read, where that is not certain.

    Raises:
      UserError: if there is no such split.
    """

    def __init__(self, path: epath.Path, split: str):
        self._path = path
        self._folders, self._files = list_folder(path)
        self._contents: dict[str, tuple[bool, str]] = {}
        self.notes: list[str] = []
        # A folder may have a name that would be parsed, such as `a+b`.
        self.parts = [(split, "")] if split in self._folders else split_parts(split)
        names = {name for name, _ in self.parts}
        splits = names if self._is_split(ALL) else names - {ALL}
        for name in sorted(splits):
            if not self._is_split(name):
                raise self._no_split(name)
        self.roots = {name: [path / name] for name in splits}
        if splits != names:
            self.roots[ALL] = self._roots_of_all(bool(splits))
        loose = sum(map(is_image, self._files))
        if loose and [path] not in self.roots.values():
            self.notes.append(
                f"{path}: images left out beside the split folders: {loose:,}"
            )

    def _contains(self, name: str) -> tuple[bool, str]:
        """Returns whether a folder holds folders, and the name of an image in it.

        If it is not named as a split, the first image decides that it is none.
        """
        if name not in self._contents:
            has_folders, image = False, ""
            for entry, is_folder in scan_folder(self._path / name):
                has_folders |= is_folder
                if not is_folder and is_image(entry):
                    image = entry
                if image and (has_folders or not SPLIT_NAME.fullmatch(name)):
                    break
            self._contents[name] = has_folders, image
        return self._contents[name]

    def _is_split(self, name: str) -> bool:
        """Returns whether a folder holds class folders, or images of a list.

        A few images beside the class folders do not matter if it is named as a split.
        """
        if name not in self._folders:
            return False
        has_folders, image = self._contains(name)
        if has_folders and (not image or SPLIT_NAME.fullmatch(name)):
            return True
        listed = list_name(name) in self._files or IMAGENET_VALIDATION.fullmatch(image)
        return bool(image and listed)

    def _splits(self) -> list[str]:
        return [folder for folder in self._folders if self._is_split(folder)]

    def _no_split(self, name: str) -> UserError:
        path, splits = self._path, self._splits()
        named = any(map(SPLIT_NAME.fullmatch, splits))
        choice = nearest(name, splits)
        if not named:
            choice += f"; without split folders, write {ALL!r} or 'all[:80%]'"
        return UserError(
            f"folder:{path} has no split {name!r}: expected {path / name}/CLASS/IMAGE, "
            f"or {path / list_name(name)} with a line FILE,CLASS for each image{choice}"
        )

    def _roots_of_all(self, has_splits: bool) -> list[epath.Path]:
        path, splits = self._path, self._splits()
        named = [folder for folder in splits if SPLIT_NAME.fullmatch(folder)]
        rest = [f for f in self._folders if f not in splits and self._contains(f)[1]]
        if named and rest:
            raise UserError(
                f"folder:{path}: folders that look like splits ({first_names(named)}) "
                f"are beside folders of images ({first_names(rest)}): name a split, "
                f"such as {named[0]!r}, or move one kind away"
            )
        if has_splits or named:
            return [path / folder for folder in splits]
        # Where other folders hold images directly, there is no doubt.
        if splits and not rest:
            self.notes.append(
                f"folder:{path}: {first_names(splits)} are read as classes, with the "
                "images of the folders in them; if they are splits, name one, such as "
                f"{splits[0]!r}"
            )
        return [path]
