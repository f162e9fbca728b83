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
        (False, "tokens", "linear"),
        (True, "tokens", "linear"),
        (True, "every_map", "mlp"),
        (False, "none", "linear"),
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


def test_levels_meet_in_the_transformer_and_only_there():
    """C2 reaches P3, P4 and P5 through tokens; without exchange, not at all."""
    module, maps = pyramid(), four_maps()
    variables = reference.variables_of(module, *maps)
    changed = [maps[0] + reference.normal(9, *maps[0].shape), *maps[1:]]
    silent = traverse_util.flatten_dict(variables)
    value = ("params", "pyramid", "transformer", "value", "kernel")
    silent[value] = np.zeros_like(silent[value])
    apply = reference.jax.jit(functools.partial(module.apply, train=False))

    def differences(variables):
        before, after = apply(variables, *maps), apply(variables, *changed)
        return {name: reference.error(after[name], before[name]) for name in before}

    meeting = differences(variables)
    assert min(meeting[f"P{level}"] for level in LEVELS) > 1e-4
    apart = differences(traverse_util.unflatten_dict(silent))
    assert apart["P2"] > 1e-2
    assert max(apart[f"P{level}"] for level in (3, 4, 5)) < 1e-6


def test_tokens_are_in_the_order_of_their_levels():
    """A map is in the sums of its own level and of the finer ones."""
    module, maps = pyramid(), four_maps()
    variables = reference.variables_of(module, *maps)
    apply = reference.jax.jit(functools.partial(module.apply, train=False))
    flat = traverse_util.flatten_dict(variables)
    for name in ("value", "feed_forward"):
        path = ("params", "pyramid", "transformer", name, "kernel")
        flat[path] = np.zeros_like(flat[path])
    alone = traverse_util.unflatten_dict(flat)
    changed = [*maps[:2], maps[2] + 1.5, maps[3]]
    moved = apply(alone, *changed)["tokens"] - apply(alone, *maps)["tokens"]
    moved = np.abs(np.reshape(moved, (2, 4, TOKENS, -1))).max((0, 2, 3))
    assert np.all(moved[:3] > 1e-4)
    assert moved[3] == 0


def test_maps_are_sown_by_level_and_only_on_request():
    model = create_model(
        "vt_fpn_resnet18", width=4, stage_sizes=[1, 1, 1, 1], fpn_channels=8,
        token_channels=16, heads=2, tokens=3, group_channels=4,
    )  # fmt: skip
    images = jax.ShapeDtypeStruct((2, 70, 45, 3), jnp.float32)
    variables = jax.eval_shape(model.init, jax.random.key(0), images)
    assert set(variables) == {"params", "batch_stats"}
    program = jax.make_jaxpr(lambda v, x: model.apply(v, x))(variables, images)
    assert len(program.jaxpr.outvars) == 1
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


def test_maps_sum_to_one():
    module, maps = pyramid(), four_maps()
    found = reference.sown(module, reference.variables_of(module, *maps), *maps)
    assert len(found) == 2 * len(LEVELS)
    for path, value in found.items():
        axes = (-2, -1) if path.endswith("coefficients") else 2
        np.testing.assert_allclose(value.sum(axes), 1.0, atol=1e-5)


def test_there_is_one_transformer_and_one_map_of_pixels_per_level():
    model = create_model("vt_fpn_resnet50")
    images = jax.ShapeDtypeStruct((1, 64, 64, 3), jnp.float32)
    variables = jax.eval_shape(model.init, jax.random.key(0), images)
    flat = traverse_util.flatten_dict(variables["params"]["fpn"], sep="/")
    found = {path: leaf.shape for path, leaf in flat.items() if "kernel" in path}
    expected = {
        "transformer/key/kernel": (8, 128, 64),
        "transformer/query/kernel": (8, 128, 64),
        "transformer/value/kernel": (8, 128, 128),
        "transformer/feed_forward/kernel": (1024, 1024),
    }
    for level, channels in zip(LEVELS, (256, 512, 1024, 2048), strict=True):
        at = f"level{level}_"
        expected |= {
            f"{at}lateral/kernel": (1, 1, channels, 256),
            f"{at}tokenizer/filter/kernel": (256, 8),
            f"{at}tokenizer/token/map/kernel": (256, 1024),
            f"{at}projector/query/kernel": (16, 16, 16),
            f"{at}projector/key/kernel": (1024, 256),
            f"{at}projector/value/kernel": (1024, 256),
        }
    assert found == expected
