"""Figures of tokens restated in NumPy, float64, an example and a map at a time."""

import itertools
import math

import numpy as np

LEAST = 1e-6


def parts(length, shape, cells):
    """How much of each cell of an axis lies before `length`."""
    side = shape / cells
    return np.asarray(
        [np.clip(length - j * side, 0, side) / side for j in range(cells)]
    )


def cut(coefficients, length, shape):
    """A map on an example alone, None if nothing is there; and what was there of it."""
    rows, columns = (
        parts(n, s, c)
        for n, s, c in zip(length, shape, coefficients.shape, strict=True)
    )
    there = coefficients.astype(np.float64) * rows[:, None] * columns
    inside = there.sum()
    return (there / inside if inside >= LEAST else None), inside


def entropies(map_, length, shape):
    """In nats, and as a share of the most, NaN if there is none."""
    if map_ is None:
        return math.nan, math.nan
    nats = -sum(p * math.log(p) for p in map_.ravel() if p > 0)
    cells = math.prod(
        np.count_nonzero(parts(n, s, c))
        for n, s, c in zip(length, shape, map_.shape, strict=True)
    )
    return nats, nats / math.log(cells) if cells > 1 else math.nan


def overlap(one, other):
    if one is None or other is None:
        return math.nan
    return sum(map(min, one.ravel().tolist(), other.ravel().tolist()))


def center(map_, length, shape):
    """Of mass, a cell's being in the middle of what the example has of it."""
    place = []
    for axis in range(2):
        side = shape[axis] / map_.shape[axis]
        begins = side * np.arange(map_.shape[axis])
        ends = np.minimum(begins + side, length[axis])
        middles = (begins + np.maximum(ends, begins)) / 2
        place.append((map_.sum(1 - axis) * middles).sum() / length[axis])
    return np.asarray(place)


def figures(maps, length, shape):
    """All figures of one example's maps {module: (heads, L', h, w)}.

    The first of its modules gives all tokens maps.
    """
    found, state = {}, []
    for name, of_heads in maps.items():
        mean = of_heads.astype(np.float64).mean(0)
        cuts = [cut(m, length, shape) for m in mean]
        pairs = [entropies(m, length, shape) for m, _ in cuts]
        found[f"{name}/entropy"], found[f"{name}/entropy_share"] = zip(
            *pairs, strict=True
        )
        found[f"{name}/outside"] = [1 - inside for _, inside in cuts]
        if len(of_heads) > 1:
            heads = [
                [entropies(cut(m, length, shape)[0], length, shape) for m in head]
                for head in of_heads
            ]
            found[f"{name}/head_entropy"] = np.asarray(heads)[..., 0]
            found[f"{name}/head_entropy_share"] = np.asarray(heads)[..., 1]
        new = [m for m, _ in cuts]
        if len(new) > 1:
            between = [overlap(a, b) for a, b in itertools.combinations(new, 2)]
            known = [o for o in between if not math.isnan(o)]
            found[f"{name}/overlap"] = np.mean(known) if known else math.nan
        if name.startswith("module"):
            if state:
                found[f"{name}/moved_overlap"] = [
                    [overlap(a, b) for b in new] for a in state
                ]
                found[f"{name}/moved_distance"] = [
                    np.linalg.norm(center(a, length, shape) - center(b, length, shape))
                    if a is not None and b is not None
                    else math.nan
                    for a, b in zip(state, new, strict=False)
                ]
            # All are replaced, or the first half; then what was kept comes first.
            state = [*state[len(new) :], *new]
    return {key: np.asarray(value, np.float64) for key, value in found.items()}


def class_figures(maps, label, length, shape, classes, background):
    """Shares of classes of one example's maps {module: (L, h, w)}, 255: no label."""
    height, width = label.shape
    everywhere = np.full((1, 1, 1), 1.0)
    found = {}
    for name, of_module in {**maps, "": everywhere}.items():
        shares = []
        for map_ in of_module.astype(np.float64):
            # A map of one cell that is the whole example: its area.
            whole = shape if name else length
            spread = np.zeros((height, width))
            for y, x in np.ndindex(height, width):
                spread[y, x] = (
                    _in_pixel(y, height, length[0], map_.shape[0], whole[0])
                    @ map_
                    @ _in_pixel(x, width, length[1], map_.shape[1], whole[1])
                )
            mine = [spread[label == k].sum() for k in (*range(classes), 255)]
            shares.append(np.asarray(mine) / sum(mine))
        front = [i for i in range(classes) if i not in background]
        prefix = f"{name}/" if name else ""
        shares = np.asarray(shares) if name else shares[0]
        found[f"{prefix}classes"] = shares
        found[f"{prefix}foreground"] = shares[..., front].sum(-1)
    return found


def _in_pixel(index, own, length, cells, extent):
    """The share of each cell that lies in a pixel of the example."""
    low, high = index * length / own, (index + 1) * length / own
    side = extent / cells
    edges = side * np.arange(cells)
    inside = np.minimum(high, edges + side) - np.maximum(low, edges)
    return np.maximum(inside, 0) / side


def best_match(overlaps):
    """For each new token the earlier one, of all ways the one that overlaps most."""
    earlier, new = overlaps.shape
    ways = itertools.permutations(range(earlier), new)
    return max(ways, key=lambda way: sum(overlaps[e, n] for n, e in enumerate(way)))


def information(shares):
    """Mutual information of token and class in nats, and of the class's entropy."""
    joint = shares / shares.sum()
    token, classes = joint.sum(1), joint.sum(0)
    nats = sum(
        joint[t, c] * math.log(joint[t, c] / token[t] / classes[c])
        for t, c in zip(*np.nonzero(joint), strict=True)
    )
    return nats, nats / -sum(p * math.log(p) for p in classes if p)


def all_examples(rows):
    """Means and spreads of examples' figures, those that are not there left out."""
    return {
        key: (
            np.nanmean([row[key] for row in rows], 0),
            np.nanstd([row[key] for row in rows], 0),
        )
        for key in rows[0]
    }
