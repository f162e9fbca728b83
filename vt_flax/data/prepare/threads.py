"""An ordered map over threads, which decode and encode images."""

import itertools
import os
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any


def in_threads(function: Callable[[Any], Any], items: Iterable) -> Iterator[Any]:
    """Yields the function of each item, in order, computed by a thread per core.

    An executor's own `map` would compute all items at once and fill the memory.
    """
    workers = os.cpu_count() or 1
    items = iter(items)
    with ThreadPoolExecutor(workers) as pool:
        while chunk := list(itertools.islice(items, 8 * workers)):
            yield from pool.map(function, chunk)
