"""One device against eight: the same loss, gradients and statistics."""

import dataclasses
import functools
import re

import jax
import numpy as np
import optax
import pytest
from ml_collections import ConfigDict

from vt_flax.models import create_model
from vt_flax.nn.batch_norm import BatchNorm
from vt_flax.parallel.mesh import (
    batch_sharding,
    make_mesh,
    replicated,
    state_sharding,
    to_global,
)
from vt_flax.training.config import resolve
from vt_flax.training.state import create_state
from vt_flax.training.step import (
    compile_eval_step,
    compile_train_step,
    make_train_step,
)
from vt_flax.training.tasks.classification import Classification

pytestmark = pytest.mark.slow

# A network that compiles in seconds.
TINY = {
    "name": "vt_resnet18",
    "stem": "small",
    "stage_sizes": [1, 1, 1, 1],
    "width": 16,
    "token_channels": 128,
    "heads": 4,
    "group_channels": 16,
    "num_classes": 10,
}


def test_one_against_eight_devices():
    """The old parameters less the new are the gradients: SGD of learning rate 1."""
    config = resolve(
        ConfigDict({"loss": {"label_smoothing": 0.1}, "ema": {"decay": 0.9}})
    )
    model = create_model(
        **{**TINY, "stage_sizes": [1, 1, 1, 2], "width": 8, "token_channels": 32},
        preset="v4",
        dropout=0.2,
        survival_probability=0.8,
    )
    task = Classification(config, [""] * 10)
    optimizer = optax.sgd(1.0)
    generator = np.random.default_rng(0)
    batch = {
        "image": generator.integers(0, 256, (32, 16, 16, 3), np.uint8),
        "label": generator.integers(0, 10, 32).astype(np.int32),
        "bad": np.arange(32) == 7,
    }
    results = []
    for count in (1, 8):
        batch["request"] = np.where(np.arange(count) == count - 1, 2, 0)
        mesh = make_mesh(jax.devices()[:count])
        state = jax.jit(
            lambda: create_state(model, optimizer, (16, 16), 0, ema=True),
            out_shardings=replicated(mesh),
        )()
        step = jax.jit(
            make_train_step(model, task, optimizer, lambda step: 1.0, config, mesh),
            out_shardings=replicated(mesh),
        )
        after, metrics = step(state, to_global(batch, mesh))
        assert len(after.step.devices()) == count
        gradients = jax.tree.map(
            lambda old, new: np.asarray(old) - np.asarray(new),
            state.params,
            after.params,
        )
        counts = compile_eval_step(model, task, mesh)(
            after.ema_params,
            after.ema_batch_stats,
            to_global(batch | {"mask": np.arange(32) < 29}, mesh),
        )
        assert counts["examples"] == 29
        assert counts["skipped"] == metrics["skipped"] == 1
        results.append(
            jax.device_get(
                (metrics, gradients, after.batch_stats, after.ema_params, counts)
            )
        )
    one, eight = results
    scale = np.linalg.norm([np.linalg.norm(g) for g in jax.tree.leaves(one[1])])
    assert 0.01 < scale < 1e3

    def close(path, a, b):
        a, b = np.asarray(a, np.float64), np.asarray(b, np.float64)
        # Sums in another order: what cancels in a small gradient does not in the rest.
        size = max(np.linalg.norm(a), 0.01 * scale)
        assert np.linalg.norm(a - b) <= 1e-4 * size, jax.tree_util.keystr(path)

    jax.tree_util.tree_map_with_path(close, one, eight)


