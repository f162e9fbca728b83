"""What a cluster says of a run's processes.

JAX asks for it inside `jax.distributed.initialize` alone, which is too late for us:
hence the one import of a private module of JAX.
"""

import contextlib
import dataclasses

from jax._src.clusters import ClusterEnv


@dataclasses.dataclass(frozen=True)
class Cluster:
    """What a cluster says of its processes: see `processes.Place`."""

    index: int
    count: int
    coordinator: str
    hosts: tuple[str, ...]
    local_device_ids: tuple[int, ...] | None


def detect_cluster(seconds: int = 60) -> Cluster | None:
    """Asks the cluster that JAX recognises, if any.

    Args:
      seconds: to wait for the name of process 0's machine to be known.
    """
    address, count, index, ids = ClusterEnv.auto_detect_unset_distributed_params(
        None, None, None, None, None, seconds
    )
    if address is None or count is None or index is None:
        return None
    hosts: tuple[str, ...] = ()
    # Of Cloud TPUs the machines are known beforehand, if there is one slice.
    for kind in ClusterEnv._cluster_types:
        with contextlib.suppress(Exception):
            if kind.is_env_present() and hasattr(kind, "_get_worker_list_in_slice"):
                found = tuple(kind._get_worker_list_in_slice())
                hosts = found if len(found) == count else ()
                break
    return Cluster(index, count, address, hosts, tuple(ids) if ids else None)
