"""Cost and speed of a configuration on a TPU pod, without having one.

vt_flax plan --config configs/imagenet.py --topology v5e:16x16
vt_flax plan --config configs/imagenet.py --topology v5e:4x4 v4:2x2x4
vt_flax plan --config configs/imagenet.py --topology v5e:4x4 --save chart.png
    --sweep batch=1024,2048 bn_group_size=0,per_device
vt_flax plan --config configs/quickstart.py --topology here --measure

The TPU compiler (pip install "jax[tpu]") compiles the whole training step, which takes
minutes, and the compiled program is read for its memory, memory traffic and
collectives. Published figures of the chips turn them into bounds, which the program
cannot beat, and an estimate.

TOPOLOGY is v4:AxBxC, v5e:AxB, v5p:AxBxC, v6e:AxB or tpu7x:AxBxC (Ironwood), with the
number of chips along each axis, or `here`: this machine, with its own compiler and its
measured speed; --measure runs the step too. A chip is one JAX device; a tpu7x is two,
each with half of its memory.

--sweep takes keys of the configuration, and `batch` and `bn_group_size` for short; the
group size `per_device` is the examples on one device. Any key can be changed for all:
--config.model.bn_frozen=true
"""

import argparse
import os
import sys
from collections.abc import Sequence

from vt_flax.cli import parsing, tables
from vt_flax.errors import UserError
from vt_flax.paths import local_folder
from vt_flax.plan.topology import HERE, parse_topology
from vt_flax.plan.tpu_compiler import ENVIRONMENT
from vt_flax.viz.figures import check_name


def main(argv: Sequence[str]) -> None:
    """The command."""
    parser = parsing.make_parser("plan", __doc__)
    parsing.add_config_argument(parser)
    parser.add_argument(
        "--topology", required=True, nargs="+", metavar="TOPOLOGY", help="see above"
    )
    parser.add_argument(
        "--chip", type=int, metavar="N", help="examples per chip, which sets batch_size"
    )
    parser.add_argument(
        "--sweep",
        nargs="+",
        default=[],
        metavar="KEY=a,b,c",
        help="plan for each of these values, of several keys for all combinations",
    )
    parser.add_argument("--save", metavar="FILE.png|FILE.svg", help="draw a chart")
    parser.add_argument(
        "--examples", type=int, default=0, help="examples in an epoch, if not known"
    )
    parser.add_argument("--measure", action="store_true", help="here: run the step too")
    parsing.add_format_argument(parser)
    args, overrides = parser.parse_known_args(argv)
    _check(args)

    if HERE not in args.topology:
        os.environ.update(ENVIRONMENT)
    # Imports of JAX, which reads the environment, and TensorFlow.
    from vt_flax.plan import report
    from vt_flax.plan.cases import make_cases, parse_sweep
    from vt_flax.plan.planning import make_plan

    cases = make_cases(
        args.config,
        overrides,
        args.topology,
        parse_sweep(args.sweep),
        args.chip,
        args.examples,
    )
    plans, problems = {}, []
    for case in cases:
        try:
            plans[case.label] = make_plan(case, args.measure)
        except UserError as error:
            if len(cases) == 1:
                raise
            words = {"topology": case.place.name, **case.swept}
            problems.append({**words, "problem": str(error)})
            print(f"{case.label}: {error}", file=sys.stderr, flush=True)
    if not plans:
        raise UserError("; ".join(row["problem"] for row in problems))
    if args.save:
        # matplotlib takes a while to import.
        from vt_flax.plan.chart import draw_plans

        path = local_folder("--save", args.save)
        draw_plans(path, plans)
        print(f"wrote {path}", file=sys.stderr)
    if args.format == "json":
        tables.print_rows([*plans.values(), *problems], args.format)
        return
    rows = report.columns(plans)
    if args.sweep:
        rows = report.sweep_rows(list(plans.values()), list(cases[0].swept))
    config = cases[0].config
    title = (
        f"{config.model.name}, {config.data.name}, {config.duration}: a training step "
        "as compiled, of a device"
    )
    tables.print_rows(rows, args.format, title, report.notes(cases))


def _check(args: argparse.Namespace) -> None:
    """Checks the options, before JAX is imported."""
    for name in args.topology:
        if name != HERE:
            parse_topology(name)
    for option, least in (("chip", 1), ("examples", 0)):
        value = vars(args)[option]
        if value is not None and value < least:
            raise UserError(f"--{option} {value}: must be at least {least}")
    if HERE in args.topology and len(args.topology) > 1:
        raise UserError(f"--topology {HERE}: plan TPUs by another command")
    if args.measure and args.topology != [HERE]:
        raise UserError(f"--measure is for --topology {HERE}")
    if args.save:
        check_name("--save", local_folder("--save", args.save))
