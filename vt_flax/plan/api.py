"""Plans from Python, as `vt_flax plan --format json` makes them."""

import json
import subprocess
import sys
from collections.abc import Sequence
from typing import Any

from vt_flax.errors import UserError


def plan(
    config: str,
    topologies: Sequence[str],
    overrides: Sequence[str] = (),
    *,
    examples: int = 0,
) -> list[dict[str, Any]]:
    """Compiles a training step for TPU pods, and returns its cost and speed.

    That is done in another process: JAX reads the environment of the TPU compiler when
    it starts, and may have started in this one.

    Args:
      config: a configuration file, as in `configs/imagenet.py:vt_resnet18`.
      topologies: pods, such as `v5e:4x4`.
      overrides: arguments such as `--config.batch_size=64`.
      examples: number of examples in an epoch, where the dataset is not prepared.

    Returns:
      For each topology its bounds (keys `bound_...`) and estimates (`estimate_...`) of
      seconds per step, images per second, hours and chip-hours, and the memory of a
      device in bytes (`memory_...`).

    Raises:
      UserError: for bad input, a batch that does not fit, or without the TPU compiler.
    """
    done = subprocess.run(
        [sys.executable, "-m", "vt_flax", "plan", "--config", config]
        + ["--topology", *topologies, "--examples", str(examples)]
        + ["--format", "json", *overrides],
        capture_output=True,
        text=True,
    )
    if done.returncode:
        raise UserError(done.stderr.strip().split("\n")[-1].removeprefix("error: "))
    plans = json.loads(done.stdout)
    for record in plans:
        if "problem" in record:
            raise UserError(record["problem"])
    return plans
