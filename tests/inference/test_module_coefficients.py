"""Coefficient maps head by head, as a step takes them."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vt_flax.inference.token_maps import module_coefficients, module_shapes
from vt_flax.models import create_model

TINY = {
    "stem": "small",
    "width": 4,
    "token_channels": 16,
    "heads": 2,
    "group_channels": 8,
    "transformer_groups": 1,
    "num_classes": 3,
}
IMAGES = jax.ShapeDtypeStruct((2, 16, 16, 3), jnp.float32)


def shapes_of(model):
    return jax.eval_shape(lambda x: model.init(jax.random.key(0), x), IMAGES)


def filled(model):
    """Random kernels; quicker than the model's initialisation."""
    rng = np.random.default_rng(0)

    def fill(path, leaf):
        if path[-1].key != "kernel":
            ones = path[-1].key in ("scale", "var")
            return np.full(leaf.shape, float(ones), np.float32)
        inputs = np.prod(leaf.shape[:-1])
        return (rng.normal(size=leaf.shape) / inputs**0.5).astype(np.float32)

    return jax.tree_util.tree_map_with_path(fill, shapes_of(model))


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_fused_or_printed_each_head_has_a_map(dtype):
    """The fused formulation has no maps to give: then it is as printed."""
    stage = {"stage_sizes": [1, 1, 1, 2], "dtype": dtype}
    fused, printed = (
        create_model("vt_resnet18", **TINY, **stage, formulation=formulation)
        for formulation in ("fused", "printed")
    )
    variables = filled(fused)
    images = np.random.default_rng(1).normal(size=IMAGES.shape).astype(np.float32)
    found, expected = (
        jax.jit(functools.partial(module_coefficients, model))(variables, images)
        for model in (fused, printed)
    )
    # One map a token in the first; then half of the tokens, by two heads.
    assert {k: v.shape for k, v in found.items()} == {
        "module1": (2, 1, 8, 4, 4),
        "module2": (2, 2, 4, 4, 4),
    }
    for name, maps in found.items():
        assert maps.dtype == np.float32
        np.testing.assert_allclose(maps.sum((-2, -1)), 1, rtol=1e-5)
        np.testing.assert_allclose(maps, expected[name], rtol=1e-5)
    heads = np.asarray(found["module2"])
    assert np.abs(heads[:, 0] - heads[:, 1]).max() > 1e-3


def test_shapes_come_in_the_order_of_the_modules():
    """The tenth after the ninth, not after the first."""
    # Traced the quickest.
    options = {
        "tokenizer": "static",
        "interaction": "none",
        "stage_sizes": [1, 1, 1, 11],
    }
    model = create_model("vt_resnet18", **TINY, **options)
    found = module_shapes(model, shapes_of(model), (16, 16))
    assert list(found) == [f"module{i}" for i in range(1, 12)]
    assert set(found.values()) == {(1, 8, 4, 4)}


def test_levels_of_a_pyramid():
    options = {key: TINY[key] for key in ("stem", "width", "heads", "num_classes")}
    options |= {"fpn_channels": 16, "head_channels": 8, "transformer_groups": 1}
    options |= {"token_channels": 16, "stage_sizes": [1, 1, 1, 1]}
    model = create_model("vt_fpn_resnet18", **options)
    found = module_shapes(model, shapes_of(model), (16, 24))
    assert list(found) == ["level2", "level3", "level4", "level5"]
    assert found["level2"] == (1, 8, 16, 24) and found["level5"] == (1, 8, 2, 3)


def test_a_network_without_tokens_has_none():
    options = {key: TINY[key] for key in ("stem", "width", "num_classes")}
    model = create_model("resnet18", **options, stage_sizes=[1, 1, 1, 1])
    assert module_shapes(model, shapes_of(model), (16, 16)) == {}
