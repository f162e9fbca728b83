"""Predict classes or segmentation masks of images with a trained network.

vt_flax predict --workdir runs/quickstart digit.png
vt_flax predict --workdir runs/quickstart --out pictures --tokens FOLDER
vt_flax predict --workdir runs/shapes --out pictures "shots/**/*.jpg"

IMAGE is a file, a folder (searched recursively) or a pattern in quotes. A classifier
prints the most likely classes; a segmentation network prints the largest classes. With
--out, OUT/index.html shows all images and classes, and OUT/NAME.png the mask over the
image. --tokens also draws the attention maps of each token, OUT/NAME_tokens.png. OUT is
a new folder or that of an earlier predict; --overwrite allows others.

Images are turned upright by their EXIF orientation. A network that was trained on a
TFDS dataset has seen images as they are stored: --ignore_orientation uses them so.

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
    if args.tokens and not args.out:
        raise UserError("--tokens needs --out, a folder for the pictures")
    workdir = local_folder("--workdir", args.workdir)
    out = local_folder("--out", args.out) if args.out else None
    from vt_flax.inference.reading import find_images

    files = find_images(args.images, leave_out=out)
    if out is not None:
        _check_out(out, files, args.overwrite)
    # Imported late: JAX takes seconds, which bad arguments need not wait for.
    from vt_flax.inference.predictor import load
    from vt_flax.parallel.devices import keep_programs, start_devices

    start_devices()
    batch = min(args.batch, len(files))
    network = load(workdir, overrides, step=args.step, best=args.best, batch=batch)
    keep_programs(network.task.config.compilation_cache)
    if args.tokens and {*network.tokenizers.values()} <= {"pooling"}:
        raise UserError("--tokens: this network has no token coefficients")
    top = min(args.top, len(network.class_names))
    with contextlib.ExitStack() as stack:
        gallery = None
        if out is not None:
            from vt_flax.viz.gallery import Gallery

            stack.enter_context(writing(f"--out {out}"))
            gallery = Gallery(
                out, network, tokens=args.tokens, heads=args.heads, top=top
            )
            stack.enter_context(gallery.page)
        rows = _predict(files, network, gallery, top, args.ignore_orientation)
    tables.print_rows(rows, args.format, network.title)
    if gallery:
        print(f"wrote {out}/index.html", file=sys.stderr)
    if len(rows) < len(files):
        unreadable = len(files) - len(rows)
        raise UserError(f"{unreadable} of {len(files)} files are no readable images")


def _predict(
    files: Sequence[pathlib.Path],
    network: "Predictor",
    gallery: "Gallery | None",
    top: int,
    ignore_orientation: bool,
) -> list[dict[str, Any]]:
    """Returns a row for each readable image; draws it if there is a gallery."""
    from vt_flax.inference.reading import read_picture
    from vt_flax.inference.views import view_of

    if gallery:
        from vt_flax.viz.gallery import Shown

    rows = []
    names = _picture_names(files)
    starts = range(0, len(files), network.batch)
    for start in tqdm(starts, unit=" batches", disable=None, leave=False):
        views, shown = [], []
        for i in range(start, min(start + network.batch, len(files))):
            try:
                picture = read_picture(files[i], ignore_orientation=ignore_orientation)
            except UserError as error:
                _print(f"error: {error}")
                if gallery:
                    gallery.page.leave_out(str(error))
                continue
            for note in picture.notes:
                _print(f"note: {picture.name}: {note}")
            views.append(view_of(picture, network.task))
            if gallery:
                shown.append(Shown.of(names[i], picture))
        predictions = network.predict(views)
        rows += [_row(found, top, network.segments) for found in predictions]
        if gallery:
            gallery.add(shown, views, predictions)
    return rows


def _row(prediction: "Prediction", top: int, segments: bool) -> dict[str, Any]:
    """Returns a row of the table: the image, and its `top` classes with scores."""
    row: dict[str, Any] = {"image": prediction.name}
    kind = "area" if segments else "probability"
    scores = [(name, round(score, 4)) for name, score in prediction.scores[:top]]
    scores += [(None, None)] * (top - len(scores))
    for i, (name, score) in enumerate(scores, 1):
        row |= {f"class {i}": name, f"{kind} {i}": score}
    if segments:
        row["confidence"] = round(prediction.confidence, 4)
    return row


def _print(line: str) -> None:
    """Prints a line on stderr, above a progress line."""
    tqdm.write(printable(" ".join(line.split())), file=sys.stderr)


def _picture_names(files: Sequence[pathlib.Path]) -> list[str]:
    """Returns a distinct name for the pictures of each file: that of the file."""
    names: dict[str, None] = {}
    for i, file in enumerate(files):
        name = file.stem[:80]  # file systems take 255 bytes
        # The pictures of an image's tokens have these suffixes.
        while name in names or name.endswith(("_tokens", "_heads")):
            name += f"_{i}"
        names[name] = None
    return list(names)


def _check_out(
    out: pathlib.Path, files: Sequence[pathlib.Path], overwrite: bool
) -> None:
    """Checks that no image, and no file of others, would be replaced."""
    from vt_flax.viz.page import is_prediction_page

    for file in files:
        # pathlib's resolve raises an error for a link to itself.
        if os.path.dirname(os.path.realpath(file)) == os.path.realpath(out):
            raise UserError(f"--out {out}: is the folder of {file}: choose another")
    with writing(f"--out {out}"):
        is_new = not os.path.lexists(out) or not any(out.iterdir())
    # The page identifies the folder; pictures have no mark.
    if not (is_new or overwrite or is_prediction_page(out / "index.html")):
        raise UserError(
            f"--out {out}: holds files that predict has not made: choose another "
            "--out, or give --overwrite"
        )
