"""Procedural scenes of textured shapes with exact masks: the embedded default."""

import io
import math
from collections.abc import Callable, Iterator
from typing import NamedTuple

import numpy as np
import tensorflow_datasets as tfds
from PIL import Image

from vt_flax.data.masks import encode_mask
from vt_flax.data.prepare import pairs

SIDE = 64
TRAIN_EXAMPLES, TEST_EXAMPLES = 1500, 200
SEED = 2006_03677
LEAST_OBJECTS, MOST_OBJECTS = 3, 5
# Of a disc; the other shapes have about its area.
LEAST_RADIUS, MOST_RADIUS = 11.0, 17.0
# Fraction of an object that later ones must leave visible.
LEAST_VISIBLE = 0.7
# Least distance between the colors of two regions, in RGB of 0 to 255, if possible.
LEAST_CONTRAST = 120.0
# Largest difference of a texture's two colors, in each channel.
TEXTURE_CONTRAST = 70.0
NOISE = 6.0
TRIES = 30

# Which points (u, v) are in a shape of radius 1 around (0, 0).
SHAPES: dict[str, Callable[[np.ndarray, np.ndarray], np.ndarray]] = {
    "disc": lambda u, v: u**2 + v**2 <= 1,
    "square": lambda u, v: np.maximum(abs(u), abs(v)) <= 0.9,
    # Equilateral, of inradius 0.7.
    "triangle": lambda u, v: (math.sqrt(3) / 2 * abs(u) + v / 2 <= 0.7) & (v >= -0.7),
    "ring": lambda u, v: (u**2 + v**2 >= 0.5**2) & (u**2 + v**2 <= 1.15**2),
    "cross": lambda u, v: (
        (np.minimum(abs(u), abs(v)) <= 0.4) & (np.maximum(abs(u), abs(v)) <= 1.2)
    ),
}
CLASS_NAMES = ("background", *SHAPES)


class Placement(NamedTuple):
    """An object of a scene."""

    label: int  # its class, 1 to 5
    x: float  # center in pixels, from the image's upper left corner
    y: float
    radius: float  # by which the shape is scaled, in pixels
    angle: float  # by which it is turned, in radians

    def covers(self) -> np.ndarray:
        """Returns a mask (SIDE, SIDE) of the pixels with their center in the object."""
        centers = np.arange(SIDE) + 0.5
        x, y = centers[None, :] - self.x, centers[:, None] - self.y
        cos, sin = math.cos(self.angle), math.sin(self.angle)
        u, v = (cos * x + sin * y) / self.radius, (cos * y - sin * x) / self.radius
        return SHAPES[CLASS_NAMES[self.label]](u, v)


class Draws:
    """Random numbers, the same with every version of NumPy."""

    def __init__(self, example: int):
        # `random` alone, whose numbers are Philox's bits and change with no version.
        self._random = np.random.Generator(np.random.Philox(key=[SEED, example])).random

    def uniform(self, low: float, high: float, shape: tuple = ()) -> np.ndarray:
        """Draws numbers from low to high."""
        return low + (high - low) * self._random(shape)

    def below(self, bound: int) -> int:
        """Draws an integer from 0, less than a bound."""
        return int(self._random() * bound)


def texture(draws: Draws, others: list[np.ndarray]) -> np.ndarray:
    """Draws a texture of two colors, (SIDE, SIDE, 3) of 0 to 255.

    Its color contrasts with those (3,) of `others`, and is added to them.
    """
    for _ in range(TRIES):
        color = draws.uniform(0, 255, (3,))
        if all(np.linalg.norm(color - c) >= LEAST_CONTRAST for c in others):
            break
    others.append(color)
    half = draws.uniform(-TEXTURE_CONTRAST / 2, TEXTURE_CONTRAST / 2, (3,))
    amount = pattern(draws)[..., None]
    return np.clip(color + half * amount, 0, 255)


