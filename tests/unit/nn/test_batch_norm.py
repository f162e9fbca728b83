"""BatchNorm: scope of its statistics, precision, and placement in VT modules."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import reference
from flax import traverse_util

from vt_flax.errors import UserError
from vt_flax.nn.batch_norm import BatchNorm
from vt_flax.nn.layers import VTLayers
from vt_flax.nn.visual_transformer import VTOptions, VTStage

C = 8


def variables(seed=0):
    """Random parameters and running statistics of C channels."""
    rng = np.random.default_rng(seed)
    tree = {
        "params": {"scale": rng.normal(1, 0.3, C), "bias": rng.normal(0, 1, C)},
        "batch_stats": {
            "mean": rng.normal(0, 0.5, C),
            "var": rng.uniform(0.5, 2, C),
        },
    }
    return jax.tree.map(lambda leaf: leaf.astype(np.float32), tree)


def apply(module, v, x, train=True):
    return module.apply(v, x, train=train, mutable=["batch_stats"])


def normalize(v, x, mean, var, epsilon=1e-5):
    scale = v["params"]["scale"].astype(np.float64)
    return (x - mean) / np.sqrt(var + epsilon) * scale + v["params"]["bias"]


@pytest.mark.parametrize("shape", [(6, C), (6, 3, C), (6, 4, 5, C), (1, 4, 5, C)])
def test_statistics_of_the_whole_batch(shape):
    v, x = variables(), reference.normal(1, *shape).astype(np.float64) * 2 + 1
    if shape[0] > 1 or len(shape) > 2:
        out, state = apply(BatchNorm(), v, x.astype(np.float32))
        flat = x.reshape(-1, C)
        assert reference.error(out, normalize(v, x, flat.mean(0), flat.var(0))) < 1e-5
        stats, old = state["batch_stats"], v["batch_stats"]
        expected = 0.9 * old["mean"] + 0.1 * flat.mean(0)
        assert reference.error(stats["mean"], expected) < 1e-5
        expected = 0.9 * old["var"] + 0.1 * flat.var(0)
        assert reference.error(stats["var"], expected) < 1e-5
    out, state = apply(BatchNorm(), v, x.astype(np.float32), train=False)
    running = v["batch_stats"]
    assert reference.error(out, normalize(v, x, running["mean"], running["var"])) < 1e-5
    assert jax.tree.all(
        jax.tree.map(np.array_equal, state["batch_stats"], v["batch_stats"])
    )


def test_momentum_and_epsilon():
    v, x = variables(), reference.normal(1, 6, 5, C)
    flat = x.reshape(-1, C).astype(np.float64)
    out, state = apply(BatchNorm(momentum=0.6, epsilon=0.1), v, x)
    expected = normalize(v, x, flat.mean(0), flat.var(0), epsilon=0.1)
    assert reference.error(out, expected) < 1e-5
    expected = 0.6 * v["batch_stats"]["mean"] + 0.4 * flat.mean(0)
    assert reference.error(state["batch_stats"]["mean"], expected) < 1e-5


@pytest.mark.parametrize("group", [1, 2, 3, 6])
def test_each_group_is_normalized_alone(group):
    v = variables()
    # The mean and deviation of each example are its own, so that groups differ.
    x = reference.normal(1, 6, 4, 5, C) * np.arange(1, 7).reshape(6, 1, 1, 1)
    x = (x + np.arange(6).reshape(6, 1, 1, 1)).astype(np.float32)
    out, state = apply(BatchNorm(group), v, x)
    alone = [apply(BatchNorm(), v, x[i : i + group]) for i in range(0, 6, group)]
    expected = np.concatenate([out for out, _ in alone])
    assert reference.error(out, expected) < 1e-5
    for name in ("mean", "var"):
        mean = np.mean([s["batch_stats"][name] for _, s in alone], 0)
        assert reference.error(state["batch_stats"][name], mean) < 1e-5


def test_a_group_of_the_whole_batch():
    v, x = variables(), reference.normal(1, 4, 3, C)
    for a, b in zip(
        jax.tree.leaves(apply(BatchNorm(4), v, x)),
        jax.tree.leaves(apply(BatchNorm(), v, x)),
        strict=True,
    ):
        np.testing.assert_allclose(a, b, rtol=1e-6)


def test_frozen_uses_and_keeps_the_running_statistics():
    v, x = variables(), reference.normal(1, 6, 3, C)
    out, state = apply(BatchNorm(frozen=True), v, x)
    expected, _ = apply(BatchNorm(), v, x, train=False)
    np.testing.assert_array_equal(out, expected)
    for name in ("mean", "var"):
        np.testing.assert_array_equal(
            state["batch_stats"][name], v["batch_stats"][name]
        )


@pytest.mark.parametrize("group,batch", [(4, 6), (8, 4)])
def test_group_must_divide_the_batch(group, batch):
    with pytest.raises(UserError, match=f"bn_group_size={group} .* batch of {batch}"):
        apply(BatchNorm(group), variables(), reference.normal(1, batch, C))


def test_evaluation_takes_any_batch():
    out, _ = apply(BatchNorm(4), variables(), reference.normal(1, 3, C), train=False)
    assert out.shape == (3, C)


def test_initialization_leaves_the_running_statistics():
    x = reference.normal(1, 6, 3, C) + 5
    v = BatchNorm().init(jax.random.key(0), x, train=True)
    np.testing.assert_array_equal(v["batch_stats"]["mean"], np.zeros(C))
    np.testing.assert_array_equal(v["batch_stats"]["var"], np.ones(C))


def test_an_empty_batch_is_rejected():
    with pytest.raises(UserError, match="empty batch has no statistics"):
        apply(BatchNorm(), variables(), np.zeros((0, 3, C), np.float32))


@pytest.mark.parametrize("group", [0, 4])
def test_a_large_mean_costs_no_digits(group):
    """The mean is 1000 deviations, and the running mean near zero."""
    v, x = variables(), reference.normal(1, 8, 10, 10, C) + np.float32(1000)
    out, state = apply(BatchNorm(group), v, x)
    grouped = x.astype(np.float64).reshape(-1, group or 8, 10, 10, C)
    mean = grouped.mean((1, 2, 3), keepdims=True)
    var = grouped.var((1, 2, 3), keepdims=True)
    expected = normalize(v, grouped, mean, var).reshape(x.shape)
    assert reference.error(out, expected) < 1e-5
    updated = 0.9 * v["batch_stats"]["var"] + 0.1 * var.mean((0, 1, 2, 3))
    assert reference.error(state["batch_stats"]["var"], updated) < 1e-6


@pytest.mark.parametrize("settings", [{}, {"group_size": 2}, {"frozen": True}], ids=str)
def test_gradients_equal_those_of_the_formula(settings):
    v, x = variables(), reference.normal(1, 4, 3, C)
    weights = reference.normal(2, 4, 3, C)

    def loss(params, x):
        out, _ = apply(BatchNorm(**settings), {**v, "params": params}, x)
        return jnp.sum(out * weights)

    def formula(params, x):
        grouped = x.reshape(2, 2, 3, C) if "group_size" in settings else x[None]
        mean = jnp.mean(grouped, (1, 2), keepdims=True)
        var = jnp.mean((grouped - mean) ** 2, (1, 2), keepdims=True)
        if "frozen" in settings:
            mean, var = v["batch_stats"]["mean"], v["batch_stats"]["var"]
        out = (grouped - mean) / jnp.sqrt(var + 1e-5) * params["scale"] + params["bias"]
        return jnp.sum(out.reshape(x.shape) * weights)

    actual = jax.jit(jax.grad(loss, (0, 1)))(v["params"], x)
    expected = jax.jit(jax.grad(formula, (0, 1)))(v["params"], x)
    for a, e in zip(jax.tree.leaves(actual), jax.tree.leaves(expected), strict=True):
        assert reference.error(a, e) < 1e-5


def test_gradients_are_finite_without_variance():
    x = np.full((4, 3, C), 2.5, np.float32)
    reference.check_gradients(BatchNorm(), x, live=False)
    reference.check_gradients(BatchNorm(), x[:1, :1], live=False)


def test_bfloat16_has_float32_statistics():
    v, x = variables(), reference.normal(1, 64, C).astype(jnp.bfloat16) + 3
    out, state = apply(BatchNorm(dtype=jnp.bfloat16), v, x)
    assert out.dtype == jnp.bfloat16
    flat = np.asarray(x, np.float64)
    expected = normalize(v, flat, flat.mean(0), flat.var(0))
    assert reference.error(out.astype(jnp.float32), expected) < 4e-3
    for name in ("mean", "var"):
        assert state["batch_stats"][name].dtype == jnp.float32
    expected = 0.9 * v["batch_stats"]["mean"] + 0.1 * flat.mean(0)
    assert reference.error(state["batch_stats"]["mean"], expected) < 1e-5


# ------------------------------------------------------------------------- placements


def norms(placement, **options):
    """Paths of the BatchNorms in a stage of two modules."""
    settings = {
        "tokens": 4,
        "token_channels": 16,
        "heads": 2,
        "transformer_groups": 2,
        "group_channels": 8,
        **options,
    }
    layers = VTLayers(norm_placement=placement)
    stage = VTStage(VTOptions(**settings), modules=2, features=32, layers=layers)
    x = jnp.zeros((2, 4, 4, 16))
    shapes = jax.eval_shape(lambda x: stage.init(jax.random.key(0), x, train=False), x)
    stats = traverse_util.flatten_dict(shapes.get("batch_stats", {}), sep="/")
    scales = [
        path.removesuffix("/scale")
        for path in traverse_util.flatten_dict(shapes["params"], sep="/")
        if path.endswith("/scale")
    ]
    paths = {path.rpartition("/")[0] for path in stats}
    assert paths == set(scales)
    return paths


TOKEN_SIDE = {
    "module1/tokenizer/token/norm",
    "module1/projector/norm",
    "module2/tokenizer/token/norm",
}
LINEAR = {f"module{i}/interaction/feed_forward_norm" for i in (1, 2)}
MLP = {f"module{i}/interaction/feed_forward{j}_norm" for i in (1, 2) for j in (1, 2)}
OTHER_MAPS = {
    "module1/projector/query_norm",
    "module1/projector/key_norm",
    "module1/projector/value_norm",
    "module1/projector/shortcut_norm",
    "module1/tokenizer/value_norm",
    "module1/tokenizer/filter_norm",
    "module2/tokenizer/query_norm",
    "module2/tokenizer/key_norm",
    "module2/tokenizer/value_norm",
}
TRANSFORMER_MAPS = {
    f"module{i}/interaction/{name}_norm"
    for i in (1, 2)
    for name in ("query", "key", "value")
}


@pytest.mark.parametrize("feed_forward,maps", [("linear", LINEAR), ("mlp", MLP)])
@pytest.mark.parametrize("position", [True, False])
def test_default_placement(feed_forward, maps, position):
    """After W_T, after each feed-forward map, on the projector's sum; nowhere else."""
    found = norms("tokens", feed_forward=feed_forward, position_encoding=position)
    assert found == TOKEN_SIDE | maps


@pytest.mark.parametrize("feed_forward,maps", [("linear", LINEAR), ("mlp", MLP)])
def test_placement_after_every_map(feed_forward, maps):
    found = norms("every_map", feed_forward=feed_forward, position_encoding=False)
    assert found == TOKEN_SIDE | maps | OTHER_MAPS | TRANSFORMER_MAPS


def test_placement_after_every_map_of_the_position_encoding():
    found = norms(
        "every_map", position_encoding=True, tokenizer="static", interaction="none"
    )
    assert {
        "module1/tokenizer/token/position/mix_norm",
        "module2/tokenizer/token/position/mix_norm",
    } <= found


@pytest.mark.parametrize("interaction", ["none", "graph"])
def test_placement_in_the_ablations(interaction):
    found = norms("tokens", interaction=interaction)
    assert found == TOKEN_SIDE | {f"module{i}/interaction/norm" for i in (1, 2)}


def test_placement_none():
    assert norms("none") == set()


def test_unknown_placement():
    with pytest.raises(UserError, match="'pixels' is not known"):
        VTLayers(norm_placement="pixels")
