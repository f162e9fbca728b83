"""Index and number of a run's processes, from options or as JAX detects the cluster."""

import dataclasses

from vt_flax.errors import UserError, first_line

# Seconds to wait for the address of process 0.
DETECTION_SECONDS = 60


@dataclasses.dataclass(frozen=True)
class Cluster:
    """The processes of a run, and which of them this one is.

    Attributes:
      index: index of this process.
      count: number of processes.
      coordinator: HOST:PORT of process 0; empty for a single process.
      local_device_ids: devices of this process; None for all of the machine.
    """

    index: int = 0
    count: int = 1
    coordinator: str = ""
    local_device_ids: tuple[int, ...] | None = None

    @property
    def address(self) -> tuple[str, int]:
        """Host and port of process 0."""
        host, _, port = self.coordinator.rpartition(":")
        if not host or not port.isdigit() or not 0 < int(port) < 65536:
            raise UserError(f"--coordinator {self.coordinator}: write HOST:PORT")
        return host, int(port)


def find_cluster(
    coordinator: str = "", count: int | None = None, index: int | None = None
) -> Cluster:
    """Returns the cluster that options describe, or the one that JAX detects.

    JAX detects Cloud TPU, Slurm, Open MPI and Kubernetes. Elsewhere a run has a single
    process.

    Args:
      coordinator: HOST:PORT of process 0.
      count: number of processes; 1 skips the detection.
      index: index of this process.

    Raises:
      UserError: if an option is missing or invalid, or the detection fails.
    """
    if count == 1 and not index:
        return Cluster()
    if not coordinator and count is None and index is None:
        cluster = _detect()
    elif coordinator and count is not None and index is not None:
        cluster = Cluster(index, count, coordinator)
    else:
        raise UserError(
            "several processes need all of --coordinator HOST:PORT, --processes N "
            "and --process I (or none, where JAX detects the cluster)"
        )
    if cluster.count == 1:
        return Cluster()
    if not 0 <= cluster.index < cluster.count:
        raise UserError(
            f"--process {cluster.index}: must be at least 0, and under --processes "
            f"{cluster.count}"
        )
    cluster.address  # noqa: B018 - raises if it is invalid
    return cluster


def _detect() -> Cluster:
    # Imported here, since some commands run without JAX. It has no public detection.
    from jax._src.clusters import ClusterEnv

    try:
        address, count, index, ids = ClusterEnv.auto_detect_unset_distributed_params(
            None, None, None, None, None, DETECTION_SECONDS
        )
    # Metadata servers and environment variables fail in many ways.
    except Exception as error:
        raise UserError(
            f"the cluster cannot be detected ({first_line(error)}): "
            "give --coordinator, --processes and --process, or --processes 1"
        ) from error
    if address is None or count is None or index is None:
        return Cluster()
    return Cluster(index, count, address, tuple(ids) if ids else None)
