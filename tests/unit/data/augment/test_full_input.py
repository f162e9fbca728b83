"""The input of real photographs in array_record: the same for any processes."""

import hashlib

import numpy as np
import pytest

from vt_flax.data.batches import train_batches
from vt_flax.data.source import cached
from vt_flax.data.sources import open_source
from vt_flax.training.config import load_config

pytestmark = pytest.mark.slow

STEPS, BATCH = 20, 8


@pytest.fixture(scope="module")
def source(prepared_imagenet):
    """Thirty photographs, so that 20 batches of 8 are more than five epochs."""
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


def test_batches_differ_and_do_not_depend_on_the_number_of_processes(
    source, config, alone
):
    assert len(set(alone)) == STEPS
    assert digests(source, config, process_count=4) == alone
    assert not set(digests(source, config, seed=1, last=5)) & set(alone)


def test_a_restart_goes_on_with_the_same_batches(source, config, alone):
    assert digests(source, config, first=7) == alone[7:]


def test_the_cache_changes_nothing(source, config, alone, monkeypatch):
    kept = cached(source)
    assert digests(kept, config) == alone
    # Nothing is read a second time.
    monkeypatch.setattr(source, "fetch", None)
    assert digests(kept, config) == alone
