"""Pictures of token attention: attention maps over an image, a panel for each."""

import dataclasses
import functools
import math
import pathlib
import textwrap
from collections.abc import Sequence

import matplotlib
import numpy as np
from PIL import Image, ImageDraw, ImageFont

from vt_flax.inference.predictor import TokenAttention
from vt_flax.viz.overlays import covered_cells, overlay, resized

# In pixels: the longer side of a panel, and gaps.
PANEL = 112
GAP, BETWEEN = 4, 20
TEXT, SMALL, LINE = 11, 9, 15
# Smallest number of columns of panels in a block; many panels make a square.
COLUMNS = 4
BLOCKS_IN_A_ROW = 4


@dataclasses.dataclass(frozen=True)
class Block:
    """Attention maps under one heading, such as those of a module's tokens.

    Attributes:
      heading: text above the maps.
      maps: (panels, h, w), coefficients.
      first: number of the first map, where a module keeps the tokens before it.
      over: what coefficients sum to 1 over, `pixels` or `tokens`.
    """

    heading: str
    maps: np.ndarray
    first: int = 0
    over: str = "pixels"


@dataclasses.dataclass(frozen=True)
class TokenPicture:
    """An image, and blocks of attention maps over it.

    Attributes:
      title: text above the image.
      image: (H, W, 3), uint8.
      rows: blocks side by side, row by row.
      coverage: fraction of the maps' height and width that is on the image, from the
        upper left corner.
    """

    title: str
    image: np.ndarray
    rows: Sequence[Sequence[Block]]
    coverage: tuple[float, float] = (1.0, 1.0)


def token_picture(
    attention: TokenAttention, index: int, title: str, *, projections: bool
) -> TokenPicture:
    """Returns the picture of an image's attention maps, averaged over heads.

    Args:
      attention: of a batch.
      index: of the image in the batch.
      title: of the picture.
      projections: whether to add the projectors' maps below.
    """
    tokenizers, projectors = [], []
    for module, maps in attention.tokens.items():
        if maps.coefficients is not None:
            heading = f"{module}: {maps.kind} tokenizer{_heads(maps.coefficients)}"
            mean = maps.coefficients[index].mean(0)
            tokenizers.append(Block(heading, mean, maps.first))
        if projections and maps.projection is not None:
            heading = f"{module}: projector{_heads(maps.projection)}"
            mean = maps.projection[index].mean(0)
            projectors.append(Block(heading, mean, over="tokens"))
    rows = _in_rows(tokenizers) + _in_rows(projectors)
    return TokenPicture(title, attention.images[index], rows, attention.coverage[index])


def head_pictures(
    attention: TokenAttention, index: int, title: str, *, projections: bool
) -> dict[str, TokenPicture]:
    """Returns pictures of the tokens head by head, for modules with several heads.

    Arguments are those of `token_picture`.

    Returns:
      Pictures by `MODULE_heads` and `MODULE_projector_heads`.
    """
    pictures = {}
    for module, maps in attention.tokens.items():
        kinds = [("", f"{maps.kind} tokenizer", maps.coefficients, maps.first)]
        if projections:
            kinds.append(("_projector", "projector", maps.projection, 0))
        for suffix, kind, values, first in kinds:
            if values is None or values.shape[1] == 1:
                continue
            over = "tokens" if suffix else "pixels"
            blocks = [
                Block(
                    f"token {first + i}, head by head", values[index, :, i], over=over
                )
                for i in range(values.shape[2])
            ]
            pictures[f"{module}{suffix}_heads"] = TokenPicture(
                f"{title} – {module}: {kind}",
                attention.images[index],
                _in_rows(blocks),
                attention.coverage[index],
            )
    return pictures


def _heads(maps: np.ndarray) -> str:
    heads = maps.shape[1]
    return f", mean of {heads} heads" if heads > 1 else ""


def _in_rows(blocks: list[Block]) -> list[list[Block]]:
    return [
        blocks[i : i + BLOCKS_IN_A_ROW] for i in range(0, len(blocks), BLOCKS_IN_A_ROW)
    ]


