"""Devices that JAX cannot start."""

import jax
import pytest

from vt_flax.errors import UserError
from vt_flax.parallel import devices


@pytest.mark.parametrize(
    "error, reason",
    [
        (
            RuntimeError("no supported devices found\nmore"),
            "no supported devices found",
        ),
        # JAX_PLATFORMS=cuda without an NVIDIA device.
        (AssertionError(), "none for .* found"),
    ],
)
def test_a_device_that_jax_cannot_start_is_one_line(error, reason, monkeypatch):
    def fail():
        raise error

    monkeypatch.setattr(jax, "devices", fail)
    with pytest.raises(UserError, match=f"^JAX starts no device: {reason}; see docs"):
        devices.start_devices()
