"""TPUs that are not there, to compile for."""

import importlib.util
import json
import os
import re
import signal
import subprocess
import sys
import time
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
# How libtpu is to take some topologies: both cores of a v4 are one device, as they are
# where there are v4s; and hosts of a single chip.
MEGACORE = {"chip_config_name": "megacore"}
ONE_CHIP = {"chips_per_host_bounds": (1, 1, 1)}
# Seconds between two lines that tell how long something has been compiled.
TELL_SECONDS = 60


def has_tpu_compiler() -> bool:
    """Tells whether libtpu is installed (`pip install "jax[tpu]"`)."""
    return importlib.util.find_spec("libtpu") is not None


def tpu_devices(topology: str) -> Sequence[jax.Device]:
    """Returns the chips of a topology such as `v5e:2x2`, to compile for.

    Raises:
      UserError: if libtpu knows no such topology.
    """
    chip, _, shape = topology.partition(":")
    options = MEGACORE if chip == "v4" else {}
    if re.fullmatch(r"1(x1)*", shape):
        options = options | ONE_CHIP
    try:
        return topologies.get_topology_desc(
            platform="tpu", topology_name=topology, **options
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
    _tell(
        f"compiling {programs} program{'s' if programs > 1 else ''} for {topology}: "
        f"{'each ' if programs > 1 else ''}may take minutes"
    )
    begin = time.monotonic()
    process = subprocess.Popen(
        [sys.executable, "-m", module],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env=os.environ | ENVIRONMENT,
        text=True,
    )
    with process:
        given = json.dumps(request)
        try:
            while True:
                try:
                    answer, complaint = process.communicate(given, TELL_SECONDS)
                    break
                except subprocess.TimeoutExpired:
                    given = None
                    _tell(f"{topology}: {time.monotonic() - begin:.0f} s so far")
        finally:
            # An interrupted plan leaves no compiler behind.
            process.kill()
    if process.returncode:
        # A reason of our own says the place itself.
        place = f"--topology {topology}: "
        reason = _reason(process, complaint).removeprefix(place)
        raise UserError(place + reason)
    _tell(f"{topology}: {time.monotonic() - begin:.0f} s")
    return json.loads(answer.splitlines()[-1])


def _reason(process: subprocess.Popen, complaint: str) -> str:
    """Returns in a line why a compiling process has failed."""
    lines = complaint.strip().splitlines()
    if process.returncode >= 0:
        return lines[-1] if lines else f"status {process.returncode}"
    name = signal.Signals(-process.returncode).name
    if name == "SIGKILL":
        return f"the TPU compiler was killed ({name}): this machine may lack memory"
    # What libraries say before they abort; the rest is a stack of addresses.
    said = [line for line in lines if re.match(r"F\d{4} |.*Check failed", line)]
    told = f": {said[0][:300]}" if said else ""
    return f"the TPU compiler has crashed ({name}){told}"


def _tell(line: str) -> None:
    print(line, file=sys.stderr, flush=True)
