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
    "placement,train",
    [("tokens", False), ("every_map", False), ("every_map", True)],
)
@pytest.mark.parametrize(
    "shape",
    [
        (1, 5, 14, 14),
        (3, 4, 9, 13),
        (3, 3, 28, 7),
        (2, 5, 14, 14),
        (3, 2, 4, 20, 17),
        (1, 4, 3, 14, 14),
    ],
)
def test_equals_the_restatement(shape, placement, train):
    module = PositionEncoding(layers=VTLayers(norm_placement=placement))
    maps = reference.normal(0, *shape)
    reference.check(
        module, reference.position_encoding, maps, train=train, placement=placement
    )


@pytest.mark.parametrize("size,reductions", [(8, 2), (10, 0), (7, 1)])
def test_size_and_reductions(size, reductions):
    module = PositionEncoding(size=size, reductions=reductions)
    function = functools.partial(
        reference.position_encoding, size=size, reductions=reductions
    )
    reference.check(module, function, reference.normal(0, 2, 3, 9, 13), train=False)


def test_forty_nine_numbers_by_default():
    maps = np.zeros((2, 3, 14, 14), np.float32)
    variables = reference.variables_of(PositionEncoding(), maps)
    assert jax.tree.map(jnp.shape, variables["params"]) == {
        "reduce1": {"kernel": (3, 3, 1, 1)},
        "mix": {"kernel": (49, 49)},
    }
    out = PositionEncoding().apply(variables, maps, train=False)
    assert out.shape == (2, 3, 49)
    of_heads = reference.variables_of(PositionEncoding(), np.zeros((2, 16, 3, 9, 9)))
    assert jax.tree.map(jnp.shape, of_heads["params"]) == {
        "reduce1": {"kernel": (3, 3, 16, 16)},
        "heads": {"kernel": (16, 1)},
        "mix": {"kernel": (49, 49)},
    }
