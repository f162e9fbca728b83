"""FPN equals PyTorch's operations; and what FPN and VT-FPN have in common."""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import traverse_util
from model_variables import images_of, randomized

from vt_flax.errors import UserError
from vt_flax.models import create_model
from vt_flax.models.fpn import double
from vt_flax.nn.layers import StochasticDepth

pytestmark = pytest.mark.slow

KINDS = ("fpn", "vt_fpn")
CLASSES, CHANNELS = 5, 8
BACKBONE = {"stem", "stage2", "stage3", "stage4", "stage5"}


def tiny(kind, **changes):
    options = {
        "width": 4,
        "stage_sizes": [1, 1, 1, 1],
        "num_classes": CLASSES,
        "fpn_channels": CHANNELS,
        "head_channels": 6,
    }
    if kind == "vt_fpn":
        tokens = {"tokens": 3, "token_channels": 16, "heads": 2}
        options |= {**tokens, "transformer_groups": 2, "group_channels": 4}
    return create_model(f"{kind}_resnet18", **{**options, **changes})


def shapes_of(model, *shape):
    images = jax.ShapeDtypeStruct((*shape, 3), jnp.float32)
    return jax.eval_shape(model.init, jax.random.key(0), images)


# --------------------------------------------------------------------- beside PyTorch


def torch_branch(torch, variables, maps, train):
    """P2 to P5 and logits from C2 to C5 by PyTorch's functions, in float64.

    Returns also the paths of the parameters that were used.
    """
    functional, used = torch.nn.functional, set()
    params = traverse_util.flatten_dict(variables["params"], sep="/")
    stats = traverse_util.flatten_dict(variables["batch_stats"], sep="/")

    def get(path, tree=params):
        used.add(path)
        return torch.from_numpy(np.asarray(tree[path], np.float64))

    def convolution(x, path, padding):
        kernel = get(f"{path}/kernel").permute(3, 2, 0, 1)
        x = functional.conv2d(x, kernel, padding=padding)
        mean, var = (get(f"{path}_norm/{name}", stats).clone() for name in STATISTICS)
        scale, bias = get(f"{path}_norm/scale"), get(f"{path}_norm/bias")
        return functional.batch_norm(x, mean, var, scale, bias, train, eps=1e-5)

    def to_torch(x):
        return torch.from_numpy(np.asarray(x, np.float64).transpose(0, 3, 1, 2))

    c = {level: to_torch(maps[f"C{level}"]) for level in range(2, 6)}
    above, pyramid = None, {}
    for level in (5, 4, 3, 2):
        x = convolution(c[level], f"fpn/level{level}_lateral", 0)
        if above is not None:
            twice = functional.interpolate(above, scale_factor=2, mode="nearest")
            x = x + twice[..., : x.shape[2], : x.shape[3]]
        above = x
        pyramid[level] = convolution(x, f"fpn/level{level}_output", 1)

    def up(x, level):
        return functional.interpolate(
            x, c[level].shape[2:], mode="bilinear", align_corners=False
        )

    total = torch.relu(convolution(pyramid[2], "head/level2_conv1", 1))
    for level in (3, 4, 5):
        x = pyramid[level]
        for i in range(level - 2):
            x = torch.relu(convolution(x, f"head/level{level}_conv{i + 1}", 1))
            x = up(x, level - i - 1)
        total = total + x
    kernel, bias = (get(f"head/classifier/{name}") for name in ("kernel", "bias"))
    logits = torch.einsum("bchw,ck->bhwk", total, kernel) + bias
    features = {f"P{i}": x.permute(0, 2, 3, 1).numpy() for i, x in pyramid.items()}
    return features, logits.numpy(), used


STATISTICS = ("mean", "var")


