"""What people do with Flax modules: tables, 64 bits, forward mode, no examples."""

import dataclasses
import functools
import pickle
import warnings

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from reference import normal, randomize

from vt_flax.errors import UserError
from vt_flax.fused import VT_PARTS
from vt_flax.fused.norms import GramNorm
from vt_flax.fused.parameters import ConvKernel
from vt_flax.models import create_model, list_models, model_options, model_task
from vt_flax.nn.visual_transformer import VTOptions, VTStage

pytestmark = pytest.mark.slow

IMAGES = jax.ShapeDtypeStruct((2, 32, 32, 3), jnp.float32)
TINY = {"width": 8, "token_channels": 32, "group_channels": 16, "stem": "small"}


def small(name, **options):
    """A model of one block a stage, so that many names are of one network."""
    sizes = [1] * len(model_options(name)["stage_sizes"])
    sizes[-1] += "vt_resnet" in name
    return create_model(name, num_classes=7, stage_sizes=sizes, **options)


def loss_of(model, variables, images, seed=1):
    """The loss in training as a function of the parameters."""

    def loss(params):
        logits, _ = model.apply(
            {**variables, "params": params},
            images,
            train=True,
            mutable=["batch_stats"],
            rngs={"dropout": jax.random.key(seed)},
        )
        return jnp.sum(jnp.square(logits))

    return loss


@functools.cache
def abstract(model):
    """Traces a model as people use it; nothing is computed.

    Returns the table of the model inside another one; and with 64 bits enabled its
    variables, the logits of no examples, loss and tangent in training, and whether the
    program of these two is complete.
    """

    class Outer(nn.Module):
        @nn.compact
        def __call__(self, x):
            return model.copy(name="inner")(x)

    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        table = Outer().tabulate(jax.random.key(0), jnp.zeros(IMAGES.shape), depth=2)
    # Of calls with arguments that are no arrays, such as functions.
    assert not [w for w in caught if "shape requires ndarray" in str(w.message)]
    with jax.enable_x64(True):
        logits, variables = jax.eval_shape(
            lambda images: model.init_with_output(jax.random.key(0), images[:0]), IMAGES
        )

        def tangent(variables, images):
            loss = loss_of(model, variables, images)
            params = variables["params"]
            return jax.jvp(loss, (params,), (params,))

        found = jax.make_jaxpr(tangent)(variables, IMAGES)
    # A rule for reverse mode alone would stay there, and fail when it is compiled.
    forward = "custom_lin" not in str(found)
    return table, variables, [logits, *found.out_avals], forward


@pytest.mark.parametrize("name", list_models())
def test_every_model(name):
    table, variables, results, forward = abstract(small(name))
    total = sum(leaf.size for leaf in jax.tree.leaves(variables))
    assert f"Total Parameters: {total:,} " in table
    dtypes = {leaf.dtype for leaf in jax.tree.leaves(variables)}
    assert dtypes == {jnp.dtype(jnp.float32)}
    segments = model_task(name) == "segmentation"
    assert results[0].shape == ((0, 8, 8, 7) if segments else (0, 7))
    assert {result.dtype for result in results} == dtypes
    assert forward


class Widening(nn.Module):
    """A 1 x 1 convolution of many outputs, as residual blocks have it."""

    @nn.compact
    def __call__(self, x, train):
        kernel = ConvKernel(32, 1, name="conv")(x.shape[-1])
        return GramNorm(name="norm")(x, kernel, train=train)


SMOOTH = {
    "tokens": VTStage(
        VTOptions(tokens=4, token_channels=32, heads=4, group_channels=8),
        2,
        16,
        parts=VT_PARTS["fused"],
    ),
    "widening": Widening(),
}


@pytest.mark.parametrize("name", list(SMOOTH))
def test_second_derivatives(name):
    """Beside differences of gradients in float64; of parts without a ReLU's kinks."""
    module, x = SMOOTH[name], jnp.asarray(normal(0, 6, 4, 4, 16))
    made = functools.partial(module.init, jax.random.key(0), train=False)
    shapes = jax.eval_shape(made, x)
    variables, along = randomize(shapes, 1), randomize(shapes, 2)["params"]
    params = variables["params"]

    def loss(params):
        found, _ = module.apply(
            {**variables, "params": params}, x, train=True, mutable=["batch_stats"]
        )
        weights = [normal(3, *leaf.shape) for leaf in jax.tree.leaves(found)]
        pairs = zip(weights, jax.tree.leaves(found), strict=True)
        return sum(jnp.sum(weight * jnp.square(leaf)) for weight, leaf in pairs)

    gradient = jax.jit(jax.grad(loss))
    _, found = jax.jit(lambda p, d: jax.jvp(gradient, (p,), (d,)))(params, along)

    def at(step):
        moved = jax.tree.map(lambda p, d: np.float32(p + step * d), params, along)
        return jax.tree.map(np.float64, gradient(moved))

    step = 1e-3
    expected = jax.tree.map(lambda a, b: (a - b) / (2 * step), at(step), at(-step))
    found, expected = (
        np.concatenate([np.ravel(leaf) for leaf in jax.tree.leaves(tree)])
        for tree in (found, expected)
    )
    assert np.linalg.norm(found - expected) < 2e-3 * np.linalg.norm(expected)


@pytest.mark.parametrize("lift", [nn.remat, nn.jit])
def test_lifted_modules(lift):
    """Training by position, which the lift is told not to trace."""
    model = small("vt_resnet18", **TINY)
    fields = {
        field.name: getattr(model, field.name)
        for field in dataclasses.fields(model)
        if field.name not in ("parent", "name")
    }
    lifted = lift(type(model), static_argnums=(2,))(**fields)
    variables = jax.eval_shape(model.init, jax.random.key(0), IMAGES)
    arguments = variables["params"], variables["batch_stats"], IMAGES

    def gradients(module):
        def loss(params, batch_stats, images):
            variables = {"params": params, "batch_stats": batch_stats}
            logits, _ = module.apply(variables, images, True, mutable=["batch_stats"])
            return jnp.sum(logits)

        return jax.eval_shape(jax.grad(loss), *arguments)

    assert gradients(lifted) == gradients(model)


def test_models_are_pickled():
    for name in list_models():
        model = create_model(name, dtype="bfloat16")
        assert pickle.loads(pickle.dumps(model)) == model.clone() == model


def test_no_examples_in_training():
    model = small("resnet18")
    variables = jax.eval_shape(model.init, jax.random.key(0), IMAGES)
    with pytest.raises(UserError, match="an empty batch has no statistics: set"):
        jax.eval_shape(
            lambda v, x: model.apply(v, x[:0], train=True, mutable=["batch_stats"]),
            variables,
            IMAGES,
        )
