"""Pictures of where tokens look: coefficient maps over an image, a panel for each."""

import dataclasses
import functools
import math
import pathlib
from collections.abc import Sequence

import matplotlib
import numpy as np
from PIL import Image, ImageDraw, ImageFont

from vt_flax.viz.overlays import on_image, overlay, resized, share_on_image

# Sides in pixels: the longer one of a panel, and what is left between things.
PANEL = 112
GAP, BETWEEN = 4, 20
TEXT, SMALL, LINE = 11, 9, 15
# Panels of a block that stand side by side, at least; more make a square.
ABREAST = 4


@dataclasses.dataclass(frozen=True)
class Block:
    """Maps that belong together, such as those of a module's tokens.

    Attributes:
      heading: over them.
      maps: (panels, h, w), the coefficients themselves.
      first: number of the first; the places before it stay empty.
      over: what coefficients sum to 1 over, `pixels` or `tokens`.
    """

    heading: str
    maps: np.ndarray
    first: int = 0
    over: str = "pixels"


@dataclasses.dataclass(frozen=True)
class TokenPicture:
    """An image, and blocks of maps that lie over it.

    Attributes:
      title: over it.
      image: (H, W, 3), uint8.
      rows: blocks side by side, row by row.
      part: share of the maps' height and width that lies on the image, from the upper
        left corner on.
    """

    title: str
    image: np.ndarray
    rows: Sequence[Sequence[Block]]
    part: tuple[float, float] = (1.0, 1.0)


def render(pictures: Sequence[TokenPicture]) -> Image.Image:
    """Draws images with their maps under each other, and what the colours mean."""
    drawn = [_render_one(picture) for picture in pictures]
    width = max(image.width for image in drawn)
    lines = [
        line for text in captions(pictures) for line in _wrapped(text, width - 2 * GAP)
    ]
    height = sum(image.height for image in drawn) + LINE * (len(lines) + 1) + 3 * GAP
    page = Image.new("RGB", (width, height), "white")
    top = 0
    for image in drawn:
        page.paste(image, (0, top))
        top += image.height
    draw = ImageDraw.Draw(page)
    top += GAP
    _draw_scale(page, draw, top)
    for line in lines:
        top += LINE
        draw.text((GAP, top), line, "black", _font(TEXT))
    return page


def captions(pictures: Sequence[TokenPicture]) -> list[str]:
    """Returns what is to be known of the panels, a sentence or two each."""
    blocks = [block for p in pictures for row in p.rows for block in row]
    sizes = sorted({_panel_size(p.image)[::-1] for p in pictures})
    to = " or ".join(f"{height} x {width}" for height, width in sizes)
    texts = [
        "Each map was brought from its cells (their number is in the heading, height "
        f"x width) to {to} pixels, bilinearly between the cells' centres. Below each "
        "panel are its least and its greatest coefficient."
    ]
    over = {block.over for block in blocks}
    if "pixels" in over:
        cells = {b.maps[0].size for b in blocks if b.over == "pixels"}
        even = "1 by the number of cells"
        if len(cells) == 1:
            (number,) = cells
            even = f"1 / {number} = {1 / number:.2g}"
        texts.append(
            "The coefficients of a token sum to 1 over all cells of its map; if it "
            f"looked everywhere alike, each would be {even}."
        )
    if "tokens" in over:
        texts.append(
            "The projector's coefficients say which tokens write to a pixel: in each "
            "cell those of all tokens sum to 1."
        )
    if any(picture.part != (1.0, 1.0) for picture in pictures):
        texts.append(
            "The network's input is larger than the image; panels show what lies on "
            "the image, and Σ is what a token's coefficients sum to there."
        )
    return texts


def _render_one(picture: TokenPicture) -> Image.Image:
    large = tuple(2 * side for side in _panel_size(picture.image))
    rows = [[_render_block(block, picture) for block in r] for r in picture.rows]
    widths = [sum(b.width for b in row) + BETWEEN * len(row) for row in rows]
    # A row's blocks end with what is between rows.
    heights = [max(block.height for block in row) for row in rows]
    top = LINE + 2 * GAP
    width = large[0] + 2 * GAP + max(widths)
    height = top + max(LINE + large[1] + BETWEEN, sum(heights))
    page = Image.new("RGB", (width, height), "white")
    draw = ImageDraw.Draw(page)
    draw.text((GAP, GAP), " ".join(picture.title.split()), "black", _font(TEXT + 2))
    page.paste(resized(picture.image, large), (GAP, top + LINE))
    for row, tall in zip(rows, heights, strict=True):
        left = large[0] + 2 * GAP + BETWEEN
        for block in row:
            page.paste(block, (left, top))
            left += block.width + BETWEEN
        top += tall
    return page


