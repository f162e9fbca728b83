"""A trained network in one file, as a program that runs without this package.

vt_flax export --workdir runs/quickstart --out digits.zip
vt_flax export --workdir runs/r50 --best --input_size 256x256 --out r50.zip
vt_flax export --workdir runs/r50 --dtype bfloat16 --out r50.zip
vt_flax export --workdir runs/shapes --logits --out shapes.zip
vt_flax export --workdir runs/r50 --kind savedmodel --out serving/r50/1

The program takes decoded images, uint8, as many as there are, and has the weights and
the preprocessing in it. It runs with JAX alone, by the lines that are printed; or with
TensorFlow alone, of --kind savedmodel, for which OUT is a folder. Averaged weights are
taken where there are any. The configuration is the workdir's; --config.k=v changes it.

OUT is written whole or not at all. Where something is already, nothing is written, but
with --overwrite: then a file, or a SavedModel's folder, is replaced. docs/export.md has
what is in OUT, and how long it can be read.
"""

import argparse
import pathlib
import re
from collections.abc import Sequence

from vt_flax.cli import parsing
from vt_flax.errors import UserError
from vt_flax.paths import local_folder, writing

KINDS = ("stablehlo", "savedmodel")
PLATFORMS = ("cpu", "cuda", "rocm", "tpu")
DEFAULT_PLATFORMS = "cpu,cuda,tpu"
SAVED_MODEL = "saved_model.pb"


def main(argv: Sequence[str]) -> None:
    """The command."""
    parser = parsing.make_parser("export", __doc__)
    parsing.add_checkpoint_arguments(parser)
    parser.add_argument(
        "--out",
        required=True,
        metavar="OUT",
        help="the file, or the folder of a SavedModel",
    )
    parser.add_argument(
        "--kind",
        choices=KINDS,
        default=KINDS[0],
        help="a program for JAX, or for TensorFlow (%(default)s)",
    )
    parser.add_argument(
        "--platforms",
        default=DEFAULT_PLATFORMS,
        metavar="P,...",
        help=f"what it is to run on, of {', '.join(PLATFORMS)} (%(default)s)",
    )
    parser.add_argument(
        "--input_size",
        default="",
        metavar="HxW",
        help="of the images that the program takes, or any; it resizes and crops them "
        "then (default: it takes them as the evaluation has them)",
    )
    parser.add_argument(
        "--dtype", default="", help="float32 or bfloat16 (default: the run's)"
    )
    parser.add_argument(
        "--logits",
        action="store_true",
        help="segmentation: beside the classes, large, logarithms of probabilities",
    )
    parser.add_argument(
        "--overwrite", action="store_true", help="replace what is at OUT"
    )
    args, overrides = parser.parse_known_args(argv)
    platforms = _platforms(args.platforms)
    size = _size(args.input_size)
    workdir = local_folder("--workdir", args.workdir)
    out = local_folder("--out", args.out)
    # A name may be longer than the disk takes.
    with writing(f"--out {out}"):
        _check_out(out, args)
    if args.dtype:
        overrides = [*overrides, f"--config.model.dtype={args.dtype}"]
    # Late, because JAX takes seconds to come: bad arguments need not wait.
    from vt_flax.inference.exporting import export_network, loading_lines
    from vt_flax.parallel.devices import start_devices

    start_devices()
    with writing(f"--out {out}"):
        found = export_network(
            workdir,
            out,
            overrides,
            kind=args.kind,
            platforms=platforms,
            step=args.step,
            best=args.best,
            size=size,
            logits=args.logits,
        )
    about = found.metadata
    print(f"{about['checkpoint']}\n")
    for word in ("inputs", "outputs"):
        for array in about[word]:
            shape = ", ".join(map(str, array["shape"]))
            print(
                f"{word[:-1]:<7}{array['name']}: {array['dtype']} ({shape}), "
                f"{array['meaning']}"
            )
    print(
        f"\nWrote {out}, {found.size / 1e6:.1f} MB, for {', '.join(platforms)}", end=""
    )
    if args.kind == KINDS[0]:
        print(f"; this loads it:\n\n{loading_lines().rstrip()}")
    else:
        print("; tf.saved_model.load reads it")


def _platforms(text: str) -> list[str]:
    platforms = [word for word in text.split(",") if word]
    for word in platforms:
        if word not in PLATFORMS:
            raise UserError(
                f"--platforms {text}: {word!r} is not known; choose from "
                f"{', '.join(PLATFORMS)}"
            )
    if not platforms or len({*platforms}) < len(platforms):
        raise UserError(f"--platforms {text!r}: name each once, as in cpu,tpu")
    return platforms


def _size(text: str) -> tuple[int, int] | tuple[str, str] | None:
    if not text:
        return None
    if text == "any":
        return "height", "width"
    found = re.fullmatch(r"(\d+)x(\d+)", text)
    sides = tuple(map(int, found.groups())) if found else (0, 0)
    if min(sides) < 1:
        raise UserError(
            f"--input_size {text}: write HxW, height and width in pixels as in "
            "256x320, or any"
        )
    if max(sides) > parsing.MOST_PIXELS:
        raise UserError(f"--input_size {text}: must be at most {parsing.MOST_PIXELS}")
    return sides


def _check_out(out: pathlib.Path, args: argparse.Namespace) -> None:
    """Checks that OUT can be put where it is to go."""
    if not out.parent.is_dir():
        raise UserError(f"--out {out}: the folder {out.parent} is not there: make it")
    if not (out.exists() or out.is_symlink()):
        return
    if not args.overwrite:
        raise UserError(
            f"--out {out}: something is there: choose another name, or add --overwrite"
        )
    if args.kind == KINDS[0]:
        if not out.is_file():
            raise UserError(f"--out {out}: is not a file, and is left as it is")
    elif not (out / SAVED_MODEL).is_file():
        raise UserError(f"--out {out}: is no SavedModel, and is left as it is")
