"""The token transformer and its ablations equal the paper's equations."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import reference

from vt_flax.errors import UserError
from vt_flax.nn.layers import VTLayers
from vt_flax.nn.transformer import GraphInteraction, LinearInteraction, TokenTransformer

C_T = 32
PARTS = ("linear", "mlp", "none", "graph")


def part(name, **settings):
    if name == "none":
        return LinearInteraction(**settings)
    if name == "graph":
        return GraphInteraction(**settings)
    return TokenTransformer(heads=4, groups=2, feed_forward=name, **settings)


def restatement(name):
    if name == "none":
        return reference.no_interaction
    if name == "graph":
        return reference.graph_interaction
    return functools.partial(reference.transformer, heads=4, feed_forward=name)


def some_tokens(batch=3, count=5, seed=0):
    return reference.normal(seed, batch, count, C_T)


@pytest.mark.parametrize("train", [False, True])
@pytest.mark.parametrize("batch,count", [(1, 5), (3, 8)])
@pytest.mark.parametrize("name", PARTS)
def test_equals_the_restatement(name, batch, count, train):
    tokens = some_tokens(batch, count)
    reference.check(part(name), restatement(name), tokens, train=train)


@pytest.mark.parametrize("placement", ["every_map", "none"])
@pytest.mark.parametrize("name", ["linear", "mlp"])
def test_normalization_placements(name, placement):
    reference.check(
        part(name, layers=VTLayers(norm_placement=placement)),
        restatement(name),
        some_tokens(),
        train=True,
        placement=placement,
    )


def test_one_group_and_other_heads():
    module = TokenTransformer(heads=2, groups=1)
    function = functools.partial(reference.transformer, heads=2, feed_forward="linear")
    reference.check(module, function, some_tokens(), train=False)


@pytest.mark.parametrize("groups", [1, 4])
def test_shapes_of_the_maps(groups):
    module = TokenTransformer(4, groups, "mlp", layers=VTLayers(norm_placement="none"))
    params = reference.variables_of(module, some_tokens())["params"]
    shapes = jax.tree.map(lambda p: p["kernel"].shape, params, is_leaf=is_map)
    half, full = (C_T, C_T // 2), (C_T, C_T)
    if groups > 1:
        half, full = (4, C_T // 4, C_T // 8), (4, C_T // 4, C_T // 4)
    assert shapes == {
        "key": half,
        "query": half,
        "value": full,
        "feed_forward1": (C_T, C_T),
        "feed_forward2": (C_T, C_T),
    }


def is_map(node):
    return "kernel" in node


@pytest.mark.slow
@pytest.mark.parametrize("name", PARTS)
def test_gradients_are_finite(name):
    reference.check_gradients(part(name), some_tokens())
    constant = np.ones((2, 5, C_T), np.float32)
    reference.check_gradients(part(name), constant, live=False)


@pytest.mark.parametrize("name", ["linear", "mlp", "none"])
def test_parameters_serve_any_batch_and_number_of_tokens(name):
    shapes = []
    for batch, count in [(1, 4), (2, 7)]:
        variables = reference.variables_of(part(name), some_tokens(batch, count))
        shapes.append(jax.tree.map(jnp.shape, variables))
    assert shapes[0] == shapes[1]


def test_graph_serves_one_number_of_tokens():
    module = part("graph")
    variables = reference.variables_of(module, some_tokens(count=5))
    out = module.apply(variables, some_tokens(batch=7, count=5), train=False)
    assert out.shape == (7, 5, C_T)
    with pytest.raises(UserError, match="serve 5 tokens, not 6"):
        module.apply(variables, some_tokens(count=6), train=False)


@pytest.mark.parametrize("name", PARTS)
def test_bfloat16(name):
    reference.check_bfloat16(
        lambda dtype: part(name, layers=VTLayers(dtype=dtype)),
        some_tokens(),
    )


@pytest.mark.parametrize("name", PARTS)
def test_stochastic_depth_is_absent_in_evaluation(name):
    variables = reference.variables_of(part(name), some_tokens())
    dropping = part(name, survival_probability=0.3)
    run = reference.jax.jit(
        lambda v, t: [m.apply(v, t, train=False) for m in (dropping, part(name))]
    )
    np.testing.assert_array_equal(*run(variables, some_tokens()))


@pytest.mark.parametrize("name", PARTS)
def test_stochastic_depth_drops_each_branch_for_whole_examples(name):
    """Every example is one of the results with each branch absent, or over p."""
    tokens = np.repeat(some_tokens(batch=1), 32, axis=0)
    p = 0.5
    module = part(name, survival_probability=p, layers=VTLayers(norm_placement="none"))
    variables = reference.variables_of(module, tokens)
    out = reference.jax.jit(
        lambda v, t, key: module.apply(v, t, train=True, rngs={"dropout": key})
    )(variables, tokens, jax.random.key(0))
    scope = reference.Scope(variables, placement="none")
    single = tokens[:1].astype(np.float64)
    if name in ("none", "graph"):
        branch = restatement(name)(scope, single) - single
        options = [single, single + branch / p]
    else:
        options = [
            restatement(name)(scope, single, keep=(a, f))
            for a in (0.0, 1 / p)
            for f in (0.0, 1 / p)
        ]
    seen = [
        [reference.error(example[None], option) < 1e-5 for option in options]
        for example in np.asarray(out)
    ]
    assert np.all(np.sum(seen, 1) == 1)
    assert np.all(np.sum(seen, 0) >= 1)


def test_unknown_feed_forward():
    with pytest.raises(UserError, match="'gelu'.*linear or mlp"):
        reference.variables_of(part("gelu"), some_tokens())
