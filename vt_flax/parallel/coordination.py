"""JAX's coordination service, and the clusters that JAX detects.

This is the only module that imports from `jax._src`: JAX has no public access to the
key-value store of a run, nor to what it knows of a cluster.
"""

import contextlib
import os
import sys
from collections.abc import Iterator, Sequence

import jax
from jax._src import distributed
from jax._src.clusters import ClusterEnv

# JAX ends all processes if one misses its heartbeats; `watchdog` also says which.
NEVER_SECONDS = 10**6


def detect_cluster(seconds: int = 60) -> tuple:
    """Returns the arguments of `Place` from the cluster; none outside of a cluster.

    Args:
      seconds: time to wait for the address of process 0.
    """
    address, count, index, ids = ClusterEnv.auto_detect_unset_distributed_params(
        None, None, None, None, None, seconds
    )
    if address is None or count is None or index is None:
        return ()
    hosts: tuple[str, ...] = ()
    # Of Cloud TPUs, if there is a single slice.
    for kind in ClusterEnv._cluster_types:
        with contextlib.suppress(Exception):
            if kind.is_env_present():
                hosts = tuple(kind._get_worker_list_in_slice())
    return index, count, address, hosts, tuple(ids) if ids else None


@contextlib.contextmanager
def without_gloo_on_stdout() -> Iterator[None]:
    """Leaves stdout to Python, since gloo prints there which peers it is connected to.

    On CPUs it does so in a collective that is the first of its devices.
    """
    before = sys.stdout
    before.flush()
    sys.stdout = open(os.dup(1), "w", buffering=1, encoding=before.encoding)
    with open(os.devnull, "w") as nowhere:
        os.dup2(nowhere.fileno(), 1)
    try:
        yield
    finally:
        os.dup2(sys.stdout.fileno(), 1)
        sys.stdout.close()
        sys.stdout = before


class Store:
    """The key-value store that process 0 serves. Starts JAX over all processes.

    If process 0 does not answer, methods raise `JaxRuntimeError`.

    Args:
      coordinator: HOST:PORT of process 0.
      count: number of processes.
      index: this process.
      local_device_ids: devices of this process; None for all of the machine.
      seconds: time to wait for process 0.
    """

    def __init__(
        self,
        coordinator: str,
        count: int,
        index: int,
        local_device_ids: Sequence[int] | None,
        seconds: float,
    ):
        jax.config.update("jax_cpu_collectives_implementation", "gloo")
        # It would handle SIGTERM, as `training.requests` does.
        jax.config.update("jax_enable_preemption_service", False)
        # gRPC would ask the web proxy, where there is one, for the other machines.
        os.environ["no_grpc_proxy"] = coordinator.rpartition(":")[0]
        jax.config.update("jax_check_proxy_envs", False)
        jax.distributed.initialize(
            coordinator,
            count,
            index,
            local_device_ids=local_device_ids,
            cluster_detection_method="deactivate",
            initialization_timeout=int(seconds),
            heartbeat_timeout_seconds=NEVER_SECONDS,
        )
        self._client = distributed.global_state.client

    def set(self, key: str, value: str, overwrite: bool = False) -> None:
        """Sets a key; without `overwrite`, the first value remains."""
        try:
            self._client.key_value_set(key, value, allow_overwrite=overwrite)
        except jax.errors.JaxRuntimeError as error:
            if "ALREADY_EXISTS" not in str(error):
                raise

    def get(self, key: str, seconds: float) -> str | None:
        """Returns a key's value, or None if it is not set within some seconds."""
        try:
            return self._client.blocking_key_value_get(key, int(1000 * seconds))
        except jax.errors.JaxRuntimeError as error:
            if "DEADLINE_EXCEEDED" not in str(error):
                raise
        return None

    def list(self, folder: str) -> dict[str, str]:
        """Returns the values in a folder of keys, by the rest of their names."""
        found = self._client.key_value_dir_get(folder)
        return {key.rpartition("/")[2]: value for key, value in found}
