"""ResNet's blocks and stem in NumPy, and the shapes of the papers.

`test_import_weights` compares whole networks with PyTorch.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import reference
from block_reference import residual_block
from flax import traverse_util

from vt_flax.errors import UserError
from vt_flax.models.resnet import (
    Backbone,
    BasicBlock,
    BottleneckBlock,
    ResNet,
    Stem,
)

WIDTH, CLASSES = 8, 7


@pytest.mark.parametrize(
    "kind, stride, options",
    [
        (BasicBlock, 1, {}),
        (BasicBlock, 2, {}),
        (BottleneckBlock, 2, {"variant": "torchvision"}),
        (BottleneckBlock, 2, {"variant": "msra"}),
    ],
)
def test_block(kind, stride, options):
    reference.check(
        kind(8, stride, **options),
        lambda p, x: residual_block(p, x, stride, **options),
        reference.normal(0, 3, 5, 7, 8),
        train=True,
    )


@pytest.mark.parametrize("kind, kernel", [("imagenet", 7), ("small", 3)])
def test_stem(kind, kernel):
    def restated(p, x):
        weights = p.get("conv", "kernel")
        assert weights.shape == (kernel, kernel, 3, WIDTH)
        y = reference.convolve(x, weights, 2 if kind == "imagenet" else 1)
        y = np.maximum(p.normalize(y, "norm"), 0)
        if kind == "small":
            return y
        # Zeros beyond the border do not change the maximum of what ReLU gives.
        y = np.pad(y, ((0, 0), (1, 2), (1, 2), (0, 0)))
        rows, columns = ((side - 2) // 2 for side in y.shape[1:3])
        out = np.zeros((len(y), rows, columns, WIDTH))
        for i in range(rows):
            for j in range(columns):
                out[:, i, j] = y[:, 2 * i : 2 * i + 3, 2 * j : 2 * j + 3].max((1, 2))
        return out

    images = reference.normal(0, 2, 11, 14, 3)
    reference.check(Stem(WIDTH, kind), restated, images, train=True)


@pytest.mark.parametrize(
    "bottleneck,factor,stem,strides,size",
    [(False, 1, "small", 1, (65, 97)), (True, 4, "imagenet", 4, (224, 224))],
)
def test_features_have_the_strides_of_their_stages(
    bottleneck, factor, stem, strides, size
):
    """In `dtype`; logits and parameters are float32."""
    options = {"stem": stem, "dtype": jnp.bfloat16}
    model = ResNet((1, 1, 1, 1), bottleneck, CLASSES, WIDTH, **options)
    images = jax.ShapeDtypeStruct((2, *size, 3), jnp.float32)
    variables = jax.eval_shape(model.init, jax.random.key(0), images)
    maps = jax.eval_shape(
        lambda v, x: model.apply(v, x, features=True), variables, images
    )
    assert list(maps) == ["C2", "C3", "C4", "C5"]
    for i, name in enumerate(maps):
        stride = strides * 2**i
        sides = [-(-side // stride) for side in size]
        assert maps[name].shape == (2, *sides, WIDTH * factor * 2**i), name
        assert maps[name].dtype == jnp.bfloat16
    logits = jax.eval_shape(model.apply, variables, images)
    assert logits.shape == (2, CLASSES)
    assert {leaf.dtype for leaf in jax.tree.leaves((logits, variables))} == {
        jnp.dtype("float32")
    }


@pytest.mark.parametrize("bottleneck, train", [(False, False), (True, True)])
def test_zero_init_residual_starts_as_the_identity(bottleneck, train):
    kind = BottleneckBlock if bottleneck else BasicBlock
    block, channels = kind(4, zero_init_residual=True), 4 * kind.expansion
    x = np.random.default_rng(0).normal(size=(2, 5, 4, channels)).astype(np.float32)
    variables = jax.jit(lambda k, x: block.init(k, x, train=False))(
        jax.random.key(0), x
    )
    out, _ = jax.jit(
        lambda v, x: block.apply(v, x, train=train, mutable=["batch_stats"])
    )(variables, x)
    np.testing.assert_array_equal(out, np.maximum(x, 0.0))
    scales = {
        path: np.asarray(scale)
        for path, scale in traverse_util.flatten_dict(variables["params"]).items()
        if path[-1] == "scale"
    }
    for (name, _), scale in scales.items():
        last = name == ("norm3" if bottleneck else "norm2")
        np.testing.assert_array_equal(scale, 0.0 if last else 1.0)


def test_convolutions_start_with_the_variance_of_their_fan_out():
    """He et al. (2015): 2 / (k k C_out), as in torchvision."""
    block = BottleneckBlock(64, 2)
    variables = jax.jit(lambda k, x: block.init(k, x, train=False))(
        jax.random.key(0), jnp.zeros((1, 4, 4, 64))
    )
    for path, value in traverse_util.flatten_dict(variables["params"]).items():
        if path[-1] == "kernel":
            kernel, _, _, outside = value.shape
            assert np.var(value) == pytest.approx(
                2 / (kernel**2 * outside), rel=0.05
            ), path


def test_survival_follows_the_linear_rule_over_all_blocks():
    model = Backbone((2, 1, 1, 1), False, survival_probability=0.5)
    found = [model.survival_probabilities(stage) for stage in (2, 3, 4, 5)]
    for one, expected in zip(found, [[0.9, 0.8], [0.7], [0.6], [0.5]], strict=True):
        np.testing.assert_allclose(one, expected)


def test_dropped_blocks_are_their_shortcuts():
    """Where a block is dropped, each example is ReLU of the shortcut."""
    x = np.random.default_rng(0).normal(size=(1, 3, 3, 4)).astype(np.float32)
    x = np.repeat(x, 16, axis=0)
    block = BasicBlock(4, survival_probability=0.5)
    whole = BasicBlock(4)
    variables = jax.jit(lambda k, x: block.init(k, x, train=False))(
        jax.random.key(0), x
    )
    out, full = jax.jit(
        lambda v, x, key: [
            b.apply(v, x, train=True, rngs={"dropout": key}, mutable=["batch_stats"])[0]
            for b in (block, whole)
        ]
    )(variables, x, jax.random.key(1))
    shortcut = np.maximum(x, 0.0)
    dropped = [np.array_equal(o, s) for o, s in zip(out, shortcut, strict=True)]
    assert 0 < sum(dropped) < 16
    assert not np.allclose(full[0], shortcut[0])
    same = out[np.flatnonzero(np.logical_not(dropped))]
    np.testing.assert_array_equal(same, np.broadcast_to(same[:1], same.shape))


@pytest.mark.parametrize("shape", [(2, 32, 32), (2, 3, 32, 32)])
def test_images_of_another_layout_are_refused(shape):
    model = ResNet((1, 1, 1, 1), False)
    with pytest.raises(UserError, match="expected .batch, height, width, 3"):
        jax.eval_shape(model.init, jax.random.key(0), jnp.zeros(shape))
