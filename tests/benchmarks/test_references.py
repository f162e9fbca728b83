"""The plain ResNets that steps are measured against compute what they should.

Their training steps give the parameters that ours do, from the same weights and images.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import traverse_util
from flax_resnet import FlaxResNet, FlaxResNetStep, plain_optimizer
from ml_collections import ConfigDict

from vt_flax.models import create_model
from vt_flax.models.resnet import STAGE_SIZES
from vt_flax.paper.macs import count
from vt_flax.parallel.mesh import make_mesh
from vt_flax.plan.step import MeshStep, Step
from vt_flax.training.config import resolve
from vt_flax.training.optimizer import make_optimizer
from vt_flax.training.state import TrainState
from vt_flax.weights.names import place_of

# torchvision's own counts.
PARAMETERS = {18: 11_689_512, 50: 25_557_032}


def tiny(depth: int, **optimizer) -> ConfigDict:
    """A configuration of SGD without momentum and augmentation, with EMA."""
    return resolve(
        ConfigDict(
            {
                "model": {
                    "name": f"resnet{depth}",
                    "stage_sizes": [1, 1, 1, 1],
                    "width": 8,
                    "num_classes": 10,
                    "stem": "small",
                },
                "data": {"image_size": 33, "flip": False},
                "optimizer": {"name": "sgd", "momentum": 0.0, "weight_decay": 0.1}
                | optimizer,
                "ema": {"decay": 0.75, "ramp": False},
            }
        )
    )


@pytest.mark.parametrize("depth", PARAMETERS)
def test_flax_resnet_has_torchvisions_parameters(depth):
    model = FlaxResNet(STAGE_SIZES[depth], depth >= 50, 1000)
    counts = count(model)
    assert counts.total_params == PARAMETERS[depth]
    assert counts.total_macs == count(create_model(f"resnet{depth}")).total_macs


def ours_to_flax(config: ConfigDict, tree: dict) -> dict:
    """Gives a tree of ours the names that Flax gives in the order of making."""
    blocks = [
        f"stage{i}/block{j + 1}"
        for i, size in enumerate(config.model.stage_sizes, 2)
        for j in range(size)
    ]
    flat = traverse_util.flatten_dict(tree, sep="/")
    convolutions, norms = ["stem/conv"], ["stem/norm"]
    for block in blocks:
        places = [f"{block}/conv{k}" for k in (1, 2, 3)]
        convolutions += [*places, f"{block}/shortcut"]
        norms += [f"{block}/norm{k}" for k in (1, 2, 3)] + [f"{block}/shortcut_norm"]
    names = {"head": "Dense_0"}
    for kind, places in (("Conv", convolutions), ("BatchNorm", norms)):
        there = [p for p in places if any(key.startswith(f"{p}/") for key in flat)]
        names |= {place: f"{kind}_{i}" for i, place in enumerate(there)}
    found = {}
    for key, value in flat.items():
        place, _, leaf = key.rpartition("/")
        found[names[place], leaf] = value
    return traverse_util.unflatten_dict(found)


def assert_close(found, expected, atol):
    found, expected = (traverse_util.flatten_dict(x) for x in (found, expected))
    assert expected
    assert found.keys() == expected.keys()
    for key, value in expected.items():
        message = str(key)
        np.testing.assert_allclose(found[key], value, atol=atol, err_msg=message)


PARTS = ("params", "batch_stats", "ema_params", "ema_batch_stats")


@pytest.fixture(scope="module")
def ours():
    """Our configuration and step, started, and the state that it starts from here."""
    config = tiny(18)
    step = Step(config, make_mesh(jax.devices()[:1]), 4)
    step.start()
    state = jax.device_get(step.state)
    # A head that tells classes apart, for gradients of some size.
    params = dict(state.params, head=dict(state.params["head"]))
    params["head"]["kernel"] = np.random.default_rng(0).normal(size=(64, 10))
    return config, step, state.replace(params=params)


def assert_updated_alike(found, expected, before):
    """Compares parameters after a step; all have moved, by far more than may differ."""
    # In NumPy: JAX would compile a difference for each shape.
    expected = jax.device_get(expected)
    assert_close(found, expected, 4e-7)
    moved = jax.tree.map(lambda a, b: np.abs(a - b).max(), before, expected)
    assert min(jax.tree.leaves(moved)) > 3e-6


def give(step: MeshStep, state: Any) -> None:
    """Puts a state where a step's own lies, for which it is compiled."""
    places = jax.tree.map(lambda x: x.sharding, step.state)
    step.state = jax.device_put(state, places)


