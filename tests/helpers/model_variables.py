"""Variables for whole networks without their initializers, which compile slowly."""

import jax
import numpy as np
from flax import traverse_util


def images_of(batch, height, width, seed=0):
    """Normal numbers in the shape of images."""
    rng = np.random.default_rng(seed)
    return rng.normal(size=(batch, height, width, 3)).astype(np.float32)


def randomized(model, images, seed=0):
    """Variables unlike those of any initializer, with signals that stay near one."""
    shapes = jax.eval_shape(model.init, jax.random.key(0), images)
    rng, filled = np.random.default_rng(seed), {}
    for path, leaf in traverse_util.flatten_dict(shapes).items():
        value = rng.normal(size=leaf.shape)
        if path[-1] == "var":
            value = rng.uniform(0.5, 1.5, leaf.shape)
        elif path[-1] == "scale":
            value = 1 + 0.2 * value
        elif path[-1] == "kernel":
            # Blocks of a grouped map have three axes, the first of which is no input.
            value = value / np.sqrt(np.prod(leaf.shape[leaf.ndim == 3 : -1]))
        else:
            value = 0.2 * value
        filled[path] = value.astype(np.float32)
    return traverse_util.unflatten_dict(filled)
