"""The roll call, with threads in the place of processes."""

import socket
import threading
import time

import pytest

from vt_flax.errors import UserError
from vt_flax.parallel import registration
from vt_flax.parallel.registration import call_roll


@pytest.fixture(autouse=True)
def quicker(monkeypatch):
    monkeypatch.setattr(registration, "RPC_SECONDS", 1.0)
    monkeypatch.setattr(registration._Handler, "timeout", 1.0)
    monkeypatch.setattr(registration, "POLL_SECONDS", 0.05)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def call(indices, count, *, hosts=None, settings=None, seconds=1.0, before=None):
    """Returns what each caller gets, or the error that it gets, in order."""
    address = ("127.0.0.1", free_port())
    hosts = hosts or [""] * count
    found = [None] * len(indices)

    def one(k):
        own = {"code": "1", **(settings or {}).get(indices[k], {})}
        host = f"host{indices[k]}"
        try:
            found[k] = call_roll(indices[k], address, hosts, host, own, seconds)
        except UserError as error:
            found[k] = error

    threads = [threading.Thread(target=one, args=(k,)) for k in range(len(indices))]
    for thread in threads[:1]:
        thread.start()
    if before:
        before(address)
    for thread in threads[1:]:
        thread.start()
    for thread in threads:
        thread.join(30)
    return found


def test_all_come():
    assert call([0, 1, 2, 3], 4, seconds=10) == [[f"host{i}" for i in range(4)]] * 4


@pytest.mark.parametrize("hosts", [[], ["a", "b", "c"]])
def test_missing_processes_are_named(hosts):
    name = "process 2 (c) of 3" if hosts else "process 2 of 3"
    for error in call([0, 1], 3, hosts=hosts):
        assert str(error) == f"{name} did not start in 1 s"
        assert (error.status, error.everywhere) == (5, True)


def test_process_0_is_missing():
    (error,) = call([1], 2, hosts=["a", "b"], seconds=0.2)
    assert str(error).startswith("process 1 of 2: process 0 (a) of 2 does not answer")
    assert "Connection refused" in str(error) and error.status == 5


def test_other_settings_are_named():
    for error in call([0, 1, 2], 3, settings={2: {"code": "2"}}, seconds=5):
        assert str(error) == (
            "process 2 (host2) of 3 differs from process 0 (host0): code: '1' -> '2': "
            "start the same on all"
        )
        assert (error.status, error.everywhere) == (2, True)


def test_a_process_that_was_started_twice():
    for error in call([0, 1, 1], 3, seconds=5):
        assert "process 1 (host1) of 3 was also started on host1" in str(error)


def test_a_port_that_is_taken():
    with socket.socket() as other:
        other.bind(("", 0))
        other.listen()
        address = ("127.0.0.1", other.getsockname()[1])
        with pytest.raises(UserError, match="process 0: Address already in use: end"):
            call_roll(0, address, ["", ""], "", {}, 1.0)


def test_strangers_disturb_nothing(capfd):
    """A port scanner, and one that connects and sends nothing."""

    def disturb(address):
        time.sleep(0.2)
        for text in (b"GET / HTTP/1.1\r\n\r\n", b"\xff" * 99, b""):
            with socket.create_connection(address) as stranger:
                stranger.sendall(text)
                time.sleep(0.1)

    assert call([0, 1], 2, seconds=10, before=disturb) == [["host0", "host1"]] * 2
    assert capfd.readouterr() == ("", "")
