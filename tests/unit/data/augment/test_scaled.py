"""Inputs of evaluation, and maps brought back to the examples' own pixels."""

import jax
import numpy as np
import pytest
from test_resampling import in_canvas, pillow

from vt_flax.data.augment import scaled
from vt_flax.data.augment.resampling import resample
from vt_flax.training.config import default_config


def evaluated(config, images, sizes, scale, flip):
    """Goes through an input and back, with a network whose map is its input."""
    inputs = scaled.eval_inputs(images, sizes, config, scale, flip)
    shape = inputs.images.shape[1:3]
    weights = scaled.eval_weights(inputs, sizes, shape, images.shape[1:3], flip)
    return inputs, resample(inputs.images, *weights)


def smooth(height, width):
    """Levels that a resize hardly changes."""
    y, x = np.mgrid[:height, :width]
    planes = [255 * y / height, 255 * x / width, 127 + 0 * y]
    return np.stack(planes, -1).astype(np.uint8)


@pytest.mark.parametrize(
    "short_side, scale, flip", [(0, 1.0, False), (24, 0.75, True), (100, 0.75, False)]
)
def test_evaluation_goes_there_and_back(short_side, scale, flip):
    sizes = np.asarray([(40, 60), (60, 33), (20, 30), (0, 0)], np.int32)
    images = in_canvas([smooth(*size) for size in sizes], (60, 60), fill=7)
    config = default_config()
    config.segmentation.update({"short_side": short_side, "eval_size": [50, 0]})
    run = jax.jit(lambda x, n: evaluated(config, x, n, scale, flip))
    inputs, back = jax.device_get(run(images, sizes))
    height, width = -(-int(50 * scale * 4) // 4), int(60 * scale)
    assert inputs.images.shape[1:3] == (height, width)
    mean = 255 * np.asarray(config.data.mean)
    for k, (h, w) in enumerate(sizes[:3].tolist()):
        factor = scale * min(50 / h, 60 / w, (short_side or min(h, w)) / min(h, w))
        a, b = inputs.lengths[k]
        assert abs(a - h * factor) <= 0.5 and abs(b - w * factor) <= 0.5
        expected = pillow(images[k, :h, :w], (a, b))
        if flip:
            expected = expected[:, ::-1]
        found = inputs.images[k]
        assert np.abs(found[:a, :b] - expected).max() <= 1.01
        np.testing.assert_allclose(found[a:], np.broadcast_to(mean, found[a:].shape))
        np.testing.assert_allclose(found[:, b:] - mean, 0, atol=1e-4)
        # A step of the smooth image is 255 / 20 levels at most.
        inner = np.s_[2 : h - 2, 2 : w - 2]
        assert np.abs(back[k][:h, :w] - images[k, :h, :w])[inner].max() < 6
        assert not back[k][h:].any() and not back[k][:, w:].any()
    np.testing.assert_allclose(inputs.images[3] - mean, 0, atol=1e-4)
    assert not back[3].any()


def test_an_input_is_as_large_as_fits_what_is_scaled():
    config = default_config()
    config.segmentation.eval_size = [500, 33]
    assert scaled.input_size((1, 1), config, 1.1) == [550, 37]
    assert scaled.input_size((1, 1), config, 0.5) == [250, 17]
    config.segmentation.eval_size = [0, 33]
    assert scaled.input_size((70, 80), config, 1.0) == [70, 33]
