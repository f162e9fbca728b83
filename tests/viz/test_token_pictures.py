"""Pictures of maps: what is where in them, and what they say."""

import numpy as np
import pytest
from made_maps import softmax_maps

from vt_flax.viz import token_pictures
from vt_flax.viz.overlays import overlay
from vt_flax.viz.token_pictures import (
    PANEL,
    Block,
    TokenPicture,
    captions,
    render,
)

BLACK = np.zeros((40, 56, 3), np.uint8)


def picture_of(*blocks, image=BLACK, part=(1.0, 1.0)):
    return TokenPicture("a title", image, [list(blocks)], part)


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


def test_places_of_kept_tokens_stay_empty():
    maps = softmax_maps(4, 5, 7)
    without = np.asarray(render([picture_of(Block("half", maps[:2]))]))
    behind = np.asarray(render([picture_of(Block("half", maps[:2], first=2))]))
    plain = np.asarray(render([picture_of(Block("half", maps))]))
    grey = [(x == 0xEE).all(-1).sum() for x in (without, plain, behind)]
    assert max(grey[:2]) < 20 and grey[2] > 1.8 * PANEL * PANEL * 40 / 56


def test_what_is_said(monkeypatch):
    said = []
    draw = token_pictures.ImageDraw.ImageDraw.text
    monkeypatch.setattr(
        token_pictures.ImageDraw.ImageDraw,
        "text",
        lambda self, at, text, *a, **k: (
            said.append(text),
            draw(self, at, text, *a, **k),
        ),
    )
    maps = softmax_maps(2, 5, 7)
    block = Block("module1: static tokenizer", maps)
    render([picture_of(block)])
    assert "module1: static tokenizer, 5 x 7 cells" in said
    assert {"0", "1", "least", "greatest"} <= set(said)
    for map_ in maps:
        assert f"{map_.min():.2g} – {map_.max():.2g}" in said
    text = " ".join(said)
    for words in (
        "to 80 x 112 pixels, bilinearly between the cells' centres",
        "its least and its greatest coefficient",
        "sum to 1 over all cells of its map",
        "1 / 35 = 0.029",
    ):
        assert words in text
    assert "projector" not in text and "Σ" not in text

    said.clear()
    part = (0.5, 1.0)
    tokens = Block("module1: projector", softmax_maps(2, 3, 3), over="tokens")
    picture = picture_of(block, tokens, part=part)
    render([picture])
    # Two rows of cells and a half.
    assert f"{maps[0, :3].min():.2g} – {maps[0, :3].max():.2g}" in said
    rows = maps[0].astype(np.float64).sum(1)
    assert f"Σ {rows[:2].sum() + rows[2] / 2:.2f}" in said
    text = " ".join(captions([picture]))
    assert "in each cell those of all tokens sum to 1" in text
    assert "The network's input is larger than the image" in text
    assert text.split() == " ".join(said).split()[-len(text.split()) :]


@pytest.mark.parametrize("shape", [(1, 1), (1, 300), (300, 1), (500, 400)])
def test_odd_images(shape):
    image = np.full((*shape, 3), 99, np.uint8)
    maps = softmax_maps(8, 4, 4)
    drawn = render([picture_of(Block("a", maps), Block("b", maps[:4]), image=image)])
    assert drawn.width < 2000 and drawn.height < 2000


def test_pictures_stand_under_each_other():
    one = picture_of(Block("one", softmax_maps(4, 5, 7)))
    heights = [render([one] * count).height for count in (1, 2, 3)]
    assert heights[1] - heights[0] == heights[2] - heights[1] > PANEL
