"""The fused formulation of Visual Transformer modules: one pass over the pixels."""

from vt_flax.fused import pixel_attention
from vt_flax.fused.folded import (
    FoldedDynamicTokenizer,
    FoldedProjector,
    FoldedStaticTokenizer,
)
from vt_flax.fused.norms import MomentNorm
from vt_flax.nn.visual_transformer import VTParts


class FusedStaticTokenizer(FoldedStaticTokenizer):
    """`FoldedStaticTokenizer` that pools by a kernel."""

    pool_pixels = staticmethod(pixel_attention.pool)


class FusedDynamicTokenizer(FoldedDynamicTokenizer):
    """`FoldedDynamicTokenizer` that pools by a kernel."""

    pool_pixels = staticmethod(pixel_attention.pool)


class FusedProjector(FoldedProjector):
    """`FoldedProjector` whose kernel takes BatchNorm's moments of the result."""

    def write_pixels(self, x, key, value, *, train):
        """See `FoldedProjector`."""
        operands = self.operands(x.shape[-1], key, value)
        if self.layers.norm_placement == "none":
            return pixel_attention.write_back(x, *operands)[0]
        out = None

        def means(origin):
            nonlocal out
            out, sums = pixel_attention.write_back(x, *operands, origin[None, None])
            return sums[:, 0] / x.shape[1], sums[:, 1] / x.shape[1]

        norm = self.layers.batch_norm("norm", kind=MomentNorm, means=means)
        affine = norm(self.features, x.shape[0], train=train)
        if out is None:  # running statistics need no moments
            out, _ = pixel_attention.write_back(x, *operands)
        return affine(out[:, None])[:, 0].astype(out.dtype)


PARTS = VTParts(FusedStaticTokenizer, FusedDynamicTokenizer, FusedProjector)
