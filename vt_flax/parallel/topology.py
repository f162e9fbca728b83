"""TPU topologies to compile for, without TPUs."""

import importlib.util
import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from importlib import metadata
from typing import Any

import jax

from vt_flax.errors import UserError, first_line
from vt_flax.experimental import topologies

# Environment of a process that compiles for TPUs without having one, set before it
# starts JAX.
ENVIRONMENT = {
    "JAX_PLATFORMS": "cpu",
    "TPU_SKIP_MDS_QUERY": "1",
    # Else libtpu allows a machine one process, which may be training.
    "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
    # JAX cannot read such programs back from its cache.
    "JAX_ENABLE_COMPILATION_CACHE": "false",
}
# Options of libtpu for some topologies: both cores of a v4 are one device, as on real
# v4s; and hosts of a single chip.
MEGACORE = {"chip_config_name": "megacore"}
ONE_CHIP = {"chips_per_host_bounds": (1, 1, 1)}
# Chips for which older TPU compilers are slow or crash, and the first libtpu that is
# known to compile for them.
NEW_CHIPS = ("v6e", "tpu7x")
NEW_LIBTPU = "0.0.50"
# Seconds between two lines of progress.
TELL_SECONDS = 60


def has_tpu_compiler() -> bool:
    """Returns whether libtpu is installed (`pip install "jax[tpu]"`)."""
    return importlib.util.find_spec("libtpu") is not None


def libtpu_version() -> str:
    """Returns the version of libtpu; empty where it is not installed as such."""
    try:
        return metadata.version("libtpu")
    except metadata.PackageNotFoundError:
        return ""


def old_compiler(topology: str) -> str:
    """Returns a line on what to install if libtpu is too old for a chip, or nothing."""
    chip, version = topology.partition(":")[0], libtpu_version()
    numbers, needed = (
        list(map(int, re.findall(r"\d+", text)[:3])) for text in (version, NEW_LIBTPU)
    )
    if chip not in NEW_CHIPS or not version or numbers >= needed:
        return ""
    return (
        f"libtpu {version} may be slow or crash for {chip}: install {NEW_LIBTPU} or "
        'newer, by pip install -U "jax[tpu]" on Python 3.12 or newer'
    )


def tpu_devices(topology: str) -> Sequence[jax.Device]:
    """Returns the devices of a topology such as `v5e:2x2`, to compile for.

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
    """Compiles for TPUs in a process of its own, and returns that process's result.

    The compiler needs its own start of JAX, and may crash.

    Args:
      module: run as a program that reads the request and prints its result, as JSON.
      request: what to compile, with a `topology`.
      programs: number of programs.

    Raises:
      UserError: if libtpu is missing, or the process fails.
    """
    if not has_tpu_compiler():
        raise UserError('--topology needs libtpu: pip install "jax[tpu]"')
    topology = request["topology"]
    if advice := old_compiler(topology):
        _tell(advice)
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
