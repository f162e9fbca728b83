"""Coefficient maps head by head, as a step takes them."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tiny_networks import FPN, RESNET, SIDE, TINY, build

from vt_flax.inference.token_maps import module_coefficients, module_shapes
from vt_flax.models import create_model

IMAGES = jax.ShapeDtypeStruct((2, SIDE, SIDE, 3), jnp.float32)


def shapes_of(name, **options):
    """A model, and the shapes of its variables."""
    model = create_model(name, **options)
    return model, jax.eval_shape(model.init, jax.random.key(0), IMAGES)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_fused_or_printed_each_head_has_a_map(dtype):
    """The fused formulation has no maps to give: then it is as printed."""
    stage = {"stage_sizes": [1, 1, 1, 2], "dtype": dtype}
    fused, variables = build(**stage, formulation="fused")
    printed = fused.clone(formulation="printed")
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
    model, shapes = shapes_of("vt_resnet18", **TINY | options)
    found = module_shapes(model, shapes, (SIDE, SIDE))
    assert list(found) == [f"module{i}" for i in range(1, 12)]
    assert set(found.values()) == {(1, 8, 4, 4)}


def test_levels_of_a_pyramid():
    model, shapes = shapes_of("vt_fpn_resnet18", **FPN | {"fpn_channels": 16})
    found = module_shapes(model, shapes, (16, 24))
    assert list(found) == ["level2", "level3", "level4", "level5"]
    assert found["level2"] == (1, 8, 16, 24) and found["level5"] == (1, 8, 2, 3)


def test_a_network_without_tokens_has_none():
    model, shapes = shapes_of("resnet18", **RESNET)
    assert module_shapes(model, shapes, (SIDE, SIDE)) == {}
