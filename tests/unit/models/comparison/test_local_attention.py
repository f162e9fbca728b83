"""Local attention against loops over pixels and offsets in NumPy."""

import functools

import jax
import jax.numpy as jnp
import local_reference
import numpy as np
import pytest
import reference
from block_reference import Same, same
from jax.extend import core

from vt_flax.models.comparison.local_attention import Window, over_window
from vt_flax.models.comparison.lr import LocalRelation
from vt_flax.models.comparison.san_attention import (
    PairwiseAttention,
    PatchwiseAttention,
)
from vt_flax.models.comparison.sasa import BlockAttention, StandAloneAttention
from vt_flax.nn.layers import Layers
from vt_flax.paper import macs

pytestmark = pytest.mark.slow


@pytest.mark.parametrize(
    "shape, size, stride",
    [
        # 20 channels: the last of three groups has 4.
        ((2, 6, 7, 20), 5, 2),
        # Windows that reach over both borders at once.
        ((2, 2, 3, 8), 7, 1),
    ],
)
def test_local_relation(shape, size, stride):
    restated = functools.partial(
        local_reference.local_relation, size=size, stride=stride
    )
    module = Same(LocalRelation(12, stride, size))
    reference.check(module, same(restated), reference.normal(0, *shape), train=True)


@pytest.mark.parametrize(
    "shape, size, heads",
    [
        # Heads of three channels, and of one: row and column overlap in one channel.
        ((2, 6, 5, 7), 5, 4),
        ((1, 3, 4, 4), 3, 12),
    ],
)
def test_stand_alone(shape, size, heads):
    restated = functools.partial(local_reference.stand_alone, heads=heads, size=size)
    module = Same(StandAloneAttention(12, heads, 1, size))
    reference.check(module, same(restated), reference.normal(0, *shape), train=True)


@pytest.mark.parametrize("shape", [(2, 8, 4, 3), (1, 1, 2, 3)])
def test_block_attention(shape):
    restated = functools.partial(local_reference.block_attention, heads=3, size=4)
    module = Same(BlockAttention(12, heads=3, mixtures=5))
    reference.check(module, same(restated), reference.normal(0, *shape), train=True)


@pytest.mark.parametrize("kind", [PairwiseAttention, PatchwiseAttention])
@pytest.mark.parametrize(
    "shape, size, group_size, train",
    [
        # 40 / 4 values: the last group has 2.
        ((4, 4, 5, 40), 3, 2, True),
        # Windows mirror more than once, and a side of one pixel shows it alone.
        ((3, 1, 3, 32), 5, 0, False),
    ],
)
def test_san_attention(kind, shape, size, group_size, train):
    restated = {
        PairwiseAttention: local_reference.pairwise,
        PatchwiseAttention: local_reference.patchwise,
    }[kind]
    factors = np.arange(1, shape[0] + 1).reshape(-1, 1, 1, 1)
    x = np.float32(reference.normal(0, *shape) * factors)
    module = kind(size, layers=Layers(bn_group_size=group_size))
    function = functools.partial(restated, size=size)
    reference.check(module, function, x, train=train, group_size=group_size)


MODULES = {
    "relation": Same(LocalRelation(12, size=3)),
    "stand_alone": Same(StandAloneAttention(12, 4, size=3)),
    "pairwise": PairwiseAttention(3),
    "patchwise": PatchwiseAttention(3),
}


def largest(jaxpr):
    """Returns the size of a program's largest array, bodies of loops included."""
    inner = [
        getattr(value, "jaxpr", value)
        for equation in jaxpr.eqns
        for value in jax.tree.leaves(list(equation.params.values()))
        if isinstance(value, (core.Jaxpr, core.ClosedJaxpr))
    ]
    own = [v.aval.size for equation in jaxpr.eqns for v in equation.outvars]
    return max(own + [largest(each) for each in inner], default=0)


def second_derivatives(module, variables, x):
    """Returns the derivative of a layer's gradients by their own direction."""

    def loss(variables, x):
        out, _ = module.apply(variables, x, train=True, mutable=["batch_stats"])
        return jnp.sum(jnp.square(out))

    gradient = jax.grad(loss, (0, 1))
    return jax.jvp(gradient, (variables, x), (variables, x))


@pytest.mark.parametrize("name", list(MODULES))
def test_no_windows_are_stored(name):
    """No array is larger than the padded input, in second derivatives neither."""
    x = jax.ShapeDtypeStruct((2, 16, 16, 64), jnp.float32)
    variables = reference.variables_of(MODULES[name], x)
    run = functools.partial(second_derivatives, MODULES[name])
    assert largest(jax.make_jaxpr(run)(variables, x).jaxpr) <= 2 * 18 * 18 * 64


def test_bfloat16():
    x = 0.5 * reference.normal(0, 2, 4, 5, 32)
    for kind in (PairwiseAttention, PatchwiseAttention):
        make = functools.partial(kind, 3)
        reference.check_bfloat16(
            lambda dtype, make=make: make(layers=Layers(dtype)), x, tolerance=0.1
        )


def counted(module, x):
    variables = reference.variables_of(module, x)
    jaxpr = jax.make_jaxpr(lambda v, x: module.apply(v, x, train=False))(variables, x)
    return sum(amount for _, amount in macs.products(jaxpr.jaxpr))


def test_multiply_adds():
    x = jax.ShapeDtypeStruct((1, 6, 8, 20), jnp.float32)
    n, k = 6 * 8, 25

    # 20 channels have 3 groups. Query and output at every second pixel.
    geometry = k * (2 * 3 + 3 * 3)
    linear = (n + n // 4) * 20 * 3 + n // 4 * 20 * 12
    found = counted(Same(LocalRelation(12, 2, 5)), x)
    assert found == geometry + linear + n // 4 * k * 20

    # q . k, q . r and the sum of the values.
    found = counted(Same(StandAloneAttention(12, 4, size=5)), x)
    assert found == 3 * n * 20 * 12 + 3 * n * k * 12

    # 32 channels: q and k have 2, values 8, in one group.
    x = jax.ShapeDtypeStruct((1, 6, 8, 32), jnp.float32)
    linear = n * 32 * (2 + 2 + 8)
    found = counted(PairwiseAttention(5), x)
    assert found == linear + n * 2 * 2 + n * k * (4 * 2 + 2 * 1 + 8)
    found = counted(PatchwiseAttention(5), x)
    assert found == linear + n * (2 + 2 * k) * 1 + n * k * (1 + 8)


@pytest.mark.parametrize(
    "padding, border", [("constant", "zeros"), ("reflect", "mirror")]
)
@pytest.mark.parametrize(
    "shape, size, stride", [((1, 5, 6, 2), 5, 2), ((1, 2, 1, 2), 7, 1)]
)
def test_windows(shape, size, stride, padding, border):
    x = reference.normal(0, *shape)
    window = Window(size, stride, padding)
    expected = local_reference.windows(x, size, stride, border)
    np.testing.assert_array_equal(window.centers(x), expected[..., size**2 // 2, :])
    each = reference.normal(1, size**2, 1)
    terms = jax.lax.map(*over_window(lambda w, x_o: w * x_o, window, each, x))
    np.testing.assert_allclose(terms, np.moveaxis(expected * each, 3, 0), rtol=1e-6)
