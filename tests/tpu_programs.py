"""Programs that compile for TPUs, each in a process of its own."""

import os
import subprocess
import sys

import pytest

from vt_flax.parallel.topology import ENVIRONMENT, has_tpu_compiler

needs_tpu_compiler = pytest.mark.skipif(
    not has_tpu_compiler(), reason='needs libtpu: pip install "jax[tpu]"'
)


def run_program(program, topology):
    """Returns what a program prints that is given the name of a topology."""
    done = subprocess.run(
        [sys.executable, "-c", program, topology],
        env=os.environ | ENVIRONMENT,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout.strip()