def _render_block(block: Block, picture: TokenPicture) -> Image.Image:
    width, height = _panel_size(picture.image)
    total = block.first + len(block.maps)
    columns = min(total, max(ABREAST, math.ceil(total**0.5)))
    rows = -(-total // columns)
    cells = " x ".join(map(str, block.maps.shape[1:]))
    heading = f"{block.heading}, {cells} cells"
    below = [_numbers(map_, block, picture) for map_ in block.maps]
    widest = max(_font(SMALL).getlength(line) for lines in below for line in lines)
    across = max(width, math.ceil(widest)) + GAP
    down = height + LINE * len(below[0])
    needed = math.ceil(_font(TEXT).getlength(heading))
    size = max(columns * across, needed), LINE + rows * down + BETWEEN - LINE // 2
    page = Image.new("RGB", size, "white")
    draw = ImageDraw.Draw(page)
    draw.text((0, 0), heading, "black", _font(TEXT))
    for number in range(total):
        left = number % columns * across
        top = LINE + number // columns * down
        if number < block.first:
            draw.rectangle((left, top, left + width - 1, top + height - 1), "#eee")
            draw.text((left + 3, top + 1), f"{number} kept", "#777", _font(TEXT - 1))
            continue
        map_ = block.maps[number - block.first]
        panel = overlay(picture.image, map_, (width, height), picture.part)
        page.paste(Image.fromarray(panel), (left, top))
        place = left + 3, top + 1
        draw.text(
            place, str(number), "white", _font(TEXT - 1), stroke_width=1, stroke_fill=0
        )
        for i, line in enumerate(below[number - block.first]):
            place = left, top + height + i * LINE
            draw.text(place, line, "black", _font(SMALL))
    return page


def _numbers(map_: np.ndarray, block: Block, picture: TokenPicture) -> list[str]:
    """Returns what stands below a panel: its least and its greatest coefficient."""
    cells = on_image(map_, picture.part)
    lines = [f"{cells.min():.2g} – {cells.max():.2g}"]
    if block.over == "pixels" and picture.part != (1.0, 1.0):
        lines.append(f"Σ {share_on_image(map_, picture.part):.2f}")
    return lines


def _draw_scale(page: Image.Image, draw: ImageDraw.ImageDraw, top: int) -> None:
    """Draws the colours from the least to the greatest, as they are over grey."""
    left, width = GAP, PANEL
    draw.text((left, top - 2), "least", "black", _font(TEXT))
    left += math.ceil(_font(TEXT).getlength("least")) + GAP
    ramp = np.linspace(0, 1, width, dtype=np.float32)[None]
    grey = np.full((1, width, 3), 128, np.uint8)
    bar = Image.fromarray(overlay(grey, ramp, (width, LINE - 4)))
    page.paste(bar, (left, top))
    draw.text((left + width + GAP, top - 2), "greatest", "black", _font(TEXT))


def _panel_size(image: np.ndarray) -> tuple[int, int]:
    """Returns width and height of a panel with the sides of an image."""
    height, width = image.shape[:2]
    scale = PANEL / max(height, width)
    return tuple(max(round(side * scale), PANEL // 8) for side in (width, height))


def _wrapped(text: str, width: int) -> list[str]:
    """Breaks a text into lines that are not wider than so many pixels."""
    lines: list[str] = []
    for word in text.split():
        longer = f"{lines[-1]} {word}" if lines else word
        if lines and _font(TEXT).getlength(longer) <= width:
            lines[-1] = longer
        else:
            lines.append(word)
    return lines


@functools.cache
def _font(size: int) -> ImageFont.FreeTypeFont:
    """Returns the font that comes with matplotlib, which has most alphabets."""
    folder = pathlib.Path(matplotlib.get_data_path())
    return ImageFont.truetype(str(folder / "fonts" / "ttf" / "DejaVuSans.ttf"), size)
