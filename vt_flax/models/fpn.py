"""Panoptic FPN's semantic branch on ResNet (Kirillov et al., 2019), VT-FPN's baseline.

Levels are numbered as their maps: level i has the stride of C_i, 4 to 32 pixels.
"""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp

from vt_flax.models.resnet import Backbone
from vt_flax.nn.checks import check_at_least
from vt_flax.nn.layers import Layers, resize

LEVELS = (2, 3, 4, 5)


def conv_norm(
    x: jax.Array,
    features: int,
    kernel: int,
    layers: Layers,
    name: str,
    *,
    train: bool,
) -> jax.Array:
    """A convolution and BatchNorm for its bias, inside a compact method."""
    x = layers.conv(features, kernel, name=name)(x)
    return layers.batch_norm(f"{name}_norm")(x, train=train)


def double(x: jax.Array, height: int, width: int) -> jax.Array:
    """Repeats each pixel of (batch, H, W, C) twice each way, cut to height x width.

    Pixel j of a strided map stands on pixels 2 j and 2 j + 1 of the finer one, also
    where that one has an odd side and pixel 2 j + 1 of the last j is beyond its edge.
    """
    x = jnp.repeat(jnp.repeat(x, 2, axis=1), 2, axis=2)
    return x[:, :height, :width]


def top_down(
    maps: dict[str, jax.Array], channels: int, layers: Layers, *, train: bool
) -> dict[int, jax.Array]:
    """Laterals and top-down sums of a pyramid, inside a compact method.

    Args:
      maps: the backbone's {"C2": (batch, H / 4, W / 4, ...), ... "C5"}.
      channels: of every level.
      layers: dtype and BatchNorm settings.
      train: whether batch statistics are those of this batch.

    Returns:
      By level, from the finest, (batch, H / stride, W / stride, channels): the 1 x 1
      lateral of the level's map plus the level above, doubled.

    Source: Lin et al. (2017), Feature Pyramid Networks, section 3.
    """
    sums: dict[int, jax.Array] = {}
    for level in reversed(LEVELS):
        name = f"level{level}_lateral"
        x = conv_norm(maps[f"C{level}"], channels, 1, layers, name, train=train)
        if sums:
            x = x + double(sums[level + 1], *x.shape[1:3])
        sums[level] = x
    return dict(sorted(sums.items()))


class Pyramid(nn.Module):
    """A feature pyramid: laterals, top-down sums, and a 3 x 3 convolution per level.

    Attributes:
      channels: of every level.
      layers: dtype and BatchNorm settings. BatchNorms stand after laterals and outputs
        instead of biases, as in Detectron2 with FPN.NORM.
    """

    channels: int
    layers: Layers = Layers()

    @nn.compact
    def __call__(self, maps: dict[str, jax.Array], train: bool) -> dict[str, jax.Array]:
        """Maps {"C2": ..., "C5"} to {"P2": (batch, H / 4, W / 4, channels), ... "P5"}.

        Source: Lin et al. (2017), section 3.
        """
        sums = top_down(maps, self.channels, self.layers, train=train)
        return {
            f"P{level}": conv_norm(
                x, self.channels, 3, self.layers, f"level{level}_output", train=train
            )
            for level, x in sums.items()
        }


class SemanticHead(nn.Module):
    """Brings every level to the finest one's size, sums them and classifies pixels.

    A level goes up one stride at a time: 3 x 3 convolution, BatchNorm, ReLU, bilinear
    up-sampling by 2 (half-pixel centers); the finest has one convolution and stays.

    Attributes:
      num_classes: outputs of the classifier.
      channels: of the convolutions.
      layers: dtype and BatchNorm settings.
    """

    num_classes: int
    channels: int
    layers: Layers = Layers()

    @nn.compact
    def __call__(self, maps: dict[str, jax.Array], train: bool) -> jax.Array:
        """Maps {"P2": ..., "P5"} to logits (batch, H / 4, W / 4, classes), float32.

        Source: Kirillov et al. (2019), Panoptic Feature Pyramid Networks, section 3.
        """

        def branch(level: int, last: int) -> jax.Array:
            """Runs a level's convolutions, the last one at the size of level `last`."""
            x = maps[f"P{level}"]
            for i, size_of in enumerate(range(level, last - 1, -1), 1):
                x = resize(x, *maps[f"P{size_of}"].shape[1:3])
                name = f"level{level}_conv{i}"
                x = conv_norm(x, self.channels, 3, self.layers, name, train=train)
                x = nn.relu(x)
            return x

        finest, second, *_ = LEVELS
        # Interpolation is linear: the last and largest is of the sum, once for all.
        branches = (branch(level, second) for level in LEVELS[1:])
        coarse = functools.reduce(jnp.add, branches)
        x = branch(finest, finest)
        x = x + resize(coarse, *x.shape[1:3])
        # float32: rounded to bfloat16, the best classes of a pixel would often tie. It
        # starts from a deviation of 0.01 [choice]; Detectron2's from sqrt(2 / classes).
        return nn.Dense(
            self.num_classes,
            kernel_init=nn.initializers.normal(0.01),
            dtype=jnp.float32,
            name="classifier",
        )(x)


class FPN(Backbone):
    """Panoptic FPN's semantic branch; backbone options as in `Backbone`.

    The paper's backbones are `variant="msra"`.

    Attributes:
      num_classes: outputs of the classifier; by default those of COCO-Stuff.
      fpn_channels: channels of the pyramid's levels.
      head_channels: channels of the semantic head.
      formulation: how the network is computed; see `fused`.
    """

    num_classes: int = 54
    fpn_channels: int = 256
    head_channels: int = 128
    formulation: str = "auto"

    def __post_init__(self):
        check_at_least(1, fpn_channels=self.fpn_channels)
        check_at_least(1, head_channels=self.head_channels)
        super().__post_init__()

    @nn.nowrap
    def make_pyramid(self) -> nn.Module:
        """Returns the module that makes P2 .. P5, inside a compact method."""
        return Pyramid(self.fpn_channels, self.layer_settings(), name="fpn")

    @nn.compact
    def __call__(
        self, x: jax.Array, train: bool = False, features: bool = False
    ) -> jax.Array | dict[str, jax.Array]:
        """Classifies the pixels of images.

        Args:
          x: images (batch, H, W, 3), normalized; any size.
          train: whether batch statistics and stochastic depth are live.
          features: whether to return the maps of every level instead of logits.

        Returns:
          logits (batch, H / 4, W / 4, num_classes), float32, at the resolution of C2
          (sides are rounded up); or {"C2", ... "C5", "P2", ... "P5"} and what else the
          pyramid gives, in `dtype`.
        """
        maps = self.features(x, 5, train=train)
        maps |= self.make_pyramid()(maps, train=train)
        if features:
            return maps
        head = SemanticHead(
            self.num_classes, self.head_channels, self.layer_settings(), name="head"
        )
        return head(maps, train=train)
