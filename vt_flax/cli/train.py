"""Train a network, or resume the run in its workdir.

vt_flax train --config configs/quickstart.py --workdir runs/quickstart
vt_flax train --config configs/imagenet.py:vt_resnet50 --workdir WORKDIR

Any key of the configuration can be changed: --config.schedule.learning_rate=0.1
On several machines, start the same command on each; see below.

Run the same command again to resume after a stop. Exit status 2 means bad input, 3 that
training diverged, 4 that SIGTERM stopped it once its state was saved, 5 that another
process is lost. Saved checkpoints survive all of them.
"""

import sys
from collections.abc import Sequence

import jax

from vt_flax.cli import parsing, startup, tables
from vt_flax.paper.macs import count
from vt_flax.parallel.mesh import banner
from vt_flax.paths import local_folder
from vt_flax.training.config import load_config
from vt_flax.training.loop import train
from vt_flax.training.run import prepare


def main(argv: Sequence[str]) -> None:
    """The command."""
    parser = parsing.make_parser("train", __doc__)
    parsing.add_config_argument(parser)
    parser.add_argument(
        "--workdir",
        required=True,
        metavar="FOLDER",
        help="folder for everything the run writes",
    )
    parsing.add_format_argument(parser)
    parsing.add_process_arguments(parser)
    args, overrides = parser.parse_known_args(argv)
    workdir = local_folder("--workdir", args.workdir)
    startup.join_processes(args)
    config = load_config(args.config, overrides)
    startup.agree("train", config)
    run = prepare(config)
    # A JSON result has standard output to itself.
    stream = sys.stderr if args.format == "json" else sys.stdout
    print(banner(run.mesh), file=stream, flush=True)
    if args.format == "table" and jax.process_index() == 0:
        height, width = size = run.task.input_size(config)
        counts = count(run.model, size)
        macs = counts.macs | {"total": counts.total_macs}
        params = counts.params | {"total": counts.total_params}
        tables.print_rows(
            [{"part": p, "MACs": macs[p], "params": params[p]} for p in macs],
            args.format,
            f"{config.model.name}, {run.model.num_classes} classes, {height} x {width}",
        )
    results = train(run, workdir, stream)
    if jax.process_index() == 0:
        tables.print_results(results, args.format, run.eval_source.name)
