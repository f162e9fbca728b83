"""The whole input on real photographs in array_record: exact, for any processes."""

import hashlib

import numpy as np
import pytest

from vt_flax.data.batches import train_batches
from vt_flax.data.source import cached
from vt_flax.data.sources import open_source
from vt_flax.training.config import load_config

pytestmark = pytest.mark.slow

STEPS, BATCH = 200, 8


@pytest.fixture(scope="module")
def source(prepared_imagenet):
    """Thirty photographs, so that 200 batches of 8 are 53 epochs and a third."""
    return open_source("imagenet2012", "train", prepared_imagenet)


@pytest.fixture(scope="module")
def config():
    config = load_config("configs/imagenet.py").data.copy_and_resolve_references()
    config.unlock()
    config.image_size = 32
    return config


def digests(source, config, *, seed=0, first=0, last=STEPS, process_count=1):
    """Returns what identifies each global batch: one hash of its bytes."""
    shares = [
        train_batches(
            source,
            config,
            seed=seed,
            batch=BATCH,
            first=first,
            last=last,
            local_indices=indices,
        )
        for indices in np.split(np.arange(BATCH), process_count)
    ]
    result = []
    for batches in zip(*shares, strict=True):
        whole = {k: np.concatenate([b[k] for b in batches]) for k in batches[0]}
        assert whole["image"].shape == (BATCH, 32, 32, 3)
        text = b"".join(whole[key].tobytes() for key in sorted(whole))
        result.append(hashlib.sha256(text).hexdigest())
    return result


@pytest.fixture(scope="module")
def alone(source, config):
    return digests(source, config)


def test_no_two_batches_are_alike(alone):
    assert len(set(alone)) == STEPS


@pytest.mark.parametrize("process_count", [2, 4])
def test_200_global_batches_are_the_same_for_any_number_of_processes(
    process_count, source, config, alone
):
    assert digests(source, config, process_count=process_count) == alone


@pytest.mark.parametrize("first", [1, 57, 199])
def test_a_restart_at_any_step_goes_on_with_the_same_batches(
    first, source, config, alone
):
    assert digests(source, config, first=first) == alone[first:]


def test_another_seed_has_other_batches(source, config, alone):
    assert not set(digests(source, config, seed=1, last=20)) & set(alone)


def test_the_cache_changes_nothing(source, config, alone, monkeypatch):
    kept = cached(source)
    assert digests(kept, config, last=30) == alone[:30]
    # Nothing is read a second time.
    monkeypatch.setattr(source, "fetch", None)
    assert digests(kept, config, last=30) == alone[:30]
