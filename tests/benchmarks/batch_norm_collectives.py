"""Collectives in a training step by the size of BatchNorm's groups, compiled for TPUs.

python tests/benchmarks/batch_norm_collectives.py --config configs/imagenet.py
"""

from command import fitting_costs, make_parser

from vt_flax.cli import startup, tables
from vt_flax.cli.benchmark import check_positive
from vt_flax.plan.collectives import KINDS
from vt_flax.plan.topology import parse_topology
from vt_flax.training.config import load_config


def measure(config, topology):
    """Counts a step's collectives: statistics over all examples, in groups, frozen.

    Args:
      config: a resolved configuration; `batch_size` is sharded over all devices.
      topology: such as `v5e:2x4`.
    """
    devices = parse_topology(topology).devices
    examples = config.batch_size // devices
    words = {1: "one device", 2: "two devices", 4: "four devices"}
    settings = {"all examples": {}, "none: running statistics": {"bn_frozen": True}} | {
        f"groups on {word}": {"bn_group_size": number * examples}
        for number, word in words.items()
        if number <= devices
    }
    configs = []
    for setting in settings.values():
        changed = config.copy_and_resolve_references()
        changed.model.update({"bn_group_size": 0, "bn_frozen": False} | setting)
        configs.append(changed)
    found = fitting_costs(configs, topology)
    return [
        {
            "statistics over": statistics,
            "bn_group_size": changed.model.bn_group_size,
            **{
                kind: costs["collectives"].get(kind, {"count": 0})["count"]
                for kind in KINDS
            },
        }
        for statistics, changed, costs in zip(settings, configs, found, strict=True)
    ]


def main(argv):
    parser = make_parser(__doc__)
    parser.add_argument(
        "--topology", metavar="NAME", default="v5e:2x4", help="(v5e:2x4)"
    )
    parser.add_argument("--chip", type=int, default=8, help="examples per chip (8)")
    args, overrides = parser.parse_known_args(argv)
    check_positive(args, "chip")
    batch = parse_topology(args.topology).batch_size(args.chip)
    config = load_config(args.config, [*overrides, f"--config.batch_size={batch}"])
    title = f"{config.model.name} on {args.topology}, {args.chip} examples a chip"
    tables.print_rows(measure(config, args.topology), args.format, title)


if __name__ == "__main__":
    startup.run(main)
