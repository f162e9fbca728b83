"""TPUs that are not there, to compile for."""

import importlib.util
from collections.abc import Sequence

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
