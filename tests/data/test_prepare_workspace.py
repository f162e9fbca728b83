"""Threads that work ahead: in order, and bounded."""

import threading
import time

from vt_flax.data.prepare.workspace import ordered_map


def test_results_come_in_order_and_few_wait():
    started, taken = [], []
    lock = threading.Lock()

    def slow_first(item):
        with lock:
            started.append(item)
        time.sleep(0.02 if item % 3 == 0 else 0)
        return item * item

    for result in ordered_map(slow_first, range(60), 2, 8):
        taken.append(result)
        # Eight wait for the taker, no more.
        assert len(started) <= len(taken) + 8
    assert taken == [i * i for i in range(60)]
