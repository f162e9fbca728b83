"""Compiling for TPU topologies without having TPUs."""

import importlib.util
import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from importlib import metadata
from typing import Any

import jax

from vt_flax.errors import UserError, first_line
from vt_flax.experimental import topologies

# Environment of a process that compiles for TPUs, to be set before JAX is imported.
ENVIRONMENT = {
    "JAX_PLATFORMS": "cpu",
    "TPU_SKIP_MDS_QUERY": "1",
    # Otherwise libtpu serves one process of a machine, which may be training.
    "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
    # JAX cannot read such programs back from its cache.
    "JAX_ENABLE_COMPILATION_CACHE": "false",
}
# libtpu's options for v4, so that both cores are one device as on real chips, and for
# hosts with a single chip.
MEGACORE = {"chip_config_name": "megacore"}
ONE_CHIP = {"chips_per_host_bounds": (1, 1, 1)}
# Chips for which older compilers are slow or crash, and the first good libtpu.
NEW_CHIPS = ("v6e", "tpu7x")
NEW_LIBTPU = "0.0.50"
# Seconds between two progress lines.
PROGRESS_SECONDS = 60


def has_tpu_compiler() -> bool:
    """Returns whether libtpu is installed (`pip install "jax[tpu]"`)."""
    return importlib.util.find_spec("libtpu") is not None


def libtpu_version() -> str:
    """Returns the version of libtpu, or an empty string if it is not known."""
    try:
        return metadata.version("libtpu")
    except metadata.PackageNotFoundError:
        return ""


def old_compiler(topology: str) -> str:
    """Returns a warning if libtpu is too old for a chip, otherwise an empty string."""
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
      UserError: if libtpu does not know the topology.
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


def compile_apart(
    arguments: Sequence[str], request: dict[str, Any], programs: int
) -> Any:
    """Compiles for TPUs in a child process, since the compiler may crash.

    Args:
      arguments: of Python, to run a program that calls `read_request` and prints its
        result as JSON.
      request: the program's input, with a `topology`.
      programs: number of programs to compile, for the progress line.

    Raises:
      UserError: if libtpu is missing, or the process fails.
    """
    if not has_tpu_compiler():
        raise UserError('--topology needs libtpu: pip install "jax[tpu]"')
    topology = request["topology"]
    if warning := old_compiler(topology):
        _print(warning)
    number = f"{programs} programs" if programs > 1 else "1 program"
    each = "each may" if programs > 1 else "may"
    _print(f"compiling {number} for {topology}: {each} take minutes")
    begin = time.monotonic()
    process = subprocess.Popen(
        [sys.executable, *arguments],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env=os.environ | ENVIRONMENT,
        text=True,
    )
    text: str | None = json.dumps(request)
    with process:
        try:
            while True:
                try:
                    out, err = process.communicate(text, PROGRESS_SECONDS)
                    break
                except subprocess.TimeoutExpired:
                    text = None
                    _print(f"{topology}: {time.monotonic() - begin:.0f} s so far")
        finally:
            # After an interruption, too.
            process.kill()
    if process.returncode:
        prefix = f"--topology {topology}: "
        reason = _reason(process.returncode, err.strip().splitlines())
        raise UserError(prefix + reason.removeprefix(prefix))
    _print(f"{topology}: {time.monotonic() - begin:.0f} s")
    return json.loads(out.splitlines()[-1])


def read_request() -> Any:
    """Returns the request on stdin, and ends this process when its parent ends.

    A compiler would otherwise go on for minutes after its parent was killed.
    """
    parent = os.getppid()

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(1.0)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()
    return json.load(sys.stdin)


def _reason(status: int, lines: list[str]) -> str:
    """Returns why a compiling process failed, from its status and stderr."""
    if status >= 0:
        return lines[-1] if lines else f"status {status}"
    if status == -signal.SIGKILL:
        return "the TPU compiler was killed (SIGKILL): this machine may lack memory"
    # A failed check is printed before the stack trace.
    failed = [f": {line[:300]}" for line in lines if "Check failed" in line]
    name = signal.Signals(-status).name
    return f"the TPU compiler has crashed ({name})" + "".join(failed[:1])


def _print(line: str) -> None:
    print(line, file=sys.stderr, flush=True)
