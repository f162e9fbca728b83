"""Checks the archives of ILSVRC 2012 before hours are spent on them."""

import hashlib

from etils import epath

from vt_flax.data.prepare.workspace import say
from vt_flax.errors import UserError

# Size in bytes, as TFDS records it, and MD5, as image-net.org prints it.
ARCHIVES = {
    "ILSVRC2012_img_train.tar": (147_897_477_120, "1d675b47d978889d74fa0da5fadfb00e"),
    "ILSVRC2012_img_val.tar": (6_744_924_160, "29b22e2961454d5413ddabcf34fc5622"),
}


def check_archives(folder: epath.Path, checksums: bool) -> None:
    """Checks that the archives are there and, with `checksums`, the published ones.

    Raises:
      UserError: for the first that is missing or damaged.
    """
    for name in ARCHIVES:
        if not (folder / name).exists():
            raise UserError(
                f"{folder / name} is not there: get {' and '.join(ARCHIVES)} from "
                "https://image-net.org/download-images and name their folder by "
                "--manual_dir"
            )
    if not checksums:
        return
    for name, (size, _) in ARCHIVES.items():
        found = (folder / name).stat().length
        if found != size:
            raise UserError(
                f"{folder / name} has {found:,} bytes instead of {size:,}: download it "
                "again (an archive of your own making needs --no_checksums)"
            )
    for name, (_, md5) in ARCHIVES.items():
        say(f"{folder / name}: checking its MD5 (--no_checksums skips this)")
        with (folder / name).open("rb") as file:
            found = hashlib.file_digest(file, "md5").hexdigest()
        if found != md5:
            raise UserError(
                f"{folder / name} is damaged: its MD5 is {found} instead of {md5}; "
                "download it again"
            )
