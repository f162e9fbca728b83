"""What a trained network says of images: their classes, or a mask for each.

python -m vt_flax.predict --workdir runs/quickstart digit.png
python -m vt_flax.predict --workdir runs/quickstart --out pictures --tokens FOLDER
python -m vt_flax.predict --workdir runs/shapes --out pictures "shots/**/*.jpg"

IMAGE is a file; a folder, whose images are taken, and those of the folders in it; or a
pattern in quotes. Of a network that classifies, the likeliest classes are printed; of
one that segments, the shares of the largest classes, and the mask is drawn over the
image as OUT/NAME.png, with a legend. --tokens also draws where each token looks,
OUT/NAME_tokens.png: the coefficients of every tokenizer over the image, and for
segmentation those of the projectors. OUT/index.html has all images in one page that
needs nothing else: their classes, masks and tokens, to be sorted in the browser. What
an earlier predict has left in OUT is replaced; of other files, only with --overwrite.

Images are turned upright by their EXIF orientation, as training and evaluation turn
those of class folders. A network that was trained on a TFDS dataset has seen images as
they are stored; --ignore_orientation uses them like that.

Averaged weights are taken where there are any. The configuration is the workdir's;
--config.k=v changes it. A file that is no image is named, the others are done; the exit
status is then 2.
"""

import contextlib
import os
import pathlib
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from tqdm import tqdm

from vt_flax import cli
from vt_flax.errors import UserError
from vt_flax.paths import local_folder, writing
from vt_flax.texts import printable

if TYPE_CHECKING:
    from vt_flax.inference.predictions import Prediction
    from vt_flax.inference.predictor import Predictor
    from vt_flax.viz.gallery import Gallery


def main(argv: Sequence[str]) -> None:
    """The command."""
    parser = cli.make_parser("predict", __doc__)
    cli.add_checkpoint_arguments(parser)
    parser.add_argument("--out", default="", metavar="FOLDER", help="for pictures")
    parser.add_argument(
        "--overwrite",
        action="store_true",
        help="replace files in --out that predict has not made",
    )
    parser.add_argument(
        "--top", type=int, default=3, metavar="K", help="classes to tell (%(default)s)"
    )
    parser.add_argument(
        "--batch", type=int, default=16, metavar="N", help="at a time (%(default)s)"
    )
    parser.add_argument(
        "--tokens", action="store_true", help="draw where each token looks"
    )
    parser.add_argument(
        "--heads", action="store_true", help="with --tokens: also head by head"
    )
    parser.add_argument(
        "--ignore_orientation",
        action="store_true",
        help="use images as they are stored, not turned by their EXIF orientation",
    )
    cli.add_format_argument(parser)
    parser.add_argument(
        "images", nargs="+", metavar="IMAGE", help="files, folders or patterns"
    )
    args, overrides = parser.parse_known_args(argv)
    for name in ("top", "batch"):
        if getattr(args, name) < 1:
            raise UserError(f"--{name} {getattr(args, name)}: must be at least 1")
    if args.heads and not args.tokens:
        raise UserError("--heads needs --tokens")
    workdir = local_folder("--workdir", args.workdir)
    out = local_folder("--out", args.out) if args.out else None
    from vt_flax.inference.files import find_images

    refused: list[str] = []
    files = find_images(
        args.images, out, lambda e: _refuse(f"{e.filename}: {e.strerror}", refused)
    )
    count = len(files) + len(refused)
    # Late, because JAX takes seconds to come: bad arguments need not wait.
    from vt_flax.inference.predictor import load
    from vt_flax.viz.gallery import PAGE, Gallery, picture_names

    cli.start_devices()
    batch = min(args.batch, len(files))
    network = load(workdir, overrides, step=args.step, best=args.best, batch=batch)
    if out is None and (args.tokens or network.segments):
        raise UserError("--out FOLDER is missing: where the pictures go")
    if args.tokens and not network.has_tokens:
        raise UserError("--tokens: this network has no token coefficients")
    top = min(args.top, len(network.class_names))
    names: list[str] = []
    if out is not None:
        patterns = picture_names(network, tokens=args.tokens, heads=args.heads)
        names = _names(files, patterns)
        _check_out(out, files, names, patterns)
        if not args.overwrite:
            _check_others(out, names, patterns)
    with contextlib.ExitStack() as stack:
        gallery = None
        if out is not None:
            stack.enter_context(writing(f"--out {out}"))
            gallery = Gallery(
                out, network, tokens=args.tokens, heads=args.heads, top=top
            )
            stack.enter_context(gallery.page)
        rows = _predict(
            files, names, network, gallery, top, refused, args.ignore_orientation
        )
    cli.print_rows(rows, args.format, network.title)
    if out is not None:
        print(f"wrote {out / PAGE}", file=sys.stderr)
    if refused:
        raise UserError(f"{len(refused)} of {count} files are no readable images")


