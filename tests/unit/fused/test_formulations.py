"""The folded and fused formulations against the printed one, which NumPy checks."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from reference import normal, randomize

from vt_flax.fused import FORMULATIONS, VT_PARTS, platforms
from vt_flax.models.resnet import ResNet
from vt_flax.models.vt_fpn import VTFPN
from vt_flax.nn.layers import VTLayers
from vt_flax.nn.visual_transformer import VTOptions, VTStage
from vt_flax.parallel.mesh import batch_sharding, make_mesh

pytestmark = pytest.mark.slow

# Of the relative error: a few hundred roundings of float32.
TOLERANCE = 5e-5


def variables_of(modules, *inputs):
    """Random variables of modules, which all have the same tree of them."""
    shapes, *others = (
        jax.eval_shape(
            lambda *inputs, m=m: m.init(jax.random.key(0), *inputs, train=False),
            *inputs,
        )
        for m in modules
    )
    assert all(other == shapes for other in others)
    return {"batch_stats": {}} | randomize(shapes, 1)


def outcome(module, variables, inputs, **call):
    """Results, new statistics, and gradients by parameters and inputs, in training.

    In evaluation a network computes what it does with frozen BatchNorms.
    """
    options = {"mutable": ["batch_stats"], "rngs": {"dropout": jax.random.key(3)}}

    def loss(params, inputs):
        out, new = module.apply(
            variables | {"params": params}, *inputs, train=True, **options, **call
        )
        flat = jnp.concatenate([leaf.ravel() for leaf in jax.tree.leaves(out)])
        return jnp.dot(flat, normal(2, flat.size)) / flat.size**0.5, (out, new)

    gradients = jax.grad(loss, argnums=(0, 1), has_aux=True)
    by, (out, new) = gradients(variables["params"], inputs)
    return {"results": out, "statistics": new, "gradients": by}


def run(modules, inputs, **call):
    """The outcome of each module on the same variables, by one program."""
    compute = jax.jit(lambda *given: [outcome(m, *given, **call) for m in modules])
    return compute(variables_of(modules, *inputs), inputs)


def assert_equal(found, expected):
    """Compares trees by the norm of each array.

    Small gradients, such as those of attention's keys, are differences of large
    numbers: arrays under a hundredth of the largest are compared on that scale.
    """
    for name, tree in expected.items():
        largest = max(map(np.linalg.norm, jax.tree.leaves(tree)), default=0)
        assert jax.tree.structure(found[name]) == jax.tree.structure(tree)
        flat = jax.tree_util.tree_leaves_with_path(tree)
        for (path, value), ours in zip(flat, jax.tree.leaves(found[name]), strict=True):
            error = np.linalg.norm(ours - value)
            scale = np.linalg.norm(value) + 1e-2 * largest
            assert error < TOLERANCE * scale, (name, path)


def compare(modules, *inputs, **call):
    printed, *others = run(modules, inputs, **call)
    for other in others:
        assert_equal(other, printed)


# ------------------------------------------------------------------------- one stage

OPTIONS = {"token_channels": 32, "heads": 4, "group_channels": 32}
RECURRENT = {"tokenizer": "recurrent", "position_encoding": False, "tokens": 4}


def stages(modules, project_last, settings, features=128, **options):
    """A stage in each formulation."""
    make = functools.partial(
        VTStage, VTOptions(**OPTIONS | options), modules, features, project_last
    )
    survival, layers = (0.9, 0.8, 0.7)[:modules], VTLayers(**settings)
    return [make(survival, layers, VT_PARTS[f]) for f in FORMULATIONS]


@pytest.mark.parametrize(
    "project_last, settings, options",
    [
        (False, {}, {}),
        # More heads than groups, with statistics of groups of examples.
        (True, {"bn_group_size": 4}, RECURRENT),
    ],
)
def test_stage(project_last, settings, options):
    modules = stages(2, project_last, settings, **options)
    compare(modules, normal(0, 8, 5, 7, 64))


def test_all_formulations_sow_the_printed_maps():
    x, modules = normal(0, 2, 4, 5, 64), stages(2, True, {})
    apply = jax.jit(
        lambda v: [
            m.apply(v, x, train=False, mutable=["intermediates"])[1] for m in modules
        ]
    )
    printed, *others = apply(variables_of(modules, x))
    assert len(jax.tree.leaves(printed)) == 4
    for other in others:
        assert_equal(other, printed)


def test_eight_devices_equal_one(monkeypatch):
    """CPUs run no kernel, but the code around it."""
    monkeypatch.setattr(platforms, "for_tpus", lambda: True)
    mesh = make_mesh()
    assert mesh.size == 8
    modules = [VT_PARTS["fused"].projector(128, 4, 4)]
    inputs = normal(0, 16, 4, 4, 128), normal(1, 16, 8, 32)
    (expected,) = run(modules, inputs)
    with jax.sharding.use_abstract_mesh(mesh.abstract_mesh):
        (found,) = run(modules, jax.device_put(inputs, batch_sharding(mesh)))
    assert_equal(jax.device_get(found), jax.device_get(expected))


# --------------------------------------------------------------------- whole networks

SETTINGS = {"num_classes": 5, "width": 8, "survival_probability": 0.6, "stem": "small"}
VT_OF_LEVELS = VTOptions(
    tokens=4, tokenizer="static", position_encoding=False, **OPTIONS
)


def test_resnet():
    options = SETTINGS | {"variant": "msra", "bn_group_size": 2}
    model = ResNet((1, 1, 1, 1), True, **options)
    networks = [model.clone(formulation=f) for f in ("printed", "fused")]
    compare(networks, normal(0, 4, 16, 16, 3))


def test_pyramid():
    """Its maps; that gradients are equal is tested of the stages."""
    options = SETTINGS | {"fpn_channels": 32, "vt": VT_OF_LEVELS}
    model, images = VTFPN((1, 1, 1, 1), False, **options), normal(0, 2, 16, 16, 3)
    networks = [model.clone(formulation=f) for f in ("printed", "fused")]
    apply = jax.jit(lambda v: [m.apply(v, images, features=True) for m in networks])
    printed, fused = apply(variables_of(networks, images))
    assert_equal({"maps": fused}, {"maps": printed})
