"""The usual loader of PyTorch scripts, to be measured against: Pillow in processes.

Decoding, a random resized crop, mirroring and AutoAugment, all on the host. It shares
nothing with the package's own input but the policy's table.
"""

import concurrent.futures
import io
import math
import multiprocessing
import random
from collections.abc import Callable, Iterator, Sequence

import numpy as np
from PIL import Image, ImageEnhance, ImageOps

from vt_flax.data.augment.policies import IMAGENET_POLICY, value_of

FILL = (128, 128, 128)
_files: Sequence[bytes] = ()


def load(files: Sequence[bytes]) -> None:
    """Gives a worker process its encoded images."""
    global _files
    _files = files


def batches(
    files: Sequence[bytes], size: int, batch: int, workers: int
) -> Iterator[np.ndarray]:
    """Yields batches (batch, size, size, 3), uint8, without end.

    Args:
      files: encoded images.
      size: side in pixels.
      batch: images in a batch.
      workers: processes.
    """
    with concurrent.futures.ProcessPoolExecutor(
        workers, multiprocessing.get_context("spawn"), load, (files,)
    ) as pool:
        pending = [pool.submit(make_batch, size, batch, i) for i in range(2 * workers)]
        try:
            while True:
                # The oldest first, as PyTorch's loader does.
                yield pending.pop(0).result()
                pending.append(pool.submit(make_batch, size, batch, random.random()))
        finally:
            for future in pending:
                future.cancel()


def make_batch(size: int, batch: int, seed: float) -> np.ndarray:
    """Makes one batch in a worker."""
    draw = random.Random(seed)
    return np.stack([example(draw.choice(_files), size, draw) for _ in range(batch)])


def example(encoded: bytes, size: int, draw: random.Random) -> np.ndarray:
    """Decodes, crops, mirrors and augments one image."""
    image = Image.open(io.BytesIO(encoded)).convert("RGB")
    box = crop(*image.size, draw)
    image = image.crop(box).resize((size, size), Image.Resampling.BILINEAR)
    if draw.random() < 0.5:
        image = ImageOps.mirror(image)
    for name, probability, magnitude in draw.choice(IMAGENET_POLICY):
        if draw.random() < probability:
            value = value_of(name, magnitude / 9, size)
            sign = draw.choice((1, -1)) if name in ("Rotate", "ShearX") else 1
            image = OPERATIONS[name](image, sign * value)
    return np.asarray(image)


def crop(width: int, height: int, draw: random.Random) -> tuple[int, int, int, int]:
    """Draws a box: 8 to 100 % of the area, ratio 3 / 4 to 4 / 3, ten tries."""
    for _ in range(10):
        area = width * height * draw.uniform(0.08, 1)
        ratio = math.exp(draw.uniform(math.log(3 / 4), math.log(4 / 3)))
        w, h = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
        if 0 < w <= width and 0 < h <= height:
            left, top = draw.randint(0, width - w), draw.randint(0, height - h)
            return left, top, left + w, top + h
    side = min(width, height)
    left, top = (width - side) // 2, (height - side) // 2
    return left, top, left + side, top + side


def _shear(image: Image.Image, value: float) -> Image.Image:
    return image.transform(
        image.size, Image.Transform.AFFINE, (1, value, 0, 0, 1, 0), fillcolor=FILL
    )


OPERATIONS: dict[str, Callable[[Image.Image, float], Image.Image]] = {
    "ShearX": _shear,
    "Rotate": lambda image, value: image.rotate(value, fillcolor=FILL),
    "AutoContrast": lambda image, _: ImageOps.autocontrast(image),
    "Equalize": lambda image, _: ImageOps.equalize(image),
    "Invert": lambda image, _: ImageOps.invert(image),
    "Posterize": lambda image, value: ImageOps.posterize(image, round(value)),
    "Solarize": lambda image, value: ImageOps.solarize(image, value),
    "Color": lambda image, value: ImageEnhance.Color(image).enhance(value),
    "Contrast": lambda image, value: ImageEnhance.Contrast(image).enhance(value),
    "Sharpness": lambda image, value: ImageEnhance.Sharpness(image).enhance(value),
}
