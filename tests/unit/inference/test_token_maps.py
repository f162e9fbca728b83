"""Coefficient maps of the tokens, and what the projectors do with them."""

import functools

import jax
import numpy as np
import pytest
from tiny_networks import MAP, RESNET, SIDE, build, variables_of

from vt_flax.inference import token_maps
from vt_flax.inference.token_maps import module_coefficients, tokenizer_kinds
from vt_flax.models import create_model

pytestmark = pytest.mark.slow


def averaged(model, variables, images):
    """The coefficients of every module, averaged over its heads."""
    found = jax.jit(functools.partial(module_coefficients, model))(variables, images)
    return {name: np.asarray(maps).mean(1) for name, maps in found.items()}


def coefficients(model, variables, batch=2):
    rng = np.random.default_rng(1)
    images = rng.normal(size=(batch, SIDE, SIDE, 3)).astype(np.float32)
    return averaged(model, variables, images)


@pytest.mark.parametrize("tokenizer,later", [("dynamic", 4), ("recurrent", 8)])
def test_maps_of_every_module(tokenizer, later):
    """Half replacement extracts half of the tokens, averaged over the heads."""
    model, variables = build(tokenizer=tokenizer, stage_sizes=[1, 1, 1, 3])
    maps = coefficients(model, variables)
    assert list(maps) == ["module1", "module2", "module3"]
    assert [m.shape for m in maps.values()] == [
        (2, 8, MAP, MAP),
        (2, later, MAP, MAP),
        (2, later, MAP, MAP),
    ]
    for values in maps.values():
        assert values.dtype == np.float32 and (values >= 0).all()
        np.testing.assert_allclose(values.sum((2, 3)), 1, rtol=1e-4)
        # They depend on the image, and differ between tokens.
        assert np.abs(values[0] - values[1]).max() > 1e-6
        assert np.abs(values[:, 0] - values[:, 1]).max() > 1e-6


def test_the_first_maps_are_the_filters():
    """softmax over pixels of X W_A / sqrt(C), from the map of stage 4 in float64."""
    model, variables = build(stage_sizes=[1, 1, 1, 2])
    images = np.random.default_rng(1).normal(size=(2, SIDE, SIDE, 3))
    images = images.astype(np.float32)
    found = averaged(model, variables, images)["module1"]
    maps = jax.jit(lambda v, x: model.apply(v, x, features=True))(variables, images)
    x = np.asarray(maps["C4"], np.float64).reshape(2, MAP * MAP, -1)
    module = variables["params"]["stage5"]["module1"]
    kernel = module["tokenizer"]["filter"]["kernel"].astype(np.float64)
    logits = x @ kernel / np.sqrt(x.shape[-1])
    weights = np.exp(logits - logits.max(1, keepdims=True))
    weights /= weights.sum(1, keepdims=True)
    expected = weights.transpose(0, 2, 1).reshape(2, 8, MAP, MAP)
    np.testing.assert_allclose(found, expected, rtol=1e-3, atol=1e-6)


def test_a_stage_without_projectors_has_one_tokenizer():
    model, variables = build(projector=False, stage_sizes=[1, 1, 1, 2])
    (values,) = coefficients(model, variables).values()
    assert values.shape == (2, 8, MAP, MAP)


@pytest.mark.parametrize("first,count", [("static", 1), ("pooling", 0)])
def test_pooling_has_no_maps(first, count):
    model, variables = build(
        first_tokenizer=first,
        tokenizer="pooling",
        stage_sizes=[1, 1, 1, 2],
    )
    assert len(coefficients(model, variables)) == count


def collected(model, variables, batch=2):
    rng = np.random.default_rng(1)
    images = rng.normal(size=(batch, SIDE, SIDE, 3)).astype(np.float32)
    found = jax.jit(lambda v, x: token_maps.sown_maps(model, v, x))(variables, images)
    kinds = tokenizer_kinds(model, variables, (SIDE, SIDE))
    return token_maps.by_module(found, kinds), images


