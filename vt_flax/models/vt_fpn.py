"""VT-FPN: a pyramid whose output convolutions give way to tokens (section 3).

What the paper leaves open is chosen so that the pyramid has the printed 8.5 GMACs at
800 x 1216: one grouped (16) 256 -> 256 map of the pixels per level, and v1's
transformer [fit]. The map is the projector's query: v4's equation of the tokenizer has
no value map, and one would add nothing, since the token map that follows is linear too.
"""

from typing import ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp

from vt_flax import fused
from vt_flax.errors import UserError
from vt_flax.models.fpn import FPN, top_down
from vt_flax.nn.layers import Layers, VTLayers
from vt_flax.nn.visual_transformer import VTOptions, VTParts, make_interaction


class TokenPyramid(nn.Module):
    """Laterals, top-down sums, and tokens through which the levels interact.

    Each level gives tokens by a static tokenizer without a value map. Those of all
    levels go through one transformer, and each level's are projected back to its map.

    Attributes:
      channels: of every level.
      options: options of the tokens; tokenizers are static whatever they say.
      layers: dtype and normalization.
      parts: classes of tokenizers and projectors.
      lateral_layers: dtype and BatchNorm settings of the laterals.
    """

    channels: int
    options: VTOptions
    layers: VTLayers = VTLayers()
    parts: VTParts = VTParts()
    lateral_layers: Layers = Layers()

    @nn.compact
    def __call__(self, maps: dict[str, jax.Array], train: bool) -> dict[str, jax.Array]:
        """Maps {"C2": ..., "C5"} to {"P2": ..., "P5", "tokens"}.

        P_i is (batch, H / stride, W / stride, channels); tokens are those of all levels
        after the transformer, from the finest, (batch, 4 L, C_T).

        Source: v1 and v4, semantic segmentation.
        """
        options, layers, parts = self.options, self.layers, self.parts
        sums = top_down(maps, self.channels, self.lateral_layers, train=train)
        tokens = [
            parts.static_tokenizer(
                options.tokens,
                options.token_channels,
                value_groups=0,
                layers=layers,
                name=f"level{level}_tokenizer",
            )(x, train=train)
            for level, x in sums.items()
        ]
        transformer = make_interaction(options, layers, name="transformer")
        tokens = transformer(jnp.concatenate(tokens, axis=1), train=train)
        level_tokens = jnp.split(tokens, len(sums), axis=1)
        outputs = {
            f"P{level}": parts.projector(
                self.channels,
                options.heads,
                options.groups(self.channels),
                layers=layers,
                name=f"level{level}_projector",
            )(x, own_tokens, train=train)
            for (level, x), own_tokens in zip(sums.items(), level_tokens, strict=True)
        }
        return {**outputs, "tokens": tokens}


class VTFPN(FPN):
    """VT-FPN; backbone and head options as in `FPN`.

    Attributes:
      vt: options of the tokens: L is of each level, `group_channels` of the projectors'
        query maps, `norm_placement` of tokenizers, transformer and projectors, not of
        the laterals and the head. `create_model` takes those of `VT_OPTIONS` one by
        one.
    """

    VT_OPTIONS: ClassVar[tuple[str, ...]] = (
        "tokens",
        "token_channels",
        "heads",
        "feed_forward",
        "transformer_groups",
        "group_channels",
        "norm_placement",
    )

    vt: VTOptions = VTOptions(
        tokenizer="static", position_encoding=False, group_channels=16
    )

    def __post_init__(self):
        super().__post_init__()
        if self.fpn_channels % self.vt.heads:
            raise UserError(
                f"{self.vt.heads} heads do not divide "
                f"fpn_channels={self.fpn_channels}: change heads or fpn_channels"
            )

    @nn.nowrap
    def make_pyramid(self) -> nn.Module:
        """Returns the module that makes P2 .. P5, inside a compact method."""
        return TokenPyramid(
            self.fpn_channels,
            self.vt,
            self.layer_settings(VTLayers, norm_placement=self.vt.norm_placement),
            fused.VT_PARTS[self.computed_by()],
            self.layer_settings(),
            name="fpn",
        )
