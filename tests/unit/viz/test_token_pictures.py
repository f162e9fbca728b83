"""Pictures of maps: what is where in them, and what they say."""

import numpy as np
import pytest
from made_maps import softmax_maps

from vt_flax.inference.predictor import TokenAttention
from vt_flax.inference.token_maps import TokenMaps
from vt_flax.viz import token_pictures
from vt_flax.viz.overlays import overlay
from vt_flax.viz.token_pictures import (
    PANEL,
    Block,
    TokenPicture,
    captions,
    head_pictures,
    render,
    token_picture,
)

BLACK = np.zeros((40, 56, 3), np.uint8)


def picture_of(*blocks, image=BLACK, coverage=(1.0, 1.0)):
    return TokenPicture("a title", image, [list(blocks)], coverage)


def test_every_panel_is_in_the_picture():
    """Found by their pixels, each once, in order: to the right, then down."""
    maps = softmax_maps(6, 5, 7)
    drawn = np.asarray(render([picture_of(Block("one", maps))]))
    size = (PANEL, round(PANEL * 40 / 56))
    places = []
    for map_ in maps:
        panel = overlay(BLACK, map_, size)
        # Its number covers the upper left corner.
        corner = panel[30:, 40:]
        height, width = corner.shape[:2]
        places += [
            (y, x)
            for y, x in zip(*(drawn == corner[0, 0]).all(-1).nonzero(), strict=True)
            if np.array_equal(drawn[y : y + height, x : x + width], corner)
        ]
    assert len(places) == 6
    assert places == sorted(places)
    assert len({y for y, _ in places}) == 2


def test_captions_and_numbers(monkeypatch):
    drawn = []
    draw = token_pictures.ImageDraw.ImageDraw.text

    def record(self, at, text, *args, **options):
        drawn.append(text)
        draw(self, at, text, *args, **options)

    monkeypatch.setattr(token_pictures.ImageDraw.ImageDraw, "text", record)
    maps = softmax_maps(2, 5, 7)
    block = Block("module1: static tokenizer", maps, first=2)
    render([picture_of(block)])
    assert "module1: static tokenizer, 5 x 7 cells" in drawn
    assert {"2", "3", "smallest", "largest"} <= set(drawn)
    for map_ in maps:
        assert f"{map_.min():.2g} – {map_.max():.2g}" in drawn
    text = " ".join(drawn)
    assert "bilinearly between the cells' centers" in text
    assert "sum to 1 over all cells of its map" in text
    assert "projector" not in text

    drawn.clear()
    tokens = Block("module1: projector", softmax_maps(2, 3, 3), over="tokens")
    picture = picture_of(block, tokens, coverage=(0.5, 1.0))
    render([picture])
    # Two rows of cells and a half.
    assert f"{maps[0, :3].min():.2g} – {maps[0, :3].max():.2g}" in drawn
    text = " ".join(captions([picture]))
    assert "in each cell those of all tokens sum to 1" in text
    assert "The network's input is larger than the image" in text
    assert text.split() == " ".join(drawn).split()[-len(text.split()) :]


@pytest.mark.parametrize("shape", [(1, 1), (1, 300), (300, 1)])
def test_odd_images(shape):
    image = np.full((*shape, 3), 99, np.uint8)
    maps = softmax_maps(8, 4, 4)
    drawn = render([picture_of(Block("a", maps), Block("b", maps[:4]), image=image)])
    assert drawn.width < 2000 and drawn.height < 2000


def maps(*shape):
    return np.random.default_rng(sum(shape)).random(shape, np.float32)


STATIC = TokenMaps("static", maps(2, 1, 6, 4, 5), 0, maps(2, 2, 6, 4, 5))
DYNAMIC = TokenMaps("dynamic", maps(2, 3, 3, 4, 5), 3, None)
POOLING = TokenMaps("pooling", None, 0, maps(2, 2, 6, 4, 5))
IMAGES = [np.full((8, 10, 3), 9, np.uint8), np.full((4, 10, 3), 7, np.uint8)]
ATTENTION = TokenAttention(
    IMAGES,
    [(1.0, 1.0), (0.5, 1.0)],
    {"module1": STATIC, "module2": DYNAMIC, "module3": POOLING},
)


def test_means_over_heads():
    index = 1
    picture = token_picture(ATTENTION, index, "it", projections=True)
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
    assert picture.image is IMAGES[index]
    assert picture.coverage == ATTENTION.coverage[index]

    assert len(token_picture(ATTENTION, index, "it", projections=False).rows) == 1


def test_head_by_head():
    found = head_pictures(ATTENTION, 1, "it", projections=True)
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
    assert list(head_pictures(ATTENTION, 1, "it", projections=False)) == [
        "module2_heads"
    ]
