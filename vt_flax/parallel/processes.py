"""The processes of a run, one or many: how they start together and end together.

Where there are several, they find each other over `link.Link` first, and JAX is started
when all have come and agree on what they are to do. One process is the trivial case:
every function here is there for it, and does next to nothing.
"""

import contextlib
import dataclasses
import os
import platform
import socket
import sys
import traceback
from collections.abc import Iterator, Sequence
from typing import Any

from vt_flax.errors import UserError, device_memory_error, first_line
from vt_flax.parallel.link import Limits, Link
from vt_flax.parallel.relay import Relay


@dataclasses.dataclass(frozen=True)
class Place:
    """Which process this is.

    Attributes:
      index: its number.
      count: how many there are.
      coordinator: host and port of process 0; empty where there is but one.
      hosts: names of the machines by process, as far as they are known beforehand.
      local_device_ids: devices that are this process's; None for all of the machine.
    """

    index: int = 0
    count: int = 1
    coordinator: str = ""
    hosts: tuple[str, ...] = ()
    local_device_ids: tuple[int, ...] | None = None


_link: Link | None = None
_relay: Relay | None = None


def find_place(
    coordinator: str = "",
    count: int | None = None,
    index: int | None = None,
    hosts: Sequence[str] = (),
) -> Place:
    """Finds out which process of how many this is.

    Args:
      coordinator: HOST:PORT of process 0. If it is empty, the cluster is asked: Cloud
        TPU, Slurm, Open MPI and Kubernetes are known to JAX. A machine that is none of
        these is alone.
      count: number of processes; 1 does not ask the cluster.
      index: of this process.
      hosts: names of the machines, for messages.

    Raises:
      UserError: if something is missing or cannot be.
    """
    if count == 1 and not index:
        return Place()
    if coordinator or count is not None or index is not None:
        if not coordinator or count is None or index is None:
            raise UserError(
                "several processes need all of --coordinator HOST:PORT, --processes N "
                "and --process I (or none, where the cluster can be asked)"
            )
        place = Place(index, count, coordinator, tuple(hosts))
    else:
        from vt_flax.parallel.cluster import detect_cluster

        try:
            found = detect_cluster()
        # Metadata servers and environment variables fail in many ways.
        except Exception as error:
            raise UserError(
                f"the cluster cannot be asked for its processes ({first_line(error)}): "
                "give --coordinator, --processes and --process, or --processes 1"
            ) from error
        if found is None or found.count == 1:
            return Place()
        place = Place(
            found.index,
            found.count,
            found.coordinator,
            tuple(hosts or found.hosts),
            found.local_device_ids,
        )
    if not 0 <= place.index < place.count:
        raise UserError(
            f"--process {place.index}: must be at least 0, and under --processes "
            f"{place.count}"
        )
    _address(place)
    return place


def join(place: Place, start_seconds: float) -> None:
    """Waits until all processes have come. To be called before JAX is used.

    Raises:
      UserError: if one does not come in time, naming it.
    """
    global _link
    if place.count == 1:
        return
    _link = Link(
        place.index,
        place.count,
        _address(place),
        Limits(start=start_seconds),
        host=socket.gethostname(),
        hosts=place.hosts,
        end=_end_at_once,
    )
    gather("start", None, start_seconds)


def start_jax(place: Place, start_seconds: float) -> None:
    """Starts JAX over all processes, which have come."""
    if place.count == 1:
        return
    host, port = _address(place)
    # Slurm gives the last port to some jobs.
    beside = port + 1 if port < 65535 else port - 1
    jax_port = _free_port(beside) if place.index == 0 else 0
    jax_port = gather("port", jax_port)[0]
    _start_jax(place, (host, jax_port), start_seconds)


def _start_jax(place: Place, address: tuple[str, int], seconds: float) -> None:
    # Imported late, as everywhere here: commands that need no JAX are to start fast.
    import jax

    # Read where the backend is a CPU.
    jax.config.update("jax_cpu_collectives_implementation", "gloo")
    _keep_stdout()
    # It would take SIGTERM, for which there is `training.requests`.
    jax.config.update("jax_enable_preemption_service", False)
    port = address[1]
    if place.index:
        global _relay
        _relay = Relay(address)
        port = _relay.port
    # gRPC would look for this machine behind a web proxy, where one is set; JAX warns.
    os.environ["no_grpc_proxy"] = "127.0.0.1"
    jax.config.update("jax_check_proxy_envs", False)
    ids = place.local_device_ids
    jax.distributed.initialize(
        f"127.0.0.1:{port}",
        place.count,
        place.index,
        local_device_ids=list(ids) if ids is not None else None,
        cluster_detection_method="deactivate",
        initialization_timeout=int(seconds),
    )