def test_microbatches_equal_batch_norm_groups_of_a_whole_batch():
    """A batch in two microbatches updates as one with two BatchNorm groups.

    Microbatch i takes every second example from example i; the other batch has the
    groups one after the other. Nothing is random.
    """
    batch, count = 32, 2
    generator = np.random.default_rng(0)
    examples = {
        "image": generator.integers(0, 256, (batch, 16, 16, 3), np.uint8),
        "label": generator.integers(0, 10, batch).astype(np.int32),
        "bad": np.zeros(batch, bool),
    }
    order = np.concatenate([np.arange(i, batch, count) for i in range(count)])
    found = []
    for accumulation, size, indices in ((count, 0, slice(None)), (1, 16, order)):
        values = {"grad_accum_steps": accumulation, "data": {"flip": False}}
        config = resolve(ConfigDict({**values, "ema": {"decay": 0.0}}))
        model = create_model(**TINY, bn_group_size=size)
        task = Classification(config, [""] * 10)
        mesh = make_mesh(jax.devices()[:4], 4)
        optimizer = optax.sgd(1.0)
        create = functools.partial(
            create_state, model, optimizer, (16, 16), 0, ema=False
        )
        shapes = jax.eval_shape(create)
        state = jax.jit(create, out_shardings=state_sharding(mesh, shapes))()
        leaves = jax.tree.leaves(state.params)
        assert not all(x.is_fully_replicated for x in leaves)
        old = jax.device_get(state.params)
        step = compile_train_step(
            model, task, optimizer, lambda step: 1.0, config, mesh, shapes
        )
        request = {"request": np.zeros(4, np.int32)}
        ordered = {name: x[indices] for name, x in examples.items()}
        after, metrics = step(state, to_global(ordered | request, mesh))
        shardings = jax.tree.map(lambda x: x.sharding, after)
        assert shardings == state_sharding(mesh, after)
        gradient = jax.tree.map(np.subtract, old, jax.device_get(after.params))
        found.append((gradient, jax.device_get(after.batch_stats), metrics))
    (gradient, stats, metrics), (expected, once, others) = found
    scale = np.linalg.norm([np.linalg.norm(g) for g in jax.tree.leaves(expected)])

    def close(path, a, b):
        size = max(np.linalg.norm(b), 0.01 * scale)
        assert np.linalg.norm(a - b) <= 1e-4 * size, jax.tree_util.keystr(path)

    jax.tree_util.tree_map_with_path(close, gradient, expected)
    for name in ("loss", "top1", "grad_norm"):
        np.testing.assert_allclose(metrics[name], others[name], rtol=1e-4)

    # Running statistics start at 0 and 1 and are updated twice, by one microbatch each:
    # they go 1 - 0.9^2 of the way, and 0.1 of it by one update with the mean of both.
    def moved(tree):
        flat = jax.tree_util.tree_flatten_with_path(tree)[0]
        return np.concatenate([(x - ("var" in str(p))).ravel() for p, x in flat])

    twice, one = moved(stats), moved(once)
    ratio = np.dot(twice, one) / np.dot(one, one)
    assert ratio == pytest.approx(1.9, rel=0.05)


def test_a_step_for_gpus_has_no_kernels(monkeypatch):
    """Unlike the same step for TPUs."""
    config = resolve(ConfigDict({"data": {"augment": "autoaugment"}}))
    # Wide enough for kernels.
    wide = {"stage_sizes": [1, 1, 1, 2], "width": 32, "dtype": "bfloat16"}
    wide["formulation"] = "fused"
    model = create_model(**{**TINY, **wide})
    task = Classification(config, [""] * 10)
    optimizer = optax.sgd(1.0)
    size, batch = (32, 32), 8
    state = jax.eval_shape(lambda: create_state(model, optimizer, size, 0, ema=True))
    shapes = {
        "image": jax.ShapeDtypeStruct((batch, *size, 3), np.uint8),
        "label": jax.ShapeDtypeStruct((batch,), np.int32),
        "bad": jax.ShapeDtypeStruct((batch,), bool),
        "request": jax.ShapeDtypeStruct((1,), np.int32),
    }
    mesh = make_mesh(jax.devices()[:1])
    here = mesh.abstract_mesh
    traced = {}
    for kind in ("NVIDIA A100-SXM4-40GB", "TPU v5 lite"):
        device = dataclasses.replace(here.abstract_device, device_kind=kind)
        there = here.update(abstract_device=device)
        monkeypatch.setattr(
            "vt_flax.training.step.on_devices_of",
            lambda _, there=there: jax.sharding.use_abstract_mesh(there),
        )
        step = make_train_step(model, task, optimizer, lambda _: 1.0, config, mesh)
        traced[kind[:3]] = jax.jit(step).trace(state, shapes)
    assert "pallas_call" in str(traced["TPU"].jaxpr)
    assert "pallas_call" not in str(traced["NVI"].jaxpr)
    program = traced["NVI"].lower(lowering_platforms=("cuda",)).as_text()
    assert len(program) > 10_000 and "stablehlo.convolution" in program
    called = re.findall(r"custom_call @(\w+)", program)
    assert not [x for x in called if re.search("tpu|mosaic|triton|pallas", x)]


@pytest.mark.parametrize("group_size, collectives", [(0, True), (2, False)])
def test_groups_on_one_device_need_no_collective(group_size, collectives):
    """Statistics of the whole batch cross devices; those of a small group do not."""
    mesh = make_mesh()
    norm = BatchNorm(group_size)
    x = jax.ShapeDtypeStruct((16, 4, 4, 8), np.float32, sharding=batch_sharding(mesh))
    variables = jax.eval_shape(
        lambda x: norm.init(jax.random.key(0), x, train=False), x
    )
    variables = jax.tree.map(
        lambda v: jax.ShapeDtypeStruct(v.shape, v.dtype, sharding=replicated(mesh)),
        variables,
    )

    def normalized(variables, x):
        return norm.apply(variables, x, train=True, mutable=["batch_stats"])[0]

    program = jax.jit(normalized).lower(variables, x).compile().as_text()
    assert ("all-reduce" in program) == collectives
