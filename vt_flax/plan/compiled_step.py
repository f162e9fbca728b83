"""Training steps compiled by the TPU compiler, without a TPU.

`vt_flax plan.compiled_step` is the child process that compiles: it reads a
request as JSON and prints the costs as JSON.
"""

import json
import re
import sys
from collections.abc import Sequence
from typing import Any

from ml_collections import ConfigDict

from vt_flax.errors import UserError
from vt_flax.parallel.mesh import make_mesh
from vt_flax.plan.step import MeshStep, Step
from vt_flax.plan.step_costs import read_costs
from vt_flax.plan.topology import GIB
from vt_flax.plan.tpu_compiler import compile_apart, read_request, tpu_devices
from vt_flax.training.config import resolve

PROGRAM = ("-m", "vt_flax.plan.compiled_step")
# In the TPU compiler's message for a program that is too large: needed, available.
OUT_OF_MEMORY = "RESOURCE_EXHAUSTED"
SIZES = (
    re.compile(r"\(([\d.]+)([KMGT]?)\) exceeds available \w+ \(([\d.]+)([KMGT]?)\)"),
    re.compile(r"Used ([\d.]+)([KMGT]?) of ([\d.]+)([KMGT]?)"),
)


def pod_costs(
    configs: Sequence[ConfigDict], topology: str, program: Sequence[str] = PROGRAM
) -> list[dict[str, Any]]:
    """Compiles the training steps of some configurations.

    Args:
      configs: resolved configurations; `batch_size` is sharded over all devices.
      topology: such as `v5e:2x2`.
      program: arguments of Python to run a child that calls `serve`.

    Returns:
      For each the result of `step_costs.read_costs`; for a step that does not fit
      `too_large`: bytes of a device's memory that are `needed` and `available`, 0 if
      the compiler does not say.

    Raises:
      UserError: if libtpu is missing, cannot compile a step, or crashes.
    """
    request = {
        "configs": [config.to_dict() for config in configs],
        "topology": topology,
    }
    return compile_apart(program, request, len(configs))


def excess(needed: int, available: int) -> str:
    """Returns by how much a step exceeds a device's memory, to follow "needs".

    Args:
      needed: bytes; 0 if unknown.
      available: bytes.
    """
    if not needed:
        return "more memory than a device has"
    return (
        f"{needed / GIB:.2f} GiB of a device's {available / GIB:.2f}, "
        f"{(needed - available) / GIB:.2f} GiB too much"
    )


def serve(make_step: type[MeshStep]) -> None:
    """Compiles what is requested on stdin and prints the costs, in the child process.

    Args:
      make_step: class of the step.
    """
    try:
        request, found = read_request(), []
        devices = tpu_devices(request["topology"])
        for values in request["configs"]:
            config = resolve(ConfigDict(values))
            mesh = make_mesh(devices, config.parallel.fsdp)
            try:
                found.append(read_costs(make_step(config, mesh, config.batch_size)))
            except Exception as error:
                if OUT_OF_MEMORY not in str(error):
                    raise
                found.append({"too_large": read_sizes(str(error))})
    except UserError as error:
        sys.exit(str(error))
    print(json.dumps(found))


def read_sizes(message: str) -> dict[str, int]:
    """Returns the bytes `needed` and `available` in a compiler's message, or 0."""
    for pattern in SIZES:
        if match := pattern.search(message):
            needed, available = (
                int(float(match[i]) * 1024 ** " KMGT".index(match[i + 1] or " "))
                for i in (1, 3)
            )
            return {"needed": needed, "available": available}
    return {"needed": 0, "available": 0}


if __name__ == "__main__":
    serve(Step)
