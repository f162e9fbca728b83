"""What is given to be drawn of where tokens look."""

import numpy as np
import pytest
from PIL import Image

from vt_flax.inference.predictor import Looks
from vt_flax.inference.token_maps import TokenMaps
from vt_flax.viz.pictures import head_pictures, shrunk, token_picture


def maps(*shape):
    return np.random.default_rng(sum(shape)).random(shape, np.float32)


STATIC = TokenMaps("static", maps(2, 1, 6, 4, 5), 0, maps(2, 2, 6, 4, 5))
DYNAMIC = TokenMaps("dynamic", maps(2, 3, 3, 4, 5), 3, None)
POOLING = TokenMaps("pooling", None, 0, maps(2, 2, 6, 4, 5))
IMAGES = [np.full((8, 10, 3), 9, np.uint8), np.full((4, 10, 3), 7, np.uint8)]
LOOKS = Looks(
    IMAGES,
    [(1.0, 1.0), (0.5, 1.0)],
    {"module1": STATIC, "module2": DYNAMIC, "module3": POOLING},
)


@pytest.mark.parametrize("index", [0, 1])
def test_means_over_heads(index):
    picture = token_picture(LOOKS, index, "it", projections=True)
    tokenizers, projectors = picture.rows
    assert [block.heading for block in tokenizers] == [
        "module1: static tokenizer",
        "module2: dynamic tokenizer, mean of 3 heads",
    ]
    assert [block.heading for block in projectors] == [
        "module1: projector, mean of 2 heads",
        "module3: projector, mean of 2 heads",
    ]
    assert [block.first for block in tokenizers] == [0, 3]
    for block, values in zip(
        (*tokenizers, *projectors),
        (STATIC.coefficients, DYNAMIC.coefficients, STATIC.projection)
        + (POOLING.projection,),
        strict=True,
    ):
        own = values[index].astype(np.float64)
        expected = sum(own[head] for head in range(len(own))) / len(own)
        np.testing.assert_allclose(block.maps, expected, rtol=1e-6)
    assert [block.over for block in tokenizers] == ["pixels"] * 2
    assert [block.over for block in projectors] == ["tokens"] * 2
    assert picture.image is IMAGES[index] and picture.part == LOOKS.parts[index]
    assert len(token_picture(LOOKS, index, "it", projections=False).rows) == 1


def test_head_by_head():
    found = head_pictures(LOOKS, 1, "it", projections=True)
    assert list(found) == [
        *("module1_projector_heads", "module2_heads", "module3_projector_heads")
    ]
    blocks = [block for row in found["module2_heads"].rows for block in row]
    assert [block.heading for block in blocks] == [
        f"token {i}, head by head" for i in (3, 4, 5)
    ]
    for token, block in enumerate(blocks):
        for head in range(3):
            np.testing.assert_array_equal(
                block.maps[head], DYNAMIC.coefficients[1, head, token]
            )
    # Rows of four.
    assert [len(r) for r in found["module1_projector_heads"].rows] == [4, 2]
    assert list(head_pictures(LOOKS, 1, "it", projections=False)) == ["module2_heads"]


@pytest.mark.parametrize("shape", [(30, 40), (100, 50), (700, 900), (5, 2000)])
def test_large_images_are_shrunk(shape):
    y, x = np.mgrid[: shape[0], : shape[1]]
    ramp = np.stack([x * 255 // shape[1], y * 255 // shape[0], 0 * x], -1)
    ramp = ramp.astype(np.uint8)
    found = shrunk(ramp, 100)
    if max(shape) <= 100:
        np.testing.assert_array_equal(found, ramp)
        return
    size = [max(1, round(side * 100 / max(shape))) for side in shape]
    assert list(found.shape) == [*size, 3]
    exact = Image.fromarray(ramp).resize(size[::-1], Image.Resampling.BILINEAR)
    assert np.abs(found.astype(int) - np.asarray(exact)).max() <= 6
