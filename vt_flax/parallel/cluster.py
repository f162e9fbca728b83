"""Index, number and coordinator of a run's processes, from options or the cluster."""

import dataclasses
from collections.abc import Sequence

from vt_flax.errors import UserError, first_line


@dataclasses.dataclass(frozen=True)
class Place:
    """Index of this process among the processes of a run.

    Attributes:
      index: number of this process.
      count: number of processes.
      coordinator: HOST:PORT of process 0; empty for a single process.
      hosts: names of the machines by process, empty if they are not known.
      local_device_ids: devices of this process; None for all of the machine.
    """

    index: int = 0
    count: int = 1
    coordinator: str = ""
    hosts: tuple[str, ...] = ()
    local_device_ids: tuple[int, ...] | None = None

    @property
    def address(self) -> tuple[str, int]:
        """Host and port of process 0."""
        host, _, port = self.coordinator.rpartition(":")
        if not host or not port.isdigit() or not 0 < int(port) < 65536:
            raise UserError(f"--coordinator {self.coordinator}: write HOST:PORT")
        return host, int(port)


def find_place(
    coordinator: str = "",
    count: int | None = None,
    index: int | None = None,
    hosts: Sequence[str] = (),
) -> Place:
    """Returns the place of this process, from options or from the cluster.

    Without arguments the cluster is asked, as JAX detects it: Cloud TPU, Slurm, Open
    MPI or Kubernetes. A machine outside of a cluster runs a single process.

    Args:
      coordinator: HOST:PORT of process 0.
      count: number of processes; 1 does not ask the cluster.
      index: this process.
      hosts: names of the machines, for messages.

    Raises:
      UserError: if an argument is missing or invalid, or the cluster does not answer.
    """
    if count == 1 and not index:
        return Place()
    if coordinator or count is not None or index is not None:
        if not coordinator or count is None or index is None:
            raise UserError(
                "several processes need all of --coordinator HOST:PORT, --processes N "
                "and --process I (or none, where the cluster can be asked)"
            )
        place = Place(index, count, coordinator)
    else:
        # It imports JAX, without which some commands start.
        from vt_flax.parallel.coordination import detect_cluster

        try:
            place = Place(*detect_cluster())
        # Metadata servers and environment variables fail in many ways.
        except Exception as error:
            raise UserError(
                f"the cluster cannot be asked for its processes ({first_line(error)}): "
                "give --coordinator, --processes and --process, or --processes 1"
            ) from error
        if place.count == 1:
            return Place()
    if not 0 <= place.index < place.count:
        raise UserError(
            f"--process {place.index}: must be at least 0, and under --processes "
            f"{place.count}"
        )
    place.address  # noqa: B018 - raises if it is invalid
    known = tuple(hosts) or place.hosts
    return dataclasses.replace(
        place, hosts=known if len(known) == place.count else ("",) * place.count
    )
