"""Pictures of maps: colours, places and words against Pillow and plain arithmetic."""

import matplotlib
import numpy as np
import pytest
from PIL import Image

from vt_flax.analysis import token_pictures
from vt_flax.analysis.token_pictures import (
    PANEL,
    Block,
    TokenPicture,
    captions,
    on_image,
    overlay,
    render,
    share_on_image,
)

BLACK = np.zeros((40, 56, 3), np.uint8)


def softmax_maps(count, height, width, seed=0):
    logits = np.random.default_rng(seed).normal(size=(count, height * width))
    maps = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    return maps.reshape(count, height, width).astype(np.float32)


def coefficients_of(colours, low, high):
    """Reads levels over black back from their colours, as a person with a ruler."""
    table = 0.75 * 255 * matplotlib.colormaps["inferno"](np.arange(256))[:, :3]
    away = np.abs(colours[..., None, :].astype(float) - table).sum(-1)
    assert away.min(-1).max() <= 3
    return low + (away.argmin(-1) + 0.5) / 256 * (high - low)


@pytest.mark.parametrize("size", [(112, 80), (140, 100), (7, 5)])
def test_an_overlay_shows_the_coefficients(size):
    (map_,) = softmax_maps(1, 5, 7)
    found = coefficients_of(overlay(BLACK, map_, size), map_.min(), map_.max())
    expected = np.asarray(Image.fromarray(map_).resize(size, Image.Resampling.BILINEAR))
    step = (map_.max() - map_.min()) / 256
    np.testing.assert_allclose(found, expected, atol=1.5 * step)
    if size == (140, 100):
        # In the middle of a cell is the cell's own coefficient.
        centres = found[10::20, 10::20]
        np.testing.assert_allclose(centres, map_, atol=0.05 * np.ptp(map_))


def test_an_overlay_is_the_grey_image_where_nobody_looks():
    image = np.random.default_rng(0).integers(0, 256, (6, 8, 3), np.uint8)
    map_ = np.zeros((6, 8), np.float32)
    map_[0, 0] = 1
    found = overlay(image, map_, (8, 6))
    darkest = 0.75 * 255 * np.asarray(matplotlib.colormaps["inferno"](0.0)[:3])
    expected = 0.35 * image.mean(-1, keepdims=True) + darkest
    np.testing.assert_allclose(found[1:, 1:], expected[1:, 1:], atol=1.01)


def test_a_constant_map_has_one_colour():
    found = overlay(BLACK, np.full((3, 4), 0.25, np.float32), (40, 30))
    assert len(np.unique(found.reshape(-1, 3), axis=0)) == 1


def test_a_part_is_cut_out_of_the_whole():
    """As if all were enlarged, and then what lies on the image were taken."""
    (map_,) = softmax_maps(1, 6, 8)
    whole = Image.fromarray(map_).resize((80, 60), Image.Resampling.BILINEAR)
    part = np.asarray(whole)[:30, :50]
    low, high = map_[:3, :5].min(), map_[:3, :5].max()
    found = overlay(BLACK, map_, (50, 30), (30 / 60, 50 / 80))
    found = coefficients_of(found, low, high)
    step = (high - low) / 256
    np.testing.assert_allclose(found, np.clip(part, low, high), atol=1.5 * step)


@pytest.mark.parametrize(
    "part, rows, columns, total",
    [
        ((1.0, 1.0), 4, 5, 1.0),
        ((0.5, 0.6), 2, 3, 6 / 20),
        ((0.55, 1.0), 3, 5, 11 / 20),
        ((0.3, 0.6000000000000001), 2, 3, 3.6 / 20),
    ],
)
def test_the_cells_on_an_image(part, rows, columns, total):
    map_ = np.full((4, 5), 1 / 20, np.float32)
    assert on_image(map_, part).shape == (rows, columns)
    assert share_on_image(map_, part) == pytest.approx(total)


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
    assert f"{maps[0, :3].min():.2g} – {maps[0, :3].max():.2g}  Σ " in " ".join(said)
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
