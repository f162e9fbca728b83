"""Local attention: loops over pixels and offsets in NumPy, scan against unfold."""

import functools

import jax
import jax.numpy as jnp
import local_reference
import numpy as np
import pytest
import reference
from jax.extend import core

from vt_flax.errors import UserError
from vt_flax.models import create_model
from vt_flax.models.comparison.local_attention import (
    ATTENTION,
    Window,
    over_window,
    sum_over_window,
)
from vt_flax.models.comparison.lr import LocalRelation
from vt_flax.models.comparison.san_attention import (
    PairwiseAttention,
    PatchwiseAttention,
)
from vt_flax.models.comparison.sasa import BlockAttention, StandAloneAttention
from vt_flax.nn.layers import Layers
from vt_flax.paper import macs

pytestmark = pytest.mark.slow

LAYERS = Layers()


class Stateless:
    """Module without `train`, called as those with it."""

    def __init__(self, module):
        self.module = module

    def init(self, key, x, *, train):
        return self.module.init(key, x)

    def apply(self, variables, x, *, train, mutable=()):
        return self.module.apply(variables, x, mutable=mutable)


def relation(attention="scan", size=5, layers=LAYERS, stride=1):
    return Stateless(LocalRelation(12, stride, size, attention, layers))


def stand_alone(attention="scan", size=5, layers=LAYERS, heads=4):
    return Stateless(StandAloneAttention(12, heads, 1, size, attention, layers))


def pairwise(attention="scan", size=3, layers=LAYERS):
    return PairwiseAttention(size, attention, layers)


def patchwise(attention="scan", size=3, layers=LAYERS):
    return PatchwiseAttention(size, attention, layers)


MAKERS = {
    "relation": relation,
    "strided_relation": functools.partial(relation, stride=2),
    "stand_alone": stand_alone,
    "pairwise": pairwise,
    "patchwise": patchwise,
}


# ------------------------------------------------------------------- the equations


@pytest.mark.parametrize(
    "shape,size,stride,attention",
    [
        # 20 channels: the last of three groups has 4.
        ((2, 6, 7, 20), 5, 1, "scan"),
        ((2, 6, 7, 20), 5, 2, "scan"),
        ((2, 6, 7, 20), 5, 2, "unfold"),
        ((1, 5, 4, 16), 3, 3, "scan"),
        # Windows that reach over both borders at once.
        ((2, 2, 3, 8), 7, 1, "unfold"),
        ((1, 7, 1, 5), 7, 2, "scan"),
    ],
)
def test_local_relation(shape, size, stride, attention):
    reference.check(
        relation(attention, size, stride=stride),
        functools.partial(local_reference.local_relation, size=size, stride=stride),
        reference.normal(0, *shape),
        train=True,
    )


@pytest.mark.parametrize(
    "shape,size,heads,attention",
    [
        # Heads of three channels, and of one: row and column overlap in one channel.
        ((2, 6, 5, 7), 5, 4, "scan"),
        ((2, 6, 5, 7), 5, 4, "unfold"),
        ((1, 3, 8, 4), 3, 12, "scan"),
        ((2, 2, 3, 9), 7, 1, "scan"),
    ],
)
def test_stand_alone(shape, size, heads, attention):
    reference.check(
        stand_alone(attention, size, heads=heads),
        functools.partial(local_reference.stand_alone, heads=heads, size=size),
        reference.normal(0, *shape),
        train=True,
    )


@pytest.mark.parametrize("shape", [(2, 8, 4, 3), (1, 5, 7, 3), (1, 1, 2, 3)])
def test_block_attention(shape):
    reference.check(
        Stateless(BlockAttention(12, heads=3, mixtures=5)),
        functools.partial(local_reference.block_attention, heads=3, size=4),
        reference.normal(0, *shape),
        train=True,
    )


@pytest.mark.parametrize("kind", ["pairwise", "patchwise"])
@pytest.mark.parametrize(
    "shape,size,train,attention",
    [
        # 40 / 4 values: the last group has 2.
        ((2, 5, 6, 40), 3, True, "scan"),
        ((2, 5, 6, 40), 3, False, "scan"),
        ((2, 5, 6, 40), 3, True, "unfold"),
        # Windows mirror more than once, and a side of one pixel shows it alone.
        ((3, 2, 3, 32), 7, True, "scan"),
        ((2, 1, 4, 16), 5, False, "unfold"),
    ],
)
def test_san_attention(kind, shape, size, train, attention):
    reference.check(
        MAKERS[kind](attention, size),
        functools.partial(getattr(local_reference, kind), size=size),
        reference.normal(0, *shape),
        train=train,
    )


