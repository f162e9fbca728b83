"""What the processes of a run tell each other beside JAX, over TCP.

JAX's own start waits for whoever is missing and then ends the process from C++, with a
stack trace and without a name; a collective waits for a dead peer until JAX's heartbeat
ends the process in the same way. This link is up before JAX's and outlives it: it knows
who has come, notices who is gone, and says so in words.

Process 0 listens, the others connect to it and to nobody else. Messages are JSON, a
line each. Nothing secret is sent; whoever reaches the port can disturb the run, as with
JAX's own.
"""

import contextlib
import dataclasses
import selectors
import socket
import threading
import time
from collections.abc import Callable, Sequence
from typing import Any

from vt_flax.errors import UserError, first_names
from vt_flax.parallel.wire import Lines, Message, connect, listen, send

# Seconds between two signs of life.
BEAT = 1.0
# What to do about a process that is gone.
ADVICE = "run the same command again to go on"
# Seconds that whoever fails by itself is given to say why, before it is ended.
GRACE = 10.0


@dataclasses.dataclass(frozen=True)
class Limits:
    """Seconds that are waited.

    Attributes:
      start: for process 0 to answer.
      silence: for one of which nothing is heard.
      stall: for one that is alive but gets no further.
    """

    start: float = 300.0
    silence: float = 30.0
    stall: float = 900.0


@dataclasses.dataclass
class Peer:
    """What is known of another process."""

    host: str
    heard: float
    # What it is at: a number that only rises, and the words for it.
    progress: int = 0
    doing: str = "starting"
    since: float = 0.0


class Lost(UserError):
    """Another process is gone, or has failed; what was saved is still there."""

    status = 5


