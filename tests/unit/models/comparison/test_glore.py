"""GloRe-ResNet-50: the unit in NumPy, its positions, and the printed counts."""

import jax
import numpy as np
import pytest
from block_reference import dense
from reference import check, normal

from vt_flax.models import create_model
from vt_flax.models.comparison.glore import GloReUnit
from vt_flax.paper.macs import count


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


@pytest.mark.parametrize("shape", [(3, 5, 7, 16), (4, 1, 1, 8), (2, 6, 1, 7)])
@pytest.mark.parametrize("train", [False, True])
def test_unit(shape, train):
    check(GloReUnit(), unit, normal(0, *shape), train=train)


def test_unit_starts_as_the_identity():
    x = normal(1, 2, 4, 3, 8)
    unit = GloReUnit()
    out = jax.jit(
        lambda k, x: unit.init_with_output(k, x, train=True)[0],
    )(jax.random.key(0), x)
    np.testing.assert_array_equal(out, x)


def test_units_and_counts():
    """Behind blocks 1, 3 and 5 of stage 4.

    The printed 5.2 G leave out the products that read the nodes from the pixels and
    write them back; with them it is 2.2 % more.
    """
    model = create_model("glore_resnet50")
    image = jax.ShapeDtypeStruct((1, 224, 224, 3), "float32")
    params = jax.eval_shape(model.init, jax.random.key(0), image)["params"]
    units = {
        (stage, name)
        for stage, parts in params.items()
        for name in parts
        if name.startswith("unit")
    }
    assert units == {("stage4", f"unit{i}") for i in (1, 3, 5)}

    counts, c, s, n, pixels = count(model), 1024, 512, 256, 14 * 14
    own = c * s + s + c * n + n + n * n + n + s * s + s * c + 2 * c
    assert counts.total_params == 25_557_032 + 3 * own
    assert round(counts.total_params / 1e6, 1) == 30.5
    maps = pixels * (c * s + c * n + s * c) + n * n * s + s * s * n
    projections = 2 * pixels * s * n
    # The first is a plain ResNet-50's.
    assert counts.total_macs == 4_089_184_256 + 3 * (maps + projections)
    assert round((counts.total_macs - 3 * projections) / 1e9, 1) == 5.2
    assert counts.total_macs / 5.2e9 == pytest.approx(1.022, abs=0.001)
