"""Modules and stages chain tokenizer, interaction and projector as the paper does."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import reference
from flax import traverse_util

from vt_flax.errors import UserError
from vt_flax.nn.layers import VTLayers
from vt_flax.nn.visual_transformer import VTOptions, VTStage

C, FEATURES, COUNT, HEADS = 16, 32, 4, 2


def options(**changes):
    settings = {
        "tokens": COUNT,
        "token_channels": 16,
        "heads": HEADS,
        "transformer_groups": 2,
        "group_channels": 8,
        **changes,
    }
    return VTOptions(**settings)


def feature_map(batch=2, height=5, width=4):
    return reference.normal(0, batch, height, width, C)


V4 = {"tokenizer": "recurrent", "feed_forward": "mlp", "position_encoding": False}
# Name: changes of the options, fields of the stage, changes of the restatement.
STAGES = {
    "v1": ({}, {"project_last": True}, {"project_last": True}),
    "v4, odd L": ({**V4, "tokens": 5}, {}, {"count": 5}),
    "transformers in 2 of 3": (
        {"tokenizer": "dynamic", "position_encoding": False, "transformers": 2},
        {"modules": 3},
        {"transformers": 2},
    ),
    "without projector": (
        {**V4, "projector": False},
        {},
        {"with_projector": False},
    ),
    "static everywhere": (
        {"tokenizer": "static", "position_encoding": False, "tokens": 3},
        {},
        {"count": 3},
    ),
    "clustering": (
        {
            **V4,
            "first_tokenizer": "clustering",
            "tokenizer": "clustering",
            "interaction": "none",
        },
        {},
        {"iterations": 5},
    ),
    "pooling, graph": (
        {
            "first_tokenizer": "pooling",
            "tokenizer": "pooling",
            "position_encoding": False,
            "interaction": "graph",
        },
        {},
        {},
    ),
}


def restatement(changed, modules, more):
    o = options(**changed)
    return functools.partial(
        reference.stage,
        **{
            "modules": modules,
            "heads": HEADS,
            "count": o.tokens,
            "first": changed.get("first_tokenizer", "static"),
            "later": changed.get("tokenizer", "dynamic"),
            "position": changed.get("position_encoding", True),
            "interaction": changed.get("interaction", "transformer"),
            "feed_forward": changed.get("feed_forward", "linear"),
            **more,
        },
    )


@pytest.mark.slow
@pytest.mark.parametrize("name", STAGES)
def test_stage_equals_the_restatement(name):
    """In training, but where slopes would be by centroids, or cost much."""
    changed, fields, more = STAGES[name]
    fields = {"modules": 2, **fields}
    stage = VTStage(options(**changed), features=FEATURES, **fields)
    function = restatement(changed, fields["modules"], more)
    train = name not in ("v1", "clustering")
    reference.check(stage, function, feature_map(3), train=train)


def test_stage_with_statistics_of_groups():
    changed = {"position_encoding": False}
    layers = VTLayers(bn_group_size=2)
    stage = VTStage(options(**changed), 2, FEATURES, layers=layers)
    function = restatement(changed, 2, {})
    reference.check(stage, function, feature_map(4), train=True, group_size=2)


def shapes_of(stage, x):
    return jax.eval_shape(lambda x: stage.init(jax.random.key(0), x, train=False), x)


def kernels(stage, x):
    flat = traverse_util.flatten_dict(shapes_of(stage, x)["params"], sep="/")
    return {path: leaf.shape for path, leaf in flat.items()}


def grouped(inside, outside, groups):
    """Shape of a grouped map."""
    return (groups, inside // groups, outside // groups)


def test_maps_of_the_ablation_models():
    """Section 2: the v4 block of VT-ResNet-18 and -34, 256 to 512 channels."""
    o = VTOptions(
        tokens=16,
        tokenizer="recurrent",
        position_encoding=False,
        feed_forward="mlp",
        transformer_groups=4,
    )
    stage = VTStage(o, 2, 512, layers=VTLayers(norm_placement="none"))
    found = kernels(stage, jnp.zeros((1, 14, 14, 256)))
    expected = {
        "module1/tokenizer/filter": (256, 16),
        "module1/tokenizer/value": grouped(256, 256, 4),
        "module1/tokenizer/token/map": (256, 1024),
        "module1/projector/key": (1024, 512),
        "module1/projector/value": (1024, 512),
        "module1/projector/query": grouped(256, 512, 8),
        "module1/projector/shortcut": (256, 512),
        "module2/tokenizer/query": (1024, 512),
        "module2/tokenizer/key": grouped(512, 512, 8),
        "module2/tokenizer/value": grouped(512, 512, 8),
        "module2/tokenizer/token/map": (512, 1024),
    }
    for i in (1, 2):
        at = f"module{i}/interaction"
        expected[f"{at}/key"] = expected[f"{at}/query"] = grouped(1024, 512, 4)
        expected[f"{at}/value"] = grouped(1024, 1024, 4)
        expected[f"{at}/feed_forward1"] = (1024, 1024)
        expected[f"{at}/feed_forward2"] = (1024, 1024)
    assert found == {f"{path}/kernel": shape for path, shape in expected.items()}
    in_transformer = sum(
        np.prod(shape)
        for path, shape in found.items()
        if path.split("/")[2] in ("key", "query", "value") and "action" in path
    )
    assert in_transformer == 2 * 0.5 * 1024**2


def test_maps_of_all_modules_are_retrievable():
    """They are computed on request, and are distributions."""
    stage = VTStage(options(), 2, FEATURES, project_last=True)
    x = feature_map()
    reference.check_outputs(stage, x, count=2)
    variables = reference.variables_of(stage, x)
    maps = reference.sown(stage, variables, x)
    shapes = {path: value.shape for path, value in maps.items()}
    assert shapes == {
        "module1/tokenizer/coefficients": (2, COUNT, 5, 4),
        "module1/projector/projection": (2, HEADS, COUNT, 5, 4),
        "module2/tokenizer/coefficients": (2, HEADS, COUNT // 2, 5, 4),
        "module2/projector/projection": (2, HEADS, COUNT, 5, 4),
    }
    for path, value in maps.items():
        axes = 2 if path.endswith("projection") else (-2, -1)
        np.testing.assert_allclose(np.sum(value, axes), 1.0, atol=1e-5)


@pytest.mark.slow
def test_bfloat16():
    reference.check_bfloat16(
        lambda dtype: VTStage(
            options(), 2, FEATURES, project_last=True, layers=VTLayers(dtype=dtype)
        ),
        feature_map(),
        tolerance=0.1,
    )


@pytest.mark.parametrize(
    "changed,message",
    [
        ({"first_tokenizer": "dynamic"}, "'dynamic' needs earlier tokens"),
        ({"tokens": 5}, "even number of tokens, not 5"),
        ({"tokens": 0}, "tokens=0"),
        ({"tokenizer": "pooling"}, "position_encoding=False"),
        ({"tokenizer": "dynamik"}, "did you mean dynamic"),
        ({"heads": 5}, "5 heads do not divide the 8 key channels"),
    ],
)
def test_options_are_rejected(changed, message):
    with pytest.raises(UserError, match=message):
        options(**changed)


@pytest.mark.parametrize(
    "changed,fields,message",
    [
        ({"heads": 8}, {"features": 20}, "8 heads do not divide 20 channels"),
        ({"transformer_groups": 3}, {}, "3 groups do not divide"),
        ({"transformers": 4}, {}, "transformers=4"),
        ({"projector": False}, {"project_last": True}, "without projectors"),
    ],
)
def test_stages_are_rejected(changed, fields, message):
    with pytest.raises(UserError, match=message):
        fields = {"features": FEATURES, **fields}
        shapes_of(VTStage(options(**changed), 3, **fields), feature_map())
