"""Threads that work ahead of whoever waits for their results."""

import collections
import concurrent.futures
import itertools
from collections.abc import Callable, Iterable, Iterator
from typing import Any


def ordered_map(
    function: Callable[[Any], Any], items: Iterable, workers: int, ahead: int
) -> Iterator[Any]:
    """Applies a function in threads and yields the results in order.

    Unlike an executor's `map`, it takes no more than `ahead` items before their turn,
    so that memory does not fill where the results are used slowly.
    """
    items = iter(items)
    with concurrent.futures.ThreadPoolExecutor(workers, "vt_flax-map") as pool:
        pending = collections.deque(
            pool.submit(function, item) for item in itertools.islice(items, ahead)
        )
        try:
            while pending:
                yield pending.popleft().result()
                for item in itertools.islice(items, 1):
                    pending.append(pool.submit(function, item))
        finally:
            for future in pending:
                future.cancel()