class Link:
    """This process's part of the link.

    Args:
      index: this process's number.
      count: how many there are.
      address: host and port where process 0 listens.
      limits: how long to wait for what.
      host: this machine's name.
      hosts: the machines' names where they are known before they have come.
      end: called with a line and a status when the run cannot go on; to end the
        process. On a thread of its own, while the main one may be waiting in a
        collective for ever.

    Raises:
      UserError: if the port is taken.
      Lost: if nobody answers in time.
    """

    def __init__(
        self,
        index: int,
        count: int,
        address: tuple[str, int],
        limits: Limits,
        *,
        host: str,
        hosts: Sequence[str] = (),
        end: Callable[[str, int], None],
    ):
        self.index, self.count = index, count
        self._address, self._limits, self._end = address, limits, end
        self._host, self._hosts = host, list(hosts)
        self._lock = threading.Condition()
        self._progress = (0, "starting", time.monotonic())
        self._gathered: dict[str, dict[int, Any]] = {}
        self._results: dict[str, list[Any]] = {}
        self._failure: tuple[str, int] | None = None
        self._closing = self._claimed = False
        self._peers: dict[int, Peer] = {}
        self._sockets: dict[int, socket.socket] = {}
        self._left: set[int] = set()
        self._listener = listen(address[1], count) if index == 0 else None
        if index:
            self._connect()
        self._thread = threading.Thread(
            target=self._run, name="vt_flax-link", daemon=True
        )
        self._thread.start()

    # For the main thread.

    def gather(self, name: str, value: Any, seconds: float | None = None) -> list[Any]:
        """Waits for all processes and returns what each brought, by index.

        Args:
          name: of the meeting: the same everywhere, and in the same order.
          value: this process's, as JSON can write it.
          seconds: to wait for the others; the limit `stall` by default.

        Raises:
          Lost: naming who did not come in time, or is gone; or what another process
            that failed had to say, with its status.
        """
        limit = self._limits.stall if seconds is None else seconds
        with self._lock:
            if self.index == 0:
                self._bring(name, 0, value)
            else:
                self._tell(0, {"gather": name, "value": value})
            # Process 0 knows who is missing: the others leave it the time to say so.
            limit += 0 if self.index == 0 else GRACE
            self._lock.wait_for(
                lambda: name in self._results or self._failure, timeout=limit
            )
            if name in self._results:
                return self._results.pop(name)
            if not self._failure:
                there = self._gathered.get(name, {})
                missing = [i for i in range(self.count) if i not in there]
                if self.index:
                    missing = [0]
                self._fail(
                    f"{self.names(missing)} did not come to {name!r} within "
                    f"{limit:.0f} s",
                    Lost.status,
                )
            raise self._error()

    def report(self, doing: str) -> None:
        """Says what this process is at; called whenever it got further."""
        with self._lock:
            self._progress = (self._progress[0] + 1, doing, time.monotonic())

    def set_limits(self, silence: float, stall: float) -> None:
        """Sets two of the limits; the third is needed before they are known."""
        with self._lock:
            self._limits = dataclasses.replace(
                self._limits, silence=silence, stall=stall
            )

    def leave(self) -> None:
        """Says goodbye, so that this process is not taken for lost."""
        with self._lock:
            if self._closing:
                return
            self._closing = True
            self._tell_all({"leave": 0})
        self._thread.join(timeout=5)
        for connection in self._sockets.values():
            connection.close()
        if self._listener is not None:
            self._listener.close()

    def announce(self, line: str, status: int) -> None:
        """Tells the others why this process is about to end; then all do.

        It is left GRACE seconds for that, for what it closes may wait for the others.
        """
        with self._lock:
            self._fail(f"{self.names([self.index])}: {line}", status)

    def claim_the_last_word(self) -> bool:
        """Tells, to one caller alone, that it is the one to end this process."""
        with self._lock:
            first, self._claimed = not self._claimed, True
        return first

    def wait_for_failure(self, seconds: float) -> None:
        """Waits for the news that a peer is gone, which end this process.

        For an error that looks like one's own but may be a broken connection's.
        """
        with self._lock:
            if self._lock.wait_for(lambda: self._failure, timeout=seconds):
                raise self._error()

    def names(self, indices: Sequence[int]) -> str:
        """Returns `process 1 of 4 (host)`, for one or several."""

        def host(index: int) -> str:
            peer = self._peers.get(index)
            name = peer.host if peer else ""
            if index == self.index:
                name = self._host
            if not name and index < len(self._hosts):
                name = self._hosts[index]
            if not name and index == 0:
                name = f"{self._address[0]}:{self._address[1]}"
            return f" ({name})" if name else ""

        shown = first_names(f"{i}{host(i)}" for i in indices)
        plural = "es" if len(indices) > 1 else ""
        return f"process{plural} {shown} of {self.count}"

    def _error(self) -> UserError:
        line, status = self._failure
        error = Lost(line)
        error.status = status
        return error

    # Connecting.

    def _connect(self) -> None:
        seconds = self._limits.start
        try:
            connection = connect(self._address, seconds)
        except OSError as error:
            raise Lost(
                f"process {self.index} of {self.count}: {self.names([0])} does not "
                f"answer after {seconds:.0f} s ({error.strerror or error}): is it "
                "running, and its port open?"
            ) from error
        self._sockets[0] = connection
        self._peers[0] = Peer("", time.monotonic())
        self._tell(0, {"hello": self.index, "count": self.count, "host": self._host})

    # On the link's own thread.

    def _run(self) -> None:
        """Hears whoever is connected, gives signs of life and looks for theirs."""
        lines: dict[socket.socket, Lines] = {}
        owners: dict[socket.socket, int] = {}
        with selectors.DefaultSelector() as selector:

            def add(connection: socket.socket) -> None:
                connection.settimeout(5)
                lines[connection] = Lines()
                selector.register(connection, selectors.EVENT_READ)

            if self._listener is not None:
                selector.register(self._listener, selectors.EVENT_READ)
            else:
                owners[self._sockets[0]] = 0
                add(self._sockets[0])
            beat = 0.0
            while not self._closing:
                for key, _ in selector.select(timeout=BEAT / 4):
                    if key.fileobj is self._listener:
                        # It may be gone again, or too many files open just now.
                        with contextlib.suppress(OSError):
                            add(self._listener.accept()[0])
                        continue
                    connection = key.fileobj
                    messages, more = lines[connection].read(connection)
                    with self._lock:
                        for message in messages:
                            # A stranger may send anything.
                            with contextlib.suppress(KeyError, TypeError):
                                self._hear(connection, owners, message)
                        if not more:
                            selector.unregister(connection)
                            # Of a stranger too, of whom there may be many.
                            connection.close()
                            del lines[connection]
                            self._closed(owners.pop(connection, None))
                now = time.monotonic()
                if now - beat > BEAT:
                    beat = now
                    number, doing, _ = self._progress
                    with self._lock:
                        self._tell_all({"beat": number, "doing": doing})
                        self._judge(now)

    def _hear(
        self, connection: socket.socket, owners: dict[socket.socket, int], m: Message
    ) -> None:
        now = time.monotonic()
        if "hello" in m:
            self._welcome(connection, owners, m, now)
            return
        other = owners.get(connection)
        if other is None:
            return
        peer = self._peers[other]
        peer.heard = now
        if "beat" in m and m["beat"] != peer.progress:
            peer.progress, peer.doing, peer.since = m["beat"], m.get("doing", ""), now
        elif "gather" in m:
            self._bring(m["gather"], other, m["value"])
        elif "result" in m:
            self._results[m["result"]] = m["values"]
            self._lock.notify_all()
        elif "leave" in m:
            self._left.add(other)
        elif "failure" in m:
            self._fail(m["failure"], m["status"])

    def _welcome(
        self,
        connection: socket.socket,
        owners: dict[socket.socket, int],
        m: Message,
        now: float,
    ) -> None:
        index, host = m["hello"], m["host"]
        refusal = ""
        if m["count"] != self.count:
            refusal = (
                f"process {index} ({host}) was started as one of {m['count']}, process "
                f"0 as one of {self.count}: start all with the same --processes"
            )
        elif not 0 < index < self.count or index in self._peers:
            twice = self._peers[index].host if index in self._peers else self._host
            refusal = (
                f"process {index} of {self.count} was started twice, on {twice} and on "
                f"{host}: give each another --process"
            )
        owners[connection] = index
        if refusal:
            send(connection, {"failure": refusal, "status": 2})
            self._fail(refusal, 2)
            return
        self._sockets[index] = connection
        self._peers[index] = Peer(host, now, since=now)

    def _bring(self, name: str, index: int, value: Any) -> None:
        there = self._gathered.setdefault(name, {})
        there[index] = value
        if len(there) == self.count:
            values = [there[i] for i in range(self.count)]
            self._results[name] = values
            del self._gathered[name]
            self._tell_all({"result": name, "values": values})
            self._lock.notify_all()

    def _closed(self, other: int | None) -> None:
        if other is None or other in self._left or self._closing:
            return
        self._sockets.pop(other, None)
        line = f"{self.names([other])} is gone{self._last(other)}: {ADVICE}"
        self._fail(line, Lost.status)

    def _judge(self, now: float) -> None:
        """Looks for whoever is silent, or gets no further."""
        if self._closing or self._failure:
            return
        there = [i for i in self._peers if i not in self._left]
        for other in there:
            silent = now - self._peers[other].heard
            if silent > self._limits.silence:
                self._fail(
                    f"{self.names([other])} is not heard of for {silent:.0f} s"
                    f"{self._last(other)}: {ADVICE}",
                    Lost.status,
                )
                return
        if self.index or len(self._peers) < self.count - 1:
            return
        # Who has got least far holds up the others. Those that are ahead wait too.
        least = {i: self._peers[i] for i in there}
        number, doing, since = self._progress
        least[0] = Peer(self._host, now, number, doing, since)
        if all(now - p.since > self._limits.stall for p in least.values()):
            behind = min(p.progress for p in least.values())
            who = [i for i, p in least.items() if p.progress == behind]
            self._peers.setdefault(0, least[0])
            self._fail(
                f"{self.names(who)} got no further for {self._limits.stall:.0f} s, at: "
                f"{least[who[0]].doing}: {ADVICE}",
                Lost.status,
            )

    def _last(self, other: int) -> str:
        doing = self._peers[other].doing if other in self._peers else ""
        return f" (last at: {doing})" if doing and doing != "starting" else ""

    def _fail(self, line: str, status: int) -> None:
        """Notes why the run cannot go on, tells it on, and ends it after a while."""
        if self._failure or self._closing:
            return
        self._failure = (line, status)
        self._tell_all({"failure": line, "status": status})
        self._lock.notify_all()
        # Whoever waits for the others in a meeting, or fails for the same reason, ends
        # by itself; whoever waits in a collective never does.
        threading.Thread(target=self._end_later, daemon=True).start()

    def _end_later(self) -> None:
        line, status = self._failure
        time.sleep(1 if status == Lost.status else GRACE)
        if self.claim_the_last_word():
            self._end(line, status)

    def _tell_all(self, message: Message) -> None:
        for other in self._sockets.keys() - self._left:
            self._tell(other, message)

    def _tell(self, other: int, message: Message) -> None:
        # Who is gone is noticed where it is read from.
        with contextlib.suppress(OSError):
            send(self._sockets[other], message)
