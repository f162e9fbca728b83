"""FPN equals PyTorch's operations; and what FPN and VT-FPN have in common."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import traverse_util
from model_variables import images_of, randomized

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


@pytest.mark.parametrize("train", [False, True])
def test_equals_pytorch(train, torch):
    model, images = tiny("fpn"), images_of(2, 65, 97)
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


@pytest.mark.parametrize("height,width", [(4, 6), (3, 5), (1, 1)])
def test_a_coarse_pixel_stands_on_the_two_finer_ones(height, width):
    coarse = -(-height // 2), -(-width // 2)
    x = np.random.default_rng(0).normal(size=(2, *coarse, 3)).astype(np.float32)
    out = double(x, height, width)
    assert out.shape == (2, height, width, 3)
    for i in range(height):
        for j in range(width):
            np.testing.assert_array_equal(out[:, i, j], x[:, i // 2, j // 2])


# ---------------------------------------------------------------------------- shapes


@pytest.mark.parametrize("stem, stride, size", [("imagenet", 4, (33, 161)),
                                                ("small", 1, (65, 97))])  # fmt: skip
@pytest.mark.parametrize("kind", KINDS)
def test_any_size(kind, stem, stride, size):
    """The same parameters serve it; they and the logits are float32."""
    model = tiny(kind, stem=stem, dtype="bfloat16")
    variables = shapes_of(model, 2, 64, 64)
    assert {leaf.dtype for leaf in jax.tree.leaves(variables)} == {jnp.dtype("float32")}
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
    assert {value.dtype for value in maps.values()} == {jnp.dtype("bfloat16")}


@pytest.mark.parametrize("kind", KINDS)
def test_the_backbone_s_parameters_are_resnet_s(kind):
    options = {"variant": "msra", "width": 8, "stage_sizes": [1, 1, 2, 1]}
    plain, pyramid = (
        shapes_of(create_model(f"{name}50", **options), 1, 64, 64)
        for name in ("resnet", f"{kind}_resnet")
    )
    for tree in ("params", "batch_stats"):
        backbone = {part: pyramid[tree][part] for part in BACKBONE}
        plain[tree].pop("head", None)
        assert jax.tree.map(jnp.shape, backbone) == jax.tree.map(jnp.shape, plain[tree])
        assert set(pyramid[tree]) == BACKBONE | {"fpn", "head"}


# ------------------------------------------------------------------------- behavior


def test_gradients_are_finite_and_reach_every_parameter():
    """VT-FPN's slopes are compared with NumPy in `test_vt_fpn.py`."""
    model, images = tiny("fpn", survival_probability=0.9), images_of(2, 48, 32)
    variables = randomized(model, images)
    labels = np.random.default_rng(1).integers(0, CLASSES, (2, 12, 8))

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
