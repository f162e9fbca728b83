"""Notices a process that has ended or hangs, and ends all processes of a run.

Each process publishes its progress in the key-value store. Process 0 looks for one
without a heartbeat, or that gets no further. Why the run fails is a key that all
processes wait for.
"""

import contextlib
import ctypes
import dataclasses
import itertools
import json
import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from typing import Any, NoReturn

from vt_flax.parallel.cluster import Place
from vt_flax.parallel.registration import LOST, names

BEAT_SECONDS = 1.0
# Time without a heartbeat after which a process is lost, if a collective has failed.
SUSPECT_SECONDS = 10.0
# Time for a process that has failed to end by itself.
GRACE_SECONDS = 10.0
# Time without a heartbeat after which process 0 does not wait for another to end.
LINGER_SECONDS = 2.5
DAY_SECONDS = 86400.0
ADVICE = "run the same command again to go on"


@dataclasses.dataclass
class _Peer:
    """The progress of a process, and when it last changed."""

    heard: float
    since: float
    beat: int = -1
    reports: int = 0
    doing: str = "starting"
    suspects: bool = False

    def update(
        self, now: float, beat: int, reports: int, doing: str, suspects: bool
    ) -> None:
        self.heard = now if beat != self.beat else self.heard
        self.since = now if reports != self.reports else self.since
        self.beat, self.reports = beat, reports
        self.doing, self.suspects = doing, suspects


