"""The TPU compiler (libtpu), which compiles for TPUs that are not there."""

import importlib.util
import re
from collections.abc import Sequence
from importlib import metadata
from typing import TYPE_CHECKING

from vt_flax.errors import UserError, first_line

if TYPE_CHECKING:
    import jax

# Environment of a process that compiles for TPUs, to be set before JAX is imported.
ENVIRONMENT = {
    "JAX_PLATFORMS": "cpu",
    "TPU_SKIP_MDS_QUERY": "1",
    # Otherwise libtpu serves one process of a machine, which may be training.
    "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
    # JAX cannot read such programs back from its cache.
    "JAX_ENABLE_COMPILATION_CACHE": "false",
    # Otherwise libtpu logs that this machine has no TPU.
    "TPU_ACCELERATOR_TYPE": "v5litepod-4",
    "TPU_WORKER_HOSTNAMES": "localhost",
    "TPU_MIN_LOG_LEVEL": "3",
}
# libtpu's options for v4, so that both cores are one device as on real chips, and for
# hosts with a single chip.
MEGACORE = {"chip_config_name": "megacore"}
ONE_CHIP = {"chips_per_host_bounds": (1, 1, 1)}
# Chips for which older compilers are slow or crash, and the first good libtpu.
NEW_CHIPS = ("v6e", "tpu7x")
NEW_LIBTPU = "0.0.50"


def has_tpu_compiler() -> bool:
    """Returns whether libtpu is installed (`pip install "jax[tpu]"`)."""
    return importlib.util.find_spec("libtpu") is not None


def libtpu_version() -> str:
    """Returns the version of libtpu, or an empty string if it is unknown."""
    try:
        return metadata.version("libtpu")
    except metadata.PackageNotFoundError:
        return ""


def old_compiler(topology: str) -> str:
    """Returns a warning if libtpu is too old for a chip, otherwise an empty string."""
    chip, version = topology.partition(":")[0], libtpu_version()
    installed, needed = (
        list(map(int, re.findall(r"\d+", text)[:3])) for text in (version, NEW_LIBTPU)
    )
    if chip not in NEW_CHIPS or not version or installed >= needed:
        return ""
    return (
        f"libtpu {version} may be slow or crash for {chip}: install {NEW_LIBTPU} or "
        'newer, by pip install -U "jax[tpu]" on Python 3.12 or newer'
    )


def tpu_devices(topology: str) -> Sequence["jax.Device"]:
    """Returns the devices of a topology such as `v5e:2x2`, to compile for.

    Raises:
      UserError: if libtpu is missing, or does not know the topology.
    """
    from vt_flax.experimental import topologies

    if not has_tpu_compiler():
        raise UserError('--topology needs libtpu: pip install "jax[tpu]"')
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
