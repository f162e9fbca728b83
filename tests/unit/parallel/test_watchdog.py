"""The watchdog, with threads in place of processes and a store in memory."""

import contextlib
import signal
import socket
import subprocess
import sys
import threading
import time

import pytest
from waiting import wait_until

from vt_flax.parallel import watchdog
from vt_flax.parallel.watchdog import Watchdog

HEARTBEAT = 0.1


class Store:
    """The key-value store of process 0, which may stop answering, or be gone."""

    def __init__(self):
        self.values, self.changed = {}, threading.Condition()
        self.stopped, self.gone = threading.Event(), threading.Event()

    def set(self, key, value, overwrite=False):
        with self.changed:
            while self.stopped.is_set():
                self.changed.wait(HEARTBEAT)
            if self.gone.is_set():
                raise RuntimeError("UNAVAILABLE")
            if overwrite:
                self.values[key] = value
            self.values.setdefault(key, value)
            self.changed.notify_all()

    def get(self, key, seconds):
        with self.changed:
            self.changed.wait_for(
                lambda: key in self.values or self.gone.is_set(), seconds
            )
            if self.gone.is_set():
                raise RuntimeError("UNAVAILABLE")
            return self.values.get(key)

    def list(self, folder):
        with self.changed:
            return {
                key.removeprefix(f"{folder}/"): value
                for key, value in self.values.items()
                if key.startswith(f"{folder}/")
            }


class RecordingWatchdog(Watchdog):
    """Records how its process would have ended."""

    ended = None

    def _exit_with(self, line, status, author=-1):
        self._failed.set()
        self.closed.set()
        self.ended = self.ended or (line, status, author)

    def die(self):
        self.closed.set()


@pytest.fixture
def start(monkeypatch):
    """Returns a function that starts the watchdogs of three processes."""
    monkeypatch.setattr(watchdog, "HEARTBEAT_SECONDS", HEARTBEAT)
    hosts = [f"host{i}" for i in range(3)]
    with contextlib.ExitStack() as stack:

        def start(heartbeat=30.0, progress=900.0):
            store = Store()
            stack.callback(store.gone.set)
            dogs = [RecordingWatchdog(i, hosts, store) for i in range(3)]
            for dog in dogs:
                stack.callback(dog.closed.set)
                dog.heartbeat_timeout, dog.progress_timeout = heartbeat, progress
            return dogs

        yield start


def test_a_process_without_heartbeats_is_named(start):
    dogs = start(heartbeat=1.0)
    for dog in dogs:
        dog.report("step 5: computing")
    time.sleep(5 * HEARTBEAT)
    assert not any(dog.ended for dog in dogs)
    # A failed collective waits for this, and returns if no process is dead.
    dogs[0].wait_for_failure()
    dogs[2].die()
    wait_until(lambda: all(dog.ended for dog in dogs[:2]), 5)
    for dog in dogs[:2]:
        line, status, _ = dog.ended
        assert line == (
            "process 2 (host2) of 3 is gone: no heartbeat for 1 s (last at: step 5: "
            "computing): run the same command again to go on"
        )
        assert status == 5


@pytest.mark.parametrize("how", ["gone", "stopped"])
def test_process_0_is_named(how, start):
    """Its connections break if it dies, and do not if it or its machine hangs."""
    dogs = start(heartbeat=1.0)
    time.sleep(2 * HEARTBEAT)
    store = dogs[0].store
    dogs[0].die()
    (store.gone if how == "gone" else store.stopped).set()
    begin = time.monotonic()
    wait_until(lambda: all(dog.ended for dog in dogs[1:]), 5)
    assert (time.monotonic() - begin < 0.9) == (how == "gone")
    store.stopped.clear()
    for dog in dogs[1:]:
        line, status, _ = dog.ended
        assert line.startswith("process 0 (host0) of 3 is gone: ") and status == 5


def test_the_process_that_makes_no_progress_is_named(start):
    dogs = start(progress=1.0)
    for step in range(15):
        time.sleep(HEARTBEAT)
        for dog in dogs:
            dog.report(f"step {step}: reading")
    assert not any(dog.ended for dog in dogs)
    for dog in (dogs[0], dogs[2]):
        dog.report("step 14: computing")
    wait_until(lambda: all(dog.ended for dog in dogs), 5)
    for dog in dogs:
        line, status, _ = dog.ended
        assert line == (
            "process 1 (host1) of 3 got no further for 1 s, at: step 14: reading: run "
            "the same command again to go on"
        )
        assert status == 5


def test_the_first_failure_ends_all(start):
    dogs = start()
    dogs[1].fail("process 1 (host1) of 3: a.jpg cannot be read", 2, author=1)
    dogs[2].fail("process 2 (host2) of 3: another reason", 1, author=2)
    wait_until(lambda: all(dog.ended for dog in dogs), 5)
    expected = ("process 1 (host1) of 3: a.jpg cannot be read", 2, 1)
    assert {dog.ended for dog in dogs} == {expected}


ABORTED = """
import os, sys, threading
from vt_flax.parallel.watchdog import Watchdog
class Store:
    def set(self, *_, **__): pass
    def get(self, *_): threading.Event().wait()
dog = Watchdog(1, ["a", "b"], Store())
dog.handle_aborts(("127.0.0.1", int(sys.argv[1])))
os.abort()
"""


@pytest.mark.parametrize("lost", [True, False])
def test_an_abort_names_process_0_only_if_it_is_lost(lost):
    with socket.socket() as process_0:
        process_0.bind(("127.0.0.1", 0))
        if not lost:
            process_0.listen()
        port = str(process_0.getsockname()[1])
        command = [sys.executable, "-c", ABORTED, port]
        done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert done.returncode == (5 if lost else -signal.SIGABRT)
    assert ("error: process 0 (a) of 2 is gone: " in done.stderr) == lost
