"""Prepare a dataset for training: build, resize or convert it, with random access.

vt_flax prepare_data imagenet2012 --manual_dir ARCHIVES --data_dir DATA
    from ILSVRC2012_img_train.tar and ILSVRC2012_img_val.tar in ARCHIVES
vt_flax prepare_data imagenet2012 --data_dir DATA --resize 256
    makes imagenet2012_256 of it: short side at most 256, smaller images as they are
vt_flax prepare_data cifar10 --data_dir DATA
    any dataset that TFDS knows; downloads it where TFDS can
vt_flax prepare_data coco_stuff --manual_dir FILES --data_dir DATA
    segmentation, of images and masks in FILES: also lip and ade20k; each prints what
    it needs if it is not there; --resize brings masks along
vt_flax prepare_data image_mask_folder --manual_dir FILES --data_dir DATA
    your own: FILES/images/SPLIT/NAME.jpg, FILES/masks/SPLIT/NAME.png (gray: class
    indices, 255 for no label) and, for the names of the classes, FILES/classes.txt;
    for masks of 0 and 255 that mean classes 0 and 1, add --ignore_label none
vt_flax prepare_data convert NAME --data_dir DATA
    adds array_record to a dataset that TFDS has stored as TFRecord

A run that was stopped is simply started again; if it was killed, remove the folder
DATA/NAME/incomplete.* first. ImageNet takes about 158 GB beside its archives, the copy
at 256 about 40 GB more.
"""

from collections.abc import Sequence

from vt_flax.cli import parsing
from vt_flax.errors import UserError
from vt_flax.paths import local_folder


def main(argv: Sequence[str]) -> None:
    """Runs the command."""
    parser = parsing.make_parser("prepare_data", __doc__)
    parser.usage = f"{parser.prog} [convert] NAME --data_dir FOLDER [OPTION ...]"
    parser.add_argument(
        "words",
        nargs="+",
        metavar="[convert] NAME",
        help="a TFDS dataset, such as imagenet2012 or cifar10",
    )
    parser.add_argument(
        "--data_dir", required=True, metavar="FOLDER", help="of the TFDS datasets"
    )
    parser.add_argument(
        "--manual_dir",
        default="",
        metavar="FOLDER",
        help="of what TFDS cannot download (default: DATA_DIR/downloads/manual)",
    )
    parser.add_argument(
        "--resize",
        type=int,
        metavar="SIDE",
        help="also make the dataset NAME_SIDE with that short side, in pixels; "
        "builds NAME first where it is missing",
    )
    parser.add_argument(
        "--ignore_label",
        default="",
        choices=("255", "none"),
        help="image_mask_folder: value that means no label in the masks. 255: pixels "
        "of 255 have no label. none: every value is a class, 255 too; values that are "
        "no class indices, such as 0 and 255, are the classes of classes.txt in "
        "ascending order. Only needed where the masks do not show which is meant",
    )
    parser.add_argument(
        "--out_dir",
        default="",
        metavar="FOLDER",
        help="convert: where the result goes (default: beside the source's files)",
    )
    args = parser.parse_args(argv)
    name, converting = args.words[-1], args.words[0] == "convert"
    if len(args.words) != 1 + converting:
        raise UserError(f"{' '.join(args.words)}: write NAME, or convert NAME")
    if args.resize is not None and args.resize < 1:
        raise UserError(f"--resize {args.resize}: must be at least 1 pixel")
    build_options = "manual_dir", "resize", "ignore_label"
    if converting and any(getattr(args, option) for option in build_options):
        raise UserError(f"convert takes no --{', no --'.join(build_options)}")
    if args.out_dir and not converting:
        raise UserError("--out_dir is for convert; a dataset is built in --data_dir")
    # TFDS needs absolute paths. array_record would reject a bucket after hours of work.
    data_dir = str(local_folder("--data_dir", args.data_dir).absolute())
    out_dir = args.out_dir and str(local_folder("--out_dir", args.out_dir).absolute())
    # Late, because importing TFDS takes seconds: --help and bad options need not wait.
    from vt_flax.data.prepare import build, convert

    if converting:
        builder = convert.convert(name, data_dir, out_dir)
    else:
        builder = build.prepare(name, data_dir, args.manual_dir, args.ignore_label)
        if args.resize:
            builder = build.resize(builder, args.resize, data_dir)
            name = builder.name
    print(build.describe(builder, name))
