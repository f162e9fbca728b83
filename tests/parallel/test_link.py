"""What the processes tell each other, with threads in the place of processes."""

import contextlib
import os
import socket
import struct
import threading
import time

import pytest
from waiting import wait_until

from vt_flax.errors import UserError
from vt_flax.parallel.link import BEAT, Limits, Link, Lost


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


class Pod:
    """Some ends of a link, and what ended each."""

    def __init__(self, count, limits, starts=None, **options):
        port = free_port()
        self.ended: dict[int, tuple[str, int]] = {}
        self.links: dict[int, Link] = {}
        self.errors: dict[int, Exception] = {}
        # With the right of going in before all the others, which is not the usual one.
        indices = range(count) if starts is None else starts
        threads = [
            threading.Thread(target=self._start, args=(i, count, port, limits, options))
            for i in indices
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()

    def _start(self, index, count, port, limits, options):
        try:
            self.links[index] = Link(
                index,
                options.get("counts", {}).get(index, count),
                ("127.0.0.1", port),
                limits,
                host=f"host{index}",
                hosts=options.get("hosts", ()),
                end=lambda *how: self.ended.setdefault(index, how),
            )
        except UserError as error:
            self.errors[index] = error

    def gather(self, name, values, who=None, seconds=None):
        """Returns what each got, or the error that it got."""
        results = {}

        def one(i):
            try:
                results[i] = self.links[i].gather(name, values[i], seconds)
            except UserError as error:
                results[i] = error

        threads = [threading.Thread(target=one, args=(i,)) for i in who or self.links]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(60)
        return results

    def close(self):
        for link in self.links.values():
            link.leave()


@contextlib.contextmanager
def pod(*args, **options):
    it = Pod(*args, **options)
    try:
        yield it
    finally:
        it.close()


def die(link: Link) -> None:
    """Closes a connection as the kernel does for a process that was killed."""
    for connection in link._sockets.values():
        connection.setsockopt(
            socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0)
        )
    link._closing = True
    link._thread.join()
    for connection in link._sockets.values():
        connection.close()


def test_each_gets_what_all_have_brought():
    with pod(4, Limits(start=20)) as it:
        for round_ in range(50):
            name = f"round {round_}"
            got = it.gather(name, {i: [i, round_, "é\n"] for i in range(4)})
            expected = [[i, round_, "é\n"] for i in range(4)]
            assert got == dict.fromkeys(range(4), expected)
    assert not it.ended


@pytest.mark.parametrize("hosts", [(), ("a", "b", "c")])
def test_who_has_not_come_is_named(hosts):
    with pod(3, Limits(start=1), starts=[0, 1], hosts=hosts) as it:
        got = it.gather("start", {0: 0, 1: 0}, seconds=1)
    name = "process 2 (c) of 3" if hosts else "process 2 of 3"
    for error in got.values():
        assert isinstance(error, Lost)
        assert str(error) == f"{name} did not come to 'start' within 1 s"


def test_process_0_has_not_come():
    with pod(2, Limits(start=1), starts=[1]) as it:
        error = it.errors[1]
    assert error.status == 5
    message = str(error)
    assert "process 1 of 2: process 0 (127.0.0.1:" in message
    assert "does not answer after 1 s (Connection refused)" in message


@pytest.mark.parametrize("victim", [0, 2])
def test_who_dies_is_named_at_once(victim):
    with pod(3, Limits(start=20)) as it:
        it.gather("start", dict.fromkeys(range(3)))
        for link in it.links.values():
            link.report("step 5: computing")
        time.sleep(1.5 * BEAT)
        begin = time.monotonic()
        die(it.links[victim])
        rest = {0, 1, 2} - {victim}
        wait_until(lambda: it.ended.keys() >= rest)
        assert time.monotonic() - begin < 5
        host = "host2" if victim else "127.0.0.1"
        for i in rest:
            line, status = it.ended[i]
            assert line.startswith(f"process {victim} ({host}")
            assert "of 3 is gone (last at: step 5: computing)" in line
            assert status == 5


