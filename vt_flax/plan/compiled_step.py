"""Training steps compiled by the TPU compiler, without a TPU.

`python -m vt_flax.plan.compiled_step` is the part that runs in a process of its
own: it reads a request as JSON and prints the costs on a topology.
"""

import json
import re
import sys
from collections.abc import Sequence
from typing import Any

from ml_collections import ConfigDict

from vt_flax.errors import UserError
from vt_flax.parallel.mesh import make_mesh
from vt_flax.plan.step_costs import read_costs
from vt_flax.plan.steps import OURS, STEPS
from vt_flax.plan.topology import GIB
from vt_flax.plan.tpu_compiler import compile_apart, read_request, tpu_devices
from vt_flax.training.config import resolve

MODULE = "vt_flax.plan.compiled_step"
# What the TPU compiler says of a program that is too large: what it needs, what it has.
TOO_LARGE = "RESOURCE_EXHAUSTED"
SIZES = (
    re.compile(r"\(([\d.]+)([KMGT]?)\) exceeds available \w+ \(([\d.]+)([KMGT]?)\)"),
    re.compile(r"Used ([\d.]+)([KMGT]?) of ([\d.]+)([KMGT]?)"),
)


def costs(
    configs: Sequence[ConfigDict], topology: str, steps: Sequence[str] = ()
) -> list[dict[str, Any]]:
    """Compiles the training steps of some configurations.

    Args:
      configs: resolved configurations; `batch_size` is sharded over all devices.
      topology: such as `v5e:2x2`.
      steps: which step to compile of each, by the names of `steps.STEPS`; ours by
        default.

    Returns:
      For each the result of `step_costs.read_costs`.

    Raises:
      UserError: if libtpu is missing, cannot compile a step, or crashes; or a step does
        not fit.
    """
    found = _ask(configs, topology, steps)
    for config, cost in zip(configs, found, strict=True):
        if "too_large" in cost:
            raise UserError(
                f"--topology {topology}: batch {config.batch_size:,} needs "
                f"{excess(**cost['too_large'])}: use a smaller --chip"
            )
    return found


def pod_costs(config: ConfigDict, topology: str) -> dict[str, Any]:
    """Compiles the training step of a configuration.

    Returns:
      As `costs` for each; of a step that does not fit `too_large` instead: bytes of a
      device's memory that are `needed` and `available`, 0 if the compiler does not say.

    Raises:
      UserError: if libtpu is missing, cannot compile a step, or crashes.
    """
    (found,) = _ask([config], topology, ())
    return found


def excess(needed: int, available: int) -> str:
    """Returns by how much a step exceeds a device's memory, to follow "needs".

    Args:
      needed: bytes; 0 if that is not known.
      available: bytes.
    """
    if not needed:
        return "more memory than a device has"
    return (
        f"{needed / GIB:.2f} GiB of a device's {available / GIB:.2f}, "
        f"{(needed - available) / GIB:.2f} GiB too much"
    )


def _ask(
    configs: Sequence[ConfigDict], topology: str, steps: Sequence[str]
) -> list[dict[str, Any]]:
    request = {
        "configs": [config.to_dict() for config in configs],
        "topology": topology,
        "steps": list(steps) or [OURS] * len(configs),
    }
    return compile_apart(MODULE, request, len(configs))


def _compile(request: dict[str, Any]) -> list[dict[str, Any]]:
    found = []
    devices = tpu_devices(request["topology"])
    for name, values in zip(request["steps"], request["configs"], strict=True):
        config = resolve(ConfigDict(values))
        mesh = make_mesh(devices, config.parallel.fsdp)
        try:
            found.append(read_costs(STEPS[name](config, mesh, config.batch_size)))
        except Exception as error:
            if TOO_LARGE not in str(error):
                raise
            found.append({"too_large": sizes_told(str(error))})
    return found


def sizes_told(told: str) -> dict[str, int]:
    """Returns bytes `needed` and `available` of a compiler's message, or 0."""
    for pattern in SIZES:
        if match := pattern.search(told):
            numbers = [
                int(float(match[i]) * 1024 ** " KMGT".index(match[i + 1] or " "))
                for i in (1, 3)
            ]
            return dict(zip(("needed", "available"), numbers, strict=True))
    return {"needed": 0, "available": 0}


if __name__ == "__main__":
    try:
        print(json.dumps(_compile(read_request())))
    except UserError as error:
        sys.exit(str(error))