def pattern(draws: Draws) -> np.ndarray:
    """Draws stripes, checks, dots, a gradient or noise: (SIDE, SIDE) of -1 to 1."""
    kind = draws.below(5)
    angle, period = draws.uniform(0, math.pi), draws.uniform(5, 10)
    begin = draws.uniform(0, 1, (2,))
    centers = np.arange(SIDE) + 0.5
    x, y = centers[None, :], centers[:, None]
    # Along the direction of change, and across it.
    u = math.cos(angle) * x + math.sin(angle) * y
    v = math.cos(angle) * y - math.sin(angle) * x
    wave_u = np.sin(2 * math.pi * (u / period + begin[0]))
    wave_v = np.sin(2 * math.pi * (v / period + begin[1]))
    if kind == 0:
        return np.sign(wave_u)
    if kind == 1:
        return np.sign(wave_u * wave_v)
    if kind == 2:
        return np.where(wave_u + wave_v > 0.9, 1.0, -1.0)
    if kind == 3:
        return np.clip((u - u.mean()) / (SIDE / 2), -1, 1)
    coarse = draws.uniform(-1, 1, (SIDE // 2, SIDE // 2))
    return np.kron(coarse, np.ones((2, 2)))


def place(draws: Draws) -> tuple[list[Placement], np.ndarray]:
    """Draws 3 to 5 objects, the last in front, and labels (SIDE, SIDE), uint8."""
    count = LEAST_OBJECTS + draws.below(MOST_OBJECTS - LEAST_OBJECTS + 1)
    placements: list[Placement] = []
    # Number of the object seen at each pixel, from 1.
    seen, areas = np.zeros((SIDE, SIDE), np.int64), [SIDE * SIDE]
    for _ in range(TRIES):
        if len(placements) == count:
            break
        radius = draws.uniform(LEAST_RADIUS, MOST_RADIUS)
        x, y = draws.uniform(0.6 * radius, SIDE - 0.6 * radius, (2,))
        new = Placement(
            1 + draws.below(len(SHAPES)), x, y, radius, draws.uniform(0, 2 * math.pi)
        )
        covers = new.covers()
        left = np.bincount(np.where(covers, 0, seen).ravel(), minlength=len(areas))
        if all(
            n >= LEAST_VISIBLE * a for n, a in zip(left[1:], areas[1:], strict=True)
        ):
            placements.append(new)
            areas.append(covers.sum())
            seen[covers] = len(placements)
    labels = np.asarray([0, *(p.label for p in placements)], np.uint8)
    return placements, labels[seen]


def scene(example: int) -> tuple[np.ndarray, np.ndarray]:
    """Returns a scene's image (SIDE, SIDE, 3) and labels (SIDE, SIDE), uint8."""
    draws = Draws(example)
    placements, labels = place(draws)
    colors: list[np.ndarray] = []
    image = texture(draws, colors)
    for placement in placements:
        surface = texture(draws, colors)
        covers = placement.covers()
        image[covers] = surface[covers]
    image += draws.uniform(-NOISE, NOISE, image.shape)
    return np.clip(np.rint(image), 0, 255).astype(np.uint8), labels


class Shapes(tfds.core.GeneratorBasedBuilder):
    """Scenes of 3 to 5 discs, squares, triangles, rings and crosses, made by a program.

    64 x 64 pixels. Objects are of any size, turn and place, and partly cover each
    other. Colours and textures are drawn alike for all of them and for the background:
    only the shape tells a class. Whoever always says background gets 8.5 % mIoU on the
    test split; a linear classifier of red, green and blue gets no more, and one of
    their squares and products, too, at most 10.5 %.
    """

    VERSION = tfds.core.Version("1.0.0")
    RELEASE_NOTES = {"1.0.0": "First version."}

    def _info(self) -> tfds.core.DatasetInfo:
        return pairs.pairs_info(self, CLASS_NAMES, shape=(SIDE, SIDE))

    def _split_generators(self, dl_manager) -> dict[str, Iterator]:
        del dl_manager
        return {
            "train": self._generate_examples(0, TRAIN_EXAMPLES),
            "test": self._generate_examples(
                TRAIN_EXAMPLES, TRAIN_EXAMPLES + TEST_EXAMPLES
            ),
        }

    def _generate_examples(self, first: int, last: int) -> Iterator[tuple[int, dict]]:
        for i in range(first, last):
            image, labels = scene(i)
            # An encoded file: TFDS would need TensorFlow to encode an array.
            encoded = io.BytesIO()
            Image.fromarray(image).save(encoded, "PNG")
            yield i, {pairs.IMAGE: encoded.getvalue(), pairs.MASK: encode_mask(labels)}
