"""Counts of the values in masks."""

from collections.abc import Mapping, Sequence

import numpy as np

from vt_flax.errors import first_names


class MaskCounts:
    """Pixels and masks of each stored value.

    Attributes:
      masks: number of masks counted.
      pixels: (256,), int64: pixels of each value.
      masks_with: (256,), int64: masks in which each value occurs.
    """

    def __init__(self):
        self.masks = 0
        self.pixels = np.zeros(256, np.int64)
        self.masks_with = np.zeros(256, np.int64)

    @classmethod
    def of_pixels(cls, pixels: Mapping[str, int]) -> "MaskCounts":
        """Returns counts of known pixels by value, the values as JSON has them."""
        counts = cls()
        for value, count in pixels.items():
            counts.pixels[int(value)] = count
        return counts

    def add(self, histogram: np.ndarray) -> None:
        """Counts a mask, given as the number of pixels (256,) of each value."""
        self.masks += 1
        self.pixels += histogram
        self.masks_with += histogram > 0

    def __add__(self, other: "MaskCounts") -> "MaskCounts":
        """Returns the counts of both."""
        total = MaskCounts()
        total.masks = self.masks + other.masks
        total.pixels = self.pixels + other.pixels
        total.masks_with = self.masks_with + other.masks_with
        return total

    def values(self) -> list[int]:
        """Returns the values that occur, ascending."""
        return np.flatnonzero(self.pixels).tolist()

    def of_classes(self, table: np.ndarray, classes: int) -> np.ndarray:
        """Returns the pixels (classes,), int64, of each class.

        Args:
          table: (256,): the class that each value is, or 254 or 255.
          classes: number of classes.
        """
        pixels = np.zeros(256, np.int64)
        np.add.at(pixels, table, self.pixels)
        return pixels[:classes]

    def describe(self) -> str:
        """Returns the values that occur, with their pixels and masks."""
        return first_names(
            f"{value} ({self.pixels[value]:,} pixels in {self.masks_with[value]:,} of "
            f"{self.masks:,} masks)"
            for value in self.values()
        )


def absent_classes(pixels: Sequence[int], names: Sequence[str]) -> list[str]:
    """Returns the names of the classes without a pixel."""
    return [name for name, count in zip(names, pixels, strict=True) if not count]
