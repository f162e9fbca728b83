"""State of a run: everything that a training step changes."""

from typing import Any

import flax.linen as nn
import flax.struct
import jax
import jax.numpy as jnp
import optax


@flax.struct.dataclass
class TrainState:
    """State of a run. Without an EMA its two fields are empty."""

    step: jax.Array  # number of updates, int32
    params: Any  # float32
    batch_stats: Any  # running statistics of BatchNorm, float32
    opt_state: Any
    ema_params: Any
    ema_batch_stats: Any
    key: jax.Array  # raw PRNG key, uint32; every step folds its number into it


def abstract_like(state: Any, shardings: Any) -> Any:
    """Returns the shapes of a state, each with its sharding."""
    return jax.tree.map(
        lambda x, sharding: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding),
        state,
        shardings,
    )


def weights_of(state: TrainState) -> dict[str, tuple[Any, Any]]:
    """Returns parameters and batch statistics: `raw`, and `ema` where it is kept."""
    weights = {"raw": (state.params, state.batch_stats)}
    if state.ema_params:
        weights["ema"] = (state.ema_params, state.ema_batch_stats)
    return weights


def differing_array(tree: Any, like: Any) -> str:
    """Returns the path of the first array of another shape; empty if there is none."""
    shapes, wanted = (
        {
            jax.tree_util.keystr(path, simple=True, separator="/"): x.shape
            for path, x in jax.tree_util.tree_leaves_with_path(each)
        }
        for each in (tree, like)
    )
    paths = sorted(shapes.keys() | wanted.keys())
    return next((p for p in paths if shapes.get(p) != wanted.get(p)), "")


def create_state(
    model: nn.Module,
    optimizer: optax.GradientTransformation,
    image_size: tuple[int, int],
    seed: int,
    *,
    ema: bool,
) -> TrainState:
    """Returns the state at step 0, for images of a height and width in pixels.

    `seed` is that of the parameters and of the run's randomness.
    """
    init_key, run_key = jax.random.split(jax.random.key(seed))
    images = jnp.zeros((1, *image_size, 3), jnp.float32)
    variables = model.init(init_key, images)
    params = variables["params"]
    batch_stats = variables.get("batch_stats", {})

    def copy(tree):
        # A donated state must not hold one buffer twice.
        return jax.tree.map(jnp.copy, tree) if ema else {}

    return TrainState(
        step=jnp.zeros((), jnp.int32),
        params=params,
        batch_stats=batch_stats,
        opt_state=optimizer.init(params),
        ema_params=copy(params),
        ema_batch_stats=copy(batch_stats),
        key=jax.random.key_data(run_key),
    )
