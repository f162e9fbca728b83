"""The arguments that the commands in this folder share."""

import argparse

from vt_flax import cli


def make_parser(description, config=True):
    parser = cli.ArgumentParser(
        description=description,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    if config:
        cli.add_config_argument(parser)
    cli.add_format_argument(parser)
    return parser