def _keep_stdout() -> None:
    """Leaves standard output to Python alone.

    gloo writes there whom it is connected to, amid what a program may be reading.
    """
    sys.stdout.flush()
    own = os.dup(1)
    with open(os.devnull, "w") as nowhere:
        os.dup2(nowhere.fileno(), 1)
    sys.stdout = open(own, "w", buffering=1, encoding=sys.stdout.encoding)


def set_limits(silence: float, stall: float) -> None:
    """Sets how long a process may be silent, or get no further, in seconds."""
    if _link is not None:
        _link.set_limits(silence, stall)


def gather(name: str, value: Any, seconds: float | None = None) -> list[Any]:
    """Waits for all processes and returns what each brought: see `Link.gather`."""
    return [value] if _link is None else _link.gather(name, value, seconds)


def several() -> bool:
    """Tells whether there are several processes."""
    return _link is not None


def names(indices: Sequence[int]) -> str:
    """Returns `process 1 of 4 (host)`, for one or several of them."""
    return _link.names(indices)


def report(doing: str) -> None:
    """Says what this process is at, for those who wait for it.

    To be called by all processes in the same order: who has reported least is who the
    others wait for.
    """
    if _link is not None:
        _link.report(doing)


def banner() -> str:
    """Returns a line that names this process and the devices of the run."""
    import jax

    from vt_flax.parallel.mesh import name_devices

    devices, own = jax.devices(), jax.local_device_count()
    return (
        f"process {jax.process_index()} of {jax.process_count()} on "
        f"{platform.node()}: {name_devices(devices)}"
        + (f", {own} of them here" if own < len(devices) else "")
    )


def finish() -> None:
    """Ends the run where all is done. Does nothing for a single process.

    Raises:
      UserError: if another process did not get here.
    """
    global _link
    if _link is None:
        return
    import jax

    gather("end", None)
    jax.distributed.shutdown()
    link, _link = _link, None
    link.claim_the_last_word()
    link.leave()
    if _relay is not None:
        _relay.close()


def raise_if_lost(seconds: float = 10.0) -> None:
    """Waits a while for the news that another process is gone, after an error.

    A collective whose peer has died raises whatever its library makes of that, which is
    not to be taken for what it says.

    Raises:
      Lost: if it is.
    """
    if _link is not None:
        _link.wait_for_failure(seconds)


@contextlib.contextmanager
def failing_together() -> Iterator[None]:
    """Announces an error in its body to the other processes, which may wait for it.

    Raises:
      UserError: instead of JAX's error that a device is out of memory.
      Lost: instead of an error that comes from the loss of another process.
    """
    try:
        yield
    except UserError as error:
        if _link is not None and not error.everywhere:
            _link.announce(str(error), error.status)
        raise
    except KeyboardInterrupt:
        if _link is not None:
            _link.announce("interrupted", 130)
        raise
    except Exception as error:
        raise_if_lost()
        if memory_error := device_memory_error(error):
            if _link is not None:
                _link.announce(str(memory_error), memory_error.status)
            raise memory_error from error
        if _link is not None:
            # At once: to unwind may take the others, who wait elsewhere.
            traceback.print_exc()
            _link.announce(f"{type(error).__name__}: {first_line(error)}", 1)
            end(1)
        raise


def end(status: int) -> None:
    """Ends this process; what went wrong is told already, here and to the others."""
    if _link is None:
        sys.exit(status)
    _link.leave()
    # JAX would wait for the others at the interpreter's end.
    _exit(status)


def has_last_word() -> bool:
    """Tells whether the caller is the one to say why this process ends."""
    return _link is None or _link.claim_the_last_word()


def _end_at_once(line: str, status: int) -> None:
    """Ends this process from whatever thread notices that it cannot go on."""
    print(f"error: {line}", file=sys.stderr)
    _exit(status)


def _exit(status: int) -> None:
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)


def _address(place: Place) -> tuple[str, int]:
    host, _, port = place.coordinator.rpartition(":")
    if not host or not port.isdigit() or not 0 < int(port) < 65536:
        raise UserError(f"--coordinator {place.coordinator}: write HOST:PORT")
    return host, int(port)


def _free_port(wanted: int) -> int:
    """Returns a port on which JAX can listen: the one wanted, if it is free."""
    for port in (wanted, 0):
        with socket.socket() as probe, contextlib.suppress(OSError):
            probe.bind(("", port))
            return probe.getsockname()[1]
    raise UserError(f"process 0: no port is free, {wanted} neither")
