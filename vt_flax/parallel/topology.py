"""TPUs that are not there, to compile for."""

import importlib.util
import json
import os
import subprocess
import sys
from collections.abc import Sequence
from typing import Any

import jax

from vt_flax.errors import UserError, first_line
from vt_flax.experimental import topologies

# What a process that compiles for TPUs without having one sets before it starts JAX.
# The last, since libtpu else allows a machine one process, which may be training.
ENVIRONMENT = {
    "JAX_PLATFORMS": "cpu",
    "TPU_SKIP_MDS_QUERY": "1",
    "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
}


def has_tpu_compiler() -> bool:
    """Tells whether libtpu is installed (`pip install "jax[tpu]"`)."""
    return importlib.util.find_spec("libtpu") is not None


def tpu_devices(topology: str) -> Sequence[jax.Device]:
    """Returns the chips of a topology such as `v5e:2x2`, to compile for.

    Raises:
      UserError: if libtpu knows no such topology.
    """
    try:
        return topologies.get_topology_desc(
            platform="tpu", topology_name=topology
        ).devices
    except Exception as error:
        reason = first_line(error)[:200]
        raise UserError(f"--topology {topology}: {reason}") from error


def compile_apart(module: str, request: dict[str, Any], programs: int) -> Any:
    """Compiles for TPUs in a process of its own, and returns what it makes of it.

    The compiler needs its own start of JAX, and may crash.

    Args:
      module: run as a program: it reads the request and prints its answer, as JSON.
      request: what to compile, its `topology` among it.
      programs: how many programs that are.

    Raises:
      UserError: if libtpu is not there, or the process fails.
    """
    if not has_tpu_compiler():
        raise UserError('--topology needs libtpu: pip install "jax[tpu]"')
    topology = request["topology"]
    print(
        f"compiling {programs} programs for {topology}: each may take minutes",
        file=sys.stderr,
        flush=True,
    )
    done = subprocess.run(
        [sys.executable, "-m", module],
        input=json.dumps(request),
        env=os.environ | ENVIRONMENT,
        capture_output=True,
        text=True,
    )
    if done.returncode:
        reason = (done.stderr.strip() or f"status {done.returncode}").split("\n")[-1]
        raise UserError(f"--topology {topology}: {reason}")
    return json.loads(done.stdout.splitlines()[-1])
