"""A trained network in one file, as a program that runs without this package.

vt_flax export --workdir runs/quickstart --out digits.zip
vt_flax export --workdir runs/r50 --best --input_size 256x256 --out r50.zip
vt_flax export --workdir runs/r50 --dtype bfloat16 --out r50.zip
vt_flax export --workdir runs/shapes --logits --out shapes.zip
vt_flax export --workdir runs/r50 --kind savedmodel --out serving/r50/1

The program takes batches of decoded images, uint8; preprocessing and weights are in it.
It runs with JAX alone, loaded by load.py in OUT; or, with --kind savedmodel, with
TensorFlow alone, and OUT is a folder. EMA weights are used if there are any. The
configuration is the workdir's; --config.k=v changes it.

OUT is written completely or not at all. An existing file, or the folder of a
SavedModel, is replaced only with --overwrite. docs/export.md describes what is in OUT,
and how long it can be read.
"""

import os
from collections.abc import Sequence

from vt_flax.cli import parsing
from vt_flax.errors import UserError
from vt_flax.paths import local_folder, writing

PLATFORMS = ("cpu", "cuda", "rocm", "tpu")


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
        choices=("stablehlo", "savedmodel"),
        default="stablehlo",
        help="a program for JAX, or for TensorFlow (%(default)s)",
    )
    parser.add_argument(
        "--platforms",
        default="cpu,cuda,tpu",
        metavar="P,...",
        help=f"platforms that run it, of {', '.join(PLATFORMS)} (%(default)s)",
    )
    parser.add_argument(
        "--input_size",
        default="",
        metavar="SIDE|HEIGHTxWIDTH",
        help="size of the images that the program takes, and resizes and crops itself, "
        "or any (default: it takes them as the evaluation has them)",
    )
    parser.add_argument(
        "--dtype", default="", help="float32 or bfloat16 (default: the run's)"
    )
    parser.add_argument(
        "--logits",
        action="store_true",
        help="segmentation: also return the logarithms of the probabilities",
    )
    parser.add_argument(
        "--overwrite", action="store_true", help="replace an existing OUT"
    )
    args, overrides = parser.parse_known_args(argv)
    platforms = args.platforms.split(",")
    for word in platforms:
        if word not in PLATFORMS:
            raise UserError(
                f"--platforms {args.platforms}: {word!r} is not known; choose from "
                f"{', '.join(PLATFORMS)}"
            )
    size = None
    if args.input_size == "any":
        size = "height", "width"
    elif args.input_size:
        size = parsing.parse_image_size("--input_size", args.input_size)
    workdir = local_folder("--workdir", args.workdir)
    out = local_folder("--out", args.out)
    if os.path.lexists(out) and not args.overwrite:
        raise UserError(f"--out {out}: exists: choose another name, or add --overwrite")
    if out.is_dir() and not (out / "saved_model.pb").is_file():
        raise UserError(f"--out {out}: is a folder, but no SavedModel: choose another")
    if args.dtype:
        overrides = [*overrides, f"--config.model.dtype={args.dtype}"]
    # Imported late: JAX takes seconds, which bad arguments need not wait for.
    from vt_flax.inference.exporting import export_network
    from vt_flax.inference.predictor import load
    from vt_flax.parallel.devices import start_devices

    start_devices()
    network = load(workdir, overrides, step=args.step, best=args.best)
    with writing(f"--out {out}"):
        about = export_network(
            network,
            out,
            kind=args.kind,
            platforms=platforms,
            size=size,
            logits=args.logits,
        )
    print(f"{about['checkpoint']}\n")
    for word in ("inputs", "outputs"):
        for array in about[word]:
            shape = ", ".join(map(str, array["shape"]))
            print(
                f"{word[:-1]:<7}{array['name']}: {array['dtype']} ({shape}), "
                f"{array['meaning']}"
            )
    reader = "load.py in it" if args.kind == "stablehlo" else "tf.saved_model.load"
    print(f"\nWrote {out}, for {', '.join(platforms)}; {reader} loads it")
