"""VT-FPN's pyramid equals the equations; its levels meet in one transformer."""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import reference
from flax import traverse_util

from vt_flax.models import create_model
from vt_flax.models.vt_fpn import TokenPyramid
from vt_flax.nn.layers import VTLayers
from vt_flax.nn.visual_transformer import VTOptions

CHANNELS, TOKENS, HEADS = 8, 3, 2
LEVELS = (2, 3, 4, 5)


class OfFourMaps(nn.Module):
    """A pyramid called with C2 to C5 one by one."""

    pyramid: nn.Module

    def __call__(self, *maps, train):
        named = {f"C{level}": x for level, x in zip(LEVELS, maps, strict=True)}
        return self.pyramid(named, train=train)


def pyramid(placement="tokens", **changes):
    options = VTOptions(
        tokens=TOKENS,
        token_channels=16,
        heads=HEADS,
        tokenizer="static",
        position_encoding=False,
        transformer_groups=2,
        group_channels=4,
        **changes,
    )
    layers = VTLayers(norm_placement=placement)
    return OfFourMaps(TokenPyramid(CHANNELS, options, layers))


def four_maps(batch=2, height=13, width=10, seed=0):
    """C2 to C5 of which each has half the sides of the one before, rounded up."""
    maps = []
    for i in range(4):
        maps.append(reference.normal(seed + i, batch, height, width, 4 * 2**i))
        height, width = -(-height // 2), -(-width // 2)
    return maps


def restated(p, *maps, feed_forward="linear"):
    """Laterals, sums, 3 tokens a level, one transformer, and back to each level."""
    p = p / "pyramid"
    sums = {}
    for level, c in reversed(list(zip(LEVELS, maps, strict=True))):
        kernel = p.get(f"level{level}_lateral", "kernel")
        x = p.normalize(c @ kernel[0, 0], f"level{level}_lateral_norm")
        if level < 5:
            rows, columns = (np.arange(side) // 2 for side in x.shape[1:3])
            x = x + sums[level + 1][:, rows][:, :, columns]
        sums[level] = x
    tokens = [
        reference.static_tokenizer(
            p / f"level{level}_tokenizer", sums[level], value_map=False
        )
        for level in LEVELS
    ]
    tokens = reference.transformer(
        p / "transformer", np.concatenate(tokens, 1), HEADS, feed_forward
    )
    outputs = {"tokens": tokens}
    for i, level in enumerate(LEVELS):
        own = tokens[:, TOKENS * i : TOKENS * (i + 1)]
        outputs[f"P{level}"] = reference.projector(
            p / f"level{level}_projector", sums[level], own, HEADS
        )
    return outputs


@pytest.mark.slow
@pytest.mark.parametrize(
    "train,placement,feed_forward",
    [
        (True, "tokens", "linear"),
        (False, "every_map", "mlp"),
    ],
)
def test_equals_the_restatement(train, placement, feed_forward):
    reference.check(
        pyramid(placement, feed_forward=feed_forward),
        functools.partial(restated, feed_forward=feed_forward),
        *four_maps(),
        train=train,
        placement=placement,
    )


def test_maps_are_sown_by_level():
    model = create_model(
        "vt_fpn_resnet18", width=4, stage_sizes=[1, 1, 1, 1], fpn_channels=8,
        token_channels=16, heads=2, tokens=3, group_channels=4,
    )  # fmt: skip
    images = jax.ShapeDtypeStruct((2, 70, 45, 3), jnp.float32)
    variables = jax.eval_shape(model.init, jax.random.key(0), images)
    _, state = jax.eval_shape(
        lambda v, x: model.apply(v, x, mutable=["intermediates"]), variables, images
    )
    maps = traverse_util.flatten_dict(state["intermediates"], sep="/")
    sides = {2: (18, 12), 3: (9, 6), 4: (5, 3), 5: (3, 2)}
    expected = {}
    for level, side in sides.items():
        expected[f"fpn/level{level}_tokenizer/coefficients"] = (2, 3, *side)
        expected[f"fpn/level{level}_projector/projection"] = (2, 2, 3, *side)
    assert {path: value[0].shape for path, value in maps.items()} == expected
