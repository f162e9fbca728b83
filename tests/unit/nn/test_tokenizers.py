"""Tokenizers equal the paper's equations, and reject inputs they cannot take."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import reference

from vt_flax.errors import UserError
from vt_flax.nn.layers import VTLayers
from vt_flax.nn.tokenizers import (
    ClusteringTokenizer,
    DynamicTokenizer,
    PoolingTokenizer,
    StaticTokenizer,
    grid,
)

C, C_T = 16, 24
DEFAULT = VTLayers()
SHAPES = [(1, 14, 14), (3, 9, 13)]


def feature_map(batch=2, height=6, width=5, channels=C, seed=0):
    return reference.normal(seed, batch, height, width, channels)


def earlier_tokens(batch=2, count=4, seed=1):
    return reference.normal(seed, batch, count, C_T)


def tokenizer(kind, layers=DEFAULT, position=False):
    common = {"layers": layers}
    if kind == "pooling":
        return PoolingTokenizer(4, C_T, **common)
    common["position_encoding"] = position
    if kind == "static":
        return StaticTokenizer(5, C_T, value_groups=2, **common)
    if kind == "clustering":
        return ClusteringTokenizer(4, C_T, iterations=3, **common)
    return DynamicTokenizer(C_T, replace=kind, heads=4, groups=2, **common)


KINDS = ("static", "half", "all", "clustering", "pooling")


def inputs_of(kind, **shape):
    x = feature_map(**shape)
    return (x, earlier_tokens(len(x))) if kind in ("half", "all") else (x,)


@pytest.mark.parametrize("train", [False, True])
@pytest.mark.parametrize("batch,height,width", SHAPES)
@pytest.mark.parametrize(
    "position,count,groups", [(False, 5, 1), (True, 6, 2), (False, 3, 0)]
)
def test_static(batch, height, width, position, count, groups, train):
    module = StaticTokenizer(
        count, C_T, value_groups=groups, position_encoding=position
    )
    function = functools.partial(
        reference.static_tokenizer, position=position, value_map=groups > 0
    )
    x = feature_map(batch, height, width)
    reference.check(module, function, x, train=train)


@pytest.mark.parametrize("train", [False, True])
@pytest.mark.parametrize("batch,height,width", SHAPES)
@pytest.mark.parametrize(
    "replace,position,count,heads,groups",
    [("half", True, 6, 4, 2), ("half", False, 4, 2, 1), ("all", False, 5, 4, 2)],
)
def test_dynamic(batch, height, width, replace, position, count, heads, groups, train):
    module = DynamicTokenizer(C_T, replace, heads, groups, position)
    function = functools.partial(
        reference.dynamic_tokenizer, replace=replace, heads=heads, position=position
    )
    x, tokens = feature_map(batch, height, width), earlier_tokens(batch, count)
    reference.check(module, function, x, tokens, train=train)


@pytest.mark.slow
@pytest.mark.parametrize("train", [False, True])
@pytest.mark.parametrize("batch,height,width", SHAPES)
@pytest.mark.parametrize("count,iterations,position", [(6, 3, True), (5, 4, False)])
def test_clustering(batch, height, width, count, iterations, position, train):
    module = ClusteringTokenizer(count, C_T, iterations, position)
    function = functools.partial(
        reference.clustering_tokenizer,
        count=count,
        iterations=iterations,
        position=position,
    )
    # A positive mean and some zero pixels, as after a ReLU.
    x = np.maximum(feature_map(batch, height, width, seed=3) + 0.3, 0.0)
    x[:, :2, :2] = 0.0
    reference.check(module, function, x, train=train)


@pytest.mark.parametrize("train", [False, True])
@pytest.mark.parametrize("count", [5, 16])
@pytest.mark.parametrize("batch,height,width", SHAPES)
def test_pooling(batch, height, width, count, train):
    module = PoolingTokenizer(count, C_T)
    function = functools.partial(reference.pooling_tokenizer, count=count)
    reference.check(module, function, feature_map(batch, height, width), train=train)


@pytest.mark.parametrize("placement", ["every_map", "none"])
@pytest.mark.parametrize("kind", ["static", "all"])
def test_normalization_placements(kind, placement):
    function = {
        "static": reference.static_tokenizer,
        "all": functools.partial(reference.dynamic_tokenizer, replace="all", heads=4),
    }[kind]
    module = tokenizer(kind, VTLayers(norm_placement=placement))
    inputs = inputs_of(kind)
    reference.check(module, function, *inputs, train=True, placement=placement)


def test_grid_is_the_most_square():
    for count in range(1, 65):
        assert grid(count) == reference.squarest_grid(count)
    assert grid(16) == (4, 4)


def test_half_replacement_keeps_the_second_half_first():
    x, tokens = inputs_of("half")
    module = tokenizer("half")
    variables = reference.variables_of(module, x, tokens)
    apply = reference.jax.jit(functools.partial(module.apply, train=False))
    out = apply(variables, x, tokens)
    np.testing.assert_array_equal(out[:, :2], tokens[:, 2:])
    changed = tokens.copy()
    changed[:, 2:] += 1.0
    again = apply(variables, x, changed)
    np.testing.assert_array_equal(again[:, 2:], out[:, 2:])


@pytest.mark.parametrize("kind", KINDS)
def test_maps_are_sown_on_request_and_sum_to_one(kind):
    inputs = inputs_of(kind)
    module = tokenizer(kind)
    reference.check_outputs(module, *inputs)
    variables = reference.variables_of(module, *inputs)
    found = reference.sown(module, variables, *inputs)
    if kind == "pooling":
        assert not found
        return
    (maps,) = found.values()
    assert set(found) == {"coefficients"}
    shape = {"static": (2, 5), "clustering": (2, 4), "half": (2, 4, 2)}
    assert maps.shape == (*shape.get(kind, (2, 4, 4)), 6, 5)
    assert maps.dtype == jnp.float32
    assert np.all(maps >= 0.0)
    np.testing.assert_allclose(np.sum(maps, (-2, -1)), 1.0, atol=1e-5)


@pytest.mark.parametrize("kind", KINDS)
def test_gradients_are_finite(kind):
    position = kind in ("static", "half")
    reference.check_gradients(tokenizer(kind, position=position), *inputs_of(kind))


def degenerate_maps():
    x = feature_map()
    duplicates = np.repeat(x[:, :1, :1], 6, axis=1).repeat(5, axis=2)
    duplicates[:, 3:] = x[:, 1:2, 1:2]
    return {
        "constant": np.full_like(x, 0.7),
        "zero": np.zeros_like(x),
        "duplicates": duplicates,
        "one pixel": np.where(np.arange(6)[:, None, None] == 2, x, 0.0),
    }


@pytest.mark.parametrize("name", list(degenerate_maps()))
@pytest.mark.parametrize("kind", ["clustering", "static", "all"])
def test_gradients_are_finite_on_degenerate_maps(kind, name):
    x = degenerate_maps()[name].astype(np.float32)
    inputs = (x, *inputs_of(kind)[1:])
    reference.check_gradients(tokenizer(kind), *inputs, live=False)


@pytest.mark.parametrize("name", ["constant", "duplicates", "zero"])
def test_clustering_of_equal_pixels(name):
    """Clusters that stay empty keep their centroid; pixels of no length belong to all.

    Ties between equal centroids go to the first, which changes no centroid.
    """
    x = degenerate_maps()[name].astype(np.float32)
    function = functools.partial(
        reference.clustering_tokenizer, count=4, iterations=3, position=False
    )
    module = tokenizer("clustering", VTLayers(norm_placement="none"))
    reference.check(module, function, x, train=False, placement="none")


def test_no_gradient_flows_through_the_centroids():
    """With the centroids held, softmax and pooling are all that depends on the map."""
    x = feature_map(1)
    module = tokenizer("clustering", VTLayers(norm_placement="none"))
    variables = reference.variables_of(module, x)
    kernel = variables["params"]["token"]["map"]["kernel"]
    weights = reference.normal(5, 1, 4, C_T)

    def loss(x):
        return jnp.sum(module.apply(variables, x, train=False) * weights)

    starts = reference.resize(x.astype(np.float64), 2, 2).reshape(4, C)
    centroids = reference.unit(starts)
    pixels = reference.unit(x.reshape(-1, C).astype(np.float64))
    for _ in range(3):
        owner = np.argmax(pixels @ centroids.T, 1)
        centroids = np.stack(
            [reference.unit(pixels[owner == k].mean(0)) for k in range(4)]
        )

    def held(x):
        pixels = x.reshape(-1, C)
        a = jax.nn.softmax(pixels @ centroids.T.astype(np.float32), 0)
        return jnp.sum((a.T @ pixels @ kernel) * weights)

    assert (
        reference.error(
            reference.jax.jit(jax.grad(loss))(x),
            reference.jax.jit(jax.grad(held))(x),
        )
        < 1e-5
    )


@pytest.mark.parametrize("kind", KINDS)
def test_parameters_serve_any_batch_and_image(kind):
    position = kind not in ("pooling", "clustering")
    module = tokenizer(kind, position=position)
    variables = reference.variables_of(module, *inputs_of(kind))
    for shape in [{"batch": 1, "height": 3, "width": 17}, {"batch": 5}]:
        inputs = inputs_of(kind, **shape)
        again = reference.variables_of(module, *inputs)
        assert jax.tree.map(jnp.shape, again) == jax.tree.map(jnp.shape, variables)
        out = jax.eval_shape(
            lambda v, *a: module.apply(v, *a, train=False), variables, *inputs
        )
        assert out.shape == (len(inputs[0]), 5 if kind == "static" else 4, C_T)


@pytest.mark.parametrize("kind", KINDS)
def test_bfloat16(kind):
    reference.check_bfloat16(
        lambda dtype: tokenizer(kind, VTLayers(dtype=dtype), kind == "half"),
        *inputs_of(kind),
    )


def shape_only(module, *inputs):
    return jax.eval_shape(
        lambda *a: module.init(jax.random.key(0), *a, train=False), *inputs
    )


def test_half_replacement_rejects_an_odd_number_of_tokens():
    with pytest.raises(UserError, match="even number of tokens, not 5"):
        shape_only(tokenizer("half"), feature_map(), earlier_tokens(count=5))


def test_dynamic_needs_earlier_tokens():
    module = tokenizer("all")
    with pytest.raises(UserError, match="earlier module"):
        module.init(jax.random.key(0), feature_map(), None, train=False)


def test_unknown_replacement():
    with pytest.raises(UserError, match="'quarter'"):
        shape_only(tokenizer("quarter"), feature_map(), earlier_tokens())
