"""Small archives in the layout of ILSVRC 2012, made of real photographs."""

import dataclasses
import io
import pathlib
import tarfile
from collections.abc import Mapping, Sequence

from PIL import Image

TRAIN = "ILSVRC2012_img_train.tar"
VALIDATION = "ILSVRC2012_img_val.tar"

# Names by which TFDS knows the training images that are no RGB JPEGs.
CMYK = "n01739381_1309.JPEG"
PNG = "n02105855_2933.JPEG"


@dataclasses.dataclass(frozen=True)
class SmallImageNet:
    """Archives of a few photographs and what was put into them.

    Attributes:
      archives: folder of the archives.
      train: files by name, without the two that follow.
      odd: a CMYK JPEG and a PNG under the names that such images have, decoded.
      validation: files in the order of their numbers.
    """

    archives: pathlib.Path
    train: dict[str, bytes]
    odd: dict[str, Image.Image]
    validation: list[bytes]


def make_small_imagenet(folder: pathlib.Path, samples: pathlib.Path) -> SmallImageNet:
    """Writes archives of 30 training and 16 validation photographs."""
    files = photographs(samples, 44)
    names = list(files)
    odd = {
        name: Image.open(io.BytesIO(files[other])).convert("RGB")
        for name, other in zip((CMYK, PNG), names[-2:], strict=True)
    }
    train = {name: files[name] for name in names[:28]}
    validation = [files[name] for name in names[26:42]]
    make_archives(
        folder,
        train
        | {
            CMYK: _encode(odd[CMYK].convert("CMYK"), "JPEG", quality=95),
            PNG: _encode(odd[PNG], "PNG"),
        },
        validation,
    )
    return SmallImageNet(folder, train, odd, validation)


def _encode(image: Image.Image, form: str, **options) -> bytes:
    output = io.BytesIO()
    image.save(output, form, **options)
    return output.getvalue()


def photographs(samples: pathlib.Path, count: int) -> dict[str, bytes]:
    """Returns the bytes of the first photographs, one of each class, by file name.

    Args:
      samples: folder of class folders, `<wnid>/<wnid>_<number>.JPEG`.
      count: how many.

    Returns:
      Bytes by names as in the training archives, `n01440764_123.JPEG`.
    """
    result = {}
    for number, folder in enumerate(sorted(samples.iterdir())[:count]):
        file = sorted(folder.glob("*.JPEG"))[0]
        result[f"{folder.name}_{number + 1}.JPEG"] = file.read_bytes()
    return result


def make_archives(
    folder: pathlib.Path, train: Mapping[str, bytes], validation: Sequence[bytes]
) -> None:
    """Writes both archives.

    Args:
      folder: where to.
      train: files by names that begin with a class, as `n01440764_123.JPEG`.
      validation: files, in the order of their numbers.
    """
    folder.mkdir(parents=True, exist_ok=True)
    classes: dict[str, dict[str, bytes]] = {}
    for name, content in train.items():
        classes.setdefault(f"{name.partition('_')[0]}.tar", {})[name] = content
    _write(folder / TRAIN, {name: _tar(files) for name, files in classes.items()})
    _write(
        folder / VALIDATION,
        {
            f"ILSVRC2012_val_{number:08}.JPEG": content
            for number, content in enumerate(validation, 1)
        },
    )


def _write(path: pathlib.Path, files: Mapping[str, bytes]) -> None:
    path.write_bytes(_tar(files))


def _tar(files: Mapping[str, bytes]) -> bytes:
    output = io.BytesIO()
    with tarfile.open(fileobj=output, mode="w") as archive:
        for name, content in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    return output.getvalue()
