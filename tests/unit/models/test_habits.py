"""What people do with Flax modules: tables, 64 bits, forward mode, any batch size."""

import dataclasses
import pickle
import warnings

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import export
from reference import normal, randomize

from vt_flax.errors import UserError
from vt_flax.fused.norms import GramNorm
from vt_flax.fused.parameters import ConvKernel
from vt_flax.models import create_model, list_models, model_options, model_task
from vt_flax.models.registry import MODELS

pytestmark = pytest.mark.slow

IMAGES = jax.ShapeDtypeStruct((2, 32, 32, 3), jnp.float32)
# The first network of every class.
NAMES = {entry.module: name for name, entry in reversed(MODELS.items())}.values()


def small(name, **options):
    """A model of one block a stage."""
    sizes = [1] * len(model_options(name)["stage_sizes"])
    sizes[-1] += "vt_resnet" in name
    return create_model(name, num_classes=7, stage_sizes=sizes, **options)


def variables_of(model):
    """The shapes of a model's variables."""
    return jax.eval_shape(model.init, jax.random.key(0), IMAGES)


@pytest.mark.parametrize("name", ["vt_resnet18", "vt_fpn_resnet18", "san10_pairwise"])
def test_tables(name):
    model = small(name)

    class Outer(nn.Module):
        @nn.compact
        def __call__(self, x):
            return model.copy(name="inner")(x)

    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        table = Outer().tabulate(jax.random.key(0), jnp.zeros(IMAGES.shape), depth=2)
    # Of calls with arguments that are no arrays, such as functions.
    assert not [w for w in caught if "shape requires ndarray" in str(w.message)]
    total = sum(leaf.size for leaf in jax.tree.leaves(variables_of(model)))
    assert f"Total Parameters: {total:,} " in table


@pytest.mark.parametrize("name", NAMES)
def test_64_bits_forward_mode_and_no_examples(name):
    model = small(name)
    with jax.enable_x64(True):
        logits, variables = jax.eval_shape(
            lambda images: model.init_with_output(jax.random.key(0), images[:0]), IMAGES
        )

        def loss(params, variables, images):
            logits, _ = model.apply(
                {**variables, "params": params},
                images,
                train=True,
                mutable=["batch_stats"],
            )
            return jnp.sum(jnp.square(logits))

        def tangent(variables, images):
            params = variables["params"]
            return jax.jvp(lambda p: loss(p, variables, images), (params,), (params,))

        program = jax.make_jaxpr(tangent)(variables, IMAGES)
    leaves = [logits, *program.out_avals, *jax.tree.leaves(variables)]
    assert {leaf.dtype for leaf in leaves} == {jnp.dtype(jnp.float32)}
    segments = model_task(name) == "segmentation"
    assert logits.shape == ((0, 8, 8, 7) if segments else (0, 7))
    # A rule for reverse mode alone would stay there, and fail when it is compiled.
    assert "custom_lin" not in str(program)


@pytest.mark.parametrize(
    "name, options",
    [
        ("vt_resnet18", {"preset": "v4", "formulation": "folded"}),
        ("vt_fpn_resnet18", {"formulation": "printed"}),
        ("aa_resnet50", {}),
        ("san10_pairwise", {}),
        ("san10_patchwise", {}),
    ],
)
def test_programs_for_a_batch_of_any_size(name, options):
    model = small(name, **options)
    shape = export.symbolic_shape("batch, 32, 32, 3")
    images = jax.ShapeDtypeStruct(shape, jnp.float32)
    found = jax.eval_shape(model.apply, variables_of(model), images)
    assert str(found.shape[0]) == "batch" and found.shape[-1] == 7


class Widening(nn.Module):
    """A 1 x 1 convolution of many outputs, as fused residual blocks have it."""

    @nn.compact
    def __call__(self, x):
        kernel = ConvKernel(32, 1, name="conv")(x.shape[-1])
        return GramNorm(name="norm")(x, kernel, train=True)


def test_second_derivatives_of_a_custom_rule():
    """Beside differences of gradients."""
    module, x = Widening(), jnp.asarray(normal(0, 6, 4, 4, 16))
    shapes = jax.eval_shape(module.init, jax.random.key(0), x)
    variables, along = randomize(shapes, 1), randomize(shapes, 2)["params"]

    def loss(params):
        out, _ = module.apply(
            {**variables, "params": params}, x, mutable=["batch_stats"]
        )
        return jnp.sum(normal(3, *out.shape) * jnp.square(out))

    @jax.jit
    def run(params):
        return jax.jvp(jax.grad(loss), (params,), (along,))

    def flat(tree):
        return np.concatenate([np.ravel(leaf) for leaf in jax.tree.leaves(tree)])

    def gradient_at(step):
        moved = jax.tree.map(lambda p, d: p + step * d, variables["params"], along)
        return np.float64(flat(run(moved)[0]))

    expected = (gradient_at(1e-3) - gradient_at(-1e-3)) / 2e-3
    found = flat(run(variables["params"])[1])
    assert np.linalg.norm(found - expected) < 2e-3 * np.linalg.norm(expected)


def test_rematerialized_modules():
    """Training by position, which the lift is told not to trace."""
    model = small("vt_resnet18", width=8, token_channels=32, stem="small")
    fields = {
        field.name: getattr(model, field.name)
        for field in dataclasses.fields(model)
        if field.name not in ("parent", "name")
    }
    lifted = nn.remat(type(model), static_argnums=(2,))(**fields)
    variables = variables_of(model)

    def gradients(module):
        def loss(params, batch_stats, images):
            variables = {"params": params, "batch_stats": batch_stats}
            logits, _ = module.apply(variables, images, True, mutable=["batch_stats"])
            return jnp.sum(logits)

        arguments = variables["params"], variables["batch_stats"], IMAGES
        return jax.eval_shape(jax.grad(loss), *arguments)

    assert gradients(lifted) == gradients(model)


def test_models_are_pickled():
    for name in list_models():
        model = create_model(name, dtype="bfloat16")
        assert pickle.loads(pickle.dumps(model)) == model.clone() == model


def test_no_examples_in_training():
    model = small("resnet18")
    with pytest.raises(UserError, match="an empty batch has no statistics: set"):
        jax.eval_shape(
            lambda v, x: model.apply(v, x[:0], train=True, mutable=["batch_stats"]),
            variables_of(model),
            IMAGES,
        )
