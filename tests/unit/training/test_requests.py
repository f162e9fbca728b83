"""Requests of one process, as all processes see them."""

import os
import signal

import jax
import jax.numpy as jnp

from vt_flax.parallel.mesh import make_mesh
from vt_flax.training.requests import NONE, SAVE, STOP, Requests


def test_a_save_is_requested_once_and_a_stop_for_good():
    requests = Requests(make_mesh())

    def request() -> int:
        """Returns what a step makes of the requests of all devices."""
        field = requests.batch()["request"]
        assert field.shape == (8,) and len(field.sharding.device_set) == 8
        return int(jax.jit(jnp.max)(field))

    before = signal.getsignal(signal.SIGTERM)
    with requests:
        assert request() == NONE
        requests.save()
        assert [request() for _ in range(2)] == [SAVE, NONE]
        os.kill(os.getpid(), signal.SIGTERM)
        requests.save()
        assert [request() for _ in range(3)] == [STOP] * 3
    assert signal.getsignal(signal.SIGTERM) == before
