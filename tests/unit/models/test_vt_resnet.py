"""VT-ResNet: presets, features, sizes, and what is live in training only."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import traverse_util
from model_variables import images_of, randomized

from vt_flax.errors import UserError
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


@pytest.mark.parametrize("name,c4,c", [("18", 256, 512), ("50", 1024, 1024)])
@pytest.mark.parametrize("preset,tokens", [("v1", 8), ("v4", 16)])
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


@pytest.mark.parametrize("name,modules", [("vt_resnet18", 2), ("vt_resnet34", 3)])
def test_as_many_modules_as_stage_5_had_blocks(name, modules):
    variables = shapes_of(create_model(name), 1, 32, 32)
    assert sorted(variables["params"]["stage5"]) == [
        f"module{i + 1}" for i in range(modules)
    ]


def test_the_last_module_has_no_projector():
    for project_last in (False, True):
        model = tiny(project_last=project_last)
        variables = shapes_of(model, 1, 16, 16)
        stage = variables["params"]["stage5"]
        assert "projector" in stage["module1"]
        assert ("projector" in stage["module2"]) == project_last
        maps = outputs_of(model, variables, 1, 16, 16, features=True)
        assert ("C5" in maps) == project_last


def test_stages_up_to_4_are_those_of_resnet():
    options = {key: TINY[key] for key in ("width", "stage_sizes", "stem")}
    plain = paths(shapes_of(create_model("resnet18", **options), 1, 16, 16))
    tokens = paths(shapes_of(tiny(), 1, 16, 16))

    def backbone(found):
        return {
            path: leaf.shape
            for path, leaf in found.items()
            if path.split("/")[0] in ("stem", "stage2", "stage3", "stage4")
        }

    assert backbone(plain) == backbone(tokens)


@pytest.mark.parametrize("preset", ["v1", "v4"])
@pytest.mark.parametrize("batch,height,width", [(1, 16, 16), (5, 33, 47), (3, 64, 20)])
def test_parameters_serve_any_batch_and_image(preset, batch, height, width):
    model = tiny(preset=preset)
    variables = shapes_of(model, 2, 32, 32)
    other = shapes_of(model, batch, height, width)
    assert jax.tree.map(jnp.shape, variables) == jax.tree.map(jnp.shape, other)
    assert outputs_of(model, variables, batch, height, width).shape == (batch, 5)


@pytest.mark.slow
@pytest.mark.parametrize(
    "changes",
    [
        {"preset": "v4", "tokenizer": "static"},
        {"preset": "v4", "first_tokenizer": "clustering", "tokenizer": "clustering"},
        {"preset": "v4", "first_tokenizer": "pooling", "tokenizer": "pooling"},
        {"interaction": "none"},
        {"interaction": "graph"},
        {"projector": False},
        {"transformers": 1},
        {"vt_channels": 32},
        {"norm_placement": "every_map"},
        {"norm_placement": "none"},
        {"bn_frozen": True},
    ],
)
def test_ablations(changes):
    model = tiny(**changes)
    variables = shapes_of(model, 2, 16, 16)
    logits, _ = outputs_of(
        model, variables, 2, 16, 16, train=True, mutable=["batch_stats"]
    )
    assert logits.shape == (2, 5)
    stage = variables["params"]["stage5"]
    if changes.get("projector", True):
        assert "interaction" in stage["module1"]
        one = changes.get("transformers") == 1
        assert ("interaction" in stage["module2"]) == (not one)
    else:
        assert sorted(stage) == ["interaction1", "interaction2", "tokenizer"]


def test_classifier_reads_the_mean_over_tokens(variables):
    model, images = tiny(), IMAGES
    logits, maps = jax.jit(
        lambda v, x: (model.apply(v, x), model.apply(v, x, features=True))
    )(variables, images)
    head = variables["params"]["head"]
    pooled = np.asarray(maps["tokens"], np.float64).mean(1)
    expected = pooled @ head["kernel"] + head["bias"]
    np.testing.assert_allclose(logits, expected, rtol=1e-5, atol=1e-6)


def test_dropout_and_stochastic_depth_are_live_in_training_only(variables):
    images, plain = IMAGES, tiny()
    for changes in ({"dropout": 0.5}, {"survival_probability": 0.3}):
        model = tiny(**changes)

        def train(v, x, key, model=model):
            return model.apply(
                v, x, train=True, rngs={"dropout": key}, mutable=["batch_stats"]
            )[0]

        logits, expected = jax.jit(
            lambda v, x, m=model: (m.apply(v, x), plain.apply(v, x))
        )(variables, images)
        np.testing.assert_allclose(logits, expected, rtol=1e-6, atol=1e-6)

        trained = jax.jit(train)
        outs = [trained(variables, images, jax.random.key(k)) for k in (0, 0, 1, 2)]
        np.testing.assert_array_equal(outs[0], outs[1])
        assert not (np.allclose(outs[0], outs[2]) and np.allclose(outs[0], outs[3]))
        with pytest.raises(Exception, match="dropout"):
            jax.eval_shape(
                lambda v, x, m=model: m.apply(v, x, train=True, mutable=True),
                variables,
                images,
            )


def test_survival_falls_through_blocks_and_modules():
    """The linear rule over five blocks of which the last two are modules."""
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


def test_training_without_either_needs_no_random_numbers(variables):
    logits, state = jax.eval_shape(
        lambda v, x: tiny().apply(v, x, train=True, mutable=["batch_stats"]),
        variables,
        IMAGES,
    )
    assert logits.shape == (2, 5)
    assert jax.tree.map(jnp.shape, state["batch_stats"]) == jax.tree.map(
        jnp.shape, variables["batch_stats"]
    )


@pytest.mark.slow
@pytest.mark.parametrize("preset", ["v1", "v4"])
def test_gradients_are_finite(preset):
    model = tiny(preset=preset, dropout=0.1, survival_probability=0.9)
    images = images_of(4, 8, 8)
    variables = randomized(model, images)

    def loss(params, images):
        logits, _ = model.apply(
            {**variables, "params": params},
            images,
            train=True,
            rngs={"dropout": jax.random.key(1)},
            mutable=["batch_stats"],
        )
        return -jax.nn.log_softmax(logits)[:, 0].mean()

    value, found = jax.jit(jax.value_and_grad(loss, (0, 1)))(
        variables["params"], images
    )
    assert np.isfinite(value)
    for leaf in jax.tree.leaves(found):
        assert np.all(np.isfinite(leaf))
    for path, leaf in paths({"params": found[0]}).items():
        assert np.any(np.asarray(leaf) != 0), path


def test_maps_cost_nothing_unless_asked_for(variables):
    model, images = tiny(), IMAGES
    assert set(variables) == {"params", "batch_stats"}
    program = jax.make_jaxpr(lambda v, x: model.apply(v, x))(variables, images)
    assert len(program.jaxpr.outvars) == 1
    _, state = jax.eval_shape(
        lambda v, x: model.apply(v, x, mutable=["intermediates"]), variables, images
    )
    maps = traverse_util.flatten_dict(state["intermediates"], sep="/")
    assert {path: value[0].shape for path, value in maps.items()} == {
        "stage5/module1/tokenizer/coefficients": (2, 8, 4, 4),
        "stage5/module1/projector/projection": (2, 4, 8, 4, 4),
        "stage5/module2/tokenizer/coefficients": (2, 4, 4, 4, 4),
    }


def test_bfloat16_keeps_float32_parameters_and_logits():
    model = tiny(dtype="bfloat16")
    variables = shapes_of(model, 1, 16, 16)
    assert {leaf.dtype for leaf in jax.tree.leaves(variables)} == {jnp.dtype("float32")}
    assert outputs_of(model, variables, 1, 16, 16).dtype == jnp.float32
    maps = outputs_of(model, variables, 1, 16, 16, features=True)
    assert {leaf.dtype for leaf in maps.values()} == {jnp.dtype("bfloat16")}


@pytest.mark.parametrize(
    "option",
    [
        {"transformer_groups": 0},
        {"transformers": 5},
        {"stage_sizes": [1, 1, 1]},
        {"stage_sizes": [1, 1, 1, 0]},
        {"vt_channels": -4},
        {"lloyd_iterations": -1},
        {"feed_forward": "gelu"},
        {"heads": 3},
        {"bn_momentum": 2.0},
        {"bn_epsilon": 0.0},
        {"projector": False, "project_last": True},
        {"survival_probability": 0.0},
        {"dropout": 1.0},
        {"tokens": "many"},
        {"tokens": True},
    ],
    ids=str,
)
def test_bad_options_are_refused_when_the_model_is_created(option):
    with pytest.raises(UserError, match=next(reversed(option)).replace("norm_", "")):
        create_model("vt_resnet18", **option)
