"""Procedural scenes of textured shapes with exact masks: the embedded default."""

import math
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import numpy as np
import tensorflow_datasets as tfds

from vt_flax.data.masks import encode_png
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

# Centers of the pixels, from the image's upper left corner.
Y, X = np.mgrid[:SIDE, :SIDE] + 0.5
# Tests whether points (u, v) are in a shape of radius 1 around (0, 0).
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
    x: float  # center in pixels
    y: float
    radius: float  # by which the shape is scaled, in pixels
    angle: float  # by which it is turned, in radians

    def covers(self) -> np.ndarray:
        """Returns a mask (SIDE, SIDE) of the pixels with their center in the object."""
        u, v = turned(X - self.x, Y - self.y, self.angle)
        shape = SHAPES[CLASS_NAMES[self.label]]
        return shape(u / self.radius, v / self.radius)


def turned(x: np.ndarray, y: np.ndarray, angle: float) -> tuple[np.ndarray, np.ndarray]:
    """Returns coordinates along a direction, and across it."""
    cos, sin = math.cos(angle), math.sin(angle)
    return cos * x + sin * y, cos * y - sin * x


def place(rng: np.random.Generator) -> tuple[list[Placement], np.ndarray]:
    """Draws 3 to 5 objects, the last in front, and labels (SIDE, SIDE), uint8."""
    count = int(rng.uniform(LEAST_OBJECTS, MOST_OBJECTS + 1))
    placements: list[Placement] = []
    areas: list[int] = []
    # Number of the object that is visible at each pixel, from 1.
    visible = np.zeros((SIDE, SIDE), np.int64)
    for _ in range(TRIES):
        if len(placements) == count:
            break
        radius = rng.uniform(LEAST_RADIUS, MOST_RADIUS)
        x, y = rng.uniform(0.6 * radius, SIDE - 0.6 * radius, 2)
        label, angle = rng.uniform(1, len(CLASS_NAMES)), rng.uniform(0, 2 * math.pi)
        new = Placement(int(label), x, y, radius, angle)
        covers = new.covers()
        left = np.bincount(visible[~covers], minlength=len(areas) + 1)[1:]
        if (left >= LEAST_VISIBLE * np.asarray(areas)).all():
            placements.append(new)
            areas.append(covers.sum())
            visible[covers] = len(placements)
    labels = np.asarray([0, *(p.label for p in placements)], np.uint8)
    return placements, labels[visible]


def pattern(rng: np.random.Generator) -> np.ndarray:
    """Draws stripes, checks, dots, a gradient or noise: (SIDE, SIDE) of -1 to 1."""
    kind = int(rng.uniform(0, 5))
    angle, period = rng.uniform(0, math.pi), rng.uniform(5, 10)
    phases = rng.uniform(0, 1, 2)
    u, v = turned(X, Y, angle)
    wave_u = np.sin(2 * math.pi * (u / period + phases[0]))
    wave_v = np.sin(2 * math.pi * (v / period + phases[1]))
    if kind == 0:
        return np.sign(wave_u)
    if kind == 1:
        return np.sign(wave_u * wave_v)
    if kind == 2:
        return np.where(wave_u + wave_v > 0.9, 1.0, -1.0)
    if kind == 3:
        return np.clip((u - u.mean()) / (SIDE / 2), -1, 1)
    return np.kron(rng.uniform(-1, 1, (SIDE // 2, SIDE // 2)), np.ones((2, 2)))


def texture(rng: np.random.Generator, others: list[np.ndarray]) -> np.ndarray:
    """Draws a texture of two colors, (SIDE, SIDE, 3) of 0 to 255.

    Its color contrasts with those (3,) of `others`, and is added to them.
    """
    for _ in range(TRIES):
        color = rng.uniform(0, 255, 3)
        if all(np.linalg.norm(color - c) >= LEAST_CONTRAST for c in others):
            break
    others.append(color)
    half = rng.uniform(-TEXTURE_CONTRAST / 2, TEXTURE_CONTRAST / 2, 3)
    return np.clip(color + half * pattern(rng)[..., None], 0, 255)


def scene(example: int) -> tuple[np.ndarray, np.ndarray]:
    """Returns a scene's image (SIDE, SIDE, 3) and labels (SIDE, SIDE), uint8."""
    # Uniform floats alone, which have been the same in every version of NumPy.
    rng = np.random.Generator(np.random.Philox(key=[SEED, example]))
    placements, labels = place(rng)
    colors: list[np.ndarray] = []
    image = texture(rng, colors)
    for placement in placements:
        covers = placement.covers()
        image[covers] = texture(rng, colors)[covers]
    image += rng.uniform(-NOISE, NOISE, image.shape)
    return np.clip(np.rint(image), 0, 255).astype(np.uint8), labels


class Shapes(tfds.core.GeneratorBasedBuilder):
    """Scenes of 3 to 5 discs, squares, triangles, rings and crosses, made by a program.

    64 x 64 pixels. Objects are of any size, turn and place, and partly cover each
    other. Colors and textures are drawn alike for all of them and for the background:
    only the shape tells a class. Whoever always says background gets 8.5 % mIoU on the
    test split; a linear classifier of red, green and blue gets no more, and one of
    their squares and products, too, at most 10.5 %.
    """

    VERSION = tfds.core.Version("1.0.0")
    RELEASE_NOTES = {"1.0.0": "First version."}

    def _info(self) -> tfds.core.DatasetInfo:
        return pairs.pairs_info(self, CLASS_NAMES, shape=(SIDE, SIDE))

    def _split_generators(self, dl_manager: Any) -> dict[str, Iterator]:
        numbers = range(TRAIN_EXAMPLES + TEST_EXAMPLES)
        return {
            "train": self._generate_examples(numbers[:TRAIN_EXAMPLES]),
            "test": self._generate_examples(numbers[TRAIN_EXAMPLES:]),
        }

    def _generate_examples(self, numbers: range) -> Iterator[tuple[int, dict]]:
        for i in numbers:
            image, labels = scene(i)
            # TFDS would need TensorFlow to encode an array.
            yield i, {pairs.IMAGE: encode_png(image), pairs.MASK: encode_png(labels)}
