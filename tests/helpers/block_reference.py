"""A residual block in NumPy, with the parts that a network puts in place of its own."""

import flax.linen as nn
import numpy as np
from reference import convolve, resize, softmax


class Same(nn.Module):
    """A module that is the same in training, called as those that are not."""

    module: nn.Module

    def __call__(self, x, *, train):
        return self.module(x)


def same(function):
    """The restatement of `Same(module)` from that of the module."""
    return lambda p, x: function(p / "module", x)


def plain(p, x, stride):
    """A convolution."""
    return convolve(x, p.get("kernel"), stride)


def residual_block(p, x, stride=1, variant="torchvision", gate=None, replaced=None):
    """ReLU(shortcut(x) + gate(BN(... ReLU(BN(conv(x)))))).

    Args:
      p: the scope of the block.
      x: (batch, H, W, C).
      stride: of the block.
      variant: which convolution of three strides: the second, or the first (msra).
      gate: `gate(scope, y)`, what the residual branch passes last.
      replaced: convolutions that are something else, by name: `f(scope, y, stride)`.
    """
    count = len({path for path in p.params if path[0].startswith("norm")}) // 2
    strided = 2 if count == 3 and variant == "torchvision" else 1
    y = x
    for i in range(1, count + 1):
        conv = (replaced or {}).get(f"conv{i}", plain)
        y = conv(p / f"conv{i}", y, stride if i == strided else 1)
        y = p.normalize(y, f"norm{i}")
        y = np.maximum(y, 0) if i < count else y
    y = gate(p / "gate", y) if gate else y
    if ("shortcut", "kernel") in p.params:
        x = p.normalize(plain(p / "shortcut", x, stride), "shortcut_norm")
    return np.maximum(x + y, 0)


def sigmoid(x):
    """1 / (1 + exp(-x))."""
    return 1 / (1 + np.exp(-x))


def dense(p, x, name):
    """x W + b."""
    return x @ p.get(name, "kernel") + p.get(name, "bias")


def halve(x):
    """The mean of the 3 x 3 pixels around every second pixel, as far as they exist."""
    batch, height, width, channels = x.shape
    out = np.zeros((batch, (height + 1) // 2, (width + 1) // 2, channels))
    for i in range(out.shape[1]):
        for j in range(out.shape[2]):
            rows, columns = slice(max(2 * i - 1, 0), 2 * i + 2), 2 * j
            window = x[:, rows, max(columns - 1, 0) : columns + 2]
            out[:, i, j] = window.mean((1, 2))
    return out


def attend_relatively(p, x, heads, keys):
    """Pixel i = (y, x) attends to j = (v, u) by q_i . (k_j + r_v-y + c_u-x) / sqrt(d).

    Offsets beyond the embeddings are taken as the farthest.
    """
    batch, height, width, _ = x.shape
    maps = x @ p.get("maps", "kernel")
    rows, columns = p.get("rows"), p.get("columns")
    d, e = keys // heads, (maps.shape[-1] - 2 * keys) // heads
    positions = [(y, x) for y in range(height) for x in range(width)]

    def offset(table, distance):
        reach = len(table) // 2
        return table[min(max(distance, -reach), reach) + reach]

    out = np.zeros((batch, height, width, heads * e))
    for y, x in positions:
        relative = [offset(rows, v - y) + offset(columns, u - x) for v, u in positions]
        relative = np.array(relative).reshape(height, width, d)
        for h in range(heads):
            own = slice(h * d, (h + 1) * d)
            query = maps[:, y, x, :keys][:, own]
            key = maps[..., keys : 2 * keys][..., own] + relative
            value = maps[..., 2 * keys :][..., h * e : (h + 1) * e]
            logits = np.einsum("bd,bvud->bvu", query, key) / np.sqrt(d)
            weights = softmax(logits.reshape(batch, -1), 1).reshape(logits.shape)
            mixed = np.einsum("bvu,bvue->be", weights, value)
            out[:, y, x, h * e : (h + 1) * e] = mixed
    return out @ p.get("output", "kernel")


def augmented(p, x, stride, heads, keys, reduction):
    """[conv(x), attention of x at the reduced resolution, enlarged]."""
    near = convolve(x, p.get("local", "kernel"), stride)
    for factor in (stride, reduction):
        x = halve(x) if factor == 2 else x
    far = attend_relatively(p / "attention", x, heads, keys)
    return np.concatenate([near, resize(far, *near.shape[1:3])], -1)