def test_who_dies_is_named_to_those_who_wait_for_it():
    with pod(3, Limits(start=20)) as it:
        it.gather("start", dict.fromkeys(range(3)))
        threading.Timer(0.5, die, [it.links[2]]).start()
        got = it.gather("second", {0: 0, 1: 0}, who=[0, 1])
        assert all("process 2 (host2) of 3 is gone" in str(e) for e in got.values())
        # Whoever was told so ends by itself.
        assert all(it.links[i].claim_the_last_word() for i in (0, 1))
        time.sleep(1.5)
        assert not it.ended


def test_who_leaves_is_not_taken_for_dead():
    with pod(3, Limits(start=20)) as it:
        it.gather("start", dict.fromkeys(range(3)))
        it.links[2].leave()
        it.links[0].leave()
        time.sleep(2 * BEAT)
        assert not it.ended


def test_who_fails_tells_the_others_why():
    with pod(3, Limits(start=20)) as it:
        it.gather("start", dict.fromkeys(range(3)))
        it.links[1].announce("a/b.jpg cannot be read", 2)
        got = it.gather("next", {0: 0, 2: 0}, who=[0, 2])
        for error in got.values():
            assert str(error) == "process 1 (host1) of 3: a/b.jpg cannot be read"
            assert error.status == 2


def test_silence_is_noticed():
    """A machine that vanishes closes no connection."""
    with pod(3, Limits(start=20, silence=3)) as it:
        it.gather("start", dict.fromkeys(range(3)))
        it.links[1]._closing = True  # its thread ends; the connection stays
        wait_until(lambda: it.ended.keys() >= {0, 2})
        for i in (0, 2):
            assert "process 1 (host1) of 3 is not heard of for " in it.ended[i][0]


def test_who_gets_no_further_is_named_and_not_those_who_wait_for_it():
    with pod(3, Limits(start=20, stall=4)) as it:
        it.gather("start", dict.fromkeys(range(3)))
        for step in range(6):
            time.sleep(1)
            for link in it.links.values():
                link.report(f"step {step}: reading")
        assert not it.ended
        for i in (0, 2):
            it.links[i].report("step 5: computing")
        wait_until(lambda: it.ended.keys() == {0, 1, 2})
        for line, status in it.ended.values():
            assert line == (
                "process 1 (host1) of 3 got no further for 4 s, at: step 5: reading: "
                "run the same command again to go on"
            )
            assert status == 5


def test_another_count_is_refused():
    with pod(2, Limits(start=3), counts={1: 4}) as it:
        got = it.gather("start", {0: 0, 1: 0})
        for error in got.values():
            assert "process 1 (host1) was started as one of 4, process 0 as one" in str(
                error
            )
            assert error.status == 2


def test_one_that_was_started_twice_is_refused():
    with pod(3, Limits(start=3), starts=[0, 1, 1]) as it:
        got = it.gather("start", {0: 0, 1: 0})
        assert "process 1 of 3 was started twice, on host1 and on host1" in str(got[0])


def test_a_port_that_is_taken():
    with socket.socket() as other:
        other.bind(("", 0))
        other.listen()
        with pytest.raises(UserError, match="process 0: Address already in use: end"):
            Link(
                0,
                2,
                ("127.0.0.1", other.getsockname()[1]),
                Limits(),
                host="",
                end=lambda *_: None,
            )


def test_a_stranger_at_the_port_disturbs_nothing():
    with pod(2, Limits(start=20)) as it:
        address = it.links[1]._address
        for text in (
            b"GET / HTTP/1.1\r\n\r\n",
            b'{"hello": 1}\n',
            b"[]\n",
            b"\xff" * 99,
        ):
            with socket.create_connection(address) as stranger:
                stranger.sendall(text)
                time.sleep(0.3)
        assert it.gather("start", {0: 1, 1: 2}) == {0: [1, 2], 1: [1, 2]}
    assert not it.ended


def test_strangers_leave_nothing_open():
    """A machine's health is looked at again and again, for days."""

    def open_files():
        return len(os.listdir("/proc/self/fd"))

    with pod(2, Limits(start=20)) as it:
        before = open_files()
        for _ in range(30):
            socket.create_connection(it.links[1]._address).close()
        wait_until(lambda: open_files() <= before + 1)
        assert it.gather("start", {0: 1, 1: 2}) == {0: [1, 2], 1: [1, 2]}
