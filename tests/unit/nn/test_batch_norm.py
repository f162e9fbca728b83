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


@pytest.mark.parametrize(
    "settings, shape, mean",
    [
        ({}, (6, C), 1.0),
        ({"momentum": 0.6, "epsilon": 0.1}, (6, 4, 5, C), 1.0),
        ({"group_size": 2}, (6, 4, 5, C), 0.0),
        ({"group_size": 6}, (6, 3, C), 0.0),
        # A mean of 1000 deviations, with the running mean near zero, costs no digits.
        ({}, (8, 10, 10, C), 1000.0),
        ({"group_size": 4}, (8, 10, 10, C), 1000.0),
    ],
)
def test_statistics_of_groups(settings, shape, mean):
    """The default group is the whole batch."""
    v = variables()
    # Each example has a deviation of its own, so that groups differ.
    factors = np.arange(1, shape[0] + 1).reshape(-1, *[1] * (len(shape) - 1))
    x = np.float32(reference.normal(1, *shape) * factors + mean)
    out, state = apply(BatchNorm(**settings), v, x)

    groups = shape[0] // settings.get("group_size", shape[0])
    grouped = x.astype(np.float64).reshape(groups, -1, C)
    means, variances = grouped.mean(1, keepdims=True), grouped.var(1, keepdims=True)
    expected = normalize(v, grouped, means, variances, settings.get("epsilon", 1e-5))
    reference.near(out, expected.reshape(shape), 1e-5)
    momentum = settings.get("momentum", 0.9)
    for name, values in (("mean", means), ("var", variances)):
        updated = momentum * v["batch_stats"][name] + (1 - momentum) * values.mean(0)[0]
        reference.near(state["batch_stats"][name], updated, 1e-5)


@pytest.mark.parametrize("module, train", [(BatchNorm(frozen=True), True),
                                           (BatchNorm(4), False)])  # fmt: skip
def test_running_statistics_are_used_and_kept(module, train):
    """In evaluation any batch will do."""
    v, x = variables(), reference.normal(1, 3, 5, C)
    out, state = apply(module, v, x, train)
    running = v["batch_stats"]
    reference.near(out, normalize(v, x, running["mean"], running["var"]), 1e-5)
    assert jax.tree.all(jax.tree.map(np.array_equal, state["batch_stats"], running))


@pytest.mark.parametrize("group, batch", [(4, 6), (8, 4), (0, 0)])
def test_batches_without_statistics_are_rejected(group, batch):
    message = f"bn_group_size={group} .* batch of {batch}" if batch else "empty batch"
    with pytest.raises(UserError, match=message):
        apply(BatchNorm(group), variables(), np.zeros((batch, 3, C), np.float32))


def test_initialization_leaves_the_running_statistics():
    x = reference.normal(1, 6, 3, C) + 5
    v = BatchNorm().init(jax.random.key(0), x, train=True)
    np.testing.assert_array_equal(v["batch_stats"]["mean"], np.zeros(C))
    np.testing.assert_array_equal(v["batch_stats"]["var"], np.ones(C))


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

    both = jax.jit(lambda *at: [jax.grad(f, (0, 1))(*at) for f in (loss, formula)])
    actual, expected = both(v["params"], x)
    for a, e in zip(jax.tree.leaves(actual), jax.tree.leaves(expected), strict=True):
        reference.near(a, e, 1e-5)


def test_bfloat16_has_float32_statistics():
    v, x = variables(), reference.normal(1, 64, C).astype(jnp.bfloat16) + 3
    out, state = apply(BatchNorm(dtype=jnp.bfloat16), v, x)
    assert out.dtype == jnp.bfloat16
    flat = np.asarray(x, np.float64)
    expected = normalize(v, flat, flat.mean(0), flat.var(0))
    reference.near(out.astype(jnp.float32), expected, 4e-3)
    expected = 0.9 * v["batch_stats"]["mean"] + 0.1 * flat.mean(0)
    assert state["batch_stats"]["mean"].dtype == jnp.float32
    reference.near(state["batch_stats"]["mean"], expected, 1e-5)


# ------------------------------------------------------------------------- placements


def norms(placement, **options):
    """Paths of the BatchNorms in a stage of two modules."""
    settings = {"tokens": 4, "token_channels": 16, "heads": 2, **options}
    options = VTOptions(transformer_groups=2, group_channels=8, **settings)
    layers = VTLayers(norm_placement=placement)
    stage = VTStage(options, modules=2, features=32, layers=layers)
    x = jnp.zeros((2, 4, 4, 16))
    shapes = jax.eval_shape(lambda x: stage.init(jax.random.key(0), x, train=False), x)
    stats = traverse_util.flatten_dict(shapes.get("batch_stats", {}), sep="/")
    return {path.rpartition("/")[0] for path in stats}


def in_both(pattern):
    return {pattern.format(i) for i in (1, 2)}


AFTER_TOKENS = in_both("module{}/tokenizer/token/norm") | {"module1/projector/norm"}
LINEAR = in_both("module{}/interaction/feed_forward_norm")
MLP = in_both("module{}/interaction/feed_forward1_norm") | in_both(
    "module{}/interaction/feed_forward2_norm"
)
OTHER_MAPS = {
    "module1/tokenizer/filter_norm",
    "module1/tokenizer/value_norm",
    *(f"module1/projector/{m}_norm" for m in ("query", "key", "value", "shortcut")),
    *(f"module2/tokenizer/{m}_norm" for m in ("query", "key", "value")),
    *in_both("module{}/interaction/query_norm"),
    *in_both("module{}/interaction/key_norm"),
    *in_both("module{}/interaction/value_norm"),
    *in_both("module{}/tokenizer/token/position/mix_norm"),
    "module2/tokenizer/token/position/heads_norm",
}


@pytest.mark.parametrize(
    "placement, options, expected",
    [
        ("tokens", {}, AFTER_TOKENS | LINEAR),
        ("tokens", {"feed_forward": "mlp"}, AFTER_TOKENS | MLP),
        ("tokens", {"interaction": "graph"},
         AFTER_TOKENS | in_both("module{}/interaction/norm")),
        ("every_map", {}, AFTER_TOKENS | LINEAR | OTHER_MAPS),
        ("none", {}, set()),
    ],
)  # fmt: skip
def test_placements(placement, options, expected):
    """By default after W_T, feed-forward maps and the projector's sum; nowhere else."""
    assert norms(placement, **options) == expected