@pytest.mark.parametrize("kind", ["pairwise", "patchwise"])
def test_san_attention_with_statistics_of_groups(kind):
    reference.check(
        MAKERS[kind](layers=Layers(bn_group_size=2)),
        functools.partial(getattr(local_reference, kind), size=3),
        reference.normal(0, 4, 4, 3, 32) * np.arange(1, 5).reshape(4, 1, 1, 1),
        train=True,
        group_size=2,
    )


@pytest.mark.parametrize("kind", ["pairwise", "patchwise"])
def test_frozen_statistics_are_used_and_left_alone(kind):
    x = reference.normal(0, 2, 4, 5, 32)
    frozen, plain = MAKERS[kind](layers=Layers(bn_frozen=True)), MAKERS[kind]()
    variables = reference.variables_of(plain, x)
    out, state, expected = reference.jax.jit(
        lambda v, x: (
            *frozen.apply(v, x, train=True, mutable=["batch_stats"]),
            plain.apply(v, x, train=False),
        )
    )(variables, x)
    np.testing.assert_array_equal(out, expected)
    same = jax.tree.map(np.array_equal, state["batch_stats"], variables["batch_stats"])
    assert jax.tree.all(same)


# ------------------------------------------------------------------ scan and unfold


def derivatives(module, x):
    """Returns a layer's results and their derivatives by variables and input.

    These are: output and new statistics; gradients; their derivatives in a direction;
    and the loss's derivative in that direction, by forward mode and by the gradients.
    """
    variables = reference.variables_of(module, x, seed=3)

    def loss(variables, x):
        out, state = module.apply(variables, x, train=True, mutable=["batch_stats"])
        weights = reference.normal(7, *out.shape)
        return jnp.sum(out * weights), (out, state)

    @reference.jax.jit
    def compute(*at):
        along = jax.tree.map(lambda a: reference.normal(8, *a.shape), at)
        gradient = jax.grad(loss, (0, 1), has_aux=True)
        by, twice, results = jax.jvp(gradient, at, along, has_aux=True)
        _, tangent, _ = jax.jvp(loss, at, along, has_aux=True)
        slopes = jax.tree.map(lambda a, b: jnp.sum(a * b), by, along)
        return results, by, twice, (tangent, sum(jax.tree.leaves(slopes)))

    return compute(variables, x)


@pytest.mark.parametrize("name", list(MAKERS))
def test_derivatives_of_scan_equal_those_of_unfold(name):
    x = reference.normal(0, 2, 7, 6, 36)
    *ours, (tangent, slope) = derivatives(MAKERS[name]("scan"), x)
    *unfolded, _ = derivatives(MAKERS[name]("unfold"), x)
    for found, expected in zip(ours, unfolded, strict=True):
        leaves = jax.tree_util.tree_leaves_with_path(found)
        # Some gradients are zero up to rounding, such as of a bias before softmax.
        scale = max(np.abs(leaf).max() for leaf in jax.tree.leaves(expected))
        for (path, a), e in zip(leaves, jax.tree.leaves(expected), strict=True):
            assert np.all(np.isfinite(a))
            wrong = np.abs(a - e).max()
            limit = 1e-5 * max(np.abs(e).max(), 0.1 * scale)
            assert wrong <= limit, (jax.tree_util.keystr(path), wrong, limit)
    _, by, twice = ours
    for found in (by, twice):
        assert any(np.abs(leaf).max() > 0.1 for leaf in jax.tree.leaves(found))
    assert abs(tangent - slope) < 1e-4 * abs(slope)


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


@pytest.mark.parametrize("name", list(MAKERS))
def test_scan_stores_no_windows(name):
    """No array of `scan` is larger than the padded input; some of `unfold` are."""
    x = jax.ShapeDtypeStruct((2, 16, 16, 64), jnp.float32)
    sizes = {}
    for attention in ATTENTION:
        module = MAKERS[name](attention, size=7)
        variables = reference.variables_of(module, x)

        def loss(variables, x, module=module):
            out, _ = module.apply(variables, x, train=True, mutable=["batch_stats"])
            return jnp.sum(jnp.square(out))

        program = jax.make_jaxpr(jax.grad(loss, (0, 1)))(variables, x)
        sizes[attention] = largest(program.jaxpr)
    assert sizes["scan"] <= 2 * 22 * 22 * 64
    pixels = 2 * 16 * 16 // (4 if name == "strided_relation" else 1)
    channels = {"stand_alone": 12, "pairwise": 16, "patchwise": 16}.get(name, 64)
    assert sizes["unfold"] >= 49 * pixels * channels


