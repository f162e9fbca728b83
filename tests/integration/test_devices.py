"""One device against eight: the same loss, gradients and statistics."""

import jax
import numpy as np
import optax
import pytest
from ml_collections import ConfigDict

from vt_flax.models import create_model
from vt_flax.nn.norm import BatchNorm
from vt_flax.parallel.mesh import batch_sharding, make_mesh, replicated, to_global
from vt_flax.training.config import resolve
from vt_flax.training.state import create_state
from vt_flax.training.step import make_eval_step, make_train_step


@pytest.mark.parametrize(
    "span, preset",
    [("global", "v1"), ("4", "v4")],
)
def test_one_against_eight_devices(span, preset):
    """The new parameters less the old are the gradients: plain SGD of rate 1."""
    config = resolve(
        ConfigDict({"loss": {"label_smoothing": 0.1}, "ema": {"decay": 0.9}})
    )
    model = create_model(
        "vt_resnet18",
        preset=preset,
        stem="small",
        stage_sizes=[1, 1, 1, 2],
        width=8,
        token_channels=32,
        heads=4,
        group_channels=16,
        num_classes=10,
        dropout=0.2,
        survival_probability=0.8,
        norm_span=span,
    )
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
            lambda: create_state(model, optimizer, 16, 0, ema=True),
            out_shardings=replicated(mesh),
        )()
        step = jax.jit(
            make_train_step(model, optimizer, lambda step: 1.0, config, mesh),
            out_shardings=replicated(mesh),
        )
        after, metrics = step(state, to_global(batch, mesh))
        assert len(after.step.devices()) == count
        gradients = jax.tree.map(
            lambda old, new: np.asarray(old) - np.asarray(new),
            state.params,
            after.params,
        )
        counts = jax.jit(make_eval_step(model, config))(
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


@pytest.mark.parametrize("span, collectives", [("global", True), ("2", False)])
def test_groups_on_one_device_need_no_collective(span, collectives):
    """Statistics of the whole batch cross devices; those of a small group do not."""
    mesh = make_mesh()
    norm = BatchNorm(span=span)
    x = jax.ShapeDtypeStruct((16, 4, 4, 8), np.float32, sharding=batch_sharding(mesh))
    variables = jax.eval_shape(lambda k, x: norm.init(k, x, train=False), _key(), x)
    variables = jax.tree.map(
        lambda v: jax.ShapeDtypeStruct(v.shape, v.dtype, sharding=replicated(mesh)),
        variables,
    )

    def normalised(variables, x):
        return norm.apply(variables, x, train=True, mutable=["batch_stats"])[0]

    program = jax.jit(normalised).lower(variables, x).compile().as_text()
    assert ("all-reduce" in program) == collectives


def _key():
    return jax.random.key(0)
