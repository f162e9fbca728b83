"""Our training step in turns with those of plain ResNets, on this machine.

python tests/benchmarks/against.py --config configs/imagenet.py:resnet18 --batch 16
    --against flax_resnet,torch

References are `flax_resnet`, as Flax's ImageNet example has it, `torch`, the same in
PyTorch, compiled where that works, `torch_eager`, and `timm`'s. For a VT-ResNet they
are the ResNet that it replaces.
"""

import contextlib
import importlib.metadata
import os
import sys

import jax
from beside import Beside, check_installed
from command import make_parser
from flax_resnet import FlaxResNetStep
from plain import plain_resnet

from vt_flax.cli import startup, tables
from vt_flax.cli.benchmark import check_positive, load_batch
from vt_flax.errors import UserError, nearest
from vt_flax.measure.step import find_peak, rate_rows, record, start
from vt_flax.paper.macs import count
from vt_flax.parallel import devices
from vt_flax.parallel.mesh import make_mesh
from vt_flax.plan.step import Step
from vt_flax.training.config_rules import check_step
from vt_flax.training.tasks import task_of

BESIDE = ("torch", "torch_eager", "timm")
REFERENCES = ("flax_resnet", *BESIDE)


def find_references(names, config, mesh):
    """Returns the references that can run here, and why the others cannot."""
    found, notes = [], []
    for name in dict.fromkeys(names):
        if name not in REFERENCES:
            raise UserError(f"--against {name} is not known{nearest(name, REFERENCES)}")
        try:
            plain_resnet(config)
            if name in BESIDE:
                check_installed(name)
                check_device(mesh)
            found.append(name)
        except UserError as error:
            notes.append(f"{name} is left out: {error}")
    return found, notes


def check_device(mesh):
    """Checks that PyTorch can compute on what JAX does."""
    platform = mesh.devices.flat[0].platform
    if platform == "tpu":
        raise UserError("it runs on no TPU")
    if platform != "cpu" and mesh.size > 1:
        raise UserError("it runs on one GPU; show JAX but one (CUDA_VISIBLE_DEVICES=0)")


def extras_of(config):
    """Returns what our step does that those of plain ResNets do not, in words."""
    data, model = config.data, config.model
    parts = {
        "Visual Transformers for the last stage": model.name.startswith("vt_"),
        "mirroring": data.flip,
        f"augmentation ({data.augment})": data.augment != "none",
        "erasing": data.erasing,
        "mixing": data.mixup or data.cutmix,
        "dropout": model.get("dropout", 0.0),
        "stochastic depth": model.get("survival_probability", 1.0) < 1,
        "distillation": config.distillation.teacher,
        f"{config.grad_accum_steps} microbatches": config.grad_accum_steps > 1,
        f"BatchNorm over {model.bn_group_size} examples": model.bn_group_size,
        "frozen BatchNorm": model.bn_frozen,
    }
    return ", ".join(name for name, on in parts.items() if on) or "nothing"


def measure(config, mesh, batch, references, rounds, warmup, peak):
    """Returns a record for our step and each reference, and notes."""
    plain, size = plain_resnet(config), task_of(config).input_size(config)
    flax = f"{plain.name}, Flax {importlib.metadata.version('flax')}"
    contenders, notes = [], []
    with contextlib.ExitStack() as stack:
        for name in ("ours", *references):
            try:
                if name in BESIDE:
                    step = stack.enter_context(Beside(name, config, batch))
                else:
                    make = Step if name == "ours" else FlaxResNetStep
                    step = make(config, mesh, batch)
                contenders.append((name, step, start(step, warmup)))
            except (UserError, jax.errors.JaxRuntimeError) as error:
                if name == "ours":
                    raise
                notes.append(f"{name} at batch {batch} is left out: {error}")
        times = [
            [step.seconds(steps) for _, step, steps in contenders]
            for _ in range(rounds)
        ]
        records = []
        ours, *_ = columns = list(zip(*times, strict=True))
        for (name, step, _), its in zip(contenders, columns, strict=True):
            macs = plain.macs(size)
            what = step.what if name in BESIDE else flax
            if name == "ours":
                macs, what = count(step.model, size).total_macs, config.model.name
            row = record(name, what, batch, its, ours, macs, peak)
            if name in BESIDE and step.peak is not None:
                row["peak_mb"] = step.peak / 1e6
            records.append(row)
    return records, notes


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
    config = load_batch(args, overrides, args.batch)
    # JAX would take most of a GPU's memory, which the other process needs.
    os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")
    devices.set_up_devices(config)
    mesh = make_mesh(fsdp=config.parallel.fsdp)
    check_step(config, mesh.size)
    names, notes = find_references(args.against.split(","), config, mesh)
    if not names:
        raise UserError("; ".join(notes))
    peak = find_peak(mesh, config.model.dtype, args.peak, notes)
    name = f"{config.model.name} has besides: {extras_of(config)}"
    notes.append(f"{plain_resnet(config).name} is plain; {name}")
    records, reasons = measure(
        config, mesh, args.batch, names, args.rounds, args.warmup, peak
    )
    notes += reasons
    if args.format == "json":
        tables.print_rows(records, args.format)
        print("\n".join(notes), file=sys.stderr)
        return
    title = f"{config.model.name}: a training step of {args.batch}"
    tables.print_rows(rate_rows(records), args.format, title, notes)


if __name__ == "__main__":
    startup.run(main)
