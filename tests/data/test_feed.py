"""The queue between Python's reading and tf.data's decoding."""

import itertools
import os
import subprocess
import sys
import threading
import time

import numpy as np
import pytest

from vt_flax.data import feed
from vt_flax.data.feed import Feed


def chunks(count=None, taken=None):
    for i in itertools.count() if count is None else range(count):
        if taken is not None:
            taken.append(i)
        rows = np.arange(i * 3, i * 3 + 3)
        numbers = rows.tolist()
        labels, orientations = [n % 10 for n in numbers], [n % 8 + 1 for n in numbers]
        yield rows, [b"%d" % n for n in numbers], labels, orientations


def test_everything_arrives_in_order():
    given = Feed(chunks(10))
    found = list(given.dataset().as_numpy_iterator())
    assert found == [(n, b"%d" % n, n % 10, n % 8 + 1) for n in range(30)]
    given.check()
    given.close()


def test_it_reads_no_further_than_what_fits():
    taken = []
    given = Feed(chunks(None, taken))
    deadline = time.monotonic() + 20
    while len(taken) < feed.CAPACITY + 1 and time.monotonic() < deadline:
        time.sleep(0.01)
    time.sleep(0.2)
    assert len(taken) == feed.CAPACITY + 1
    given.close()
    # Whoever waited to get in was let in, and nothing was read after it.
    assert len(taken) <= feed.CAPACITY + 2


def test_an_error_comes_after_what_was_read_before_it():
    def failing():
        yield from chunks(2)
        raise OSError("the disk is gone")

    given = Feed(failing())
    assert len(list(given.dataset().as_numpy_iterator())) == 6
    with pytest.raises(OSError, match="the disk is gone"):
        given.check()
    given.close()


@pytest.mark.parametrize("taken", [0, 1, 20])
def test_closing_amid_everything_ends_the_thread(taken):
    before = threading.active_count()
    given = Feed(chunks())
    iterator = given.dataset().prefetch(4).as_numpy_iterator()
    for _ in range(taken):
        next(iterator)
    given.close()
    given.close()  # again: nothing to do
    assert threading.active_count() <= before
    assert not given._thread.is_alive()


PROGRAM = """
import itertools, time
import jax.numpy as jnp
import numpy as np
jnp.zeros(1) + 1
from vt_flax.data.feed import Feed

def chunks():
    for i in itertools.count():
        yield np.zeros(1), [b"x"], [0], [1]

closed, left = Feed(chunks()), Feed(chunks())
next(closed.dataset().as_numpy_iterator())
time.sleep(0.3)
closed.close()
print("done")
"""


@pytest.mark.slow
def test_a_process_says_nothing_of_it_and_ends():
    # The tests' own setting would hide it.
    environment = {k: v for k, v in os.environ.items() if k != "TF_CPP_MIN_LOG_LEVEL"}
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM],
        env=environment,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "done\n", "")
