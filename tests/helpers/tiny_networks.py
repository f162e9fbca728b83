"""Networks of a few channels with made-up weights, which need no training."""

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from vt_flax.inference.predictor import Predictor
from vt_flax.models import create_model
from vt_flax.training.config import resolve
from vt_flax.training.tasks.classification import Classification
from vt_flax.training.tasks.segmentation import Segmentation

RESNET = {"stem": "small", "width": 4, "stage_sizes": [1, 1, 1, 1], "num_classes": 3}
TOKENS = {
    "token_channels": 16,
    "heads": 2,
    "group_channels": 8,
    "transformer_groups": 1,
}
TINY = {**RESNET, **TOKENS, "position_encoding": False}
FPN = {**RESNET, **TOKENS, "fpn_channels": 8, "head_channels": 8}
NAMES = ("left", "middle", "right")
SIDE = 16
# Stage 4 is at a quarter of the side with the stem for small images.
MAP = SIDE // 4
CANVAS = (20, 28)


def build(name="vt_resnet18", **options):
    """Returns a model and variables, by default of a small VT-ResNet."""
    model = create_model(name, **{**TINY, **options})
    return model, variables_of(model)


def variables_of(model):
    """Draws kernels for their inputs; quicker than the model's initialization."""
    images = jnp.zeros((1, SIDE, SIDE, 3), jnp.float32)
    shapes = jax.eval_shape(model.init, jax.random.key(0), images)
    rng = np.random.default_rng(0)

    def fill(path, leaf):
        if path[-1].key != "kernel":
            ones = path[-1].key in ("scale", "var")
            return np.full(leaf.shape, float(ones), np.float32)
        inputs = np.prod(leaf.shape[:-1])
        return (rng.normal(size=leaf.shape) / inputs**0.5).astype(np.float32)

    return jax.tree_util.tree_map_with_path(fill, shapes)


def classifier(batch=4, **options):
    """Returns a VT-ResNet that tells three classes of 16 x 16 crops."""
    options = {**TINY, "stage_sizes": [1, 1, 1, 2], **options}
    data = {"image_size": SIDE, "eval_resize": SIDE + 4}
    config = resolve(ConfigDict({"model": {"name": "vt_resnet18"}, "data": data}))
    model, variables = build(**options)
    task = Classification(config, NAMES)
    return Predictor(model, variables, task, "a classifier", batch)


def segmenter(batch=4, name="vt_fpn_resnet18", **settings):
    """Returns a VT-FPN that tells three classes of pixels in a canvas of 20 x 28."""
    segmentation = {"canvas": list(CANVAS), "crop": list(CANVAS), **settings}
    config = resolve(
        ConfigDict({"model": {"name": name}, "segmentation": segmentation})
    )
    model = create_model(name, **FPN)
    variables = variables_of(model)
    return Predictor(
        model, variables, Segmentation(config, NAMES), "a segmenter", batch
    )