@pytest.mark.parametrize(
    "options, kinds",
    [
        ({"tokenizer": "dynamic"}, ["static", "dynamic", "dynamic"]),
        ({"tokenizer": "recurrent"}, ["static", "recurrent", "recurrent"]),
        ({"tokenizer": "static"}, ["static"] * 3),
        (
            {"first_tokenizer": "clustering", "tokenizer": "pooling"},
            ["clustering", "pooling", "pooling"],
        ),
        ({"projector": False}, ["static"]),
    ],
)
def test_kinds(options, kinds):
    model, variables = build(stage_sizes=[1, 1, 1, 3], **options)
    found = tokenizer_kinds(model, variables, (SIDE, SIDE))
    assert list(found.values()) == kinds
    names = ["stage"] if len(kinds) == 1 else ["module1", "module2", "module3"]
    assert list(found) == names


def test_a_network_without_tokens_has_no_kinds():
    model = create_model("resnet18", **RESNET)
    assert tokenizer_kinds(model, variables_of(model), (SIDE, SIDE)) == {}


@pytest.mark.parametrize("tokenizer, made", [("dynamic", 4), ("recurrent", 8)])
def test_heads_and_projections(tokenizer, made):
    model, variables = build(tokenizer=tokenizer, stage_sizes=[1, 1, 1, 2])
    found, images = collected(model, variables)
    assert list(found) == ["module1", "module2"]
    first, second = found.values()
    assert first.kind == "static" and second.kind == tokenizer
    assert first.coefficients.shape == (2, 1, 8, MAP, MAP) and first.first == 0
    assert second.coefficients.shape == (2, 2, made, MAP, MAP)
    assert second.first == 8 - made
    for maps in (first, second):
        assert maps.coefficients.dtype == np.float32
        np.testing.assert_allclose(maps.coefficients.sum((3, 4)), 1, rtol=1e-4)
    # Heads look elsewhere.
    assert np.abs(np.diff(second.coefficients, axis=1)).max() > 1e-6
    # A classifier's last module writes nothing back.
    assert second.projection is None
    assert first.projection.shape == (2, 2, 8, MAP, MAP)
    np.testing.assert_allclose(first.projection.sum(2), 1, rtol=1e-4)
    means = averaged(model, variables, images)
    for module, maps in found.items():
        np.testing.assert_allclose(means[module], maps.coefficients.mean(1), rtol=1e-4)


def test_projections_are_the_attention_of_pixels():
    """softmax over tokens of (X W_Q)(T W_K)^T / sqrt(d), per head, in float64.

    Of a stage whose tokens do not interact, so that T is what the tokenizer gave:
    here of one module, whose tokens the network itself returns.
    """
    model, variables = build(
        stage_sizes=[1, 1, 1, 1], interaction="none", project_last=True
    )
    found, images = collected(model, variables)
    maps = jax.jit(lambda v, x: model.apply(v, x, features=True))(variables, images)
    x = np.asarray(maps["C4"], np.float64).reshape(2, MAP * MAP, -1)
    tokens = np.asarray(maps["tokens"], np.float64)
    module = variables["params"]["stage5"]["module1"]["projector"]
    query = grouped(x, module["query"]["kernel"])
    key = grouped(tokens, module["key"]["kernel"])
    heads, width = 2, query.shape[-1] // 2
    query = query.reshape(2, MAP * MAP, heads, width)
    key = key.reshape(2, 8, heads, width)
    logits = np.einsum("bphd,blhd->bhlp", query, key) / np.sqrt(width)
    weights = np.exp(logits - logits.max(2, keepdims=True))
    weights /= weights.sum(2, keepdims=True)
    expected = weights.reshape(2, heads, 8, MAP, MAP)
    np.testing.assert_allclose(
        found["module1"].projection, expected, rtol=2e-3, atol=1e-6
    )


def grouped(x, kernel):
    """A 1 x 1 map in float64; its kernel is (in, out), or one for each group."""
    kernel = np.asarray(kernel, np.float64)
    if kernel.ndim == 2:
        return x @ kernel
    parts = np.split(x, len(kernel), -1)
    return np.concatenate([p @ k for p, k in zip(parts, kernel, strict=True)], -1)