@pytest.mark.parametrize("name", list(MAKERS))
def test_bfloat16(name):
    make = functools.partial(MAKERS[name], "scan", size=3)
    x = 0.5 * reference.normal(0, 2, 6, 5, 32)
    reference.check_bfloat16(lambda dtype: make(layers=Layers(dtype)), x, tolerance=0.1)


# -------------------------------------------------------------------------- counting


def counted(module, x):
    variables = reference.variables_of(module, x)
    jaxpr = jax.make_jaxpr(lambda v, x: module.apply(v, x, train=False))(variables, x)
    return sum(amount for _, amount in macs.products(jaxpr.jaxpr))


@pytest.mark.parametrize("attention", ATTENTION)
def test_multiply_adds(attention):
    x = jax.ShapeDtypeStruct((1, 6, 8, 20), jnp.float32)
    n, k = 6 * 8, 25

    # 20 channels have 3 groups. Query and output at every second pixel.
    geometry = k * (2 * 3 + 3 * 3)
    linear = (n + n // 4) * 20 * 3 + n // 4 * 20 * 12
    found = counted(relation(attention, stride=2), x)
    assert found == geometry + linear + n // 4 * k * 20

    # q . k, q . r and the sum of the values.
    found = counted(stand_alone(attention), x)
    assert found == 3 * n * 20 * 12 + 3 * n * k * 12

    # 32 channels: q and k have 2, values 8, in one group.
    x = jax.ShapeDtypeStruct((1, 6, 8, 32), jnp.float32)
    maps = n * 32 * (2 + 2 + 8)
    found = counted(pairwise(attention, 5), x)
    assert found == maps + n * 2 * 2 + n * k * (4 * 2 + 2 * 1 + 8)
    found = counted(patchwise(attention, 5), x)
    assert found == maps + n * (2 + 2 * k) * 1 + n * k * (1 + 8)


def test_multiply_adds_of_blocks():
    x = jax.ShapeDtypeStruct((1, 6, 8, 3), jnp.float32)
    # Two blocks high and two wide; the values' maps are mixed for each position.
    n, mixing = 8 * 8, 16 * (12 * 4 + 4 * 3 * 12)
    found = counted(Stateless(BlockAttention(12, heads=3)), x)
    assert found == mixing + n * 3 * 3 * 12 + 2 * n * 16 * 12


# --------------------------------------------------------------------------- windows


@pytest.mark.parametrize(
    "padding,border", [("constant", "zeros"), ("reflect", "mirror")]
)
@pytest.mark.parametrize(
    "shape,size,stride",
    [((2, 5, 6, 3), 3, 1), ((1, 5, 6, 2), 5, 2), ((1, 2, 1, 2), 7, 1)],
)
def test_windows(shape, size, stride, padding, border):
    x = reference.normal(0, *shape)
    window = Window(size, stride, padding)
    expected = local_reference.windows(x, size, stride, border)
    np.testing.assert_array_equal(window.unfold(x), expected.astype(np.float32))
    np.testing.assert_array_equal(window.centers(x), expected[..., size**2 // 2, :])

    each = reference.normal(1, size**2, 1)
    total = sum_over_window(lambda w, x_o: (w * x_o, x_o), window, each, x)
    terms = jax.lax.map(*over_window(lambda w, x_o: w * x_o, window, each, x))
    for found, weights in zip(total, (each, np.ones_like(each)), strict=True):
        wanted = (expected * weights).sum(3)
        np.testing.assert_allclose(found, wanted, atol=1e-5)
    np.testing.assert_allclose(terms, np.moveaxis(expected * each, 3, 0), rtol=1e-6)


@pytest.mark.parametrize("name", ["lr_net26", "sasa_resnet26", "san10_pairwise"])
def test_unknown_attention(name):
    message = "attention='fold' is not known: choose from scan, unfold"
    with pytest.raises(UserError, match=message):
        create_model(name, attention="fold")
