"""Optimizers against PyTorch's, and TensorFlow's RMSProp against its equations."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import traverse_util

from vt_flax.models import create_model, model_options
from vt_flax.training.config import default_config
from vt_flax.training.optimizer import decayed, make_optimizer

STEPS = 20
RNG = np.random.default_rng(0)
START = RNG.normal(size=(4, 3))
# Sizes that change by orders of magnitude tell the flavours apart.
GRADIENTS = RNG.normal(size=(STEPS, 4, 3)) * 10 ** RNG.uniform(-3, 1, (STEPS, 1, 1))
RATES = RNG.uniform(0.01, 0.2, STEPS)


def settings(**changes):
    config = default_config().optimizer
    config.update(changes)
    return config


def run(config, start=START, gradients=GRADIENTS, leaf="kernel"):
    """Returns a parameter after each step of ours."""
    table = jnp.asarray(RATES, jnp.float32)
    optimizer = make_optimizer(config, lambda step: table[step])
    params = {"layer": {leaf: jnp.asarray(start, jnp.float32)}}
    state = optimizer.init(params)

    @jax.jit
    def step(params, state, gradient):
        updates, state = optimizer.update({"layer": {leaf: gradient}}, state, params)
        return jax.tree.map(jnp.add, params, updates), state

    found = []
    for gradient in jnp.asarray(gradients, jnp.float32):
        params, state = step(params, state, gradient)
        found.append(np.asarray(params["layer"][leaf]))
    return np.stack(found)


def run_torch(torch, make):
    """Returns the parameter after each step of a PyTorch optimizer, in float64."""
    param = torch.nn.Parameter(torch.tensor(START))
    optimizer = make(torch.optim, [param])
    found = []
    for gradient, rate in zip(GRADIENTS, RATES, strict=True):
        optimizer.param_groups[0]["lr"] = rate
        param.grad = torch.tensor(gradient)
        optimizer.step()
        found.append(param.detach().numpy().copy())
    return np.stack(found)


def check(found, expected):
    """Every step is close, measured by how far the parameters have moved."""
    moved = np.abs(expected - START).max()
    assert moved > 0.1
    np.testing.assert_allclose(found, expected, atol=2e-5 * max(1, moved))


@pytest.mark.parametrize(
    "name, changes, theirs",
    [
        ("sgd", {"momentum": 0.0}, {"momentum": 0.0}),
        ("sgd", {"momentum": 0.9}, {"momentum": 0.9}),
        (
            "sgd",
            {"momentum": 0.9, "nesterov": True},
            {"momentum": 0.9, "nesterov": True},
        ),
        (
            "rmsprop_torch",
            {"momentum": 0.0, "decay": 0.8, "epsilon": 1e-3},
            {"alpha": 0.8, "eps": 1e-3},
        ),
        (
            "rmsprop_torch",
            {"momentum": 0.9, "decay": 0.8, "epsilon": 1e-3},
            {"momentum": 0.9, "alpha": 0.8, "eps": 1e-3},
        ),
        (
            "adamw",
            {"momentum": 0.8, "decay": 0.95, "epsilon": 1e-4},
            {"betas": (0.8, 0.95), "eps": 1e-4},
        ),
    ],
)
def test_optimizers_of_pytorch(name, changes, theirs, torch):
    kind = {"sgd": "SGD", "rmsprop_torch": "RMSprop", "adamw": "AdamW"}[name]
    expected = run_torch(
        torch,
        lambda optim, params: getattr(optim, kind)(params, weight_decay=0.05, **theirs),
    )
    check(run(settings(name=name, weight_decay=0.05, **changes)), expected)


@pytest.mark.parametrize("momentum, weight_decay", [(0.0, 0.0), (0.9, 0.05)])
def test_rmsprop_tf(momentum, weight_decay):
    """From 1, with epsilon inside the root, and the rate before the momentum."""
    param, average, velocity = START.copy(), np.ones_like(START), np.zeros_like(START)
    expected = []
    for gradient, rate in zip(GRADIENTS, RATES, strict=True):
        gradient = gradient + weight_decay * param
        average = 0.8 * average + 0.2 * gradient**2
        velocity = momentum * velocity + rate * gradient / np.sqrt(average + 1e-2)
        param = param - velocity
        expected.append(param)
    config = settings(
        name="rmsprop_tf",
        decay=0.8,
        epsilon=1e-2,
        momentum=momentum,
        weight_decay=weight_decay,
    )
    check(run(config), np.stack(expected))


# Weight decay.


@pytest.fixture(scope="module")
def params():
    """The parameters of a VT-ResNet by name and rank, each a single 1."""
    model = create_model(
        "vt_resnet18",
        stem="small",
        width=8,
        token_channels=32,
        heads=2,
        group_channels=16,
        num_classes=3,
        stage_sizes=[1, 1, 1, 2],
        norm_placement="every_map",
    )
    shapes = jax.eval_shape(
        model.init, jax.random.key(0), jnp.zeros((1, 16, 16, 3), jnp.float32)
    )
    return jax.tree.map(lambda leaf: jnp.ones((1,) * leaf.ndim), shapes["params"])


def test_normalization_and_biases_do_not_decay(params):
    """They are the vectors of the model; everything with an input axis decays."""
    config = settings(name="sgd", weight_decay=0.1, momentum=0.0)
    optimizer = make_optimizer(config, lambda step: 0.5)
    zeros = jax.tree.map(jnp.zeros_like, params)
    updates, _ = optimizer.update(zeros, optimizer.init(params), params)
    flat = traverse_util.flatten_dict(params)
    assert {path[-1] for path in flat} == {"scale", "bias", "kernel"}
    for path, update in traverse_util.flatten_dict(updates).items():
        expected = -0.5 * 0.1 if flat[path].ndim > 1 else 0.0
        np.testing.assert_allclose(update, expected, rtol=1e-6, err_msg=str(path))


def test_a_bias_does_not_decay_whatever_its_name():
    name = "san10_pairwise"
    model = create_model(
        name, stage_sizes=[1] * len(model_options(name)["stage_sizes"])
    )
    images = jax.ShapeDtypeStruct((1, 32, 32, 3), jnp.float32)
    params = jax.eval_shape(model.init, jax.random.key(0), images)["params"]
    marks = traverse_util.flatten_dict(decayed(params))
    ends = {path[-1] for path, mark in marks.items() if not mark}
    assert "map2_bias" in ends
    assert ends - {"scale"} == {path[-1] for path in marks if "bias" in path[-1]}


# Clipping.


@pytest.mark.parametrize("clip,scale", [(2.5, 0.5), (10.0, 1.0), (0.0, 1.0)])
def test_clipping_bounds_the_norm_of_the_whole_gradient(clip, scale):
    """Two leaves of norms 3 and 4 make one of 5."""
    config = settings(name="sgd", momentum=0.0, weight_decay=0.0, clip_norm=clip)
    optimizer = make_optimizer(config, lambda step: 1.0)
    gradient = {"a": {"kernel": jnp.array([3.0, 0])}, "b": {"bias": jnp.array([4.0])}}
    params = jax.tree.map(jnp.zeros_like, gradient)
    updates, _ = optimizer.update(gradient, optimizer.init(params), params)
    np.testing.assert_allclose(updates["a"]["kernel"], [-3 * scale, 0], rtol=1e-6)
    np.testing.assert_allclose(updates["b"]["bias"], [-4 * scale], rtol=1e-6)
