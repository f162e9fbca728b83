"""Procedural scenes of textured shapes with exact masks: the embedded default."""

import dataclasses
import io
import math
from collections.abc import Callable, Iterator

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
# Share of an object that later ones must leave visible.
LEAST_VISIBLE = 0.7
# Least distance of a region's colour to all others', in RGB of 0 to 255, if possible.
LEAST_CONTRAST = 120.0
# How far a texture's two colours may be apart, in each channel.
TEXTURE_CONTRAST = 70.0
NOISE = 6.0
TRIES = 30


def disc(u: np.ndarray, v: np.ndarray) -> np.ndarray:
    """Tells which points are in a disc."""
    return u**2 + v**2 <= 1


def square(u: np.ndarray, v: np.ndarray) -> np.ndarray:
    """Tells which points are in a square."""
    return np.maximum(abs(u), abs(v)) <= 0.9


def triangle(u: np.ndarray, v: np.ndarray) -> np.ndarray:
    """Tells which points are in an equilateral triangle, of inradius 0.7."""
    lean = math.sqrt(3) / 2 * abs(u) + v / 2
    return (lean <= 0.7) & (v >= -0.7)


def ring(u: np.ndarray, v: np.ndarray) -> np.ndarray:
    """Tells which points are in a ring; through its hole, what is behind is seen."""
    squared = u**2 + v**2
    return (squared >= 0.5**2) & (squared <= 1.15**2)


def cross(u: np.ndarray, v: np.ndarray) -> np.ndarray:
    """Tells which points are in a cross of two bars."""
    u, v = abs(u), abs(v)
    return (np.minimum(u, v) <= 0.4) & (np.maximum(u, v) <= 1.2)


SHAPES: dict[str, Callable[[np.ndarray, np.ndarray], np.ndarray]] = {
    "disc": disc,
    "square": square,
    "triangle": triangle,
    "ring": ring,
    "cross": cross,
}
CLASS_NAMES = ("background", *SHAPES)


@dataclasses.dataclass(frozen=True)
class Placement:
    """Where an object is.

    Attributes:
      label: its class, 1 to 5.
      x, y: its centre in pixels, from the image's upper left corner.
      radius: by which the shape is scaled, in pixels.
      angle: by which it is turned, in radians.
    """

    label: int
    x: float
    y: float
    radius: float
    angle: float

    def covers(self) -> np.ndarray:
        """Returns which pixels have their centre in the object, (SIDE, SIDE)."""
        centres = np.arange(SIDE) + 0.5
        x, y = centres[None, :] - self.x, centres[:, None] - self.y
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
    """Draws a texture of two colours, (SIDE, SIDE, 3) of 0 to 255.

    Args:
      draws: of random numbers.
      others: colours (3,) to be told apart from; its own is added.
    """
    for _ in range(TRIES):
        colour = draws.uniform(0, 255, (3,))
        if all(np.linalg.norm(colour - c) >= LEAST_CONTRAST for c in others):
            break
    others.append(colour)
    half = draws.uniform(-TEXTURE_CONTRAST / 2, TEXTURE_CONTRAST / 2, (3,))
    amount = pattern(draws)[..., None]
    return np.clip(colour + half * amount, 0, 255)


def pattern(draws: Draws) -> np.ndarray:
    """Draws stripes, checks, dots, a gradient or noise: (SIDE, SIDE) of -1 to 1."""
    kind = draws.below(5)
    angle, period = draws.uniform(0, math.pi), draws.uniform(5, 10)
    begin = draws.uniform(0, 1, (2,))
    centres = np.arange(SIDE) + 0.5
    x, y = centres[None, :], centres[:, None]
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
    """Draws where 3 to 5 objects are.

    Returns:
      The objects, the last in front, and the labels (SIDE, SIDE), uint8.
    """
    count = LEAST_OBJECTS + draws.below(MOST_OBJECTS - LEAST_OBJECTS + 1)
    placements: list[Placement] = []
    # Of each pixel, the number of the object seen there, from 1.
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
    """Returns a scene, the same for the same number.

    Args:
      example: number of the scene, from 0.

    Returns:
      Image (SIDE, SIDE, 3) and labels (SIDE, SIDE), uint8.
    """
    draws = Draws(example)
    placements, labels = place(draws)
    colours: list[np.ndarray] = []
    image = texture(draws, colours)
    for placement in placements:
        surface = texture(draws, colours)
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
