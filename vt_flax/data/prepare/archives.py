"""The archives of ILSVRC 2012, checked before hours are spent on them."""

import hashlib

from etils import epath
from rich.filesize import decimal
from tqdm import tqdm

from vt_flax.data.prepare.workspace import say
from vt_flax.errors import UserError

BLOCK = 1 << 22
# Upper bound of the dataset's size relative to its archives. These round each image up
# to 512 bytes; array_record adds about 100 bytes to each, and up to 192 kB to a file.
IMAGENET_SHARE = 1.02
# Size in bytes, as TFDS records it, and MD5, as image-net.org prints it.
ARCHIVES = {
    "ILSVRC2012_img_train.tar": (147_897_477_120, "1d675b47d978889d74fa0da5fadfb00e"),
    "ILSVRC2012_img_val.tar": (6_744_924_160, "29b22e2961454d5413ddabcf34fc5622"),
}
# TFDS stores it, too, if it is there, as a split without labels.
TEST_ARCHIVE = "ILSVRC2012_img_test.tar"


def expected_bytes(folder: epath.Path, check_sizes: bool = True) -> int:
    """Returns an upper bound of the dataset's size, from the archives in a folder.

    Raises:
      UserError: if one is missing or, with `check_sizes`, is not of the published size.
    """
    for name, (expected, _) in ARCHIVES.items():
        path = folder / name
        if not path.exists():
            raise UserError(
                f"{path} is not there: get {' and '.join(ARCHIVES)} from "
                "https://image-net.org/download-images and name their folder by "
                "--manual_dir"
            )
        size = path.stat().length
        if check_sizes and size != expected:
            raise UserError(
                f"{path} has {size:,} bytes instead of {expected:,}: download it "
                "again or go on with the download (an archive of your own making "
                "needs --no_checksums)"
            )
    read = [p for p in folder.iterdir() if p.name in (*ARCHIVES, TEST_ARCHIVE)]
    return round(IMAGENET_SHARE * sum(path.stat().length for path in read))


def verify(folder: epath.Path) -> None:
    """Checks the archives' checksums.

    Raises:
      UserError: for the first archive that is damaged.
    """
    for name, (size, md5) in ARCHIVES.items():
        path = folder / name
        say(f"{path}: checking {decimal(size)} (--no_checksums skips this)")
        digest = hashlib.md5(usedforsecurity=False)
        with (
            path.open("rb") as file,
            tqdm.wrapattr(file, "read", size, leave=False) as stream,
        ):
            while block := stream.read(BLOCK):
                digest.update(block)
        if digest.hexdigest() != md5:
            raise UserError(
                f"{path} is damaged: its MD5 is {digest.hexdigest()} instead of {md5}; "
                "download it again"
            )
