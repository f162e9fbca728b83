"""The command `vt_flax COMMAND`, the same as `python -m vt_flax COMMAND`."""

import importlib
from collections.abc import Sequence

from vt_flax.cli.startup import run
from vt_flax.errors import UserError, nearest
from vt_flax.version import __version__

# Each command with the line that `vt_flax --help` prints.
COMMANDS = {
    "train": "train a network, or resume the run in a workdir",
    "evaluate": "evaluate a checkpoint on every example of a split",
    "predict": "classify or segment images, and draw token attention",
    "summarize": "print parameters and multiply-adds, and compare with the paper",
    "prepare_data": "build, resize or convert a dataset",
    "import_weights": "make a checkpoint from weights of torchvision or timm",
    "export": "write network, weights and preprocessing to one file",
    "plan": "compile a training step for a pod without having one",
    "benchmark": "measure the input and the training step on this machine",
}


USAGE = """usage: vt_flax COMMAND [ARGUMENT ...]
       vt_flax COMMAND --help
       vt_flax --version

Visual Transformers (arXiv 2006.03677) in JAX and Flax.
"""


def dispatch(argv: Sequence[str]) -> None:
    """Runs a command.

    Args:
      argv: its name and its arguments.

    Raises:
      UserError: if there is no such command.
    """
    name, *arguments = argv or ["--help"]
    if name in ("-h", "--help"):
        print(USAGE)
        for command, line in COMMANDS.items():
            print(f"  {command:14}  {line}")
    elif name == "--version":
        print(__version__)
    elif name in COMMANDS:
        importlib.import_module(f"vt_flax.cli.{name}").main(arguments)
    else:
        raise UserError(f"vt_flax {name}: no such command{nearest(name, COMMANDS)}")


def main() -> None:
    """Entry point of the console script."""
    run(dispatch)


if __name__ == "__main__":
    main()
