"""Networks as programs for a batch of any size."""

import jax
import jax.numpy as jnp
import pytest
from jax import export

from vt_flax.models import create_model, model_options

pytestmark = pytest.mark.slow


@pytest.mark.parametrize(
    "name, options",
    [
        ("vt_resnet18", {"formulation": "printed"}),
        ("vt_resnet18", {"preset": "v4", "formulation": "folded"}),
        ("vt_fpn_resnet18", {"formulation": "folded"}),
        ("aa_resnet50", {}),
        ("san10_pairwise", {}),
        ("san10_patchwise", {}),
    ],
)
def test_nothing_asks_how_large_the_batch_is(name, options):
    stages = len(model_options(name)["stage_sizes"])
    model = create_model(name, stage_sizes=(1,) * stages, num_classes=7, **options)
    one = jax.ShapeDtypeStruct((1, 64, 64, 3), jnp.float32)
    variables = jax.eval_shape(model.init, jax.random.key(0), one)
    shape = export.symbolic_shape("batch, 64, 64, 3")
    images = jax.ShapeDtypeStruct(shape, jnp.float32)
    found = jax.eval_shape(model.apply, variables, images)
    assert str(found.shape[0]) == "batch" and found.shape[-1] == 7
