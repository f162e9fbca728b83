"""Initialization from another run's weights: loaded, missing and unexpected keys."""

import jax
import numpy as np
import optax
import pytest
from flax import traverse_util

from vt_flax.errors import UserError
from vt_flax.models import create_model
from vt_flax.training.checkpoint import Checkpoints
from vt_flax.training.state import create_state
from vt_flax.training.weights import initialize

pytestmark = pytest.mark.slow

BACKBONE = {"stem": "small", "stage_sizes": (1, 1, 1, 1), "width": 4}


def make_state(name, *, ema=True, seed=0, **options):
    model = create_model(name, **BACKBONE, **options)
    optimizer = optax.sgd(0.1, momentum=0.9)
    return jax.jit(lambda: create_state(model, optimizer, (16, 16), seed, ema=ema))()


def flat(tree):
    return {k: np.asarray(v) for k, v in traverse_util.flatten_dict(tree).items()}


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """A classifier's checkpoint of which no two arrays are alike, and its weights."""
    workdir = tmp_path_factory.mktemp("classifier")
    state = make_state("resnet18", num_classes=5)
    rng = np.random.default_rng(0)

    def other(x):
        return jax.numpy.asarray(rng.uniform(0.5, 2, x.shape), x.dtype)

    parts = ("params", "batch_stats", "ema_params", "ema_batch_stats")
    state = state.replace(**{p: jax.tree.map(other, getattr(state, p)) for p in parts})
    checkpoints = Checkpoints(workdir)
    checkpoints.save(7, state)
    checkpoints.close()
    return workdir, flat(state.ema_params), flat(state.ema_batch_stats)


def test_a_backbone_comes_from_a_classifier(saved):
    workdir, params, stats = saved
    options = {"fpn_channels": 8, "head_channels": 8, "num_classes": 3}
    start = make_state("fpn_resnet18", seed=1, **options)
    state, lines = initialize(start, str(workdir))
    fresh = flat(start.params)
    for part, taken in (("params", params), ("batch_stats", stats)):
        own, average = flat(getattr(state, part)), flat(getattr(state, f"ema_{part}"))
        for path, array in own.items():
            np.testing.assert_array_equal(array, average[path])
            if path[0] not in ("fpn", "head"):
                np.testing.assert_array_equal(array, taken[path], err_msg=str(path))
            elif part == "params":
                np.testing.assert_array_equal(array, fresh[path])
    assert state.step == 0
    jax.tree.map(np.testing.assert_array_equal, state.opt_state, start.opt_state)
    # Nothing is held twice: a state is donated.
    buffers = [x.unsafe_buffer_pointer() for x in jax.tree.leaves(state)]
    assert len(buffers) == len(set(buffers))
    count = sum(path[0] != "head" for path in (*params, *stats))
    folder = workdir / "checkpoints" / "7"
    assert lines == [
        f"loaded {count} arrays from {folder} (ema weights)",
        "missing, so initialized afresh: fpn, head",
        "unexpected, so not used: head",
    ]


@pytest.mark.parametrize("classes, fresh", [(5, False), (4, True)])
def test_of_other_classes_only_the_head_is_new(classes, fresh, saved):
    workdir, params, _ = saved
    start = make_state("resnet18", num_classes=classes, seed=2)
    state, lines = initialize(start, str(workdir / "checkpoints" / "7"))
    found = flat(state.params)
    own = flat(start.params)
    assert ("initialized afresh: head" in " ".join(lines)) == fresh
    for path, array in found.items():
        expected = own if fresh and path[0] == "head" else params
        np.testing.assert_array_equal(array, expected[path])


def test_raw_weights_are_taken_where_no_ema_is_kept(tmp_path):
    state = make_state("resnet18", ema=False, num_classes=5, seed=3)
    checkpoints = Checkpoints(tmp_path)
    checkpoints.save(1, state)
    checkpoints.close()
    found, lines = initialize(make_state("resnet18", num_classes=5), str(tmp_path))
    assert lines[0].endswith("(raw weights)")
    jax.tree.map(np.testing.assert_array_equal, found.ema_params, state.params)


def test_what_does_not_fit_is_one_line(saved, tmp_path):
    workdir = saved[0]
    wide = {**BACKBONE, "width": 8}
    model = create_model("resnet18", **wide)
    state = create_state(model, optax.sgd(0.1), (16, 16), 0, ema=False)
    with pytest.raises(UserError, match="has shape .* there, .* here: choose the same"):
        initialize(state, str(workdir))
    state = make_state("resnet18", num_classes=5)
    with pytest.raises(UserError, match="no checkpoint is there; name a workdir"):
        initialize(state, str(tmp_path))
    nothing = state.replace(params={"other": {"kernel": state.params["head"]["bias"]}})
    with pytest.raises(UserError, match="no array fits; it holds .*stage2"):
        initialize(nothing.replace(batch_stats={}), str(workdir))
