"""Our training step in turns with those of plain ResNets, on this machine.

python tests/benchmarks/against.py --config configs/imagenet.py:resnet18 --batch 16
    --against flax_resnet,torch

References are `flax_resnet`, as Flax's ImageNet example has it, `torch`, the same in
PyTorch, compiled, and `torch_eager`. For a VT-ResNet they are the
ResNet that it replaces.
"""

import importlib.metadata
import os

from command import make_parser
from flax_resnet import FlaxResNetStep
from plain import plain_resnet

from vt_flax.cli import startup, tables
from vt_flax.cli.benchmark import check_positive, load_batch
from vt_flax.errors import UserError, nearest
from vt_flax.measure.step import find_peak, record, warm_up
from vt_flax.paper.macs import count
from vt_flax.parallel import devices
from vt_flax.parallel.mesh import make_mesh
from vt_flax.plan.step import Step
from vt_flax.training.config_rules import check_step
from vt_flax.training.tasks import task_of

REFERENCES = ("flax_resnet", "torch", "torch_eager")


def make_reference(name, config, mesh, batch):
    """Returns the step of a reference, and what computes it."""
    if name == "flax_resnet":
        version = importlib.metadata.version("flax")
        return FlaxResNetStep(config, mesh, batch), f"Flax {version}"
    platform = mesh.devices.flat[0].platform
    if platform == "tpu" or (platform == "gpu" and mesh.size > 1):
        raise UserError("PyTorch runs here on CPUs, or on one GPU")
    from torch_step import TorchStep

    step = TorchStep(config, batch, compiled=name == "torch")
    return step, step.what


def measure(config, mesh, batch, references, rounds, warmup, peak):
    """Returns a record for our step and each reference."""
    plain, size = plain_resnet(config), task_of(config).input_size(config)
    ours = Step(config, mesh, batch)
    macs = count(ours.model, size).total_macs
    contenders = [("ours", ours, config.model.name, macs)]
    for name in references:
        step, what = make_reference(name, config, mesh, batch)
        contenders.append((name, step, f"{plain.name}, {what}", plain.macs(size)))
    steps = []
    for _, step, _, _ in contenders:
        step.start()
        steps.append(warm_up(step, warmup))
    times = [
        [each[1].seconds(n) for each, n in zip(contenders, steps, strict=True)]
        for _ in range(rounds)
    ]
    columns = list(zip(*times, strict=True))
    return [
        record(name, what, batch, its, columns[0], macs, peak)
        for (name, _, what, macs), its in zip(contenders, columns, strict=True)
    ]


def main(argv):
    parser = make_parser(__doc__)
    parser.add_argument(
        "--against",
        default="flax_resnet",
        metavar="A,B,...",
        help=", ".join(REFERENCES),
    )
    parser.add_argument("--batch", type=int, default=32, help="batch size (32)")
    parser.add_argument("--rounds", type=int, default=10, help="turns of each (10)")
    parser.add_argument("--warmup", type=int, default=3, help="steps before them (3)")
    parser.add_argument(
        "--peak",
        choices=("published", "measured"),
        default="published",
        help="FLOP/s that MFU is relative to (published)",
    )
    args, overrides = parser.parse_known_args(argv)
    check_positive(args, "rounds", "warmup")
    names = args.against.split(",")
    for name in names:
        if name not in REFERENCES:
            raise UserError(f"--against {name} is not known{nearest(name, REFERENCES)}")
    config = load_batch(args, overrides, args.batch)
    # JAX would take most of a GPU's memory, which PyTorch needs.
    os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")
    devices.set_up_devices(config)
    mesh = make_mesh(fsdp=config.parallel.fsdp)
    check_step(config, mesh.size)
    notes = ["references have no augmentation, dropout, stochastic depth, distillation"]
    peak = find_peak(mesh, config.model.dtype, args.peak, notes)
    records = measure(config, mesh, args.batch, names, args.rounds, args.warmup, peak)
    title = f"{config.model.name}: a training step of {args.batch}"
    tables.print_rows(records, args.format, title, notes)


if __name__ == "__main__":
    startup.run(main)