@pytest.mark.slow
def test_flax_step_is_ours(ours):
    """Where maps have odd sides SAME pads both alike; elsewhere not (see `layers.pad`).

    The sides here: 33, 17, 9, 5.
    """
    config, step, state = ours
    its = FlaxResNetStep(config, make_mesh(jax.devices()[:1]), 4)
    its.start()

    def renamed(state: TrainState) -> dict:
        return {part: ours_to_flax(config, getattr(state, part)) for part in PARTS}

    start = renamed(state)
    give(step, state)
    # Where momentum is none, the optimizer keeps nothing.
    give(its, its.state.replace(**start))
    metrics, expected = its.advance(its._images), step.advance(step._images)
    np.testing.assert_allclose(metrics["loss"], expected["loss"], rtol=1e-5)
    assert float(metrics["top1"]) == float(expected["top1"])
    after = renamed(step.state)
    assert_updated_alike(its.state.params, after["params"], start["params"])
    for part in PARTS[1:]:
        assert_close(getattr(its.state, part), after[part], 3e-6)


@pytest.mark.parametrize(
    "options",
    [
        {"name": "rmsprop_tf"},
        {"name": "rmsprop_torch", "nesterov": True},
        {"name": "sgd", "nesterov": True, "clip_norm": 0.5},
        {"name": "adamw", "decay": 0.99, "clip_norm": 0.5},
    ],
)
def test_plain_optimizer_updates_as_ours(options):
    config = resolve(ConfigDict({"optimizer": {"weight_decay": 0.1, **options}}))
    rng = np.random.default_rng(0)
    shapes = {"kernel": (3, 4), "scale": (4,), "bias": (4,)}

    def draw():
        return {"a": {k: jnp.asarray(rng.normal(size=s)) for k, s in shapes.items()}}

    params = other = draw()
    made = make_optimizer(config.optimizer, lambda step: 0.1)
    plain = plain_optimizer(config.optimizer, 0.1)
    state, memory = made.init(params), plain.init(params)
    for _ in range(3):
        gradients = draw()
        updates, state = made.update(gradients, state, params)
        params = optax.apply_updates(params, updates)
        updates, memory = plain.update(gradients, memory, other)
        other = optax.apply_updates(other, updates)
    assert_close(other, params, 1e-6)


# ---------------------------------------------------------------------------- PyTorch


def ours_of(state: dict) -> dict:
    """Gives a state dict of PyTorch our names and axes."""
    found = {}
    for key, value in state.items():
        if not key.endswith("num_batches_tracked"):
            place = place_of(key)
            # Copied: PyTorch changes its own.
            found[place.path] = place.ours(value.numpy()).copy()
    return traverse_util.unflatten_dict(found)


def test_torch_step_is_ours(ours, torch):
    """Parameters and running means after a step, and the EMA of a weight."""
    from torch_step import TorchStep

    config, step, state = ours
    # More threads would wait for each other, beside other tests.
    its = TorchStep(config, 4, compiled=False, threads=1)
    assert "eager, CPU, 1 threads" in its.what
    start = ours_of(its.network.state_dict())
    give(step, state.replace(**start))
    its.start()
    step.seconds(1)
    after = ours_of(its.network.state_dict())
    assert_updated_alike(after["params"], step.state.params, start["params"])
    # Its running variances are unbiased, ours are not; the means suffice.
    found, expected = (
        {k: v for k, v in traverse_util.flatten_dict(tree).items() if k[-1] == "mean"}
        for tree in (after["batch_stats"], step.state.batch_stats)
    )
    assert_close(found, expected, 1e-5)
    ema = its.ema.module.state_dict()["fc.weight"]
    old, new = ema.clone(), its.network.fc.weight
    its.seconds()
    assert torch.allclose(ema, 0.75 * old + 0.25 * new, atol=1e-6)
    assert not torch.equal(old, new)


@pytest.mark.parametrize("name", ["rmsprop_tf", "adamw"])
def test_torch_optimizers(name, torch):
    from torch_step import make_optimizer

    config = tiny(18, name=name, weight_decay=0.1).optimizer
    made = make_optimizer(torch.nn.Linear(2, 3), config)
    matrices, vectors = made.param_groups
    assert [p.ndim for p in matrices["params"]] == [2]
    assert [p.ndim for p in vectors["params"]] == [1]
    assert (matrices["weight_decay"], vectors["weight_decay"]) == (0.1, 0)
    assert ("rms" in name) == isinstance(made, torch.optim.RMSprop)