@pytest.mark.parametrize(
    "size,train", [((64, 96), False), ((65, 97), False), ((65, 97), True)]
)
def test_equals_pytorch(size, train, torch):
    model, images = tiny("fpn"), images_of(2, *size)
    variables = randomized(model, images)

    @jax.jit
    def run(variables, images):
        settings = {"train": train, "mutable": ["batch_stats"]}
        return [
            model.apply(variables, images, features=features, **settings)[0]
            for features in (True, False)
        ]

    maps, logits = run(variables, images)
    expected, expected_logits, used = torch_branch(torch, variables, maps, train)
    assert set(maps) == {f"C{i}" for i in range(2, 6)} | set(expected)
    for name, value in expected.items():
        assert np.std(value) > 0.1
        np.testing.assert_allclose(maps[name], value, atol=2e-5, rtol=2e-5)
    assert np.std(expected_logits) > 0.1
    np.testing.assert_allclose(logits, expected_logits, atol=5e-5, rtol=5e-5)
    own = {
        path
        for tree in ("params", "batch_stats")
        for path in traverse_util.flatten_dict(variables[tree], sep="/")
        if path.split("/")[0] not in BACKBONE
    }
    assert used == own


@pytest.mark.parametrize("height,width", [(4, 6), (3, 5), (4, 5), (1, 1)])
def test_a_coarse_pixel_stands_on_the_two_finer_ones(height, width):
    coarse = -(-height // 2), -(-width // 2)
    x = np.random.default_rng(0).normal(size=(2, *coarse, 3)).astype(np.float32)
    out = double(x, height, width)
    assert out.shape == (2, height, width, 3)
    for i in range(height):
        for j in range(width):
            np.testing.assert_array_equal(out[:, i, j], x[:, i // 2, j // 2])


# ---------------------------------------------------------------------------- shapes


@functools.cache
def model_and_shapes(kind, stem):
    model = tiny(kind, stem=stem)
    return model, shapes_of(model, 2, 64, 64)


@pytest.mark.parametrize("stem,stride", [("imagenet", 4), ("small", 1)])
@pytest.mark.parametrize("size", [(64, 64), (32, 32), (65, 97), (33, 161)])
@pytest.mark.parametrize("kind", KINDS)
def test_any_size(kind, size, stem, stride):
    """With the same parameters."""
    model, variables = model_and_shapes(kind, stem)
    # Rounded up.
    sides = [tuple(-(-side // (stride * 2**i)) for side in size) for i in range(4)]
    logits, maps = jax.eval_shape(
        lambda v, x: (model.apply(v, x), model.apply(v, x, features=True)),
        variables,
        jax.ShapeDtypeStruct((3, *size, 3), jnp.float32),
    )
    assert (logits.shape, logits.dtype) == ((3, *sides[0], CLASSES), jnp.float32)
    expected = {f"C{i + 2}": (3, *sides[i], 4 * 2**i) for i in range(4)}
    expected |= {f"P{i + 2}": (3, *sides[i], CHANNELS) for i in range(4)}
    if kind == "vt_fpn":
        expected["tokens"] = (3, 4 * 3, 16)
    assert {name: value.shape for name, value in maps.items()} == expected


@pytest.mark.parametrize("variant", ["torchvision", "msra"])
@pytest.mark.parametrize("kind", KINDS)
def test_the_backbone_s_parameters_are_resnet_s(kind, variant):
    options = {"variant": variant, "width": 8, "stage_sizes": [1, 1, 2, 1]}
    plain, pyramid = (
        shapes_of(create_model(f"{name}50", **options), 1, 64, 64)
        for name in ("resnet", f"{kind}_resnet")
    )
    for tree in ("params", "batch_stats"):
        backbone = {part: pyramid[tree][part] for part in BACKBONE}
        plain[tree].pop("head", None)
        assert jax.tree.map(jnp.shape, backbone) == jax.tree.map(jnp.shape, plain[tree])
        assert set(pyramid[tree]) == BACKBONE | {"fpn", "head"}


def test_laterals_and_head_are_alike_in_both():
    def shared(kind):
        params = shapes_of(tiny(kind), 1, 32, 32)["params"]
        flat = traverse_util.flatten_dict(params, sep="/")
        return {
            path: leaf.shape
            for path, leaf in flat.items()
            if path.startswith("head") or "lateral" in path
        }

    found = shared("fpn")
    assert found == shared("vt_fpn")
    convs = {path.split("/")[1] for path in found if path.startswith("head")}
    assert {name for name in convs if not name.endswith("_norm")} == {
        *("level2_conv1", "level3_conv1", "level4_conv1", "level4_conv2"),
        *("level5_conv1", "level5_conv2", "level5_conv3", "classifier"),
    }


# ------------------------------------------------------------------------- behavior


@pytest.mark.parametrize("kind", KINDS)
def test_examples_are_independent_in_evaluation(kind):
    model, images = tiny(kind), images_of(2, 45, 70)
    variables = randomized(model, images)
    apply = jax.jit(model.apply)
    logits = apply(variables, images)
    assert logits.shape == (2, 12, 18, CLASSES)
    assert np.std(logits, axis=(1, 2)).min() > 0.1
    other = np.stack([images[0], images_of(1, 45, 70, seed=1)[0]])
    again = apply(variables, other)
    np.testing.assert_allclose(again[0], logits[0], rtol=1e-6, atol=1e-6)
    assert not np.allclose(again[1], logits[1], atol=0.1)


@pytest.mark.parametrize("kind", KINDS)
def test_gradients_are_finite_and_reach_every_parameter(kind):
    model, images = tiny(kind, survival_probability=0.9), images_of(2, 64, 48)
    variables = randomized(model, images)
    labels = np.random.default_rng(1).integers(0, CLASSES, (2, 16, 12))

    def loss(params, images):
        logits, _ = model.apply(
            {**variables, "params": params},
            images,
            train=True,
            rngs={"dropout": jax.random.key(1)},
            mutable=["batch_stats"],
        )
        hot = jax.nn.one_hot(labels, CLASSES)
        return -jnp.sum(hot * jax.nn.log_softmax(logits))

    value, found = jax.jit(jax.value_and_grad(loss, (0, 1)))(
        variables["params"], images
    )
    assert np.isfinite(value)
    assert np.all(np.isfinite(found[1])) and np.any(np.asarray(found[1]) != 0)
    for path, leaf in traverse_util.flatten_dict(found[0], sep="/").items():
        assert np.all(np.isfinite(leaf)), path
        assert np.any(np.asarray(leaf) != 0), path


@pytest.mark.parametrize("kind", KINDS)
def test_bfloat16_keeps_float32_parameters_and_logits(kind):
    half, images = tiny(kind, dtype="bfloat16"), images_of(2, 45, 70)
    variables = randomized(half, images)
    assert {leaf.dtype for leaf in jax.tree.leaves(shapes_of(half, 1, 32, 32))} == {
        jnp.dtype("float32")
    }
    full = half.clone(dtype=jnp.float32)
    logits = jax.jit(half.apply)(variables, images)
    expected = jax.jit(full.apply)(variables, images)
    assert logits.dtype == jnp.float32
    assert 0 < np.linalg.norm(logits - expected) < 0.05 * np.linalg.norm(expected)
    small = jax.ShapeDtypeStruct((1, 32, 32, 3), jnp.float32)
    maps = jax.eval_shape(
        lambda v, x: half.apply(v, x, features=True), variables, small
    )
    assert {leaf.dtype for leaf in maps.values()} == {jnp.dtype("bfloat16")}


@pytest.mark.parametrize("kind", KINDS)
def test_stochastic_depth_is_the_backbone_s(kind):
    found = {}

    def note(call, args, kwargs, context):
        if isinstance(context.module, StochasticDepth):
            found["/".join(context.module.path)] = context.module.survival_probability
        return call(*args, **kwargs)

    with nn.intercept_methods(note):
        shapes_of(tiny(kind, survival_probability=0.6), 1, 32, 32)
    live = {path: chance for path, chance in found.items() if chance < 1}
    expected = {f"stage{i + 2}/block1/depth": 0.9 - 0.1 * i for i in range(4)}
    assert live == pytest.approx(expected)


@pytest.mark.parametrize("kind", KINDS)
def test_images_of_another_layout_are_refused(kind):
    with pytest.raises(UserError, match="expected .batch, height, width, 3"):
        shapes_of(tiny(kind), 2, 32)
