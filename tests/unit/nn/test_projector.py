"""The projector equals X + softmax over tokens of (Q K^T / sqrt(d)) V."""

import functools

import jax
import numpy as np
import pytest
import reference

from vt_flax.nn.layers import VTLayers
from vt_flax.nn.projector import Projector

C, C_T = 16, 24


def inputs(batch=2, height=4, width=3, count=5):
    x = reference.normal(0, batch, height, width, C)
    return x, reference.normal(1, batch, count, C_T)


@pytest.mark.parametrize(
    "features, placement, train",
    [
        (C, "tokens", True),
        (32, "tokens", True),
        (32, "tokens", False),
        (32, "every_map", True),
        (32, "none", True),
    ],
)
def test_equals_the_restatement(features, placement, train):
    reference.check(
        Projector(features, 4, 2, layers=VTLayers(norm_placement=placement)),
        functools.partial(reference.projector, heads=4),
        *inputs(3, 4, 7),
        train=train,
        placement=placement,
    )


def test_bfloat16():
    reference.check_bfloat16(
        lambda dtype: Projector(32, heads=4, layers=VTLayers(dtype=dtype)), *inputs()
    )


def test_stochastic_depth_drops_the_attention_of_whole_examples():
    x, tokens = (np.repeat(a[:1], 32, axis=0) for a in inputs())
    layers = VTLayers(norm_placement="none")
    module = Projector(32, heads=4, survival_probability=0.5, layers=layers)
    variables = reference.variables_of(module, x, tokens)
    whole, out = jax.jit(
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
