"""What the TPU compiler makes of training steps, without a TPU.

`python -m vt_flax.analysis.compiled_step` is the part that runs in a process of its
own: it reads a request as JSON and prints the costs on a topology.
"""

import collections
import json
import re
import sys
from collections.abc import Sequence
from typing import Any

from ml_collections import ConfigDict

from vt_flax.analysis.steps import OURS, STEPS
from vt_flax.errors import UserError
from vt_flax.parallel.mesh import make_mesh
from vt_flax.parallel.topology import compile_apart, tpu_devices
from vt_flax.training.config import resolve

COLLECTIVES = ("all-reduce", "all-gather", "reduce-scatter", "collective-permute")


def costs(
    configs: Sequence[ConfigDict],
    topology: str,
    chip: int,
    steps: Sequence[str] = (),
) -> list[dict[str, Any]]:
    """Compiles the training steps of some configurations.

    Args:
      configs: resolved configurations.
      topology: such as `v5e:2x2`.
      chip: examples on each chip.
      steps: whose step to compile of each, by the names of `steps.STEPS`; ours by
        default.

    Returns:
      For each, of a chip and a step: `flops`, `bytes` moved, `temporary` bytes of
      memory, `cycles` estimated outside of kernels, and `collectives` by kind.

    Raises:
      UserError: if libtpu is not there, or cannot compile a step.
    """
    request = {
        "configs": [config.to_dict() for config in configs],
        "topology": topology,
        "chip": chip,
        "steps": list(steps) or [OURS] * len(configs),
    }
    return compile_apart("vt_flax.analysis.compiled_step", request, len(configs))


def _compile(request: dict[str, Any]) -> list[dict[str, Any]]:
    found = []
    devices = tpu_devices(request["topology"])
    for name, values in zip(request["steps"], request["configs"], strict=True):
        config = resolve(ConfigDict(values))
        mesh = make_mesh(devices, config.parallel.fsdp)
        compiled = STEPS[name](config, mesh, request["chip"] * mesh.size).compile()
        cost, memory = compiled.cost_analysis(), compiled.memory_analysis()
        program = compiled.as_text()
        found.append(
            {
                "flops": cost["flops"],
                "bytes": cost["bytes accessed"],
                "temporary": memory.temp_size_in_bytes,
                "cycles": _estimated_cycles(program),
                "collectives": _collectives(program),
            }
        )
    return found


def _collectives(program: str) -> dict[str, int]:
    """Returns how many of each of COLLECTIVES a compiled program has.

    One that is started and finished apart counts once; one over many arrays at a time
    is one.
    """
    found = re.findall(rf" ({'|'.join(COLLECTIVES)})(?:-start)?\(", program)
    return dict(collections.Counter(found))


def _estimated_cycles(program: str) -> int:
    """Sums what the TPU compiler expects of its own fusions, the basis of its choices.

    Bytes and FLOPs do not show work that is neither, such as moving single pixels. Of
    a kernel there is no such estimate. 0 if the compiler says nothing.
    """
    entry = program[program.find("\nENTRY") :]
    found = re.findall(r'"estimated_cycles":\s*"(\d+)"', entry)
    return sum(int(cycles) for cycles in found)


if __name__ == "__main__":
    try:
        print(json.dumps(_compile(json.load(sys.stdin))))
    except UserError as error:
        sys.exit(str(error))
