"""PyTorch's ResNets and SE-ResNets, as checkpoints that training starts from.

python -m vt_flax.import_weights resnet50-0676ba61.pth --model resnet50 --out D
python -m vt_flax.import_weights model.safetensors --model resnet50 --out D
python -m vt_flax.import_weights R-50.pth --model resnet50 --set variant=msra --out D
python -m vt_flax.import_weights resnet18.pth --model resnet18 --num_classes 10 --out D

FILE is a state dict with the names of torchvision or timm, in .safetensors or as
torch.save writes it (.pth, .pt, .bin; of any age). PyTorch is not needed, and nothing
in FILE is run. Its state dict may lie under `state_dict` or `model`.

Then train with --config.init_from=D: the same network, a VT-ResNet, or a segmentation
network on it; what they have not in common is made anew, and told. With the head of
FILE, D is also a workdir for predict, and for evaluate on imagenet2012. --num_classes N
makes a fresh head for N classes; D is for init_from alone then.

Where a bottleneck strides does not show in a file. torchvision's and timm's do in the
3 x 3 (the default); the original ones (MSRA's, in Detectron2 too) and timm's
legacy_seresnet in the first 1 x 1: --set variant=msra.
"""

from collections.abc import Sequence

from vt_flax import cli
from vt_flax.errors import UserError
from vt_flax.paths import typed_path


def main(argv: Sequence[str]) -> None:
    """The command."""
    parser = cli.make_parser("import_weights", __doc__)
    parser.add_argument("file", metavar="FILE", help="the state dict: see above")
    parser.add_argument(
        "--model", required=True, metavar="M", help="resnet50, se_resnet50, ..."
    )
    parser.add_argument("--out", required=True, metavar="D", help="a new folder")
    parser.add_argument(
        "--num_classes", type=int, metavar="N", help="default: as many as FILE has"
    )
    parser.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="OPTION=VALUE",
        help="an option of the model, such as variant=msra",
    )
    cli.add_format_argument(parser)
    args = parser.parse_args(argv)
    options = cli.parse_overrides(args.set)
    if "num_classes" in options:
        raise UserError("--set num_classes: write --num_classes N")
    if args.num_classes is not None and args.num_classes < 1:
        raise UserError(f"--num_classes {args.num_classes}: must be at least 1")
    out = cli.local_folder("--out", args.out)
    # Late, because JAX takes seconds to come: bad arguments need not wait.
    from vt_flax.training.imported import import_weights

    file = typed_path(args.file)
    found = import_weights(file, args.model, out, args.num_classes or 0, options)
    title = f"{args.model} from {args.file}"
    cli.print_rows(found.rows, args.format, title, found.notes)


if __name__ == "__main__":
    cli.run(main)