def _predict(
    files: Sequence[pathlib.Path],
    names: Sequence[str],
    network: "Predictor",
    gallery: "Gallery | None",
    top: int,
    refused: list[str],
    ignore_orientation: bool,
) -> list[dict[str, Any]]:
    """Goes through the files a batch at a time, and returns a row for each image.

    Args:
      files: images.
      names: of their pictures; none without a gallery.
      network: what speaks of them.
      gallery: where pictures are drawn, if they are.
      top: classes of a row.
      refused: what is wrong with a file is added to it.
      ignore_orientation: keeps images as they are stored.
    """
    from vt_flax.inference.reading import read_picture
    from vt_flax.viz.gallery import Shown

    rows: list[dict[str, Any]] = []
    some: list[Shown] = []
    own: list[str] = []

    def finish() -> None:
        found = network.predict([shown.view for shown in some])
        for shown, prediction in zip(some, found, strict=True):
            for note in shown.picture.notes:
                _say(f"note: {shown.picture.name}: {note}")
            rows.append(_row(prediction, top, segments=network.segments))
        if gallery:
            gallery.add(own, some, found)
        some.clear()
        own.clear()

    for i, file in enumerate(
        tqdm(files, unit=" images", disable=None, leave=False, file=sys.stderr)
    ):
        try:
            picture = read_picture(file, ignore_orientation=ignore_orientation)
            some.append(Shown.of(picture, network))
            own.append(names[i] if gallery else "")
        except UserError as error:
            _refuse(str(error), refused)
            if gallery:
                gallery.page.leave_out(str(error))
        if len(some) == network.batch:
            finish()
    if some:
        finish()
    return rows


def _row(prediction: "Prediction", top: int, *, segments: bool) -> dict[str, Any]:
    row: dict[str, Any] = {"image": prediction.name}
    for i in range(top):
        told = i < len(prediction.shares)
        of, share = prediction.shares[i] if told else (None, None)
        row[f"class {i + 1}"] = of
        row[f"share {i + 1}"] = round(share, 4) if told else None
    if segments:
        row["confidence"] = round(prediction.confidence, 4)
    return row


def _refuse(line: str, refused: list[str]) -> None:
    refused.append(line)
    _say(f"error: {line}")


def _say(line: str) -> None:
    """Prints a line on stderr, above a progress line that may be there."""
    tqdm.write(printable(" ".join(line.split())), file=sys.stderr)


def _names(files: Sequence[pathlib.Path], patterns: Sequence[str]) -> list[str]:
    """Returns a name for each file's pictures; files may share theirs."""
    names: list[str] = []
    taken: set[str] = set()
    counts: dict[str, int] = {}
    for file in files:
        # Names of files have 255 bytes at most, and something is put behind this one.
        name = stem = os.fsdecode(os.fsencode(file.stem)[:200])
        while taken & (pictures := {pattern.format(name) for pattern in patterns}):
            counts[stem] = counts.get(stem, 1) + 1
            name = f"{stem}_{counts[stem]}"
        taken |= pictures
        names.append(name)
    return names


def _check_out(
    out: pathlib.Path,
    files: Sequence[pathlib.Path],
    names: Sequence[str],
    patterns: Sequence[str],
) -> None:
    """Checks that no picture would be written over an image."""
    # pathlib's own resolving raises an error for a link to itself.
    images = {os.path.realpath(file) for file in files}
    for name in names:
        for pattern in patterns:
            picture = pattern.format(name)
            if os.path.realpath(out / picture) in images:
                raise UserError(
                    f"--out {out}: {picture} would be written over an image of that "
                    "name: choose another folder"
                )


def _check_others(
    out: pathlib.Path, names: Sequence[str], patterns: Sequence[str]
) -> None:
    """Checks that no file would be replaced that predict has not made."""
    from vt_flax.viz.gallery import PAGE
    from vt_flax.viz.page import is_page

    # The page tells whose folder it is; pictures have no mark of their own.
    if is_page(out / PAGE):
        return
    pictures = (pattern.format(name) for name in names for pattern in patterns)
    for file in (PAGE, *pictures):
        # A link to nowhere too is somebody's.
        if os.path.lexists(out / file):
            raise UserError(
                f"--out {out}: {file} is there and not made by predict: choose another "
                "--out, or give --overwrite"
            )


if __name__ == "__main__":
    cli.run(main)
