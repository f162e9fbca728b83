"""The comparison networks: sizes, types, gradients and sharding.

Their multiply-adds and parameters are counted in `unit/paper/test_published.py`.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import reference
from model_variables import randomized

from vt_flax.errors import UserError
from vt_flax.models import create_model, model_options
from vt_flax.models.comparison.lr import LRStem
from vt_flax.models.comparison.san_attention import PairwiseAttention
from vt_flax.models.comparison.sasa import (
    AttentionStem,
    BlockAttention,
    StandAloneAttention,
)
from vt_flax.parallel.mesh import batch_sharding, make_mesh

NAMES = (
    *("se_resnet18", "cbam_resnet50", "aa_resnet34", "glore_resnet50"),
    *("lr_net26", "sasa_resnet26", "san10_pairwise", "san10_patchwise"),
)


def small(name, **options):
    """Returns a network with one block per stage, for small images."""
    blocks = [1] * len(model_options(name)["stage_sizes"])
    defaults = {"stage_sizes": blocks, "width": 16, "stem": "small", "num_classes": 7}
    return create_model(name, **defaults | options)


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_any_batch_and_image_size(name):
    """The same parameters take larger and smaller images, and any batch."""
    model = small(name, stem="imagenet", dtype="bfloat16")

    def shapes(images, key):
        variables = model.init(key, images[:2, :32, :16])
        maps = model.apply(variables, images, features=True)
        return variables, model.apply(variables, images), maps

    images = jax.ShapeDtypeStruct((3, 47, 17, 3), jnp.float32)
    variables, logits, maps = jax.eval_shape(shapes, images, jax.random.key(0))
    assert {leaf.dtype for leaf in jax.tree.leaves(variables)} == {np.dtype("float32")}
    assert (logits.shape, logits.dtype) == ((3, 7), np.float32)
    assert list(maps) == ["C2", "C3", "C4", "C5"]
    for i, found in enumerate(maps.values()):
        assert found.shape[:3] == (3, *(-(-side // (4 * 2**i)) for side in (47, 17)))
        assert found.dtype == jnp.bfloat16


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES[4:7])
def test_a_block_keeps_examples_apart_and_has_finite_gradients(name):
    """With stochastic depth. Blocks of the other networks are compared with NumPy."""
    stage = small(name, survival_probability=0.8).make_stage(3)
    x = reference.normal(0, 4, 6, 4, 32)
    x[3] = x[1]
    variables = reference.variables_of(stage, x)

    def loss(params, x):
        values = {**variables, "params": params}
        rngs = {"dropout": jax.random.key(1)}
        trained, _ = stage.apply(
            values, x, train=True, mutable=["batch_stats"], rngs=rngs
        )
        return jnp.sum(jnp.square(trained)), stage.apply(values, x, train=False)

    run = jax.jit(jax.grad(loss, (0, 1), has_aux=True))
    gradients, maps = run(variables["params"], x)
    assert maps.shape[:3] == (4, 3, 2)
    reference.near(maps[3], maps[1], 1e-5)
    assert reference.error(maps[2], maps[1]) > 1e-3
    for leaf in jax.tree.leaves(gradients):
        assert np.isfinite(leaf).all()
    assert np.linalg.norm(gradients[1]) > 0


def test_statistics_of_windows_are_the_same_on_eight_devices():
    """SAN's, whose BatchNorms get moments instead of an array."""
    module, x, mesh = (
        PairwiseAttention(3),
        reference.normal(0, 16, 4, 4, 32),
        make_mesh(),
    )
    assert mesh.size == 8
    variables = reference.variables_of(module, x)
    run = jax.jit(
        lambda x: module.apply(variables, x, train=True, mutable=["batch_stats"])
    )
    one, eight = run(x), run(jax.device_put(x, batch_sharding(mesh)))
    for a, b in zip(*map(jax.tree.leaves, (eight, one)), strict=True):
        reference.near(a, b, 1e-5)


# ------------------------------------------------------------------ strides and stems


