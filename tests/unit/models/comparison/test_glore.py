"""GloRe-ResNet-50: the unit in NumPy, and its places."""

import jax
import numpy as np
import pytest
from block_reference import dense
from reference import check, normal

from vt_flax.models import create_model
from vt_flax.models.comparison.glore import GloReUnit


def unit(p, x):
    """V = B^T phi(X) / HW; Z = ReLU(V + A V) W_G; X + BN((B Z) W), by example."""
    out = np.zeros_like(x)
    for b, pixels in enumerate(x.reshape(len(x), -1, x.shape[-1])):
        projection = dense(p, pixels, "projection")
        nodes = projection.T @ dense(p, pixels, "states") / len(pixels)
        adjacency = p.get("adjacency", "kernel").T
        moved = adjacency @ nodes + p.get("adjacency", "bias")[:, None]
        nodes = np.maximum(nodes + moved, 0) @ p.get("update", "kernel")
        back = projection @ nodes @ p.get("extend", "kernel")
        out[b] = back.reshape(x.shape[1:])
    return x + p.normalize(out, "norm")


@pytest.mark.parametrize("shape", [(3, 5, 7, 16), (2, 6, 1, 7)])
def test_unit(shape):
    check(GloReUnit(), unit, normal(0, *shape), train=True)


def test_units_behind_every_second_block_of_stage_4_start_as_the_identity():
    model = create_model("glore_resnet50")
    image = jax.ShapeDtypeStruct((1, 32, 32, 3), "float32")
    params = jax.eval_shape(model.init, jax.random.key(0), image)["params"]
    units = [
        (stage, name)
        for stage, modules in params.items()
        for name in modules
        if name.startswith("unit")
    ]
    assert sorted(units) == [("stage4", f"unit{i}") for i in (1, 3, 5)]
    x = normal(1, 2, 4, 3, 8)
    run = jax.jit(lambda key, x: GloReUnit().init_with_output(key, x, train=True)[0])
    np.testing.assert_array_equal(run(jax.random.key(0), x), x)
