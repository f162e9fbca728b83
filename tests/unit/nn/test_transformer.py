"""The token transformer and its ablations equal the paper's equations."""

import functools

import jax
import numpy as np
import pytest
import reference

from vt_flax.nn.layers import VTLayers
from vt_flax.nn.transformer import LinearInteraction, TokenTransformer

C_T = 32
KINDS = ("linear", "mlp", "none", "graph")


def interaction(kind, **settings):
    if kind in ("none", "graph"):
        return LinearInteraction(kind == "graph", **settings)
    return TokenTransformer(heads=4, groups=2, feed_forward=kind, **settings)


def restatement(kind):
    if kind == "none":
        return reference.no_interaction
    if kind == "graph":
        return reference.graph_interaction
    return functools.partial(reference.transformer, heads=4, feed_forward=kind)


def some_tokens(batch=3, count=5):
    return reference.normal(0, batch, count, C_T)


@pytest.mark.parametrize(
    "kind, placement, train",
    [(kind, "tokens", True) for kind in KINDS]
    + [("mlp", "tokens", False), ("linear", "every_map", True), ("mlp", "none", True)],
)
def test_equals_the_restatement(kind, placement, train):
    module = interaction(kind, layers=VTLayers(norm_placement=placement))
    options = {"train": train, "placement": placement}
    reference.check(module, restatement(kind), some_tokens(), **options)


def test_one_group_and_other_heads():
    module = TokenTransformer(heads=2, groups=1)
    function = functools.partial(reference.transformer, heads=2, feed_forward="linear")
    reference.check(module, function, some_tokens(), train=False)


@pytest.mark.parametrize("kind", ["mlp", "graph"])
def test_bfloat16(kind):
    reference.check_bfloat16(
        lambda dtype: interaction(kind, layers=VTLayers(dtype=dtype)), some_tokens()
    )


@pytest.mark.parametrize("kind", ["mlp", "none"])
def test_stochastic_depth_drops_each_branch_for_whole_examples(kind):
    """In training every example has each branch absent, or over p; later both."""
    tokens, p = np.repeat(some_tokens(batch=1), 32, axis=0), 0.5
    layers = VTLayers(norm_placement="none")
    module = interaction(kind, survival_probability=p, layers=layers)
    variables = reference.variables_of(module, tokens)
    out, whole = jax.jit(
        lambda v, t, key: (
            module.apply(v, t, train=True, rngs={"dropout": key}),
            module.apply(v, t, train=False),
        )
    )(variables, tokens, jax.random.key(0))
    scope = reference.Scope(variables, placement="none")
    single = tokens[:1].astype(np.float64)
    expected = restatement(kind)(scope, single)
    reference.near(whole[:1], expected, 1e-5)
    if kind == "none":
        options = [single, single + (expected - single) / p]
    else:
        options = [
            restatement(kind)(scope, single, keep=(a, f))
            for a in (0.0, 1 / p)
            for f in (0.0, 1 / p)
        ]
    matches = np.array(
        [
            [reference.error(example[None], option) < 1e-5 for option in options]
            for example in np.asarray(out)
        ]
    )
    assert np.all(matches.sum(1) == 1)
    assert np.all(matches.sum(0) >= 1)
