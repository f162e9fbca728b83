"""The archives of ILSVRC 2012, checked before hours are spent on them."""

import dataclasses
import hashlib
import json
import pathlib
import tarfile

from etils import epath
from rich.filesize import decimal
from tqdm import tqdm

from vt_flax.data.prepare.workspace import say
from vt_flax.errors import UserError

BLOCK = 1 << 22


@dataclasses.dataclass(frozen=True)
class Archive:
    """An archive as image-net.org publishes it.

    Attributes:
      name: of the file.
      size: in bytes.
      md5: checksum, in hexadecimal.
    """

    name: str
    size: int
    md5: str


# Checksums as image-net.org prints them beside the downloads, sizes as TFDS has them.
ARCHIVES = (
    Archive(
        "ILSVRC2012_img_train.tar",
        147_897_477_120,
        "1d675b47d978889d74fa0da5fadfb00e",
    ),
    Archive(
        "ILSVRC2012_img_val.tar", 6_744_924_160, "29b22e2961454d5413ddabcf34fc5622"
    ),
)
# TFDS stores it too if it is there, as a split without labels.
TEST_ARCHIVE = "ILSVRC2012_img_test.tar"


def find(folder: epath.Path, check_sizes: bool = True) -> int:
    """Looks for the archives, in no time: are they there, complete, and archives?

    Args:
      folder: where they should be.
      check_sizes: whether they must be the published ones.

    Returns:
      The size in bytes of all that TFDS will read.

    Raises:
      UserError: for the first that is not.
    """
    total = 0
    for archive in ARCHIVES:
        path = folder / archive.name
        if not path.exists():
            raise UserError(
                f"{path} is not there: get {' and '.join(a.name for a in ARCHIVES)} "
                "from https://image-net.org/download-images and name their folder by "
                "--manual_dir"
            )
        size = path.stat().length
        if check_sizes and size != archive.size:
            raise UserError(
                f"{path} has {size:,} bytes instead of {archive.size:,}: download it "
                "again or go on with the download (an archive of your own making "
                "needs --no_checksums)"
            )
        with path.open("rb") as file:
            if not tarfile.is_tarfile(file):
                raise UserError(f"{path} is not a tar archive: download it again")
        total += size
    test = folder / TEST_ARCHIVE
    return total + (test.stat().length if test.exists() else 0)


def verify(folder: epath.Path, stamp: pathlib.Path) -> None:
    """Checks the archives' checksums, unless an earlier run did.

    Args:
      folder: where they are.
      stamp: file that remembers what was verified, by size and time of change.

    Raises:
      UserError: for the first archive that is damaged.
    """
    verified = _read_stamp(stamp)
    for archive in ARCHIVES:
        path = folder / archive.name
        status = path.stat()
        key = {"size": status.length, "mtime": status.mtime, "md5": archive.md5}
        if verified.get(str(path)) == key:
            say(f"{path}: verified by an earlier run")
            continue
        say(f"{path}: checking {decimal(archive.size)} (--no_checksums skips this)")
        digest = _md5(path, status.length)
        if digest != archive.md5:
            raise UserError(
                f"{path} is damaged: its MD5 is {digest} instead of {archive.md5}; "
                "download it again"
            )
        verified[str(path)] = key
        # After each archive: a stop in the second need not cost the first again.
        fresh = stamp.with_suffix(".new")
        fresh.write_text(json.dumps(verified, indent=2))
        fresh.replace(stamp)


def _read_stamp(stamp: pathlib.Path) -> dict:
    try:
        return dict(json.loads(stamp.read_text()))
    except (OSError, ValueError, TypeError):
        # Absent or damaged: the worst that follows is another check.
        return {}


def _md5(path: epath.Path, size: int) -> str:
    digest = hashlib.md5(usedforsecurity=False)
    with (
        path.open("rb") as file,
        tqdm(
            total=size,
            desc=f"MD5 of {path.name}",
            unit="B",
            unit_scale=True,
            leave=False,
            mininterval=1,
        ) as bar,
    ):
        while block := file.read(BLOCK):
            digest.update(block)
            bar.update(len(block))
    return digest.hexdigest()
