"""The Visual Transformer module, and the stage that stacks modules."""

import dataclasses
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from vt_flax.errors import UserError, nearest
from vt_flax.fused.lazy_map import LazyMap
from vt_flax.nn.norm import Normalization
from vt_flax.nn.projector import Projector
from vt_flax.nn.tokenizers import (
    LLOYD_ITERATIONS,
    ClusteringTokenizer,
    DynamicTokenizer,
    PoolingTokenizer,
    StaticTokenizer,
)
from vt_flax.nn.transformer import (
    GraphInteraction,
    LinearInteraction,
    TokenTransformer,
)

TOKENIZERS = ("static", "dynamic", "recurrent", "clustering", "pooling")
FEED_FORWARDS = ("linear", "mlp")
INTERACTIONS = ("transformer", "graph", "none")
FORMULATIONS = ("printed", "fused")


@dataclasses.dataclass(frozen=True)
class VTOptions:
    """What the modules of a stage share. The defaults are v1's.

    Attributes:
      tokens: L, the number of tokens.
      token_channels: C_T.
      heads: heads of every attention.
      first_tokenizer: tokenizer of the first module: `static` (= filter),
        `clustering` or `pooling`.
      tokenizer: tokenizer of the later modules: these, `dynamic` (half of the tokens
        replaced, v1) or `recurrent` (all replaced, v4).
      position_encoding: whether tokens carry the position of their maps (v1).
      interaction: `transformer`, `graph` or `none`.
      feed_forward: `linear` (v1) or `mlp` (v4), in the transformer.
      transformer_groups: groups of the transformer's key, query and value maps.
      group_channels: channels in a group of the 1 x 1 maps on pixels.
      transformers: number of modules, from the first, whose tokens interact;
        0 stands for all. VT-ResNet-34's count in v4's Table 8 has 2 of 3.
      lloyd_iterations: of the clustering tokenizer.
      projector: whether tokens are written back; without, the map is tokenised once
        and the interactions are stacked (v4, ablation).
      formulation: how the equations are computed. `printed` is the reference, whose
        MACs are the paper's; `fused` makes no map of the pixels between them and the
        products of attention, and on TPUs passes over the pixels once (see
        `fused.pixel_attention`). The same function, but for rounding. Where such maps
        are normalised, or the softmax of each pixel is asked for, it is as printed.
      norm: normalisation of the modules.
      dtype: type of the computation.
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
    norm: Normalization = Normalization()
    dtype: Any = jnp.float32

    def __post_init__(self):
        _choose("first_tokenizer", self.first_tokenizer, TOKENIZERS)
        _choose("tokenizer", self.tokenizer, TOKENIZERS)
        _choose("interaction", self.interaction, INTERACTIONS)
        _choose("formulation", self.formulation, FORMULATIONS)
        if self.first_tokenizer in ("dynamic", "recurrent"):
            raise UserError(
                f"first_tokenizer={self.first_tokenizer!r} needs earlier tokens: "
                "choose static, clustering or pooling"
            )
        _choose("feed_forward", self.feed_forward, FEED_FORWARDS)
        for name, least in (
            ("tokens", 1),
            ("token_channels", 1),
            ("heads", 1),
            ("group_channels", 1),
            ("transformer_groups", 1),
            ("transformers", 0),
            ("lloyd_iterations", 0),
        ):
            if getattr(self, name) < least:
                raise UserError(
                    f"{name}={getattr(self, name)}: must be at least {least}"
                )
        if self.interaction == "transformer" and (
            self.token_channels % (2 * self.heads)
        ):
            raise UserError(
                f"{self.heads} heads do not divide the {self.token_channels // 2} key "
                "channels of the transformer: change heads or token_channels"
            )
        # Without projectors the map is tokenised once, by the first tokenizer.
        later = self.tokenizer if self.projector else self.first_tokenizer
        if later == "dynamic" and self.tokens % 2:
            raise UserError(
                f"half replacement needs an even number of tokens, not {self.tokens}: "
                "change `tokens`, or use tokenizer 'recurrent'"
            )
        pooling = "pooling" in (self.first_tokenizer, later)
        if pooling and self.position_encoding:
            raise UserError(
                "a pooling tokenizer has no maps for position encoding: set "
                "position_encoding=False"
            )

    def groups(self, channels: int) -> int:
        """Groups of a 1 x 1 pixel map to `channels` outputs (1 below a full group)."""
        return max(1, channels // self.group_channels)

    def make_tokenizer(self, kind: str, channels: int) -> nn.Module:
        """Returns the tokenizer `kind` for a map of `channels`."""
        common = {
            "token_channels": self.token_channels,
            "norm": self.norm,
            "dtype": self.dtype,
            "name": "tokenizer",
        }
        if kind == "pooling":
            return PoolingTokenizer(self.tokens, **common)
        common["position_encoding"] = self.position_encoding
        if kind == "clustering":
            return ClusteringTokenizer(
                self.tokens, iterations=self.lloyd_iterations, **common
            )
        groups = self.groups(channels)
        common["formulation"] = self.formulation
        if kind == "static":
            return StaticTokenizer(self.tokens, value_groups=groups, **common)
        return DynamicTokenizer(
            replace="half" if kind == "dynamic" else "all",
            heads=self.heads,
            groups=groups,
            **common,
        )

    def make_interaction(
        self, survival_probability: float, name: str = "interaction"
    ) -> nn.Module:
        """Returns what lets the tokens interact."""
        common = {
            "survival_probability": survival_probability,
            "norm": self.norm,
            "dtype": self.dtype,
            "name": name,
        }
        if self.interaction == "transformer":
            return TokenTransformer(
                self.heads, self.transformer_groups, self.feed_forward, **common
            )
        if self.interaction == "graph":
            return GraphInteraction(**common)
        return LinearInteraction(**common)


def _choose(option: str, value: str, choices: tuple[str, ...]) -> None:
    if value not in choices:
        raise UserError(
            f"{option}={value!r} is not known{nearest(str(value), choices)}"
        )


class VTModule(nn.Module):
    """One Visual Transformer: tokenizer, interaction, and projector where asked.

    Attributes:
      options: what the modules of a stage share.
      tokenizer: which tokenizer this module has.
      features: output channels C.
      interact: whether the tokens interact in this module.
      project: whether the tokens are written back; else the map is returned as it came.
      lazy: whether the map's normalisation is left to the next module.
      survival_probability: stochastic depth of the residual branches.
    """

    options: VTOptions
    tokenizer: str
    features: int
    interact: bool = True
    project: bool = True
    lazy: bool = False
    survival_probability: float = 1.0

    @nn.compact
    def __call__(
        self, x: jax.Array | LazyMap, tokens: jax.Array | None, train: bool
    ) -> tuple[jax.Array | LazyMap, jax.Array]:
        """Maps (batch, H, W, C_in), tokens to (batch, H, W, features), tokens."""
        options = self.options
        channels = LazyMap.of(x).pixels.shape[-1]
        tokenizer = options.make_tokenizer(self.tokenizer, channels)
        tokens = tokenizer(x, tokens, train=train)
        if self.interact:
            interaction = options.make_interaction(self.survival_probability)
            tokens = interaction(tokens, train=train)
        if not self.project:
            return x, tokens
        x = Projector(
            self.features,
            options.heads,
            options.groups(self.features),
            self.survival_probability,
            options.formulation,
            options.norm,
            options.dtype,
            name="projector",
        )(x, tokens, train=train, lazy=self.lazy)
        return x, tokens


class VTStage(nn.Module):
    """A stack of Visual Transformer modules on one feature map.

    The first module extracts tokens from the map alone; each later one is given the
    tokens of the one before it.

    Attributes:
      options: what the modules share.
      modules: number of modules.
      features: output channels C.
      project_last: whether the last module writes its tokens back. A classifier reads
        the tokens, so its last module has no projector.
      survival_probabilities: stochastic depth of each module; empty for none.
    """

    options: VTOptions
    modules: int
    features: int
    project_last: bool = False
    survival_probabilities: tuple[float, ...] = ()

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> tuple[jax.Array, jax.Array]:
        """Maps (batch, H, W, C) to a map (batch, H, W, C') and tokens (batch, L, C_T).

        C' is `features` once any module has projected, and C before.

        Raises:
          UserError: if the last map is asked for without a projector to write it.
        """
        options = self.options
        survival = self.survival_probabilities or (1.0,) * self.modules
        transformers = options.transformers or self.modules
        if not 0 <= transformers <= self.modules:
            raise UserError(
                f"transformers={transformers}: the stage has {self.modules} modules"
            )
        if not options.projector:
            if self.project_last:
                raise UserError("a stage without projectors has no map to return")
            tokenizer = options.make_tokenizer(options.first_tokenizer, x.shape[-1])
            tokens = tokenizer(x, None, train=train)
            for i in range(transformers):
                interaction = options.make_interaction(
                    survival[i], f"interaction{i + 1}"
                )
                tokens = interaction(tokens, train=train)
            return x, tokens

        tokens = None
        for i in range(self.modules):
            last = i == self.modules - 1
            x, tokens = VTModule(
                options,
                options.tokenizer if i else options.first_tokenizer,
                self.features,
                interact=i < transformers,
                project=self.project_last or not last,
                lazy=not last,
                survival_probability=survival[i],
                name=f"module{i + 1}",
            )(x, tokens, train=train)
        return LazyMap.of(x).array(), tokens
