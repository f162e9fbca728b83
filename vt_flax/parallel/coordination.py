"""The key-value store of JAX's coordination service.

JAX has no public access to it, so this module imports from `jax._src`.
"""

import os

import jax
from jax._src import distributed

from vt_flax.parallel.cluster import Cluster

# JAX aborts all processes if one misses its heartbeats; `watchdog` names it instead.
NEVER_SECONDS = 10**6


class Store:
    """Starts JAX over all processes, and accesses the key-value store of process 0.

    If process 0 does not answer, methods raise `JaxRuntimeError`.

    Args:
      cluster: this process and the address of process 0.
      seconds: time to wait for process 0.
    """

    def __init__(self, cluster: Cluster, seconds: float):
        jax.config.update("jax_cpu_collectives_implementation", "gloo")
        # It would handle SIGTERM, as `training.requests` does.
        jax.config.update("jax_enable_preemption_service", False)
        # Otherwise gRPC uses a configured web proxy for the other machines.
        os.environ["no_grpc_proxy"] = cluster.address[0]
        jax.config.update("jax_check_proxy_envs", False)
        jax.distributed.initialize(
            cluster.coordinator,
            cluster.count,
            cluster.index,
            local_device_ids=cluster.local_device_ids,
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
        entries = self._client.key_value_dir_get(folder)
        return {key.rpartition("/")[2]: value for key, value in entries}
