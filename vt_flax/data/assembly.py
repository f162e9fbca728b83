"""Puts decoded examples together into the batches of a run, gaps and all."""

from collections.abc import Callable, Iterable, Iterator
from typing import Any

import numpy as np

Item = dict[str, Any]


def assemble(
    pieces: Iterator[Item],
    steps: Iterable[np.ndarray],
    is_good: Callable[[np.ndarray], np.ndarray],
    mend: Callable[[int], Item | None],
    size: int,
) -> Iterator[Item]:
    """Yields one batch for each step's rows.

    As long as nothing is bad a piece is a batch, and is handed on as it is.

    Args:
      pieces: examples in the order of their rows, some of them missing: `row` (n,),
        `image` (n, size, size, 3) uint8 and `label` (n,) int32.
      steps: rows of each batch; all steps together have the rows of all pieces.
      is_good: tells which of some labels can be.
      mend: returns what stands for a missing row: `image`, `label` and `bad`; None if
        nothing does.
      size: side of the images.

    Yields:
      `image`, `label` and `bad` (rows,), True where the example is another than the
      row's, or a blank one.
    """
    held = _Held(pieces)
    for rows in steps:
        whole = held.take_whole(rows)
        if whole is not None and is_good(whole["label"]).all():
            yield {**whole, "bad": np.zeros(len(rows), bool)}
            continue
        if whole is not None:
            held.put_back(whole)
        found = []
        for row in rows.tolist():
            item = held.take(row)
            if item is None or not is_good(item["label"]):
                item = mend(row)
            found.append(item)
        yield _stack(found, size)


class _Held:
    """Examples that were decoded and are not yet in a batch."""

    def __init__(self, pieces: Iterator[Item]):
        self._pieces = pieces
        self._items: dict[int, Item] = {}
        self._newest = -1

    def take_whole(self, rows: np.ndarray) -> Item | None:
        """Returns the next piece if it holds these rows and nothing is left over."""
        if self._items or not len(rows):
            return None
        piece = next(self._pieces, None)
        if piece is None:
            return None
        if np.array_equal(piece["row"], rows):
            return piece
        self.put_back(piece)
        return None

    def put_back(self, piece: Item) -> None:
        """Keeps a piece's examples apart."""
        for i, row in enumerate(piece["row"].tolist()):
            self._items[row] = {key: piece[key][i] for key in ("image", "label")}
            self._newest = max(self._newest, row)

    def take(self, row: int) -> Item | None:
        """Returns the example of a row; None if it is missing."""
        while self._newest < row:
            piece = next(self._pieces, None)
            if piece is None:
                break
            self.put_back(piece)
        item = self._items.pop(row, None)
        return None if item is None else {**item, "bad": False}


def _stack(found: list[Item | None], size: int) -> Item:
    images = np.zeros((len(found), size, size, 3), np.uint8)
    labels = np.zeros(len(found), np.int32)
    bad = np.ones(len(found), bool)
    for i, item in enumerate(found):
        if item is not None:
            images[i], labels[i], bad[i] = item["image"], item["label"], item["bad"]
    return {"image": images, "label": labels, "bad": bad}
