"""Puts decoded examples together into the batches of a run, gaps and all."""

from collections.abc import Callable, Iterable, Iterator

import numpy as np

from vt_flax.data.decoders import Decoder, Item


def assemble(
    pieces: Iterator[Item],
    steps: Iterable[np.ndarray],
    decoder: Decoder,
    mend: Callable[[int], Item | None],
) -> Iterator[Item]:
    """Yields one batch for each step's rows.

    As long as nothing is bad a piece is a batch, and is handed on as it is.

    Args:
      pieces: examples in the order of their rows, some of them missing: `row` (n,), and
        the decoder's fields, (n, ...) each.
      steps: rows of each batch; all steps together have the rows of all pieces.
      decoder: that has made the pieces.
      mend: returns what stands for a missing row: the fields and `bad`; None if nothing
        does.

    Yields:
      The fields, and `bad` (rows,), True where the example is another than the row's,
      or a blank one.
    """
    held = _Held(pieces, decoder)
    for rows in steps:
        whole = held.take_whole(rows)
        if whole is not None and decoder.are_good(whole).all():
            yield {**whole, "bad": np.zeros(len(rows), bool)}
            continue
        if whole is not None:
            held.put_back(whole)
        found = []
        for row in rows.tolist():
            item = held.take(row)
            if item is None or not item.pop("good"):
                item = mend(row)
            found.append(item)
        yield _stack(found, decoder)


class _Held:
    """Examples that were decoded and are not yet in a batch."""

    def __init__(self, pieces: Iterator[Item], decoder: Decoder):
        self._pieces, self._decoder = pieces, decoder
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
        good = self._decoder.are_good(piece)
        for i, row in enumerate(piece["row"].tolist()):
            item = {key: piece[key][i] for key in self._decoder.fields}
            self._items[row] = {**item, "good": good[i], "bad": False}
            self._newest = max(self._newest, row)

    def take(self, row: int) -> Item | None:
        """Returns the example of a row, with whether it is `good`; None if missing."""
        while self._newest < row:
            piece = next(self._pieces, None)
            if piece is None:
                break
            self.put_back(piece)
        return self._items.pop(row, None)


def _stack(found: list[Item | None], decoder: Decoder) -> Item:
    batch = {**decoder.blank(len(found)), "bad": np.ones(len(found), bool)}
    for i, item in enumerate(found):
        if item is not None:
            for key, value in item.items():
                batch[key][i] = value
    return batch
