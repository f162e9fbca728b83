"""The Visual Transformer module, and the stage that stacks modules."""

import dataclasses
from typing import Any

import flax.linen as nn
import jax

from vt_flax.errors import UserError
from vt_flax.nn.checks import check_at_least, check_choice
from vt_flax.nn.layers import NORM_PLACEMENTS, VTLayers
from vt_flax.nn.projector import Projector
from vt_flax.nn.tokenizers import (
    LLOYD_ITERATIONS,
    ClusteringTokenizer,
    DynamicTokenizer,
    PoolingTokenizer,
    StaticTokenizer,
)
from vt_flax.nn.transformer import LinearInteraction, TokenTransformer

TOKENIZERS = ("static", "dynamic", "recurrent", "clustering", "pooling")
FEED_FORWARDS = ("linear", "mlp")
INTERACTIONS = ("transformer", "graph", "none")


@dataclasses.dataclass(frozen=True)
class VTOptions:
    """Options of Visual Transformer modules. The defaults are v1's.

    Attributes:
      tokens: L, the number of tokens.
      token_channels: C_T.
      heads: heads of every attention.
      first_tokenizer: tokenizer of the first module: `static` (= filter),
        `clustering` or `pooling`.
      tokenizer: tokenizer of the later modules: these, `dynamic` (half of the tokens
        replaced, v1) or `recurrent` (all replaced, v4).
      position_encoding: whether tokens carry the position of their attention maps (v1).
      interaction: `transformer`, `graph` or `none`.
      feed_forward: `linear` (v1) or `mlp` (v4), in the transformer.
      transformer_groups: groups of the transformer's key, query and value maps.
      group_channels: channels in a group of the 1 x 1 maps on pixels.
      transformers: number of modules, from the first, whose tokens interact;
        0 stands for all. VT-ResNet-34's count in v4's Table 8 has 2 of 3.
      lloyd_iterations: of the clustering tokenizer.
      projector: whether tokens are written back; without, the map is tokenized once
        and the interactions are stacked (v4, ablation).
      norm_placement: where the modules normalize; see `nn.layers.VTLayers`.

    Raises:
      UserError: for an unknown value, or values that do not fit together.
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
    norm_placement: str = "tokens"

    def __post_init__(self):
        check_choice(TOKENIZERS, first_tokenizer=self.first_tokenizer)
        check_choice(TOKENIZERS, tokenizer=self.tokenizer)
        check_choice(INTERACTIONS, interaction=self.interaction)
        check_choice(FEED_FORWARDS, feed_forward=self.feed_forward)
        check_choice(NORM_PLACEMENTS, norm_placement=self.norm_placement)
        if self.first_tokenizer in ("dynamic", "recurrent"):
            raise UserError(
                f"first_tokenizer={self.first_tokenizer!r} needs earlier tokens: "
                "choose static, clustering or pooling"
            )
        check_at_least(1, tokens=self.tokens, token_channels=self.token_channels)
        check_at_least(1, heads=self.heads, group_channels=self.group_channels)
        check_at_least(1, transformer_groups=self.transformer_groups)
        check_at_least(0, transformers=self.transformers)
        check_at_least(0, lloyd_iterations=self.lloyd_iterations)
        if self.interaction == "transformer" and (
            self.token_channels % (2 * self.heads)
        ):
            raise UserError(
                f"{self.heads} heads do not divide the {self.token_channels // 2} key "
                "channels of the transformer: change heads or token_channels"
            )
        # Without projectors the map is tokenized once, by the first tokenizer.
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


@dataclasses.dataclass(frozen=True)
class VTParts:
    """Classes that modules are built of, for formulations that replace them.

    Attributes:
      static_tokenizer: `StaticTokenizer`, or a subclass.
      dynamic_tokenizer: `DynamicTokenizer`, or a subclass.
      projector: `Projector`, or a subclass.
    """

    static_tokenizer: type[StaticTokenizer] = StaticTokenizer
    dynamic_tokenizer: type[DynamicTokenizer] = DynamicTokenizer
    projector: type[Projector] = Projector


def make_tokenizer(
    kind: str, channels: int, options: VTOptions, layers: VTLayers, parts: VTParts
) -> nn.Module:
    """Returns the tokenizer `kind` for a map of `channels`."""
    common: dict[str, Any] = {
        "token_channels": options.token_channels,
        "layers": layers,
        "name": "tokenizer",
    }
    if kind == "pooling":
        return PoolingTokenizer(options.tokens, **common)
    common["position_encoding"] = options.position_encoding
    if kind == "clustering":
        iterations = options.lloyd_iterations
        return ClusteringTokenizer(options.tokens, iterations=iterations, **common)
    groups = options.groups(channels)
    if kind == "static":
        return parts.static_tokenizer(options.tokens, value_groups=groups, **common)
    return parts.dynamic_tokenizer(
        replace="half" if kind == "dynamic" else "all",
        heads=options.heads,
        groups=groups,
        **common,
    )


def make_interaction(
    options: VTOptions,
    layers: VTLayers,
    survival_probability: float = 1.0,
    name: str = "interaction",
) -> nn.Module:
    """Returns the module through which tokens interact."""
    common: dict[str, Any] = {
        "survival_probability": survival_probability,
        "layers": layers,
        "name": name,
    }
    if options.interaction == "transformer":
        return TokenTransformer(
            options.heads, options.transformer_groups, options.feed_forward, **common
        )
    return LinearInteraction(options.interaction == "graph", **common)


class VTModule(nn.Module):
    """One Visual Transformer: tokenizer, interaction, and projector where asked.

    Attributes:
      options: options that the modules of a stage share.
      tokenizer: kind of this module's tokenizer.
      features: output channels C.
      interact: whether the tokens interact in this module.
      project: whether the tokens are written back; else the map is returned unchanged.
      survival_probability: stochastic depth of the residual branches.
      layers: dtype and normalization.
      parts: classes of the tokenizer and the projector.
    """

    options: VTOptions
    tokenizer: str
    features: int
    interact: bool = True
    project: bool = True
    survival_probability: float = 1.0
    layers: VTLayers = VTLayers()
    parts: VTParts = VTParts()

    @nn.compact
    def __call__(
        self, x: jax.Array, tokens: jax.Array | None, train: bool
    ) -> tuple[jax.Array, jax.Array]:
        """Maps (batch, H, W, C_in), tokens to (batch, H, W, features), tokens."""
        options, layers = self.options, self.layers
        tokenizer = make_tokenizer(
            self.tokenizer, x.shape[-1], options, layers, self.parts
        )
        tokens = tokenizer(x, tokens, train=train)
        if self.interact:
            interaction = make_interaction(options, layers, self.survival_probability)
            tokens = interaction(tokens, train=train)
        if self.project:
            x = self.parts.projector(
                self.features,
                options.heads,
                options.groups(self.features),
                self.survival_probability,
                layers,
                name="projector",
            )(x, tokens, train=train)
        return x, tokens


class VTStage(nn.Module):
    """A stack of Visual Transformer modules on one feature map.

    The first module extracts tokens from the map alone; each later one is given the
    tokens of the one before it.

    Attributes:
      options: options that the modules share.
      modules: number of modules.
      features: output channels C.
      project_last: whether the last module writes its tokens back. A classifier reads
        the tokens, so its last module has no projector.
      survival_probabilities: stochastic depth of each module; empty for none.
      layers: dtype and normalization.
      parts: classes of tokenizers and projectors.
    """

    options: VTOptions
    modules: int
    features: int
    project_last: bool = False
    survival_probabilities: tuple[float, ...] = ()
    layers: VTLayers = VTLayers()
    parts: VTParts = VTParts()

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> tuple[jax.Array, jax.Array]:
        """Maps (batch, H, W, C) to a map (batch, H, W, C') and tokens (batch, L, C_T).

        C' is `features` once any module has projected, and C before.

        Raises:
          UserError: if the last map is asked for without a projector to write it.
        """
        options, layers = self.options, self.layers
        survival = self.survival_probabilities or (1.0,) * self.modules
        transformers = options.transformers or self.modules
        if not 0 <= transformers <= self.modules:
            raise UserError(
                f"transformers={transformers}: the stage has {self.modules} modules"
            )
        if not options.projector:
            if self.project_last:
                raise UserError("a stage without projectors has no map to return")
            tokenizer = make_tokenizer(
                options.first_tokenizer, x.shape[-1], options, layers, self.parts
            )
            tokens = tokenizer(x, None, train=train)
            for i in range(transformers):
                interaction = make_interaction(
                    options, layers, survival[i], f"interaction{i + 1}"
                )
                tokens = interaction(tokens, train=train)
            return x, tokens

        tokens = None
        for i in range(self.modules):
            x, tokens = VTModule(
                options,
                options.tokenizer if i else options.first_tokenizer,
                self.features,
                interact=i < transformers,
                project=self.project_last or i < self.modules - 1,
                survival_probability=survival[i],
                layers=layers,
                parts=self.parts,
                name=f"module{i + 1}",
            )(x, tokens, train=train)
        return x, tokens
