"""Token statistics restated in NumPy, float64, an example and a map at a time."""

import itertools
import math

import numpy as np

MIN_MASS = 1e-6


def coverage(length, shape, cells):
    """How much of each cell of an axis lies before `length`."""
    side = shape / cells
    return np.asarray(
        [np.clip(length - j * side, 0, side) / side for j in range(cells)]
    )


def crop(coefficients, length, shape):
    """A map on an example alone, None if nothing is there."""
    rows, columns = (
        coverage(n, s, c)
        for n, s, c in zip(length, shape, coefficients.shape, strict=True)
    )
    covered = coefficients.astype(np.float64) * rows[:, None] * columns
    return covered / covered.sum() if covered.sum() >= MIN_MASS else None


def relative_entropy(map_, length, shape):
    """As a share of the maximum, NaN if that is 0."""
    if map_ is None:
        return math.nan
    nats = -sum(p * math.log(p) for p in map_.ravel() if p > 0)
    cells = math.prod(
        np.count_nonzero(coverage(n, s, c))
        for n, s, c in zip(length, shape, map_.shape, strict=True)
    )
    return nats / math.log(cells) if cells > 1 else math.nan


def overlap(one, other):
    if one is None or other is None:
        return math.nan
    return sum(map(min, one.ravel().tolist(), other.ravel().tolist()))


def statistics(maps, length, shape):
    """Of one example's maps {module: (tokens, h, w)}."""
    found = {}
    for name, of_module in maps.items():
        mean = [crop(map_, length, shape) for map_ in of_module]
        found[f"{name}/relative_entropy"] = [
            relative_entropy(m, length, shape) for m in mean
        ]
        pairs = np.full((len(mean), len(mean)), np.nan)
        for i, j in itertools.permutations(range(len(mean)), 2):
            pairs[i, j] = overlap(mean[i], mean[j])
        known = np.maximum((~np.isnan(pairs)).sum(1), 1)
        means = np.nansum(pairs, 1) / known
        alone = np.isnan(pairs).all(1)
        found[f"{name}/overlap"] = np.where(alone, np.nan, means)
    return {key: np.asarray(value, np.float64) for key, value in found.items()}


def class_statistics(maps, label, length, shape, classes):
    """Of one example's maps {module: (tokens, h, w)}; a label of 255 is none."""
    kinds = [*range(classes), 255]
    found = {"area": np.asarray([np.mean(label == kind) for kind in kinds])}
    for name, of_module in maps.items():
        cells = of_module.shape[1:]
        pixels = [[[] for _ in range(cells[1])] for _ in range(cells[0])]
        for y, x in np.ndindex(*label.shape):
            # The center of the pixel, in cells.
            row, column = (
                int((i + 0.5) * length[axis] / label.shape[axis] * n / shape[axis])
                for axis, (i, n) in enumerate(zip((y, x), cells, strict=True))
            )
            pixels[row][column].append(label[y, x])
        shares = []
        for map_ in of_module:
            map_ = crop(map_, length, shape)
            mine = np.zeros(len(kinds))
            for row, column in np.ndindex(*cells):
                inside = pixels[row][column]
                for value in inside:
                    mine[kinds.index(value)] += map_[row, column] / len(inside)
            shares.append(mine / mine.sum())
        found[f"{name}/classes"] = np.asarray(shares)
    return found


def all_examples(rows):
    """Means and standard deviations over examples, leaving out NaN."""
    return {
        key: (
            np.nanmean([row[key] for row in rows], 0),
            np.nanstd([row[key] for row in rows], 0),
        )
        for key in rows[0]
    }