def cells(x, size):
    """Square cells of (H, W, C), the last of which may be cut: (i, j, pixels)."""
    for i in range(-(-x.shape[0] // size)):
        for j in range(-(-x.shape[1] // size)):
            rows, columns = (slice(size * k, size * k + size) for k in (i, j))
            yield i, j, x[rows, columns].reshape(-1, x.shape[2])


def test_lr_stem_strides_in_its_attention():
    """Pixel 2 i is the center of window i."""
    images = reference.normal(0, 1, 9, 8, 3)
    whole, strided = (LRStem(8, kind) for kind in ("small", "imagenet"))
    variables = reference.variables_of(whole, images)
    every, found = jax.jit(
        lambda v, x: [stem.apply(v, x, train=False) for stem in (whole, strided)]
    )(variables, images)
    every = np.asarray(every)[0, ::2, ::2]
    every = np.pad(every, ((1, 1), (1, 1), (0, 0)), constant_values=-np.inf)
    expected = [
        [every[2 * i : 2 * i + 3, 2 * j : 2 * j + 3].max((0, 1)) for j in range(2)]
        for i in range(3)
    ]
    np.testing.assert_allclose(found[0], expected, atol=1e-6)


def test_mean_pooling_makes_the_stride_of_stand_alone_attention():
    x = reference.normal(0, 1, 5, 4, 6)
    strided, whole = (StandAloneAttention(8, 2, stride, 3) for stride in (2, 1))
    variables = strided.init(jax.random.key(0), x)
    found = strided.apply(variables, x)[0]
    assert found.shape == (3, 2, 8)
    for i, j, pixels in cells(np.asarray(whole.apply(variables, x)[0]), 2):
        np.testing.assert_allclose(found[i, j], pixels.mean(0), atol=1e-6)


def test_stand_alone_stem_is_pooled_over_its_blocks():
    x, stem = reference.normal(0, 1, 9, 8, 3), AttentionStem(8, heads=2)
    variables = stem.init(jax.random.key(0), x, train=False)
    found = stem.apply(variables, x, train=False)[0]
    assert found.shape == (3, 2, 8)
    inner = {"params": variables["params"]["attention"]}
    # Fresh running statistics are 0 and 1.
    whole = BlockAttention(8, 2).apply(inner, x)[0] / np.sqrt(1 + 1e-5)
    for i, j, pixels in cells(np.asarray(whole), 4):
        np.testing.assert_allclose(found[i, j], pixels.max(0), atol=1e-6)


@pytest.mark.slow
def test_san_s_stages_without_their_branches():
    """With branches of zero, a stage is pooling, a 1 x 1 map, BatchNorm and ReLU."""
    model = small("san10_pairwise", width=2, stem="imagenet")
    images = reference.normal(0, 1, 33, 20, 3)
    variables = randomized(model, images)
    params, stats = variables["params"], variables["batch_stats"]
    for i in range(1, 6):
        branch = params[f"stage{i}"]["block1"]["conv"]
        branch.update({name: np.zeros_like(a) for name, a in branch.items()})
    maps = jax.jit(lambda v, x: model.apply(v, x, features=True))(variables, images)

    def linear_norm_relu(x, part):
        scope = reference.Scope({"params": params[part], "batch_stats": stats[part]})
        return np.maximum(scope.normalize(scope.linear(x, "conv"), "norm"), 0)

    x = linear_norm_relu(images.astype(np.float64), "stem")
    for i in range(1, 6):
        pooled = np.zeros((1, *(-(-side // 2) for side in x.shape[1:3]), x.shape[3]))
        for row, column, pixels in cells(x[0], 2):
            pooled[0, row, column] = pixels.max(0)
        x = linear_norm_relu(pooled, f"stage{i}")
        if i > 1:
            np.testing.assert_allclose(maps[f"C{i}"], x, atol=1e-5)


def test_survival_of_san_falls_over_all_five_stages():
    model = create_model("san10_pairwise", survival_probability=0.5)
    found = sum(map(model.survival_probabilities, range(1, 6)), ())
    np.testing.assert_allclose(found, 1 - np.arange(1, 11) / 20)


@pytest.mark.parametrize(
    "name, options, message",
    [
        ("se_resnet18", {"gate_multiple": 0}, "gate_multiple=0: must be at least 1"),
        ("aa_resnet50", {"heads": 0}, "heads=0: must be at least 1"),
        ("sasa_resnet50", {"heads": 3}, "3 heads do not divide width=64"),
        ("san10_pairwise", {"variant": "msra"}, "no option 'variant'"),
        ("san10_pairwise", {"stage_sizes": [1] * 4}, "must be 5 numbers"),
    ],
)
def test_options_that_are_rejected(name, options, message):
    with pytest.raises(UserError, match=message):
        create_model(name, **options)
