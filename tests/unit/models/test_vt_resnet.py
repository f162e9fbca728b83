"""VT-ResNet: presets, features, sizes, and what is live in training only."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import traverse_util
from model_variables import images_of, randomized

from vt_flax.models import create_model
from vt_flax.nn.layers import StochasticDepth

TINY = {
    "width": 8,
    "stage_sizes": [1, 1, 1, 2],
    "token_channels": 32,
    "heads": 4,
    "stem": "small",
    "num_classes": 5,
    "group_channels": 16,
}
IMAGES = images_of(2, 16, 16)


def tiny(**changes):
    return create_model("vt_resnet18", **{**TINY, **changes})


def shapes_of(model, *shape):
    images = jax.ShapeDtypeStruct((*shape, 3), jnp.float32)
    return jax.eval_shape(model.init, jax.random.key(0), images)


def outputs_of(model, variables, *shape, **settings):
    images = jax.ShapeDtypeStruct((*shape, 3), jnp.float32)
    return jax.eval_shape(lambda v, x: model.apply(v, x, **settings), variables, images)


@pytest.fixture(scope="module")
def variables():
    """Variables of the tiny model."""
    return randomized(tiny(), IMAGES)


def paths(variables):
    return traverse_util.flatten_dict(variables["params"], sep="/")


@pytest.mark.parametrize(
    "name, c4, c, preset, tokens",
    [("18", 256, 512, "v1", 8), ("50", 1024, 1024, "v4", 16)],
)
def test_presets_at_full_size(name, c4, c, preset, tokens):
    model = create_model(f"vt_resnet{name}", preset=preset, project_last=True)
    variables = shapes_of(model, 2, 224, 224)
    maps = outputs_of(model, variables, 2, 224, 224, features=True)
    assert {key: value.shape for key, value in maps.items()} == {
        "C2": (2, 56, 56, c4 // 4),
        "C3": (2, 28, 28, c4 // 2),
        "C4": (2, 14, 14, c4),
        "C5": (2, 14, 14, c),
        "tokens": (2, tokens, 1024),
    }
    assert outputs_of(model, variables, 2, 224, 224).shape == (2, 1000)
    found = paths(variables)
    assert found["head/kernel"].shape == (1024, 1000)
    assert found["stage5/module1/tokenizer/filter/kernel"].shape == (c4, tokens)
    position = "stage5/module1/tokenizer/token/position/mix/kernel"
    assert (position in found) == (preset == "v1")
    second = "stage5/module1/interaction/feed_forward2/kernel"
    assert (second in found) == (preset == "v4")
    shortcut = "stage5/module1/projector/shortcut/kernel"
    assert (shortcut in found) == (c4 != c)


def test_the_last_module_has_no_projector():
    for project_last in (False, True):
        model = tiny(project_last=project_last)
        variables = shapes_of(model, 1, 16, 16)
        stage = variables["params"]["stage5"]
        assert "projector" in stage["module1"]
        assert ("projector" in stage["module2"]) == project_last
        maps = outputs_of(model, variables, 1, 16, 16, features=True)
        assert ("C5" in maps) == project_last


@pytest.mark.parametrize("preset", ["v1", "v4"])
def test_parameters_serve_any_batch_and_image(preset):
    """They, logits and statistics are float32, whatever the type of the maps."""
    model = tiny(preset=preset, dtype="bfloat16")
    variables = shapes_of(model, 2, 32, 32)
    logits = outputs_of(model, variables, 5, 33, 47)
    assert (logits.shape, logits.dtype) == ((5, 5), jnp.float32)
    assert {leaf.dtype for leaf in jax.tree.leaves(variables)} == {jnp.dtype("float32")}
    maps = outputs_of(model, variables, 5, 33, 47, features=True)
    assert {leaf.dtype for leaf in maps.values()} == {jnp.dtype("bfloat16")}


def test_classifier_reads_the_mean_over_tokens(variables):
    model, images = tiny(), IMAGES
    logits, maps = jax.jit(
        lambda v, x: (model.apply(v, x), model.apply(v, x, features=True))
    )(variables, images)
    head = variables["params"]["head"]
    pooled = np.asarray(maps["tokens"], np.float64).mean(1)
    expected = pooled @ head["kernel"] + head["bias"]
    np.testing.assert_allclose(logits, expected, rtol=1e-5, atol=1e-6)


@pytest.mark.slow
def test_dropout_is_live_in_training_only(variables):
    plain, model = tiny(), tiny(dropout=0.5)

    @jax.jit
    def run(v, x, key):
        options = {"rngs": {"dropout": key}, "mutable": ["batch_stats"]}
        trained, _ = model.apply(v, x, train=True, **options)
        return trained, model.apply(v, x), plain.apply(v, x)

    runs = [run(variables, IMAGES, jax.random.key(k)) for k in (0, 0, 1)]
    np.testing.assert_allclose(runs[0][1], runs[0][2], rtol=1e-6, atol=1e-6)
    np.testing.assert_array_equal(runs[0][0], runs[1][0])
    assert not np.allclose(runs[0][0], runs[2][0])


def test_survival_falls_through_blocks_and_modules():
    """By the linear rule over five blocks, the last two of which are VT modules."""
    found = {}

    def note(call, args, kwargs, context):
        if isinstance(context.module, StochasticDepth):
            found["/".join(context.module.path)] = context.module.survival_probability
        return call(*args, **kwargs)

    with nn.intercept_methods(note):
        shapes_of(tiny(survival_probability=0.5), 1, 16, 16)
    expected = {
        "stage2/block1/depth": 0.9,
        "stage3/block1/depth": 0.8,
        "stage4/block1/depth": 0.7,
        "stage5/module1/interaction/attention_depth": 0.6,
        "stage5/module1/interaction/feed_forward_depth": 0.6,
        "stage5/module1/projector/depth": 0.6,
        "stage5/module2/interaction/attention_depth": 0.5,
        "stage5/module2/interaction/feed_forward_depth": 0.5,
    }
    assert found == pytest.approx(expected)
