"""PyTorch's ResNets and SE-ResNets, as checkpoints that training starts from.

vt_flax import_weights resnet50-0676ba61.pth --model resnet50 --out D
vt_flax import_weights model.safetensors --model resnet50 --out D
vt_flax import_weights R-50.pth --model resnet50 --set variant=msra --out D
vt_flax import_weights resnet18.pth --model resnet18 --num_classes 10 --out D

FILE is a checkpoint with the names of torchvision or timm: .safetensors, or what
torch.save wrote (.pth, .pt, .bin, .ckpt, .tar). The latter is read by PyTorch (pip
install "vt_flax[torch]"), with torch.load(weights_only=True), which runs nothing in it.

The ResNet is found wherever it is nested (state_dict, model, net, ...) and under any
prefix (module., _orig_mod., backbone., ...), with its head. Raw weights are preferred
to their EMA; --section chooses between others, such as a student and its teacher.

Train with --config.init_from=D: the same network, a VT-ResNet, or a segmentation
network on it. With the head of FILE, D is also a workdir for predict, and for evaluate
on imagenet2012. --num_classes N takes a head for N classes, or makes a fresh one.

The original ResNets (MSRA's, in Detectron2 too) stride in the first 1 x 1 of a
bottleneck, which does not show in a file: --set variant=msra. See docs/weights.md.
"""

from collections.abc import Sequence

from vt_flax.cli import parsing, tables
from vt_flax.errors import UserError
from vt_flax.paths import local_folder, typed_path


def main(argv: Sequence[str]) -> None:
    """The command."""
    parser = parsing.make_parser("import_weights", __doc__)
    parser.add_argument("file", metavar="FILE", help="a checkpoint: see above")
    parser.add_argument(
        "--model", required=True, metavar="M", help="resnet50, se_resnet50, ..."
    )
    parser.add_argument("--out", required=True, metavar="D", help="a new folder")
    parser.add_argument(
        "--num_classes", type=int, metavar="N", help="default: as many as FILE has"
    )
    parser.add_argument(
        "--section",
        default="",
        metavar="NAME",
        help="which ResNet of FILE, if there are several: state_dict_ema, teacher, ...",
    )
    parser.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="OPTION=VALUE",
        help="an option of the model, such as variant=msra",
    )
    parsing.add_format_argument(parser)
    args = parser.parse_args(argv)
    options = parsing.parse_overrides(args.set)
    if "num_classes" in options:
        raise UserError("--set num_classes: write --num_classes N")
    if args.num_classes is not None and args.num_classes < 1:
        raise UserError(f"--num_classes {args.num_classes}: must be at least 1")
    out = local_folder("--out", args.out)
    # Imported late: JAX takes seconds, which bad arguments need not wait for.
    from vt_flax.training.imported import import_weights

    rows, notes = import_weights(
        typed_path(args.file),
        args.model,
        out,
        args.num_classes or 0,
        options,
        args.section,
    )
    tables.print_rows(rows, args.format, f"{args.model} from {args.file}", notes)
