"""Attention maps of tokenizers and projectors, against their equations in float64."""

import functools

import jax
import numpy as np
import pytest
from tiny_networks import FPN, MAP, RESNET, SIDE, build

from vt_flax.inference import token_maps
from vt_flax.inference.token_maps import module_coefficients, tokenizer_kinds
from vt_flax.models import create_model

pytestmark = pytest.mark.slow

IMAGES = np.random.default_rng(1).normal(size=(2, SIDE, SIDE, 3)).astype(np.float32)


def collect(model, variables):
    """Returns the maps by module, as `Predictor.attention` does."""
    sown = jax.jit(lambda v, x: token_maps.sown_maps(model, v, x))(variables, IMAGES)
    return token_maps.by_module(sown, tokenizer_kinds(model))


def softmax(logits, axis):
    weights = np.exp(logits - logits.max(axis, keepdims=True))
    return weights / weights.sum(axis, keepdims=True)


def grouped(x, kernel):
    """A 1 x 1 map in float64; its kernel is (in, out), or one for each group."""
    kernel = np.asarray(kernel, np.float64)
    if kernel.ndim == 2:
        return x @ kernel
    parts = np.split(x, len(kernel), -1)
    return np.concatenate([p @ k for p, k in zip(parts, kernel, strict=True)], -1)


@pytest.mark.parametrize(
    "options, kinds",
    [
        (
            {"first_tokenizer": "clustering", "tokenizer": "pooling"},
            ["clustering", "pooling", "pooling"],
        ),
        ({"projector": False}, ["static"]),
    ],
)
def test_kinds(options, kinds):
    """They have the names of the modules, and those with maps have coefficients."""
    model, variables = build(stage_sizes=[1, 1, 1, 3], **options)
    found = collect(model, variables)
    names = ["stage"] if len(kinds) == 1 else ["module1", "module2", "module3"]
    assert {name: maps.kind for name, maps in found.items()} == dict(
        zip(names, kinds, strict=True)
    )
    for maps in found.values():
        assert (maps.coefficients is None) == (maps.kind == "pooling")


def test_kinds_of_other_networks():
    levels = ["level2", "level3", "level4", "level5"]
    pyramid = create_model("vt_fpn_resnet18", **FPN)
    assert tokenizer_kinds(pyramid) == dict.fromkeys(levels, "static")
    assert tokenizer_kinds(create_model("resnet18", **RESNET)) == {}


@pytest.mark.parametrize("formulation", ["printed", "fused"])
def test_heads_and_tokens(formulation):
    """Half replacement extracts half of the tokens by each head."""
    options = {"tokenizer": "dynamic", "stage_sizes": [1, 1, 1, 2]}
    model, variables = build(**options, formulation=formulation)
    found = collect(model, variables)
    kinds = {name: maps.kind for name, maps in found.items()}
    assert kinds == {"module1": "static", "module2": "dynamic"}
    first, second = found.values()
    assert first.coefficients.shape == (2, 1, 8, MAP, MAP) and first.first == 0
    assert second.coefficients.shape == (2, 2, 4, MAP, MAP) and second.first == 4
    for maps in (first, second):
        assert maps.coefficients.dtype == np.float32
        np.testing.assert_allclose(maps.coefficients.sum((3, 4)), 1, rtol=1e-4)
        # They depend on the image, and differ between tokens.
        assert np.abs(np.diff(maps.coefficients, axis=0)).max() > 1e-6
        assert np.abs(np.diff(maps.coefficients, axis=2)).max() > 1e-6
    assert np.abs(np.diff(second.coefficients, axis=1)).max() > 1e-6
    # A classifier's last module writes nothing back.
    assert second.projection is None
    step = jax.jit(functools.partial(module_coefficients, model))(variables, IMAGES)
    for name, maps in found.items():
        np.testing.assert_allclose(step[name], maps.coefficients, rtol=1e-4)


def test_maps_equal_their_equations():
    """Filters are softmax over pixels of X W_A / sqrt(C).

    Projections are softmax over tokens of (X W_Q)(T W_K)^T / sqrt(d), per head: of a
    module whose tokens do not interact, so that T is what the tokenizer returned, and
    the network too.
    """
    model, variables = build(
        stage_sizes=[1, 1, 1, 1], interaction="none", project_last=True
    )
    found = collect(model, variables)["module1"]
    maps = jax.jit(lambda v, x: model.apply(v, x, features=True))(variables, IMAGES)
    x = np.asarray(maps["C4"], np.float64).reshape(2, MAP * MAP, -1)
    module = variables["params"]["stage5"]["module1"]

    filters = grouped(x, module["tokenizer"]["filter"]["kernel"])
    expected = softmax(filters / np.sqrt(x.shape[-1]), 1).transpose(0, 2, 1)
    np.testing.assert_allclose(
        found.coefficients[:, 0], expected.reshape(2, 8, MAP, MAP), rtol=1e-3, atol=1e-6
    )

    tokens = np.asarray(maps["tokens"], np.float64)
    query = grouped(x, module["projector"]["query"]["kernel"])
    key = grouped(tokens, module["projector"]["key"]["kernel"])
    heads, width = 2, query.shape[-1] // 2
    query = query.reshape(2, MAP * MAP, heads, width)
    key = key.reshape(2, 8, heads, width)
    logits = np.einsum("bphd,blhd->bhlp", query, key) / np.sqrt(width)
    expected = softmax(logits, 2).reshape(2, heads, 8, MAP, MAP)
    np.testing.assert_allclose(found.projection, expected, rtol=2e-3, atol=1e-6)
