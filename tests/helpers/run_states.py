"""Saved states of runs, compared bit by bit, and interrupted runs."""

import contextlib
from collections.abc import Iterator
from typing import Any

import jax
import numpy as np
import pytest
from ml_collections import ConfigDict

from vt_flax.training import loop
from vt_flax.training.checkpoint import Checkpoints
from vt_flax.training.state import TrainState


def changed(config: ConfigDict, changes: dict[str, Any]) -> ConfigDict:
    """Returns a configuration after changes, by keys such as `data.name`."""
    with config.unlocked():
        config.update_from_flattened_dict(changes)
    return config


def last_state(run, workdir) -> TrainState:
    """Returns the newest checkpoint of a workdir."""
    checkpoints = Checkpoints(workdir, read_only=True)
    return checkpoints.restore(run.abstract_state(), checkpoints.steps()[-1]).state


def leaves(state: TrainState) -> dict[str, np.ndarray]:
    """Returns the arrays of a state by path."""
    flat = jax.tree_util.tree_flatten_with_path(jax.device_get(state))[0]
    return {jax.tree_util.keystr(path): value for path, value in flat}


def assert_same(one: TrainState, other: TrainState) -> None:
    """Checks that two states are equal to the bit."""
    one, other = leaves(one), leaves(other)
    assert one.keys() == other.keys()
    for path, value in one.items():
        np.testing.assert_array_equal(value, other[path], err_msg=path)


@contextlib.contextmanager
def cut_off(monkeypatch: pytest.MonkeyPatch, step: int) -> Iterator[None]:
    """Interrupts the training inside after a number of steps."""
    batches = loop.device_batches

    def stopped(run, source, first):
        for i, batch in enumerate(batches(run, source, first), first):
            if i == step:
                raise KeyboardInterrupt
            yield batch

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(loop, "device_batches", stopped)
        yield
