"""The fused formulation against the printed one, which is checked against NumPy."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from reference import normal, randomise

from vt_flax.fused import platforms
from vt_flax.fused.lazy_map import LazyMap
from vt_flax.models import create_model
from vt_flax.nn.norm import Normalization
from vt_flax.nn.projector import Projector
from vt_flax.nn.tokenizers import DynamicTokenizer, StaticTokenizer
from vt_flax.nn.visual_transformer import VTOptions, VTStage
from vt_flax.parallel.mesh import batch_sharding, make_mesh

pytestmark = pytest.mark.slow

NORM = Normalization()
TOKENS = VTOptions(tokens=8, token_channels=64, heads=4, group_channels=32)


def pairs(found, expected, tolerance=2e-5):
    """Compares trees, each array on its own scale."""
    flat, others = (jax.tree_util.tree_leaves_with_path(t) for t in (found, expected))
    assert [path for path, _ in flat] == [path for path, _ in others]
    for (path, ours), (_, value) in zip(flat, others, strict=True):
        scale = max(np.abs(value).max(), 1e-3)
        np.testing.assert_allclose(
            ours, value, rtol=0, atol=tolerance * scale, err_msg=str(path)
        )


def run(module, inputs, train):
    """Value, new statistics, and gradients of parameters and inputs."""
    shapes = jax.eval_shape(
        lambda *inputs: module.init(jax.random.key(0), *inputs, train=False), *inputs
    )
    variables = randomise(shapes, 1)
    variables.setdefault("batch_stats", {})

    def total(params, inputs):
        out, new = module.apply(
            {**variables, "params": params},
            *inputs,
            train=train,
            mutable=["batch_stats"],
            rngs={"dropout": jax.random.key(3)},
        )
        flat = jnp.concatenate([leaf.ravel() for leaf in jax.tree.leaves(out)])
        weights = jnp.asarray(normal(2, flat.size))
        return jnp.sum(flat * weights) / flat.size**0.5, (out, new)

    compute = jax.value_and_grad(total, argnums=(0, 1), has_aux=True)
    (_, found), gradients = jax.jit(compute)(variables["params"], inputs)
    return found, gradients


def compare(module, *inputs, train=True, tolerance=2e-5):
    fused, printed = (
        run(dataclasses.replace(module, formulation=f), inputs, train)
        for f in ("fused", "printed")
    )
    pairs(fused, printed, tolerance)


X, MANY = normal(0, 4, 5, 7, 64), normal(1, 4, 8, 32)
LAZY = LazyMap(jnp.asarray(X), 1 + 0.3 * jnp.asarray(normal(4, 1, 2, 64)))


@pytest.mark.parametrize("groups", [0, 4])
@pytest.mark.parametrize("position", [False, True])
def test_static(groups, position):
    tokenizer = StaticTokenizer(8, 32, groups, position)
    compare(tokenizer, X)
    compare(tokenizer, LAZY, None)


@pytest.mark.parametrize(
    "heads, groups, replace, position",
    [
        (4, 2, "half", True),
        (2, 8, "all", False),
        (4, 4, "half", False),
        (4, 1, "all", True),
    ],
)
def test_dynamic(heads, groups, replace, position):
    compare(DynamicTokenizer(32, replace, heads, groups, position), X, MANY)


@pytest.mark.parametrize(
    "features, heads, groups, norm",
    [
        (64, 4, 2, NORM),
        (96, 2, 4, NORM),
        (64, 4, 4, Normalization(span="2")),
        (64, 4, 1, Normalization(span="frozen")),
        (32, 4, 4, Normalization("none")),
        (32, 4, 4, Normalization("every_map")),
    ],
)
def test_projector(features, heads, groups, norm):
    projector = Projector(features, heads, groups, 0.7, norm=norm)
    compare(projector, X, MANY)
    compare(projector, LAZY, MANY)
    compare(projector, LAZY, MANY, train=False)


@pytest.mark.parametrize(
    "project_last, change",
    [
        (False, {}),
        (
            True,
            {"tokenizer": "recurrent", "position_encoding": False, "tokens": 4},
        ),
        (False, {"first_tokenizer": "clustering", "tokenizer": "static"}),
        (True, {"norm": Normalization(span="4"), "tokenizer": "static"}),
    ],
)
def test_stage(project_last, change):
    """Maps go from module to module before they are normalised."""
    fused, printed = (
        run(
            VTStage(
                dataclasses.replace(TOKENS, formulation=f, **change),
                3,
                128,
                project_last,
                (0.9, 0.8, 0.7),
            ),
            (normal(0, 16, 5, 7, 64),),
            True,
        )
        for f in ("fused", "printed")
    )
    # Biases before a normalisation have no gradient, but for rounding.
    norms = [np.linalg.norm(leaf) for leaf in jax.tree.leaves(printed)]
    for (path, ours), value in zip(
        jax.tree_util.tree_leaves_with_path(fused),
        jax.tree.leaves(printed),
        strict=True,
    ):
        assert np.linalg.norm(ours - value) < 2e-5 * (
            np.linalg.norm(value) + 1e-3 * max(norms)
        ), path


def test_sown_maps_are_those_of_the_printed_form():
    options = {
        "width": 8,
        "token_channels": 32,
        "group_channels": 16,
        "stem": "small",
    }
    images = normal(0, 2, 16, 16, 3)
    sown = []
    for formulation in ("fused", "printed"):
        model = create_model("vt_resnet18", formulation=formulation, **options)
        variables = randomise(
            jax.eval_shape(lambda x, m=model: m.init(jax.random.key(0), x), images), 1
        )
        apply = jax.jit(
            lambda v, x, m=model: m.apply(v, x, mutable=["intermediates"])[1]
        )
        sown.append(apply(variables, images))
    assert jax.tree.leaves(sown[0])
    pairs(*sown)


def test_eight_devices_and_the_shapes_that_kernels_take(monkeypatch):
    """On CPUs no kernel runs, but what is around it does."""
    monkeypatch.setattr(platforms, "for_tpus", lambda: True)
    mesh = make_mesh()
    assert mesh.size == 8
    module = Projector(128, 4, 4, formulation="fused")
    inputs = normal(0, 16, 4, 4, 128), normal(1, 16, 8, 32)
    expected = run(module, inputs, True)
    spread = jax.device_put(inputs, batch_sharding(mesh))
    with jax.sharding.use_abstract_mesh(mesh.abstract_mesh):
        found = run(module, spread, True)
    pairs(found, expected)