def render(pictures: Sequence[TokenPicture]) -> Image.Image:
    """Draws pictures below each other, and captions that explain them."""
    drawn = [_render_one(picture) for picture in pictures]
    width = max(image.width for image in drawn)
    # Few letters are wider than an n.
    letter = _font(TEXT).getlength("n")
    lines = [
        line
        for text in captions(pictures)
        for line in textwrap.wrap(text, max(20, int((width - 2 * GAP) / letter)))
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
    """Returns explanations of the panels, a sentence or two each."""
    blocks = [block for p in pictures for row in p.rows for block in row]
    texts = [
        "Each map was enlarged from its cells (their number is in the heading, height "
        "x width) bilinearly between the cells' centers. Below each panel are its "
        "smallest and largest coefficient."
    ]
    over = {block.over for block in blocks}
    if "pixels" in over:
        texts.append(
            "The coefficients of a token sum to 1 over all cells of its map; in a "
            "uniform map each would be 1 / (number of cells)."
        )
    if "tokens" in over:
        texts.append(
            "A projector's coefficients weight the tokens at each pixel: in each cell "
            "those of all tokens sum to 1."
        )
    if any(picture.coverage != (1.0, 1.0) for picture in pictures):
        texts.append(
            "The network's input is larger than the image: panels show the part of the "
            "maps that lies on the image."
        )
    return texts


def _render_one(picture: TokenPicture) -> Image.Image:
    large = tuple(2 * side for side in _panel_size(picture.image))
    rows = [[_render_block(block, picture) for block in r] for r in picture.rows]
    widths = [sum(b.width for b in row) + BETWEEN * len(row) for row in rows]
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
    count = len(block.maps)
    columns = min(count, max(COLUMNS, math.ceil(count**0.5)))
    rows = -(-count // columns)
    heading = f"{block.heading}, {' x '.join(map(str, block.maps.shape[1:]))} cells"
    covered = [covered_cells(map_, picture.coverage) for map_ in block.maps]
    ranges = [f"{cells.min():.2g} – {cells.max():.2g}" for cells in covered]
    widest = max(_font(SMALL).getlength(line) for line in ranges)
    across, down = max(width, math.ceil(widest)) + GAP, height + LINE
    needed = math.ceil(_font(TEXT).getlength(heading))
    size = max(columns * across, needed), LINE + rows * down + BETWEEN - LINE // 2
    page = Image.new("RGB", size, "white")
    draw = ImageDraw.Draw(page)
    draw.text((0, 0), heading, "black", _font(TEXT))
    for i, map_ in enumerate(block.maps):
        left, top = i % columns * across, LINE + i // columns * down
        panel = overlay(picture.image, map_, (width, height), picture.coverage)
        page.paste(Image.fromarray(panel), (left, top))
        number, outline = str(block.first + i), {"stroke_width": 1, "stroke_fill": 0}
        draw.text((left + 3, top + 1), number, "white", _font(TEXT - 1), **outline)
        draw.text((left, top + height), ranges[i], "black", _font(SMALL))
    return page


def _draw_scale(page: Image.Image, draw: ImageDraw.ImageDraw, top: int) -> None:
    """Draws the color scale, over gray."""
    left, width = GAP, PANEL
    draw.text((left, top - 2), "smallest", "black", _font(TEXT))
    left += math.ceil(_font(TEXT).getlength("smallest")) + GAP
    ramp = np.linspace(0, 1, width, dtype=np.float32)[None]
    gray = np.full((1, width, 3), 128, np.uint8)
    bar = Image.fromarray(overlay(gray, ramp, (width, LINE - 4)))
    page.paste(bar, (left, top))
    draw.text((left + width + GAP, top - 2), "largest", "black", _font(TEXT))


def _panel_size(image: np.ndarray) -> tuple[int, int]:
    """Returns width and height of a panel with the sides of an image."""
    height, width = image.shape[:2]
    scale = PANEL / max(height, width)
    return tuple(max(round(side * scale), PANEL // 8) for side in (width, height))


@functools.cache
def _font(size: int) -> ImageFont.FreeTypeFont:
    """Returns matplotlib's font, which has most alphabets."""
    folder = pathlib.Path(matplotlib.get_data_path())
    return ImageFont.truetype(str(folder / "fonts" / "ttf" / "DejaVuSans.ttf"), size)
