"""Arguments and errors that the scripts of this folder share."""

import argparse

from vt_flax.cli import parsing
from vt_flax.errors import UserError
from vt_flax.plan.compiled_step import PROGRAM, excess, pod_costs


def make_parser(description, config=True):
    parser = parsing.ArgumentParser(
        description=description,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    if config:
        parsing.add_config_argument(parser)
    parsing.add_format_argument(parser)
    return parser


def fitting_costs(configs, topology, program=PROGRAM):
    """Returns `pod_costs`; raises `UserError` if a step does not fit."""
    found = pod_costs(configs, topology, program)
    for config, costs in zip(configs, found, strict=True):
        if "too_large" in costs:
            raise UserError(
                f"--topology {topology}: batch {config.batch_size:,} needs "
                f"{excess(**costs['too_large'])}: use a smaller --chip"
            )
    return found
