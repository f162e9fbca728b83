"""VT-ResNet: ResNet whose last stage is a stack of Visual Transformers (section 2)."""

import dataclasses
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from vt_flax.errors import UserError, nearest
from vt_flax.models.resnet import Classifier
from vt_flax.nn.tokenizers import LLOYD_ITERATIONS
from vt_flax.nn.visual_transformer import VTOptions, VTStage

# What the two versions of the paper differ in; only v1 encodes positions.
PRESETS = {
    "v1": {
        "tokens": 8,
        "first_tokenizer": "static",
        "tokenizer": "dynamic",
        "position_encoding": True,
        "feed_forward": "linear",
        "transformer_groups": 8,
    },
    "v4": {
        "tokens": 16,
        "first_tokenizer": "static",
        "tokenizer": "recurrent",
        "position_encoding": False,
        "feed_forward": "mlp",
        "transformer_groups": 4,
    },
}


def preset_options(preset: str) -> dict[str, Any]:
    """Returns the options that `preset` sets.

    Raises:
      UserError: for an unknown preset.
    """
    if preset not in PRESETS:
        raise UserError(f"preset {preset!r} is not known{nearest(preset, PRESETS)}")
    return dict(PRESETS[preset])


class VTResNet(Classifier):
    """VT-ResNet-{18, 34, 50, 101}; backbone options as in `Classifier`.

    Stages up to 4 are ResNet's; as many VT modules as stage 5 had blocks work on the
    map of stage 4, at its resolution. The head is the mean over tokens and one map.

    Attributes:
      tokens .. formulation: see `nn.visual_transformer.VTOptions`.
      vt_channels: output channels C of the modules; 0 stands for the paper's: 8 * width
        with basic blocks, 16 * width with bottlenecks (512 and 1024).
      norm_placement: see `nn.norm.Normalization`.
      project_last: whether the last module has a projector too, so that C5 exists.
    """

    tokens: int = 8
    token_channels: int = 1024
    heads: int = 16
    first_tokenizer: str = "static"
    tokenizer: str = "dynamic"
    position_encoding: bool = True
    interaction: str = "transformer"
    feed_forward: str = "linear"
    transformer_groups: int = 8
    group_channels: int = 64
    transformers: int = 0
    lloyd_iterations: int = LLOYD_ITERATIONS
    projector: bool = True
    formulation: str = "fused"
    vt_channels: int = 0
    norm_placement: str = "tokens"
    project_last: bool = False

    def __post_init__(self):
        super().__post_init__()
        self.vt_options()
        if self.transformers > self.stage_sizes[3]:
            raise UserError(
                f"transformers={self.transformers}: stage 5 has {self.stage_sizes[3]} "
                "modules"
            )
        if self.project_last and not self.projector:
            raise UserError("project_last=True needs projector=True")
        if self.vt_channels < 0:
            raise UserError(f"vt_channels={self.vt_channels}: must be at least 0")

    @nn.nowrap
    def vt_options(self) -> VTOptions:
        """Returns the options of the VT stage; raises `UserError` for bad ones."""
        own = {
            field.name: getattr(self, field.name)
            for field in dataclasses.fields(VTOptions)
            if field.name not in ("norm", "dtype")
        }
        return VTOptions(
            **own, norm=self.normalization(self.norm_placement), dtype=self.dtype
        )

    @nn.compact
    def __call__(
        self, x: jax.Array, train: bool = False, features: bool = False
    ) -> jax.Array | dict:
        """Classifies images.

        Args:
          x: images (batch, H, W, 3), normalised.
          train: whether batch statistics, dropout and stochastic depth are live.
          features: whether to return maps and tokens instead of logits.

        Returns:
          logits (batch, num_classes), float32; or {"C2", "C3", "C4", "tokens"} and,
          with `project_last`, "C5" (at C4's resolution).
        """
        maps = self.features(x, 3, train=train)
        modules = self.stage_sizes[3]
        before = sum(self.stage_sizes[:3])
        channels = self.vt_channels or (16 if self.bottleneck else 8) * self.width
        x, tokens = VTStage(
            self.vt_options(),
            modules,
            channels,
            self.project_last,
            tuple(self.survival(before + i) for i in range(modules)),
            name="stage5",
        )(maps["C4"], train=train)
        if features:
            maps["tokens"] = tokens
            if self.project_last:
                maps["C5"] = x
            return maps
        pooled = jnp.mean(tokens.astype(jnp.float32), axis=1)
        return self.classify(pooled, train=train)
