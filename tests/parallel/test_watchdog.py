"""The watchdog, with threads in the place of processes and a store in memory."""

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
from vt_flax.parallel.cluster import Place
from vt_flax.parallel.watchdog import Watchdog

BEAT = 0.1


class Store:
    """The key-value store of process 0, which may stop to answer, or be gone."""

    def __init__(self):
        self.values, self.changed = {}, threading.Condition()
        self.stopped, self.gone = threading.Event(), threading.Event()

    def set(self, key, value, overwrite=False):
        with self.changed:
            while self.stopped.is_set():
                self.changed.wait(BEAT)
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


class Dog(Watchdog):
    """Notes how its process would have ended."""

    ended = None

    def _end(self, line, status, author=-1):
        self._failed.set()
        self.closed.set()
        self.ended = self.ended or (line, status, author)

    def die(self):
        self.closed.set()


@pytest.fixture
def dogs(monkeypatch):
    """Returns a function that starts three processes with some limits."""
    monkeypatch.setattr(watchdog, "BEAT_SECONDS", BEAT)
    hosts = [f"host{i}" for i in range(3)]
    with contextlib.ExitStack() as stack:

        def start(heartbeat=30.0, progress=900.0):
            store = Store()
            stack.callback(store.gone.set)
            found = [Dog(Place(i, 3, "127.0.0.1:1"), hosts, store) for i in range(3)]
            for dog in found:
                stack.callback(dog.closed.set)
                dog.heartbeat_timeout, dog.progress_timeout = heartbeat, progress
            return found

        yield start


def test_a_process_without_heartbeats_is_named(dogs):
    them = dogs(heartbeat=1.0)
    for dog in them:
        dog.report("step 5: computing")
    time.sleep(5 * BEAT)
    them[2].die()
    wait_until(lambda: all(dog.ended for dog in them[:2]), 5)
    for dog in them[:2]:
        line, status, _ = dog.ended
        assert line == (
            "process 2 (host2) of 3 is gone: no heartbeat for 1 s (last at: step 5: "
            "computing): run the same command again to go on"
        )
        assert status == 5


@pytest.mark.parametrize("how", ["gone", "stopped"])
def test_process_0_is_named(how, dogs):
    """Its connections break if it dies, and do not if it or its machine hangs."""
    them = dogs(heartbeat=1.0)
    time.sleep(2 * BEAT)
    store = them[0].store
    them[0].die()
    (store.gone if how == "gone" else store.stopped).set()
    begin = time.monotonic()
    wait_until(lambda: all(dog.ended for dog in them[1:]), 5)
    assert (time.monotonic() - begin < 0.9) == (how == "gone")
    store.stopped.clear()
    for dog in them[1:]:
        line, status, _ = dog.ended
        assert line.startswith("process 0 (host0) of 3 is gone: ") and status == 5


def test_the_process_that_holds_up_the_others_is_named(dogs):
    them = dogs(progress=1.0)
    for step in range(15):
        time.sleep(BEAT)
        for dog in them:
            dog.report(f"step {step}: reading")
    assert not any(dog.ended for dog in them)
    for dog in (them[0], them[2]):
        dog.report("step 14: computing")
    wait_until(lambda: all(dog.ended for dog in them), 5)
    for dog in them:
        line, status, _ = dog.ended
        assert line == (
            "process 1 (host1) of 3 got no further for 1 s, at: step 14: reading: run "
            "the same command again to go on"
        )
        assert status == 5


def test_the_first_failure_ends_all(dogs):
    them = dogs()
    them[1].fail("process 1 (host1) of 3: a.jpg cannot be read", 2, author=1)
    them[2].fail("process 2 (host2) of 3: another reason", 1, author=2)
    wait_until(lambda: all(dog.ended for dog in them), 5)
    expected = ("process 1 (host1) of 3: a.jpg cannot be read", 2, 1)
    assert {dog.ended for dog in them} == {expected}


def test_one_caller_alone_ends_a_process(dogs):
    (dog, *_) = dogs()
    assert [dog.claim_end() for _ in range(3)] == [True, False, False]


def test_a_failed_collective_shortens_the_wait(dogs, monkeypatch):
    """With no loss the wait ends; with one, the lost process is named."""
    monkeypatch.setattr(watchdog, "SUSPECT_SECONDS", 1.0)
    them = dogs()
    time.sleep(3 * BEAT)
    them[1].wait_for_verdict()
    assert not any(dog.ended for dog in them)
    them[2].die()
    threading.Thread(target=them[1].wait_for_verdict, daemon=True).start()
    wait_until(lambda: all(dog.ended for dog in them[:2]), 5)
    line = "process 2 (host2) of 3 is gone: no heartbeat for 1 s"
    assert all(dog.ended[0].startswith(line) for dog in them[:2])


ABORTED = """
import os, sys, threading
from vt_flax.parallel.cluster import Place
from vt_flax.parallel.watchdog import Watchdog
class Store:
    def set(self, *_): pass
    def get(self, *_): threading.Event().wait()
Watchdog(Place(1, 2, sys.argv[1]), ["a", "b"], Store()).handle_aborts()
os.abort() if sys.argv[2] == "abort" else os.kill(os.getpid(), 6)
threading.Event().wait(20)
"""


@pytest.mark.parametrize("lost, how", [(True, "abort"), (False, "signal")])
def test_an_abort_names_process_0_only_if_it_is_lost(lost, how):
    with socket.socket() as process_0:
        process_0.bind(("127.0.0.1", 0))
        if not lost:
            process_0.listen()
        address = f"127.0.0.1:{process_0.getsockname()[1]}"
        command = [sys.executable, "-c", ABORTED, address, how]
        done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert done.returncode == (5 if lost else -signal.SIGABRT)
    assert ("error: process 0 (a) of 2 is gone: " in done.stderr) == lost
