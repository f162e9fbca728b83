"""Predict classes or segmentation masks of images with a trained network.

vt_flax predict --workdir runs/quickstart digit.png
vt_flax predict --workdir runs/quickstart --out pictures --tokens FOLDER
vt_flax predict --workdir runs/shapes --out pictures "shots/**/*.jpg"

IMAGE is a file, a folder (searched recursively) or a pattern in quotes. A classifier
prints the most likely classes; a segmentation network prints the largest classes, and
draws the mask over the image with a legend, OUT/NAME.png. --tokens also draws the
attention maps of each token over the image, OUT/NAME_tokens.png: those of every
tokenizer, and for segmentation those of the projectors. OUT/index.html shows all images
with classes, masks and tokens on one self-contained page that can be sorted. What an
earlier predict has left in OUT is replaced; other files only with --overwrite.

Images are turned upright by their EXIF orientation, as training and evaluation turn
those of class folders. A network that was trained on a TFDS dataset has seen images as
they are stored; --ignore_orientation uses them like that.

EMA weights are used if there are any. The configuration is the workdir's;
--config.k=v changes it. An unreadable file prints an error line and does not stop the
others; the exit status is then 2.
"""

import contextlib
import os
import pathlib
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from tqdm import tqdm

from vt_flax.cli import parsing, tables
from vt_flax.errors import UserError
from vt_flax.paths import local_folder, writing
from vt_flax.texts import printable

if TYPE_CHECKING:
    from vt_flax.inference.predictions import Prediction
    from vt_flax.inference.predictor import Predictor
    from vt_flax.inference.views import View
    from vt_flax.viz.gallery import Gallery


def main(argv: Sequence[str]) -> None:
    """The command."""
    parser = parsing.make_parser("predict", __doc__)
    parsing.add_checkpoint_arguments(parser)
    parser.add_argument(
        "--out", default="", metavar="FOLDER", help="folder for pictures"
    )
    parser.add_argument(
        "--overwrite",
        action="store_true",
        help="replace files in --out that predict has not made",
    )
    parser.add_argument(
        "--top",
        type=int,
        default=3,
        metavar="K",
        help="number of classes per image (%(default)s)",
    )
    parser.add_argument(
        "--batch",
        type=int,
        default=16,
        metavar="N",
        help="number of images per batch (%(default)s)",
    )
    parser.add_argument(
        "--tokens", action="store_true", help="draw the attention maps of tokens"
    )
    parser.add_argument(
        "--heads", action="store_true", help="with --tokens: also head by head"
    )
    parser.add_argument(
        "--ignore_orientation",
        action="store_true",
        help="ignore EXIF orientation",
    )
    parsing.add_format_argument(parser)
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
    # Late, because JAX takes seconds to import: bad arguments need not wait.
    from vt_flax.inference.predictor import load
    from vt_flax.parallel.devices import keep_programs, start_devices

    start_devices()
    batch = min(args.batch, len(files))
    network = load(workdir, overrides, step=args.step, best=args.best, batch=batch)
    keep_programs(network.task.config.compilation_cache)
    if out is None and (args.tokens or network.segments):
        raise UserError("--out FOLDER is missing: where the pictures go")
    if args.tokens and not network.has_tokens:
        raise UserError("--tokens: this network has no token coefficients")
    top = min(args.top, len(network.class_names))
    names: list[str] = []
    if out is not None:
        # matplotlib takes a while to import too.
        from vt_flax.viz.gallery import PAGE, Gallery, picture_names

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
    tables.print_rows(rows, args.format, network.title)
    if out is not None:
        print(f"wrote {out / PAGE}", file=sys.stderr)
    if refused:
        raise UserError(f"{len(refused)} of {count} files are no readable images")


def _predict(
    files: Sequence[pathlib.Path],
    stems: Sequence[str],
    network: "Predictor",
    gallery: "Gallery | None",
    top: int,
    refused: list[str],
    ignore_orientation: bool,
) -> list[dict[str, Any]]:
    """Predicts the files a batch at a time, and returns a row for each image.

    Args:
      files: images.
      stems: names of their pictures without endings; unused without a gallery.
      network: the network.
      gallery: folder of pictures; None to draw none.
      top: number of classes in a row.
      refused: errors of files are appended to it.
      ignore_orientation: see `read_picture`.
    """
    from vt_flax.inference.reading import read_picture
    from vt_flax.inference.views import view_of

    if gallery:
        from vt_flax.viz.gallery import Shown

    rows: list[dict[str, Any]] = []
    views: list[View] = []
    shown: list[Shown] = []

    def finish() -> None:
        predictions = network.predict(views)
        for view, prediction in zip(views, predictions, strict=True):
            for note in view.notes:
                _print(f"note: {view.name}: {note}")
            rows.append(_row(prediction, top, segments=network.segments))
        if gallery:
            gallery.add(shown, views, predictions)
        views.clear()
        shown.clear()

    for i, file in enumerate(
        tqdm(files, unit=" images", disable=None, leave=False, file=sys.stderr)
    ):
        try:
            picture = read_picture(file, ignore_orientation=ignore_orientation)
            views.append(view_of(picture, network.task))
            if gallery:
                shown.append(Shown.of(stems[i], picture))
        except UserError as error:
            _refuse(str(error), refused)
            if gallery:
                gallery.page.leave_out(str(error))
        if len(views) == network.batch:
            finish()
    if views:
        finish()
    return rows


def _row(prediction: "Prediction", top: int, *, segments: bool) -> dict[str, Any]:
    row: dict[str, Any] = {"image": prediction.name}
    kind = "area" if segments else "probability"
    scores = [(name, round(score, 4)) for name, score in prediction.scores[:top]]
    scores += [(None, None)] * (top - len(scores))
    for i, (name, score) in enumerate(scores, 1):
        row |= {f"class {i}": name, f"{kind} {i}": score}
    if segments:
        row["confidence"] = round(prediction.confidence, 4)
    return row


def _refuse(line: str, refused: list[str]) -> None:
    refused.append(line)
    _print(f"error: {line}")


def _print(line: str) -> None:
    """Prints a line on stderr, above a progress line."""
    tqdm.write(printable(" ".join(line.split())), file=sys.stderr)


def _names(files: Sequence[pathlib.Path], patterns: Sequence[str]) -> list[str]:
    """Returns distinct names for the pictures of files, which may share their own."""
    names: list[str] = []
    taken: set[str] = set()
    counts: dict[str, int] = {}
    for file in files:
        # File names have at most 255 bytes, and a suffix is added to this one.
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
    """Checks that no picture would overwrite an image."""
    # pathlib's resolve raises an error for a link to itself.
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
    """Checks that only files of an earlier predict would be replaced."""
    from vt_flax.viz.gallery import PAGE
    from vt_flax.viz.page import is_prediction_page

    # The page identifies the folder; pictures have no mark.
    if is_prediction_page(out / PAGE):
        return
    pictures = (pattern.format(name) for name in names for pattern in patterns)
    for file in (PAGE, *pictures):
        # Broken links too.
        if os.path.lexists(out / file):
            raise UserError(
                f"--out {out}: {file} is there and not made by predict: choose another "
                "--out, or give --overwrite"
            )
