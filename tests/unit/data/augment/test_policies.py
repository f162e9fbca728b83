"""AutoAugment and RandAugment: what is drawn, how often, and how strong."""

import collections
import re

import jax
import numpy as np
import pytest
from PIL import Image
from test_operations import pillow

from vt_flax.data.augment import policies
from vt_flax.data.augment.operations import operation
from vt_flax.parallel.mesh import batch_sharding, make_mesh
from vt_flax.training.config import default_config

DRAWS = 100_000

# The appendix of arXiv 1805.09501, typed from it a second time.
PUBLISHED = """
Posterize 0.4 8 Rotate 0.6 9
Solarize 0.6 5 AutoContrast 0.6 5
Equalize 0.8 8 Equalize 0.6 3
Posterize 0.6 7 Posterize 0.6 6
Equalize 0.4 7 Solarize 0.2 4
Equalize 0.4 4 Rotate 0.8 8
Solarize 0.6 3 Equalize 0.6 7
Posterize 0.8 5 Equalize 1.0 2
Rotate 0.2 3 Solarize 0.6 8
Equalize 0.6 8 Posterize 0.4 6
Rotate 0.8 8 Color 0.4 0
Rotate 0.4 9 Equalize 0.6 2
Equalize 0.0 7 Equalize 0.8 8
Invert 0.6 4 Equalize 1.0 8
Color 0.6 4 Contrast 1.0 8
Rotate 0.8 8 Color 1.0 2
Color 0.8 8 Solarize 0.8 7
Sharpness 0.4 7 Invert 0.6 8
ShearX 0.6 5 Equalize 1.0 9
Color 0.4 0 Equalize 0.6 3
Equalize 0.4 7 Solarize 0.2 4
Solarize 0.6 5 AutoContrast 0.6 5
Invert 0.6 4 Equalize 1.0 8
Color 0.6 4 Contrast 1.0 8
Equalize 0.8 8 Equalize 0.6 3
"""

# Arguments by magnitude, worked out by hand from the ranges.
BY_HAND = {
    ("Posterize", 5): 6,
    ("Posterize", 8): 4,
    ("Solarize", 3): 170.667,
    ("Rotate", 3): 10.0,
    ("Rotate", 9): 30.0,
    ("ShearX", 5): 0.16667,
    ("Color", 0): 0.1,
    ("Contrast", 8): 1.7,
    ("Sharpness", 7): 1.5,
}


def published():
    rows = []
    for line in PUBLISHED.split("\n"):
        if line:
            a, p, m, b, q, n = line.split()
            rows.append(((a, float(p), int(m)), (b, float(q), int(n))))
    assert len(rows) == 25
    return rows


def keys(count, seed=0):
    return jax.random.split(jax.random.key(seed), count)


def test_the_table_is_the_published_policy():
    assert list(policies.IMAGENET_POLICY) == published()
    for (name, magnitude), value in BY_HAND.items():
        found = policies.value_of(name, magnitude / 9, 224)
        assert found == pytest.approx(value, abs=1e-3)
    # The two layers share one affine map.
    geometric = {*policies.GEOMETRIC}
    assert not any(
        a in geometric and b in geometric for (a, *_), (b, *_) in published()
    )


def chi_square(counts, expected):
    counts, expected = np.asarray(counts, float), np.asarray(expected, float)
    possible = expected > 0
    assert not counts[~possible].any()
    gaps = (counts[possible] - expected[possible]) ** 2 / expected[possible]
    return gaps.sum(), possible.sum() - 1


