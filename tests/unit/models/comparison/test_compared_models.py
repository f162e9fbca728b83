"""Shapes, types, gradients and sharding of every comparison network.

The registry's networks that are defined in `models.comparison`: all are traced at full
size, and a small one of each kind runs.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import traverse_util
from model_variables import images_of, randomized

from vt_flax.models import create_model, list_models, model_options
from vt_flax.models.registry import MODELS
from vt_flax.parallel.mesh import batch_sharding, make_mesh, replicated

pytestmark = pytest.mark.slow

NAMES = [
    name
    for name in list_models()
    if MODELS[name].module.__module__.startswith("vt_flax.models.comparison.")
]
CLASSES = 7


def kinds():
    """Returns the first name of each kind of network, which is the smallest."""
    found = {}
    for name, entry in MODELS.items():
        if name in NAMES:
            fixed = {**entry.fixed, "stage_sizes": None, "bottleneck": None}
            found.setdefault((entry.module, str(fixed)), name)
    return list(found.values())


def small(name, **options):
    """Returns a network with one block per stage, for small images."""
    blocks = [1] * len(model_options(name)["stage_sizes"])
    small = {"stage_sizes": blocks, "width": 16, "stem": "small"}
    return create_model(name, num_classes=CLASSES, **{**small, **options})


def shapes_of(model, *shape):
    """Returns shapes of variables and of images."""
    images = jax.ShapeDtypeStruct((*shape, 3), jnp.float32)
    return jax.eval_shape(model.init, jax.random.key(0), images), images


def features_of(model, variables, images):
    """Returns shapes of the maps of stages 2 to 5."""
    return jax.eval_shape(
        lambda v, x: model.apply(v, x, features=True), variables, images
    )


def test_comparison_networks_are_found():
    assert {"se_resnet18", "aa_resnet101", "lr_net18", "san10_pairwise"} <= set(NAMES)
    assert not {"resnet18", "vt_resnet18", "fpn_resnet18"} & set(NAMES)


@pytest.mark.parametrize("name", NAMES)
def test_shapes_at_full_size(name):
    images = jax.ShapeDtypeStruct((2, 224, 224, 3), jnp.float32)
    maps, variables = jax.eval_shape(
        lambda key, x: create_model(name).init_with_output(key, x, features=True),
        jax.random.key(0),
        images,
    )
    assert set(variables) == {"params", "batch_stats"}
    assert {leaf.dtype for leaf in jax.tree.leaves(variables)} == {np.dtype("float32")}
    assert list(maps) == ["C2", "C3", "C4", "C5"]
    channels = maps["C2"].shape[3]
    assert [m.shape for m in maps.values()] == [
        (2, 56 // 2**i, 56 // 2**i, channels * 2**i) for i in range(4)
    ]


@pytest.mark.parametrize("name", kinds())
@pytest.mark.parametrize("stem", ["small", "imagenet"])
def test_any_batch_and_image_size(name, stem):
    """The same parameters take larger and smaller images, and any batch."""
    model = small(name, stem=stem)
    variables, _ = shapes_of(model, 2, 32, 32)
    images = jax.ShapeDtypeStruct((3, 47, 17, 3), jnp.float32)
    logits = jax.eval_shape(model.apply, variables, images)
    assert (logits.shape, logits.dtype) == ((3, CLASSES), np.float32)
    first = 4 if stem == "imagenet" else 1
    for i, found in enumerate(features_of(model, variables, images).values()):
        sides = tuple(-(-side // (first * 2**i)) for side in (47, 17))
        assert found.shape[:3] == (3, *sides)


@pytest.mark.parametrize("name", kinds())
def test_examples_are_independent_and_bfloat16_is_near(name):
    """Logits do not depend on other examples; in bfloat16 they are near float32's."""
    model, half = small(name), small(name, dtype="bfloat16")
    images = images_of(3, 17, 22)
    variables = randomized(model, images_of(1, 16, 16))
    both = jax.jit(lambda v, x: (model.apply(v, x), half.apply(v, x)))
    logits, rounded = both(variables, images)
    assert np.min(np.linalg.norm(logits[1:] - logits[:1], axis=1)) > 1e-3
    others = np.stack([images[2], images[1], images[1]])
    np.testing.assert_allclose(both(variables, others)[0][1], logits[1], 1e-5, 1e-6)

    own, _ = shapes_of(half, 1, 16, 16)
    assert {leaf.dtype for leaf in jax.tree.leaves(own)} == {np.dtype("float32")}
    assert rounded.dtype == jnp.float32
    error = np.linalg.norm(rounded - logits) / np.linalg.norm(logits)
    assert 0 < error < 0.1
    maps = features_of(half, variables, images)
    assert {m.dtype for m in maps.values()} == {jnp.dtype("bfloat16")}


@pytest.mark.parametrize("name", kinds())
def test_gradients_are_finite_and_the_same_on_eight_devices(name):
    """Loss, statistics and gradients, with dropout and stochastic depth."""
    model = small(name, dropout=0.2, survival_probability=0.8)
    images = images_of(16, 16, 16)
    labels = np.arange(16) % CLASSES
    variables = randomized(model, images)

    def loss(params, stats, images, labels):
        logits, state = model.apply(
            {"params": params, "batch_stats": stats},
            images,
            train=True,
            mutable=["batch_stats"],
            rngs={"dropout": jax.random.key(1)},
        )
        log_probs = jax.nn.log_softmax(logits)
        return -jnp.mean(log_probs[jnp.arange(16), labels]), state["batch_stats"]

    # One function for both meshes is traced once.
    computed = jax.value_and_grad(loss, has_aux=True)
    results = []
    for count in (1, 8):
        mesh = make_mesh(jax.devices()[:count])
        whole, rows = replicated(mesh), batch_sharding(mesh)
        function = jax.jit(
            computed,
            in_shardings=(whole, whole, rows, rows),
            out_shardings=whole,
        )
        (value, stats), gradients = function(
            variables["params"], variables["batch_stats"], images, labels
        )
        assert len(value.devices()) == count
        found = {"loss": value, "stats": stats, "gradient": gradients}
        results.append(traverse_util.flatten_dict(jax.device_get(found)))
    one, eight = results
    scale = {kind: 0.0 for kind in ("loss", "stats", "gradient")}
    for path, value in one.items():
        assert np.all(np.isfinite(value)), path
        scale[path[0]] = np.hypot(scale[path[0]], np.linalg.norm(value))
    assert 0.1 < scale["gradient"] < 1e3
    for path, value in one.items():
        # ReLU's gradient changes where a sum in another order has another sign.
        tolerance = 2e-2 if path[0] == "gradient" else 1e-4
        size = max(np.linalg.norm(value), 0.01 * scale[path[0]])
        assert np.linalg.norm(eight[path] - value) <= tolerance * size, path
