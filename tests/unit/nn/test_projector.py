"""The projector equals X + softmax over tokens of (Q K^T / sqrt(d)) V."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import reference

from vt_flax.nn.layers import VTLayers
from vt_flax.nn.projector import Projector

C, C_T = 16, 24


def inputs(batch=2, height=4, width=3, count=5):
    x = reference.normal(0, batch, height, width, C)
    return x, reference.normal(1, batch, count, C_T)


@pytest.mark.parametrize("train", [False, True])
@pytest.mark.parametrize("features", [C, 32])
@pytest.mark.parametrize("batch,height,width", [(1, 6, 6), (3, 5, 5), (3, 4, 7)])
def test_equals_the_restatement(batch, height, width, features, train):
    module = Projector(features, heads=4, groups=2)
    reference.check(
        module,
        functools.partial(reference.projector, heads=4),
        *inputs(batch, height, width),
        train=train,
    )


@pytest.mark.parametrize("placement", ["every_map", "none"])
def test_normalization_placements(placement):
    reference.check(
        Projector(32, heads=2, layers=VTLayers(norm_placement=placement)),
        functools.partial(reference.projector, heads=2),
        *inputs(),
        train=True,
        placement=placement,
    )


def test_projection_is_sown_on_request_and_sums_to_one_over_tokens():
    module = Projector(32, heads=4)
    reference.check_outputs(module, *inputs())
    variables = reference.variables_of(module, *inputs())
    found = reference.sown(module, variables, *inputs())
    assert set(found) == {"projection"}
    maps = found["projection"]
    assert maps.shape == (2, 4, 5, 4, 3)
    assert maps.dtype == jnp.float32
    np.testing.assert_allclose(np.sum(maps, 2), 1.0, atol=1e-5)


@pytest.mark.parametrize("features", [C, 32])
def test_gradients_are_finite(features):
    module = Projector(features, heads=4, groups=2)
    reference.check_gradients(module, *inputs())
    x, tokens = inputs()
    constants = np.ones_like(x), np.ones_like(tokens)
    reference.check_gradients(module, *constants, live=False)


@pytest.mark.parametrize("features", [C, 32])
def test_bfloat16(features):
    reference.check_bfloat16(
        lambda dtype: Projector(features, heads=4, layers=VTLayers(dtype=dtype)),
        *inputs(),
    )


def test_stochastic_depth_drops_the_attention_of_whole_examples():
    x, tokens = (np.repeat(a[:1], 32, axis=0) for a in inputs())
    layers = VTLayers(norm_placement="none")
    module = Projector(32, heads=4, survival_probability=0.5, layers=layers)
    variables = reference.variables_of(module, x, tokens)
    whole, out = reference.jax.jit(
        lambda v, x, tokens, key: (
            module.apply(v, x, tokens, train=False),
            module.apply(v, x, tokens, train=True, rngs={"dropout": key}),
        )
    )(variables, x, tokens, jax.random.key(1))
    shortcut = x @ variables["params"]["shortcut"]["kernel"]
    kept = [
        reference.error(o, 2 * w - s) < 1e-5
        for o, w, s in zip(out, whole, shortcut, strict=True)
    ]
    dropped = [reference.error(o, s) < 1e-5 for o, s in zip(out, shortcut, strict=True)]
    assert np.all(np.asarray(kept) != np.asarray(dropped))
    assert 0 < np.sum(kept) < 32
