"""Tokenizers equal the paper's equations."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import reference

from vt_flax.nn.layers import VTLayers
from vt_flax.nn.tokenizers import (
    ClusteringTokenizer,
    DynamicTokenizer,
    PoolingTokenizer,
    StaticTokenizer,
    grid,
)

C, C_T = 16, 24
KINDS = ("static", "half", "all", "clustering", "pooling")
EVERY_MAP = VTLayers(norm_placement="every_map")


def feature_map(batch=2, height=6, width=5, seed=0):
    return reference.normal(seed, batch, height, width, C)


def earlier_tokens(batch=2, count=4):
    return reference.normal(1, batch, count, C_T)


def tokenizer(kind, **settings):
    """A tokenizer of 4 tokens."""
    if kind == "pooling":
        return PoolingTokenizer(4, C_T, **settings)
    if kind == "static":
        return StaticTokenizer(4, C_T, value_groups=2, **settings)
    if kind == "clustering":
        return ClusteringTokenizer(4, C_T, iterations=3, **settings)
    return DynamicTokenizer(C_T, replace=kind, heads=4, groups=2, **settings)


def inputs_of(kind, **shape):
    x = feature_map(**shape)
    return (x, earlier_tokens(len(x))) if kind in ("half", "all") else (x,)


@pytest.mark.parametrize(
    "position, count, groups, layers, train",
    [
        (True, 6, 2, VTLayers(), True),
        (False, 5, 1, VTLayers(), False),
        (False, 3, 0, VTLayers(), True),
        (False, 5, 2, EVERY_MAP, True),
    ],
)
def test_static(position, count, groups, layers, train):
    reference.check(
        StaticTokenizer(count, C_T, groups, position, layers),
        functools.partial(
            reference.static_tokenizer, position=position, value_map=groups > 0
        ),
        feature_map(3, 9, 13),
        train=train,
        placement=layers.norm_placement,
    )


@pytest.mark.parametrize(
    "replace, position, count, heads, groups, layers, train",
    [
        ("half", True, 6, 4, 2, VTLayers(), True),
        ("half", False, 4, 2, 1, VTLayers(), False),
        ("all", False, 5, 4, 2, EVERY_MAP, True),
    ],
)
def test_dynamic(replace, position, count, heads, groups, layers, train):
    reference.check(
        DynamicTokenizer(C_T, replace, heads, groups, position, layers),
        functools.partial(
            reference.dynamic_tokenizer, replace=replace, heads=heads, position=position
        ),
        feature_map(3, 9, 7),
        earlier_tokens(3, count),
        train=train,
        placement=layers.norm_placement,
    )


def degenerate(name):
    """A map with equal pixels, most of which are in the same cluster."""
    x = feature_map()
    if name == "rectified":
        # A positive mean and some zero pixels, as after a ReLU.
        x = np.maximum(feature_map(3, 9, 7, seed=3) + 0.3, 0.0)
        x[:, :2, :2] = 0.0
    elif name == "duplicates":
        x[:] = x[:, :1, :1]
        x[:, 3:] = feature_map(seed=2)[:, :1, :1]
    else:
        x[:] = {"constant": 0.7, "zero": 0.0}[name]
    return x


@pytest.mark.parametrize(
    "name, position, train",
    [
        ("rectified", True, True),
        # Clusters that stay empty keep their centroid; ties go to the first.
        ("duplicates", False, False),
        ("zero", False, False),
    ],
)
def test_clustering(name, position, train):
    """No gradient flows through the centroids: slopes are by the parameters alone."""
    placement = "tokens" if train else "none"
    layers = VTLayers(norm_placement=placement)
    function = functools.partial(
        reference.clustering_tokenizer, count=4, iterations=3, position=position
    )
    reference.check(
        tokenizer("clustering", position_encoding=position, layers=layers),
        function,
        degenerate(name),
        train=train,
        placement=placement,
        by_inputs=False,
    )


def test_no_gradient_flows_through_the_centroids():
    """With the centroids held, softmax and pooling are all that depends on the map."""
    x = feature_map(1)
    module = tokenizer("clustering", layers=VTLayers(norm_placement="none"))
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

    found, expected = jax.jit(lambda x: [jax.grad(f)(x) for f in (loss, held)])(x)
    reference.near(found, expected, 1e-5)


@pytest.mark.parametrize("name", ["constant", "zero", "duplicates"])
def test_gradients_are_finite_on_degenerate_maps(name):
    x, tokens = degenerate(name), earlier_tokens()
    modules = [tokenizer(kind) for kind in ("clustering", "static", "all")]
    inputs = [(x,), (x,), (x, tokens)]
    variables = [
        reference.variables_of(m, *given)
        for m, given in zip(modules, inputs, strict=True)
    ]

    def loss(variables, inputs):
        return sum(
            jnp.sum(m.apply(v, *given, train=True, mutable=["batch_stats"])[0] ** 2)
            for m, v, given in zip(modules, variables, inputs, strict=True)
        )

    for leaf in jax.tree.leaves(jax.jit(jax.grad(loss, (0, 1)))(variables, inputs)):
        assert np.all(np.isfinite(leaf))


@pytest.mark.parametrize("count", [5, 16])
def test_pooling(count):
    function = functools.partial(reference.pooling_tokenizer, count=count)
    reference.check(PoolingTokenizer(count, C_T), function, feature_map(), train=True)


def test_grid_is_the_most_square():
    for count in range(1, 65):
        assert grid(count) == reference.squarest_grid(count)


@pytest.mark.parametrize("kind", KINDS)
def test_parameters_serve_any_batch_and_image(kind):
    options = {"position_encoding": True} if kind in ("static", "half") else {}
    module = tokenizer(kind, **options)
    variables = reference.variables_of(module, *inputs_of(kind))
    inputs = inputs_of(kind, batch=5, height=3, width=17)
    out = jax.eval_shape(
        lambda v, *a: module.apply(v, *a, train=False), variables, *inputs
    )
    assert out.shape == (5, 4, C_T)


@pytest.mark.parametrize("kind", KINDS)
def test_bfloat16(kind):
    reference.check_bfloat16(
        lambda dtype: tokenizer(kind, layers=VTLayers(dtype=dtype)), *inputs_of(kind)
    )
