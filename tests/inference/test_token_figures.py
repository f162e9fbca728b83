"""Figures of given maps, against NumPy in float64."""

import jax
import numpy as np
import pytest
import token_reference as reference

from vt_flax.inference.token_classes import (
    class_figures,
    foreground_of,
    spread_weights,
)
from vt_flax.inference.token_figures import earlier_places, map_figures

pytestmark = pytest.mark.slow

SHAPE = (12, 20)
# Height and width in the input: all of it, cells cut in two, a single cell's column,
# and a place that holds no example.
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
    for key, (mean, spread) in expected.items():
        assert found[key].mean.shape == mean.shape
        np.testing.assert_allclose(found[key].mean, mean, 1e-5, 2e-6, err_msg=key)
        np.testing.assert_allclose(found[key].std, spread, 1e-4, 2e-6, err_msg=key)


def numpy_rows(maps):
    return [
        reference.figures(
            {name: of_heads[i] for name, of_heads in maps.items()},
            LENGTHS[i],
            SHAPE,
        )
        for i in np.flatnonzero(REAL)
    ]


@pytest.mark.parametrize("count", [2, 4], ids=["half", "all"])
def test_figures_of_three_modules(count):
    """Of half replacement, module 3 extracts anew what module 2 has kept."""
    maps = {
        "module1": draw(1, 4, 3, 5, 0),
        "module2": draw(3, count, 3, 5, 1),
        "module3": draw(3, count, 3, 5, 2),
    }
    # Nothing of a token on the second example: it looks at a corner beside it.
    maps["module2"][1, :, 0] = 0
    maps["module2"][1, :, 0, 2, 4] = 1
    found = jax.device_get(
        jax.jit(map_figures, static_argnums=(2, 4))(maps, LENGTHS, SHAPE, REAL, 4)
    )
    compare(found, numpy_rows(maps))
    assert found["module2/entropy"].count.tolist() == [3] + [4] * (count - 1)
    assert found["module2/outside"].count.tolist() == [4] * count


def test_extremes():
    """One cell has no entropy, all alike have the most; far corners, no overlap."""
    maps = np.zeros((len(REAL), 1, 3, 2, 2), np.float32)
    maps[:, 0, 0] = 1 / 4
    maps[:, 0, 1, 0, 0] = maps[:, 0, 2, 1, 1] = 1
    lengths = np.tile(np.asarray([SHAPE], np.int32), (len(REAL), 1))
    modules = {"module1": maps, "module2": maps[:, :, ::-1]}
    found = jax.jit(map_figures, static_argnums=(2, 4))(
        modules, lengths, SHAPE, REAL, 3
    )
    np.testing.assert_allclose(
        found["module1/entropy"].mean, [np.log(4), 0, 0], atol=1e-6
    )
    np.testing.assert_allclose(
        found["module1/entropy_share"].mean, [1, 0, 0], atol=1e-6
    )
    assert found["module1/overlap"].mean == pytest.approx((1 / 4 + 1 / 4 + 0) / 3)
    # The middle one stays; the others change places.
    np.testing.assert_allclose(
        found["module2/moved_overlap"].mean,
        [[1 / 4, 1 / 4, 1], [0, 1, 1 / 4], [1, 0, 1 / 4]],
    )
    np.testing.assert_allclose(
        found["module2/moved_distance"].mean, [0.125**0.5, 0, 0.125**0.5], atol=1e-6
    )


def test_where_tokens_come_from():
    half = earlier_places({"module1": 4, "module2": 2, "module3": 2, "module4": 2}, 4)
    first = [("module1", i) for i in range(4)]
    second, third = ([(f"module{m}", i) for i in range(2)] for m in (2, 3))
    assert half == {
        "module2": first,
        "module3": first[2:] + second,
        "module4": second + third,
    }
    # Pooling has no maps: half of what module 3 is given has come of them.
    assert list(earlier_places({"module2": 2, "module3": 2, "module4": 2}, 4)) == [
        "module4"
    ]
    assert earlier_places({"level2": 8, "level3": 8}, 8) == {}
    assert earlier_places({"stage": 8}, 8) == {}


def draw_masks(seed=3):
    """Images of other sizes than their part of the input, with pixels unlabeled."""
    rng = np.random.default_rng(seed)
    sizes = np.asarray([[20, 36], [9, 16], [36, 9], [5, 11], [0, 0]], np.int32)
    labels = np.full((len(sizes), 36, 36), 255, np.uint8)
    for i, (height, width) in enumerate(sizes):
        labels[i, :height, :width] = rng.choice([0, 1, 2, 255], (height, width))
    labels[3, :5, :11] = 255
    return sizes, labels


def test_shares_of_classes():
    names = ("Background", "a", "b")
    maps = {"level2": draw(1, 2, 6, 10, 4)[:, 0], "level3": draw(1, 3, 3, 4, 5)[:, 0]}
    sizes, labels = draw_masks()
    batch = {"label": labels, "size": sizes, "lengths": LENGTHS, "mask": REAL}
    found = jax.device_get(
        jax.jit(class_figures, static_argnums=(2, 3))(maps, batch, SHAPE, names)
    )
    rows = [
        reference.class_figures(
            {name: of_module[i] for name, of_module in maps.items()},
            labels[i, : sizes[i, 0], : sizes[i, 1]],
            LENGTHS[i],
            SHAPE,
            3,
            [0],
        )
        for i in np.flatnonzero(REAL)
    ]
    compare(found, rows)
    for key in ("classes", "level2/classes", "level3/classes"):
        np.testing.assert_allclose(found[key].mean.sum(-1), 1, rtol=1e-6)


def test_what_is_no_foreground():
    assert foreground_of(("background", "disc", "Void")) == [1]
    assert foreground_of(("things", "sky")) == [0, 1]


def test_nothing_of_a_map_is_lost_on_the_pixels():
    """Every cell of the example's part, whole or cut, is in its pixels once."""
    own, valid = np.asarray([7, 31]), np.asarray([23, 9])
    weights = np.asarray(spread_weights(own, valid, 32, 6, 24), np.float64)
    for i in range(2):
        np.testing.assert_allclose(
            weights[i].sum(0), reference.parts(valid[i], 24, 6), atol=1e-6
        )
        assert not weights[i, own[i] :].any()
