"""Pictures of what a network says of an image, and of where its tokens look."""

import numpy as np
from PIL import Image

from vt_flax.inference.predictor import Looks
from vt_flax.viz.token_pictures import Block, TokenPicture

# Blocks side by side.
ABREAST = 4


def shrunk(pixels: np.ndarray, most: int) -> np.ndarray:
    """Returns an image (H, W, 3), uint8, no side of which is longer than that."""
    image = Image.fromarray(pixels)
    if max(image.size) <= most:
        return pixels
    scale = most / max(image.size)
    size = tuple(max(1, round(side * scale)) for side in image.size)
    # The gap lets Pillow take whole blocks of a very large image first.
    return np.asarray(image.resize(size, Image.Resampling.BILINEAR, reducing_gap=3.0))


def token_picture(
    looks: Looks, index: int, title: str, *, projections: bool
) -> TokenPicture:
    """Returns the picture of where tokens look in an image; heads are averaged.

    Args:
      looks: of a batch.
      index: of the image.
      title: over it.
      projections: whether what the projectors write is below.
    """
    tokenizers, projectors = [], []
    for module, maps in looks.tokens.items():
        if maps.coefficients is not None:
            heading = f"{module}: {maps.kind} tokenizer{_heads(maps.coefficients)}"
            mean = maps.coefficients[index].mean(0)
            tokenizers.append(Block(heading, mean, maps.first))
        if projections and maps.projection is not None:
            heading = f"{module}: projector{_heads(maps.projection)}"
            mean = maps.projection[index].mean(0)
            projectors.append(Block(heading, mean, over="tokens"))
    rows = _in_rows(tokenizers) + _in_rows(projectors)
    return TokenPicture(title, looks.images[index], rows, looks.parts[index])


def head_pictures(
    looks: Looks, index: int, title: str, *, projections: bool
) -> dict[str, TokenPicture]:
    """Returns pictures of each token by head, of each module that has several heads.

    Args:
      looks: of a batch.
      index: of the image.
      title: over each.
      projections: whether projectors have pictures too.

    Returns:
      By `MODULE_heads` and `MODULE_projector_heads`.
    """
    found = {}
    for module, maps in looks.tokens.items():
        kinds = [("", f"{maps.kind} tokenizer", maps.coefficients, maps.first)]
        if projections:
            kinds.append(("_projector", "projector", maps.projection, 0))
        for suffix, kind, values, first in kinds:
            if values is None or values.shape[1] == 1:
                continue
            blocks = [
                Block(
                    f"token {token}, head by head",
                    values[index, :, token - first],
                    over="tokens" if suffix else "pixels",
                )
                for token in range(first, first + values.shape[2])
            ]
            found[f"{module}{suffix}_heads"] = TokenPicture(
                f"{title} – {module}: {kind}",
                looks.images[index],
                _in_rows(blocks),
                looks.parts[index],
            )
    return found


def _heads(maps: np.ndarray) -> str:
    heads = maps.shape[1]
    return f", mean of {heads} heads" if heads > 1 else ""


def _in_rows(blocks: list[Block]) -> list[list[Block]]:
    return [blocks[i : i + ABREAST] for i in range(0, len(blocks), ABREAST)]
