"""The processes of a run, one or many: how they start together and end together.

Where there are several, they find each other over `link.Link` first, and JAX is started
when all have come and agree on what they are to do. One process is the trivial case:
every function here is there for it, and does next to nothing.
"""

import contextlib
import dataclasses
import functools
import hashlib
import json
import os
import pathlib
import platform
import secrets
import socket
import sys
import time
import traceback
from collections.abc import Iterator, Mapping, Sequence
from importlib import metadata
from typing import Any

from vt_flax.errors import UserError, differences, first_line
from vt_flax.parallel.link import Limits, Link
from vt_flax.parallel.relay import Relay
from vt_flax.version import __version__

# Seconds that a network file system may take to show a file to another machine.
FILE_SECONDS = 15.0


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
    host, port = _address(place)
    _link = Link(
        place.index,
        place.count,
        (host, port),
        Limits(start=start_seconds),
        host=socket.gethostname(),
        hosts=place.hosts,
        end=_end_at_once,
    )
    everyone = gather("start", versions())
    index = _other(everyone)
    if index is not None:
        lines = differences(everyone[0], everyone[index])
        raise UserError(
            f"{_link.names([index])} has other code than {_link.names([0])}: "
            f"{'; '.join(lines)}: install the same on all"
        )
    jax_port = _free_port(port + 1) if place.index == 0 else 0
    jax_port = gather("port", jax_port)[0]
    _start_jax(place, (host, jax_port), start_seconds)


def _start_jax(place: Place, address: tuple[str, int], seconds: float) -> None:
    # Imported late, as everywhere here: commands that need no JAX are to start fast.
    import jax

    # Read where the backend is a CPU.
    jax.config.update("jax_cpu_collectives_implementation", "gloo")
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


def set_limits(silence: float, stall: float) -> None:
    """Sets how long a process may be silent, or get no further, in seconds."""
    if _link is not None:
        _link.set_limits(silence, stall)


def gather(name: str, value: Any, seconds: float | None = None) -> list[Any]:
    """Waits for all processes and returns what each brought: see `Link.gather`."""
    return [value] if _link is None else _link.gather(name, value, seconds)


def report(doing: str) -> None:
    """Says what this process is at, for those who wait for it.

    To be called by all processes in the same order: who has reported least is who the
    others wait for.
    """
    if _link is not None:
        _link.report(doing)


def check_agreement(command: str, config: Mapping[str, Any]) -> None:
    """Checks that all processes were started to do the same.

    Args:
      command: the front door's name.
      config: the resolved configuration, as JSON can write it.

    Raises:
      UserError: everywhere alike, naming who differs in what.
    """
    if _link is None:
        return
    text = json.dumps(config, sort_keys=True)
    digest = hashlib.sha256(text.encode()).hexdigest()
    everyone = gather("agreement", {"command": command, "configuration": digest})
    index = _other(everyone)
    if index is None:
        return
    who, first = _link.names([index]), _link.names([0])
    if everyone[index]["command"] != command:
        raise UserError(
            f"{who} runs {everyone[index]['command']}, {first} "
            f"{everyone[0]['command']}: start the same command on all"
        )
    # Only what is in doubt is sent: on a large pod it would be much.
    configs = gather("configuration", config if _link.index in (0, index) else 0)
    lines = differences(configs[0], configs[index])
    raise UserError(
        f"{who} has another configuration than {first}: {'; '.join(lines[:3])}"
        f"{'; ...' if len(lines) > 3 else ''}"
    )


def _other(everyone: Sequence[Any]) -> int | None:
    """Returns the first process that brought something else than process 0."""
    return next((i for i, other in enumerate(everyone) if other != everyone[0]), None)


def check_shared(folder: pathlib.Path) -> None:
    """Checks that all processes see one and the same folder, and makes it.

    Raises:
      UserError: everywhere alike, if process 0 cannot write there or another does not
        see what it wrote; nothing is left behind.
    """
    if _link is None:
        return
    with contextlib.ExitStack() as traces:
        told = {"token": f".seen-{secrets.token_hex(8)}", "problem": ""}
        if _link.index == 0:
            try:
                _leave_token(folder, told["token"], traces)
            except OSError as error:
                told["problem"] = error.strerror or str(error)
        told = gather("workdir", told)[0]
        if told["problem"]:
            raise UserError(f"--workdir {folder}: {told['problem']}")
        seen = _appears(folder / told["token"], FILE_SECONDS)
        blind = [i for i, s in enumerate(gather("workdir seen", seen)) if not s]
        if blind:
            raise UserError(
                f"{_link.names(blind)} does not see the --workdir {folder} of "
                f"{_link.names([0])}: name a folder that all machines share"
            )


def _leave_token(folder: pathlib.Path, name: str, traces: contextlib.ExitStack) -> None:
    """Writes a file, which goes again, with the folders that are empty without it."""
    missing = [p for p in (folder, *folder.parents) if not p.exists()]
    folder.mkdir(parents=True, exist_ok=True)
    for made in reversed(missing):
        traces.callback(_remove_if_empty, made)
    (folder / name).touch()
    traces.callback((folder / name).unlink)


def _remove_if_empty(folder: pathlib.Path) -> None:
    with contextlib.suppress(OSError):
        folder.rmdir()


def _appears(file: pathlib.Path, seconds: float) -> bool:
    limit = time.monotonic() + seconds
    while not file.exists():
        if time.monotonic() > limit:
            return False
        time.sleep(0.1)
    return True


@functools.cache
def versions() -> dict[str, str]:
    """Returns what decides how a configuration is run, by name."""
    digest = hashlib.sha256()
    root = pathlib.Path(__file__).parents[1]
    for file in sorted(root.rglob("*.py")):
        digest.update(file.relative_to(root).as_posix().encode())
        digest.update(file.read_bytes())
    code = {"vt_flax": f"{__version__} (sources {digest.hexdigest()[:12]})"}
    libraries = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "tensorflow")
    return code | {name: metadata.version(name) for name in libraries}


def banner() -> str:
    """Returns a line that says which process this is and what it has."""
    import jax

    devices, own = jax.devices(), jax.local_device_count()
    return (
        f"process {jax.process_index()} of {jax.process_count()} on "
        f"{platform.node()}: {len(devices)} {devices[0].device_kind} "
        f"device{'s' if len(devices) > 1 else ''}"
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
    """Tells the others at once of an error in here, which they may be waiting for.

    Raises:
      Lost: instead of an error that comes of a peer that is gone.
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
    print(f"error: {line}: run the same command again to go on", file=sys.stderr)
    _exit(status)


def _exit(status: int) -> None:
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)


def _address(place: Place) -> tuple[str, int]:
    host, _, port = place.coordinator.rpartition(":")
    if not host or not port.isdigit() or not 0 < int(port) < 65535:
        raise UserError(f"--coordinator {place.coordinator}: write HOST:PORT")
    return host, int(port)


def _free_port(wanted: int) -> int:
    """Returns a port on which JAX can listen: the one wanted, if it is free."""
    for port in (wanted, 0):
        with socket.socket() as probe, contextlib.suppress(OSError):
            probe.bind(("", port))
            return probe.getsockname()[1]
    raise UserError(f"process 0: no port is free, {wanted} neither")
