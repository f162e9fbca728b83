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


@pytest.mark.parametrize("weight_decay", [0.0, 0.05])
@pytest.mark.parametrize("momentum", [0.0, 0.9])
def test_rmsprop_torch(momentum, weight_decay, torch):
    expected = run_torch(
        torch,
        lambda optim, params: optim.RMSprop(
            params, alpha=0.8, eps=1e-3, momentum=momentum, weight_decay=weight_decay
        ),
    )
    config = settings(
        name="rmsprop_torch",
        decay=0.8,
        epsilon=1e-3,
        momentum=momentum,
        weight_decay=weight_decay,
    )
    check(run(config), expected)


@pytest.mark.parametrize("weight_decay", [0.0, 0.05])
def test_adamw(weight_decay, torch):
    expected = run_torch(
        torch,
        lambda optim, params: optim.AdamW(
            params, betas=(0.8, 0.95), eps=1e-4, weight_decay=weight_decay
        ),
    )
    config = settings(
        name="adamw",
        momentum=0.8,
        decay=0.95,
        epsilon=1e-4,
        weight_decay=weight_decay,
    )
    check(run(config), expected)


@pytest.mark.parametrize("weight_decay", [0.0, 0.05])
@pytest.mark.parametrize("momentum,nesterov", [(0.0, False), (0.9, False), (0.9, True)])
def test_sgd(momentum, nesterov, weight_decay, torch):
    expected = run_torch(
        torch,
        lambda optim, params: optim.SGD(
            params, momentum=momentum, nesterov=nesterov, weight_decay=weight_decay
        ),
    )
    config = settings(
        name="sgd", momentum=momentum, nesterov=nesterov, weight_decay=weight_decay
    )
    check(run(config), expected)


@pytest.mark.parametrize("weight_decay", [0.0, 0.05])
@pytest.mark.parametrize("momentum", [0.0, 0.9])
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


def test_first_steps_by_hand():
    """Gradient 3, rate r: v = 0.9 + 0.1 x 9 = 1.8 in TensorFlow's, 0.9 in PyTorch's."""
    start, gradients = np.zeros((1, 1)), np.full((1, 1, 1), 3.0)
    rate = RATES[0]
    plain = {"weight_decay": 0.0, "decay": 0.9, "epsilon": 0.01}
    for name, expected in [
        ("rmsprop_tf", -rate * 3 / 1.81**0.5),
        ("rmsprop_torch", -rate * 3 / (0.9**0.5 + 0.01)),
        ("sgd", -rate * 3),
    ]:
        found = run(settings(name=name, **plain), start, gradients)
        assert found.item() == pytest.approx(expected, rel=1e-5)


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


@pytest.mark.parametrize("name", ["rmsprop_tf", "rmsprop_torch", "sgd"])
def test_normalization_and_biases_do_not_decay(params, name):
    """They are the vectors of the model; everything with an input axis decays."""
    config = settings(name=name, weight_decay=0.1)
    optimizer = make_optimizer(config, lambda step: 0.5)
    zeros = jax.tree.map(jnp.zeros_like, params)
    updates, _ = optimizer.update(zeros, optimizer.init(params), params)
    moved = {
        path: np.abs(update).max() > 0
        for path, update in traverse_util.flatten_dict(updates).items()
    }
    flat = traverse_util.flatten_dict(params)
    assert moved == {path: leaf.ndim > 1 for path, leaf in flat.items()}
    still = {path[-1] for path in flat if not moved[path]}
    assert still == {"scale", "bias"}
    assert ("head", "kernel") in flat and moved["head", "kernel"]
    assert not moved["head", "bias"]
    marks = traverse_util.flatten_dict(decayed(params))
    assert {path: bool(mark) for path, mark in marks.items()} == moved


@pytest.mark.parametrize("name", ["san10_pairwise", "san10_patchwise", "aa_resnet34"])
def test_biases_do_not_decay_whatever_they_are_called(name):
    model = create_model(
        name, stage_sizes=[1] * len(model_options(name)["stage_sizes"])
    )
    images = jax.ShapeDtypeStruct((1, 32, 32, 3), jnp.float32)
    params = jax.eval_shape(model.init, jax.random.key(0), images)["params"]
    marks = traverse_util.flatten_dict(decayed(params))
    ends = {path[-1] for path, mark in marks.items() if not mark}
    assert ends - {"scale"} == {path[-1] for path in marks if "bias" in path[-1]}
    assert ("map2_bias" in ends) == name.startswith("san")


def test_decay_is_of_the_parameters_size(params):
    config = settings(name="sgd", weight_decay=0.1, momentum=0.0)
    optimizer = make_optimizer(config, lambda step: 0.5)
    threes = jax.tree.map(lambda leaf: 3 * leaf, params)
    zeros = jax.tree.map(jnp.zeros_like, params)
    updates, _ = optimizer.update(zeros, optimizer.init(threes), threes)
    np.testing.assert_allclose(updates["head"]["kernel"], -0.5 * 0.1 * 3, rtol=1e-6)


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
