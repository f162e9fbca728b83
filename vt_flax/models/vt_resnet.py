"""VT-ResNet: ResNet whose last stage is a stack of Visual Transformers (section 2)."""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from vt_flax import fused
from vt_flax.errors import UserError, nearest
from vt_flax.models.resnet import Classifier
from vt_flax.nn.checks import check_at_least
from vt_flax.nn.layers import VTLayers
from vt_flax.nn.visual_transformer import VTOptions, VTStage

# The differences between the two versions of the paper.
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
      vt: options of the modules; `create_model` takes them one by one.
      vt_channels: output channels C of the modules; 0 stands for the paper's: 8 * width
        with basic blocks, 16 * width with bottlenecks (512 and 1024).
      project_last: whether the last module has a projector too, so that C5 exists.
      formulation: how the network is computed; see `fused`.
    """

    vt: VTOptions = VTOptions()
    vt_channels: int = 0
    project_last: bool = False
    formulation: str = "auto"

    def __post_init__(self):
        super().__post_init__()
        if self.vt.transformers > self.stage_sizes[3]:
            raise UserError(
                f"transformers={self.vt.transformers}: stage 5 has "
                f"{self.stage_sizes[3]} modules"
            )
        if self.project_last and not self.vt.projector:
            raise UserError("project_last=True needs projector=True")
        check_at_least(0, vt_channels=self.vt_channels)

    @nn.compact
    def __call__(
        self, x: jax.Array, train: bool = False, features: bool = False
    ) -> jax.Array | dict:
        """Classifies images.

        Args:
          x: images (batch, H, W, 3), normalized.
          train: whether batch statistics, dropout and stochastic depth are live.
          features: whether to return maps and tokens instead of logits.

        Returns:
          logits (batch, num_classes), float32; or {"C2", "C3", "C4", "tokens"} and,
          with `project_last`, "C5" (at C4's resolution).
        """
        maps = self.features(x, 4, train=train)
        x, tokens = VTStage(
            self.vt,
            self.stage_sizes[3],
            self.vt_channels or (16 if self.bottleneck else 8) * self.width,
            self.project_last,
            self.survival_probabilities(5),
            self.layer_settings(VTLayers, norm_placement=self.vt.norm_placement),
            fused.VT_PARTS[self.computed_by()],
            name="stage5",
        )(maps["C4"], train=train)
        if features:
            maps["tokens"] = tokens
            if self.project_last:
                maps["C5"] = x
            return maps
        pooled = jnp.mean(tokens.astype(jnp.float32), axis=1)
        return self.classify(pooled, train=train)