class Watchdog:
    """Threads that publish this process's progress, and watch the others'.

    Args:
      place: this process.
      hosts: names of the machines by process.
      store: see `coordination.Store`.

    Attributes:
      heartbeat_timeout: seconds without a heartbeat after which a process is lost.
      progress_timeout: seconds without progress after which a process is lost.
      closed: to be set when the run is over.
    """

    def __init__(self, place: Place, hosts: Sequence[str], store: Any):
        self.index, self.hosts, self.store = place.index, hosts, store
        self._address = place.address
        self.heartbeat_timeout, self.progress_timeout = 30.0, 900.0
        self.closed, self._failed = threading.Event(), threading.Event()
        self._reports, self._doing, self._suspects = 0, "starting", False
        self._answered = now = time.monotonic()
        self._peers = {i: _Peer(now, now) for i in range(len(hosts))}
        self._gone = f"{names([0], hosts)} is gone: {ADVICE}"
        self._end_lock = threading.Lock()
        loops = (self._publish, self._await_failure, self._judge)
        self._threads = [threading.Thread(target=x, daemon=True) for x in loops]
        for thread in self._threads:
            thread.start()

    def handle_aborts(self) -> None:
        """Names process 0 if this process aborts because process 0 is lost.

        JAX aborts as soon as its connection to process 0 breaks, often before the store
        raises. Python's own handlers would only run after the abort.
        """

        @ctypes.CFUNCTYPE(None, ctypes.c_int)
        def handle(_: int) -> None:
            time.sleep(BEAT_SECONDS / 2)
            try:
                socket.create_connection(self._address, timeout=BEAT_SECONDS).close()
            except OSError:
                self._end(self._gone, LOST)
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
        ctypes.CDLL(None).signal(signal.SIGABRT, signal.SIG_DFL)

    def report(self, doing: str) -> None:
        """Notes that this process got further, and what it does next."""
        self._reports, self._doing = self._reports + 1, doing

    def fail(self, line: str, status: int = LOST, author: int = -1) -> None:
        """Ends all processes, with the first reason that is given.

        Args:
          line: the reason.
          status: exit status.
          author: the process that fails, which has time to end by itself.
        """
        with self._process_0_lost():
            self.store.set("failure", json.dumps([line, status, author]))

    def wait_for_verdict(self) -> None:
        """Waits for the news that another process is lost, which ends this one.

        Returns after a while if there is none. Until then process 0 applies a shorter
        timeout.
        """
        self._suspects = True
        seconds = min(self.heartbeat_timeout, SUSPECT_SECONDS) + 3 * BEAT_SECONDS
        while self._failed.wait(seconds):
            time.sleep(BEAT_SECONDS)
        self._suspects = False

    def claim_end(self) -> bool:
        """Returns True to the first caller, which is to print why the process ends."""
        return self._end_lock.acquire(blocking=False)

    def exit(self, status: int) -> NoReturn:
        """Ends this process at once, but process 0 only after the others.

        JAX aborts a process whose connection to process 0 breaks.
        """
        sys.stdout.flush()
        sys.stderr.flush()
        limit = time.monotonic() + GRACE_SECONDS + LINGER_SECONDS
        while self._others_are_alive() and time.monotonic() < limit:
            time.sleep(BEAT_SECONDS / 2)
        os._exit(status)

    def _others_are_alive(self) -> bool:
        """Returns whether process 0, where this is it, has just heard of another."""
        since = time.monotonic() - LINGER_SECONDS
        others = [peer for i, peer in self._peers.items() if i]
        return self.index == 0 and any(peer.heard > since for peer in others)

    def _publish(self) -> None:
        """Publishes heartbeat and progress; waits while process 0 does not answer."""
        with self._process_0_lost():
            for beat in itertools.count():
                value = [beat, self._reports, self._doing, self._suspects]
                self.store.set(f"progress/{self.index}", json.dumps(value), True)
                self._answered = time.monotonic()
                if self.closed.wait(BEAT_SECONDS):
                    break

    def _await_failure(self) -> None:
        """Ends this process when the run has failed."""
        with self._process_0_lost():
            while (failure := self.store.get("failure", DAY_SECONDS)) is None:
                pass
            self._end(*json.loads(failure))

    def _judge(self) -> None:
        """Looks for lost processes: process 0 for all others, these for process 0."""
        with self._process_0_lost():
            while not self.closed.wait(BEAT_SECONDS):
                if self.index == 0:
                    self._judge_all(time.monotonic())
                elif time.monotonic() - self._answered > self.heartbeat_timeout:
                    self._end(self._no_heartbeat([0], self.heartbeat_timeout), LOST)

    def _judge_all(self, now: float) -> None:
        peers = self._peers
        for index, value in self.store.list("progress").items():
            peers[int(index)].update(now, *json.loads(value))
        timeout = self.heartbeat_timeout
        if any(p.suspects for p in peers.values()):
            timeout = min(timeout, SUSPECT_SECONDS)
        if lost := [i for i, p in peers.items() if now - p.heard > timeout]:
            last = f" (last at: {peers[lost[0]].doing})"
            self.fail(self._no_heartbeat(lost, timeout, last))
        elif all(now - p.since > self.progress_timeout for p in peers.values()):
            # Processes that are ahead wait for those with the fewest reports.
            least = min(p.reports for p in peers.values())
            behind = [i for i, p in peers.items() if p.reports == least]
            self.fail(
                f"{names(behind, self.hosts)} got no further for "
                f"{self.progress_timeout:.0f} s, at: {peers[behind[0]].doing}: {ADVICE}"
            )

    def _no_heartbeat(
        self, indices: Sequence[int], timeout: float, last: str = ""
    ) -> str:
        who = names(indices, self.hosts)
        return f"{who} is gone: no heartbeat for {timeout:.0f} s{last}: {ADVICE}"

    @contextlib.contextmanager
    def _process_0_lost(self) -> Iterator[None]:
        """Ends this process when the store cannot be reached."""
        try:
            yield
        # Whatever JAX raises then.
        except Exception:
            if not self.closed.is_set():
                self._end(self._gone, LOST)

    def _end(self, line: str, status: int, author: int = -1) -> NoReturn:
        self._failed.set()
        if author == self.index:
            # The main thread is about to end with this reason.
            time.sleep(GRACE_SECONDS)
        if self.claim_end():
            print(f"error: {line}", file=sys.stderr)
        else:
            time.sleep(GRACE_SECONDS)
        self.exit(status)
