"""Position encoding equals resize, stride-2 convolutions and a learned mixing map."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import reference

from vt_flax.nn.norm import Normalization
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
    module = PositionEncoding(norm=Normalization(placement))
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
        "reduce1": {"conv": {"kernel": (3, 3, 1, 1)}},
        "mix": {"kernel": (49, 49)},
    }
    out = PositionEncoding().apply(variables, maps, train=False)
    assert out.shape == (2, 3, 49)
    of_heads = reference.variables_of(PositionEncoding(), np.zeros((2, 16, 3, 9, 9)))
    assert jax.tree.map(jnp.shape, of_heads["params"]) == {
        "reduce1": {"conv": {"kernel": (3, 3, 16, 16)}},
        "heads": {"kernel": (16, 1)},
        "mix": {"kernel": (49, 49)},
    }


@pytest.mark.parametrize("shape", [(2, 3, 9, 13), (2, 2, 3, 14, 14)])
def test_gradients_are_finite(shape):
    module = PositionEncoding(norm=Normalization("every_map"))
    reference.check_gradients(module, reference.normal(0, *shape))


def test_parameters_serve_any_map():
    module = PositionEncoding()
    variables = reference.variables_of(module, reference.normal(0, 1, 3, 14, 14))
    for shape in [(2, 5, 7, 31), (4, 2, 50, 50)]:
        again = reference.variables_of(module, reference.normal(0, *shape))
        assert jax.tree.map(jnp.shape, again) == jax.tree.map(jnp.shape, variables)
        out = jax.eval_shape(
            lambda v, a: module.apply(v, a, train=False),
            variables,
            jnp.zeros(shape),
        )
        assert out.shape == (*shape[:2], 49)


def test_bfloat16():
    reference.check_bfloat16(
        lambda dtype: PositionEncoding(norm=Normalization(dtype=dtype), dtype=dtype),
        reference.normal(0, 2, 2, 3, 9, 13),
    )
