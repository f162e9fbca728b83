"""Local attention in NumPy and float64: loops over pixels and offsets.

Nothing here imports the library. `p` is a `reference.Scope`.
"""

import numpy as np
from reference import softmax


def mirrored(i, size):
    """The index of the pixel that mirroring at the outermost pixels puts at `i`."""
    if size == 1:
        return 0
    i = abs(i) % (2 * size - 2)
    return min(i, 2 * size - 2 - i)


def windows(x, size, stride=1, border="zeros"):
    """The size x size pixels around every `stride`-th: (batch, H', W', offsets, C)."""
    batch, height, width, channels = x.shape
    rows, columns = -(-height // stride), -(-width // stride)
    out = np.zeros((batch, rows, columns, size * size, channels))
    for i in range(rows):
        for j in range(columns):
            for o in range(size * size):
                y = i * stride + o // size - size // 2
                z = j * stride + o % size - size // 2
                if border == "mirror":
                    y, z = mirrored(y, height), mirrored(z, width)
                if 0 <= y < height and 0 <= z < width:
                    out[:, i, j, o] = x[:, y, z]
    return out


def weighted_sum(weights, x, group, size, stride=1, border="zeros"):
    """Sums of a window's pixels; channel c has the weight c // group."""
    seen = windows(x, size, stride, border)
    out = np.zeros((*seen.shape[:3], seen.shape[4]))
    for o in range(size * size):
        for c in range(seen.shape[4]):
            out[..., c] += weights[..., o, c // group] * seen[..., o, c]
    return out


def local_relation(p, x, size, stride):
    """softmax over the window of -(q - k)^2 + g; its sum of x; then 1 x 1.

    Beyond the border x is zero, so k is, and such pixels take part in the softmax.
    """
    query = p.linear(x[:, ::stride, ::stride], "query")
    keys = windows(p.linear(x, "key"), size, stride)
    prior = np.zeros((size * size, query.shape[-1]))
    for o in range(size * size):
        half = size // 2
        offset = np.array([o // size - half, o % size - half]) / half
        inside = p.linear(offset, "geometry1") + p.get("geometry1", "bias")
        inside = np.maximum(inside, 0)
        prior[o] = p.linear(inside, "geometry2") + p.get("geometry2", "bias")
    weights = softmax(prior - (query[:, :, :, None] - keys) ** 2, 3)
    return p.linear(weighted_sum(weights, x, 8, size, stride), "out")


def stand_alone(p, x, heads, size):
    """softmax over the window of q . k + q . r in each head; its sum of v.

    r holds a vector of the row and one of the column, which overlap where a head has an
    odd number of channels. Beyond the border k and v are zero, and such pixels take
    part in the softmax.
    """
    query, key, value = (p.linear(x, name) for name in ("query", "key", "value"))
    row, column = p.get("row"), p.get("column")
    depth = query.shape[-1] // heads
    keys = windows(key, size)
    logits = np.zeros((*keys.shape[:4], heads))
    for o in range(size * size):
        for h in range(heads):
            of_head = slice(h * depth, (h + 1) * depth)
            r = np.zeros(depth)
            for c in range(row.shape[-1]):
                r[c] += row[o // size, h, c]
                r[depth - 1 - c] += column[o % size, h, -1 - c]
            sees = keys[:, :, :, o, of_head] + r
            logits[..., o, h] = (query[..., of_head] * sees).sum(-1)
    return weighted_sum(softmax(logits, 3), value, depth, size)


def block_attention(p, x, heads, size):
    """Each block of pixels attends to itself; values depend on the position in it.

    Pixels beyond the border are zero, and take part in the softmax.
    """
    batch, height, width, channels = x.shape
    row, column, nu = p.get("row"), p.get("column"), p.get("mixture")
    maps = p.get("value")
    features = maps.shape[-1]
    depth = features // heads
    out = np.zeros((batch, height, width, features))
    positions = [(a, b) for a in range(size) for b in range(size)]
    for b in range(batch):
        for top in range(0, height, size):
            for left in range(0, width, size):
                pixels, values = np.zeros((size * size, channels)), []
                for n, (i, j) in enumerate(positions):
                    if top + i < height and left + j < width:
                        pixels[n] = x[b, top + i, left + j]
                    mixture = softmax(nu @ (row[i] + column[j]), 0)
                    mixed = sum(w * m for w, m in zip(mixture, maps, strict=True))
                    values.append(pixels[n] @ mixed)
                query, key = p.linear(pixels, "query"), p.linear(pixels, "key")
                for h in range(heads):
                    of_head = slice(h * depth, (h + 1) * depth)
                    weights = softmax(query[:, of_head] @ key[:, of_head].T, 1)
                    sums = weights @ np.stack(values)[:, of_head]
                    for n, (i, j) in enumerate(positions):
                        if top + i < height and left + j < width:
                            out[b, top + i, left + j, of_head] = sums[n]
    return out


def affine(p, x, name):
    """A linear map with a bias."""
    return p.linear(x, name) + p.get(name, "bias")


def pairwise(p, x, size):
    """softmax over the window of a map of (q - k, differences of mapped positions)."""
    batch, height, width, _ = x.shape
    query, key, value = (affine(p, x, name) for name in ("query", "key", "value"))
    position = np.zeros((1, height, width, 2))
    for i in range(height):
        for j in range(width):
            position[0, i, j, 0] = -1 + 2 * j / max(1, width - 1)
            position[0, i, j, 1] = -1 + 2 * i / max(1, height - 1)
    position = np.repeat(affine(p, position, "position"), batch, 0)
    both = np.concatenate([query, position], -1)[:, :, :, None]
    both = both - windows(np.concatenate([key, position], -1), size, border="mirror")
    hidden = np.maximum(p.normalize(both, "norm1"), 0)
    hidden = np.maximum(p.normalize(p.linear(hidden, "map1"), "norm2"), 0)
    weights = softmax(p.linear(hidden, "map2") + p.get("map2_bias"), 3)
    return weighted_sum(weights, value, 8, size, border="mirror")


def patchwise(p, x, size):
    """All weights of a window by a map of q and, offset by offset, each k."""
    query, key, value = (affine(p, x, name) for name in ("query", "key", "value"))
    keys = windows(key, size, border="mirror")
    joined = [query] + [keys[:, :, :, o] for o in range(size * size)]
    hidden = np.maximum(p.normalize(np.concatenate(joined, -1), "norm1"), 0)
    hidden = np.maximum(p.normalize(p.linear(hidden, "map1"), "norm2"), 0)
    weights = p.linear(hidden, "map2") + p.get("map2_bias")
    weights = weights.reshape(*weights.shape[:3], size * size, -1)
    return weighted_sum(weights, value, 8, size, border="mirror")
