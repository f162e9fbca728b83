"""Statistics of given attention maps, against NumPy in float64."""

import jax
import numpy as np
import token_reference as reference

from vt_flax.inference.token_statistics import attention_statistics, crop_maps

SHAPE = (12, 20)
# Height and width in the input: all of it, cells cut in two, a single cell's column,
# and a padding example.
LENGTHS = np.asarray([[12, 20], [7, 13], [12, 3], [9, 20], [1, 1]], np.int32)
REAL = np.asarray([True, True, True, True, False])


@jax.jit
def statistics(maps, lengths):
    maps, valid, cells = crop_maps(maps, lengths, SHAPE)
    return attention_statistics(maps, valid & REAL[:, None], cells)


def test_entropy_and_overlap():
    rng = np.random.default_rng(0)
    maps = np.exp(2 * rng.normal(size=(len(REAL), 4, 3, 5))).astype(np.float32)
    # The second example has nothing of token 0, which attends to a corner beside it.
    maps[1, 0] = 0
    maps[1, 0, 2, 4] = 1
    maps /= maps.sum((2, 3), keepdims=True)
    found = jax.device_get(statistics(maps, LENGTHS))
    rows = [
        reference.statistics({"m": maps[i]}, LENGTHS[i], SHAPE)
        for i in np.flatnonzero(REAL)
    ]
    for key, (mean, std) in reference.all_examples(rows).items():
        moments = found[key.removeprefix("m/")]
        np.testing.assert_allclose(moments.mean, mean, 1e-5, 2e-6)
        np.testing.assert_allclose(moments.std, std, 1e-4, 2e-6)
        assert moments.count.tolist() == [3, 4, 4, 4]


def test_extremes():
    """A single cell has entropy 0, a uniform map 1; far corners do not overlap."""
    maps = np.zeros((len(REAL), 3, 2, 2), np.float32)
    maps[:, 0] = 1 / 4
    maps[:, 1, 0, 0] = maps[:, 2, 1, 1] = 1
    lengths = np.tile(np.asarray([SHAPE], np.int32), (len(REAL), 1))
    found = statistics(maps, lengths)
    np.testing.assert_allclose(found["relative_entropy"].mean, [1, 0, 0], atol=1e-6)
    np.testing.assert_allclose(found["overlap"].mean, [1 / 4, 1 / 8, 1 / 8])
    # A module's only token overlaps with no other.
    assert statistics(maps[:, :1], lengths)["overlap"].count == 0
    assert found["overlap"].count.tolist() == [4, 4, 4]
