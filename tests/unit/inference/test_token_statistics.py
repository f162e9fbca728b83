"""Statistics of given attention maps, against NumPy in float64."""

import jax
import numpy as np
import pytest
import token_reference as reference

from vt_flax.inference.token_statistics import (
    attention_statistics,
    class_statistics,
    foreground_classes,
)

pytestmark = pytest.mark.slow

SHAPE = (12, 20)
# Height and width in the input: all of it, cells cut in two, a single cell's column,
# and a padding example.
LENGTHS = np.asarray([[12, 20], [7, 13], [12, 3], [9, 20], [1, 1]], np.int32)
REAL = np.asarray([True, True, True, True, False])


def draw(heads, tokens, height, width, seed, sharp=2.0):
    rng = np.random.default_rng(seed)
    logits = sharp * rng.normal(size=(len(REAL), heads, tokens, height * width))
    maps = np.exp(logits) / np.exp(logits).sum(-1, keepdims=True)
    return maps.reshape(len(REAL), heads, tokens, height, width).astype(np.float32)


def compare(found, rows):
    expected = reference.all_examples(rows)
    assert found.keys() == expected.keys()
    for key, (mean, std) in expected.items():
        assert found[key].mean.shape == mean.shape
        np.testing.assert_allclose(found[key].mean, mean, 1e-5, 2e-6, err_msg=key)
        np.testing.assert_allclose(found[key].std, std, 1e-4, 2e-6, err_msg=key)


@pytest.mark.parametrize("heads", [1, 3])
def test_entropy_and_overlap(heads):
    maps = draw(heads, 4, 3, 5, heads)
    # The second example has nothing of token 0, which attends to a corner beside it.
    maps[1, :, 0] = 0
    maps[1, :, 0, 2, 4] = 1
    statistics = jax.jit(attention_statistics, static_argnums=2)
    found = jax.device_get(statistics(maps, LENGTHS, SHAPE, REAL))
    rows = [
        reference.statistics({"m": maps[i]}, LENGTHS[i], SHAPE)
        for i in np.flatnonzero(REAL)
    ]
    compare({f"m/{key}": value for key, value in found.items()}, rows)
    assert found["relative_entropy"].count.tolist() == [3, 4, 4, 4]
    assert found["overlap"].count.tolist() == [3, 4, 4, 4]


def test_extremes():
    """A single cell has entropy 0, a uniform map 1; far corners do not overlap."""
    maps = np.zeros((len(REAL), 1, 3, 2, 2), np.float32)
    maps[:, 0, 0] = 1 / 4
    maps[:, 0, 1, 0, 0] = maps[:, 0, 2, 1, 1] = 1
    lengths = np.tile(np.asarray([SHAPE], np.int32), (len(REAL), 1))
    statistics = jax.jit(attention_statistics, static_argnums=2)
    found = statistics(maps, lengths, SHAPE, REAL)
    np.testing.assert_allclose(found["relative_entropy"].mean, [1, 0, 0], atol=1e-6)
    np.testing.assert_allclose(found["overlap"].mean, [1 / 4, 1 / 8, 1 / 8])
    # A module's only token overlaps with no other.
    assert statistics(maps[:, :, :1], lengths, SHAPE, REAL)["overlap"].count == 0


def draw_masks(seed=3):
    """Images of other sizes than their part of the input, with pixels unlabeled."""
    rng = np.random.default_rng(seed)
    sizes = np.asarray([[20, 36], [9, 16], [36, 9], [11, 23], [0, 0]], np.int32)
    labels = np.full((len(sizes), 36, 36), 255, np.uint8)
    for i, (height, width) in enumerate(sizes):
        labels[i, :height, :width] = rng.choice([0, 1, 2, 255], (height, width))
    labels[3, :11, :23] = 255
    return sizes, labels


@pytest.mark.parametrize("height, width", [(6, 10), (3, 4)])
def test_shares_of_classes(height, width):
    maps = draw(1, 2, height, width, 4)[:, 0]
    sizes, labels = draw_masks()
    batch = {"label": labels, "size": sizes, "mask": REAL}
    names = ("Background", "a", "b")
    statistics = jax.jit(class_statistics, static_argnums=(3, 4))
    found = jax.device_get(statistics(maps, batch, LENGTHS, SHAPE, names))
    rows = [
        reference.class_statistics(
            *({"m": maps[i]}, labels[i, : sizes[i, 0], : sizes[i, 1]]),
            *(LENGTHS[i], SHAPE, 3, [0]),
        )
        for i in np.flatnonzero(REAL)
    ]
    compare({k if "area" in k else f"m/{k}": v for k, v in found.items()}, rows)
    np.testing.assert_allclose(found["classes"].mean.sum(-1), 1, rtol=1e-6)


def test_foreground_is_what_is_not_named_background():
    assert foreground_classes(("background", "disc", "Void")) == [1]
    assert foreground_classes(("things", "sky")) == [0, 1]
