"""What a trained network says of images: their classes, or a mask for each.

python -m vt_flax.predict --workdir runs/quickstart digit.png
python -m vt_flax.predict --workdir runs/shapes --out pictures photo.jpg more/*.png
python -m vt_flax.predict --workdir runs/shapes --out pictures --tokens FOLDER

IMAGE is a file, or a folder whose images are taken. Of a network that classifies, the
likeliest classes are printed; of one that segments, the shares of the largest classes,
and the mask is drawn over the image as OUT/NAME.png, with a legend. --tokens draws each
token's coefficients too, OUT/NAME_tokens.png. Averaged weights are taken where there
are any. The configuration is the workdir's; --config.k=v changes it.

A file that is no image is named, the others are done; the exit status is then 2.
"""

import pathlib
import sys
from collections.abc import Iterator, Sequence

from vt_flax import cli
from vt_flax.errors import UserError

# Classes that are told of an image.
TOLD = 3


def main(argv: Sequence[str]) -> None:
    """The command."""
    parser = cli.make_parser("predict", __doc__)
    parser.add_argument("--workdir", required=True, metavar="FOLDER")
    parser.add_argument("--step", type=int, help="default: the newest checkpoint")
    parser.add_argument(
        "--best", action="store_true", help="the best checkpoint instead"
    )
    parser.add_argument("--out", default="", metavar="FOLDER", help="for pictures")
    parser.add_argument(
        "--tokens", action="store_true", help="draw each token's coefficients"
    )
    parser.add_argument("--format", choices=("table", "json"), default="table")
    parser.add_argument("images", nargs="+", metavar="IMAGE")
    args, overrides = parser.parse_known_args(argv)
    files = list(_files(args.images))
    workdir = cli.local_folder("--workdir", args.workdir)
    # Late, because JAX takes seconds to come: bad arguments need not wait.
    from vt_flax.inference.predictor import load

    predictor = load(workdir, overrides, step=args.step, best=args.best)
    out = cli.local_folder("--out", args.out) if args.out else None
    if out is None and (args.tokens or predictor.segments):
        raise UserError("--out FOLDER is missing: where the pictures go")
    if args.tokens and not predictor.has_tokens:
        raise UserError("--tokens: this network has no token coefficients")
    names = _names(files)
    if out is not None:
        _check_out(out, files, names)
    rows, bad = [], 0
    for file, name in zip(files, names, strict=True):
        try:
            image = predictor.read(file)
        except UserError as error:
            print(f"error: {error}", file=sys.stderr)
            bad += 1
            continue
        found = predictor.predict(image)
        row = {"image": str(file)}
        for i, (of, share) in enumerate(found.shares[:TOLD], 1):
            row |= {f"class {i}": of, f"share {i}": round(share, 4)}
        for i in range(len(found.shares) + 1, TOLD + 1):
            row |= {f"class {i}": None, f"share {i}": None}
        rows.append(row)
        if out is not None:
            try:
                out.mkdir(parents=True, exist_ok=True)
                predictor.draw(out, name, image, found, tokens=args.tokens)
            except OSError as error:
                raise UserError(f"--out {out}: {error.strerror or error}") from error
    cli.print_rows(rows, args.format, predictor.title)
    if bad:
        raise UserError(f"{bad} of {len(files)} files are no readable images")


def _names(files: Sequence[pathlib.Path]) -> list[str]:
    """Returns a name for each file's pictures; files may share theirs."""
    names: list[str] = []
    taken: set[str] = set()
    for file in files:
        name = file.stem
        while taken & {*_pictures(name)}:
            name += "_"
        taken |= {*_pictures(name)}
        names.append(name)
    return names


def _pictures(name: str) -> tuple[str, str]:
    return f"{name}.png", f"{name}_tokens.png"


def _check_out(
    out: pathlib.Path, files: Sequence[pathlib.Path], names: Sequence[str]
) -> None:
    """Checks that no picture would be written over an image."""
    images = {file.resolve() for file in files}
    for name in names:
        for picture in _pictures(name):
            if (out / picture).resolve() in images:
                raise UserError(
                    f"--out {out}: {picture} would be written over an image of that "
                    "name: choose another folder"
                )


def _files(names: Sequence[str]) -> Iterator[pathlib.Path]:
    from vt_flax.data.folders import IMAGE_SUFFIXES

    for name in names:
        path = pathlib.Path(name).expanduser()
        if not path.is_dir():
            yield path
            continue
        inside = [
            p for p in sorted(path.iterdir()) if p.suffix.lower() in IMAGE_SUFFIXES
        ]
        if not inside:
            raise UserError(f"{path}: no images in this folder")
        yield from inside


if __name__ == "__main__":
    cli.run(main)