def test_sub_policies_and_operations_are_drawn_as_published():
    """One cell for each sub-policy, and which of its operations are applied."""
    draw = jax.device_get(jax.jit(policies.draw_autoaugment)(keys(DRAWS)))
    np.testing.assert_array_equal(draw.row[:, 0], draw.row[:, 1])
    cells = collections.Counter(
        zip(draw.row[:, 0].tolist(), *draw.applied.T.tolist(), strict=True)
    )
    counts, expected = [], []
    for i, ((_, p, _), (_, q, _)) in enumerate(published()):
        for first in (False, True):
            for second in (False, True):
                counts.append(cells[i, first, second])
                share = (p if first else 1 - p) * (q if second else 1 - q)
                expected.append(DRAWS / 25 * share)
    value, freedom = chi_square(counts, expected)
    # Beyond this in one run of a million; deterministic for this seed.
    assert value < freedom + 5 * (2 * freedom) ** 0.5


def test_randaugment_draws_each_operation_alike():
    draw = jax.device_get(policies.draw_randaugment(keys(20_000), 3))
    assert draw.row.shape == (20_000, 3) and draw.applied.all()
    counts = np.bincount(
        (draw.row[:, 0] * 14 + draw.row[:, 1]) * 2 + draw.negative[:, 0],
        minlength=14 * 14 * 2,
    )
    value, freedom = chi_square(counts, [20_000 / (14 * 14 * 2)] * (14 * 14 * 2))
    assert value < freedom + 5 * (2 * freedom) ** 0.5
    assert len(set(policies.RANDAUGMENT)) == 14


@pytest.mark.parametrize(
    "magnitude, name, value",
    [
        (5.0, "Rotate", 15.0),
        (10.0, "TranslateX", 300 * 150 / 331),
        (10.0, "TranslateY", 200 * 150 / 331),
        (10.0, "Solarize", 0),
        (9.0, "Brightness", 1.72),
    ],
)
def test_randaugment_magnitudes_end_at_ten(magnitude, name, value):
    table = policies.randaugment_table(magnitude, (200, 300))
    expected = operation(name, value, (200, 300))
    row = policies.RANDAUGMENT.index(name)
    for found, parameter in zip(table, expected, strict=True):
        np.testing.assert_allclose(found[row, 0], parameter, rtol=1e-6)


@pytest.mark.parametrize("policy", ["autoaugment", "randaugment"])
def test_a_policy_is_what_pillow_does_with_the_same_draw(policy, real_data):
    """On eight devices, against one operation after the other in Pillow."""
    files = sorted((real_data / "imagenet_samples").glob("*/*.JPEG"))[:8]
    images = np.stack(
        [Image.open(file).convert("RGB").resize((48, 48)) for file in files] * 12
    )
    config = default_config().data
    config.augment = policy
    config.randaugment_magnitude = 7.0
    sharding = batch_sharding(make_mesh())
    batch = jax.device_put((images, keys(96, 3)), sharding)
    apply = jax.jit(lambda x, k: policies.apply_policy(x, config, k, sharding))
    program = apply.lower(*batch).compile()
    # No example leaves its device.
    collectives = "all-gather|all-reduce|all-to-all|collective-permute"
    assert not re.search(collectives, program.as_text())
    out = program(*batch)
    if policy == "autoaugment":
        draw = jax.device_get(policies.draw_autoaugment(keys(96, 3)))
        table = [[(n, m / 9) for n, _, m in pair] for pair in published()]
    else:
        draw = jax.device_get(policies.draw_randaugment(keys(96, 3), 2))
        table = [[(name, 0.7)] * 2 for name in policies.RANDAUGMENT]
    changed = 0
    for k, (image, found) in enumerate(zip(images, np.asarray(out), strict=True)):
        result = Image.fromarray(image)
        for layer in range(2):
            name, share = table[draw.row[k, layer]][layer]
            if draw.applied[k, layer]:
                value = policies.value_of(name, share, 48)
                if name in policies.GEOMETRIC and draw.negative[k, layer]:
                    value = -value
                result = pillow(result, name, value)
        gap = np.abs(found.astype(int) - np.asarray(result))
        # A level that AutoContrast rounds otherwise may be moved by what follows.
        assert (gap > 1).mean() < 4e-3, k
        changed += (found != image).any()
    assert changed > 60
