"""What the networks of local attention are all tested for."""

import jax
import jax.numpy as jnp


def shapes_of(model, size=(32, 32)):
    """Shapes of a model's parameters."""
    images = jax.ShapeDtypeStruct((1, *size, 3), jnp.float32)
    return jax.eval_shape(model.init, jax.random.key(0), images)["params"]


def check_shapes(model, shape, channels):
    """Asserts the shapes of C2 to C5 and of the logits, and their types in bfloat16.

    Args:
      model: the model.
      shape: batch, height and width of the images.
      channels: of C2 to C5.
    """
    batch, *size = shape
    images = jax.ShapeDtypeStruct((batch, *size, 3), jnp.float32)
    model = model.clone(dtype=jnp.bfloat16)
    variables = jax.eval_shape(model.init, jax.random.key(0), images)
    assert all(leaf.dtype == jnp.float32 for leaf in jax.tree.leaves(variables))
    maps = jax.eval_shape(
        lambda v, x: model.apply(v, x, features=True), variables, images
    )
    first = 4 if model.stem == "imagenet" else 1
    assert list(maps) == ["C2", "C3", "C4", "C5"]
    for i, found in enumerate(maps.values()):
        sides = [-(-side // (first * 2**i)) for side in size]
        assert found.shape == (batch, *sides, channels[i])
        assert found.dtype == jnp.bfloat16
    logits = jax.eval_shape(model.apply, variables, images)
    assert logits.shape == (batch, model.num_classes)
    assert logits.dtype == jnp.float32
