"""The fused formulation of Visual Transformer modules: one pass over the pixels."""

from vt_flax.fused import pixel_attention
from vt_flax.fused.folded import (
    FoldedDynamicTokenizer,
    FoldedProjector,
    FoldedStaticTokenizer,
)
from vt_flax.fused.norms import OnePassBatchNorm
from vt_flax.nn.visual_transformer import VTParts


class FusedStaticTokenizer(FoldedStaticTokenizer):
    """`FoldedStaticTokenizer` that pools by a kernel."""

    pool_pixels = staticmethod(pixel_attention.pool)


class FusedDynamicTokenizer(FoldedDynamicTokenizer):
    """`FoldedDynamicTokenizer` that pools by a kernel."""

    pool_pixels = staticmethod(pixel_attention.pool)


class FusedProjector(FoldedProjector):
    """`FoldedProjector` that writes by a kernel, and normalizes in one pass."""

    write_pixels = staticmethod(pixel_attention.write_back)
    norm_class = OnePassBatchNorm


PARTS = VTParts(FusedStaticTokenizer, FusedDynamicTokenizer, FusedProjector)
