"""Pictures of where tokens look: coefficient maps over an image, a panel for each."""

import dataclasses
import functools
import math
import pathlib
from collections.abc import Sequence

import matplotlib
import numpy as np
from PIL import Image, ImageDraw, ImageFont

# Sides in pixels: the longer one of a panel, and what is left between things.
PANEL = 112
GAP, BETWEEN = 4, 20
TEXT, LINE = 11, 15
COLOURS = "inferno"
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


def overlay(
    image: np.ndarray,
    map_: np.ndarray,
    size: tuple[int, int],
    part: tuple[float, float] = (1.0, 1.0),
) -> np.ndarray:
    """Lays a map over the grey version of an image.

    Args:
      image: (H, W, 3), uint8.
      map_: (h, w), whose cells on the image have the colours from the least to the
        greatest.
      size: width and height of the result.
      part: share of the map's height and width that lies on the image.

    Returns:
      (height, width, 3), uint8.
    """
    cells = on_image(map_, part)
    low, high = cells.min(), cells.max()
    box = (0, 0, map_.shape[1] * part[1], map_.shape[0] * part[0])
    heat = Image.fromarray(map_.astype(np.float32)).resize(
        size, Image.Resampling.BILINEAR, box
    )
    scaled = np.clip((np.asarray(heat) - low) / max(high - low, 1e-12), 0, 1)
    colours = matplotlib.colormaps[COLOURS](scaled)[..., :3]
    grey = np.asarray(_resized(image, size)).mean(axis=-1, keepdims=True) / 255
    return np.round(255 * np.clip(0.35 * grey + 0.75 * colours, 0, 1)).astype(np.uint8)


def on_image(map_: np.ndarray, part: tuple[float, float]) -> np.ndarray:
    """Returns the cells of a map that lie on the image, also those that do in part."""
    # Of 3.0000000000000004 cells the fourth is none.
    rows, columns = (
        math.ceil(round(n * share, 6))
        for n, share in zip(map_.shape, part, strict=True)
    )
    return map_[:rows, :columns]


def share_on_image(map_: np.ndarray, part: tuple[float, float]) -> float:
    """Returns the sum of a map's cells, each by how much of it lies on the image."""
    rows, columns = (
        np.clip(n * share - np.arange(n), 0, 1)
        for n, share in zip(map_.shape, part, strict=True)
    )
    return float(rows @ map_.astype(np.float64) @ columns)


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
    page.paste(_resized(picture.image, large), (GAP, top + LINE))
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
    across = columns * (width + GAP)
    needed = math.ceil(_font(TEXT).getlength(heading))
    page = Image.new(
        "RGB",
        (max(across, needed), LINE + rows * (height + LINE) + BETWEEN - LINE // 2),
        "white",
    )
    draw = ImageDraw.Draw(page)
    draw.text((0, 0), heading, "black", _font(TEXT))
    for number in range(total):
        left = number % columns * (width + GAP)
        top = LINE + number // columns * (height + LINE)
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
        draw.text((left, top + height), _range(map_, block, picture), "black", _font(9))
    return page


def _range(map_: np.ndarray, block: Block, picture: TokenPicture) -> str:
    """Returns the least and the greatest coefficient as they stand below a panel."""
    cells = on_image(map_, picture.part)
    text = f"{cells.min():.2g} – {cells.max():.2g}"
    if block.over == "pixels" and picture.part != (1.0, 1.0):
        text += f"  Σ {share_on_image(map_, picture.part):.2f}"
    return text


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


def _resized(image: np.ndarray, size: tuple[int, int]) -> Image.Image:
    """Resizes an image; of one that grows the pixels are to be seen."""
    grows = size[0] >= image.shape[1]
    kind = Image.Resampling.NEAREST if grows else Image.Resampling.BILINEAR
    return Image.fromarray(image).resize(size, kind)


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
