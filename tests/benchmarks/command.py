"""Arguments that the scripts of this folder share."""

import argparse

from vt_flax.cli import parsing


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
