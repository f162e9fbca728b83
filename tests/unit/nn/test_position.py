"""Position encoding equals resize, stride-2 convolutions and a learned mixing map."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import reference

from vt_flax.nn.layers import VTLayers
from vt_flax.nn.position import PositionEncoding


@pytest.mark.parametrize(
    "shape, placement",
    [
        ((3, 4, 9, 13), "tokens"),
        ((2, 3, 28, 7), "every_map"),
        ((3, 2, 4, 20, 17), "every_map"),
        ((1, 4, 3, 14, 14), "tokens"),
    ],
)
def test_equals_the_restatement(shape, placement):
    module = PositionEncoding(layers=VTLayers(norm_placement=placement))
    maps = reference.normal(0, *shape)
    function = reference.position_encoding
    reference.check(module, function, maps, train=True, placement=placement)


def test_size_and_reductions():
    module = PositionEncoding(size=8, reductions=2)
    function = functools.partial(reference.position_encoding, size=8, reductions=2)
    reference.check(module, function, reference.normal(0, 2, 3, 9, 13), train=False)


def test_forty_nine_numbers_by_default():
    for shape, heads in (((2, 3, 14, 14), 1), ((2, 16, 3, 9, 9), 16)):
        variables = reference.variables_of(PositionEncoding(), np.zeros(shape))
        expected = {"reduce1": (3, 3, heads, heads), "mix": (49, 49)}
        if heads > 1:
            expected["heads"] = (heads, 1)
        expected = {name: {"kernel": kernel} for name, kernel in expected.items()}
        assert jax.tree.map(jnp.shape, variables["params"]) == expected
