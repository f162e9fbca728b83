"""The augmentation's share of a training step, here and as the TPU compiler counts it.

python tests/benchmarks/augmentation_share.py --config configs/imagenet.py
    --topology v5e:2x2 --chip 128
"""

import statistics

import jax
import numpy as np
from command import fitting_costs, make_parser

from vt_flax.cli import startup, tables
from vt_flax.cli.benchmark import check_positive
from vt_flax.measure.step import short
from vt_flax.parallel import devices
from vt_flax.parallel.mesh import make_mesh
from vt_flax.plan.step import Step
from vt_flax.plan.topology import parse_topology
from vt_flax.training.config import load_config

OFF = {"augment": "none", "erasing": 0.0, "mixup": 0.0, "cutmix": 0.0}


def without_augmentation(config):
    """Returns a configuration with mirroring and nothing else."""
    plain = config.copy_and_resolve_references()
    plain.unlock()
    plain.data.update(OFF)
    plain.lock()
    return plain


def measured_row(config, batch, rounds):
    """Times the step with and without augmentation on this machine's devices."""
    mesh = make_mesh(fsdp=config.parallel.fsdp)
    steps = [Step(c, mesh, batch) for c in (config, without_augmentation(config))]
    for step in steps:
        step.start()
    times = np.asarray([[step.seconds() for step in steps] for _ in range(rounds)])
    on, off = np.median(times, 0)
    # The median of the ratios of neighbors in time, not the ratio of medians.
    ratio = statistics.median(times[:, 0] / times[:, 1])
    device = jax.devices()[0].device_kind
    return _row(f"seconds a step of {batch}, {device}", on, off, ratio)


def compiled_rows(config, topology):
    """Compares what the TPU compiler counts, with and without augmentation."""
    on, off = fitting_costs([config, without_augmentation(config)], topology)
    place, batch = parse_topology(topology), config.batch_size
    images = batch / place.devices
    units = {
        "GFLOP an image": ("flops", 1e9 * images),
        "MB an image": ("bytes", 1e6 * images),
        "GB of a device's memory at work": ("temporary", 1e9),
        "thousand cycles an image outside of kernels": ("cycles", 1e3 * images),
    }
    where = f"{topology}, {batch // place.chips} a chip"
    return [
        _row(f"{name}, {where}", on[key] / unit, off[key] / unit, on[key] / off[key])
        for name, (key, unit) in units.items()
        if on[key] and off[key]
    ]


def _row(what, on, off, ratio):
    ratio = round(float(ratio), 4)
    return {"what": what, "with": short(on), "without": short(off), "ratio": ratio}


def main(argv):
    parser = make_parser(__doc__)
    parser.add_argument("--batch", type=int, default=8, help="batch size (8)")
    parser.add_argument("--rounds", type=int, default=10, help="steps of each (10)")
    parser.add_argument(
        "--topology", metavar="NAME", help="count for TPUs too, such as v5e:2x2"
    )
    parser.add_argument("--chip", type=int, default=128, help="examples per chip (128)")
    args, overrides = parser.parse_known_args(argv)
    check_positive(args, "batch", "rounds", "chip")

    def load(batch):
        return load_config(args.config, [*overrides, f"--config.batch_size={batch}"])

    config, rows = load(args.batch), []
    devices.start_devices()
    if args.topology:
        batch = parse_topology(args.topology).batch_size(args.chip)
        rows += compiled_rows(load(batch), args.topology)
    rows.append(measured_row(config, args.batch, args.rounds))
    title = f"data.augment {config.data.augment}, and none: a training step"
    tables.print_rows(rows, args.format, f"{config.model.name}, {title}")


if __name__ == "__main__":
    startup.run(main)
