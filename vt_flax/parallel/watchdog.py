"""Notices a process that has ended or hangs, and ends all processes of a run.

Each process publishes heartbeats and its progress in the key-value store of JAX's
coordination service, where process 0 reads them. The reason why a run fails is a key
that all processes read. JAX has no public access to the store, so this module imports
from `jax._src`.
"""

import contextlib
import ctypes
import json
import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from typing import NamedTuple, NoReturn

import jax
from jax._src import distributed

from vt_flax.parallel.cluster import LOST, Cluster, process_names

HEARTBEAT_SECONDS = 1.0
# Time for a process that fails to end by itself.
GRACE_SECONDS = 10.0
# Process 0 ends last, after this time: JAX aborts the others where it is gone.
EXIT_SECONDS = 4.0
ADVICE = "run the same command again to go on"
# JAX aborts all processes if one misses its heartbeats; the watchdog names it instead.
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


class _Progress(NamedTuple):
    """The progress of a process; `seconds` makes each message a new heartbeat.

    Attributes:
      reports: number of reports.
      seconds: time since the last one.
      doing: what the process does since then.
    """

    reports: int = 0
    seconds: float = 0.0
    doing: str = "starting"


class Watchdog:
    """Threads that publish this process's heartbeats, and check the other processes.

    Args:
      index: index of this process.
      hosts: names of the machines by process.
      store: the key-value store.

    Attributes:
      heartbeat_timeout: seconds without a heartbeat after which a process is dead.
      progress_timeout: seconds without progress after which a process hangs.
      closed: to be set when the run is over.
    """

    def __init__(self, index: int, hosts: Sequence[str], store: Store):
        self.index, self.hosts, self.store = index, hosts, store
        self.heartbeat_timeout, self.progress_timeout = 30.0, 900.0
        self.closed, self._failed = threading.Event(), threading.Event()
        self._reports, self._doing = 0, "starting"
        self._reported = now = time.monotonic()
        # The reason if the store cannot be reached.
        self._failure = f"{process_names([0], hosts)} is gone: {ADVICE}", LOST
        self._published = now
        self._progress = [_Progress()] * len(hosts)
        self._heartbeats = [now] * len(hosts)
        self._exit_lock = threading.Lock()
        loops = (self._publish, self._check)
        self._threads = [threading.Thread(target=x, daemon=True) for x in loops]
        for thread in self._threads:
            thread.start()

    def handle_aborts(self, process_0: tuple[str, int]) -> None:
        """Names process 0 if this process aborts because process 0 is dead.

        JAX aborts as soon as its connection to process 0 breaks, often before the store
        raises. Python's own signal handlers would only run after the abort.

        Args:
          process_0: host and port.
        """

        @ctypes.CFUNCTYPE(None, ctypes.c_int)
        def handle(_: int) -> None:
            time.sleep(HEARTBEAT_SECONDS / 2)  # for a failure that is being printed
            try:
                socket.create_connection(process_0, HEARTBEAT_SECONDS).close()
            except OSError:
                if not self.closed.is_set():
                    self._exit_with(*self._failure)
            set_handler(signal.SIGABRT, signal.SIG_DFL)
            os.abort()

        self._handler = handle  # keeps it alive
        set_handler = ctypes.CDLL(None).signal
        set_handler(signal.SIGABRT, handle)

    def join(self) -> None:
        """Waits for the threads to end, when the run is over and JAX is shut down.

        A thread that waits for JAX at the interpreter's end would crash it.
        """
        for thread in self._threads:
            thread.join()

    def report(self, doing: str) -> None:
        """Records progress: what this process does next."""
        self._reports, self._doing = self._reports + 1, doing
        self._reported = time.monotonic()

    def fail(self, line: str, status: int = LOST, author: int = -1) -> None:
        """Ends all processes, with the first reason that is given.

        Args:
          line: the reason.
          status: exit status.
          author: index of the process that fails, which has time to end by itself.
        """
        if author == self.index:
            self._failure = line, status
        with self._exit_if_process_0_is_gone():
            self.store.set("failure", json.dumps([line, status, author]))

    def wait_for_failure(self) -> None:
        """Waits as long as it takes to notice a dead process, which ends this one.

        Returns if no process is dead.
        """
        if self._failed.wait(self.heartbeat_timeout + 3 * HEARTBEAT_SECONDS):
            threading.Event().wait()  # a thread of this watchdog ends the process

    def exit(self, status: int) -> NoReturn:
        """Ends this process at once, but process 0 after the others."""
        sys.stdout.flush()
        sys.stderr.flush()
        if self.index == 0:
            time.sleep(EXIT_SECONDS)
        os._exit(status)

    def _publish(self) -> None:
        """Publishes heartbeats and progress; blocks while process 0 does not answer."""
        with self._exit_if_process_0_is_gone():
            while not self.closed.is_set():
                seconds = time.monotonic() - self._reported
                value = json.dumps([self._reports, seconds, self._doing])
                self.store.set(f"progress/{self.index}", value, overwrite=True)
                self._published = time.monotonic()
                self.closed.wait(HEARTBEAT_SECONDS)

    def _check(self) -> None:
        """Checks all processes on process 0, and process 0 on the others."""
        with self._exit_if_process_0_is_gone():
            while not self.closed.is_set():
                if failure := self.store.get("failure", HEARTBEAT_SECONDS):
                    self._exit_with(*json.loads(failure))
                if self.index == 0:
                    self._check_peers(time.monotonic())
                elif time.monotonic() - self._published > self.heartbeat_timeout:
                    self._exit_with(self._no_heartbeat([0]), LOST)

    def _check_peers(self, now: float) -> None:
        progress, heartbeats = self._progress, self._heartbeats
        for index, value in self.store.list("progress").items():
            i, latest = int(index), _Progress(*json.loads(value))
            if latest != progress[i]:
                progress[i], heartbeats[i] = latest, now
        oldest = now - self.heartbeat_timeout
        if dead := [i for i, heard in enumerate(heartbeats) if heard < oldest]:
            last = f" (last at: {progress[dead[0]].doing})"
            self.fail(self._no_heartbeat(dead, last))
        elif min(p.seconds for p in progress) > self.progress_timeout:
            # Processes that are ahead wait for those with the fewest reports.
            least = min(p.reports for p in progress)
            behind = [i for i, p in enumerate(progress) if p.reports == least]
            self.fail(
                f"{process_names(behind, self.hosts)} got no further for "
                f"{self.progress_timeout:.0f} s, at: {progress[behind[0]].doing}: "
                f"{ADVICE}"
            )

    def _no_heartbeat(self, indices: Sequence[int], last: str = "") -> str:
        return (
            f"{process_names(indices, self.hosts)} is gone: no heartbeat for "
            f"{self.heartbeat_timeout:.0f} s{last}: {ADVICE}"
        )

    @contextlib.contextmanager
    def _exit_if_process_0_is_gone(self) -> Iterator[None]:
        try:
            yield
        # Whatever JAX raises where the store cannot be reached.
        except Exception:
            if not self.closed.is_set():
                self._exit_with(*self._failure)

    def _exit_with(self, line: str, status: int, author: int = -1) -> NoReturn:
        self._failed.set()
        if author == self.index:
            # The main thread is about to end with this reason.
            time.sleep(GRACE_SECONDS)
        self._exit_lock.acquire()  # never released: one thread prints its reason
        print(f"error: {line}", file=sys.stderr)
        self.exit(status)
