"""VT-FPN: a pyramid whose output convolutions give way to tokens (section 3).

What the paper leaves open is chosen so that the counts fit: 8.5 GMACs are printed for
the pyramid at 800 x 1216. Laterals, filters, attention products and the maps between
pixels and tokens make 8.16; a grouped (16) 256 -> 256 map per level adds 0.33, the
transformer 0.04. With that one map it is 8.53; without any it would be 8.20, with two
8.86. The counts do not tell whether the map is the tokenizer's value map or the
projector's query. It is the query here: v4's equation of the tokenizer has no value
map, and one would add nothing, since the token map that follows is linear too. The
transformer is v1's, linear and with 8 groups; v4's would make 8.57, rounded to 8.6.
"""

import flax.linen as nn
import jax
import jax.numpy as jnp

from vt_flax.errors import UserError
from vt_flax.models.fpn import FPN, top_down
from vt_flax.nn.projector import Projector
from vt_flax.nn.tokenizers import StaticTokenizer
from vt_flax.nn.visual_transformer import VTOptions


class TokenPyramid(nn.Module):
    """Laterals, top-down sums, and tokens that carry what the levels tell each other.

    Each level gives tokens by a static tokenizer without a value map. Those of all
    levels go through one transformer, and each level's are projected back to its map.

    Attributes:
      channels: of every level.
      options: of the tokens; tokenizers are static whatever they say.
    """

    channels: int
    options: VTOptions

    @nn.compact
    def __call__(self, maps: dict[str, jax.Array], train: bool) -> dict[str, jax.Array]:
        """Maps {"C2": ..., "C5"} to {"P2": ..., "P5", "tokens"}.

        P_i is (batch, H / stride, W / stride, channels); tokens are those of all levels
        after the transformer, from the finest, (batch, 4 L, C_T).

        Source: v1 and v4, semantic segmentation.
        """
        options = self.options
        sums = top_down(maps, self.channels, options.norm, train=train)
        tokens = [
            StaticTokenizer(
                options.tokens,
                options.token_channels,
                value_groups=0,
                formulation=options.formulation,
                norm=options.norm,
                dtype=options.dtype,
                name=f"level{level}_tokenizer",
            )(x, train=train)
            for level, x in sums.items()
        ]
        transformer = options.make_interaction(1.0, "transformer")
        tokens = transformer(jnp.concatenate(tokens, axis=1), train=train)
        own = jnp.split(tokens, len(sums), axis=1)
        outputs = {
            f"P{level}": Projector(
                self.channels,
                options.heads,
                options.groups(self.channels),
                formulation=options.formulation,
                norm=options.norm,
                dtype=options.dtype,
                name=f"level{level}_projector",
            )(x, mine, train=train)
            for (level, x), mine in zip(sums.items(), own, strict=True)
        }
        return {**outputs, "tokens": tokens}


class VTFPN(FPN):
    """VT-FPN; backbone and head options as in `FPN`.

    Attributes:
      tokens: L, the number of tokens of each level.
      token_channels .. transformer_groups, formulation: see
        `nn.visual_transformer.VTOptions`.
      group_channels: channels in a group of the projectors' query maps.
      norm_placement: see `nn.norm.Normalization`; it governs tokenizers, transformer
        and projectors, not the laterals and the head.
    """

    tokens: int = 8
    token_channels: int = 1024
    heads: int = 16
    feed_forward: str = "linear"
    transformer_groups: int = 8
    group_channels: int = 16
    formulation: str = "fused"
    norm_placement: str = "tokens"

    def __post_init__(self):
        super().__post_init__()
        self.vt_options()
        if self.fpn_channels % self.heads:
            raise UserError(
                f"{self.heads} heads do not divide fpn_channels={self.fpn_channels}: "
                "change heads or fpn_channels"
            )

    @nn.nowrap
    def vt_options(self) -> VTOptions:
        """Returns the options of the tokens; raises `UserError` for bad ones."""
        return VTOptions(
            tokens=self.tokens,
            token_channels=self.token_channels,
            heads=self.heads,
            tokenizer="static",
            position_encoding=False,
            feed_forward=self.feed_forward,
            transformer_groups=self.transformer_groups,
            group_channels=self.group_channels,
            formulation=self.formulation,
            norm=self.normalization(self.norm_placement),
            dtype=self.dtype,
        )

    @nn.nowrap
    def make_pyramid(self) -> nn.Module:
        """Returns what makes P2 to P5 of C2 to C5, inside a compact method."""
        return TokenPyramid(self.fpn_channels, self.vt_options(), name="fpn")
