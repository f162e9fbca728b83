"""Counts of the values in masks, and the classes without a pixel."""

from collections.abc import Mapping, Sequence

import numpy as np

from vt_flax.errors import first_names


class MaskCounts:
    """Number of pixels (256,), int64, of each stored value in some masks."""

    def __init__(self, pixels: np.ndarray | int = 0):
        self.pixels = np.zeros(256, np.int64) + pixels

    @classmethod
    def of_pixels(cls, pixels: Mapping[str, int]) -> "MaskCounts":
        """Returns counts of known pixels by value, the values as JSON has them."""
        counts = cls()
        for value, count in pixels.items():
            counts.pixels[int(value)] = count
        return counts

    def add(self, histogram: np.ndarray) -> None:
        """Counts a mask, given as the number of pixels (256,) of each value."""
        self.pixels += histogram

    def values(self) -> list[int]:
        """Returns the values that occur, ascending."""
        return np.flatnonzero(self.pixels).tolist()

    def absent(self, table: np.ndarray, names: Sequence[str]) -> list[str]:
        """Returns the names of the classes without a pixel.

        Args:
          table: (256,): class of each value, or 254 or 255.
          names: of the classes.
        """
        present = {*table[self.values()].tolist()}
        return [name for i, name in enumerate(names) if i not in present]

    def describe(self) -> str:
        """Returns the values that occur, with their pixels."""
        return first_names(f"{v} ({self.pixels[v]:,} pixels)" for v in self.values())
